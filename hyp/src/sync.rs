//! Locks. A core that holds one has its exceptions masked, so that nothing on the same core can
//! wait for it.

use crate::arch::cpu::ExceptionMask;
use core::ops::{Deref, DerefMut};
use spin::mutex::{TicketMutex, TicketMutexGuard};

/// A fair spin lock that masks exceptions while it is held.
pub struct Lock<T: ?Sized> {
    inner: TicketMutex<T>,
}

impl<T> Lock<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self { inner: TicketMutex::new(value) }
    }
}

impl<T: ?Sized> Lock<T> {
    /// Masks exceptions and waits for the lock, in order of arrival.
    pub fn lock(&self) -> LockGuard<'_, T> {
        let mask = ExceptionMask::mask();
        LockGuard { inner: self.inner.lock(), _mask: mask }
    }

    /// Takes the lock only if nobody holds it.
    pub fn try_lock(&self) -> Option<LockGuard<'_, T>> {
        let mask = ExceptionMask::mask();
        self.inner.try_lock().map(|inner| LockGuard { inner, _mask: mask })
    }
}

/// Access to the value of a [`Lock`]; releases it when dropped.
pub struct LockGuard<'a, T: ?Sized> {
    // Fields drop in order: the lock is released before exceptions are unmasked.
    inner: TicketMutexGuard<'a, T>,
    _mask: ExceptionMask,
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
