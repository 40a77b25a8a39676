//! The lock of what all cores share: a fair spin lock, or the model checker's when this crate is
//! built with `--cfg loom`.

#[cfg(not(loom))]
pub use spin::mutex::TicketMutex as Mutex;

/// The model checker's lock, with the interface of the spin lock.
#[cfg(loom)]
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    /// Wraps `value`.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    ///
    /// # Panics
    /// If a thread has panicked with the lock held: the model has failed then.
    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("no panic with the lock held")
    }
}
