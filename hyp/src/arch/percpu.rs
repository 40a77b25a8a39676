//! What a core keeps for itself: its index (`TPIDR_EL2`) and variables of which each core has one.

use super::layout::MAX_CORES;
use aarch64_cpu::registers::{Readable, TPIDR_EL2};
use core::cell::RefCell;
use percore::{Cores, ExceptionLock, PerCore, exception_free};

/// Index of this core: 0 for the boot core, then in the order of the device tree; always below
/// [`MAX_CORES`].
#[must_use]
pub fn core_index() -> usize {
    TPIDR_EL2.get() as usize
}

struct ByTpidr;

// SAFETY: the entry code gives TPIDR_EL2 of each core a different value, the boot core 0 and each
// other core the index with which `cores::start_all` started it, and nothing changes it later.
unsafe impl Cores for ByTpidr {
    fn core_index() -> usize {
        core_index()
    }
}

/// A variable of which every core has its own instance.
pub struct PerCpu<T>(PerCore<[ExceptionLock<RefCell<T>>; MAX_CORES], ByTpidr>);

impl<T> PerCpu<T> {
    /// Wraps the initial values, by core index.
    pub const fn new(values: [ExceptionLock<RefCell<T>>; MAX_CORES]) -> Self {
        Self(PerCore::new(values))
    }

    /// Runs `f` on this core's instance with exceptions masked.
    ///
    /// # Panics
    ///
    /// If called from within `f` of the same variable.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        exception_free(|token| f(&mut self.0.get().borrow_mut(token)))
    }
}

/// Declares the initial value of a [`PerCpu`] static: the same constant expression on each core.
#[macro_export]
macro_rules! per_cpu {
    ($value:expr) => {
        $crate::arch::percpu::PerCpu::new(
            [const { ::percore::ExceptionLock::new(::core::cell::RefCell::new($value)) };
                $crate::arch::layout::MAX_CORES],
        )
    };
}
