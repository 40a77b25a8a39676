//! Split virtqueues (virtio 1.3, 2.7) as a device sees them.
//!
//! Everything in a ring is written by the guest, which goes on writing while we read: each value is
//! read once, checked, and used from that copy. What breaks the rules of the format is a
//! [`QueueError`], after which the device asks for a reset and touches the guest's memory no more.
//!
//! Chains are taken and given back in order. A chain stays at the front of its queue until it is
//! completed, so a device that cannot finish it now leaves it where it is and reads it anew later.

use crate::traits::{GuestMemory, MemoryFault};
use arrayvec::ArrayVec;
use core::sync::atomic::{Ordering, fence};
use mm::Ipa;

/// Most descriptors of a queue.
pub const QUEUE_SIZE_MAX: u16 = 64;
/// Descriptors that one call of a device may begin to look at.
pub const DESCRIPTORS_PER_CALL: u32 = 256;
/// Bytes of buffers that one call of a device may move.
pub const BYTES_PER_CALL: usize = 64 << 10;

/// Most bytes of a chain (virtio 1.3, 2.7.5).
const CHAIN_MAX: u64 = 1 << 32;
const DESCRIPTOR_BYTES: u64 = 16;
/// Offset of the ring in both the driver and the device area, behind `flags` and `idx`.
const RING: u64 = 4;
const USED_ELEMENT_BYTES: u64 = 8;

/// `VIRTQ_DESC_F_NEXT`.
pub(super) const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub(super) const WRITE: u16 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

/// How a driver broke its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring, or a buffer that the device cannot do without, is not in the guest's memory.
    Memory(MemoryFault),
    /// More chains are available than the queue has descriptors.
    Index(u16),
    /// A descriptor outside the table.
    Descriptor(u16),
    /// More descriptors in a chain than in the queue: a loop.
    Loop,
    /// A descriptor for the driver's data behind one for the device's.
    Order,
    /// An indirect descriptor, or another flag that was not negotiated.
    Flags(u16),
    /// A chain of more than 4 GiB.
    TooLong,
    /// A chain whose buffers are too short for what the device must put there.
    TooShort,
}

impl From<MemoryFault> for QueueError {
    fn from(fault: MemoryFault) -> Self {
        Self::Memory(fault)
    }
}

/// One contiguous buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Buffer {
    address: u64,
    length: u32,
}

/// A chain of buffers that the driver has made available: first those that the device reads, then
/// those that it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    buffers: ArrayVec<Buffer, { QUEUE_SIZE_MAX as usize }>,
    /// Number of leading buffers that the device reads.
    readable: usize,
}

fn length(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.length)).sum()
}

impl Chain {
    fn split(&self) -> (&[Buffer], &[Buffer]) {
        self.buffers.split_at_checked(self.readable).unwrap_or_default()
    }

    /// Bytes that the device may read.
    #[must_use]
    pub fn readable(&self) -> u64 {
        length(self.split().0)
    }

    /// Bytes that the device may write.
    #[must_use]
    pub fn writable(&self) -> u64 {
        length(self.split().1)
    }
}

/// One queue: where the driver put it, and how far the device is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    /// Number of descriptors; as the driver writes it, so unchecked until the queue is ready.
    pub(super) size: u32,
    /// Descriptor area.
    pub(super) descriptors: u64,
    /// Driver area, the available ring.
    pub(super) driver: u64,
    /// Device area, the used ring.
    pub(super) device: u64,
    ready: bool,
    /// Position of the front in the available ring, and of the next entry in the used ring: chains
    /// complete in order, so the two are one.
    next: u16,
    /// A chain was completed since the driver was last told.
    completed: bool,
}

impl Queue {
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Puts the queue into operation if its size and places are what the specification allows
    /// (2.7: a power of two; alignments 16, 2, 4); else it stays out of operation.
    pub(super) fn enable(&mut self) {
        let size = u64::from(self.size);
        let sound = self.size.is_power_of_two() && size <= u64::from(QUEUE_SIZE_MAX);
        let areas = [
            (self.descriptors, 16, DESCRIPTOR_BYTES * size),
            (self.driver, 2, RING + 2 * size + 2),
            (self.device, 4, RING + USED_ELEMENT_BYTES * size + 2),
        ];
        let fits = |&(start, align, bytes): &(u64, u64, u64)| {
            start.is_multiple_of(align) && start.checked_add(bytes).is_some()
        };
        (self.next, self.completed) = (0, false);
        self.ready = sound && areas.iter().all(fits);
    }

    pub(super) fn disable(&mut self) {
        self.ready = false;
    }

    /// Reads the 16-bit value at `offset` in the driver area in one access.
    fn driver_value(&self, memory: &dyn GuestMemory, offset: u64) -> Result<u16, MemoryFault> {
        let mut bytes = [0; 2];
        memory.read(Ipa::new(self.driver + offset), &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn slot(&self, position: u16) -> u64 {
        // The size is a power of two.
        u64::from(position) & (u64::from(self.size) - 1)
    }

    /// Whether there is a chain at the front.
    fn has_front(&self, memory: &dyn GuestMemory) -> Result<bool, QueueError> {
        let available = self.driver_value(memory, 2)?.wrapping_sub(self.next);
        if u32::from(available) > self.size {
            return Err(QueueError::Index(available));
        }
        // The entry and what it names were written before the index.
        fence(Ordering::Acquire);
        Ok(available != 0)
    }

    /// Reads the chain at the front. There is one: [`Self::has_front`].
    fn front(&self, memory: &dyn GuestMemory) -> Result<Chain, QueueError> {
        let head = self.driver_value(memory, RING + 2 * self.slot(self.next))?;
        let mut chain = Chain { head, buffers: ArrayVec::new(), readable: 0 };
        let mut index = head;
        let mut total = 0;
        loop {
            let (buffer, flags, next) = self.descriptor(memory, index)?;
            total += u64::from(buffer.length);
            if flags & !(NEXT | WRITE) != 0 {
                return Err(QueueError::Flags(flags));
            }
            if total > CHAIN_MAX {
                return Err(QueueError::TooLong);
            }
            if flags & WRITE == 0 {
                if chain.readable != chain.buffers.len() {
                    return Err(QueueError::Order);
                }
                chain.readable += 1;
            }
            chain.buffers.try_push(buffer).map_err(|_| QueueError::Loop)?;
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            if chain.buffers.len() as u32 >= self.size {
                return Err(QueueError::Loop);
            }
            index = next;
        }
    }

    /// Reads a descriptor: its buffer, its flags, and the index of the next one.
    fn descriptor(
        &self,
        memory: &dyn GuestMemory,
        index: u16,
    ) -> Result<(Buffer, u16, u16), QueueError> {
        if u32::from(index) >= self.size {
            return Err(QueueError::Descriptor(index));
        }
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        let at = self.descriptors + DESCRIPTOR_BYTES * u64::from(index);
        memory.read(Ipa::new(at), &mut bytes)?;
        let whole = u128::from_le_bytes(bytes);
        let buffer = Buffer { address: whole as u64, length: (whole >> 64) as u32 };
        Ok((buffer, (whole >> 96) as u16, (whole >> 112) as u16))
    }

    /// Gives the chain at the front back, `written` bytes of it written.
    fn complete(
        &mut self,
        memory: &dyn GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), MemoryFault> {
        let element = u64::from(head) | u64::from(written) << 32;
        let at = self.device + RING + USED_ELEMENT_BYTES * self.slot(self.next);
        memory.write(Ipa::new(at), &element.to_le_bytes())?;
        self.next = self.next.wrapping_add(1);
        // Buffers and entry before the index that publishes them.
        fence(Ordering::Release);
        memory.write(Ipa::new(self.device + 2), &self.next.to_le_bytes())?;
        self.completed = true;
        Ok(())
    }

    /// Whether the driver is to be told of chains that were completed since the last call.
    pub(super) fn take_notification(
        &mut self,
        memory: &dyn GuestMemory,
    ) -> Result<bool, MemoryFault> {
        if !core::mem::take(&mut self.completed) {
            return Ok(false);
        }
        // The index must be visible before the flag is read: the driver clears the flag and then
        // looks at the index once more.
        fence(Ordering::SeqCst);
        Ok(self.driver_value(memory, 0)? & NO_INTERRUPT == 0)
    }
}

/// The queues of a device during one call of [`super::Device::work`], with what the call may spend.
pub struct Io<'a> {
    queues: &'a mut [Queue],
    memory: &'a dyn GuestMemory,
    descriptors: u32,
    bytes: usize,
    more: bool,
}

impl<'a> Io<'a> {
    pub(super) fn new(queues: &'a mut [Queue], memory: &'a dyn GuestMemory) -> Self {
        Self {
            queues,
            memory,
            descriptors: DESCRIPTORS_PER_CALL,
            bytes: BYTES_PER_CALL,
            more: false,
        }
    }

    /// Whether the device stopped because it had spent what a call may spend.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// The chain at the front of queue `queue`. It stays there until [`Io::complete`].
    ///
    /// `None` when there is none, the queue is not ready, or the call has spent what it may: then
    /// the device is called again.
    ///
    /// # Errors
    /// [`QueueError`] when the ring or the chain is malformed.
    pub fn front(&mut self, queue: usize) -> Result<Option<Chain>, QueueError> {
        let Some(queue) = self.queues.get(queue).filter(|queue| queue.ready) else {
            return Ok(None);
        };
        if !queue.has_front(self.memory)? {
            return Ok(None);
        }
        if self.descriptors == 0 || self.bytes == 0 {
            self.more = true;
            return Ok(None);
        }
        let chain = queue.front(self.memory)?;
        self.descriptors = self.descriptors.saturating_sub(chain.buffers.len() as u32);
        Ok(Some(chain))
    }

    /// Bytes that this call may still move. A device that has more to do with a chain than that
    /// leaves it at the front and calls [`Io::go_on_later`].
    #[must_use]
    pub fn bytes_left(&self) -> usize {
        self.bytes
    }

    /// Asks for another call although the driver has not sent a notification.
    pub fn go_on_later(&mut self) {
        self.more = true;
    }

    /// Copies what the driver put at `offset` into the readable part of `chain`.
    ///
    /// # Errors
    /// The readable part is shorter, or not in the guest's memory; `into` is unspecified then.
    pub fn read(&mut self, chain: &Chain, offset: u64, into: &mut [u8]) -> Result<(), QueueError> {
        self.spend(into.len());
        let mut rest = into;
        for piece in pieces(chain.split().0, offset, rest.len())? {
            let (now, later) = rest.split_at_mut_checked(piece.1).unwrap_or_default();
            self.memory.read(piece.0?, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies `from` to `offset` in the writable part of `chain`.
    ///
    /// # Errors
    /// The writable part is shorter, or not in the guest's memory; a part may be written then.
    pub fn write(&mut self, chain: &Chain, offset: u64, from: &[u8]) -> Result<(), QueueError> {
        self.spend(from.len());
        let mut rest = from;
        for piece in pieces(chain.split().1, offset, rest.len())? {
            let (now, later) = rest.split_at_checked(piece.1).unwrap_or_default();
            self.memory.write(piece.0?, now)?;
            rest = later;
        }
        Ok(())
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Gives `chain`, the front of queue `queue`, back to the driver. `written` counts the bytes
    /// from the start of its writable part that the device has written.
    ///
    /// # Errors
    /// The used ring is not in the guest's memory.
    pub fn complete(
        &mut self,
        queue: usize,
        chain: &Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        let Some(queue) = self.queues.get_mut(queue) else { return Ok(()) };
        Ok(queue.complete(self.memory, chain.head, written)?)
    }
}

/// The contiguous pieces of `length` bytes from `offset` on, as address and length. An address that
/// overflows is an error in the place of its piece.
fn pieces(
    buffers: &[Buffer],
    offset: u64,
    length: usize,
) -> Result<impl Iterator<Item = (Result<Ipa, MemoryFault>, usize)>, QueueError> {
    let end = offset.checked_add(length as u64);
    if end.is_none_or(|end| end > self::length(buffers)) {
        return Err(QueueError::TooShort);
    }
    let mut skip = offset;
    let mut left = length;
    Ok(buffers.iter().filter_map(move |buffer| {
        let room = u64::from(buffer.length);
        if skip >= room || left == 0 {
            skip = skip.saturating_sub(room);
            return None;
        }
        let size = usize::try_from(room - skip).unwrap_or(usize::MAX).min(left);
        let start = Ipa::new(buffer.address);
        let at = start.checked_add(skip).ok_or(MemoryFault { ipa: start });
        skip = 0;
        left -= size;
        Some((at, size))
    }))
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
