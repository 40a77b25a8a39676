//! GICv3 for guests: distributor, redistributors, SGI generation and list registers, as pure logic.

mod lr;

pub use lr::{HcrBits, ListRegister, LrImage, LrState, MAX_LRS};

use crate::exit::MmioAccess;
use crate::ids::{VcpuId, VcpuSet};

/// Highest interrupt that a vGIC has: 32 private and 96 shared ones.
pub const MAX_INTID: u32 = 127;

/// What a vGIC is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VgicConfig {
    /// Number of vCPUs, 1 to [`crate::MAX_VCPUS`]; other values are clamped.
    pub vcpus: usize,
    /// Number of list registers of the virtual CPU interface, 1 to [`MAX_LRS`]; clamped.
    pub list_registers: usize,
    /// A private interrupt that is tied to the physical interrupt of the same number by the HW bit
    /// of its list register. For a REC this must be `None`.
    pub hardware_ppi: Option<u32>,
}

/// The interrupt controller of one VM.
#[derive(Clone, Debug)]
pub struct Vgic {
    config: VgicConfig,
}

impl Vgic {
    /// A vGIC after reset: everything disabled, nothing pending.
    #[must_use]
    pub fn new(config: VgicConfig) -> Self {
        Self { config }
    }

    /// Fills `image` with what `vcpu` is to see. Call right before entry.
    pub fn flush(&mut self, vcpu: VcpuId, image: &mut LrImage) {
        let _ = (vcpu, image, &self.config);
        todo!()
    }

    /// Takes back what `vcpu` did with `image`. Call after every exit, before anything else is asked of the vGIC for this vCPU.
    pub fn sync(&mut self, vcpu: VcpuId, image: &LrImage) {
        let _ = (vcpu, image);
        todo!()
    }

    /// Whether `vcpu` has an interrupt that ends a WFI.
    #[must_use]
    pub fn has_pending(&self, vcpu: VcpuId) -> bool {
        let _ = vcpu;
        todo!()
    }

    /// Drives the line of a private interrupt (16 to 31) of `vcpu`.
    pub fn set_ppi(&mut self, vcpu: VcpuId, intid: u32, high: bool) -> VcpuSet {
        let _ = (vcpu, intid, high);
        todo!()
    }

    /// Drives the line of a shared interrupt (32 and above).
    pub fn set_spi(&mut self, intid: u32, high: bool) -> VcpuSet {
        let _ = (intid, high);
        todo!()
    }

    /// The physical interrupt tied to `hardware_ppi` was taken while `vcpu` was loaded. It stays active physically until the guest deactivates it.
    pub fn raise_hardware(&mut self, vcpu: VcpuId) -> VcpuSet {
        let _ = vcpu;
        todo!()
    }

    /// Whether the tied physical interrupt of `vcpu` must be active in the physical GIC of the core that runs it.
    #[must_use]
    pub fn hardware_active(&self, vcpu: VcpuId) -> bool {
        let _ = vcpu;
        todo!()
    }

    /// Whether `access` falls into the distributor or a redistributor.
    #[must_use]
    pub fn claims(&self, access: &MmioAccess) -> bool {
        let _ = access;
        todo!()
    }
}
