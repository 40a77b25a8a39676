//! Host calls: see `docs/guest-abi.md`. They work from the first instruction on and need neither device
//! nor lock.

use core::arch::asm;

use crate::rsi::{self, HostCall, Status};

/// Puts a string on the console.
pub const PUT_STRING: u16 = 1;
/// Has the host work on a shared page.
pub const EXCHANGE_PAGE: u16 = 2;
/// Reports that the guest failed.
pub const REPORT_FAILURE: u16 = 3;
/// A call that no host serves.
const UNKNOWN: u16 = 0xffff;

/// Bytes that one [`put_string`] carries.
pub const MAX_STRING: usize = 240;

/// Registers of a call.
pub type Registers = [u64; 31];

/// Makes host call `IMM`; answers `gprs[0]` as the host leaves it.
fn call<const IMM: u16>(gprs: &Registers) -> Result<u64, Status> {
    if rsi::is_realm() {
        let mut call = HostCall { imm: IMM.into(), gprs: *gprs };
        rsi::host_call(&mut call)?;
        return Ok(call.gprs[0]);
    }
    let result;
    // SAFETY: reads the 248 bytes of `gprs`. The hypervisor changes x0 alone and no memory of Rust's. Of
    // the registers that are loaded for it, x19 to x29 are put back, and all others are declared.
    unsafe {
        asm!(
            "stp x19, x20, [sp, #-96]!",
            "stp x21, x22, [sp, #16]",
            "stp x23, x24, [sp, #32]",
            "stp x25, x26, [sp, #48]",
            "stp x27, x28, [sp, #64]",
            "str x29, [sp, #80]",
            "ldp x29, x30, [x0, #232]",
            "ldp x27, x28, [x0, #216]",
            "ldp x25, x26, [x0, #200]",
            "ldp x23, x24, [x0, #184]",
            "ldp x21, x22, [x0, #168]",
            "ldp x19, x20, [x0, #152]",
            "ldp x17, x18, [x0, #136]",
            "ldp x15, x16, [x0, #120]",
            "ldp x13, x14, [x0, #104]",
            "ldp x11, x12, [x0, #88]",
            "ldp x9, x10, [x0, #72]",
            "ldp x7, x8, [x0, #56]",
            "ldp x5, x6, [x0, #40]",
            "ldp x3, x4, [x0, #24]",
            "ldp x1, x2, [x0, #8]",
            "ldr x0, [x0]",
            "hvc #{imm}",
            "ldr x29, [sp, #80]",
            "ldp x27, x28, [sp, #64]",
            "ldp x25, x26, [sp, #48]",
            "ldp x23, x24, [sp, #32]",
            "ldp x21, x22, [sp, #16]",
            "ldp x19, x20, [sp], #96",
            imm = const IMM,
            inout("x0") gprs.as_ptr() => result,
            clobber_abi("C"),
        );
    }
    Ok(result)
}

/// Registers of a call with one argument.
const fn one(argument: u64) -> Registers {
    let mut gprs = [0; 31];
    gprs[0] = argument;
    gprs
}

/// Writes `text` to the console, at most [`MAX_STRING`] bytes of it.
pub fn put_string(text: &str) {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..MAX_STRING).unwrap_or(bytes);
    let mut gprs = one(bytes.len() as u64);
    for (register, bytes) in gprs[1..].iter_mut().zip(bytes.chunks(8)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        *register = u64::from_le_bytes(word);
    }
    // There is no other place to report a console that does not work.
    let _ = call::<PUT_STRING>(&gprs);
}

/// Makes a call that no host serves; true when it was refused.
#[must_use]
pub fn unknown_is_refused() -> bool {
    call::<UNKNOWN>(&one(0)) == Ok(u64::MAX)
}

/// Has the host add one to every 64-bit word of the shared page at `ipa`; 0 when it did.
///
/// # Errors
///
/// The RMM did not pass the call on.
pub fn exchange_page(ipa: u64) -> Result<u64, Status> {
    call::<EXCHANGE_PAGE>(&one(ipa))
}

/// Tells the hypervisor that this guest has failed, which decides how its VM ends. `code` is not 0.
pub fn report_failure(code: u64) {
    // A host that does not hear of it sees the guest power off at least.
    let _ = call::<REPORT_FAILURE>(&one(code));
}
