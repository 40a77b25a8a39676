//! The end of a realm.

use core::fmt;

use arrayvec::ArrayVec;
use mm::ledger::RmmUse;

use super::{Core, Phase, Realm, RealmState};
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::plan::MAX_RECS;
use crate::rec::Rec;
use crate::rmm::Returned;
use crate::rtt::{Budget, Teardown};
use crate::status::Status;

/// Calls that the destruction of a REC counts as: REC_DESTROY, and the return of its granule and of up to 16
/// auxiliary ones.
const REC_CALLS: u64 = 20;

/// What came back from a destroyed realm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DestroyReport {
    /// Granules that came back to the ledger, and those that the RMM refused to undelegate.
    pub returned: Returned,
    /// Granules that the RMM still holds according to the ledger although the realm is gone: the RMM has
    /// not named them when it should have.
    pub stranded: u64,
}

/// A realm that the RMM refused to destroy. It still owns its memory; try again later.
pub struct DestroyFailure<'l, H: Host, S: RealmState> {
    /// The realm.
    pub realm: Realm<'l, H, S>,
    /// Why.
    pub error: Error,
}

impl<H: Host, S: RealmState> fmt::Debug for DestroyFailure<'_, H, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DestroyFailure({})", self.error)
    }
}

/// A realm and its RECs on their way out, for a hypervisor that has other things to do meanwhile.
///
/// Dropping it finishes the work at once.
#[must_use = "dropping it destroys the realm in one go"]
pub struct Dismantling<'l, H: Host> {
    // RECs are dropped before the realm.
    recs: ArrayVec<Rec<'l, H>, MAX_RECS>,
    core: Core<'l, H>,
}

impl<H: Host> fmt::Debug for Dismantling<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dismantling({}, {} RECs)", self.core.owner, self.recs.len())
    }
}

impl<H: Host> Dismantling<'_, H> {
    /// Goes on with the destruction, with about `budget` RMI calls: more only to finish what cannot be left half
    /// done, such as a REC. `None`: call again.
    ///
    /// # Errors
    /// The RMM refuses; the memory is still accounted to the realm. Calling again tries again.
    pub fn step(&mut self, budget: u64) -> Result<Option<DestroyReport>, Error> {
        let mut budget = Budget::new(budget);
        while let Some(rec) = self.recs.pop() {
            match rec.destroy() {
                Ok(returned) => self.core.returned += returned,
                Err(failure) => {
                    // There is room: it was just taken out.
                    self.recs.push(failure.rec);
                    return Err(failure.error);
                }
            }
            budget.spend(REC_CALLS);
            if budget.is_spent() {
                return Ok(None);
            }
        }
        self.core.release(&mut budget)
    }
}

impl<'l, H: Host, S: RealmState> Realm<'l, H, S> {
    /// Destroys the realm and gives its memory back, in one go. All RECs must have been destroyed before: the RMM
    /// refuses to destroy a realm that has one.
    ///
    /// # Errors
    /// The RMM refuses; the realm comes back with the error, and its memory is still
    /// accounted to it. Trying again goes on where this stopped.
    #[expect(clippy::result_large_err, reason = "the realm itself comes back")]
    pub fn destroy(mut self) -> Result<DestroyReport, DestroyFailure<'l, H, S>> {
        match self.core.release_all() {
            Ok(report) => Ok(report),
            Err(error) => Err(DestroyFailure { realm: self, error }),
        }
    }

    /// Begins to destroy the realm and its RECs, none of which is running.
    pub fn dismantle(self, recs: ArrayVec<Rec<'l, H>, MAX_RECS>) -> Dismantling<'l, H> {
        Dismantling { recs, core: self.core }
    }
}

impl<H: Host> Core<'_, H> {
    /// Destroys the realm from whatever state it is in.
    fn release_all(&mut self) -> Result<DestroyReport, Error> {
        loop {
            if let Some(report) = self.release(&mut Budget::UNLIMITED.clone())? {
                return Ok(report);
            }
        }
    }

    /// Goes on with the destruction; `None` if there is more to do.
    fn release(&mut self, budget: &mut Budget) -> Result<Option<DestroyReport>, Error> {
        if self.phase == Phase::Gone {
            return Ok(Some(DestroyReport::default()));
        }
        if self.phase == Phase::Alive {
            self.rmm.terminate(self.rd, self.owner)?;
            self.phase = Phase::Terminated;
        }
        let mut teardown = self.teardown.take().unwrap_or(Teardown::new(false));
        let shared = self.shared_entries;
        let done = self.with_tables(budget, |tables| tables.tear_down(&mut teardown, shared));
        self.returned += core::mem::take(&mut teardown.outcome.returned);
        if !done {
            self.teardown = Some(teardown);
            return Ok(None);
        }
        let error = teardown.outcome.error;
        if error.is_none() || teardown.is_thorough() {
            match self.destroy_rd()? {
                Status::Success => return self.take_roots_back().map(Some),
                status if teardown.is_thorough() => {
                    let refused = Error::Refused { command: Command::RealmDestroy, status };
                    self.teardown = Some(Teardown::new(true));
                    return Err(error.unwrap_or(refused));
                }
                _ => {}
            }
        }
        // A refusal on the way may have left something behind that a thorough search finds.
        self.teardown = Some(Teardown::new(true));
        Ok(None)
    }

    /// REALM_DESTROY; once more if it is refused.
    fn destroy_rd(&self) -> Result<Status, Error> {
        let args = [self.rd.get()];
        let reply = self.rmm.operate(Command::RealmDestroy, args, self.owner)?;
        if reply.status == Status::Success {
            return Ok(reply.status);
        }
        self.rmm.operate(Command::RealmDestroy, args, self.owner).map(|reply| reply.status)
    }

    /// What REALM_DESTROY gives back: root tables and RD.
    fn take_roots_back(&mut self) -> Result<DestroyReport, Error> {
        self.phase = Phase::Gone;
        let command = Command::RealmDestroy;
        let tables = self.geometry.root_tables();
        for (base, count, used_for) in [(self.roots, tables, RmmUse::Rtt), (self.rd, 1, RmmUse::Rd)]
        {
            let frames = self.rmm.take_back(command, base.get(), count, used_for, self.owner)?;
            self.returned += self.rmm.retire(frames);
        }
        let stranded = self.rmm.ledger.census_of(self.owner).held_by_rmm();
        Ok(DestroyReport { returned: self.returned, stranded })
    }
}

impl<H: Host> Drop for Core<'_, H> {
    fn drop(&mut self) {
        if let Err(error) = self.release_all() {
            log::error!("realm of {} could not be destroyed: {error}", self.owner);
        }
    }
}
