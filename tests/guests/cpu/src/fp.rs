//! FP and SIMD registers keep their values while other vCPUs run on the same core, and from one core
//! to the next.
//!
//! Compiled code does not use them, so what is in them is what [`load`] has put there.

use crate::timers;
use core::arch::global_asm;
use guest_rt::rng::Rng;
use guest_rt::{attempt, cpu_index, timer};

/// `V0` to `V31`, `FPSR`, `FPCR`.
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(16))]
struct Registers {
    v: [[u64; 2]; 32],
    fpsr: u64,
    fpcr: u64,
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .macro fp_registers op
        \op     q0, q1, [x0, #0]
        \op     q2, q3, [x0, #32]
        \op     q4, q5, [x0, #64]
        \op     q6, q7, [x0, #96]
        \op     q8, q9, [x0, #128]
        \op     q10, q11, [x0, #160]
        \op     q12, q13, [x0, #192]
        \op     q14, q15, [x0, #224]
        \op     q16, q17, [x0, #256]
        \op     q18, q19, [x0, #288]
        \op     q20, q21, [x0, #320]
        \op     q22, q23, [x0, #352]
        \op     q24, q25, [x0, #384]
        \op     q26, q27, [x0, #416]
        \op     q28, q29, [x0, #448]
        \op     q30, q31, [x0, #480]
    .endm
    .global guest_fp_load
    guest_fp_load:
        fp_registers ldp
        ldr     x1, [x0, #512]
        ldr     x2, [x0, #520]
        msr     fpsr, x1
        msr     fpcr, x2
        ret
    .global guest_fp_store
    guest_fp_store:
        fp_registers stp
        mrs     x1, fpsr
        mrs     x2, fpcr
        str     x1, [x0, #512]
        str     x2, [x0, #520]
        ret
    .arch_extension nofp
    "#
);

unsafe extern "C" {
    fn guest_fp_load(registers: *const Registers);
    fn guest_fp_store(registers: *mut Registers);
}

impl Registers {
    const ZERO: Self = Self { v: [[0; 2]; 32], fpsr: 0, fpcr: 0 };

    /// Values that differ for each vCPU, round and register.
    fn pattern(round: u64) -> Self {
        let mut rng = Rng::new(round << 8 | cpu_index() as u64);
        let mut registers = Self::ZERO;
        registers.v.as_flattened_mut().iter_mut().for_each(|half| *half = rng.next_u64());
        // QC and the cumulative exception bits; the rounding mode.
        registers.fpsr = rng.next_u64() & 0x0800_001f;
        registers.fpcr = rng.next_u64() & 0x00c0_0000;
        registers
    }

    fn load(&self) {
        // SAFETY: reads the 528 bytes of `self`; compiled code keeps nothing in FP registers.
        unsafe { guest_fp_load(self) }
    }

    fn current() -> Self {
        let mut registers = Self::ZERO;
        // SAFETY: writes the 528 bytes of `registers`.
        unsafe { guest_fp_store(&raw mut registers) }
        registers
    }
}

/// Puts values into the registers, lets time pass, asleep or busy, and looks again.
pub(crate) fn check(rounds: u64) -> Result<u64, &'static str> {
    // SAFETY: CPACR_EL1 only says what traps: nothing.
    let _ = unsafe { attempt!("msr cpacr_el1, x0", 3 << 20) };
    for round in 1..=rounds {
        let expected = Registers::pattern(round);
        expected.load();
        if round % 4 != 0 {
            timers::sleep(3);
        } else {
            timer::poll(15, || false);
        }
        if Registers::current() != expected {
            return Err("FP registers changed");
        }
    }
    Ok(rounds)
}
