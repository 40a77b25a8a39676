//! Shape of a realm's stage-2 tables as values: nothing else in the driver computes with level sizes.

use mm::Ipa;

/// Level of the tables that map single granules.
pub const LAST_LEVEL: i8 = 3;

/// Smallest level at which a block of memory can be mapped (1 GiB with 4 KiB granules).
pub const TOP_BLOCK_LEVEL: i8 = 1;

/// Most root tables that can stand side by side.
const MAX_ROOT_TABLES: u64 = 16;

/// IPA width, granule size and start level of a realm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    ipa_bits: u8,
    granule_shift: u8,
    start_level: i8,
}

impl Geometry {
    /// Geometry for `ipa_bits` with granules of `1 << granule_shift` bytes. The start level is 1, so
    /// that the largest blocks can be used, or the first above it whose root tables, at most 16 side by
    /// side, cover the space. `None` if there is none.
    #[must_use]
    pub const fn new(ipa_bits: u8, granule_shift: u8) -> Option<Self> {
        let mut start_level = TOP_BLOCK_LEVEL;
        while start_level >= -1 {
            if let Some(geometry) = Self::with_start_level(ipa_bits, granule_shift, start_level) {
                return Some(geometry);
            }
            start_level -= 1;
        }
        None
    }

    /// Geometry with a given start level; `None` if the root tables would be more than 16 or the
    /// values are out of range.
    #[must_use]
    pub const fn with_start_level(
        ipa_bits: u8,
        granule_shift: u8,
        start_level: i8,
    ) -> Option<Self> {
        if !matches!(granule_shift, 12 | 14 | 16) || ipa_bits < 32 || ipa_bits > 52 {
            return None;
        }
        if start_level < -1 || start_level >= LAST_LEVEL {
            return None;
        }
        let geometry = Self { ipa_bits, granule_shift, start_level };
        if geometry.level_shift(start_level) >= ipa_bits as u32
            || geometry.root_tables() > MAX_ROOT_TABLES
        {
            return None;
        }
        Some(geometry)
    }

    /// Width of the IPA space in bits, the shared half included.
    #[must_use]
    pub const fn ipa_bits(&self) -> u8 {
        self.ipa_bits
    }

    /// Level of the root tables.
    #[must_use]
    pub const fn start_level(&self) -> i8 {
        self.start_level
    }

    /// Bytes of a granule, which is also the size of a table.
    #[must_use]
    pub const fn granule(&self) -> u64 {
        1 << self.granule_shift
    }

    /// log2 of the entries of a table.
    const fn level_bits(&self) -> u32 {
        self.granule_shift as u32 - 3
    }

    /// log2 of the bytes that one entry at `level` covers. Levels that do not exist count as the nearest
    /// one that does, since levels come from the RMM.
    const fn level_shift(&self, level: i8) -> u32 {
        let level = match level {
            ..=-1 => -1,
            LAST_LEVEL.. => LAST_LEVEL,
            level => level,
        };
        self.granule_shift as u32 + self.level_bits() * (LAST_LEVEL - level) as u32
    }

    /// Bytes that one entry at `level` (between -1 and 3) covers.
    #[must_use]
    pub const fn entry_bytes(&self, level: i8) -> u64 {
        1 << self.level_shift(level)
    }

    /// Bytes that one table at `level` covers.
    #[must_use]
    pub const fn table_bytes(&self, level: i8) -> u64 {
        1 << (self.level_shift(level) + self.level_bits())
    }

    /// Entries of one table.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        1 << self.level_bits()
    }

    /// Number of root tables, contiguous and aligned to their total size.
    #[must_use]
    pub const fn root_tables(&self) -> u64 {
        let covered = self.level_shift(self.start_level) + self.level_bits();
        if self.ipa_bits as u32 > covered { 1 << (self.ipa_bits as u32 - covered) } else { 1 }
    }

    /// The bit that makes an IPA unprotected (shared).
    #[must_use]
    pub const fn shared_bit(&self) -> u64 {
        1 << (self.ipa_bits - 1)
    }

    /// Whether the IPA lies in the protected half.
    #[must_use]
    pub const fn is_protected(&self, ipa: Ipa) -> bool {
        ipa.get() < self.shared_bit()
    }

    /// First address after the IPA space.
    #[must_use]
    pub const fn end(&self) -> Ipa {
        Ipa::new(1 << self.ipa_bits)
    }

    /// Whether `base..top` is a non-empty, granule-aligned range inside the protected half.
    #[must_use]
    pub const fn is_protected_range(&self, base: Ipa, top: Ipa) -> bool {
        base.get() < top.get()
            && top.get() <= self.shared_bit()
            && base.is_aligned(self.granule())
            && top.is_aligned(self.granule())
    }

    /// Whether `base..top` is a non-empty, granule-aligned range inside the shared half.
    #[must_use]
    pub const fn is_shared_range(&self, base: Ipa, top: Ipa) -> bool {
        base.get() < top.get()
            && base.get() >= self.shared_bit()
            && top.get() <= self.end().get()
            && base.is_aligned(self.granule())
            && top.is_aligned(self.granule())
    }

    /// The lowest level, not below `floor`, at which one entry begins at `base` and ends by `top`.
    #[must_use]
    pub const fn largest_level(&self, base: u64, top: u64, floor: i8) -> i8 {
        let mut level = if floor > self.start_level { floor } else { self.start_level };
        while level < LAST_LEVEL {
            let size = self.entry_bytes(level);
            if base & (size - 1) == 0 && top - base >= size {
                return level;
            }
            level += 1;
        }
        LAST_LEVEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_tables_follow_the_reference() {
        for (bits, level, tables) in [
            (32, 2, 4),
            (33, 2, 8),
            (34, 2, 16),
            (32, 1, 1),
            (39, 1, 1),
            (40, 1, 2),
            (43, 1, 16),
            (40, 0, 1),
            (48, 0, 1),
            (52, 0, 16),
            (52, -1, 1),
        ] {
            let geometry = Geometry::with_start_level(bits, 12, level).expect("valid");
            assert_eq!(geometry.root_tables(), tables, "{bits} bits at level {level}");
        }
        for (bits, level) in [(35, 2), (44, 1), (31, 2), (53, -1), (40, 3), (39, 0)] {
            assert!(Geometry::with_start_level(bits, 12, level).is_none(), "{bits}, {level}");
        }
    }

    #[test]
    fn start_level_is_chosen_for_large_entries() {
        for (bits, level) in [(32, 1), (43, 1), (44, 0), (48, 0), (52, 0)] {
            assert_eq!(Geometry::new(bits, 12).map(|g| g.start_level()), Some(level));
        }
    }

    #[test]
    fn sizes_follow_the_granule() {
        let small = Geometry::new(40, 12).expect("valid");
        assert_eq!(small.entry_bytes(3), 4096);
        assert_eq!(small.entry_bytes(2), 2 << 20);
        assert_eq!(small.entry_bytes(1), 1 << 30);
        let large = Geometry::with_start_level(42, 16, 2).expect("valid");
        assert_eq!(large.entry_bytes(2), 512 << 20);
        assert_eq!(large.entries(), 8192);
    }

    #[test]
    fn largest_level_needs_alignment_and_length() {
        let geometry = Geometry::new(40, 12).expect("valid");
        let gib = 1 << 30;
        assert_eq!(geometry.largest_level(gib, 3 * gib, 0), 1);
        assert_eq!(geometry.largest_level(gib, 2 * gib - 1, 0), 2);
        assert_eq!(geometry.largest_level(gib, 2 * gib, 2), 2);
        assert_eq!(geometry.largest_level(0x1000, 2 * gib, 0), 3);
    }
}
