//! What the plugin of `tests/count` wrote.

use anyhow::{Context, Result, bail};

use super::symbols::Symbols;

/// Instructions of hypervisor, RMM, EL3 firmware and guests.
pub(super) type Counts = [u64; 4];

/// Index of the hypervisor in [`Counts`].
pub(super) const HYPERVISOR: usize = 0;

/// Index of the EL3 firmware in [`Counts`].
const FIRMWARE: usize = 2;

/// Work that grows with the size of images and VMs: part of a function's name, and what it is.
const BULK: &[(&str, &str)] = &[
    ("arch::bulk::zero", "zeroing"),
    ("arch::bulk::copy", "copying"),
    ("arch::crc::", "checksums"),
    ("arch::cache::", "cache maintenance"),
];

/// How often one instruction of the hypervisor ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Executions {
    /// Bytes from the start of the image.
    offset: u64,
    total: u64,
    before_first_guest: u64,
}

/// What was counted in one run.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) total: Counts,
    /// Until the first instruction of a guest.
    pub(super) first_guest: Option<Counts>,
    intervals: Vec<(u16, Counts)>,
    profile: Vec<Executions>,
}

impl Counted {
    /// Whether `other` is the same. EL3's total is left out: its last code runs from its order to power
    /// off until QEMU obeys, and how long that takes is up to the development machine.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        let total = |counted: &Self| {
            let mut total = counted.total;
            total[FIRMWARE] = 0;
            total
        };
        total(self) == total(other)
            && self.first_guest == other.first_guest
            && self.intervals == other.intervals
            && self.profile == other.profile
    }

    /// Reads the plugin's result.
    ///
    /// # Errors
    ///
    /// Names the line that is not as `tests/count` writes it.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut counted = Self::default();
        for line in text.lines() {
            counted.take(line).with_context(|| format!("counts: {line:?}"))?;
        }
        Ok(counted)
    }

    fn take(&mut self, line: &str) -> Result<()> {
        let mut words = line.split(' ');
        let kind = words.next();
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        match (kind, numbers.as_slice()) {
            (Some("total"), &[h, r, f, g]) => self.total = [h, r, f, g],
            (Some("first-guest"), &[h, r, f, g]) => self.first_guest = Some([h, r, f, g]),
            (Some("interval"), &[id, h, r, f, g]) => {
                self.intervals.push((id.try_into()?, [h, r, f, g]));
            }
            (Some("pc"), &[offset, total, before_first_guest]) => {
                self.profile.push(Executions { offset, total, before_first_guest });
            }
            _ => bail!("unknown"),
        }
        Ok(())
    }

    /// The counts of all intervals `id`, in order.
    pub(super) fn intervals(&self, id: u16) -> Vec<Counts> {
        self.intervals.iter().filter(|(other, _)| *other == id).map(|(_, counts)| *counts).collect()
    }

    /// Prints which part of the way to the first guest is bulk work.
    pub(super) fn print_boot(&self, symbols: &Symbols) {
        let before = self.profile.iter().map(|e| (e.offset, e.before_first_guest));
        let functions = symbols.attribute(before);
        let all: u64 = functions.iter().map(|(_, count)| count).sum();
        if self.first_guest.is_none() || all == 0 {
            return;
        }
        let parts = BULK.iter().map(|(name, what)| {
            let bulk = functions.iter().filter(|(function, _)| function.contains(name));
            format!("{what} {}", bulk.map(|(_, count)| count).sum::<u64>())
        });
        println!("  of those to the first guest: {}", parts.collect::<Vec<_>>().join(", "));
    }

    /// Prints the functions that most instructions of the hypervisor were spent in, before and
    /// after the first guest instruction.
    pub(super) fn print_profile(&self, symbols: &Symbols, lines: usize) {
        let before = self.profile.iter().map(|e| (e.offset, e.before_first_guest));
        let after = self.profile.iter().map(|e| (e.offset, e.total - e.before_first_guest));
        for (when, functions) in [
            ("before the first guest", symbols.attribute(before)),
            ("after", symbols.attribute(after)),
        ] {
            println!("  {when}:");
            for (function, count) in functions.iter().take(lines) {
                println!("    {count:>12} {function}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_plugin() {
        let text = "total 1 2 3 4\nfirst-guest 1 0 0 0\ninterval 3 5 0 0 6\ninterval 4 7 0 0 0\n\
                    interval 3 6 0 0 6\npc 64 7 2\n";
        let counted = Counted::parse(text).unwrap();
        assert_eq!(counted.total, [1, 2, 3, 4]);
        assert_eq!(counted.first_guest, Some([1, 0, 0, 0]));
        assert_eq!(counted.intervals(3), [[5, 0, 0, 6], [6, 0, 0, 6]]);
        let executions = Executions { offset: 64, total: 7, before_first_guest: 2 };
        assert_eq!(counted.profile, [executions]);
    }

    #[test]
    fn lines_that_are_not() {
        for line in ["total 1 2 3", "interval 70000 1 2 3 4", "pc a 1 2", "else 1"] {
            assert!(Counted::parse(line).is_err(), "{line}");
        }
    }
}
