//! Address range descriptors and lists of them.

use crate::abi::Refusal;
use crate::addr::{GRANULE_SIZE, Pa};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::rtt::geometry::{PAGE_LEVEL, entry_size};
use crate::v2::Draft;

/// Descriptors that fit into one page.
pub(crate) const MAX_LIST: usize = 512;
/// Most blocks of one descriptor.
const MAX_COUNT: u64 = 1023;

const SIZE_MASK: u64 = 0b11;
const COUNT_SHIFT: u32 = 2;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
const UNDELEGATED: u64 = 1 << 63;

/// State in the words of late drafts: two bits, of which 0 stands for delegated, 1 for undelegated.
const LATE_STATE: u64 = 0b11 << 62;
const LATE_UNDELEGATED: u64 = 0b01 << 62;

/// RmiAddrRangeDesc for 4 KiB granules: `count` blocks of one size side by side. Kept as the word
/// of TF-RMM main.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range(u64);

impl Range {
    pub(crate) fn new(base: Pa, level: i64, count: u64, undelegated: bool) -> Self {
        let state = if undelegated { UNDELEGATED } else { 0 };
        let size = (PAGE_LEVEL - level).cast_unsigned() & SIZE_MASK;
        Self(base.0 & ADDRESS_MASK | count << COUNT_SHIFT | size | state)
    }

    /// From a word of the host; none if its state is none that the draft has.
    pub(crate) fn from_word(draft: Draft, word: u64) -> Option<Self> {
        match (draft, word & LATE_STATE) {
            (Draft::V0_9 | Draft::Head, _) | (Draft::Late, 0) => Some(Self(word)),
            (Draft::Late, LATE_UNDELEGATED) => Some(Self(word & !LATE_STATE | UNDELEGATED)),
            (Draft::Late, _) => None,
        }
    }

    /// As a word for the host.
    pub(crate) fn word(self, draft: Draft) -> u64 {
        if draft == Draft::Late && self.is_undelegated() {
            self.0 & !LATE_STATE | LATE_UNDELEGATED
        } else {
            self.0
        }
    }

    pub(crate) fn base(self) -> Pa {
        Pa(self.0 & ADDRESS_MASK)
    }

    /// Level of the RTT whose entries have the block size: 0 to 3.
    pub(crate) fn level(self) -> i64 {
        PAGE_LEVEL - (self.0 & SIZE_MASK).cast_signed()
    }

    pub(crate) fn count(self) -> u64 {
        self.0 >> COUNT_SHIFT & MAX_COUNT
    }

    pub(crate) fn is_undelegated(self) -> bool {
        self.0 & UNDELEGATED != 0
    }

    /// The range with the block at `pa` added, if it is right before or behind it.
    fn grown(self, pa: Pa) -> Option<Self> {
        let (base, size, count) = (self.base(), entry_size(self.level()), self.count());
        if count >= MAX_COUNT {
            return None;
        }
        let start = match pa {
            _ if pa == base.offset(count * size) => base,
            _ if pa.offset(size) == base => pa,
            _ => return None,
        };
        Some(Self::new(start, self.level(), count + 1, self.is_undelegated()))
    }
}

/// A list of ranges in the order in which they were made.
pub(crate) struct RangeList {
    ranges: [Range; MAX_LIST],
    count: usize,
    limit: usize,
}

impl RangeList {
    /// An empty list for at most `limit` ranges.
    pub(crate) fn new(limit: usize) -> Self {
        Self { ranges: [Range(0); MAX_LIST], count: 0, limit: limit.min(MAX_LIST) }
    }

    /// The list of this one range.
    pub(crate) fn single(range: Range) -> Self {
        let mut list = Self::new(1);
        list.ranges[0] = range;
        list.count = 1;
        list
    }

    pub(crate) fn ranges(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    /// Adds a block, to a range that it continues or as a new one; false if there is no room.
    pub(crate) fn add(&mut self, pa: Pa, level: i64, undelegated: bool) -> bool {
        for range in &mut self.ranges[..self.count] {
            if let Some(grown) = range.grown(pa) {
                *range = grown;
                return true;
            }
        }
        if self.count == self.limit {
            return false;
        }
        self.ranges[self.count] = Range::new(pa, level, 1, undelegated);
        self.count += 1;
        true
    }

    /// The blocks of all ranges in order, each with its range.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Pa, Range)> + '_ {
        self.ranges().iter().flat_map(|range| {
            let size = entry_size(range.level());
            (0..range.count()).map(move |n| (range.base().offset(n * size), *range))
        })
    }
}

/// Number of descriptors at `list` that can be used: as many as asked for, but none beyond the
/// page in which the list starts. None if the list is misaligned.
pub(crate) fn list_room(list: Pa, count: u64) -> Option<usize> {
    if !list.is_aligned(8) {
        return None;
    }
    let room = (GRANULE_SIZE - list.0 % GRANULE_SIZE) / 8;
    usize::try_from(count.min(room)).ok()
}

impl<P: Platform> Monitor<P> {
    /// The draft that the monitor follows, if it speaks 2.0 at all.
    pub(crate) fn draft(&self) -> Draft {
        self.rmi2().map_or(Draft::Head, |rmi2| rmi2.draft)
    }

    /// A range that the host names by a word in a register.
    pub(crate) fn range_of(&self, word: u64) -> Result<Range, Refusal> {
        Range::from_word(self.draft(), word).ok_or(Refusal::INPUT)
    }

    /// Copies a list of up to `count` descriptors from the host.
    pub(crate) fn read_list(&self, list: Pa, count: u64) -> Result<RangeList, Refusal> {
        let count = list_room(list, count).ok_or(Refusal::INPUT)?;
        self.check_host(Pa(list.0 & !(GRANULE_SIZE - 1)))?;
        let mut ranges = RangeList::new(count);
        ranges.count = count;
        for (range, number) in ranges.ranges[..count].iter_mut().zip(0..) {
            let mut bytes = [0; 8];
            let at = list.offset(8 * number);
            self.platform.read_ns(at, &mut bytes).map_err(|_| Refusal::INPUT)?;
            *range = self.range_of(u64::from_le_bytes(bytes))?;
        }
        Ok(ranges)
    }

    /// Copies descriptors to the host's list, which has room for them.
    pub(crate) fn write_list(&self, list: Pa, ranges: &[Range]) -> Result<(), Refusal> {
        self.check_host(Pa(list.0 & !(GRANULE_SIZE - 1)))?;
        for (range, number) in ranges.iter().zip(0..) {
            let at = list.offset(8 * number);
            let word = range.word(self.draft());
            self.platform.write_ns(at, &word.to_le_bytes()).map_err(|_| Refusal::INPUT)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_join_ranges_on_both_sides() {
        let mut list = RangeList::new(2);
        assert!(list.add(Pa(0x8000_1000), 3, false));
        assert!(list.add(Pa(0x8000_2000), 3, false));
        assert!(list.add(Pa(0x8000_0000), 3, false));
        assert_eq!(list.ranges(), [Range(0x8000_0000 | 3 << 2)]);
        assert!(list.add(Pa(0x9000_0000), 3, false));
        assert!(list.add(Pa(0x8000_3000), 3, false), "any range may grow");
        assert!(!list.add(Pa(0xa000_0000), 3, false), "full");
        assert_eq!(list.blocks().count(), 5);
    }

    #[test]
    fn descriptors_have_the_published_layout() {
        let range = Range::new(Pa(0x4020_0000), 2, 5, true);
        assert_eq!(range.0, 1 << 63 | 0x4020_0000 | 5 << 2 | 1);
        assert_eq!((range.base(), range.level(), range.count()), (Pa(0x4020_0000), 2, 5));
        assert!(range.is_undelegated());
        assert_eq!(range.word(Draft::Head), range.0);
        let late = range.word(Draft::Late);
        assert_eq!(late, 1 << 62 | 0x4020_0000 | 5 << 2 | 1);
        assert_eq!(Range::from_word(Draft::Late, late), Some(range));
        assert_eq!(Range::from_word(Draft::Late, range.0), None, "a state of later drafts");
    }

    #[test]
    fn a_range_holds_1023_blocks() {
        let mut list = RangeList::new(2);
        for number in 0..1024 {
            assert!(list.add(Pa(number * GRANULE_SIZE), 3, false));
        }
        assert_eq!(list.ranges().len(), 2);
    }
}
