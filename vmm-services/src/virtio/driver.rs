//! The driver's side of a queue, for tests.

use super::queue::{NEXT, Queue, WRITE};
use crate::testing::Ram;
use crate::traits::GuestMemory;
use mm::Ipa;
use std::vec;
use std::vec::Vec;

pub(super) const BASE: u64 = 0x4000_0000;
pub(super) const TABLE: u64 = BASE;
pub(super) const AVAILABLE: u64 = BASE + 0x1000;
pub(super) const USED: u64 = BASE + 0x2000;
/// Buffers of the driver.
pub(super) const DATA: u64 = BASE + 0x3000;
pub(super) const RAM_BYTES: usize = 0x2_0000;

/// A driver's side of one queue.
pub(super) struct Driver {
    pub(super) ram: Ram,
    size: u16,
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver, and the queue that it has set up.
    pub(super) fn new(size: u16) -> (Self, [Queue; 1]) {
        let mut queue = Queue::default();
        queue.size = size.into();
        (queue.descriptors, queue.driver, queue.device) = (TABLE, AVAILABLE, USED);
        queue.enable();
        assert!(queue.is_ready());
        (Self { ram: Ram::new(RAM_BYTES), size, available: 0, used: 0 }, [queue])
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Ipa::new(at), bytes).unwrap();
    }

    pub(super) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read(Ipa::new(at), &mut bytes).unwrap();
        bytes
    }

    pub(super) fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let whole = u128::from(address)
            | u128::from(length) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.write(TABLE + 16 * u64::from(index), &whole.to_le_bytes());
    }

    /// Makes the chain that begins at `head` available.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.write(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Lays `buffers` (address, length, writable) out in descriptors from `first` on and offers them.
    pub(super) fn offer_chain(&mut self, first: u16, buffers: &[(u64, u32, bool)]) {
        for (index, &(address, length, writable)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(index, address, length, flags, index + 1);
        }
        self.offer(first);
    }

    /// The next entry of the used ring: head and bytes written.
    pub(super) fn take_used(&mut self) -> Option<(u32, u32)> {
        let index = u16::from_le_bytes(self.read(USED + 2, 2).try_into().unwrap());
        if index == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let entry = self.read(USED + 4 + 8 * slot, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0), word(4)))
    }
}
