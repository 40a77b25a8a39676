//! All services of one VM.

use crate::exit::{Exit, Resume};
use crate::ids::{VcpuId, VcpuSet};
use crate::manifest::Placement;
use crate::traits::{ConsoleSink, GuestMemory};
use crate::vgic::{Vgic, VgicConfig};

/// What services are to be given to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicesConfig {
    /// Interrupt controller.
    pub vgic: VgicConfig,
    /// `Some(ipa_bits)` for a realm: its RMM serves PSCI, and addresses that it names may carry the
    /// shared-alias bit `ipa_bits - 1`.
    pub realm_ipa_bits: Option<u32>,
    /// Where the PL011 is, if there is one.
    pub uart: Option<Placement>,
}

/// What services reach while they handle an exit.
pub struct Context<'a> {
    /// The VM's memory.
    pub memory: &'a dyn GuestMemory,
    /// The VM's console.
    pub console: &'a mut dyn ConsoleSink,
}

/// Answer to an [`Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Response {
    /// What the vCPU that left its guest is to do.
    pub resume: Resume,
    /// Other vCPUs that got an interrupt: wake them if they block, kick them if they run.
    pub kick: VcpuSet,
}

/// The services of one VM. One lock per VM around this.
#[derive(Clone, Debug)]
pub struct VmServices {
    vgic: Vgic,
}

impl VmServices {
    /// Services after reset; only [`VcpuId::BOOT`] is on.
    #[must_use]
    pub fn new(config: &ServicesConfig) -> Self {
        Self { vgic: Vgic::new(config.vgic) }
    }

    /// The VM's interrupt controller.
    #[must_use]
    pub fn vgic(&self) -> &Vgic {
        &self.vgic
    }

    /// The VM's interrupt controller, for flush, sync and timers.
    pub fn vgic_mut(&mut self) -> &mut Vgic {
        &mut self.vgic
    }

    /// Handles an exit of `vcpu`, whose list registers have been synced.
    pub fn handle(&mut self, vcpu: VcpuId, exit: &Exit, context: &mut Context<'_>) -> Response {
        let _ = (vcpu, exit, context);
        todo!()
    }

    /// Feeds typed bytes to the UART; returns how many it took, and whom to kick.
    pub fn console_input(&mut self, bytes: &[u8]) -> (usize, VcpuSet) {
        let _ = bytes;
        todo!()
    }

    /// Code of [`crate::host_call::REPORT_FAILURE`], if the guest called it.
    #[must_use]
    pub fn reported_failure(&self) -> Option<u64> {
        todo!()
    }

    /// Gives out a line that has begun, because the VM stopped or fell silent.
    pub fn flush_console(&mut self, console: &mut dyn ConsoleSink) {
        let _ = console;
        todo!()
    }
}
