//! A machine in virtual time around the scheduler: cores with late timers and slow kicks, entities that
//! compute and wait. After every event it checks what the scheduler promises.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use sched::{CoreId, CoreSet, EntityId, Next, Params, Scheduler, State, Stop};

/// What an entity does with its time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Computes without end.
    Hog,
    /// Computes for `burst_ns` per event; events come about every `gap_ns`.
    Events { burst_ns: u64, gap_ns: u64 },
}

/// An entity to simulate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) params: Params,
    pub(crate) load: Load,
}

/// How late things are on this machine, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    /// From sending a kick to its arrival.
    pub(crate) kick_ns: u64,
    /// Most that a timer fires after its deadline.
    pub(crate) timer_ns: u64,
    /// From an entity's last look for events to its stop as blocked.
    pub(crate) block_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    Kick(u8),
    Timer { core: u8, epoch: u64 },
    BurstEnd { core: u8, epoch: u64 },
    Block { core: u8, epoch: u64 },
}

#[derive(Default)]
struct Core {
    running: Option<usize>,
    since: u64,
    /// Counts picks: events of an earlier one are void.
    epoch: u64,
    kicks_in_flight: u32,
    retired: bool,
}

struct Actor {
    id: EntityId,
    task: Task,
    /// Computing left for the event in hand.
    burst: u64,
    /// Events that it has not seen.
    pending: u64,
    run_ns: u64,
    woken_at: Option<u64>,
    latencies: Vec<u64>,
}

/// The machine.
pub(crate) struct Sim<const CORES: usize> {
    pub(crate) scheduler: Scheduler<CORES, 16>,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    cores: [Core; CORES],
    actors: Vec<Actor>,
    delays: Delays,
    random: u64,
    pub(crate) timer_interrupts: u64,
    pub(crate) kicks: u64,
}

impl<const CORES: usize> Sim<CORES> {
    pub(crate) fn new(tasks: &[Task], delays: Delays, seed: u64) -> Self {
        let mut scheduler = Scheduler::new();
        let actors = tasks.iter().map(|&task| Actor {
            id: scheduler.add(task.params, 0).unwrap(),
            task,
            burst: 0,
            pending: 0,
            run_ns: 0,
            woken_at: None,
            latencies: Vec::new(),
        });
        let actors: Vec<Actor> = actors.collect();
        let mut sim = Self {
            scheduler,
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            cores: std::array::from_fn(|_| Core::default()),
            actors,
            delays,
            random: seed | 1,
            timer_interrupts: 0,
            kicks: 0,
        };
        for core in 0..CORES {
            sim.pick(core as u8);
        }
        for actor in 0..sim.actors.len() {
            let delay = sim.random(50_000);
            sim.at(delay, Event::Wake(actor));
        }
        sim
    }

    /// Runs until `end` (nanoseconds).
    pub(crate) fn run(&mut self, end: u64) {
        while let Some(&Reverse((time, _, event))) = self.events.peek() {
            if time > end {
                break;
            }
            self.events.pop();
            self.now = time;
            self.handle(event);
            self.check();
        }
        self.now = end;
    }

    /// Takes a core out of service, now; returns the actor that was lost with it.
    pub(crate) fn retire(&mut self, core: u8) -> Option<usize> {
        self.account(core);
        let kicks = self.scheduler.retire(CoreId(core), self.now);
        assert!(!kicks.contains(CoreId(core)), "kick of a core that was retired");
        self.send(kicks);
        let this = &mut self.cores[usize::from(core)];
        this.retired = true;
        // Its timers and bursts are void.
        this.epoch += 1;
        let lost = this.running.take();
        self.check();
        lost
    }

    /// Whether a core is left that may run the actor.
    fn can_run(&self, actor: usize) -> bool {
        let affinity = self.actors[actor].task.params.affinity;
        (0..CORES).any(|core| affinity.contains(CoreId(core as u8)) && !self.cores[core].retired)
    }

    /// Time that an actor has run, the run under way included.
    pub(crate) fn run_ns(&self, actor: usize) -> u64 {
        let current = self.cores.iter().find(|core| core.running == Some(actor));
        self.actors[actor].run_ns + current.map_or(0, |core| self.now - core.since)
    }

    /// Sorted times from an event to the run that sees it, for events that found the actor blocked.
    pub(crate) fn latencies(&self, actor: usize) -> Vec<u64> {
        let mut latencies = self.actors[actor].latencies.clone();
        latencies.sort_unstable();
        latencies
    }

    pub(crate) fn id(&self, actor: usize) -> EntityId {
        self.actors[actor].id
    }

    fn random(&mut self, below: u64) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below.max(1)
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + delay, self.sequence, event)));
    }

    fn send(&mut self, kicks: CoreSet) {
        for core in kicks.iter() {
            assert!(core.index() < CORES, "kick of a core that does not exist");
            self.kicks += 1;
            self.cores[core.index()].kicks_in_flight += 1;
            self.at(self.delays.kick_ns, Event::Kick(core.0));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(actor) => self.wake(actor),
            Event::Kick(core) => {
                self.cores[usize::from(core)].kicks_in_flight -= 1;
                if !self.cores[usize::from(core)].retired {
                    self.pick(core);
                }
            }
            Event::Timer { core, epoch } if self.is_current(core, epoch) => {
                self.timer_interrupts += 1;
                self.pick(core);
            }
            Event::BurstEnd { core, epoch } if self.is_current(core, epoch) => {
                self.account(core);
                self.next_burst(core);
            }
            Event::Block { core, epoch } if self.is_current(core, epoch) => {
                self.account(core);
                self.cores[usize::from(core)].running = None;
                let stopped = self.scheduler.stop(CoreId(core), self.now, Stop::Blocked);
                assert!(stopped.is_some());
                self.pick(core);
            }
            _ => {}
        }
    }

    fn is_current(&self, core: u8, epoch: u64) -> bool {
        self.cores[usize::from(core)].epoch == epoch
    }

    /// An event for `actor`: first visible, then the wake-up.
    fn wake(&mut self, index: usize) {
        let actor = &mut self.actors[index];
        actor.pending += 1;
        if self.scheduler.state(actor.id) == Some(State::Blocked) {
            actor.woken_at = Some(self.now);
        }
        let kicks = self.scheduler.wake(actor.id, self.now);
        self.send(kicks);
        if let Load::Events { gap_ns, .. } = self.actors[index].task.load {
            let gap = gap_ns / 2 + self.random(gap_ns);
            self.at(gap, Event::Wake(index));
        }
    }

    /// Notes how long the core's actor has run.
    fn account(&mut self, core: u8) {
        let core = &mut self.cores[usize::from(core)];
        if let Some(index) = core.running {
            let ran = self.now - core.since;
            let actor = &mut self.actors[index];
            actor.run_ns += ran;
            actor.burst = actor.burst.saturating_sub(ran);
            core.since = self.now;
        }
    }

    fn pick(&mut self, core: u8) {
        self.account(core);
        let pick = self.scheduler.pick(CoreId(core), self.now);
        self.send(pick.kicks);
        let this = &mut self.cores[usize::from(core)];
        this.epoch += 1;
        this.since = self.now;
        let epoch = this.epoch;
        let deadline = match pick.next {
            Next::Run { entity, deadline } => {
                let index = self.actors.iter().position(|actor| actor.id == entity).unwrap();
                self.cores[usize::from(core)].running = Some(index);
                let affinity = self.actors[index].task.params.affinity;
                assert!(affinity.contains(CoreId(core)), "affinity");
                self.resume(core, index);
                deadline
            }
            Next::Idle { deadline } => {
                self.cores[usize::from(core)].running = None;
                deadline
            }
        };
        if let Some(deadline) = deadline {
            let late = self.random(self.delays.timer_ns + 1);
            let delay = deadline.saturating_sub(self.now) + late;
            self.at(delay, Event::Timer { core, epoch });
        }
    }

    fn resume(&mut self, core: u8, index: usize) {
        if let Some(woken_at) = self.actors[index].woken_at.take() {
            let latency = self.now - woken_at;
            self.actors[index].latencies.push(latency);
        }
        if self.actors[index].burst == 0 {
            self.next_burst(core);
        } else {
            let epoch = self.cores[usize::from(core)].epoch;
            self.at(self.actors[index].burst, Event::BurstEnd { core, epoch });
        }
    }

    /// The core's actor looks for an event: works on it, or begins to block.
    fn next_burst(&mut self, core: u8) {
        let this = &self.cores[usize::from(core)];
        let (epoch, Some(index)) = (this.epoch, this.running) else { return };
        let actor = &mut self.actors[index];
        if actor.pending == 0 {
            self.at(self.delays.block_ns, Event::Block { core, epoch });
            return;
        }
        actor.pending -= 1;
        if let Load::Events { burst_ns, .. } = actor.task.load {
            actor.burst = burst_ns;
            self.at(burst_ns, Event::BurstEnd { core, epoch });
        } else {
            actor.burst = u64::MAX / 2;
        }
    }

    fn check(&self) {
        for (index, actor) in self.actors.iter().enumerate() {
            let state = self.scheduler.state(actor.id).unwrap();
            let runs_on: Vec<usize> =
                (0..CORES).filter(|&core| self.cores[core].running == Some(index)).collect();
            match state {
                State::Running(core) => assert_eq!(runs_on, [core.index()]),
                _ => assert!(runs_on.is_empty(), "runs while {state:?}"),
            }
            assert!(state != State::Blocked || actor.pending == 0, "lost wake-up");
            if let State::Throttled { until } = state
                && self.can_run(index)
            {
                let late = self.delays.timer_ns + self.delays.kick_ns;
                assert!(self.now <= until + late, "throttled since {until} at {}", self.now);
            }
            self.check_budget(index);
        }
        self.check_conservation();
    }

    /// For every queued entity that a core should run instead of what it does, there is a core
    /// that will pick when its kick arrives, and no two entities rely on the same core.
    fn check_conservation(&self) {
        let mut helpers = [None; CORES];
        for (index, actor) in self.actors.iter().enumerate() {
            let queued = matches!(self.scheduler.state(actor.id), Some(State::Queued(_)));
            let neglected =
                self.lesser_cores(index).any(|core| self.cores[core].kicks_in_flight == 0);
            if queued && neglected {
                let found = self.find_helper(index, &mut helpers, &mut [false; CORES]);
                assert!(found, "{} waits at {} and nobody will come", actor.id, self.now);
            }
        }
    }

    /// Cores that may run the actor and run something less urgent, or nothing.
    fn lesser_cores(&self, index: usize) -> impl Iterator<Item = usize> {
        let params = self.actors[index].task.params;
        (0..CORES).filter(move |&core| {
            let running = self.cores[core].running;
            let priority = running.map(|index| self.actors[index].task.params.priority);
            let available =
                params.affinity.contains(CoreId(core as u8)) && !self.cores[core].retired;
            available && priority < Some(params.priority)
        })
    }

    /// Assigns a kicked core to the actor, moving earlier ones to others if needed (bipartite matching).
    fn find_helper(
        &self,
        index: usize,
        helpers: &mut [Option<usize>; CORES],
        tried: &mut [bool; CORES],
    ) -> bool {
        for core in self.lesser_cores(index) {
            if self.cores[core].kicks_in_flight == 0 || std::mem::replace(&mut tried[core], true) {
                continue;
            }
            if helpers[core].is_none_or(|other| self.find_helper(other, helpers, tried)) {
                helpers[core] = Some(index);
                return true;
            }
        }
        false
    }

    fn check_budget(&self, index: usize) {
        if let Some(budget) = self.actors[index].task.params.budget {
            let periods = self.now / budget.period_ns + 1;
            // One stop may be late; later periods pay it back.
            let limit = periods * budget.budget_ns + self.delays.timer_ns;
            assert!(self.run_ns(index) <= limit, "budget exceeded at {}", self.now);
        }
    }
}
