//! Which core an entity goes to, and what a core takes.

use crate::scheduler::{Activity, Scheduler};
use crate::{CoreId, CoreSet};

impl<const CORES: usize, const ENTITIES: usize> Scheduler<CORES, ENTITIES> {
    /// The queue for an entity that becomes runnable or has used up its slice.
    ///
    /// In this order: the core it ran on, if that core would run it at once (its caches are warm); an
    /// idle core; the core that runs the least urgent entity, if less urgent than this one; the core
    /// it ran on, unless another one has fewer to run; the core with the fewest.
    pub(crate) fn place(&self, index: usize) -> CoreId {
        let entity = &self.entities[index];
        let allowed = entity.params.affinity.intersection(CoreSet::first(CORES));
        let online = allowed.intersection(self.online());
        let last = entity.last_core.filter(|&core| online.contains(core));
        let urgency = Urgency::of(entity.params.priority);
        if let Some(last) = last
            && self.contended(last) < urgency
        {
            return last;
        }
        let calmest = online.iter().min_by_key(|&core| self.contended(core));
        if let Some(calmest) = calmest
            && self.contended(calmest) < urgency
        {
            return calmest;
        }
        // While none of its cores is up, it waits in the queue of one that may come.
        let candidates = if online.is_empty() { allowed } else { online };
        let shortest = candidates.iter().min_by_key(|&core| self.load(core));
        match (last, shortest) {
            (Some(last), Some(shortest)) if self.load(last) <= self.load(shortest) => last,
            (_, Some(shortest)) => shortest,
            // `add` refuses an affinity without cores.
            (_, None) => CoreId(0),
        }
    }

    /// What `core` runs next: the most urgent of its own queue, or of another queue if that is more
    /// urgent still or there is nothing of its own. The entity is taken out of its queue.
    pub(crate) fn choose(&mut self, core: CoreId) -> Option<usize> {
        let own = self.cores[core.index()].queue.iter(&self.links).next();
        let own_priority = own.map(|index| self.entities[index].params.priority);
        let index = self.best_elsewhere(core, own_priority).or(own)?;
        self.unlink(index);
        Some(index)
    }

    /// The most urgent entity in other cores' queues that `core` may run and that is more urgent than
    /// `than`.
    fn best_elsewhere(&self, core: CoreId, than: Option<u8>) -> Option<usize> {
        let mut best = (than, None);
        for (other, from) in self.cores.iter().enumerate() {
            if other == core.index() || from.queue.top() <= best.0 {
                continue;
            }
            let found = from
                .queue
                .iter(&self.links)
                .take_while(|&index| Some(self.entities[index].params.priority) > best.0)
                .find(|&index| self.entities[index].params.affinity.contains(core));
            if let Some(index) = found {
                best = (Some(self.entities[index].params.priority), Some(index));
            }
        }
        best.1
    }

    /// Kicks cores until every queued entity that some core should run instead of what it runs now
    /// (or instead of nothing) has a core of its own that is on its way to pick.
    pub(crate) fn push_waiting(&mut self) {
        // The usual case: nobody waits.
        if self.cores.iter().all(|core| core.queue.len() == 0) {
            return;
        }
        let mut available = self.online();
        let mut targets = CoreSet::EMPTY;
        for core in (0..CORES as u8).map(CoreId) {
            // Usually all cores run something at least as urgent as what waits: one comparison.
            let Some(top) = self.cores[core.index()].queue.top() else {
                continue;
            };
            let staying = available.iter().filter(|&core| !self.will_pick(core));
            let Some(floor) = staying.map(|core| self.running_urgency(core)).min() else {
                break;
            };
            if Urgency::of(top) <= floor {
                continue;
            }
            for index in self.cores[core.index()].queue.iter(&self.links) {
                let params = &self.entities[index].params;
                if Urgency::of(params.priority) <= floor {
                    break;
                }
                let candidates = params.affinity.intersection(available);
                if let Some(target) = self.helper(Urgency::of(params.priority), candidates) {
                    available.remove(target);
                    targets.insert(target);
                }
            }
        }
        for target in targets.iter() {
            if !self.will_pick(target) {
                self.kick(target);
            }
        }
    }

    /// A core that runs something less urgent than `urgency`: one that picks soon anyway, else the
    /// least urgent.
    fn helper(&self, urgency: Urgency, among: CoreSet) -> Option<CoreId> {
        among
            .iter()
            .filter(|&core| self.running_urgency(core) < urgency)
            .min_by_key(|&core| (!self.will_pick(core), self.running_urgency(core)))
    }

    fn will_pick(&self, core: CoreId) -> bool {
        let this = &self.cores[core.index()];
        this.kicked || this.activity == Activity::Choosing
    }

    fn online(&self) -> CoreSet {
        let mut online = CoreSet::EMPTY;
        for core in (0..CORES as u8).map(CoreId) {
            if self.cores[core.index()].activity != Activity::Offline {
                online.insert(core);
            }
        }
        online
    }

    fn running_urgency(&self, core: CoreId) -> Urgency {
        match self.cores[core.index()].activity {
            Activity::Running(index) => Urgency::of(self.entities[index].params.priority),
            _ => Urgency::IDLE,
        }
    }

    /// The most urgent that `core` runs or has queued.
    fn contended(&self, core: CoreId) -> Urgency {
        let queued = self.cores[core.index()].queue.top();
        self.running_urgency(core).max(queued.map_or(Urgency::IDLE, Urgency::of))
    }

    fn load(&self, core: CoreId) -> usize {
        let this = &self.cores[core.index()];
        this.queue.len() + usize::from(matches!(this.activity, Activity::Running(_)))
    }
}

/// Urgency of what a core does: idle is below all priorities.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Urgency(u16);

impl Urgency {
    const IDLE: Self = Self(0);

    fn of(priority: u8) -> Self {
        Self(u16::from(priority) + 1)
    }
}
