//! VMIDs in use by realms.

use core::sync::atomic::{AtomicU64, Ordering};

/// One bit per VMID. VMID 0 is never a realm's.
#[derive(Debug)]
pub(crate) struct VmidPool {
    words: [AtomicU64; 1024],
    limit: u64,
}

impl VmidPool {
    /// A pool of VMIDs of `bits` bits.
    pub(crate) fn new(bits: u8) -> Self {
        let limit = 1 << bits.min(16);
        Self { words: [const { AtomicU64::new(0) }; 1024], limit }
    }

    /// Takes `vmid`; false if it is 0, too wide, or in use.
    pub(crate) fn reserve(&self, vmid: u64) -> bool {
        if vmid == 0 || vmid >= self.limit {
            return false;
        }
        let bit = 1 << (vmid % 64);
        self.word(vmid).fetch_or(bit, Ordering::Acquire) & bit == 0
    }

    /// Takes any free VMID; none if all are in use.
    pub(crate) fn allocate(&self) -> Option<u64> {
        (1..self.limit).find(|vmid| self.reserve(*vmid))
    }

    /// Gives back a `vmid` that was reserved.
    pub(crate) fn free(&self, vmid: u64) {
        self.word(vmid).fetch_and(!(1 << (vmid % 64)), Ordering::Release);
    }

    fn word(&self, vmid: u64) -> &AtomicU64 {
        // A VMID has at most 16 bits, so the index is within the array.
        &self.words[(vmid / 64) as usize % 1024]
    }
}
