//! Accesses that survive a fault: reading or writing memory that the machine may refuse.

use core::arch::global_asm;
use mm::PhysAddr;

/// Why a probing access did not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// The granule belongs to another physical address space: the granule protection check refused
    /// the access (status codes 0x23 to 0x28).
    GranuleProtection {
        /// Faulting address.
        far: PhysAddr,
        /// `ESR_EL2`.
        esr: u64,
    },
    /// The memory system answered with a synchronous external abort: nothing is there, or it is
    /// secure memory behind a filter.
    External {
        /// Faulting address.
        far: PhysAddr,
        /// `ESR_EL2`.
        esr: u64,
    },
    /// The address is not mapped at EL2, or not with this permission.
    NotMapped {
        /// Faulting address.
        far: PhysAddr,
        /// `ESR_EL2`.
        esr: u64,
    },
}

impl core::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (what, far, esr) = match *self {
            Self::GranuleProtection { far, esr } => ("granule protection fault", far, esr),
            Self::External { far, esr } => ("external abort", far, esr),
            Self::NotMapped { far, esr } => ("translation or permission fault", far, esr),
        };
        write!(f, "{what} at {far} (ESR {esr:#x})")
    }
}

impl core::error::Error for ProbeError {}

// All return 0 in x0, or ESR_EL2 of the fault in x0 (never 0: the exception class of a data abort is
// not 0) and FAR_EL2, or the result of the last one, in x1. The barriers make sure that a fault belongs to
// the listed instruction.
global_asm!(
    r#"
    .section .text.probe, "ax"
    .global __probe_read
    // x0: address, x1: where to put the value.
__probe_read:
    mov     x2, x0
    dsb     sy
0:  ldr     x3, [x2]
    dsb     sy
    str     x3, [x1]
    mov     x0, #0
1:  ret

    .global __probe_write
    // x0: address, x1: value.
__probe_write:
    mov     x2, x0
    dsb     sy
2:  str     x1, [x2]
    dsb     sy
    mov     x0, #0
3:  ret

    .global __probe_copy
    // x0: target, x1: source, x2: number of bytes.
__probe_copy:
    mov     x3, x0
    mov     x0, #0
    subs    x2, x2, #8
    b.lo    6f
4:  ldr     x4, [x1], #8
5:  str     x4, [x3], #8
    subs    x2, x2, #8
    b.hs    4b
6:  adds    x2, x2, #8
    b.eq    9f
7:  ldrb    w4, [x1], #1
8:  strb    w4, [x3], #1
    subs    x2, x2, #1
    b.ne    7b
9:  dsb     sy
10: ret

    .global __probe_translate
    // x0: virtual address. Puts what PAR_EL1 tells into x1, and PAR_EL1 itself back.
__probe_translate:
    mov     x2, x0
    mrs     x3, par_el1
11: at      s1e1r, x2
    isb
    mrs     x1, par_el1
    mov     x0, #0
12: msr     par_el1, x3
    ret

    .section .extable, "a"
    .balign 4
    .word   0b - ., 1b - .
    .word   2b - ., 3b - .
    .word   4b - ., 10b - .
    .word   5b - ., 10b - .
    .word   7b - ., 10b - .
    .word   8b - ., 10b - .
    .word   11b - ., 12b - .
    "#
);

/// What the routines above return.
#[repr(C)]
struct Outcome {
    esr: u64,
    far: u64,
}

impl Outcome {
    fn into_result(self) -> Result<(), ProbeError> {
        let (esr, far) = (self.esr, PhysAddr::new(self.far));
        if esr == 0 {
            return Ok(());
        }
        // The address that faulted is the physical one: EL2 maps all memory at its own address.
        Err(match esr & 0x3f {
            0x23..=0x28 => ProbeError::GranuleProtection { far, esr },
            0x10 | 0x13..=0x17 => ProbeError::External { far, esr },
            _ => ProbeError::NotMapped { far, esr },
        })
    }
}

/// Reads the u64 at `addr`, a multiple of 8 in memory of this or another world.
///
/// # Errors
///
/// The fault that the access took, if it took one.
pub fn read(addr: PhysAddr) -> Result<u64, ProbeError> {
    unsafe extern "C" {
        fn __probe_read(addr: u64, value: *mut u64) -> Outcome;
    }
    let mut value = 0;
    // SAFETY: reading has no effect on memory that Rust knows of; a fault is turned into a result
    // by the exception table; `value` is valid for the one write.
    let outcome = unsafe { __probe_read(addr.get(), &raw mut value) };
    outcome.into_result().map(|()| value)
}

/// Writes the u64 at `addr`, a multiple of 8.
///
/// # Safety
///
/// No Rust object may live at `addr`, as seen from this image: the granule belongs to a guest, to
/// another world, or to an allocation whose owner expects the write.
///
/// # Errors
///
/// The fault that the access took, if it took one; memory is then unchanged.
pub unsafe fn write(addr: PhysAddr, value: u64) -> Result<(), ProbeError> {
    unsafe extern "C" {
        fn __probe_write(addr: u64, value: u64) -> Outcome;
    }
    // SAFETY: the caller vouches for the target; a fault is turned into a result by the exception
    // table.
    unsafe { __probe_write(addr.get(), value) }.into_result()
}

unsafe extern "C" {
    fn __probe_copy(to: *mut u8, from: *const u8, bytes: usize) -> Outcome;
}

/// Copies RAM from `addr` on into `bytes`; RAM that turns out to belong to another world, or not to
/// be there, is an error.
///
/// # Errors
///
/// The fault that an access took; `bytes` is then partly overwritten.
pub fn copy_from(addr: PhysAddr, bytes: &mut [u8]) -> Result<(), ProbeError> {
    let from = core::ptr::with_exposed_provenance(addr.get() as usize);
    // SAFETY: the target is exclusively borrowed and as long as the copy. Reading the source has
    // no effect; whoever writes it meanwhile only changes which bytes arrive. A fault is turned
    // into a result by the exception table.
    unsafe { __probe_copy(bytes.as_mut_ptr(), from, bytes.len()) }.into_result()
}

/// Copies `bytes` to RAM from `addr` on.
///
/// # Safety
///
/// As for [`write`], for all of the target.
///
/// # Errors
///
/// The fault that an access took; the target is then partly overwritten.
pub unsafe fn copy_to(addr: PhysAddr, bytes: &[u8]) -> Result<(), ProbeError> {
    let to = core::ptr::with_exposed_provenance_mut(addr.get() as usize);
    // SAFETY: the caller vouches for the target; a fault is turned into a result by the exception
    // table.
    unsafe { __probe_copy(to, bytes.as_ptr(), bytes.len()) }.into_result()
}

/// Has the core translate `virtual_address` by the stage 1 of the loaded vCPU, as for a read at EL1; returns
/// what `PAR_EL1` tells, `None` if the walk itself takes an abort.
#[must_use]
pub fn translate(virtual_address: u64) -> Option<u64> {
    unsafe extern "C" {
        fn __probe_translate(virtual_address: u64) -> Outcome;
    }
    // SAFETY: the instruction only reads the guest's tables and writes PAR_EL1, which is put back; a fault
    // is turned into a result by the exception table.
    let Outcome { esr, far: result } = unsafe { __probe_translate(virtual_address) };
    (esr == 0).then_some(result)
}
