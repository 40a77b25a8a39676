//! GICv3: distributor and redistributors through MMIO, the CPU interface by system registers.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributor, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};

use crate::{MAX_CPUS, channel, cpu_index, mmu, timer};

/// IPA of the distributor without the alias bit.
pub const GICD_IPA: u64 = 0x0800_0000;
/// IPA of the first vCPU's redistributor without the alias bit.
pub const GICR_IPA: u64 = 0x080a_0000;
/// Bytes from one redistributor to the next: RD frame and SGI frame of one vCPU.
pub const GICR_STRIDE: u64 = 0x2_0000;
const VIRTUAL_TIMER: IntId = IntId::ppi(11);
/// What vCPUs send to each other.
const DOORBELL: IntId = IntId::sgi(1);

/// SGIs that each vCPU took.
static DOORBELLS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Handler of interrupts other than the virtual timer's, a `fn(u32)`.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the distributor up. Call once, on the first vCPU.
pub fn init_distributor() {
    let registers: NonNull<Gicd> = mmu::device(GICD_IPA);
    // SAFETY: the MMU maps the distributor there as device memory, and nothing else refers to it.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    GicDistributor::new(registers).configure_default_settings();
}

/// Sets this vCPU's redistributor and CPU interface up, enables the interrupt of the virtual timer
/// and that of [`ring`], and unmasks IRQs.
///
/// # Errors
///
/// Says which step the GIC refused.
pub fn init_cpu() -> Result<(), &'static str> {
    let ipa = GICR_IPA + GICR_STRIDE * cpu_index() as u64;
    let registers: NonNull<GicrSgi> = mmu::device(ipa);
    // SAFETY: the MMU maps this vCPU's redistributor there, and no other vCPU touches it.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    let mut redistributor = GicRedistributor::new(registers);
    GicCpuInterface::enable_system_register_el1();
    // An error only says that the core was awake already.
    let _ = redistributor.mark_core_awake();
    redistributor.configure_default_settings();
    redistributor
        .enable_interrupt(VIRTUAL_TIMER, true)
        .map_err(|_| "redistributor has no PPI 27")?;
    redistributor.enable_interrupt(DOORBELL, true).map_err(|_| "redistributor has no SGI 1")?;
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    unmask_irqs();
    Ok(())
}

/// Sends an SGI to vCPU `index`, below [`MAX_CPUS`].
pub fn ring(index: usize) {
    let target = SgiTarget::List {
        affinity3: 0,
        affinity2: 0,
        affinity1: 0,
        target_list: 1_u16.checked_shl(index as u32).unwrap_or(0),
    };
    // Fails only for an INTID that is not an SGI.
    let _ = GicCpuInterface::send_sgi(DOORBELL, target, SgiTargetGroup::CurrentGroup1);
}

/// Sends SGI `intid`, below 16, to all other vCPUs.
pub fn broadcast(intid: u32) {
    // Fails only for an INTID that is not an SGI.
    let _ = GicCpuInterface::send_sgi(
        IntId::sgi(intid.min(15)),
        SgiTarget::All,
        SgiTargetGroup::CurrentGroup1,
    );
}

/// Waits until this vCPU has taken `count` SGIs of [`ring`] in all, in WFI if `asleep`.
pub fn wait_for_rings(count: u64, asleep: bool) {
    let rings = || DOORBELLS[cpu_index()].load(Ordering::Acquire);
    if asleep {
        return sleep_until(|| rings() >= count);
    }
    while rings() < count {
        // Lets an emulator that runs all cores in one thread go on with the next.
        // SAFETY: the instruction is a hint and has no effect.
        unsafe { asm!("yield", options(nomem, nostack)) }
    }
}

/// Sleeps in WFI, with IRQs unmasked in between, until `done`, which an interrupt is to bring about.
pub fn sleep_until(mut done: impl FnMut() -> bool) {
    loop {
        // Masked, so that an interrupt between the check and WFI still wakes it.
        mask_irqs();
        let done = done();
        if !done {
            aarch64_cpu::asm::wfi();
        }
        unmask_irqs();
        if done {
            return;
        }
    }
}

/// Enables interrupt `intid` (below 32) of this vCPU and hands it to `handler`, which all such
/// interrupts of the guest share.
///
/// # Errors
///
/// Says that the GIC refused.
pub fn enable(intid: u32, handler: fn(u32)) -> Result<(), &'static str> {
    set_handler(handler);
    let ipa = GICR_IPA + GICR_STRIDE * cpu_index() as u64;
    let registers: NonNull<GicrSgi> = mmu::device(ipa);
    // SAFETY: as in `init_cpu`, which is done with them.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    let id = if intid < 16 { IntId::sgi(intid) } else { IntId::ppi(intid.min(31) - 16) };
    GicRedistributor::new(registers)
        .enable_interrupt(id, true)
        .map_err(|_| "redistributor does not have the interrupt")
}

/// Hands interrupts that nobody else knows to `handler`.
pub fn set_handler(handler: fn(u32)) {
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Routes the shared interrupt `intid` (32 to 1019) to this vCPU and enables it, level-triggered as
/// [`init_distributor`] left it. Call on one vCPU at a time.
///
/// # Errors
///
/// Says which step the GIC refused.
pub fn enable_shared(intid: u32) -> Result<(), &'static str> {
    let id = IntId::spi(intid.checked_sub(32).ok_or("not a shared interrupt")?);
    let registers: NonNull<Gicd> = mmu::device(GICD_IPA);
    // SAFETY: as in `init_distributor`, whose pointer is gone; the caller keeps other vCPUs away.
    let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
    distributor.set_routing(id, Some(cpu_index() as u64)).map_err(|_| "SPI routing")?;
    distributor.enable_interrupt(id, true).map_err(|_| "SPI enable")
}

/// Masks IRQs on this vCPU.
pub fn mask_irqs() {
    // SAFETY: masking interrupts breaks no invariant of Rust code.
    unsafe { asm!("msr daifset, #2", options(nostack)) }
}

/// Unmasks IRQs on this vCPU.
pub fn unmask_irqs() {
    // SAFETY: the vectors are set before any Rust code runs, and the handler keeps all registers.
    unsafe { asm!("msr daifclr, #2", options(nostack)) }
}

/// Serves all interrupts that are pending.
pub(crate) fn handle_irq() {
    while GicCpuInterface::handle_interrupt(InterruptGroup::Group1, |id| {
        if id == VIRTUAL_TIMER {
            timer::handle_irq();
        } else if id == DOORBELL {
            DOORBELLS[cpu_index()].fetch_add(1, Ordering::Release);
        } else if !channel::handle_irq(id.into()) {
            match handler() {
                Some(handler) => handler(u32::from(id)),
                None => panic!("interrupt {id:?} was never enabled"),
            }
        }
    }) {}
}

fn handler() -> Option<fn(u32)> {
    let handler = HANDLER.load(Ordering::Acquire);
    // SAFETY: only `set_handler` stores here, and it stores a function of this type.
    (!handler.is_null()).then(|| unsafe { core::mem::transmute::<*mut (), fn(u32)>(handler) })
}
