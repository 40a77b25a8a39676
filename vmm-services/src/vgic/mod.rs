//! GICv3 for guests: distributor, redistributors, SGI generation and list registers, as pure logic.
//!
//! Follows Arm IHI 0069 (GICv3 and GICv4) for a single security state (`GICD_CTLR.DS` is one), with
//! affinity routing, without LPIs and without message-based SPIs. Every vCPU has 16 SGIs and 16
//! PPIs; [`MAX_INTID`] bounds the SPIs.
//!
//! # Who knows what
//!
//! Interrupt state lives here. [`Vgic::flush`] lends the most urgent part of it to the list
//! registers right before entry, [`Vgic::sync`] takes it back right after exit. Between the two, a
//! vCPU's interrupts may change under the guest's hands, and what other vCPUs read about them is as
//! of the entry; what they write counts, and is not undone by the list register.
//!
//! Functions that change state return the vCPUs that have to look at it again: to be woken when they
//! block, to be made to exit when they run. The vCPU on whose behalf one is called may be among them;
//! it looks anyway when it is entered next.
//!
//! # Level-sensitive interrupts
//!
//! A list register cannot follow a line. It asks for a maintenance interrupt at deactivation
//! instead, and the exit samples the line again. An interrupt that is tied to a physical one
//! ([`VgicConfig::hardware_ppis`]) needs none: the guest's deactivation deactivates the physical
//! interrupt, which fires again if its line is still high.

mod bank;
mod lr;
mod mmio;
mod planner;
mod sgi;

pub(crate) use sgi::SgiGroup;

pub use lr::{HcrBits, ListRegister, LrImage, LrState, MAX_LRS};
pub use mmio::{Frame, FrameAccess};

use crate::ids::{MAX_VCPUS, VcpuId, VcpuSet};
use bank::{Bank, Groups, bits};

/// Number of banks of shared interrupts.
const SHARED_BANKS: usize = 3;
/// Highest interrupt that a vGIC has: 32 private and 96 shared ones.
pub const MAX_INTID: u32 = 32 * (SHARED_BANKS as u32 + 1) - 1;
/// SGIs are edge-triggered, PPIs can be either.
const PRIVATE_LEVEL: u32 = 0xffff_0000;

/// What a vGIC is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VgicConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`]; other values are clamped.
    pub vcpus: usize,
    /// Number of list registers of the virtual CPU interface, 2 to [`MAX_LRS`]; clamped. All known
    /// implementations have four or more, and with one there is no way to learn that it is free.
    pub list_registers: usize,
    /// PPIs that are tied to physical ones by the HW bit of their list registers. For a REC there
    /// must be none.
    pub hardware_ppis: [Option<HardwarePpi>; MAX_HARDWARE_PPIS],
}

/// Most PPIs that can be tied to physical ones: those of the virtual and the physical timer.
pub const MAX_HARDWARE_PPIS: usize = 2;

/// A PPI of the guest that is tied to a PPI of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwarePpi {
    /// INTID that the guest sees, 16 to 31.
    pub guest: u32,
    /// INTID of the machine's interrupt, 16 to 31.
    pub physical: u32,
}

/// What belongs to one vCPU.
#[derive(Clone, Debug)]
struct Private {
    bank: Bank,
    /// Tied interrupts whose physical one is active on behalf of this vCPU.
    hardware_active: u32,
    /// Tied interrupts where the guest changed that other than by deactivation, so that the
    /// physical interrupt controller does not know it yet.
    hardware_stale: u32,
    /// Interrupts in the list registers, in order, while they are lent out.
    lent: [u8; MAX_LRS],
    lent_count: usize,
    /// ICH_VMCR_EL2 as of the last exit.
    vmcr: u64,
    /// GICR_WAKER.ProcessorSleep. Kept for reading back: interrupts are forwarded regardless.
    asleep: bool,
}

impl Private {
    const RESET: Self = Self {
        bank: Bank::new(PRIVATE_LEVEL),
        hardware_active: 0,
        hardware_stale: 0,
        lent: [0; MAX_LRS],
        lent_count: 0,
        vmcr: 0,
        asleep: true,
    };
}

/// 32 shared interrupts.
#[derive(Clone, Debug)]
struct Shared {
    bank: Bank,
    /// Affinity that each is routed to, packed as `Aff3.Aff2.Aff1.Aff0`.
    route: [u32; 32],
    /// For each vCPU, the interrupts that are its to handle: those routed to it, and those that it
    /// has taken until it is done with them.
    owned: [u32; MAX_VCPUS],
    /// Interrupts whose owner is not done with them although they are routed elsewhere now.
    moved: u32,
    /// Interrupts that are tied to those of the machine with the same number.
    tied: u32,
    /// Tied interrupts whose physical one is level-sensitive.
    tied_level: u32,
    /// Tied interrupts whose physical one is active on behalf of this VM.
    hardware_active: u32,
}

impl Shared {
    /// After reset, everything is routed to affinity zero, the boot vCPU.
    const RESET: Self = {
        let mut owned = [0; MAX_VCPUS];
        owned[0] = u32::MAX;
        Self {
            bank: Bank::new(u32::MAX),
            route: [0; 32],
            owned,
            moved: 0,
            tied: 0,
            tied_level: 0,
            hardware_active: 0,
        }
    };

    /// Gives interrupts in `mask` to whom they are routed; if their owner still has them, later.
    fn rehome(&mut self, mask: u32, vcpus: usize) {
        let busy = self.bank.listed | self.bank.active;
        self.moved = (self.moved & !mask) | (mask & busy);
        for index in bits(mask & !busy) {
            let bit = 1 << index;
            self.owned.iter_mut().for_each(|owned| *owned &= !bit);
            let target = self.route.get(index as usize).copied().unwrap_or(0) as usize;
            if let Some(owned) = self.owned.get_mut(target).filter(|_| target < vcpus) {
                *owned |= bit;
            }
        }
    }
}

/// The interrupt controller of one VM.
#[derive(Clone, Debug)]
pub struct Vgic {
    config: VgicConfig,
    /// The tied interrupts, one bit each.
    tied: u32,
    groups: Groups,
    private: [Private; MAX_VCPUS],
    shared: [Shared; SHARED_BANKS],
    /// vCPUs for which [`Self::flush`] found nothing to do at all, and [`Self::sync`] will find nothing
    /// either. Whatever may change that takes them out.
    quiet: VcpuSet,
}

impl Vgic {
    /// A vGIC after reset: everything disabled, nothing pending.
    #[must_use]
    pub fn new(config: VgicConfig) -> Self {
        let config = VgicConfig {
            vcpus: config.vcpus.clamp(1, MAX_VCPUS),
            list_registers: config.list_registers.clamp(2, MAX_LRS),
            hardware_ppis: config.hardware_ppis.map(|tied| {
                tied.filter(|ppi| [ppi.guest, ppi.physical].iter().all(|id| (16..32).contains(id)))
            }),
        };
        Self {
            config,
            tied: config.hardware_ppis.iter().flatten().fold(0, |mask, ppi| mask | 1 << ppi.guest),
            groups: Groups::default(),
            private: [const { Private::RESET }; MAX_VCPUS],
            shared: [const { Shared::RESET }; SHARED_BANKS],
            quiet: VcpuSet::EMPTY,
        }
    }

    /// Whether `vcpu` has no interrupt in its list registers and none that should be there, so that
    /// [`Self::flush`] has nothing to do. Most entries into a guest are of this kind.
    #[inline]
    #[must_use]
    pub fn is_quiet(&self, vcpu: VcpuId) -> bool {
        self.quiet.contains(vcpu)
    }

    /// Configuration, after clamping.
    #[must_use]
    pub fn config(&self) -> &VgicConfig {
        &self.config
    }

    fn all_vcpus(&self) -> impl Iterator<Item = VcpuId> + use<> {
        VcpuSet::first(self.config.vcpus).iter()
    }

    /// Machine's INTIDs, one bit each, of the tied interrupts in `mask`.
    fn physical(&self, mask: u32) -> u32 {
        let tied = self.config.hardware_ppis.iter().flatten();
        tied.filter(|ppi| mask >> ppi.guest & 1 != 0).fold(0, |bits, ppi| bits | 1 << ppi.physical)
    }

    /// Drives the line of a PPI (16 to 31) of `vcpu` high or low; other numbers are ignored.
    ///
    /// Returns whom to wake or kick.
    pub fn set_ppi(&mut self, vcpu: VcpuId, intid: u32, high: bool) -> VcpuSet {
        if !(16..32).contains(&intid) {
            return VcpuSet::EMPTY;
        }
        let bit = 1 << intid;
        let bank = &mut self.private[vcpu.index()].bank;
        if (bank.line & bit != 0) == high {
            return VcpuSet::EMPTY;
        }
        bank.drive(bit, high);
        self.quiet.remove(vcpu);
        self.private_changed(vcpu, if high { bit } else { 0 })
    }

    /// Drives the line of a shared interrupt (32 to [`MAX_INTID`]) high or low; other numbers are
    /// ignored.
    ///
    /// Returns whom to wake or kick.
    pub fn set_spi(&mut self, intid: u32, high: bool) -> VcpuSet {
        let index = (intid / 32).wrapping_sub(1) as usize;
        let bit = 1 << (intid % 32);
        let Some(shared) = self.shared.get_mut(index) else { return VcpuSet::EMPTY };
        if (shared.bank.line & bit != 0) == high {
            return VcpuSet::EMPTY;
        }
        shared.bank.drive(bit, high);
        self.quiet = VcpuSet::EMPTY;
        self.shared_changed(index, if high { bit } else { 0 })
    }

    /// The physical interrupt behind the tied `intid` was taken on behalf of `vcpu`.
    ///
    /// It is to stay active in the physical interrupt controller (priority dropped, not
    /// deactivated) until the guest deactivates it. An interrupt that is not tied is ignored.
    pub fn raise_hardware(&mut self, vcpu: VcpuId, intid: u32) -> VcpuSet {
        let bit = 1_u32.checked_shl(intid).unwrap_or(0) & self.tied;
        let private = &mut self.private[vcpu.index()];
        private.bank.set_pending(bit);
        private.hardware_active |= bit;
        self.quiet.remove(vcpu);
        self.private_changed(vcpu, bit)
    }

    /// Whether the private interrupt `intid` of each vCPU is tied to one of the machine.
    #[must_use]
    pub fn is_tied(&self, intid: u32) -> bool {
        1_u32.checked_shl(intid).unwrap_or(0) & self.tied != 0
    }

    /// Ties the shared interrupt `intid` to that of the machine with the same number, by the HW bit
    /// of its list register. `level` says that the machine's is level-sensitive. Numbers that a vGIC
    /// does not have are ignored. Not for a REC.
    pub fn tie_spi(&mut self, intid: u32, level: bool) {
        if let Some(shared) = self.shared.get_mut((intid / 32).wrapping_sub(1) as usize) {
            shared.tied |= 1 << (intid % 32);
            shared.tied_level |= u32::from(level) << (intid % 32);
        }
    }

    /// The physical interrupt behind the tied `intid` was taken: as [`Self::raise_hardware`], for a
    /// shared interrupt.
    pub fn raise_hardware_spi(&mut self, intid: u32) -> VcpuSet {
        let index = (intid / 32).wrapping_sub(1) as usize;
        let Some(shared) = self.shared.get_mut(index) else { return VcpuSet::EMPTY };
        let bit = 1 << (intid % 32) & shared.tied;
        shared.bank.set_pending(bit);
        shared.hardware_active |= bit;
        self.quiet = VcpuSet::EMPTY;
        self.shared_changed(index, bit)
    }

    /// Looks again at the lines of level-sensitive tied interrupts that were taken and that no vCPU has
    /// seen yet: where `is_high` says no, the interrupt is gone. Call before [`Self::flush`].
    #[inline]
    pub fn resample_hardware_spis(&mut self, mut is_high: impl FnMut(u32) -> bool) {
        if !self.has_active_hardware_spis() {
            return;
        }
        for (n, shared) in (1..).zip(&mut self.shared) {
            let bank = &mut shared.bank;
            let unseen = shared.hardware_active & shared.tied_level & bank.pending & !bank.listed;
            for index in bits(unseen).filter(|index| !is_high(32 * n + index)) {
                bank.pending &= !(1 << index);
            }
        }
    }

    /// Calls `deactivate` with each tied shared interrupt whose physical one is still active although
    /// the guest is done with it: other than by deactivating it in a list register.
    #[inline]
    pub fn release_hardware_spis(&mut self, mut deactivate: impl FnMut(u32)) {
        if !self.has_active_hardware_spis() {
            return;
        }
        for (n, shared) in (1..).zip(&mut self.shared) {
            if shared.hardware_active == 0 {
                continue;
            }
            let bank = &shared.bank;
            let held = bank.active | bank.pending | bank.latched | bank.listed;
            bits(shared.hardware_active & !held).for_each(|index| deactivate(32 * n + index));
            shared.hardware_active &= held;
        }
    }

    /// Whether a tied shared interrupt was taken and is not done with: every entry may be the one at which
    /// that ends. Most VMs have none at all.
    fn has_active_hardware_spis(&self) -> bool {
        self.shared.iter().fold(0, |all, shared| all | shared.hardware_active) != 0
    }

    /// Which physical PPIs, one bit per INTID of the machine, are to be active on the core that runs
    /// `vcpu`. To be copied to the physical interrupt controller when a core takes up the vCPU.
    #[must_use]
    pub fn hardware_active(&self, vcpu: VcpuId) -> u32 {
        self.physical(self.private[vcpu.index()].hardware_active)
    }

    /// Starts `vcpu` afresh: its CPU interface has been reset, so nothing of its own is active.
    pub fn power_on(&mut self, vcpu: VcpuId) {
        let private = &mut self.private[vcpu.index()];
        private.bank.active = 0;
        private.vmcr = 0;
        self.hardware_written(vcpu);
    }

    /// Whom to tell that interrupts in `mask` of a private bank changed.
    fn private_changed(&self, vcpu: VcpuId, mask: u32) -> VcpuSet {
        let bank = &self.private[vcpu.index()].bank;
        let matter = bank.wanting(self.groups) | bank.listed;
        if matter & mask != 0 { VcpuSet::only(vcpu) } else { VcpuSet::EMPTY }
    }

    /// Whom to tell that interrupts in `mask` of shared bank `index` changed.
    fn shared_changed(&self, index: usize, mask: u32) -> VcpuSet {
        let mut kick = VcpuSet::EMPTY;
        let Some(shared) = self.shared.get(index) else { return kick };
        let matter = (shared.bank.wanting(self.groups) | shared.bank.listed) & mask;
        if matter == 0 {
            return kick;
        }
        for vcpu in self.all_vcpus() {
            if shared.owned[vcpu.index()] & matter != 0 {
                kick.insert(vcpu);
            }
        }
        kick
    }

    /// Whom to tell that everything changed.
    fn all_changed(&self) -> VcpuSet {
        let mut kick = VcpuSet::EMPTY;
        self.all_vcpus().for_each(|vcpu| kick.extend(self.private_changed(vcpu, u32::MAX)));
        (0..SHARED_BANKS).for_each(|index| kick.extend(self.shared_changed(index, u32::MAX)));
        kick
    }

    /// Derives the state of the physical interrupts after the guest wrote that of the virtual ones.
    fn hardware_written(&mut self, vcpu: VcpuId) {
        let tied = self.tied;
        let private = &mut self.private[vcpu.index()];
        let bank = &private.bank;
        let active = (bank.active | bank.pending | bank.latched) & tied;
        private.hardware_stale |= active ^ private.hardware_active;
        private.hardware_active = active;
        self.quiet.remove(vcpu);
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
