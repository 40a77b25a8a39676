//! Pages that a realm shares with the host.
//!
//! A realm whose devices bounce through a buffer shares thousands of pages, which lie together. So
//! their memory is taken in chunks, each for an aligned piece of the realm's address space.

use crate::arch::phys;
use crate::memory::{self, ledger};
use arrayvec::ArrayVec;
use core::fmt;
use mm::ledger::{Frames, OutOfMemory, Owner, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};

/// Pages of a chunk, and log2 of their number.
const PAGES: u64 = 1 << ORDER;
const ORDER: u8 = 6;
/// Bytes of a chunk.
const BYTES: u64 = PAGES * PAGE_SIZE;
/// Most chunks of a realm: 16 MiB, if what is shared lies together.
const MAX_CHUNKS: usize = 64;

/// Why a page cannot be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShareError {
    /// There is no memory for it.
    OutOfMemory(OutOfMemory),
    /// The realm has shared pages in too many places.
    TooMany,
}

impl fmt::Display for ShareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(error) => error.fmt(f),
            Self::TooMany => {
                write!(f, "more than {MAX_CHUNKS} pieces of {} KiB with shared pages", BYTES >> 10)
            }
        }
    }
}

/// Memory for a piece of the realm's address space.
struct Chunk {
    /// Its first address, a multiple of its size.
    base: Ipa,
    frames: Frames<Undelegated>,
    /// Which of its pages are shared, bit by page.
    shared: u64,
}

const _: () = assert!(PAGES <= u64::BITS as u64);

impl Chunk {
    /// Number of the page at `ipa`, which lies in the chunk.
    fn index(&self, ipa: Ipa) -> u64 {
        (ipa.get() - self.base.get()) / PAGE_SIZE
    }

    fn has(&self, ipa: Ipa) -> bool {
        self.shared & 1 << self.index(ipa) != 0
    }

    /// Clears the page at `ipa` for its new use. The realm may be using the pages beside it.
    fn clear(&self, ipa: Ipa) {
        const PIECE: usize = 512;
        let start = self.index(ipa) * PAGE_SIZE;
        for offset in (start..start + PAGE_SIZE).step_by(PIECE) {
            phys::write(&self.frames, offset, &[0; PIECE]);
        }
    }

    /// The first shared page in `[from, to)`.
    fn first_in(&self, from: Ipa, to: Ipa) -> Option<Ipa> {
        let end = Ipa::new(self.base.get() + BYTES).min(to);
        let range = self.base.max(from).get()..end.get();
        range.step_by(PAGE_SIZE as usize).map(Ipa::new).find(|ipa| self.has(*ipa))
    }
}

/// All shared pages of a realm. Addresses are those of pages, without the bit that marks them as
/// shared.
pub(super) struct SharedPages {
    /// By address.
    chunks: ArrayVec<Chunk, MAX_CHUNKS>,
}

impl SharedPages {
    /// None.
    #[must_use]
    pub(super) const fn new() -> Self {
        Self { chunks: ArrayVec::new_const() }
    }

    /// Index of the chunk that `ipa` lies in, or where it is to be put.
    fn find(&self, ipa: Ipa) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&ipa.align_down(BYTES), |chunk| chunk.base)
    }

    fn chunk(&self, ipa: Ipa) -> Option<&Chunk> {
        self.chunks.get(self.find(ipa).ok()?).filter(|chunk| chunk.has(ipa))
    }

    /// Whether the page at `ipa` is shared.
    #[must_use]
    pub(super) fn contains(&self, ipa: Ipa) -> bool {
        self.chunk(ipa).is_some()
    }

    /// The granules in which the page at `ipa` is, and its offset there.
    #[must_use]
    pub(super) fn page(&self, ipa: Ipa) -> Option<(&Frames<Undelegated>, u64)> {
        let chunk = self.chunk(ipa)?;
        Some((&chunk.frames, chunk.index(ipa) * PAGE_SIZE))
    }

    /// Shares a cleared page at `ipa`, where there is none; returns where it is.
    ///
    /// # Errors
    ///
    /// See [`ShareError`]; nothing has changed then.
    pub(super) fn add(&mut self, owner: Owner, ipa: Ipa) -> Result<PhysAddr, ShareError> {
        let index = match self.find(ipa) {
            Ok(index) => index,
            Err(_) if self.chunks.is_full() => return Err(ShareError::TooMany),
            Err(place) => {
                let frames =
                    memory::alloc(ORDER, Use::Shared, owner).map_err(ShareError::OutOfMemory)?;
                self.chunks.insert(place, Chunk { base: ipa.align_down(BYTES), frames, shared: 0 });
                place
            }
        };
        let chunk = self.chunks.get_mut(index).ok_or(ShareError::TooMany)?;
        chunk.clear(ipa);
        let page = chunk.index(ipa);
        chunk.shared |= 1 << page;
        Ok(PhysAddr::new(chunk.frames.base().get() + page * PAGE_SIZE))
    }

    /// The page at `ipa` is shared no longer, and the realm cannot reach it any more.
    pub(super) fn remove(&mut self, ipa: Ipa) {
        let Ok(index) = self.find(ipa) else { return };
        let Some(chunk) = self.chunks.get_mut(index) else { return };
        chunk.shared &= !(1 << chunk.index(ipa));
        if chunk.shared == 0 {
            ledger().free(self.chunks.remove(index).frames);
        }
    }

    /// The first shared page in `[from, to)`.
    #[must_use]
    pub(super) fn first_in(&self, from: Ipa, to: Ipa) -> Option<Ipa> {
        let begin = self.find(from).unwrap_or_else(|place| place);
        let chunks = self.chunks.get(begin..).unwrap_or(&[]);
        chunks.iter().take_while(|chunk| chunk.base < to).find_map(|chunk| chunk.first_in(from, to))
    }

    /// Gives all memory back. The realm is gone.
    pub(super) fn free(&mut self) {
        for chunk in self.chunks.drain(..) {
            ledger().free(chunk.frames);
        }
    }
}
