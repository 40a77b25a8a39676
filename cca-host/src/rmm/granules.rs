//! Granules on their way into and out of the realm world.

use mm::ledger::{Delegated, Frames, OutOfMemory, Owner, RmmUse, Undelegated, Use};
use mm::{PAGE_SIZE, PhysAddr};

use super::{Reply, Rmm};
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{BadAnswer, Error};
use crate::status::Status;

/// Granules of a level-2 block.
const BLOCK_GRANULES: u64 = 512;

/// Result of undelegating a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Returned {
    /// Granules that came back: free again, or in the pool of delegated granules.
    pub freed: u64,
    /// Granules that the RMM refused to give back.
    pub lost: u64,
}

impl core::ops::AddAssign for Returned {
    fn add_assign(&mut self, other: Self) {
        self.freed += other.freed;
        self.lost += other.lost;
    }
}

/// How far the delegation of a run got.
pub(crate) struct Delegation {
    /// The granules at the start of the run that are delegated.
    pub(crate) done: Frames<Delegated>,
    /// The others.
    pub(crate) rest: Frames<Undelegated>,
    /// Calls made.
    pub(crate) calls: u64,
    /// Why the first granule of `rest` is not delegated, if the RMM refused it.
    pub(crate) error: Option<Error>,
}

/// How far the undelegation of a run got.
pub(crate) struct Undelegation {
    pub(crate) returned: Returned,
    /// Granules at the end of the run that are still delegated.
    pub(crate) rest: Frames<Delegated>,
    /// Calls made.
    pub(crate) calls: u64,
}

/// What became of the first granules of a range.
enum Outcome {
    /// So many are changed.
    Done(u64),
    /// None is.
    Refused(Error),
    /// Nobody knows.
    Unknown(Error),
}

/// An attempt to delegate or undelegate the first granules of a range.
struct Change {
    outcome: Outcome,
    /// Calls made.
    calls: u64,
}

impl Change {
    /// From the answer of a call for one granule.
    fn of_one(answer: Result<Reply, Error>) -> Self {
        let outcome = answer.map_or_else(Outcome::Refused, |_| Outcome::Done(1));
        Self { outcome, calls: 1 }
    }
}

impl<H: Host> Rmm<'_, H> {
    /// Makes an allocation; if there is no memory for it, gives the pool of delegated granules back to the
    /// ledger and tries again. For whoever shares the ledger with the driver.
    ///
    /// # Errors
    /// There is no memory even so.
    pub fn with_pool_as_reserve<R>(
        &self,
        alloc: impl Fn() -> Result<R, OutOfMemory>,
    ) -> Result<R, OutOfMemory> {
        alloc().or_else(|_| {
            // Whatever this frees: another core may have just drained the pool, or allocated from what
            // this one has.
            self.drain_pool();
            alloc()
        })
    }

    /// Allocates memory; gives the pool back to the ledger and tries again if there is none.
    pub(crate) fn alloc(
        &self,
        order: u8,
        used_for: Use,
        owner: Owner,
    ) -> Result<Frames<Undelegated>, Error> {
        Ok(self.with_pool_as_reserve(|| self.ledger.alloc(order, used_for, owner))?)
    }

    /// Allocates one page in the normal world, shared with the RMM and zeroed.
    pub(crate) fn alloc_interface(&self, owner: Owner) -> Result<Frames<Undelegated>, Error> {
        let frames = self.alloc(0, Use::Interface, owner)?;
        match self.host.zero_page(frames.base()) {
            Ok(()) => Ok(frames),
            Err(error) => {
                self.ledger.free(frames);
                Err(error.into())
            }
        }
    }

    /// A granule of the pool.
    pub(crate) fn take_pooled(&self, owner: Owner) -> Option<Frames<Delegated>> {
        self.pool.take().map(|frames| self.ledger.reassign(frames, owner))
    }

    /// Allocates and delegates `2^order` granules; a single one comes from the pool if it has one.
    pub(crate) fn alloc_delegated(
        &self,
        order: u8,
        owner: Owner,
    ) -> Result<Frames<Delegated>, Error> {
        if order == 0
            && let Some(frames) = self.take_pooled(owner)
        {
            return Ok(frames);
        }
        self.delegate(self.alloc(order, Use::Realm, owner)?)
    }

    /// Delegates all granules of a run, or none: after a refusal those already delegated are
    /// undelegated and the whole run is freed.
    pub(crate) fn delegate(&self, frames: Frames<Undelegated>) -> Result<Frames<Delegated>, Error> {
        let Delegation { done, rest, error, .. } = self.delegate_some(frames, u64::MAX);
        match error {
            None => Ok(done),
            Some(error) => {
                self.undelegate(done);
                self.ledger.free(rest);
                Err(error)
            }
        }
    }

    /// Delegates granules of a run in order, until all are or the RMM refuses one or `max_calls` calls have been
    /// made, or a few more to finish an operation.
    pub(crate) fn delegate_some(&self, frames: Frames<Undelegated>, max_calls: u64) -> Delegation {
        let (base, count) = (frames.base(), frames.count());
        let (mut granules, mut calls, mut error, mut unknown) = (0, 0, None, false);
        while granules < count && calls < max_calls {
            let at = base.get() + granules * PAGE_SIZE;
            let change = self.delegate_next(at, base.get() + count * PAGE_SIZE);
            calls += change.calls;
            match change.outcome {
                Outcome::Done(done) => granules += done,
                Outcome::Refused(refused) => {
                    error = Some(refused);
                    break;
                }
                Outcome::Unknown(misbehaved) => {
                    (error, unknown) = (Some(misbehaved), true);
                    break;
                }
            }
        }
        let (done, rest) = frames.split_at(granules);
        // Memory that may be delegated must not be touched again.
        let (unknown, rest) = rest.split_at(if unknown { count } else { 0 });
        self.lose(self.ledger.delegated(unknown));
        Delegation { done: self.ledger.delegated(done), rest, calls, error }
    }

    /// Delegates the first granules of `at..top`: GRANULE_DELEGATE, or GRANULE_RANGE_DELEGATE in 2.0.
    fn delegate_next(&self, at: u64, top: u64) -> Change {
        if !self.is_v2() {
            return Change::of_one(self.demand(Command::GranuleDelegate, [at]));
        }
        let change = self.change_range(Command::GranuleRangeDelegate, at, top);
        if matches!(change.outcome, Outcome::Done(granules) if granules > 1) {
            self.note_whole_ranges();
        }
        change
    }

    /// Gives a delegated run back to the ledger: undelegated and free, or lost where the RMM refuses.
    pub(crate) fn undelegate(&self, frames: Frames<Delegated>) -> Returned {
        self.undelegate_some(frames, u64::MAX).returned
    }

    /// Gives granules of a delegated run back to the ledger in order, until all are back or `max_calls` calls have
    /// been made, or a few more to finish an operation.
    pub(crate) fn undelegate_some(
        &self,
        frames: Frames<Delegated>,
        max_calls: u64,
    ) -> Undelegation {
        let mut returned = Returned::default();
        let mut calls = 0;
        let mut rest = frames;
        while !rest.is_empty() && calls < max_calls {
            let (base, count) = (rest.base(), rest.count());
            let (mut granules, mut refused) = (0, 0);
            while granules < count && refused == 0 && calls < max_calls {
                let at = base.get() + granules * PAGE_SIZE;
                let change = self.undelegate_next(at, base.get() + count * PAGE_SIZE);
                calls += change.calls;
                match change.outcome {
                    Outcome::Done(done) => granules += done,
                    Outcome::Refused(_) => refused = 1,
                    Outcome::Unknown(_) => refused = count - granules,
                }
            }
            let (undelegated, remainder) = rest.split_at(granules);
            returned.freed += undelegated.count();
            self.ledger.free(self.ledger.undelegated(undelegated));
            let (lost, remainder) = remainder.split_at(refused);
            returned.lost += lost.count();
            self.lose(lost);
            rest = remainder;
        }
        Undelegation { returned, rest, calls }
    }

    /// Undelegates the first granules of `at..top`: GRANULE_UNDELEGATE, or GRANULE_RANGE_UNDELEGATE in 2.0.
    fn undelegate_next(&self, at: u64, top: u64) -> Change {
        if self.is_v2() {
            self.change_range(Command::GranuleRangeUndelegate, at, top)
        } else {
            Change::of_one(self.demand(Command::GranuleUndelegate, [at]))
        }
    }

    /// Calls a command of 2.0 on the granules of `at..top`, of which it does the first ones; it may be a stateful
    /// operation, which is carried to its end.
    fn change_range(&self, command: Command, at: u64, top: u64) -> Change {
        let mut calls = 1;
        let (mut reply, mut abandoned) = (self.call(command, [at, top]), None);
        let stateful = matches!(reply.status, Status::Incomplete { .. });
        if stateful {
            match self.carry_on_granules(command, reply, (top - at) / PAGE_SIZE) {
                Ok(ending) => {
                    calls += ending.calls;
                    (reply, abandoned) = (ending.reply, ending.abandoned);
                }
                Err(error) => return Change { outcome: Outcome::Unknown(error), calls },
            }
        }
        let next = reply.x[1];
        let progress = next > at && next <= top && next.is_multiple_of(PAGE_SIZE);
        let outcome = match (reply.status, abandoned) {
            (Status::Success, _) if progress => Outcome::Done((next - at) / PAGE_SIZE),
            // Cancelled before the first granule.
            (_, Some(error)) => Outcome::Refused(error),
            (Status::Success, None) => Outcome::Unknown(Error::progress(command, at, next)),
            // Some granules may have been done before.
            (status, None) if stateful => Outcome::Unknown(Error::Refused { command, status }),
            (status, None) => Outcome::Refused(Error::Refused { command, status }),
        };
        Change { outcome, calls }
    }

    /// Records that granules are lost.
    fn lose(&self, frames: Frames<Delegated>) {
        if !frames.is_empty() {
            log::error!(
                "{} granules at {} are lost: the RMM keeps them",
                frames.count(),
                frames.base()
            );
        }
        self.ledger.lose(frames);
    }

    /// Gives granules to the pool where nothing may be undelegated, beyond its limit too. Those for which it has no
    /// place are lost.
    pub(crate) fn put_aside(&self, frames: Frames<Delegated>) {
        let mut rest = frames;
        while !rest.is_empty() {
            let (granule, others) = rest.split_at(1);
            rest = others;
            if let Some(granule) = self.pool.force(self.ledger.reassign(granule, Owner::HYPERVISOR))
            {
                self.lose(granule);
            }
        }
    }

    /// Gives granules to the pool as far as it wants them, and the others back to the ledger.
    pub(crate) fn retire(&self, frames: Frames<Delegated>) -> Returned {
        let (mut returned, rest) = self.keep_pooled(frames);
        returned += self.undelegate(rest);
        returned
    }

    /// Gives granules from the start of a run to the pool as far as it wants them; the others come back. Runs of a
    /// whole level-2 block and more are left together, and all runs where one call undelegates them.
    pub(crate) fn keep_pooled(&self, frames: Frames<Delegated>) -> (Returned, Frames<Delegated>) {
        let mut returned = Returned::default();
        let mut rest = frames;
        let longest = if self.delegates_ranges() { 1 } else { BLOCK_GRANULES - 1 };
        if rest.count() > longest {
            return (returned, rest);
        }
        while !rest.is_empty() && self.pool.has_room() {
            let (granule, others) = rest.split_at(1);
            rest = others;
            match self.pool.keep(self.ledger.reassign(granule, Owner::HYPERVISOR)) {
                None => returned.freed += 1,
                // Another core has filled it meanwhile.
                Some(granule) => returned += self.undelegate(granule),
            }
        }
        (returned, rest)
    }

    /// Takes back granules that the RMM says it no longer uses for `used_for`.
    pub(crate) fn take_back(
        &self,
        command: Command,
        base: u64,
        count: u64,
        used_for: RmmUse,
        owner: Owner,
    ) -> Result<Frames<Delegated>, Error> {
        self.ledger
            .take_back(PhysAddr::new(base), count, used_for, owner)
            .map_err(|error| Error::Misbehaved { command, answer: BadAnswer::NotOurs(error) })
    }

    /// Changes how many delegated granules are kept for the next table, REC or page: at most
    /// [`super::POOL_CAPACITY`]. Granules beyond the new limit go back to the ledger.
    pub fn set_pool_limit(&self, limit: usize) -> Returned {
        self.pool.set_limit(limit);
        let mut returned = Returned::default();
        while self.pool.len() > limit
            && let Some(frames) = self.pool.take()
        {
            returned += self.undelegate(frames);
        }
        returned
    }

    /// Number of delegated granules that are kept at the moment.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.pool.len()
    }

    /// Gives all granules of the pool back to the ledger: under memory pressure, and before a census that
    /// is to show no delegated granule.
    pub fn drain_pool(&self) -> Returned {
        let mut returned = Returned::default();
        self.pool.drain(|frames| returned += self.undelegate(frames));
        returned
    }
}
