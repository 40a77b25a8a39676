//! The host-call interface: what a guest written for Suzerain may ask for.
//!
//! A realm issues RSI_HOST_CALL, an ordinary guest executes `HVC #imm` with a non-zero immediate.
//! `docs/guest-abi.md` is the contract; the numbers are repeated here for code.

/// Puts a string on the console: x0 = length in bytes, x1 to x30 = the bytes.
pub const PUT_STRING: u16 = 1;
/// Adds one to each 64-bit word of the shared page at x0.
pub const EXCHANGE_PAGE: u16 = 2;
/// Reports that the guest failed, with a code in x0.
pub const REPORT_FAILURE: u16 = 3;

/// Most bytes of one [`PUT_STRING`]: thirty registers.
pub const PUT_STRING_MAX: usize = 240;

/// Status in x0: done.
pub const SUCCESS: u64 = 0;
/// Status in x0: arguments out of range.
pub const INVALID: u64 = 1;
/// Status in x0: no such call.
pub const UNKNOWN: u64 = u64::MAX;
