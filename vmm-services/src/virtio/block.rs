//! Block device (virtio 1.3, 5.2).
//!
//! Every write is in place when its request completes, so there is no cache to flush and
//! `VIRTIO_BLK_F_FLUSH` is not offered. A request may be of any length: one that is longer than a
//! call may be goes on in the next.

use super::{CONFIG_BYTES, Chain, Device, Io, QUEUE_SIZE_MAX, QueueError};
use crate::manifest::BlockSpec;
use crate::traits::Disks;
use crate::vm::Context;

const REQUESTS: usize = 0;
/// Bytes of a sector, the unit of all addresses.
pub(crate) const SECTOR: u64 = 512;
/// Type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// Bytes moved at a time between disk and guest.
const PIECE: usize = 4096;

/// `VIRTIO_BLK_F_SEG_MAX`.
const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
const F_RO: u64 = 1 << 5;
/// Offset of `seg_max` in the configuration.
const CONFIG_SEG_MAX: usize = 12;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// Bytes of the answer to [`GET_ID`].
const ID_BYTES: usize = 20;

/// Status byte of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The device.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Which of the VM's disks it is.
    disk: u8,
    /// Size in bytes.
    size: u64,
    read_only: bool,
    /// Bytes of data that earlier calls have moved for the request at the front.
    moved: u64,
}

impl Block {
    /// The device of the VM's disk number `disk`.
    pub(crate) fn new(spec: &BlockSpec, disk: u8) -> Self {
        Self { disk, size: spec.size, read_only: spec.read_only, moved: 0 }
    }

    /// Serves the request at the front as far as this call may; `None` if it is to go on later.
    fn serve(
        &mut self,
        io: &mut Io<'_>,
        chain: &Chain,
        disks: &dyn Disks,
    ) -> Result<Option<Status>, QueueError> {
        let mut header = [0; HEADER_BYTES];
        io.read(chain, 0, &mut header)?;
        let header = u128::from_le_bytes(header);
        let start = ((header >> 64) as u64).checked_mul(SECTOR);
        let disk = self.disk;
        Ok(match header as u32 {
            IN => match self.span(start, chain.writable().saturating_sub(1)) {
                None => Some(Status::IoError),
                Some(span) => self.transfer(io, span, |io, moved, piece| {
                    disks.read(disk, span.start + moved, piece).is_ok()
                        && io.write(chain, moved, piece).is_ok()
                }),
            },
            OUT if self.read_only => Some(Status::IoError),
            OUT => match self.span(start, chain.readable().saturating_sub(HEADER_BYTES as u64)) {
                None => Some(Status::IoError),
                Some(span) => self.transfer(io, span, |io, moved, piece| {
                    io.read(chain, HEADER_BYTES as u64 + moved, piece).is_ok()
                        && disks.write(disk, span.start + moved, piece).is_ok()
                }),
            },
            FLUSH => Some(Status::Ok),
            GET_ID => Some(self.identify(io, chain)),
            _ => Some(Status::Unsupported),
        })
    }

    /// The bytes of the disk that a request is about, if they are sectors of it.
    fn span(&self, start: Option<u64>, length: u64) -> Option<Span> {
        let start = start?;
        let end = start.checked_add(length)?;
        (length.is_multiple_of(SECTOR) && end <= self.size).then_some(Span { start, length })
    }

    /// Moves the data of a request piece by piece with `step`, which gets the number of bytes moved
    /// before and says whether its piece went well.
    fn transfer(
        &mut self,
        io: &mut Io<'_>,
        span: Span,
        mut step: impl FnMut(&mut Io<'_>, u64, &mut [u8]) -> bool,
    ) -> Option<Status> {
        let mut buffer = [0; PIECE];
        while self.moved < span.length {
            let size = (span.length - self.moved).min(PIECE as u64).min(io.bytes_left() as u64);
            if size == 0 {
                return None;
            }
            let piece = buffer.get_mut(..size as usize).unwrap_or_default();
            if !step(io, self.moved, piece) {
                return Some(Status::IoError);
            }
            self.moved += size;
        }
        Some(Status::Ok)
    }

    /// Answers with a name that is unique among the VM's disks.
    fn identify(&mut self, io: &mut Io<'_>, chain: &Chain) -> Status {
        let mut id = *b"suzerain-disk-0\0\0\0\0\0";
        id[14] += self.disk;
        let room = chain.writable().saturating_sub(1).min(ID_BYTES as u64);
        if io.write(chain, 0, id.get(..room as usize).unwrap_or_default()).is_err() {
            return Status::IoError;
        }
        self.moved = room;
        Status::Ok
    }
}

/// Bytes of a disk.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    length: u64,
}

impl Device for Block {
    fn id(&self) -> u32 {
        2
    }

    fn features(&self) -> u64 {
        F_SEG_MAX | if self.read_only { F_RO } else { 0 }
    }

    fn queues(&self) -> usize {
        1
    }

    fn config(&self, config: &mut [u8; CONFIG_BYTES]) {
        let (capacity, rest) = config.split_at_mut(8);
        capacity.copy_from_slice(&(self.size / SECTOR).to_le_bytes());
        // All of a queue but for the header and the status.
        let segments = u32::from(QUEUE_SIZE_MAX) - 2;
        rest[CONFIG_SEG_MAX - 8..][..4].copy_from_slice(&segments.to_le_bytes());
    }

    fn reset(&mut self) {
        self.moved = 0;
    }

    fn work(&mut self, io: &mut Io<'_>, context: &mut Context<'_>) -> Result<(), QueueError> {
        while let Some(chain) = io.front(REQUESTS)? {
            // The last byte that the device may write is the status.
            let status_at = chain.writable().checked_sub(1).ok_or(QueueError::TooShort)?;
            let Some(status) = self.serve(io, &chain, context.disks)? else {
                io.go_on_later();
                return Ok(());
            };
            io.write(&chain, status_at, &[status as u8])?;
            // What was written without a gap from the start on.
            let data = core::mem::take(&mut self.moved).min(status_at);
            let written = if data == status_at { data + 1 } else { data };
            io.complete(REQUESTS, &chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
