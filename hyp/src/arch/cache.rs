//! Data cache maintenance by address range to the point of coherency.

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
    /// Writes dirty lines of the range back to memory and drops them from the caches. The range
    /// must be mapped at EL2.
    clean_invalidate, "civac"
);

/// Makes instructions that were written through the data side visible to instruction fetch on all
/// cores: cleans the range and invalidates all instruction caches.
pub fn sync_instructions(start: PhysAddr, bytes: u64) {
    clean(start, bytes);
    // SAFETY: dropping cached instructions only makes them be fetched again.
    unsafe {
        core::arch::asm!("ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags));
    }
}
