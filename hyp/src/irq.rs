//! Physical interrupts: the GICv3 of the machine.
//!
//! EL2 runs with interrupts masked. They are taken where the hypervisor asks for them: after a
//! guest exit or while a core idles, by [`poll`]. Completion is in two steps (`EOImode` 1): the
//! priority drops when [`poll`] has handed the interrupt over, and the interrupt is deactivated
//! then too, or later by a guest through a list register with the HW bit.

pub mod registers;

use crate::arch::cpu;
use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::{PerCpu, core_index};
use crate::arch::sysreg::{read_sysreg, write_sysreg};
use crate::machine::{BSA_PPIS, PpiIds};
use crate::per_cpu;
use crate::sync::Lock;
use arm_gic::gicv3::registers::{Gicd, GicdCtlr, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributor, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use safe_mmio::field;
use spin::Once;
use vmm_services::machine::GicV3;
use vmm_services::passthrough::Trigger;

/// SGI that makes a core leave its guest and look at its run queue.
const KICK: u32 = 0;
/// Priority of all interrupts that the hypervisor enables.
const PRIORITY: u8 = 0x80;
/// INTID of the first shared interrupt.
const FIRST_SPI: u32 = 32;
/// Frames of `GicrSgi` (128 KiB) per redistributor: one more pair of 64 KiB frames with GICv4.
const FRAME_BYTES: u64 = 0x2_0000;

/// A physical interrupt, by what it means to the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Another core wants this one to look at its run queue.
    Kick,
    /// This core's EL2 timer expired; it has been disarmed.
    HypTimer,
    /// The virtual timer of the guest whose timer state is on this core.
    VirtualTimer,
    /// The physical timer of the guest whose timer state is on this core.
    PhysicalTimer,
    /// The GIC asks for maintenance of this core's list registers. Its virtual CPU interface has been
    /// disabled, which the next entry undoes.
    Maintenance,
    /// A shared peripheral interrupt, by its INTID.
    Spi(u32),
    /// Anything else, by its INTID.
    Other(u32),
}

/// What becomes of an interrupt that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It is handled: deactivate it.
    Deactivate,
    /// It stays active: a guest will deactivate it through its list register (HW bit), or the
    /// caller by [`deactivate`].
    LeaveActive,
}

/// Why the interrupt controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqError {
    /// No redistributor frame has this core's affinity.
    NoRedistributor {
        /// Affinity of the core.
        mpidr: u64,
    },
    /// Registers could not be mapped.
    Mapping,
    /// The GIC refused a setting for this INTID.
    Setting(u32),
}

impl fmt::Display for IrqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRedistributor { mpidr } => {
                write!(f, "no redistributor frame for affinity {mpidr:#x}")
            }
            Self::Mapping => f.write_str("cannot map the registers of the interrupt controller"),
            Self::Setting(intid) => write!(f, "cannot configure interrupt {intid}"),
        }
    }
}

impl core::error::Error for IrqError {}

struct Controller {
    distributor: Lock<UniqueMmioPointer<'static, Gicd>>,
    gic: GicV3,
    ppis: PpiIds,
    /// Affinity of the core that set the distributor up, to which interrupts of no use are routed.
    boot_affinity: u64,
}

static CONTROLLER: Once<Controller> = Once::new();
/// Registers of this core's redistributor.
static REDISTRIBUTOR: PerCpu<Option<UniqueMmioPointer<'static, GicrSgi>>> = per_cpu!(None);
/// Affinity of each core that [`init_core`] has set up, by index; `u64::MAX` before.
static AFFINITY: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(u64::MAX) }; MAX_CORES];

/// Kinds of [`Source`], in the order of [`Source::kind`].
pub const KINDS: [&str; 7] =
    ["kick", "hyp timer", "virt timer", "phys timer", "maintenance", "shared", "other"];

/// How often each core took an interrupt of each kind.
static TAKEN: [[AtomicU64; KINDS.len()]; MAX_CORES] =
    [const { [const { AtomicU64::new(0) }; KINDS.len()] }; MAX_CORES];

impl Source {
    /// Index in [`KINDS`].
    const fn kind(self) -> usize {
        match self {
            Self::Kick => 0,
            Self::HypTimer => 1,
            Self::VirtualTimer => 2,
            Self::PhysicalTimer => 3,
            Self::Maintenance => 4,
            Self::Spi(_) => 5,
            Self::Other(_) => 6,
        }
    }
}

/// How often core `index` took an interrupt of each of the [`KINDS`].
#[must_use]
pub fn taken(index: usize) -> [u64; KINDS.len()] {
    let counts = TAKEN.get(index);
    core::array::from_fn(|kind| {
        counts.and_then(|c| c.get(kind)).map_or(0, |count| count.load(Ordering::Relaxed))
    })
}

/// Counts an interrupt. Only this core writes its counts.
fn count(source: Source) {
    let counts = TAKEN.get(core_index());
    if let Some(count) = counts.and_then(|counts| counts.get(source.kind())) {
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// Sets up the distributor: all shared interrupts disabled, neither pending nor active, non-secure
/// group 1, level-sensitive, routed to this core.
///
/// # Safety
///
/// `gic` must give the registers of the machine's GICv3, mapped as device memory for good, and
/// nothing else in this image uses them. To be called once.
///
/// # Errors
///
/// If the registers are not where the tree says.
pub unsafe fn init(gic: &GicV3, ppis: PpiIds) -> Result<(), IrqError> {
    let registers = NonNull::new(gic.distributor.base as *mut Gicd).ok_or(IrqError::Mapping)?;
    // SAFETY: the caller vouches for the registers and their exclusive use.
    let mut registers = unsafe { UniqueMmioPointer::new(registers) };
    silence_shared(registers.reborrow());
    let mut distributor = GicDistributor::new(registers.reborrow());
    let count = distributor.typer().num_spis();
    for intid in FIRST_SPI..FIRST_SPI + count {
        let failed = |_| IrqError::Setting(intid);
        distributor.set_routing(spi(intid)?, Some(cpu::affinity())).map_err(failed)?;
    }
    CONTROLLER.call_once(|| Controller {
        distributor: Lock::new(registers),
        gic: gic.clone(),
        ppis,
        boot_affinity: cpu::affinity(),
    });
    Ok(())
}

/// Takes back what a boot loader has left: an interrupt that it used, with its line still high, would
/// be taken again and again.
fn silence_shared(mut registers: UniqueMmioPointer<'_, Gicd>) {
    // Bits of both views of the register: with one security state, the first is group 0's. Affinity
    // routing stays as it is: to turn it off is UNPREDICTABLE.
    let forwarding = GicdCtlr::EnableGrp0 | GicdCtlr::EnableGrp1NS;
    GicDistributor::new(registers.reborrow()).modify_control(forwarding, false);
    for mut disable in field!(registers, icenabler).split().into_iter().skip(1) {
        disable.write(u32::MAX);
    }
    let has_extended = field!(registers, typer).read().espi_supported();
    if has_extended {
        for mut disable in field!(registers, icenabler_e).split() {
            disable.write(u32::MAX);
        }
    }
    let mut distributor = GicDistributor::new(registers.reborrow());
    distributor.wait_for_pending_write();
    distributor.configure_default_settings();
    // What is pending is known only now that all are level-sensitive.
    for mut clear in field!(registers, icpendr).split().into_iter().skip(1) {
        clear.write(u32::MAX);
    }
    for mut clear in field!(registers, icactiver).split().into_iter().skip(1) {
        clear.write(u32::MAX);
    }
}

/// Sets up the redistributor and the CPU interface of this core and enables the interrupts that
/// every core needs: kick, EL2 timer, guest timers, maintenance.
///
/// # Errors
///
/// If this core has no redistributor or its GIC refuses a setting.
pub fn init_core() -> Result<(), IrqError> {
    let controller = CONTROLLER.get().ok_or(IrqError::Mapping)?;
    GicCpuInterface::enable_system_register_el2(true);
    cpu::isb();
    GicCpuInterface::enable_system_register_el1();
    cpu::isb();
    // From now on EL1 cannot change that: its accesses to ICC_SRE_EL1 trap.
    GicCpuInterface::enable_system_register_el2(false);
    let mpidr = cpu::affinity();
    let mut registers =
        find_redistributor(&controller.gic, mpidr).ok_or(IrqError::NoRedistributor { mpidr })?;
    let mut redistributor = GicRedistributor::new(registers.reborrow());
    // Firmware may have woken it already.
    let _ = redistributor.mark_core_awake();
    redistributor.configure_default_settings();
    let mut sgi = field!(registers, sgi);
    field!(sgi, icpendr).split()[0].write(u32::MAX);
    field!(sgi, icactiver).split()[0].write(u32::MAX);
    let mut redistributor = GicRedistributor::new(registers.reborrow());
    let ppis = &controller.ppis;
    for intid in [
        IntId::sgi(KICK),
        ppi(ppis.maintenance),
        ppi(ppis.hyp_timer),
        ppi(ppis.virtual_timer),
        ppi(ppis.physical_timer),
    ] {
        let failed = |_| IrqError::Setting(intid.into());
        redistributor.set_interrupt_priority(intid, PRIORITY).map_err(failed)?;
        redistributor.enable_interrupt(intid, true).map_err(failed)?;
    }
    REDISTRIBUTOR.with(|slot| *slot = Some(registers));

    clear_active_priorities();
    GicCpuInterface::set_priority_mask(0xff);
    // ICC_CTLR_EL1.EOImode (bit 1): a write to EOIR drops the priority, DIR deactivates.
    write_sysreg!("S3_0_C12_C12_4", 1 << 1);
    GicCpuInterface::enable_group1(true);
    cpu::isb();
    if let Some(affinity) = AFFINITY.get(core_index()) {
        affinity.store(mpidr, Ordering::Release);
    }
    Ok(())
}

/// Forgets the interrupts that a boot loader has taken on this core and not ended: their priorities
/// would mask ours.
fn clear_active_priorities() {
    // ICC_CTLR_EL1.PRIbits: one less than the priority bits. ICC_AP1R1_EL1 exists from 6, ICC_AP1R2_EL1
    // and ICC_AP1R3_EL1 from 7 bits on (Arm IHI 0069, 12.2.2).
    let bits = (read_sysreg!("S3_0_C12_C12_4") >> 8 & 7) + 1;
    if bits >= 7 {
        write_sysreg!("S3_0_C12_C9_3", 0);
        write_sysreg!("S3_0_C12_C9_2", 0);
    }
    if bits >= 6 {
        write_sysreg!("S3_0_C12_C9_1", 0);
    }
    write_sysreg!("S3_0_C12_C9_0", 0);
    cpu::isb();
}

/// INTID of a PPI; device trees number them 16 to 31.
fn ppi(intid: u32) -> IntId {
    IntId::ppi(intid.saturating_sub(16).min(15))
}

/// Looks for the frame with this affinity in all regions.
fn find_redistributor(gic: &GicV3, mpidr: u64) -> Option<UniqueMmioPointer<'static, GicrSgi>> {
    for region in &gic.redistributors {
        let mut addr = region.base;
        while addr.saturating_add(FRAME_BYTES) <= region.end() {
            let registers = NonNull::new(addr as *mut GicrSgi)?;
            // SAFETY: `init`'s caller vouched for the regions. Frames of other cores are only
            // asked for their type, which changes nothing; the frame of this core is handed out
            // only to this core, once.
            let mut frame = unsafe { UniqueMmioPointer::new(registers) };
            let typer = GicRedistributor::new(frame.reborrow()).typer();
            if typer.core_mpidr() == mpidr {
                return Some(frame);
            }
            if typer.last_redistributor() {
                break;
            }
            addr += if typer.virtual_lpis_supported() { 2 * FRAME_BYTES } else { FRAME_BYTES };
        }
    }
    None
}

/// Acknowledges all pending interrupts of this core and hands each to `handle`.
pub fn poll(mut handle: impl FnMut(Source) -> Completion) {
    let Some(controller) = CONTROLLER.get() else { return };
    while let Some(intid) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) {
        let number = u32::from(intid);
        // 1020 to 1022 are not interrupts of ours; they are neither active nor to be ended.
        if (1020..=1023).contains(&number) {
            break;
        }
        let source = source(&controller.ppis, number);
        count(source);
        // Level triggered: they would be pending again at once.
        match source {
            Source::HypTimer => crate::arch::timer::disarm(),
            Source::Maintenance => crate::arch::vgic_hw::disable(),
            _ => {}
        }
        let completion = handle(source);
        GicCpuInterface::end_interrupt(intid, InterruptGroup::Group1);
        if completion == Completion::Deactivate {
            deactivate(number);
        }
    }
}

fn source(ppis: &PpiIds, intid: u32) -> Source {
    match intid {
        KICK => Source::Kick,
        id if id == ppis.hyp_timer => Source::HypTimer,
        id if id == ppis.virtual_timer => Source::VirtualTimer,
        id if id == ppis.physical_timer => Source::PhysicalTimer,
        id if id == ppis.maintenance => Source::Maintenance,
        32..=1019 => Source::Spi(intid),
        _ => Source::Other(intid),
    }
}

/// Whether an interrupt is pending for this core, without acknowledging it.
#[must_use]
pub fn is_pending() -> bool {
    GicCpuInterface::get_pending_interrupt(InterruptGroup::Group1)
        .is_some_and(|intid| u32::from(intid) < 1020)
}

/// Deactivates an interrupt that [`poll`] left active.
pub fn deactivate(intid: u32) {
    // ICC_DIR_EL1.
    write_sysreg!("S3_0_C12_C11_1", u64::from(intid));
    cpu::isb();
}

/// INTIDs of the per-core interrupts of this machine.
#[must_use]
pub fn ppis() -> PpiIds {
    CONTROLLER.get().map_or(BSA_PPIS, |controller| controller.ppis)
}

/// Enables or disables a per-core interrupt (INTID 16 to 31) on this core.
///
/// # Errors
///
/// If the GIC does not have it.
pub fn enable_ppi(intid: u32, enable: bool) -> Result<(), IrqError> {
    REDISTRIBUTOR.with(|slot| {
        let registers = slot.as_mut().ok_or(IrqError::Mapping)?;
        GicRedistributor::new(registers.reborrow())
            .enable_interrupt(ppi(intid), enable)
            .map_err(|_| IrqError::Setting(intid))
    })
}

/// Makes per-core interrupts active or inactive on this core: one bit of `mask` per INTID.
///
/// An interrupt that a guest will deactivate through its list register stays active on the core
/// where it was taken. It belongs to that vCPU, so it is to be made inactive when another vCPU is
/// loaded there, and active again where the first one is loaded next.
#[inline]
pub fn set_ppis_active(mask: u32, active: bool) {
    if mask == 0 {
        return;
    }
    REDISTRIBUTOR.with(|slot| {
        let Some(mut registers) = slot.as_mut().map(UniqueMmioPointer::reborrow) else { return };
        let mut sgi = field!(registers, sgi);
        if active {
            field!(sgi, isactiver).split()[0].write(mask);
        } else {
            field!(sgi, icactiver).split()[0].write(mask);
        }
    });
}

/// Makes the guest timers' interrupts inactive on this core, whose vCPU goes: left active, they would
/// keep the timers of whoever runs there next from firing.
pub fn end_guest_timers() {
    let ppis = ppis();
    let bit = |intid| 1_u32.checked_shl(intid).unwrap_or(0);
    set_ppis_active(bit(ppis.virtual_timer) | bit(ppis.physical_timer), false);
}

/// Routes a shared interrupt (INTID 32 to 1019) to this core and enables or disables it.
///
/// # Errors
///
/// If the GIC does not have it.
pub fn enable_spi(intid: u32, enable: bool) -> Result<(), IrqError> {
    let failed = |_| IrqError::Setting(intid);
    let id = spi(intid)?;
    let controller = CONTROLLER.get().ok_or(IrqError::Mapping)?;
    let mut registers = controller.distributor.lock();
    let mut distributor = GicDistributor::new(registers.reborrow());
    if enable {
        distributor.set_routing(id, Some(cpu::affinity())).map_err(failed)?;
        distributor.set_interrupt_priority(id, PRIORITY).map_err(failed)?;
    }
    distributor.enable_interrupt(id, enable).map_err(failed)
}

/// Routes a shared interrupt that is enabled to core `index`.
///
/// # Errors
///
/// If the GIC does not have it, or that core is not up.
pub fn route_spi(intid: u32, index: usize) -> Result<(), IrqError> {
    let failed = IrqError::Setting(intid);
    let affinity = AFFINITY.get(index).map(|affinity| affinity.load(Ordering::Acquire));
    let affinity = affinity.filter(|affinity| *affinity != u64::MAX).ok_or(failed)?;
    let id = spi(intid)?;
    let controller = CONTROLLER.get().ok_or(IrqError::Mapping)?;
    let mut registers = controller.distributor.lock();
    let mut distributor = GicDistributor::new(registers.reborrow());
    distributor.set_routing(id, Some(affinity)).map_err(|_| failed)
}

fn spi(intid: u32) -> Result<IntId, IrqError> {
    match intid {
        FIRST_SPI..=1019 => Ok(IntId::spi(intid - FIRST_SPI)),
        _ => Err(IrqError::Setting(intid)),
    }
}

/// Enables the shared interrupt `intid` (32 to 1019), which a guest is to deactivate, on the core with
/// index `core` or, if that is not up, on this one.
///
/// # Errors
///
/// If the GIC does not have it.
pub fn give_spi(intid: u32, core: usize, trigger: Trigger) -> Result<(), IrqError> {
    let failed = |_| IrqError::Setting(intid);
    let id = spi(intid)?;
    let trigger = match trigger {
        Trigger::Level => arm_gic::Trigger::Level,
        Trigger::Edge => arm_gic::Trigger::Edge,
    };
    let mpidr = AFFINITY.get(core).map(|affinity| affinity.load(Ordering::Acquire));
    let mpidr = mpidr.filter(|mpidr| *mpidr != u64::MAX).unwrap_or_else(cpu::affinity);
    let controller = CONTROLLER.get().ok_or(IrqError::Mapping)?;
    let mut registers = controller.distributor.lock();
    let mut distributor = GicDistributor::new(registers.reborrow());
    distributor.set_trigger(id, trigger).map_err(failed)?;
    distributor.set_routing(id, Some(mpidr)).map_err(failed)?;
    distributor.set_interrupt_priority(id, PRIORITY).map_err(failed)?;
    distributor.enable_interrupt(id, true).map_err(failed)
}

/// Whether the shared interrupt `intid` is pending; of a level-sensitive one, whether its line is high.
#[must_use]
pub fn is_spi_pending(intid: u32) -> bool {
    let Some(controller) = CONTROLLER.get() else { return false };
    let mut registers = controller.distributor.lock();
    let word = field!(registers, ispendr).split().get_mut(intid as usize / 32).map(|r| r.read());
    word.is_some_and(|word| word >> (intid % 32) & 1 != 0)
}

/// Takes back a shared interrupt that [`give_spi`] enabled: it is neither enabled, pending nor active
/// any more, whatever the guest left it in, and set up as [`init`] left it. A level that is still high is
/// kept off.
///
/// # Errors
///
/// If the GIC does not have it.
pub fn take_spi_back(intid: u32) -> Result<(), IrqError> {
    let id = spi(intid)?;
    let controller = CONTROLLER.get().ok_or(IrqError::Mapping)?;
    let mut registers = controller.distributor.lock();
    let mut distributor = GicDistributor::new(registers.reborrow());
    let failed = |_| IrqError::Setting(intid);
    distributor.enable_interrupt(id, false).map_err(failed)?;
    distributor.wait_for_pending_write();
    distributor.set_trigger(id, arm_gic::Trigger::Level).map_err(failed)?;
    distributor.set_routing(id, Some(controller.boot_affinity)).map_err(failed)?;
    let (word, bit) = (intid as usize / 32, 1 << (intid % 32));
    if let Some(register) = field!(registers, icpendr).split().get_mut(word) {
        register.write(bit);
    }
    if let Some(register) = field!(registers, icactiver).split().get_mut(word) {
        register.write(bit);
    }
    Ok(())
}

/// Makes core `index` leave its guest, or wake from idling, and look at its run queue. Nothing
/// happens for a core that is not up.
pub fn kick(index: usize) {
    let Some(mpidr) = AFFINITY.get(index).map(|affinity| affinity.load(Ordering::Acquire)) else {
        return;
    };
    if mpidr == u64::MAX {
        return;
    }
    // Aff0 beyond 15 would need the range selector, which no core within MAX_CORES has needed.
    let target = SgiTarget::List {
        affinity3: (mpidr >> 32) as u8,
        affinity2: (mpidr >> 16) as u8,
        affinity1: (mpidr >> 8) as u8,
        target_list: 1_u16.checked_shl((mpidr & 0xff) as u32).unwrap_or(0),
    };
    // What was written for the other core to see must be visible before it gets the interrupt.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    // Fails only for an INTID that is not an SGI.
    let _ = GicCpuInterface::send_sgi(IntId::sgi(KICK), target, SgiTargetGroup::CurrentGroup1);
}
