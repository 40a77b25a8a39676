//! The builder of realms.

use core::fmt;

use arrayvec::ArrayVec;
use mm::Ipa;
use mm::PAGE_SIZE;
use mm::ledger::Owner;

use super::{BuildError, BuildPlan, MAX_RECS, PageSource, Step};
use crate::conduit::Host;
use crate::error::{Error, Invalid};
use crate::realm::{Active, Dismantling, New, Realm};
use crate::rec::Rec;
use crate::rmm::Rmm;
use crate::rtt::Budget;

/// Calls that the creation of a REC counts as: delegation of its granule and of up to 16 auxiliary ones, REC_CREATE and
/// the steps of the operation that it may be.
const REC_CALLS: u64 = 20;

/// A realm ready to run, with its RECs.
pub type Built<'l, H> = (Realm<'l, H, Active>, ArrayVec<Rec<'l, H>, MAX_RECS>);

/// A realm under construction, for a hypervisor that has other things to do meanwhile.
///
/// Dropping it destroys what has been built, in one go; [`Builder::dismantle`] does it step by step.
#[must_use = "dropping it destroys the realm"]
pub struct Builder<'l, H: Host> {
    // RECs are dropped before the realm.
    recs: ArrayVec<Rec<'l, H>, MAX_RECS>,
    realm: Realm<'l, H, New>,
    /// Number of the next step of the plan.
    position: usize,
    /// Where the step goes on: an address, or the number of a page; 0 at its beginning.
    at: u64,
    is_active: bool,
}

impl<H: Host> fmt::Debug for Builder<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Builder({:?}, step {})", self.realm, self.position)
    }
}

impl<'l, H: Host> Builder<'l, H> {
    /// Creates the realm of a plan.
    ///
    /// # Errors
    /// As for [`Realm::create`], or the plan wants all memory at once and its segments are out of order. Everything has
    /// been given back then.
    pub fn new(
        rmm: &'l Rmm<'l, H>,
        owner: Owner,
        plan: &BuildPlan<'_>,
    ) -> Result<Self, BuildError> {
        plan.check()
            .and_then(|()| Realm::create(rmm, owner, &plan.config))
            .map(|realm| Self {
                recs: ArrayVec::new(),
                realm,
                position: 0,
                at: 0,
                is_active: false,
            })
            .map_err(|error| BuildError { step: Step::Create, error })
    }

    /// Goes on with the construction, with about `budget` RMI calls: more only to finish what cannot be left half done,
    /// such as a REC. The plan and the contents of its pages must be the same each time. Returns whether all steps are
    /// done.
    ///
    /// # Errors
    /// The step that failed, and why. What has been built is still there.
    pub fn advance(
        &mut self,
        plan: &BuildPlan<'_>,
        pages: &impl PageSource,
        budget: u64,
    ) -> Result<bool, BuildError> {
        let mut budget = Budget::new(budget);
        while let Some(step) = plan.step(self.position) {
            if budget.is_spent() {
                return Ok(false);
            }
            let outcome = match step {
                Step::Ram(index) => self.init_ram(plan, index, &mut budget),
                Step::Fill(index) => self.fill(plan, index, &mut budget),
                Step::Segment(index) => self.populate(plan, index, pages, &mut budget),
                Step::Rec(index) => self.create_rec(plan, index, &mut budget),
                Step::Create | Step::Activate => Ok(true),
            };
            if outcome.map_err(|error| BuildError { step, error })? {
                self.position += 1;
                self.at = 0;
            }
        }
        Ok(true)
    }

    /// Makes a range RAM. Returns whether all of it is, as do the other steps.
    fn init_ram(
        &mut self,
        plan: &BuildPlan<'_>,
        index: usize,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let Some(range) = plan.ram.get(index) else { return Ok(true) };
        self.realm.check_protected(range.base, range.top)?;
        let at = self.at.max(range.base.get());
        self.at = self.realm.init_ripas_some(at, range.top.get(), budget)?;
        if self.at < range.top.get() {
            return Ok(false);
        }
        self.realm.measure_ripas(range.base, range.top);
        Ok(true)
    }

    /// Maps memory for the RAM before a segment.
    fn fill(
        &mut self,
        plan: &BuildPlan<'_>,
        index: usize,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let Some((at, top)) = plan.gap(index, self.at) else { return Ok(true) };
        self.realm.check_protected(Ipa::new(at), Ipa::new(top))?;
        let room = plan.ram_end(at).unwrap_or(top);
        self.at = self.realm.map_private_some(at, top, room, budget)?.upto;
        Ok(false)
    }

    /// Maps pages of a segment.
    fn populate(
        &mut self,
        plan: &BuildPlan<'_>,
        index: usize,
        pages: &impl PageSource,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let Some(segment) = plan.segments.get(index) else { return Ok(true) };
        let end = segment.end();
        self.realm.check_protected(segment.ipa, Ipa::new(end))?;
        let room = if plan.eager { plan.ram_end(segment.ipa.get()) } else { None };
        let room = room.unwrap_or(end).max(end);
        while self.at < segment.pages && !budget.is_spent() {
            let at = segment.ipa.get() + self.at * PAGE_SIZE;
            let source = pages.page(index, self.at);
            if self.realm.populate_page(at, source, segment.measured, room, budget)? {
                self.at += 1;
            }
        }
        Ok(self.at == segment.pages)
    }

    /// Creates a REC.
    fn create_rec(
        &mut self,
        plan: &BuildPlan<'_>,
        index: usize,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let Some(config) = plan.recs.get(index) else { return Ok(true) };
        if self.recs.is_full() {
            return Err(Error::Invalid(Invalid::TooManyRecs));
        }
        self.recs.push(self.realm.create_rec(config)?);
        budget.spend(REC_CALLS);
        Ok(true)
    }

    /// Activates the realm, after all steps.
    ///
    /// # Errors
    /// The RMM refuses. What has been built is still there.
    pub fn activate(&mut self) -> Result<(), BuildError> {
        let step = Step::Activate;
        self.realm.call_activate().map_err(|error| BuildError { step, error })?;
        self.is_active = true;
        Ok(())
    }

    /// The realm and its RECs. `None`, and everything is destroyed, if it was not activated.
    #[must_use]
    pub fn finish(self) -> Option<Built<'l, H>> {
        let Self { recs, realm, is_active, .. } = self;
        is_active.then(|| (realm.into_active(), recs))
    }

    /// Begins to destroy what has been built.
    pub fn dismantle(self) -> Dismantling<'l, H> {
        self.realm.dismantle(self.recs)
    }
}

impl<'l, H: Host> Realm<'l, H, Active> {
    /// Builds and activates a realm as planned, in one go.
    ///
    /// # Errors
    /// The step that failed, and why. Whatever had been built has been destroyed again.
    pub fn build(
        rmm: &'l Rmm<'l, H>,
        owner: Owner,
        plan: &BuildPlan<'_>,
        pages: &impl PageSource,
    ) -> Result<Built<'l, H>, BuildError> {
        let mut builder = Builder::new(rmm, owner, plan)?;
        while !builder.advance(plan, pages, u64::MAX)? {}
        builder.activate()?;
        let not_active =
            BuildError { step: Step::Activate, error: Error::Invalid(Invalid::NothingPending) };
        builder.finish().ok_or(not_active)
    }
}
