//! Memory as this image sees it: a Realm view at the physical address and a Non-secure view at a
//! window above it (see `tables.S`).

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use rmm::Pa;
use rmm::platform::GranuleFault;

/// RAM that both views show.
pub(crate) const RAM_BASE: u64 = 0x4000_0000;
/// End of the RAM that both views show.
pub(crate) const RAM_END: u64 = 0x1_0000_0000;
/// Bytes of a granule.
pub(crate) const GRANULE: usize = 4096;
/// Distance of the Non-secure view from the physical address.
const NONSECURE_WINDOW: u64 = 64 << 30;

unsafe extern "C" {
    /// Copies `length` bytes; answers 1 if an access faulted, else 0.
    ///
    /// # Safety
    /// What is written must not hold Rust objects; faults are allowed on either side.
    fn copy_guarded(to: *mut u8, from: *const u8, length: usize) -> u64;
}

/// Pointer to `pa` in the Realm view.
///
/// # Panics
/// When `length` bytes from `pa` on leave the RAM, or `pa` is not aligned for `T`: the core
/// promises aligned RAM only.
fn realm<T>(pa: Pa, length: usize) -> *mut T {
    assert!(
        is_ram(pa, length) && pa.0.is_multiple_of(align_of::<T>() as u64),
        "{:#x} is no RAM of the Realm view",
        pa.0
    );
    core::ptr::with_exposed_provenance_mut(pa.0 as usize)
}

/// Pointer to `pa` in the Non-secure view. Panics like [`realm`].
fn nonsecure(pa: Pa, length: usize) -> *mut u8 {
    assert!(is_ram(pa, length), "{:#x} is no RAM of the Non-secure view", pa.0);
    core::ptr::with_exposed_provenance_mut((NONSECURE_WINDOW + pa.0) as usize)
}

fn is_ram(pa: Pa, length: usize) -> bool {
    pa.0 >= RAM_BASE && pa.0.checked_add(length as u64).is_some_and(|end| end <= RAM_END)
}

/// Copies from Non-secure memory.
///
/// # Errors
/// Granule protection, or whatever is there, did not allow an access.
pub(crate) fn read_nonsecure(pa: Pa, buf: &mut [u8]) -> Result<(), GranuleFault> {
    let from = nonsecure(pa, buf.len());
    // SAFETY: `buf` may be overwritten with any bytes, and a fault on the other side is caught.
    match unsafe { copy_guarded(buf.as_mut_ptr(), from, buf.len()) } {
        0 => Ok(()),
        _ => Err(GranuleFault),
    }
}

/// Copies to Non-secure memory.
///
/// # Errors
/// As [`read_nonsecure`].
pub(crate) fn write_nonsecure(pa: Pa, bytes: &[u8]) -> Result<(), GranuleFault> {
    let to = nonsecure(pa, bytes.len());
    // SAFETY: the Non-secure view never shows memory of this image, and a fault there is caught.
    match unsafe { copy_guarded(to, bytes.as_ptr(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(GranuleFault),
    }
}

/// Copies from a delegated granule.
pub(crate) fn read_realm(pa: Pa, buf: &mut [u8]) {
    let from = realm::<u8>(pa, buf.len());
    // SAFETY: delegated granules are mapped, apart from all Rust objects, and the core keeps
    // everybody but the realm itself, whose data may be torn, from writing there.
    unsafe { core::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), buf.len()) }
}

/// Copies to a delegated granule.
pub(crate) fn write_realm(pa: Pa, bytes: &[u8]) {
    let to = realm::<u8>(pa, bytes.len());
    // SAFETY: as for `read_realm`.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
}

/// Clears a delegated granule and cleans it to the point of coherency.
pub(crate) fn zero_granule(pa: Pa) {
    let granule = realm::<u8>(pa, GRANULE);
    // SAFETY: as for `read_realm`.
    unsafe { core::ptr::write_bytes(granule, 0, GRANULE) }
    // 16 bytes is the smallest cache line of the architecture.
    for offset in (0..GRANULE).step_by(16) {
        let line = granule.addr() + offset;
        // SAFETY: cleaning and invalidating keeps the contents.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) }
    }
    barrier();
}

/// Reads a translation table descriptor.
pub(crate) fn read_descriptor(pa: Pa) -> u64 {
    descriptor(pa).load(Ordering::Acquire)
}

/// Writes a translation table descriptor and makes it visible to table walks.
pub(crate) fn write_descriptor(pa: Pa, value: u64) {
    descriptor(pa).store(value, Ordering::Release);
    barrier();
}

fn descriptor(pa: Pa) -> &'static AtomicU64 {
    let pointer = realm::<u64>(pa, 8);
    // SAFETY: the granule is mapped for good and aligned, and while it is a table the core uses
    // it by these two functions alone.
    unsafe { AtomicU64::from_ptr(pointer) }
}

/// Pointer to the half of a REC granule that the core leaves to the machine.
pub(crate) fn rec_private<T>(rec: Pa) -> *mut T {
    const { assert!(size_of::<T>() <= GRANULE / 2) }
    realm(Pa(rec.0 + (GRANULE / 2) as u64), GRANULE / 2)
}

/// Waits until all writes are visible to everybody in the inner shareable domain.
fn barrier() {
    // SAFETY: a barrier changes nothing.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) }
}
