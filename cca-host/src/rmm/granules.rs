//! Granules on their way into and out of the realm world.

use mm::ledger::{Delegated, Frames, OutOfMemory, Owner, RmmUse, Undelegated, Use};
use mm::{PAGE_SIZE, PhysAddr};

use super::Rmm;
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
    /// made.
    pub(crate) fn delegate_some(&self, frames: Frames<Undelegated>, max_calls: u64) -> Delegation {
        let (base, count) = (frames.base(), frames.count());
        let (mut granules, mut calls, mut error) = (0, 0, None);
        while granules < count && calls < max_calls {
            calls += 1;
            let at = base.get() + granules * PAGE_SIZE;
            match self.delegate_next(at, base.get() + count * PAGE_SIZE) {
                Ok(done) => granules += done,
                Err(refused) => {
                    error = Some(refused);
                    break;
                }
            }
        }
        let (done, rest) = frames.split_at(granules);
        Delegation { done: self.ledger.delegated(done), rest, calls, error }
    }

    /// Delegates the first granules of `at..top` with one call: GRANULE_DELEGATE, or GRANULE_RANGE_DELEGATE in 2.0.
    fn delegate_next(&self, at: u64, top: u64) -> Result<u64, Error> {
        if !self.is_v2() {
            return self.demand(Command::GranuleDelegate, [at]).map(|_| 1);
        }
        let command = Command::GranuleRangeDelegate;
        let next = self.demand(command, [at, top])?.x[1];
        if next <= at || next > top || !next.is_multiple_of(PAGE_SIZE) {
            return Err(Error::progress(command, at, next));
        }
        let granules = (next - at) / PAGE_SIZE;
        if granules > 1 {
            self.note_whole_ranges();
        }
        Ok(granules)
    }

    /// Gives a delegated run back to the ledger: undelegated and free, or lost where the RMM refuses.
    pub(crate) fn undelegate(&self, frames: Frames<Delegated>) -> Returned {
        self.undelegate_some(frames, u64::MAX).returned
    }

    /// Gives granules of a delegated run back to the ledger in order, until all are back or `max_calls` calls have
    /// been made.
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
            let (mut granules, mut refused) = (0, false);
            while granules < count && !refused && calls < max_calls {
                calls += 1;
                let at = base.get() + granules * PAGE_SIZE;
                match self.undelegate_next(at, base.get() + count * PAGE_SIZE) {
                    Some(done) => granules += done,
                    None => refused = true,
                }
            }
            let (undelegated, remainder) = rest.split_at(granules);
            returned.freed += undelegated.count();
            self.ledger.free(self.ledger.undelegated(undelegated));
            let (lost, remainder) = remainder.split_at(u64::from(refused));
            if refused {
                log::error!("granule {} is lost: the RMM does not undelegate it", lost.base());
            }
            returned.lost += lost.count();
            self.ledger.lose(lost);
            rest = remainder;
        }
        Undelegation { returned, rest, calls }
    }

    /// Undelegates the first granules of `at..top` with one call: GRANULE_UNDELEGATE, or GRANULE_RANGE_UNDELEGATE
    /// in 2.0. `None`: the first one is refused.
    fn undelegate_next(&self, at: u64, top: u64) -> Option<u64> {
        if !self.is_v2() {
            return self.demand(Command::GranuleUndelegate, [at]).ok().map(|_| 1);
        }
        let reply = self.call(Command::GranuleRangeUndelegate, [at, top]);
        let next = reply.x[1];
        let sensible = next > at && next <= top && next.is_multiple_of(PAGE_SIZE);
        (reply.status == Status::Success && sensible).then(|| (next - at) / PAGE_SIZE)
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
