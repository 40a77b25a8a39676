//! Locks. EL2 runs with exceptions masked, so nothing on the same core can wait for one that it holds.
//!
//! There are two kinds, for the case that a core stops on a fault in the hypervisor. What a [`Lock`]
//! protects is needed by all: a core that stops with one held stops the machine, which
//! [`held_by_this_core`] tells. A [`VmLock`] protects what belongs to one VM: the VM ends with the
//! core, and the lock is broken for those who take the VM apart.

use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use spin::mutex::{TicketMutex, TicketMutexGuard};

/// How many [`Lock`]s each core holds. Only the core itself writes its own.
static HELD: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];

/// How many locks this core holds that protect what all cores need.
#[must_use]
pub fn held_by_this_core() -> u32 {
    HELD.get(core_index()).map_or(0, |held| held.load(Ordering::Relaxed))
}

/// Counts a lock for as long as it lives.
struct Held;

impl Held {
    fn count() -> Self {
        Self::change(1);
        Self
    }

    fn change(by: u32) {
        if let Some(held) = HELD.get(core_index()) {
            held.store(held.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        Self::change(1_u32.wrapping_neg());
    }
}

/// A fair spin lock.
pub struct Lock<T: ?Sized> {
    inner: TicketMutex<T>,
}

impl<T> Lock<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self { inner: TicketMutex::new(value) }
    }
}

impl<T> Lock<T> {
    /// Takes the value for good: nobody can take the lock again.
    pub fn leak(&'static self) -> &'static mut T {
        TicketMutexGuard::leak(self.inner.lock())
    }
}

impl<T: ?Sized> Lock<T> {
    /// Waits for the lock, in order of arrival.
    pub fn lock(&self) -> LockGuard<'_, T> {
        LockGuard { inner: self.inner.lock(), _held: Held::count() }
    }

    /// Takes the lock only if nobody holds it.
    pub fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(LockGuard { inner, _held: Held::count() })
    }
}

/// Access to the value of a [`Lock`]; releases it when dropped.
pub struct LockGuard<'a, T: ?Sized> {
    inner: TicketMutexGuard<'a, T>,
    _held: Held,
}

impl<T: ?Sized> Deref for LockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for LockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A fair spin lock of something that belongs to one VM.
pub struct VmLock<T> {
    inner: TicketMutex<T>,
    /// Index of the core that holds it, plus one; 0 for none.
    holder: AtomicU8,
}

impl<T> VmLock<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self { inner: TicketMutex::new(value), holder: AtomicU8::new(0) }
    }

    /// Waits for the lock, in order of arrival.
    #[inline]
    pub fn lock(&self) -> VmLockGuard<'_, T> {
        let inner = self.inner.lock();
        self.holder.store(this_core(), Ordering::Relaxed);
        VmLockGuard { _holder: Holder(&self.holder), inner }
    }

    /// Releases the lock if this core holds it, after `discard` has dealt with the value, which may be
    /// in the middle of a change. Returns whether this core held it.
    ///
    /// # Safety
    ///
    /// This core never returns to what it did with the lock held.
    pub unsafe fn break_if_held(&self, discard: impl FnOnce(&mut T)) -> bool {
        if self.holder.load(Ordering::Relaxed) != this_core() {
            return false;
        }
        // SAFETY: this core holds the lock, so no other has access to the value, and its own accesses
        // have ended for good, as the caller promises.
        discard(unsafe { &mut *self.inner.as_mut_ptr() });
        self.holder.store(0, Ordering::Relaxed);
        // SAFETY: as above; the guard is never dropped.
        unsafe { self.inner.force_unlock() };
        true
    }
}

/// This core as a holder. There are fewer than 255 cores.
fn this_core() -> u8 {
    (core_index() as u8).wrapping_add(1)
}

/// Forgets the holder when it is dropped.
struct Holder<'a>(&'a AtomicU8);

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Access to the value of a [`VmLock`]; releases it when dropped.
pub struct VmLockGuard<'a, T> {
    _holder: Holder<'a>,
    inner: TicketMutexGuard<'a, T>,
}

impl<T> Deref for VmLockGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for VmLockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
