//! A check that nobody else changes this vCPU's vector registers.
//!
//! Compiled code of the guests has no floating point, so what these functions put into the
//! registers stays there until somebody fails to preserve it: the RMM, the hypervisor, another VM.

use core::arch::global_asm;

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CPACR_EL1, ReadWriteable};

global_asm!(
    r#"
    .arch_extension simd
    .text
// x0: seed. Register n gets seed + n in its low half and the complement in its high half.
fill_vector_registers:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    mvn     x2, x1
    mov     v\n\().d[0], x1
    mov     v\n\().d[1], x2
    .endr
    ret

// x0: seed. Returns the bits that differ, of all registers together.
differ_vector_registers:
    mov     x3, xzr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    umov    x2, v\n\().d[0]
    eor     x2, x2, x1
    orr     x3, x3, x2
    umov    x2, v\n\().d[1]
    mvn     x1, x1
    eor     x2, x2, x1
    orr     x3, x3, x2
    .endr
    mov     x0, x3
    ret
"#
);

unsafe extern "C" {
    fn fill_vector_registers(seed: u64);
    fn differ_vector_registers(seed: u64) -> u64;
}

/// Lets this vCPU use its vector registers and fills them from `seed`.
pub(crate) fn fill(seed: u64) {
    CPACR_EL1.modify(CPACR_EL1::FPEN::TrapNothing);
    barrier::isb(barrier::SY);
    // SAFETY: the registers are enabled, and compiled code does not use them.
    unsafe { fill_vector_registers(seed) }
}

/// Whether the registers still are what [`fill`] made them from `seed`.
pub(crate) fn unchanged(seed: u64) -> bool {
    // SAFETY: as above; it only reads them.
    unsafe { differ_vector_registers(seed) == 0 }
}
