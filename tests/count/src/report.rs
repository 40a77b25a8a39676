//! The result as text. Each line is a word and numbers:
//!
//! - `total H R F G`: instructions of hypervisor, RMM, firmware and guests in all;
//! - `first-guest H R F G`: the same when the first instruction of a guest was about to run;
//! - `interval ID H R F G`: the same between two marks, in the order in which they ended;
//! - `pc OFFSET N FIRST`: an instruction of the hypervisor, by its offset in the image, how often
//!   it ran, and how often before the first guest did.

use std::fmt::Write;

use crate::intervals::{Counts, Intervals};

/// How often one instruction of the hypervisor ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Executions {
    /// Bytes from the start of the image.
    pub(crate) offset: u64,
    pub(crate) total: u64,
    pub(crate) before_first_guest: u64,
}

/// Writes the result; `first_guest` is `None` if no guest ran.
pub(crate) fn write(
    total: Counts,
    first_guest: Option<Counts>,
    intervals: &Intervals,
    profile: &[Executions],
) -> String {
    let mut text = String::new();
    let mut line = |head: &str, counts: &[u64]| {
        text.push_str(head);
        for count in counts {
            // Writing to a string does not fail.
            let _ = write!(text, " {count}");
        }
        text.push('\n');
    };
    line("total", &total);
    if let Some(counts) = first_guest {
        line("first-guest", &counts);
    }
    for (id, counts) in &intervals.ended {
        line(&format!("interval {id}"), counts);
    }
    for executions in profile {
        line("pc", &[executions.offset, executions.total, executions.before_first_guest]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut intervals = Intervals::default();
        intervals.pass(3, [0; 4]);
        intervals.pass(0x8003, [5, 0, 0, 6]);
        let profile = [Executions { offset: 64, total: 7, before_first_guest: 2 }];
        let text = write([1, 2, 3, 4], Some([1, 0, 0, 0]), &intervals, &profile);
        assert_eq!(text, "total 1 2 3 4\nfirst-guest 1 0 0 0\ninterval 3 5 0 0 6\npc 64 7 2\n");
    }
}
