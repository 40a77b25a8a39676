//! One contiguous part of RAM: block heads, free sets, buddy allocation.

use super::bits::BitTree;
use super::state::{GranuleState, Owner};
use crate::{PAGE_SIZE, PhysAddr};

/// Largest block: 2^18 granules, 1 GiB.
pub const MAX_ORDER: u8 = 18;
const ORDERS: usize = MAX_ORDER as usize + 1;

/// A granule or a naturally aligned block of granules in one state, as one word at its first granule:
/// order in bits 4:0, bit 7 set, state code in bits 15:8, owner in bits 31:16. The words of the
/// other granules of a block are zero, so that allocation, split and merge cost no loop over granules.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Head(u32);

impl Head {
    const VALID: u32 = 1 << 7;
    const INTERIOR: u32 = 0;

    fn new(order: u8, state: GranuleState) -> Self {
        let owner = state.owner().unwrap_or(Owner::HYPERVISOR).id();
        Self(
            u32::from(order)
                | Self::VALID
                | u32::from(state.kind_code()) << 8
                | u32::from(owner) << 16,
        )
    }

    const fn order(self) -> u8 {
        (self.0 & 0x1f) as u8
    }

    const fn state(self) -> GranuleState {
        GranuleState::from_code((self.0 >> 8) as u8, Owner::vm((self.0 >> 16) as u16))
    }
}

/// Shape of a region; its words live in the metadata slice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    /// First granule, as address / 4 KiB.
    pub(super) first: u64,
    /// Number of granules.
    pub(super) count: u64,
    /// Whether the RMM can take granules from here.
    pub(super) delegable: bool,
    /// Offset of the region's words in the metadata slice.
    pub(super) offset: usize,
}

impl Region {
    /// Metadata words of a region: one per granule and a free set per order.
    pub(super) fn words(first: u64, count: u64) -> usize {
        let mut words = count as usize;
        for order in 0..=MAX_ORDER {
            words += BitTree::words_for(Self::blocks(first, count, order));
        }
        words
    }

    /// Number of aligned blocks of `order` that touch the region.
    const fn blocks(first: u64, count: u64, order: u8) -> usize {
        if count == 0 {
            return 0;
        }
        (((first + count - 1) >> order) - (first >> order) + 1) as usize
    }

    /// Whether the granule number lies inside.
    pub(super) const fn contains(&self, pfn: u64) -> bool {
        pfn >= self.first && pfn - self.first < self.count
    }

    /// Borrows the region's part of the metadata.
    pub(super) fn view<'m>(&self, metadata: &'m mut [u32]) -> Option<RegionView<'m>> {
        let words = Self::words(self.first, self.count);
        let (heads, free) = metadata
            .get_mut(self.offset..self.offset + words)?
            .split_at_mut_checked(self.count as usize)?;
        Some(RegionView { first: self.first, count: self.count, heads, free })
    }
}

/// A region together with its words.
pub(super) struct RegionView<'m> {
    first: u64,
    count: u64,
    heads: &'m mut [u32],
    free: &'m mut [u32],
}

/// Part of a region in one state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) pfn: u64,
    pub(super) order: u8,
    pub(super) state: GranuleState,
}

impl Block {
    /// First granule after the block.
    pub(super) const fn end(&self) -> u64 {
        self.pfn + (1 << self.order)
    }
}

impl RegionView<'_> {
    fn head(&self, pfn: u64) -> Option<Head> {
        let index = pfn.checked_sub(self.first)?;
        let word = *self.heads.get(index as usize)?;
        (word != Head::INTERIOR).then_some(Head(word))
    }

    fn write_head(&mut self, pfn: u64, word: u32) {
        if let Some(slot) = self.heads.get_mut((pfn - self.first) as usize) {
            *slot = word;
        }
    }

    /// Runs `f` on the free set of `order`; members are block numbers counted from the region's first.
    fn free_set<R>(&mut self, order: u8, f: impl FnOnce(&mut BitTree<'_>) -> R) -> Option<R> {
        let mut offset = 0;
        for lower in 0..order {
            offset += BitTree::words_for(Region::blocks(self.first, self.count, lower));
        }
        let len = Region::blocks(self.first, self.count, order);
        let words = self.free.get_mut(offset..offset + BitTree::words_for(len))?;
        Some(f(&mut BitTree::new(words, len)))
    }

    fn insert_free(&mut self, pfn: u64, order: u8) {
        self.write_head(pfn, Head::new(order, GranuleState::Free).0);
        let member = ((pfn >> order) - (self.first >> order)) as usize;
        self.free_set(order, |set| set.insert(member));
    }

    fn remove_free(&mut self, pfn: u64, order: u8) {
        let member = ((pfn >> order) - (self.first >> order)) as usize;
        self.free_set(order, |set| set.remove(member));
    }

    /// The block that covers a granule.
    pub(super) fn block_of(&self, pfn: u64) -> Option<Block> {
        for order in 0..=MAX_ORDER {
            let candidate = pfn & !((1 << order) - 1);
            if let Some(head) = self.head(candidate) {
                let block = Block { pfn: candidate, order: head.order(), state: head.state() };
                return (pfn < block.end()).then_some(block);
            }
        }
        None
    }

    /// Fills the region with free blocks; the words must be zero.
    pub(super) fn fill_free(&mut self) {
        for (pfn, order) in aligned_blocks(self.first, self.count) {
            self.insert_free(pfn, order);
        }
    }

    /// Takes the lowest block of the smallest sufficient order; the caller records its new state.
    pub(super) fn take(&mut self, order: u8) -> Option<u64> {
        for larger in order..=MAX_ORDER {
            let Some(member) = self.free_set(larger, |set| set.first()).flatten() else { continue };
            let pfn = ((self.first >> larger) + member as u64) << larger;
            self.remove_free(pfn, larger);
            for half in (order..larger).rev() {
                self.insert_free(pfn + (1 << half), half);
            }
            self.write_head(pfn, Head::new(order, GranuleState::Free).0);
            return Some(pfn);
        }
        None
    }

    /// Puts an aligned block back and merges it with its free buddies.
    fn give(&mut self, pfn: u64, order: u8) {
        let (mut pfn, mut order) = (pfn, order);
        while order < MAX_ORDER {
            let buddy = pfn ^ (1 << order);
            let Some(head) = self.head(buddy) else { break };
            if head != Head::new(order, GranuleState::Free) {
                break;
            }
            self.remove_free(buddy, order);
            self.write_head(buddy, Head::INTERIOR);
            self.write_head(pfn, Head::INTERIOR);
            pfn = pfn.min(buddy);
            order += 1;
        }
        self.insert_free(pfn, order);
    }

    /// Splits blocks so that a block begins at `pfn`.
    fn split_before(&mut self, pfn: u64) {
        while let Some(block) = self.block_of(pfn) {
            if block.pfn == pfn {
                return;
            }
            let half = block.order - 1;
            let upper = block.pfn + (1 << half);
            if block.state == GranuleState::Free {
                self.remove_free(block.pfn, block.order);
                self.insert_free(block.pfn, half);
                self.insert_free(upper, half);
            } else {
                self.write_head(block.pfn, Head::new(half, block.state).0);
                self.write_head(upper, Head::new(half, block.state).0);
            }
        }
    }

    /// Whether all of `count` granules from `pfn` are in `state`; otherwise the first that is not.
    pub(super) fn expect(&self, pfn: u64, count: u64, state: GranuleState) -> Result<(), u64> {
        let mut at = pfn;
        while at < pfn + count {
            match self.block_of(at) {
                Some(block) if block.state == state => at = block.end(),
                _ => return Err(at),
            }
        }
        Ok(())
    }

    /// The part of a run of granules that lies inside: first and end.
    pub(super) fn overlap(&self, pfn: u64, count: u64) -> (u64, u64) {
        let end = self.first + self.count;
        (pfn.clamp(self.first, end), pfn.saturating_add(count).clamp(self.first, end))
    }

    /// The blocks in ascending order, from the one that covers `pfn` or the first after it.
    pub(super) fn blocks_from(&self, pfn: u64) -> impl Iterator<Item = Block> {
        let mut at = pfn.max(self.first);
        core::iter::from_fn(move || {
            let block = self.block_of(at)?;
            at = block.end();
            Some(block)
        })
    }

    /// Records `state` for `count` granules from `pfn`, all inside the region. Free granules change
    /// sets as needed; setting `Free` merges.
    pub(super) fn set(&mut self, pfn: u64, count: u64, state: GranuleState) {
        if count == 0 {
            return;
        }
        self.split_before(pfn);
        if pfn + count < self.first + self.count {
            self.split_before(pfn + count);
        }
        let mut at = pfn;
        while at < pfn + count {
            let Some(block) = self.block_of(at) else { return };
            if block.state == GranuleState::Free {
                self.remove_free(block.pfn, block.order);
            }
            self.write_head(block.pfn, Head::INTERIOR);
            at = block.end();
        }
        for (pfn, order) in aligned_blocks(pfn, count) {
            if state == GranuleState::Free {
                self.give(pfn, order);
            } else {
                self.write_head(pfn, Head::new(order, state).0);
            }
        }
    }
}

/// The fewest naturally aligned blocks that make up `count` granules from `pfn`.
pub(super) fn aligned_blocks(pfn: u64, count: u64) -> impl Iterator<Item = (u64, u8)> {
    let end = pfn + count;
    let mut at = pfn;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let by_alignment = if at == 0 { MAX_ORDER } else { at.trailing_zeros().min(18) as u8 };
        let by_length = (end - at).ilog2().min(18) as u8;
        let order = by_alignment.min(by_length);
        let block = (at, order);
        at += 1 << order;
        Some(block)
    })
}

/// Granule number of an address.
pub(super) const fn pfn_of(addr: PhysAddr) -> u64 {
    addr.get() / PAGE_SIZE
}

const _: () = assert!(ORDERS == 19 && 1u64 << MAX_ORDER == (1 << 30) / PAGE_SIZE);
