//! Access to RAM outside the image, by the token of its granules.
//!
//! EL2 maps all RAM at its physical address. A [`Frames`] token proves that its granules are RAM,
//! belong to the normal world, and hold no object of this image: only the ledger mints tokens, and
//! only for granules that nothing else uses.

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

/// Copies bytes out of granules that a guest may be writing to. `false` if the range leaves them.
pub fn read(frames: &Frames<Undelegated>, offset: u64, to: &mut [u8]) -> bool {
    let Some(base) = address(frames, offset, to.len()) else { return false };
    let source: *const u8 = core::ptr::with_exposed_provenance(base);
    for (index, byte) in to.iter_mut().enumerate() {
        let from = source.wrapping_add(index);
        // SAFETY: `from` lies inside the token's granules (checked by `address`): mapped RAM without
        // Rust objects. The access is volatile since a guest may change the byte at any time.
        *byte = unsafe { from.read_volatile() };
    }
    true
}

/// Copies bytes into granules that a guest may be using. `false` if the range leaves them.
pub fn write(frames: &Frames<Undelegated>, offset: u64, from: &[u8]) -> bool {
    let Some(base) = address(frames, offset, from.len()) else { return false };
    let target: *mut u8 = core::ptr::with_exposed_provenance_mut(base);
    for (index, byte) in from.iter().enumerate() {
        let to = target.wrapping_add(index);
        // SAFETY: as in `read`; no Rust reference to guest memory exists while a guest runs.
        unsafe { to.write_volatile(*byte) }
    }
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
