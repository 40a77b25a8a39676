//! Intervals that guests mark.

use std::collections::BTreeMap;

use crate::config::PARTS;

/// Instructions of each part.
pub(crate) type Counts = [u64; PARTS.len()];

/// Bit of a mark that says where an interval ends.
const END: u16 = 0x8000;

/// The mark that an instruction is, if it is one: the immediate of `movz xzr, #imm`.
pub(crate) fn mark(instruction: u32) -> Option<u16> {
    /// MOVZ of 64 bits without shift to register 31.
    const MOVZ_XZR: u32 = 0xd280_001f;
    const IMMEDIATE: u32 = 0xffff << 5;
    (instruction & !IMMEDIATE == MOVZ_XZR).then_some(((instruction & IMMEDIATE) >> 5) as u16)
}

/// Intervals so far.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    begun: BTreeMap<u16, Counts>,
    /// Interval IDs and counts, in the order in which they ended.
    pub(crate) ended: Vec<(u16, Counts)>,
}

impl Intervals {
    /// A guest passed a mark when the counts were `now`. An end without a beginning is no interval.
    pub(crate) fn pass(&mut self, mark: u16, now: Counts) {
        let id = mark & !END;
        if mark & END == 0 {
            self.begun.insert(id, now);
        } else if let Some(then) = self.begun.remove(&id) {
            self.ended.push((id, std::array::from_fn(|part| now[part] - then[part])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        assert_eq!(mark(0xd280_001f), Some(0));
        assert_eq!(mark(0xd280_003f), Some(1));
        assert_eq!(mark(0xd290_003f), Some(0x8001));
        // To a real register, with a shift, of 32 bits.
        assert_eq!(mark(0xd280_0020), None);
        assert_eq!(mark(0xd2a0_003f), None);
        assert_eq!(mark(0x5280_003f), None);
    }

    #[test]
    fn intervals_overlap() {
        let mut intervals = Intervals::default();
        intervals.pass(END | 1, [9, 9, 9, 9]);
        intervals.pass(1, [10, 0, 0, 0]);
        intervals.pass(2, [20, 0, 0, 0]);
        intervals.pass(END | 1, [30, 1, 0, 0]);
        intervals.pass(END | 2, [45, 1, 0, 7]);
        assert_eq!(intervals.ended, [(1, [20, 1, 0, 0]), (2, [25, 1, 0, 7])]);
    }
}
