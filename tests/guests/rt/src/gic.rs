//! GICv3: distributor and redistributors through MMIO, the CPU interface by system registers.

use core::arch::asm;
use core::ptr::NonNull;

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributor};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};

use crate::{cpu_index, mmu, timer};

const GICD_IPA: u64 = 0x0800_0000;
const GICR_IPA: u64 = 0x080a_0000;
/// RD frame and SGI frame of one vCPU.
const GICR_STRIDE: u64 = 0x2_0000;
const VIRTUAL_TIMER: IntId = IntId::ppi(11);

/// Sets the distributor up. Call once, on the first vCPU, after [`mmu::enable`].
pub fn init_distributor() {
    let registers: NonNull<Gicd> = mmu::device(GICD_IPA);
    // SAFETY: the MMU maps the distributor there as device memory, and nothing else refers to it.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    GicDistributor::new(registers).configure_default_settings();
}

/// Sets this vCPU's redistributor and CPU interface up, enables the virtual timer's interrupt
/// and unmasks IRQs.
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
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    unmask_irqs();
    Ok(())
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
        } else {
            panic!("interrupt {id:?} was never enabled");
        }
    }) {}
}
