//! Cache maintenance: of data by address range, of instructions as a whole.

use super::sysreg::read_sysreg;
use aarch64_cpu::asm::barrier::{SY, dsb};
use mm::PhysAddr;

/// Bytes of the smallest data cache line of all caches of this core.
#[must_use]
pub fn line_bytes() -> u64 {
    4 << (read_sysreg!("ctr_el0") >> 16 & 0xf)
}

macro_rules! by_line {
    ($(#[$doc:meta])* $name:ident, $op:literal) => {
        $(#[$doc])*
        pub fn $name(start: PhysAddr, bytes: u64) {
            let line = line_bytes();
            let end = start.get().saturating_add(bytes);
            let mut addr = start.align_down(line).get();
            while addr < end {
                // SAFETY: the operation writes back what the core wrote and changes no value that
                // a coherent observer sees; a clean needs at most read permission.
                unsafe {
                    core::arch::asm!(concat!("dc ", $op, ", {0}"), in(reg) addr,
                        options(nostack, preserves_flags));
                }
                addr += line;
            }
            dsb(SY);
        }
    };
}

by_line!(
    /// Writes dirty lines of the range back to memory, so that an observer with caches off reads
    /// what this core wrote. The range must be mapped at EL2.
    clean, "cvac"
);
by_line!(
    /// Writes dirty lines of the range back to memory and drops them from the caches. The range must be
    /// mapped at EL2.
    clean_invalidate, "civac"
);
by_line!(
    /// Writes dirty lines of the range back as far as instruction fetches need it.
    clean_for_fetches, "cvau"
);

/// Whether instruction fetches may miss what is still in the data caches (`CTR_EL0.IDC` clear).
#[must_use]
pub fn fetches_bypass_data_caches() -> bool {
    read_sysreg!("ctr_el0") >> 28 & 1 == 0
}

/// Makes instruction fetches on all cores see what was written, and is clean, up to now: memory that
/// is given to a guest may have held instructions of another one.
pub fn forget_instructions() {
    // CTR_EL0.DIC: instruction caches follow the data caches by themselves.
    if read_sysreg!("ctr_el0") >> 29 & 1 != 0 {
        return;
    }
    // SAFETY: dropping cached instructions only makes them be fetched again.
    unsafe {
        core::arch::asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags));
    }
}
