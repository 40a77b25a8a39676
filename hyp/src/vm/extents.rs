//! Memory put together from runs of contiguous granules.

use crate::arch::{bulk, phys};
use crate::memory::ledger;
use arrayvec::ArrayVec;
use core::fmt;
use mm::ledger::{Frames, OutOfMemory, Owner, Undelegated, Use};
use mm::{PAGE_SIZE, PhysAddr};

/// Why memory of a wanted size cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentsError {
    /// The machine has not enough free RAM.
    OutOfMemory(OutOfMemory),
    /// Free RAM is in more pieces than this.
    Fragmented(usize),
}

impl fmt::Display for ExtentsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(error) => fmt::Display::fmt(error, f),
            Self::Fragmented(most) => write!(f, "free memory is in more than {most} pieces"),
        }
    }
}

impl core::error::Error for ExtentsError {}

/// A run of granules.
pub struct Extent {
    /// Address of its first byte in the space that the extents make up.
    pub start: u64,
    /// Its granules.
    pub frames: Frames<Undelegated>,
}

/// A part of a run, naturally aligned in both spaces.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Address of its first byte in the space that the extents make up.
    pub start: u64,
    /// Its memory.
    pub base: PhysAddr,
    /// Its size.
    pub bytes: u64,
}

impl Piece {
    /// The address behind it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

/// Up to `N` runs of granules that make up one contiguous space of addresses.
pub struct Extents<const N: usize> {
    list: ArrayVec<Extent, N>,
}

impl<const N: usize> Extents<N> {
    /// Takes granules for `bytes` bytes, rounded up to whole pages, whose addresses begin with
    /// `start`. They hold what earlier owners left: [`Self::zero`] has to come before any guest. Takes
    /// the largest blocks that are free and aligned in both spaces. If there is not enough, the granules
    /// that are kept delegated for the next realm are given back first.
    ///
    /// # Errors
    ///
    /// See [`ExtentsError`]; everything taken so far has been given back.
    pub fn take(used_for: Use, owner: Owner, start: u64, bytes: u64) -> Result<Self, ExtentsError> {
        Self::try_take(used_for, owner, start, bytes).or_else(|_| {
            // Whatever this frees: another core may have just drained the pool.
            super::realm::drain_pool();
            Self::try_take(used_for, owner, start, bytes)
        })
    }

    fn try_take(used_for: Use, owner: Owner, start: u64, bytes: u64) -> Result<Self, ExtentsError> {
        let mut extents = Self { list: ArrayVec::new() };
        match extents.collect(used_for, owner, start, bytes.div_ceil(PAGE_SIZE)) {
            Ok(()) => Ok(extents),
            Err(error) => {
                extents.free();
                Err(error)
            }
        }
    }

    fn collect(
        &mut self,
        used_for: Use,
        owner: Owner,
        mut start: u64,
        mut pages: u64,
    ) -> Result<(), ExtentsError> {
        let mut limit = mm::ledger::MAX_ORDER;
        while pages > 0 {
            if self.list.is_full() {
                return Err(ExtentsError::Fragmented(N));
            }
            // No larger than what is left, nor than the alignment of the address, so that a block of
            // granules can be a block of stage-2.
            let fits = pages.ilog2().min((start / PAGE_SIZE).trailing_zeros()) as u8;
            let order = fits.min(limit);
            let frames = match ledger().alloc(order, used_for, owner) {
                Ok(frames) => frames,
                Err(_) if order > 0 => {
                    limit = order - 1;
                    continue;
                }
                Err(error) => return Err(ExtentsError::OutOfMemory(error)),
            };
            let size = frames.bytes();
            self.list.push(Extent { start, frames });
            pages -= size / PAGE_SIZE;
            start += size;
        }
        Ok(())
    }

    /// The runs, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.list.iter()
    }

    /// The largest piece around `at` that is no larger than `most`, a power of two; `None` if `at` is
    /// not there.
    #[must_use]
    pub fn piece(&self, at: u64, most: u64) -> Option<Piece> {
        let (extent, offset, _) = self.locate(at, 0, 1).ok()?;
        let bytes = extent.frames.bytes().min(most);
        // A run is a power of two in size and aligned to that, and so are its parts.
        let offset = offset & !(bytes - 1);
        let base = PhysAddr::new(extent.frames.base().get() + offset);
        Some(Piece { start: extent.start + offset, base, bytes })
    }

    /// Fills a piece with zeros while nobody else can reach it.
    pub fn zero(&mut self, piece: Piece) {
        for extent in &mut self.list {
            let Some(offset) = piece.start.checked_sub(extent.start) else { continue };
            if let Some(bytes) = phys::part_mut(&mut extent.frames, offset, piece.bytes) {
                bulk::zero(bytes);
            }
        }
    }

    /// Copies `data` to `at` while nobody else uses the memory. `false` if it does not all fit.
    #[must_use]
    pub fn fill(&mut self, mut at: u64, data: &[u8]) -> bool {
        let mut rest = data;
        for extent in &mut self.list {
            let Some(offset) = at.checked_sub(extent.start) else { continue };
            let bytes = phys::bytes_mut(&mut extent.frames);
            let Some(target) = bytes.get_mut(offset as usize..) else { continue };
            let copied = bulk::copy(target, rest);
            rest = rest.get(copied..).unwrap_or(&[]);
            at += copied as u64;
        }
        rest.is_empty()
    }

    /// Copies memory at `at`, which others may be using, into `buf`.
    ///
    /// # Errors
    ///
    /// The first address that is not there; `buf` is unspecified then.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), u64> {
        let mut done = 0;
        while done < buf.len() {
            let (extent, offset, length) = self.locate(at, done, buf.len())?;
            let piece = buf.get_mut(done..done + length).ok_or(at)?;
            if !phys::read(&extent.frames, offset, piece) {
                return Err(at);
            }
            done += length;
        }
        Ok(())
    }

    /// Copies `data` to `at` in memory that others may be using.
    ///
    /// # Errors
    ///
    /// The first address that is not there; what lies before may be written.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), u64> {
        let mut done = 0;
        while done < data.len() {
            let (extent, offset, length) = self.locate(at, done, data.len())?;
            let piece = data.get(done..done + length).ok_or(at)?;
            if !phys::write(&extent.frames, offset, piece) {
                return Err(at);
            }
            done += length;
        }
        Ok(())
    }

    /// The run that has the byte `done` bytes after `at`, the offset in it, and how many of the
    /// remaining bytes up to `total` it holds.
    fn locate(&self, at: u64, done: usize, total: usize) -> Result<(&Extent, u64, usize), u64> {
        let at = at.checked_add(done as u64).ok_or(at)?;
        for extent in &self.list {
            let Some(offset) = at.checked_sub(extent.start) else { continue };
            if offset < extent.frames.bytes() {
                let room = usize::try_from(extent.frames.bytes() - offset).unwrap_or(usize::MAX);
                return Ok((extent, offset, room.min(total - done)));
            }
        }
        Err(at)
    }

    /// Gives all granules back. Nobody can reach them any more.
    pub fn free(self) {
        for extent in self.list {
            ledger().free(extent.frames);
        }
    }
}
