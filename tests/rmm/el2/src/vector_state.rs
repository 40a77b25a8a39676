//! Vector registers and pointer authentication keys: what compiled code of this image never uses.

use core::arch::global_asm;

use crate::sysreg::{read, write};

/// FP/SIMD register file.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Vectors {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

impl Vectors {
    pub(crate) const fn zeroed() -> Self {
        Self { v: [0; 32], fpcr: 0, fpsr: 0 }
    }
}

/// What the machine keeps of a REC in the REC granule, apart from the core's context.
#[repr(C)]
pub(crate) struct Private {
    pub(crate) vectors: Vectors,
    pub(crate) keys: [u64; 10],
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .text
    .macro  each_pair instruction
    \instruction q0, q1, [x0]
    \instruction q2, q3, [x0, #32]
    \instruction q4, q5, [x0, #64]
    \instruction q6, q7, [x0, #96]
    \instruction q8, q9, [x0, #128]
    \instruction q10, q11, [x0, #160]
    \instruction q12, q13, [x0, #192]
    \instruction q14, q15, [x0, #224]
    \instruction q16, q17, [x0, #256]
    \instruction q18, q19, [x0, #288]
    \instruction q20, q21, [x0, #320]
    \instruction q22, q23, [x0, #352]
    \instruction q24, q25, [x0, #384]
    \instruction q26, q27, [x0, #416]
    \instruction q28, q29, [x0, #448]
    \instruction q30, q31, [x0, #480]
    .endm
store_vectors:
    each_pair stp
    mrs     x1, fpcr
    mrs     x2, fpsr
    add     x0, x0, #512
    stp     x1, x2, [x0]
    ret
load_vectors:
    each_pair ldp
    add     x0, x0, #512
    ldp     x1, x2, [x0]
    msr     fpcr, x1
    msr     fpsr, x2
    ret
"#
);

unsafe extern "C" {
    fn store_vectors(to: *mut Vectors);
    fn load_vectors(from: *const Vectors);
}

/// Stores the vector registers.
///
/// # Safety
/// `to` must be valid for writing.
pub(crate) unsafe fn store(to: *mut Vectors) {
    // SAFETY: the caller's promise; access is enabled in CPTR_EL2.
    unsafe { store_vectors(to) }
}

/// Loads the vector registers.
///
/// # Safety
/// `from` must be valid for reading.
pub(crate) unsafe fn load(from: *const Vectors) {
    // SAFETY: the caller's promise; access is enabled in CPTR_EL2, and compiled code does not
    // use these registers.
    unsafe { load_vectors(from) }
}

/// Applies a macro to the low and high halves of the keys APIA, APIB, APDA, APDB, APGA, by their
/// encodings: the assembler does not know their names for this target.
macro_rules! key_registers {
    ($apply:ident) => {
        $apply!(
            0 "S3_0_C2_C1_0" 1 "S3_0_C2_C1_1" 2 "S3_0_C2_C1_2" 3 "S3_0_C2_C1_3"
            4 "S3_0_C2_C2_0" 5 "S3_0_C2_C2_1" 6 "S3_0_C2_C2_2" 7 "S3_0_C2_C2_3"
            8 "S3_0_C2_C3_0" 9 "S3_0_C2_C3_1"
        )
    };
}

/// Stores the keys, if this CPU has any. EL3 switches them between the worlds.
pub(crate) fn store_keys(keys: &mut [u64; 10]) {
    macro_rules! store {
        ($($n:literal $register:literal)*) => { $( keys[$n] = read!($register); )* };
    }
    if has_keys() {
        key_registers!(store);
    }
}

/// Loads the keys, if this CPU has any.
pub(crate) fn load_keys(keys: &[u64; 10]) {
    macro_rules! load {
        ($($n:literal $register:literal)*) => { $( write!($register, keys[$n]); )* };
    }
    if has_keys() {
        key_registers!(load);
    }
}

/// Whether FEAT_PAuth is there, with any algorithm: the API, APA, GPA, GPI fields of
/// `ID_AA64ISAR1_EL1` or APA3, GPA3 of `ID_AA64ISAR2_EL1`.
fn has_keys() -> bool {
    const ISAR1: u64 = 0xff00_0ff0;
    const ISAR2: u64 = 0xff00;
    read!("id_aa64isar1_el1") & ISAR1 != 0 || read!("S3_0_C0_C6_2") & ISAR2 != 0
}
