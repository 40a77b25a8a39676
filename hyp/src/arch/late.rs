//! Arrays that take no space in the image although their elements do not begin as zeros.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, Ordering};

const EMPTY: u8 = 0;
const BEING_MADE: u8 = 1;
const READY: u8 = 2;

/// An array whose elements are made at boot. It lies in `.bss`, where a `static` with initial values
/// other than zero would make the image larger by its whole size. Empty until [`Self::init`] has run.
pub struct LateArray<T, const N: usize> {
    state: AtomicU8,
    items: UnsafeCell<MaybeUninit<[T; N]>>,
}

// SAFETY: only the one caller of `init` that finds the array empty writes to it; others get shared
// references, and only after `READY`, which is stored when all elements are there.
unsafe impl<T: Send + Sync, const N: usize> Sync for LateArray<T, N> {}

impl<T, const N: usize> LateArray<T, N> {
    /// An array without elements.
    #[expect(clippy::new_without_default, reason = "only statics are made of this")]
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(EMPTY), items: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Makes all elements, in place, by their index. Nothing happens the second time.
    pub fn init(&self, make: impl Fn(usize) -> T) {
        let claim =
            self.state.compare_exchange(EMPTY, BEING_MADE, Ordering::Relaxed, Ordering::Relaxed);
        if claim.is_err() {
            return;
        }
        let items: *mut T = self.items.get().cast();
        for index in 0..N {
            // SAFETY: the element lies in the array, which nobody else reaches before `READY`.
            unsafe { items.wrapping_add(index).write(make(index)) };
        }
        self.state.store(READY, Ordering::Release);
    }
}

impl<T, const N: usize> Deref for LateArray<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        if self.state.load(Ordering::Acquire) != READY {
            return &[];
        }
        let items: *const T = self.items.get().cast();
        // SAFETY: all `N` elements have been written, and are only shared from then on.
        unsafe { core::slice::from_raw_parts(items, N) }
    }
}
