//! Protected memory on its way out: unmapped by following the skip addresses of the RMM, taken back, undelegated.
//!
//! No list of what was mapped is needed: the RMM names each granule that it gives back, and the ledger
//! knows whether it was ours. The work goes on over several calls of the driver if it has to.

use mm::ledger::{Delegated, Frames, RmmUse, Undelegated};
use mm::{Ipa, PAGE_SIZE};

use super::{Outcome, Tables};
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{BadAnswer, Error};
use crate::geometry::LAST_LEVEL;
use crate::rmm::Reply;
use crate::status::Status;
use crate::v2::{AddrRange, DESCRIPTOR_BYTES};

/// Unexpected refusals after which a sweep gives up.
const MAX_REFUSALS: u32 = 16;

/// Granules that the RMM has given back and that are to be undelegated.
pub(crate) struct Returns {
    /// Page for lists of ranges.
    pub(crate) page: Option<Frames<Undelegated>>,
    /// Entries of the list: the next one, and how many there are.
    entries: core::ops::Range<u64>,
    /// Rest of the range that is being taken back.
    range: Piece,
    /// Granules that were taken back.
    run: Option<Frames<Delegated>>,
}

/// Granules named by the RMM, to be taken back in pieces.
#[derive(Clone, Copy)]
struct Piece {
    base: u64,
    count: u64,
    /// Most granules to take back at a time.
    at_a_time: u64,
    /// What the RMM has used them for.
    used_for: RmmUse,
    /// The call that returned them.
    command: Command,
    /// Whether the pool may keep some.
    pooled: bool,
}

impl Returns {
    pub(crate) const EMPTY: Self = Self {
        page: None,
        entries: 0..0,
        range: Piece {
            base: 0,
            count: 0,
            at_a_time: 0,
            used_for: RmmUse::Data,
            command: Command::RttDataUnmap,
            pooled: false,
        },
        run: None,
    };
}

/// The unmapping of a range, and how far it got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    /// Where to go on.
    pub(crate) at: u64,
    top: u64,
    base: u64,
    /// Level of the last block split at `at`.
    split: i8,
    /// The block that was split last: its granules stay together.
    split_block: (u64, u64),
    /// Calls after which the sweep gives up: each call frees a granule of ours, or skips to the next entry in use or
    /// the end of a table.
    calls_left: u64,
    refusals: u32,
    /// To the end of the range, even if nothing more is known to be mapped.
    thorough: bool,
    /// What came back and what went wrong.
    pub(crate) outcome: Outcome,
}

impl Sweep {
    pub(crate) fn new(base: u64, top: u64, calls: u64, thorough: bool) -> Self {
        Self {
            at: base,
            top,
            base,
            split: i8::MIN,
            split_block: (0, 0),
            calls_left: calls,
            refusals: 0,
            thorough,
            outcome: Outcome::default(),
        }
    }

    /// Ends the sweep where it is.
    fn give_up(&mut self, error: Error) {
        self.outcome.note(error);
        self.at = self.top;
    }

    /// Goes on at `next`.
    fn advance(&mut self, next: u64) {
        self.at = next;
        self.split = i8::MIN;
    }

    /// Records a refusal and goes on at `next`, or gives up after too many.
    fn refuse(&mut self, error: Error, next: u64) {
        self.outcome.note(error);
        self.refusals += 1;
        self.advance(if self.refusals >= MAX_REFUSALS { self.top } else { next });
    }
}

/// A range that the realm has given up: unmapped first, then tables in it are folded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emptied {
    sweep: Sweep,
    /// Next table to fold.
    fold_at: u64,
}

impl<H: Host> Tables<'_, '_, H> {
    /// Unmaps the protected memory of a sweep's range and gives it back, until the sweep is done or the budget is
    /// spent. Returns whether all is done.
    pub(crate) fn sweep(&mut self, sweep: &mut Sweep) -> bool {
        while self.give_back(&mut sweep.outcome) {
            if sweep.at >= sweep.top || (!sweep.thorough && self.book.data.count() == 0) {
                return true;
            }
            if self.budget.is_spent() {
                return false;
            }
            if sweep.calls_left == 0 {
                let command = self.unmap_command();
                sweep.give_up(Error::progress(command, sweep.base, sweep.at));
                continue;
            }
            let before = self.budget.spent();
            if self.rmm.is_v2() {
                self.unmap_next_v2(sweep);
            } else {
                self.unmap_next_v1(sweep);
            }
            let calls = self.budget.spent() - before;
            sweep.calls_left = sweep.calls_left.saturating_sub(calls);
        }
        false
    }

    fn unmap_command(&self) -> Command {
        if self.rmm.is_v2() { Command::RttDataUnmap } else { Command::DataDestroy }
    }

    /// Begins to unmap what a RIPAS change to EMPTY has left mapped.
    pub(crate) fn begin_emptying(&mut self, base: u64, top: u64) {
        let span = self.book.data.span();
        if base.max(span.start) < top.min(span.end) {
            let granules = (top - base) / self.geometry.granule();
            let sweep = Sweep::new(base, top, 2 * granules + self.sweep_calls(0), false);
            let fold_at = base.next_multiple_of(self.geometry.table_bytes(LAST_LEVEL));
            self.book.emptied = Some(Emptied { sweep, fold_at });
        }
    }

    /// Goes on unmapping and folding what the realm has given up; `false` if the budget is spent before the end.
    pub(crate) fn finish_emptying(&mut self) -> Result<bool, Error> {
        let Some(mut emptied) = self.book.emptied.take() else { return Ok(true) };
        if !self.sweep(&mut emptied.sweep) {
            self.book.emptied = Some(emptied);
            return Ok(false);
        }
        self.free_list_page();
        if let Some(error) = emptied.sweep.outcome.error {
            return Err(error);
        }
        let span = self.geometry.table_bytes(LAST_LEVEL);
        while emptied.sweep.outcome.returned.freed > 0
            && emptied.fold_at + span <= emptied.sweep.top
        {
            if self.budget.is_spent() {
                self.book.emptied = Some(emptied);
                return Ok(false);
            }
            self.fold(Ipa::new(emptied.fold_at), LAST_LEVEL)?;
            emptied.fold_at += span;
        }
        Ok(true)
    }

    /// Unmaps a page (DATA_DESTROY), or skips to the next one. Blocks are split first: 1.0 has no call for them.
    fn unmap_next_v1(&mut self, sweep: &mut Sweep) {
        let command = Command::DataDestroy;
        let at = sweep.at;
        let reply = self.insist(command, [self.rd.get(), at], &mut sweep.outcome);
        let (data, next) = (reply.x[1], reply.x[2]);
        let skip = (next > at && next.is_multiple_of(self.geometry.granule())).then_some(next);
        match reply.status {
            Status::Success => {
                let pooled = !(sweep.split_block.0..sweep.split_block.1).contains(&at);
                self.take_back_one(command, data, RmmUse::Data, pooled);
                sweep.advance(skip.unwrap_or_else(|| self.after(at, LAST_LEVEL)));
            }
            Status::Rtt { level } => match skip {
                Some(next) => sweep.advance(next),
                None if level >= LAST_LEVEL => sweep.advance(self.after(at, LAST_LEVEL)),
                None => self.split_for(sweep, command, level),
            },
            status => {
                sweep.refuse(Error::Refused { command, status }, self.after(at, LAST_LEVEL));
            }
        }
    }

    /// Splits the block at which a sweep has come to a halt.
    fn split_for(&mut self, sweep: &mut Sweep, command: Command, level: i8) {
        let at = sweep.at;
        match self.split(command, at, level, sweep.split) {
            Ok(()) => {
                sweep.split = level;
                let block = self.geometry.entry_bytes(level);
                sweep.split_block = (at & !(block - 1), (at & !(block - 1)) + block);
            }
            Err(error) => sweep.refuse(error, self.after(at, level)),
        }
    }

    /// Unmaps what one call can (RTT_DATA_UNMAP), or skips to the next entry in use.
    fn unmap_next_v2(&mut self, sweep: &mut Sweep) {
        let command = Command::RttDataUnmap;
        let (at, top) = (sweep.at, sweep.top);
        let list = self.list_page();
        let args = self.unmap_args(at, top, list);
        let reply = self.insist(command, args, &mut sweep.outcome);
        match reply.status {
            Status::Success => {
                if list.is_some() {
                    self.book.returns.entries = 0..reply.x[3].min(AddrRange::MAX_LIST);
                } else {
                    self.take_back_range(command, reply.x[2]);
                }
                match self.progress(command, at, top, reply.x[1]) {
                    Ok(next) => sweep.advance(next),
                    Err(error) => sweep.give_up(error),
                }
            }
            Status::Rtt { level } => self.split_for(sweep, command, level),
            status => {
                sweep.refuse(Error::Refused { command, status }, self.after(at, LAST_LEVEL));
            }
        }
    }

    /// Address of a page for lists of ranges. The first draft takes no list, and without a page for one it must do:
    /// each call then returns one range in a register.
    fn list_page(&mut self) -> Option<u64> {
        if !self.maps_blocks() {
            return None;
        }
        if self.book.returns.page.is_none() {
            self.book.returns.page = self.rmm.alloc_interface(self.owner).ok();
        }
        self.book.returns.page.as_ref().map(|page| page.base().get())
    }

    /// Gives the page for lists back.
    pub(crate) fn free_list_page(&mut self) {
        if let Some(page) = self.book.returns.page.take() {
            self.rmm.ledger.free(page);
        }
    }

    /// Notes a granule that the RMM has returned; [`Self::give_back`] sees to it.
    pub(crate) fn take_back_one(
        &mut self,
        command: Command,
        base: u64,
        used_for: RmmUse,
        pooled: bool,
    ) {
        self.book.returns.range = Piece { base, count: 1, at_a_time: 1, used_for, command, pooled };
    }

    /// Notes a range of data granules that the RMM has returned.
    fn take_back_range(&mut self, command: Command, word: u64) {
        let range = AddrRange::decode(word, self.rmm.is_late_draft());
        let count = range.granules();
        self.book.returns.range = Piece {
            base: range.base,
            count,
            at_a_time: self.rmm.take_back_limit().min(count),
            used_for: RmmUse::Data,
            command,
            pooled: true,
        };
    }

    /// Takes back and undelegates all that the RMM has returned; `false` if the budget is spent before.
    pub(crate) fn give_back(&mut self, outcome: &mut Outcome) -> bool {
        let mut refusals = 0;
        loop {
            if let Some(run) = self.book.returns.run.take() {
                let left = self.budget.left();
                let back = self.rmm.undelegate_some(run, left);
                self.budget.spend(back.calls);
                outcome.returned += back.returned;
                if !back.rest.is_empty() {
                    self.book.returns.run = Some(back.rest);
                    return false;
                }
            } else if self.book.returns.range.count > 0 {
                self.take_piece(outcome, &mut refusals);
            } else if let Some(entry) = self.book.returns.entries.next() {
                let Some(page) = &self.book.returns.page else { continue };
                let offset = (entry * DESCRIPTOR_BYTES) as usize;
                match self.rmm.host.load(page.base(), offset) {
                    Ok(word) => self.take_back_range(Command::RttDataUnmap, word),
                    Err(error) => outcome.note(error.into()),
                }
            } else {
                return true;
            }
        }
    }

    /// Takes back the next piece of a returned range; one by one where the ledger does not know all of it.
    fn take_piece(&mut self, outcome: &mut Outcome, refusals: &mut u32) {
        let piece = self.book.returns.range;
        let count = piece.count.min(piece.at_a_time);
        let range = &mut self.book.returns.range;
        match self.rmm.take_back(piece.command, piece.base, count, piece.used_for, self.owner) {
            Ok(frames) => {
                range.base = piece.base.wrapping_add(count * PAGE_SIZE);
                range.count -= count;
                if piece.used_for == RmmUse::Data {
                    self.book.data.remove(count);
                }
                let rest = if piece.pooled {
                    let (returned, rest) = self.rmm.keep_pooled(frames);
                    outcome.returned += returned;
                    rest
                } else {
                    frames
                };
                if !rest.is_empty() {
                    self.book.returns.run = Some(rest);
                }
            }
            Err(_) if count > 1 => range.at_a_time = 1,
            Err(error) => {
                outcome.note(error);
                *refusals += 1;
                // No answer is trusted for long.
                range.count = if *refusals >= MAX_REFUSALS { 0 } else { range.count - 1 };
                range.base = piece.base.wrapping_add(PAGE_SIZE);
            }
        }
    }

    /// Splits the block at `at` that ended a walk at `level`; `last` is the level split before, if any.
    pub(crate) fn split(
        &mut self,
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

    /// Makes a call; once more if it is refused for a reason that has nothing to do with the tables.
    pub(crate) fn insist<const N: usize>(
        &mut self,
        command: Command,
        args: [u64; N],
        outcome: &mut Outcome,
    ) -> Reply {
        let mut reply = Reply::failed();
        for _ in 0..2 {
            match self.operate(command, args) {
                Ok(answer) => reply = answer,
                Err(error) => outcome.note(error),
            }
            if matches!(reply.status, Status::Success | Status::Rtt { .. }) {
                break;
            }
        }
        reply
    }
}
