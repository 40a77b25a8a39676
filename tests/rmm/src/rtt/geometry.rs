//! Shape of a realm's translation: levels, entry sizes, start tables, control register values.

use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::platform::{MachineFeatures, Stage2Regime};

/// Level of page entries.
pub(crate) const PAGE_LEVEL: i64 = 3;
/// Lowest level that may hold block entries.
pub(crate) const MIN_BLOCK_LEVEL: i64 = 1;
/// Entries of one table.
pub(crate) const ENTRIES: u64 = 512;
/// Fewest IPA bits of a realm.
pub(crate) const MIN_IPA_BITS: u64 = 32;
/// Most IPA bits without LPA2.
pub(crate) const MAX_IPA_BITS: u64 = 48;

const LEVEL_BITS: u64 = 9;
const PAGE_BITS: u64 = 12;
/// Most start tables side by side, as a number of bits.
const MAX_CONCAT_BITS: u64 = 4;

/// Bytes that one entry at `level` (0 to 3) covers.
pub(crate) fn entry_size(level: i64) -> u64 {
    GRANULE_SIZE << (LEVEL_BITS * (PAGE_LEVEL - level).unsigned_abs())
}

/// Shape and place of one realm's translation tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage2 {
    /// First start table.
    pub(crate) root: Pa,
    pub(crate) start_level: i64,
    /// Start tables side by side.
    pub(crate) num_start: u64,
    pub(crate) ipa_bits: u64,
    pub(crate) vmid: u64,
}

impl Stage2 {
    /// First address beyond the IPA space.
    pub(crate) fn ipa_size(&self) -> u64 {
        1 << self.ipa_bits
    }

    /// True if `ipa` is in the protected half.
    pub(crate) fn is_protected(&self, ipa: Ipa) -> bool {
        ipa.0 < self.ipa_size() / 2
    }

    /// True if `ipa` is in the IPA space and aligned to entries of `level`.
    pub(crate) fn is_entry_address(&self, ipa: Ipa, level: i64) -> bool {
        ipa.0 < self.ipa_size() && ipa.is_aligned(entry_size(level))
    }

    /// Table and index of the start level entry for `ipa`, which is in the IPA space.
    pub(crate) fn start_entry(&self, ipa: Ipa) -> (Pa, u64) {
        let index = ipa.0 / entry_size(self.start_level);
        (self.root.offset(index / ENTRIES * GRANULE_SIZE), index % ENTRIES)
    }

    /// Values of the translation control registers.
    pub(crate) fn regime(&self, features: &MachineFeatures) -> Stage2Regime {
        const RES1: u64 = 1 << 31;
        const NSA: u64 = 1 << 30;
        const VS_16_BIT: u64 = 1 << 19;
        const SH0_INNER: u64 = 0b11 << 12;
        const ORGN0_WB: u64 = 0b01 << 10;
        const IRGN0_WB: u64 = 0b01 << 8;
        let sl0 = match self.start_level {
            0 => 2,
            1 => 1,
            _ => 0,
        };
        let ps = match features.pa_bits {
            0..36 => 0,
            36..40 => 1,
            40..42 => 2,
            42..44 => 3,
            44..48 => 4,
            _ => 5,
        };
        let vs = if features.vmid_bits == 16 { VS_16_BIT } else { 0 };
        let vtcr = RES1 | NSA | vs | SH0_INNER | ORGN0_WB | IRGN0_WB;
        Stage2Regime {
            vttbr: self.vmid << 48 | self.root.0,
            vtcr: vtcr | ps << 16 | sl0 << 6 | (64 - self.ipa_bits),
        }
    }
}

/// Number of start tables for an IPA width and start level; none if they do not go together.
/// The hardware has no level 0 below 44 bits of physical address.
pub(crate) fn start_tables(ipa_bits: u64, start_level: i64, pa_bits: u8) -> Option<u64> {
    if !(MIN_IPA_BITS..=MAX_IPA_BITS).contains(&ipa_bits)
        || !(0..=PAGE_LEVEL).contains(&start_level)
        || (start_level == 0 && pa_bits < 44)
    {
        return None;
    }
    let below = PAGE_BITS + LEVEL_BITS * (PAGE_LEVEL - start_level).unsigned_abs();
    let one_table = below + LEVEL_BITS;
    let most = if start_level == 0 { one_table } else { one_table + MAX_CONCAT_BITS };
    if ipa_bits <= below || ipa_bits > most {
        return None;
    }
    Some(1 << ipa_bits.saturating_sub(one_table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_tables_follow_the_width() {
        assert_eq!(start_tables(32, 2, 48), Some(4));
        assert_eq!(start_tables(34, 2, 48), Some(16));
        assert_eq!(start_tables(35, 2, 48), None);
        assert_eq!(start_tables(32, 1, 48), Some(1));
        assert_eq!(start_tables(39, 1, 48), Some(1));
        assert_eq!(start_tables(43, 1, 48), Some(16));
        assert_eq!(start_tables(44, 1, 48), None);
        assert_eq!(start_tables(39, 0, 48), None);
        assert_eq!(start_tables(40, 0, 48), Some(1));
        assert_eq!(start_tables(40, 0, 40), None);
        assert_eq!(start_tables(48, 0, 48), Some(1));
        assert_eq!(start_tables(31, 2, 48), None);
        assert_eq!(start_tables(32, 3, 48), None);
        assert_eq!(start_tables(40, -1, 48), None);
    }
}
