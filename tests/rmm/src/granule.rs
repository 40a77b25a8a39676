//! The granule table: state, reference count and lock of each granule of RAM.

use core::sync::atomic::AtomicU32;

/// Bookkeeping of one granule of RAM. A platform provides one per granule of the RAM that the
/// monitor manages, all fresh at the start.
#[derive(Debug)]
pub struct GranuleSlot(#[expect(dead_code, reason = "the table follows")] AtomicU32);

impl GranuleSlot {
    /// A granule that has never been delegated.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Default for GranuleSlot {
    fn default() -> Self {
        Self::new()
    }
}
