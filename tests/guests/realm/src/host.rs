//! The hypervisor's host calls: see `docs/guest-abi.md`.

use core::sync::atomic::{AtomicUsize, Ordering};

use guest_rt::uart;

use crate::rsi::{self, HostCall, Status};

const PUT_STRING: u64 = 1;
const EXCHANGE_PAGE: u64 = 2;
const REPORT_FAILURE: u64 = 3;
const UNKNOWN: u64 = 0xffff;
/// Bytes that one put-string call carries.
const MAX_STRING: usize = 240;

fn call(imm: u64, first: u64, bytes: &[u8]) -> Result<u64, Status> {
    let mut call = HostCall { imm, gprs: [0; 31] };
    call.gprs[0] = first;
    for (register, bytes) in call.gprs[1..].iter_mut().zip(bytes.chunks(8)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        *register = u64::from_le_bytes(word);
    }
    rsi::host_call(&mut call)?;
    Ok(call.gprs[0])
}

/// Writes `text` to the console, at most [`MAX_STRING`] bytes of it.
pub(crate) fn put_string(text: &str) {
    let bytes = text.as_bytes();
    let bytes = bytes.get(..MAX_STRING).unwrap_or(bytes);
    // There is no other place to report a console that does not work.
    let _ = call(PUT_STRING, bytes.len() as u64, bytes);
}

/// Makes a call that no host serves; true when it was refused.
pub(crate) fn unknown() -> bool {
    call(UNKNOWN, 0, &[]) == Ok(u64::MAX)
}

/// Has the host add one to every 64-bit word of the shared page at `ipa`; 0 when it did.
pub(crate) fn exchange_page(ipa: u64) -> Result<u64, Status> {
    call(EXCHANGE_PAGE, ipa, &[])
}

/// Tells the host that the realm failed.
pub(crate) fn report_failure(code: u64) {
    let _ = call(REPORT_FAILURE, code, &[]);
}

/// Console sink whose lines go through a host call and through the UART in turn, so that both
/// ways stay in use to the end.
pub(crate) fn alternate(text: &str) {
    static LINES: AtomicUsize = AtomicUsize::new(0);
    if LINES.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
        put_string(text);
    } else {
        uart::write(text);
    }
}
