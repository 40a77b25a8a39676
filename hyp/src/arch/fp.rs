//! FP and SIMD registers of normal vCPUs, exchanged when they are used.
//!
//! While a vCPU has not used them since it was loaded, they trap ([`super::traps::CPTR`]). The first
//! use restores them, unless this core still has them from the last time; what was used is saved when
//! the vCPU is unloaded, so that it can go on on any core. EL2 itself is built without FP. A vCPU
//! that does not use them pays nothing.
//!
//! For RECs the RMM does all this, and what it leaves in the registers is not relied on.

use super::layout::MAX_CORES;
use super::percpu::core_index;
use super::sysreg::write_sysreg;
use super::traps::{CPTR, CPTR_TFP};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Counts, per core, how often its FP registers got other contents. Only the core itself uses it.
static GENERATION: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(1) }; MAX_CORES];

/// FP/SIMD registers, laid out for the assembly below.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
struct Registers {
    v: [u128; 32],
    fpsr: u64,
    fpcr: u64,
}

const _: () = {
    assert!(core::mem::offset_of!(Registers, fpsr) == 512);
    assert!(core::mem::offset_of!(Registers, fpcr) == 520);
};

global_asm!(
    r#"
    .section .text.fp, "ax"
    .arch_extension fp
    .arch_extension simd
    .macro fp_all op
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
    .global __fp_save
    __fp_save:
        fp_all  stp
        mrs     x1, fpsr
        mrs     x2, fpcr
        add     x0, x0, #512
        stp     x1, x2, [x0]
        ret
    .global __fp_restore
    __fp_restore:
        fp_all  ldp
        add     x0, x0, #512
        ldp     x1, x2, [x0]
        msr     fpsr, x1
        msr     fpcr, x2
        ret
    .arch_extension nofp
    "#
);

unsafe extern "C" {
    fn __fp_save(registers: *mut Registers);
    fn __fp_restore(registers: *const Registers);
}

/// Where the FP state of a vCPU is.
#[derive(Clone, Debug)]
pub struct FpState {
    /// As of the last [`Self::unload`]; stale while `in_use`.
    registers: Registers,
    /// Core, and its generation, whose registers have the same contents.
    copy: (usize, u64),
    /// Whether the vCPU is loaded and has used them since.
    in_use: bool,
}

impl FpState {
    /// All zero, in no core.
    pub const RESET: Self =
        Self { registers: Registers { v: [0; 32], fpsr: 0, fpcr: 0 }, copy: (0, 0), in_use: false };

    /// Answers a trapped use by the loaded vCPU: from here on its registers are in the core.
    #[inline(never)]
    pub fn activate(&mut self) {
        write_sysreg!("cptr_el2", CPTR);
        super::cpu::isb();
        self.in_use = true;
        let core = core_index();
        if self.copy == (core, generation(core)) {
            return;
        }
        forget();
        // SAFETY: `__fp_restore` reads the 528 bytes of `Registers` at the asserted offsets. This
        // image keeps nothing of its own in FP registers: it is built without FP. They no longer
        // trap.
        unsafe { __fp_restore(&raw const self.registers) }
    }

    /// The vCPU leaves this core: saves the registers if it used them, and has them trap again.
    pub fn unload(&mut self) {
        if !core::mem::take(&mut self.in_use) {
            return;
        }
        // SAFETY: `__fp_save` writes the 528 bytes of `Registers` at the asserted offsets, through
        // an exclusive pointer. FP registers do not trap since `activate`.
        unsafe { __fp_save(&raw mut self.registers) }
        let core = core_index();
        self.copy = (core, generation(core));
        write_sysreg!("cptr_el2", CPTR | CPTR_TFP);
    }
}

fn generation(core: usize) -> u64 {
    // Generations begin at 1, so that nobody has a copy in a core that does not exist.
    GENERATION.get(core).map_or(0, |generation| generation.load(Ordering::Relaxed))
}

/// The FP registers of this core get other contents than what a vCPU may have left there.
pub fn forget() {
    if let Some(generation) = GENERATION.get(core_index()) {
        generation.fetch_add(1, Ordering::Relaxed);
    }
}
