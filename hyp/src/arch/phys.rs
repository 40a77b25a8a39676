//! Access to RAM outside the image, by the token of its granules.
//!
//! EL2 maps all RAM at its physical address. A [`Frames`] token proves that its granules are RAM,
//! belong to the normal world, and hold no object of this image: only the ledger mints tokens, and
//! only for granules that nothing else uses.

use core::arch::asm;
use mm::ledger::{Frames, Undelegated};

/// The granules of a token as bytes, while no guest can reach them.
///
/// The borrow of the token keeps it from being mapped into a guest or freed meanwhile.
pub fn bytes_mut(frames: &mut Frames<Undelegated>) -> &mut [u8] {
    let base = core::ptr::with_exposed_provenance_mut(frames.base().get() as usize);
    // SAFETY: the token is exclusive and stands for `bytes()` bytes of mapped RAM in the normal
    // world that hold no other Rust object; any bytes are valid `u8`. The lifetime is the token's.
    unsafe { core::slice::from_raw_parts_mut(base, frames.bytes() as usize) }
}

/// `bytes` bytes from `offset` of the granules of a token, while no guest can reach these. `None` if they
/// leave the granules.
pub fn part_mut(frames: &mut Frames<Undelegated>, offset: u64, bytes: u64) -> Option<&mut [u8]> {
    let len = usize::try_from(bytes).ok()?;
    let base = core::ptr::with_exposed_provenance_mut(address(frames, offset, len)?);
    // SAFETY: as in `bytes_mut`, for a range that `address` has checked to lie inside.
    Some(unsafe { core::slice::from_raw_parts_mut(base, len) })
}

/// Copies bytes out of granules that a guest may be writing to. `false` if the range leaves them.
/// 2, 4 or 8 bytes at an address that is a multiple of their number are read in one access.
pub fn read(frames: &Frames<Undelegated>, offset: u64, to: &mut [u8]) -> bool {
    let Some(base) = address(frames, offset, to.len()) else { return false };
    let from: *const u8 = core::ptr::with_exposed_provenance(base);
    // SAFETY: `from` and `to.len()` bytes behind it lie inside the token's granules (checked by
    // `address`): mapped RAM without Rust objects. `to` is exclusively borrowed.
    unsafe { copy_shared(to.as_mut_ptr(), from, to.len()) };
    true
}

/// Copies bytes into granules that a guest may be using. `false` if the range leaves them.
/// 2, 4 or 8 bytes at an address that is a multiple of their number are written in one access.
pub fn write(frames: &Frames<Undelegated>, offset: u64, from: &[u8]) -> bool {
    let Some(base) = address(frames, offset, from.len()) else { return false };
    let to: *mut u8 = core::ptr::with_exposed_provenance_mut(base);
    // SAFETY: as in `read`; no Rust reference to guest memory exists while a guest runs.
    unsafe { copy_shared(to, from.as_ptr(), from.len()) };
    true
}

/// Address of `offset` if `len` bytes from there lie inside the granules.
fn address(frames: &Frames<Undelegated>, offset: u64, len: usize) -> Option<usize> {
    let end = offset.checked_add(len as u64)?;
    if end > frames.bytes() {
        return None;
    }
    usize::try_from(frames.base().get() + offset).ok()
}

/// Copies `len` bytes, of which somebody else may change either side meanwhile: each byte copied is
/// one that was there. Where `len` is 2, 4 or 8 there is one load and one store.
///
/// # Safety
///
/// `from` must be readable and `to` writable for `len` bytes of Normal memory, and the two must not
/// overlap. Where no Rust slice is behind one of them, no Rust reference may be either.
unsafe fn copy_shared(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: reads and writes the `len` bytes that the caller vouches for: blocks of 64, then
    // what the lower bits of `len` count.
    unsafe {
        asm!(
            "subs {left}, {len}, #64",
            "b.lo 3f",
            "2: ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "stp {c}, {d}, [{to}], #16",
            "ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "stp {c}, {d}, [{to}], #16",
            "subs {left}, {left}, #64",
            "b.hs 2b",
            "3: tbz {len}, #5, 4f",
            "ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "stp {c}, {d}, [{to}], #16",
            "4: tbz {len}, #4, 5f",
            "ldp {a}, {b}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "5: tbz {len}, #3, 6f",
            "ldr {a}, [{from}], #8",
            "str {a}, [{to}], #8",
            "6: tbz {len}, #2, 7f",
            "ldr {a:w}, [{from}], #4",
            "str {a:w}, [{to}], #4",
            "7: tbz {len}, #1, 8f",
            "ldrh {a:w}, [{from}], #2",
            "strh {a:w}, [{to}], #2",
            "8: tbz {len}, #0, 9f",
            "ldrb {a:w}, [{from}]",
            "strb {a:w}, [{to}]",
            "9:",
            len = in(reg) len,
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            left = out(reg) _,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            options(nostack),
        );
    }
}
