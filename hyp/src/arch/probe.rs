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

// Both return 0 in x0, or the syndrome of the fault (never 0: the exception class of a data abort
// is not 0). The barriers make sure that the fault belongs to the listed instruction.
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

    .section .extable, "a"
    .balign 4
    .word   0b - ., 1b - .
    .word   2b - ., 3b - .
    "#
);

/// Reads the u64 at `addr`, a multiple of 8 in mapped memory of this or another world.
///
/// # Errors
///
/// The fault that the access took, if it took one.
pub fn read(addr: PhysAddr) -> Result<u64, ProbeError> {
    unsafe extern "C" {
        fn __probe_read(addr: u64, value: *mut u64) -> u64;
    }
    let mut value = 0;
    // SAFETY: reading has no effect on memory that Rust knows of; a fault is turned into a result
    // by the exception table; `value` is valid for the one write.
    let esr = unsafe { __probe_read(addr.get(), &raw mut value) };
    if esr == 0 { Ok(value) } else { Err(decode(esr, addr)) }
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
        fn __probe_write(addr: u64, value: u64) -> u64;
    }
    // SAFETY: the caller vouches for the target; a fault is turned into a result by the exception
    // table.
    let esr = unsafe { __probe_write(addr.get(), value) };
    if esr == 0 { Ok(()) } else { Err(decode(esr, addr)) }
}

fn decode(esr: u64, addr: PhysAddr) -> ProbeError {
    // FAR_EL2 is the address itself: EL2 maps all memory at its physical address.
    let far = addr;
    match esr & 0x3f {
        0x23..=0x28 => ProbeError::GranuleProtection { far, esr },
        0x10 | 0x13..=0x17 => ProbeError::External { far, esr },
        _ => ProbeError::NotMapped { far, esr },
    }
}
