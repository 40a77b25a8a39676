//! RMM-EL3 communication interface, 0.x and 2.x: what this image asks of EL3 and how calls of the host arrive.

use core::arch::asm;

const RMI_REQ_COMPLETE: u64 = 0xc400_018f;
const GTSI_DELEGATE: u64 = 0xc400_01b0;
const GTSI_UNDELEGATE: u64 = 0xc400_01b1;
/// RMM_BOOT_COMPLETE.
pub(crate) const BOOT_COMPLETE: u64 = 0xc400_01cf;

/// Why the RMM does not start, as EL3 gets it in x1 of RMM_BOOT_COMPLETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum BootError {
    /// A fault of the RMM itself.
    Unknown = -1,
    /// EL3 speaks another version of the interface.
    Version = -2,
    /// There are more CPUs than the RMM has stacks.
    CpusOutOfRange = -3,
    /// The index of this CPU is not below the number of CPUs.
    CpuIdOutOfRange = -4,
    /// The shared page is not where it can be used.
    SharedBuffer = -5,
    /// The boot manifest has another major version.
    ManifestVersion = -6,
    /// The boot manifest contradicts itself.
    ManifestData = -7,
}

/// A call of the host: function identifier and x1 to x7.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) function: u64,
    pub(crate) args: [u64; 7],
}

/// Ends the boot of this CPU and waits for the first call of the host. EL3 does not come back
/// after an error.
pub(crate) fn boot_complete(result: Result<(), BootError>) -> Request {
    let code = match result {
        Ok(()) => 0,
        Err(error) => error as i64,
    };
    request(smc([BOOT_COMPLETE, code.cast_unsigned(), 0, 0, 0, 0, 0, 0, 0]))
}

/// Answers the host's call and waits for the next one. Interface 2.x carries all results to the
/// host, 0.x x0 to x4.
pub(crate) fn request_complete(results: [u64; 8]) -> Request {
    let [x0, x1, x2, x3, x4, x5, x6, x7] = results;
    request(smc([RMI_REQ_COMPLETE, x0, x1, x2, x3, x4, x5, x6, x7]))
}

/// Moves the granule at `pa` from the Non-secure to the Realm physical address space.
///
/// # Errors
/// The error code of EL3, negative.
pub(crate) fn delegate(pa: u64) -> Result<(), i64> {
    status(smc([GTSI_DELEGATE, pa, 0, 0, 0, 0, 0, 0, 0]))
}

/// Moves the granule at `pa` from the Realm to the Non-secure physical address space.
///
/// # Errors
/// The error code of EL3, negative.
pub(crate) fn undelegate(pa: u64) -> Result<(), i64> {
    status(smc([GTSI_UNDELEGATE, pa, 0, 0, 0, 0, 0, 0, 0]))
}

fn request([function, args @ ..]: [u64; 8]) -> Request {
    Request { function, args }
}

fn status(results: [u64; 8]) -> Result<(), i64> {
    match results[0].cast_signed() {
        0 => Ok(()),
        code => Err(code),
    }
}

fn smc(args: [u64; 9]) -> [u64; 8] {
    let [mut x @ .., x8] = args;
    // SAFETY: EL3 keeps x18 to x30, the stack pointer and all of the Realm world's EL2 state across
    // the call. It writes no memory of this image, except that a GTSI call moves a granule
    // that the caller holds no reference into.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
            inout("x4") x[4], inout("x5") x[5], inout("x6") x[6], inout("x7") x[7],
            inout("x8") x8 => _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    x
}
