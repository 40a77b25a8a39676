//! Granules on their way into and out of the realm world.

use arrayvec::ArrayVec;
use mm::ledger::{Delegated, Frames, Owner, RmmUse, Undelegated, Use};
use mm::{PAGE_SIZE, PhysAddr};
use spin::mutex::SpinMutex;

use super::{POOL_CAPACITY, Rmm};
use crate::command::Command;
use crate::conduit::Host;
use crate::error::{BadAnswer, Error};
use crate::status::Status;

/// Single delegated granules kept for the next table or REC, accounted to the hypervisor.
pub(super) struct Pool {
    granules: SpinMutex<ArrayVec<Frames<Delegated>, POOL_CAPACITY>>,
    limit: usize,
}

impl Pool {
    pub(super) fn new(limit: usize) -> Self {
        Self { granules: SpinMutex::new(ArrayVec::new()), limit: limit.min(POOL_CAPACITY) }
    }

    fn take(&self) -> Option<Frames<Delegated>> {
        self.granules.lock().pop()
    }

    /// Keeps a granule, or hands it back when there are enough.
    fn keep(&self, frames: Frames<Delegated>) -> Option<Frames<Delegated>> {
        let mut granules = self.granules.lock();
        if granules.len() >= self.limit {
            return Some(frames);
        }
        granules.try_push(frames).err().map(|error| error.element())
    }
}

/// Result of undelegating a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Returned {
    /// Granules that are free again.
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

impl<H: Host> Rmm<'_, H> {
    /// Allocates memory; gives the pool back to the ledger and tries again if there is none.
    pub(crate) fn alloc(
        &self,
        order: u8,
        used_for: Use,
        owner: Owner,
    ) -> Result<Frames<Undelegated>, Error> {
        match self.ledger.alloc(order, used_for, owner) {
            Ok(frames) => Ok(frames),
            Err(error) if self.drain_pool().freed == 0 => Err(error.into()),
            Err(_) => Ok(self.ledger.alloc(order, used_for, owner)?),
        }
    }

    /// Allocates one page in the normal world, shared with the RMM and zeroed.
    pub(crate) fn alloc_interface(&self, owner: Owner) -> Result<Frames<Undelegated>, Error> {
        use crate::conduit::HostMemoryExt;
        let frames = self.alloc(0, Use::Interface, owner)?;
        match self.host.zero_page(frames.base()) {
            Ok(()) => Ok(frames),
            Err(error) => {
                self.ledger.free(frames);
                Err(error.into())
            }
        }
    }

    /// Allocates and delegates `2^order` granules.
    pub(crate) fn alloc_delegated(
        &self,
        order: u8,
        owner: Owner,
    ) -> Result<Frames<Delegated>, Error> {
        if order == 0
            && let Some(frames) = self.pool.take()
        {
            return Ok(self.ledger.reassign(frames, owner));
        }
        self.delegate(self.alloc(order, Use::Realm, owner)?)
    }

    /// Delegates all granules of a run, or none: after a refusal those already delegated are
    /// undelegated and the whole run is freed.
    pub(crate) fn delegate(&self, frames: Frames<Undelegated>) -> Result<Frames<Delegated>, Error> {
        let (done, outcome) = if self.is_v2() {
            self.delegate_range(frames.base(), frames.count())
        } else {
            self.delegate_each(frames.base(), frames.count())
        };
        match outcome {
            Ok(()) => Ok(self.ledger.delegated(frames)),
            Err(error) => {
                let (delegated, rest) = frames.split_at(done);
                if !delegated.is_empty() {
                    self.undelegate(self.ledger.delegated(delegated));
                }
                self.ledger.free(rest);
                Err(error)
            }
        }
    }

    /// Delegates granule by granule (GRANULE_DELEGATE, 1.0). Returns how many it did.
    fn delegate_each(&self, base: PhysAddr, count: u64) -> (u64, Result<(), Error>) {
        for done in 0..count {
            let addr = base.get() + done * PAGE_SIZE;
            if let Err(error) = self.demand(Command::GranuleDelegate, [addr]) {
                return (done, Err(error));
            }
        }
        (count, Ok(()))
    }

    /// Delegates by ranges (GRANULE_RANGE_DELEGATE, 2.0). Returns how many granules it did.
    fn delegate_range(&self, base: PhysAddr, count: u64) -> (u64, Result<(), Error>) {
        let top = base.get() + count * PAGE_SIZE;
        let mut at = base.get();
        while at < top {
            let command = Command::GranuleRangeDelegate;
            let outcome = self.demand(command, [at, top]).and_then(|reply| {
                let next = reply.x[1];
                if next <= at || next > top || !next.is_multiple_of(PAGE_SIZE) {
                    return Err(Error::progress(command, at, next));
                }
                Ok(next)
            });
            match outcome {
                Ok(next) => at = next,
                Err(error) => return ((at - base.get()) / PAGE_SIZE, Err(error)),
            }
        }
        (count, Ok(()))
    }

    /// Gives a delegated run back to the ledger: undelegated and free, or lost where the RMM refuses.
    pub(crate) fn undelegate(&self, frames: Frames<Delegated>) -> Returned {
        let mut returned = Returned::default();
        let mut rest = frames;
        while !rest.is_empty() {
            let done = if self.is_v2() {
                self.undelegate_range(rest.base(), rest.count())
            } else {
                self.undelegate_each(rest.base(), rest.count())
            };
            let (undelegated, remainder) = rest.split_at(done);
            returned.freed += undelegated.count();
            if !undelegated.is_empty() {
                self.ledger.free(self.ledger.undelegated(undelegated));
            }
            let (refused, remainder) = remainder.split_at(1);
            if !refused.is_empty() {
                log::error!("granule {} is lost: the RMM does not undelegate it", refused.base());
                returned.lost += 1;
                self.ledger.lose(refused);
            }
            rest = remainder;
        }
        returned
    }

    /// Undelegates granule by granule (GRANULE_UNDELEGATE, 1.0) until one is refused.
    fn undelegate_each(&self, base: PhysAddr, count: u64) -> u64 {
        for done in 0..count {
            let addr = base.get() + done * PAGE_SIZE;
            if self.demand(Command::GranuleUndelegate, [addr]).is_err() {
                return done;
            }
        }
        count
    }

    /// Undelegates by ranges (GRANULE_RANGE_UNDELEGATE, 2.0) until a granule is refused.
    fn undelegate_range(&self, base: PhysAddr, count: u64) -> u64 {
        let top = base.get() + count * PAGE_SIZE;
        let mut at = base.get();
        while at < top {
            let reply = self.call(Command::GranuleRangeUndelegate, [at, top]);
            let next = reply.x[1];
            let sensible = next > at && next <= top && next.is_multiple_of(PAGE_SIZE);
            if reply.status != Status::Success || !sensible {
                break;
            }
            at = next;
        }
        (at - base.get()) / PAGE_SIZE
    }

    /// Gives one granule to the pool, or back to the ledger when the pool is full.
    pub(crate) fn retire(&self, frames: Frames<Delegated>) -> Returned {
        if frames.count() != 1 || self.pool.limit == 0 {
            return self.undelegate(frames);
        }
        match self.pool.keep(self.ledger.reassign(frames, Owner::HYPERVISOR)) {
            None => Returned { freed: 1, lost: 0 },
            Some(frames) => self.undelegate(frames),
        }
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

    /// Gives all granules of the pool back to the ledger: under memory pressure, and before a census that
    /// is to show no delegated granule.
    pub fn drain_pool(&self) -> Returned {
        let mut returned = Returned::default();
        while let Some(frames) = self.pool.take() {
            returned += self.undelegate(frames);
        }
        returned
    }
}
