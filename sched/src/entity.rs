//! What the scheduler knows about one entity.

use crate::budget::{Account, Budget};
use crate::{CoreId, CoreSet};

/// How an entity is to be scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Fixed priority: the higher number is the more urgent one.
    pub priority: u8,
    /// Time in nanoseconds after which entities of the same priority take turns: at least
    /// [`MIN_NS`](crate::MIN_NS).
    pub slice_ns: u64,
    /// Limit of its run time; `None` for no limit.
    pub budget: Option<Budget>,
    /// Cores that may run it. Bits of cores that do not exist are ignored.
    pub affinity: CoreSet,
}

/// State of an entity, as others may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for a wake-up.
    Blocked,
    /// Runnable, in the queue of this core.
    Queued(CoreId),
    /// Runs on this core.
    Running(CoreId),
    /// Runnable, but its budget is used up until then (nanoseconds).
    Throttled {
        /// When it may run again.
        until: u64,
    },
    /// Suspended by [`Scheduler::pause`](crate::Scheduler::pause).
    Paused,
    /// Has ended.
    Exited,
}

/// What an entity has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Time it has run, in nanoseconds.
    pub run_ns: u64,
    /// Times it was picked.
    pub picks: u64,
    /// Times it was picked by another core than the time before.
    pub migrations: u64,
    /// Times a wake-up made it runnable.
    pub wakes: u64,
    /// Times its budget ran out.
    pub throttles: u64,
    /// Longest time in nanoseconds that it waited in a queue, throttling not counted.
    pub max_wait_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No entity has this number.
    Vacant,
    Blocked,
    Queued(CoreId),
    Running(CoreId),
    /// In the throttled list of `home`.
    Throttled {
        home: CoreId,
        until: u64,
    },
    Paused,
    Exited,
}

#[derive(Debug)]
pub(crate) struct Entity {
    pub(crate) params: Params,
    pub(crate) phase: Phase,
    pub(crate) last_core: Option<CoreId>,
    pub(crate) slice_left: u64,
    account: Option<Account>,
    /// Until when its run is charged, while it runs.
    charged_to: u64,
    /// Since when it waits, while it is queued.
    pub(crate) queued_at: u64,
    /// Woken while it could not be queued: it does not block at its next stop.
    pub(crate) wake_pending: bool,
    /// To be paused at its next stop.
    pub(crate) pause_wanted: bool,
    pub(crate) stats: Stats,
}

impl Entity {
    pub(crate) const VACANT: Self = Self {
        params: Params { priority: 0, slice_ns: 0, budget: None, affinity: CoreSet::EMPTY },
        phase: Phase::Vacant,
        last_core: None,
        slice_left: 0,
        account: None,
        charged_to: 0,
        queued_at: 0,
        wake_pending: false,
        pause_wanted: false,
        stats: Stats { run_ns: 0, picks: 0, migrations: 0, wakes: 0, throttles: 0, max_wait_ns: 0 },
    };

    pub(crate) fn new(params: Params, now: u64) -> Self {
        Self {
            params,
            phase: Phase::Blocked,
            slice_left: params.slice_ns,
            account: params.budget.map(|budget| Account::new(budget, now)),
            ..Self::VACANT
        }
    }

    /// Notes that it begins to run.
    pub(crate) fn begin(&mut self, core: CoreId, now: u64) {
        self.phase = Phase::Running(core);
        // What woke it before is visible to it from here on.
        self.wake_pending = false;
        self.charged_to = now;
        self.stats.picks += 1;
        self.stats.max_wait_ns = self.stats.max_wait_ns.max(now.saturating_sub(self.queued_at));
        if self.last_core.is_some_and(|last| last != core) {
            self.stats.migrations += 1;
        }
        self.last_core = Some(core);
    }

    /// Charges its run up to `now`.
    pub(crate) fn charge(&mut self, now: u64) {
        let ran = now.saturating_sub(self.charged_to);
        if let Some(account) = &mut self.account {
            account.run(self.charged_to, now.max(self.charged_to));
        }
        self.stats.run_ns += ran;
        self.slice_left = self.slice_left.saturating_sub(ran);
        self.charged_to = now;
    }

    /// When its budget lets it run again; `None` if it may run at `now`.
    pub(crate) fn throttled_until(&mut self, now: u64) -> Option<u64> {
        let account = self.account.as_mut()?;
        account.rest(now);
        account.throttled_until()
    }

    /// When its budget runs out if it runs from `now` on.
    pub(crate) fn depleted_at(&self, now: u64) -> Option<u64> {
        self.account.as_ref()?.depleted_at(now)
    }
}
