//! The pool of delegated granules.

use core::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use mm::ledger::{Delegated, Frames};
use mm::sync::Mutex;

/// Most granules that the pool of delegated granules can keep.
pub const POOL_CAPACITY: usize = 128;

/// Single delegated granules kept for the next table, REC or page, accounted to the hypervisor.
///
/// Shared by all cores. The lock of the granules is held for a push or a pop.
pub(super) struct Pool {
    granules: Mutex<ArrayVec<Frames<Delegated>, POOL_CAPACITY>>,
    /// Held while a core gives the pool back: another one that needs memory waits for what comes of it.
    draining: Mutex<()>,
    limit: AtomicUsize,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        let pool = Self {
            granules: Mutex::new(ArrayVec::new()),
            draining: Mutex::new(()),
            limit: AtomicUsize::new(0),
        };
        pool.set_limit(limit);
        pool
    }

    /// Changes how many granules may be kept; those beyond the limit stay until they are taken.
    pub(super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit.min(POOL_CAPACITY), Ordering::Relaxed);
    }

    pub(super) fn len(&self) -> usize {
        self.granules.lock().len()
    }

    /// Gives each granule to `give_back`, unless another core does; returns when they are all given back.
    pub(super) fn drain(&self, mut give_back: impl FnMut(Frames<Delegated>)) {
        let _draining = self.draining.lock();
        while let Some(frames) = self.take() {
            give_back(frames);
        }
    }

    pub(super) fn take(&self) -> Option<Frames<Delegated>> {
        self.granules.lock().pop()
    }

    /// Whether another granule would be kept, as far as one can say beforehand.
    pub(super) fn has_room(&self) -> bool {
        self.len() < self.limit.load(Ordering::Relaxed)
    }

    /// Keeps a granule, or hands it back when there are enough.
    pub(super) fn keep(&self, frames: Frames<Delegated>) -> Option<Frames<Delegated>> {
        self.keep_below(self.limit.load(Ordering::Relaxed), frames)
    }

    /// Keeps a granule whatever the limit, or hands it back when there is no room at all.
    pub(super) fn force(&self, frames: Frames<Delegated>) -> Option<Frames<Delegated>> {
        self.keep_below(POOL_CAPACITY, frames)
    }

    fn keep_below(&self, limit: usize, frames: Frames<Delegated>) -> Option<Frames<Delegated>> {
        let mut granules = self.granules.lock();
        if granules.len() >= limit {
            return Some(frames);
        }
        granules.try_push(frames).err().map(|error| error.element())
    }
}
