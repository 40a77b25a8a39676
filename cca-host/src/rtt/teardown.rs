//! Taking a whole realm apart, in steps of a bounded number of calls.

use mm::ledger::RmmUse;

use super::sweep::Sweep;
use super::{Outcome, Tables, level_arg};
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::geometry::LAST_LEVEL;
use crate::status::Status;

/// Unexpected refusals after which a stage gives up.
const MAX_REFUSALS: u32 = 16;

/// How far the memory of a realm has been taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Teardown {
    stage: Stage,
    /// Look everywhere, not only where something is known to be: a refusal may have left something behind.
    thorough: bool,
    /// What came back and what went wrong.
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing has been done.
    Begin,
    /// Memory that was on its way into the realm goes back.
    Supply,
    /// Protected memory.
    Data(Sweep),
    /// Tables of a level, from the last one up.
    Tables { level: i8, at: u64, calls_left: u64, refusals: u32 },
    /// All that can be taken back is.
    Done,
}

impl Teardown {
    pub(crate) const fn new(thorough: bool) -> Self {
        let outcome = Outcome { returned: crate::rmm::Returned { freed: 0, lost: 0 }, error: None };
        Self { stage: Stage::Begin, thorough, outcome }
    }

    pub(crate) const fn is_thorough(&self) -> bool {
        self.thorough
    }
}

impl<H: Host> Tables<'_, '_, H> {
    /// Unmaps and gives back all protected memory of the realm, then all tables below the roots, from the
    /// last level up, until all is done or the budget is spent. Returns whether all is done.
    pub(crate) fn tear_down(&mut self, teardown: &mut Teardown, shared_entries: u64) -> bool {
        while self.give_back(&mut teardown.outcome) {
            let limit = self.sweep_calls(shared_entries);
            match &mut teardown.stage {
                Stage::Begin => {
                    self.book.emptied = None;
                    teardown.stage = Stage::Supply;
                }
                Stage::Supply => {
                    if !self.withdraw(0, u64::MAX) {
                        return false;
                    }
                    let block = self.geometry.entry_bytes(LAST_LEVEL - 1);
                    let low = self.book.data.span().start & !(block - 1);
                    let base = if teardown.thorough { 0 } else { low };
                    let top = self.geometry.shared_bit();
                    teardown.stage = Stage::Data(Sweep::new(base, top, limit, teardown.thorough));
                }
                Stage::Data(sweep) => {
                    let done = self.sweep(sweep);
                    teardown.outcome.absorb(&mut sweep.outcome);
                    if !done {
                        return false;
                    }
                    self.free_list_page();
                    teardown.stage = self.tables_from(LAST_LEVEL, teardown.thorough, limit);
                }
                Stage::Tables { .. } => {
                    if self.budget.is_spent() {
                        return false;
                    }
                    self.destroy_next_table(teardown, limit);
                }
                Stage::Done => return true,
            }
        }
        false
    }

    /// The first level at or above `level` that has tables, and where they begin.
    fn tables_from(&mut self, level: i8, thorough: bool, calls_left: u64) -> Stage {
        for level in (self.geometry.start_level() + 1..=level).rev() {
            let span = self.book.tables(level).span();
            if thorough || !span.is_empty() {
                let at = if thorough { 0 } else { span.start };
                return Stage::Tables { level, at, calls_left, refusals: 0 };
            }
        }
        Stage::Done
    }

    /// Destroys a table (RTT_DESTROY), or skips to the next one.
    ///
    /// Shared mappings do not keep a table alive and vanish with it.
    fn destroy_next_table(&mut self, teardown: &mut Teardown, limit: u64) {
        let Stage::Tables { level, at, calls_left, refusals } = &mut teardown.stage else { return };
        let command = Command::RttDestroy;
        let nothing_left = !teardown.thorough && self.book.tables(*level).count() == 0;
        if *at >= self.geometry.end().get() || nothing_left || *refusals >= MAX_REFUSALS {
            teardown.stage = self.tables_from(*level - 1, teardown.thorough, limit);
            return;
        }
        if *calls_left == 0 {
            teardown.outcome.note(Error::progress(command, 0, *at));
            *refusals = MAX_REFUSALS;
            return;
        }
        let args = [self.rd.get(), *at, level_arg(*level)];
        let before = self.budget.spent();
        let reply = self.insist(command, args, &mut teardown.outcome);
        *calls_left = calls_left.saturating_sub(self.budget.spent() - before);
        let (table, next) = (reply.x[1], reply.x[2]);
        let skip = (next > *at && next.is_multiple_of(self.geometry.granule())).then_some(next);
        let behind = self.after(*at, *level - 1);
        match reply.status {
            Status::Success => {
                self.book.tables(*level).remove(1);
                self.take_back_one(command, table, RmmUse::Rtt, true);
                *at = skip.unwrap_or(behind);
            }
            // The walk ended above: there is no table.
            Status::Rtt { level: reached } if reached < *level => {
                *at = skip.unwrap_or_else(|| self.after(*at, reached));
            }
            // Something else, or the table still has entries in use.
            status => {
                teardown.outcome.note(Error::Refused { command, status });
                *refusals += 1;
                *at = behind;
            }
        }
    }
}
