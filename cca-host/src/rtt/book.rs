//! What the driver remembers about the tables of a realm.
//!
//! Not the tables themselves, but where anything is at all and how much: enough to look only where there is
//! something when it is taken away again, and to stop when nothing is left.

use core::ops::Range;

use super::supply::Supply;
use super::sweep::{Emptied, Returns};
use crate::geometry::LAST_LEVEL;

/// Levels of tables: -1 to 3.
const LEVELS: usize = (LAST_LEVEL + 2) as usize;

/// A number of things and the addresses between which they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    low: u64,
    high: u64,
    count: u64,
}

impl Extent {
    const NONE: Self = Self { low: u64::MAX, high: 0, count: 0 };

    /// Notes `count` more, in `bytes` bytes from `at`.
    pub(crate) fn add(&mut self, at: u64, bytes: u64, count: u64) {
        self.low = self.low.min(at);
        self.high = self.high.max(at.saturating_add(bytes));
        self.count += count;
    }

    /// Notes that `count` are gone.
    pub(crate) fn remove(&mut self, count: u64) {
        self.count = self.count.saturating_sub(count);
        if self.count == 0 {
            *self = Self::NONE;
        }
    }

    /// How many there are.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Where they are; empty if there are none.
    pub(crate) const fn span(&self) -> Range<u64> {
        if self.count == 0 { 0..0 } else { self.low..self.high }
    }
}

/// The notes about one realm, and what is on its way in or out.
pub(crate) struct Book {
    tables: [Extent; LEVELS],
    /// Granules mapped as protected memory.
    pub(crate) data: Extent,
    /// Memory on its way in.
    pub(crate) supply: Supply,
    /// Memory on its way out.
    pub(crate) returns: Returns,
    /// A range that the realm has given up and that is still being unmapped.
    pub(crate) emptied: Option<Emptied>,
}

impl Book {
    pub(crate) const fn new() -> Self {
        Self {
            tables: [Extent::NONE; LEVELS],
            data: Extent::NONE,
            supply: Supply::EMPTY,
            returns: Returns::EMPTY,
            emptied: None,
        }
    }

    /// The tables at `level`, other than root tables.
    pub(crate) fn tables(&mut self, level: i8) -> &mut Extent {
        let index = (level.clamp(-1, LAST_LEVEL) + 1) as usize;
        // In range by the clamp; the last one stands in for the compiler's sake.
        let [rest @ .., last] = &mut self.tables;
        rest.get_mut(index).unwrap_or(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extent_covers_what_was_added_until_all_is_gone() {
        let mut extent = Extent::NONE;
        assert!(extent.span().is_empty());
        extent.add(0x4000, 0x1000, 1);
        extent.add(0x1000, 0x2000, 2);
        assert_eq!((extent.span(), extent.count()), (0x1000..0x5000, 3));
        extent.remove(2);
        assert_eq!(extent.span(), 0x1000..0x5000);
        extent.remove(5);
        assert_eq!((extent.span(), extent.count()), (0..0, 0));
    }

    #[test]
    fn each_level_has_its_own_extent() {
        let mut book = Book::new();
        for level in -1..=LAST_LEVEL {
            book.tables(level).add(0, 1, 1);
        }
        assert!((-1..=LAST_LEVEL).all(|level| book.tables(level).count() == 1));
    }
}
