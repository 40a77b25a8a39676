//! Vector registers and pointer authentication keys: what compiled code of this image never uses.
//!
//! Realms get FP/SIMD; SVE and SME trap. The host may use SVE, and loading a REC's FP/SIMD registers
//! clears the upper parts of the host's, so the host's state is switched as SVE state where the CPU
//! has SVE. A host in streaming mode is not catered for: it has to leave it before it calls.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::sysreg::{read, write};
use crate::{MAX_CPUS, cpu_index};

/// CPTR_EL2 with E2H clear: all of the low bits are RES1 or traps. SME (TSM), trace (TTA) and activity
/// monitors (TAM) trap for good; FP does not.
const CPTR: u64 = 0x33ff & !(CPTR_TFP | CPTR_TZ) | 1 << 20 | 1 << 30;
const CPTR_TZ: u64 = 1 << 8;
const CPTR_TFP: u64 = 1 << 10;

/// Bytes of the widest vector register.
const SVE_WIDTH: usize = 256;
/// Z0 to Z31, then P0 to P15 and FFR, which have one bit for each byte.
const SVE_SIZE: usize = 32 * SVE_WIDTH + 17 * SVE_WIDTH / 8;

/// FP/SIMD register file.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Simd {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

/// What the machine keeps of a REC in the REC granule, apart from the core's context. All zeroes are a
/// good start.
#[repr(C)]
pub(crate) struct Private {
    simd: Simd,
    keys: [u64; 10],
}

/// The host's state while a REC runs on the CPU.
#[repr(C, align(16))]
struct Host {
    sve: [u8; SVE_SIZE],
    zcr: u64,
    simd: Simd,
}

impl Host {
    const fn zeroed() -> Self {
        Self { sve: [0; SVE_SIZE], zcr: 0, simd: Simd { v: [0; 32], fpcr: 0, fpsr: 0 } }
    }
}

struct HostStates([UnsafeCell<Host>; MAX_CPUS]);

// SAFETY: each CPU uses its own entry alone.
unsafe impl Sync for HostStates {}

static HOST: HostStates = HostStates([const { UnsafeCell::new(Host::zeroed()) }; MAX_CPUS]);

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
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
store_simd:                             // x0: to
    each_pair stp
    mrs     x1, fpcr
    mrs     x2, fpsr
    add     x0, x0, #512
    stp     x1, x2, [x0]
    ret
load_simd:                              // x0: from
    each_pair ldp
    add     x0, x0, #512
    ldp     x1, x2, [x0]
    msr     fpcr, x1
    msr     fpsr, x2
    ret

    .macro  each_z instruction
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \instruction z\n, [x0, #\n, mul vl]
    .endr
    .endm
    .macro  each_p instruction
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \instruction p\n, [x0, #\n, mul vl]
    .endr
    .endm
store_sve:                              // x0: to
    each_z  str
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    each_p  str
    rdffr   p0.b
    str     p0, [x0, #16, mul vl]
    ret
load_sve:                               // x0: from
    each_z  ldr
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    ldr     p0, [x0, #16, mul vl]
    wrffr   p0.b
    each_p  ldr
    ret
"#
);

unsafe extern "C" {
    fn store_simd(to: *mut Simd);
    fn load_simd(from: *const Simd);
    fn store_sve(to: *mut u8);
    fn load_sve(from: *const u8);
}

/// Sets up this CPU's access. EL3 keeps it for the Realm world.
///
/// SVE traps only while a REC runs: entering an exception level at which it traps would clear
/// what the host has in the upper parts of its registers.
pub(crate) fn init_cpu() {
    write!("cptr_el2", CPTR);
}

/// Takes the vector registers from the host and gives them to a REC.
pub(crate) fn host_to_rec(private: &Private) {
    let host = HOST.0[cpu_index()].get();
    // SAFETY: this CPU's own entry, which nobody refers to outside these two functions.
    let host = unsafe { &mut *host };
    if has_sve() {
        host.zcr = read!("S3_4_C1_C2_0");
        widen_sve();
        // SAFETY: the buffer holds the widest registers that there are, and SVE is enabled.
        unsafe { store_sve(host.sve.as_mut_ptr()) }
    }
    // SAFETY: a reference is valid. With SVE this is there for FPCR and FPSR.
    unsafe { store_simd(&raw mut host.simd) }
    // SAFETY: a reference is valid, and compiled code does not use these registers.
    unsafe { load_simd(&raw const private.simd) }
    load_keys(&private.keys);
    write!("cptr_el2", CPTR | CPTR_TZ);
}

/// Takes the vector registers from a REC and gives them back to the host.
pub(crate) fn rec_to_host(private: &mut Private) {
    let host = HOST.0[cpu_index()].get();
    // SAFETY: this CPU's own entry, which nobody refers to outside these two functions.
    let host = unsafe { &*host };
    write!("cptr_el2", CPTR);
    crate::machine::isb();
    store_keys(&mut private.keys);
    // SAFETY: a reference is valid.
    unsafe { store_simd(&raw mut private.simd) }
    // SAFETY: a reference is valid, and compiled code does not use these registers.
    unsafe { load_simd(&raw const host.simd) }
    if has_sve() {
        widen_sve();
        // SAFETY: the registers were stored there with the same, widest, vector length.
        unsafe { load_sve(host.sve.as_ptr()) }
        write!("S3_4_C1_C2_0", host.zcr);
    }
}

fn has_sve() -> bool {
    read!("id_aa64pfr0_el1") >> 32 & 0xf != 0
}

/// Sets the widest vector length that EL3 allows (ZCR_EL2, which EL3 does not switch).
fn widen_sve() {
    write!("S3_4_C1_C2_0", 0xf);
    crate::machine::isb();
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
fn store_keys(keys: &mut [u64; 10]) {
    macro_rules! store {
        ($($n:literal $register:literal)*) => { $( keys[$n] = read!($register); )* };
    }
    if has_keys() {
        key_registers!(store);
    }
}

/// Loads the keys, if this CPU has any.
fn load_keys(keys: &[u64; 10]) {
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
