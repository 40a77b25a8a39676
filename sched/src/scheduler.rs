//! The scheduler: states of entities, and the calls that move them.

use crate::budget::Budget;
use crate::entity::{Entity, Phase};
use crate::queue::{Links, List, RunQueue};
use crate::{AddError, CoreId, CoreSet, EntityId, MIN_NS, Params, RemoveError, State, Stats};

/// Why a core stops running its entity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The core wants to choose again: a timer, a kick, an interrupt of the host. The entity stays
    /// runnable, and keeps its place while its slice lasts.
    Preempted,
    /// The entity gives the rest of its slice away (WFE, a yielding hypercall). It stays runnable.
    Yield,
    /// The entity waits for a wake-up (WFI, PSCI CPU_OFF or CPU_SUSPEND).
    Blocked,
    /// The entity will not run again.
    Exited,
}

/// What a core does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this entity.
    Run {
        /// The entity, now running on the core.
        entity: EntityId,
        /// When to stop it and pick again, if nothing happens before; `None`: no need to.
        deadline: Option<u64>,
    },
    /// Nothing to run.
    Idle {
        /// When to pick again, if no kick comes before; `None`: no need to.
        deadline: Option<u64>,
    },
}

/// The decision of [`Scheduler::pick`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pick {
    /// What the core does.
    pub next: Next,
    /// Other cores that must pick again: send each the reschedule interrupt.
    pub kicks: CoreSet,
}

/// What a core is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Has not picked yet, or is not up.
    Offline,
    Idle,
    Running(usize),
    /// Between a stop and the next pick.
    Choosing,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) activity: Activity,
    /// A kick is on its way: the core will pick again, so it needs no other.
    pub(crate) kicked: bool,
    pub(crate) queue: RunQueue,
    /// Throttled entities, earliest refill first. Their refill is in this core's deadline.
    throttled: List,
    /// The deadline that the core was given last.
    armed: Option<u64>,
}

/// The whole scheduler, for `CORES` cores (at most 32) and `ENTITIES` entities (at most 65534).
///
/// One value, under one lock. See the [crate documentation](crate) for the policy and the protocol.
#[derive(Debug)]
pub struct Scheduler<const CORES: usize, const ENTITIES: usize> {
    pub(crate) cores: [Core; CORES],
    pub(crate) entities: [Entity; ENTITIES],
    pub(crate) links: Links<ENTITIES>,
    /// Cores to kick, not yet reported to a caller.
    kicks: CoreSet,
}

impl<const CORES: usize, const ENTITIES: usize> Default for Scheduler<CORES, ENTITIES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const CORES: usize, const ENTITIES: usize> Scheduler<CORES, ENTITIES> {
    /// A scheduler without entities, all cores offline.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(CORES >= 1 && CORES <= 32, "core sets have 32 bits") };
        const { assert!(ENTITIES < u16::MAX as usize, "links have 16 bits") };
        Self {
            cores: [const {
                Core {
                    activity: Activity::Offline,
                    kicked: false,
                    queue: RunQueue::new(),
                    throttled: List::EMPTY,
                    armed: None,
                }
            }; CORES],
            entities: [const { Entity::VACANT }; ENTITIES],
            links: Links::new(),
            kicks: CoreSet::EMPTY,
        }
    }

    /// Adds an entity, blocked: [`Self::wake`] starts it.
    ///
    /// # Errors
    ///
    /// [`AddError`] when the parameters make no sense on this machine or the table is full.
    pub fn add(&mut self, params: Params, now: u64) -> Result<EntityId, AddError> {
        if params.affinity.intersection(CoreSet::first(CORES)).is_empty() {
            return Err(AddError::NoCore);
        }
        if params.slice_ns < MIN_NS {
            return Err(AddError::SliceTooShort);
        }
        if let Some(Budget { budget_ns, period_ns }) = params.budget
            && (budget_ns < MIN_NS || budget_ns > period_ns)
        {
            return Err(AddError::BadBudget);
        }
        let index = self
            .entities
            .iter()
            .position(|entity| entity.phase == Phase::Vacant)
            .ok_or(AddError::Full)?;
        self.entities[index] = Entity::new(params, now);
        // `new` limits the table to 16 bits.
        Ok(EntityId(index as u16))
    }

    /// Removes an entity and forgets it; its number may be given out again.
    ///
    /// # Errors
    ///
    /// [`RemoveError::Running`] while a core runs it: pause it, and wait for that core's stop.
    pub fn remove(&mut self, entity: EntityId) -> Result<(), RemoveError> {
        let index = self.find(entity).ok_or(RemoveError::Unknown)?;
        if matches!(self.entities[index].phase, Phase::Running(_)) {
            return Err(RemoveError::Running);
        }
        self.unlink(index);
        self.entities[index] = Entity::VACANT;
        Ok(())
    }

    /// Tells that an event for `entity` is there. Make the event visible first, then call this.
    ///
    /// A blocked entity becomes runnable. For a running one the event is remembered, so that a block
    /// that is under way does not lose it, and its core is kicked so that it notices the event.
    ///
    /// Returns the cores to kick, which can include the calling one.
    #[must_use = "cores that are not kicked do not notice the wake-up"]
    pub fn wake(&mut self, entity: EntityId, now: u64) -> CoreSet {
        let Some(index) = self.find(entity) else {
            return CoreSet::EMPTY;
        };
        match self.entities[index].phase {
            Phase::Blocked => {
                self.entities[index].stats.wakes += 1;
                self.make_runnable(index, now);
                self.push_waiting();
            }
            Phase::Running(core) => {
                self.entities[index].wake_pending = true;
                self.kicks.insert(core);
            }
            Phase::Paused => self.entities[index].wake_pending = true,
            // Will run, and will look for events when it does.
            Phase::Queued(_) | Phase::Throttled { .. } => {}
            Phase::Exited | Phase::Vacant => {}
        }
        self.take_kicks()
    }

    /// Suspends an entity until [`Self::resume`], whatever it waits for. A running one is kicked and
    /// suspended at its next stop. Returns the cores to kick.
    #[must_use = "a core that is not kicked runs on"]
    pub fn pause(&mut self, entity: EntityId) -> CoreSet {
        let Some(index) = self.find(entity) else {
            return CoreSet::EMPTY;
        };
        match self.entities[index].phase {
            Phase::Running(core) => {
                self.entities[index].pause_wanted = true;
                return CoreSet::one(core);
            }
            Phase::Queued(_) | Phase::Throttled { .. } => {
                self.unlink(index);
                self.entities[index].wake_pending = true;
                self.entities[index].phase = Phase::Paused;
            }
            Phase::Blocked => {
                self.entities[index].wake_pending = false;
                self.entities[index].phase = Phase::Paused;
            }
            Phase::Paused | Phase::Exited | Phase::Vacant => {}
        }
        CoreSet::EMPTY
    }

    /// Ends a pause: the entity is runnable if it was before or was woken since, else blocked. Returns
    /// the cores to kick.
    #[must_use = "cores that are not kicked do not notice the entity"]
    pub fn resume(&mut self, entity: EntityId, now: u64) -> CoreSet {
        let Some(index) = self.find(entity) else {
            return CoreSet::EMPTY;
        };
        self.entities[index].pause_wanted = false;
        if self.entities[index].phase == Phase::Paused {
            self.entities[index].phase = Phase::Blocked;
            if self.entities[index].wake_pending {
                self.make_runnable(index, now);
                self.push_waiting();
            }
        }
        self.take_kicks()
    }

    /// Ends the run of the entity on `core` and charges its time. Returns the entity; `None` when the
    /// core ran none. The core must [`Self::pick`] next.
    pub fn stop(&mut self, core: CoreId, now: u64, why: Stop) -> Option<EntityId> {
        let Activity::Running(index) = self.cores.get(core.index())?.activity else {
            return None;
        };
        self.cores[core.index()].activity = Activity::Choosing;
        let entity = &mut self.entities[index];
        entity.charge(now);
        let runnable = match why {
            Stop::Preempted | Stop::Yield => true,
            Stop::Blocked => entity.wake_pending,
            Stop::Exited => false,
        };
        if why == Stop::Exited {
            entity.phase = Phase::Exited;
        } else if entity.pause_wanted {
            entity.pause_wanted = false;
            entity.wake_pending = runnable;
            entity.phase = Phase::Paused;
        } else if runnable {
            self.requeue(index, core, now, why == Stop::Yield);
        } else {
            entity.phase = Phase::Blocked;
        }
        // The index came from the table, which has 16 bits.
        Some(EntityId(index as u16))
    }

    /// Chooses what `core` does next. An entity that it still runs is stopped as
    /// [`Stop::Preempted`] first. The first pick of a core brings it up ([`Self::bring_up`]).
    pub fn pick(&mut self, core: CoreId, now: u64) -> Pick {
        if core.index() >= CORES {
            let next = Next::Idle { deadline: None };
            return Pick { next, kicks: CoreSet::EMPTY };
        }
        self.stop(core, now, Stop::Preempted);
        self.cores[core.index()].activity = Activity::Choosing;
        self.refill(core, now);
        let next = match self.choose(core) {
            Some(index) => {
                self.start(index, core, now);
                Next::Run {
                    // The index came from the table, which has 16 bits.
                    entity: EntityId(index as u16),
                    deadline: self.run_deadline(index, core, now),
                }
            }
            None => {
                self.cores[core.index()].activity = Activity::Idle;
                Next::Idle { deadline: self.first_refill(core) }
            }
        };
        let (Next::Run { deadline, .. } | Next::Idle { deadline }) = next;
        let this = &mut self.cores[core.index()];
        this.armed = deadline;
        this.kicked = false;
        self.kicks.remove(core);
        self.push_waiting();
        Pick { next, kicks: self.take_kicks() }
    }

    /// Says that `core` is up and is going to [`Self::pick`]. Entities that become runnable before any
    /// core has picked wait for such cores only: those that wait for a core that never comes would run
    /// only when another one has nothing else to do.
    pub fn bring_up(&mut self, core: CoreId) {
        if let Some(this) = self.cores.get_mut(core.index())
            && this.activity == Activity::Offline
        {
            this.activity = Activity::Choosing;
        }
    }

    /// Takes `core` out of service: it will not pick again. The entity that it runs is over
    /// ([`Stop::Exited`]), those that wait there go to other cores; one that may run on no other waits
    /// for ever. Returns the cores to kick.
    #[must_use = "cores that are not kicked do not notice the entities"]
    pub fn retire(&mut self, core: CoreId, now: u64) -> CoreSet {
        self.stop(core, now, Stop::Exited);
        let Some(this) = self.cores.get_mut(core.index()) else { return CoreSet::EMPTY };
        this.activity = Activity::Offline;
        this.kicked = false;
        this.armed = None;
        for index in 0..ENTITIES {
            match self.entities[index].phase {
                Phase::Queued(at) | Phase::Throttled { home: at, .. } if at == core => {
                    self.unlink(index);
                    self.make_runnable(index, now);
                }
                _ => {}
            }
        }
        self.push_waiting();
        self.kicks.remove(core);
        self.take_kicks()
    }

    /// Whether `core` should stop its entity now and pick again: a cheap question for the exits that
    /// the hypervisor handles without leaving the vCPU.
    #[must_use]
    pub fn should_stop(&self, core: CoreId, now: u64) -> bool {
        let Some(this) = self.cores.get(core.index()) else {
            return false;
        };
        let Activity::Running(index) = this.activity else {
            return true;
        };
        let entity = &self.entities[index];
        this.kicked
            || entity.pause_wanted
            || this.armed.is_some_and(|armed| armed <= now)
            || this.queue.top().is_some_and(|top| top > entity.params.priority)
    }

    /// Number of entities.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entities.iter().filter(|entity| entity.phase != Phase::Vacant).count()
    }

    /// State of an entity; `None` if there is none of this number.
    #[must_use]
    pub fn state(&self, entity: EntityId) -> Option<State> {
        let index = self.find(entity)?;
        Some(match self.entities[index].phase {
            Phase::Vacant => return None,
            Phase::Blocked => State::Blocked,
            Phase::Queued(core) => State::Queued(core),
            Phase::Running(core) => State::Running(core),
            Phase::Throttled { until, .. } => State::Throttled { until },
            Phase::Paused => State::Paused,
            Phase::Exited => State::Exited,
        })
    }

    /// What an entity has used so far, without the run under way; `None` if there is none of this
    /// number.
    #[must_use]
    pub fn stats(&self, entity: EntityId) -> Option<Stats> {
        Some(self.entities[self.find(entity)?].stats)
    }

    /// The parameters that an entity was added with.
    #[must_use]
    pub fn params(&self, entity: EntityId) -> Option<Params> {
        Some(self.entities[self.find(entity)?].params)
    }

    /// The entity that `core` runs.
    #[must_use]
    pub fn running(&self, core: CoreId) -> Option<EntityId> {
        match self.cores.get(core.index())?.activity {
            // The index came from the table, which has 16 bits.
            Activity::Running(index) => Some(EntityId(index as u16)),
            _ => None,
        }
    }

    fn take_kicks(&mut self) -> CoreSet {
        core::mem::take(&mut self.kicks)
    }

    fn find(&self, entity: EntityId) -> Option<usize> {
        let found = self.entities.get(entity.index())?;
        (found.phase != Phase::Vacant).then_some(entity.index())
    }

    /// Takes an entity out of the list it is in.
    pub(crate) fn unlink(&mut self, index: usize) {
        let entity = &self.entities[index];
        match entity.phase {
            Phase::Queued(core) => self.cores[core.index()].queue.remove(
                &mut self.links,
                index,
                entity.params.priority,
            ),
            Phase::Throttled { home, .. } => {
                self.cores[home.index()].throttled.remove(&mut self.links, index)
            }
            _ => {}
        }
    }

    /// Queues an entity that waited for an event, or throttles it if its budget is used up.
    fn make_runnable(&mut self, index: usize, now: u64) {
        let entity = &mut self.entities[index];
        entity.wake_pending = false;
        entity.queued_at = now;
        if entity.slice_left == 0 {
            entity.slice_left = entity.params.slice_ns;
        }
        let until = entity.throttled_until(now);
        let core = self.place(index);
        match until {
            None => self.enqueue(index, core, false),
            Some(until) => {
                self.throttle(index, core, until);
                // Its core may sleep longer than that.
                let this = &mut self.cores[core.index()];
                let sleeps = this.armed.is_none_or(|armed| armed > until);
                let away = matches!(this.activity, Activity::Offline | Activity::Choosing);
                if sleeps && !away {
                    self.kick(core);
                }
            }
        }
    }

    /// Puts back an entity that stopped on `core` and stays runnable.
    fn requeue(&mut self, index: usize, core: CoreId, now: u64, yielded: bool) {
        let entity = &mut self.entities[index];
        entity.wake_pending = false;
        entity.queued_at = now;
        let expired = yielded || entity.slice_left == 0;
        if expired {
            entity.slice_left = entity.params.slice_ns;
        }
        if let Some(until) = entity.throttled_until(now) {
            entity.stats.throttles += 1;
            self.throttle(index, core, until);
            return;
        }
        // A slice's end is where load evens out: another core may have a shorter queue.
        let target = if expired { self.place(index) } else { core };
        self.enqueue(index, target, !expired);
    }

    fn enqueue(&mut self, index: usize, core: CoreId, front: bool) {
        let priority = self.entities[index].params.priority;
        self.entities[index].phase = Phase::Queued(core);
        let first_peer = !self.cores[core.index()].queue.has(priority);
        let this = &mut self.cores[core.index()];
        this.queue.push(&mut self.links, index, priority, front);
        // An entity that ran without peers has no slice end in its deadline: arm it.
        if let Activity::Running(running) = this.activity
            && first_peer
            && self.entities[running].params.priority == priority
        {
            self.kick(core);
        }
    }

    /// Sees to it that `core` picks again, unless it is on its way to do so.
    pub(crate) fn kick(&mut self, core: CoreId) {
        let this = &mut self.cores[core.index()];
        if !this.kicked {
            this.kicked = true;
            self.kicks.insert(core);
        }
    }

    fn throttle(&mut self, index: usize, home: CoreId, until: u64) {
        self.entities[index].phase = Phase::Throttled { home, until };
        let list = self.cores[home.index()].throttled;
        let later = list.iter(&self.links).find(|&other| {
            matches!(self.entities[other].phase, Phase::Throttled { until: at, .. } if at > until)
        });
        self.cores[home.index()].throttled.insert_before(&mut self.links, index, later);
    }

    /// Queues the throttled entities of `core` whose refill has come.
    fn refill(&mut self, core: CoreId, now: u64) {
        while let Some(index) = self.cores[core.index()].throttled.first() {
            if self.first_refill(core).is_some_and(|until| until > now) {
                break;
            }
            self.unlink(index);
            self.make_runnable(index, now);
        }
    }

    fn first_refill(&self, core: CoreId) -> Option<u64> {
        let first = self.cores[core.index()].throttled.first()?;
        match self.entities[first].phase {
            Phase::Throttled { until, .. } => Some(until),
            _ => None,
        }
    }
    fn start(&mut self, index: usize, core: CoreId, now: u64) {
        self.cores[core.index()].activity = Activity::Running(index);
        self.entities[index].begin(core, now);
    }

    /// The nearest of slice end (if a peer waits), end of the budget, and the next refill of an entity
    /// that waits for it on this core.
    fn run_deadline(&self, index: usize, core: CoreId, now: u64) -> Option<u64> {
        let entity = &self.entities[index];
        let has_peers = self.cores[core.index()].queue.has(entity.params.priority);
        let slice = has_peers.then(|| now.saturating_add(entity.slice_left));
        [slice, entity.depleted_at(now), self.first_refill(core)].into_iter().flatten().min()
    }
}
