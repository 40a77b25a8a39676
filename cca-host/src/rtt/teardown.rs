//! Taking a realm's memory away again: sweeps that follow the skip addresses of the RMM.
//!
//! No list of what was mapped is needed: the RMM names each granule that it gives back, and the ledger
//! knows whether it was ours.

use mm::ledger::RmmUse;
use mm::{Ipa, PAGE_SIZE};

use super::{Outcome, Tables, level_arg};
use crate::command::Command;
use crate::conduit::Host;
use crate::error::{BadAnswer, Error};
use crate::geometry::LAST_LEVEL;
use crate::rmm::Reply;
use crate::status::Status;

/// Unexpected refusals after which a sweep gives up.
const MAX_REFUSALS: u32 = 16;

/// Granules of a run after which it is given back even if the next one follows.
const MAX_RUN: u64 = 512;

/// Result of a sweep: what came back, what went wrong, and how many calls it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Swept {
    pub(crate) outcome: Outcome,
    pub(crate) calls: u64,
    refusals: u32,
}

impl Swept {
    /// Records an error unless there was one before.
    pub(crate) fn note(&mut self, error: Error) {
        self.outcome.note(error);
    }

    /// Records an error; returns whether the sweep should end.
    pub(crate) fn refuse(&mut self, error: Error) -> bool {
        self.outcome.note(error);
        self.refusals += 1;
        self.refusals >= MAX_REFUSALS
    }
}

/// Contiguous granules that the RMM has given back, not yet undelegated.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    base: u64,
    count: u64,
}

impl Run {
    /// Adds a granule if it follows; otherwise returns the run so far and starts anew with it.
    fn push(&mut self, granule: u64) -> Option<Self> {
        if (1..MAX_RUN).contains(&self.count)
            && granule == self.base.wrapping_add(self.count * PAGE_SIZE)
        {
            self.count += 1;
            return None;
        }
        let full = *self;
        *self = Self { base: granule, count: 1 };
        (full.count > 0).then_some(full)
    }
}

impl<H: Host> Tables<'_, '_, H> {
    /// Unmaps and gives back all protected memory of the realm, then all tables below the roots, from the
    /// last level up.
    pub(crate) fn tear_down(&self, shared_entries: u64) -> Swept {
        let mut swept = Swept::default();
        let budget = self.sweep_budget(shared_entries);
        self.unmap(0, self.geometry.shared_bit(), budget, &mut swept);
        for level in (self.geometry.start_level() + 1..=LAST_LEVEL).rev() {
            self.destroy_tables(level, budget, &mut swept);
        }
        swept
    }

    /// Unmaps and gives back the pages of a range that has become EMPTY, and folds the tables of it that
    /// lie inside completely. Returns the number of calls.
    pub(super) fn unmap_emptied(&self, base: u64, top: u64) -> Result<u64, Error> {
        let mut swept = Swept::default();
        let entries = (top - base) / self.geometry.granule();
        self.unmap(base, top, 2 * entries + self.sweep_budget(0), &mut swept);
        if let Some(error) = swept.outcome.error {
            return Err(error);
        }
        let span = self.geometry.table_bytes(LAST_LEVEL);
        let mut table = base.next_multiple_of(span);
        while swept.outcome.returned.freed > 0 && table + span <= top {
            self.fold(Ipa::new(table), LAST_LEVEL)?;
            swept.calls += 1;
            table += span;
        }
        Ok(swept.calls)
    }

    /// Unmaps the protected memory of `base..top`.
    fn unmap(&self, base: u64, top: u64, budget: u64, swept: &mut Swept) {
        if self.rmm.is_v2() {
            self.unmap_v2(base, top, budget, swept);
        } else {
            self.unmap_v1(base, top, budget, swept);
        }
    }

    /// Unmaps page by page (DATA_DESTROY). Blocks are split first: 1.0 has no call for them.
    fn unmap_v1(&self, base: u64, top: u64, budget: u64, swept: &mut Swept) {
        let command = Command::DataDestroy;
        let limit = swept.calls.saturating_add(budget);
        let mut at = base;
        let mut run = Run::default();
        // Level of the last block split at this address.
        let mut split = i8::MIN;
        while at < top {
            if swept.calls >= limit {
                swept.outcome.note(Error::progress(command, base, at));
                break;
            }
            let reply = self.insist(command, [self.rd.get(), at], swept);
            let (data, next) = (reply.x[1], reply.x[2]);
            let skip = (next > at && next.is_multiple_of(self.geometry.granule())).then_some(next);
            match reply.status {
                Status::Success => {
                    if let Some(full) = run.push(data) {
                        self.collect(command, full.base, full.count, RmmUse::Data, swept);
                    }
                    at = skip.unwrap_or_else(|| self.after(at, LAST_LEVEL));
                }
                Status::Rtt { level } => match skip {
                    Some(next) => at = next,
                    None if level >= LAST_LEVEL => at = self.after(at, LAST_LEVEL),
                    None => match self.split(command, at, level, split) {
                        Ok(()) => {
                            split = level;
                            continue;
                        }
                        Err(error) if swept.refuse(error) => break,
                        Err(_) => at = self.after(at, level),
                    },
                },
                status => {
                    if swept.refuse(Error::Refused { command, status }) {
                        break;
                    }
                    at = self.after(at, LAST_LEVEL);
                }
            }
            split = i8::MIN;
        }
        if run.count > 0 {
            self.collect(command, run.base, run.count, RmmUse::Data, swept);
        }
    }

    /// Splits the block at `at` that ended a walk at `level`; `last` is the level split before, if any.
    pub(crate) fn split(
        &self,
        command: Command,
        at: u64,
        level: i8,
        last: i8,
    ) -> Result<(), Error> {
        if level <= last || !(self.geometry.start_level()..LAST_LEVEL).contains(&level) {
            return Err(Error::Misbehaved { command, answer: BadAnswer::Level(level) });
        }
        self.create_tables(Ipa::new(at), level, level + 1)
    }

    /// Destroys all tables at `level`, over the protected and the shared half.
    ///
    /// Shared mappings do not keep a table alive and vanish with it.
    fn destroy_tables(&self, level: i8, budget: u64, swept: &mut Swept) {
        let command = Command::RttDestroy;
        let limit = swept.calls.saturating_add(budget);
        let end = self.geometry.end().get();
        let mut at = 0;
        while at < end {
            if swept.calls >= limit {
                swept.outcome.note(Error::progress(command, 0, at));
                break;
            }
            let reply = self.insist(command, [self.rd.get(), at, level_arg(level)], swept);
            let (table, next) = (reply.x[1], reply.x[2]);
            let skip = (next > at && next.is_multiple_of(self.geometry.granule())).then_some(next);
            match reply.status {
                Status::Success => {
                    self.collect(command, table, 1, RmmUse::Rtt, swept);
                    at = skip.unwrap_or_else(|| self.after(at, level - 1));
                }
                // The table still has entries in use.
                Status::Rtt { level: reached } if reached >= level => {
                    let error = Error::Refused { command, status: Status::Rtt { level: reached } };
                    if swept.refuse(error) {
                        break;
                    }
                    at = self.after(at, level - 1);
                }
                Status::Rtt { level: reached } => {
                    at = skip.unwrap_or_else(|| self.after(at, reached));
                }
                status => {
                    if swept.refuse(Error::Refused { command, status }) {
                        break;
                    }
                    at = self.after(at, level - 1);
                }
            }
        }
    }

    /// Takes granules back and undelegates them; one by one where the ledger does not know all of them.
    pub(crate) fn collect(
        &self,
        command: Command,
        base: u64,
        count: u64,
        used_for: RmmUse,
        swept: &mut Swept,
    ) {
        match self.rmm.take_back(command, base, count, used_for, self.owner) {
            Ok(frames) => swept.outcome.returned += self.rmm.retire(frames),
            // No answer is trusted for more granules than a run or a list entry can sensibly have.
            Err(error) if count == 1 || count > MAX_RUN => {
                swept.refuse(error);
            }
            Err(_) => {
                for index in 0..count {
                    let granule = base.wrapping_add(index * PAGE_SIZE);
                    self.collect(command, granule, 1, used_for, swept);
                }
            }
        }
    }

    /// Makes a call; once more if it is refused for a reason that has nothing to do with the tables.
    pub(crate) fn insist<const N: usize>(
        &self,
        command: Command,
        args: [u64; N],
        swept: &mut Swept,
    ) -> Reply {
        let mut reply = Reply::failed();
        for _ in 0..2 {
            swept.calls += 1;
            match self.rmm.operate(command, args, self.owner) {
                Ok(answer) => reply = answer,
                Err(error) => swept.outcome.note(error),
            }
            if matches!(reply.status, Status::Success | Status::Rtt { .. }) {
                break;
            }
        }
        reply
    }
}
