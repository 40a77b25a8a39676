//! Wake-up against block, on several cores, in all interleavings that a model checker finds.
//!
//! The scheduler itself is under one lock. What is not under it is the event: the poster sets it
//! before it takes the lock to wake, and the vCPU's core looks for it before it takes the lock to
//! block. The model runs the real [`Scheduler`] in exactly that protocol.

#![cfg(loom)]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use sched::{CoreId, CoreSet, EntityId, Next, Params, Scheduler, State, Stop};

const VCPU_CORE: CoreId = CoreId(0);

struct Machine {
    scheduler: Mutex<Scheduler<2, 2>>,
    /// Events that are pending for the vCPU, as in its virtual GIC.
    pending: AtomicU32,
    /// Kicks that have been sent to the vCPU's core: an interrupt stays pending until it is taken.
    kicks: AtomicU32,
}

impl Machine {
    fn new() -> (Arc<Self>, EntityId) {
        let mut scheduler = Scheduler::new();
        let params = Params {
            priority: 1,
            slice_ns: 1_000_000,
            budget: None,
            affinity: CoreSet::one(VCPU_CORE),
        };
        let vcpu = scheduler.add(params, 0).unwrap();
        let _ = scheduler.pick(VCPU_CORE, 0);
        let _ = scheduler.pick(CoreId(1), 0);
        let _ = scheduler.wake(vcpu, 0);
        let machine = Self {
            scheduler: Mutex::new(scheduler),
            pending: AtomicU32::new(0),
            kicks: AtomicU32::new(0),
        };
        (Arc::new(machine), vcpu)
    }

    fn post(&self, vcpu: EntityId) {
        self.pending.fetch_add(1, Ordering::Release);
        let kicks = self.scheduler.lock().unwrap().wake(vcpu, 1);
        if kicks.contains(VCPU_CORE) {
            self.kicks.fetch_add(1, Ordering::Release);
        }
    }

    /// What the core of the vCPU does from a WFI exit on, until it idles. Returns the events that
    /// the vCPU has seen.
    fn run_until_idle(&self) -> u32 {
        let mut seen = 0;
        loop {
            let pick = self.scheduler.lock().unwrap().pick(VCPU_CORE, 1);
            if let Next::Idle { .. } = pick.next {
                return seen;
            }
            // The vCPU handles what is pending, then executes WFI, and its core looks once more.
            seen += self.pending.swap(0, Ordering::Acquire);
            if self.pending.load(Ordering::Acquire) == 0 {
                self.scheduler.lock().unwrap().stop(VCPU_CORE, 1, Stop::Blocked);
            }
        }
    }
}

/// When all is quiet, either the vCPU has seen every event, or its core has a kick pending that makes it
/// pick the vCPU again.
fn settle(machine: &Machine, vcpu: EntityId, mut seen: u32, posted: u32) {
    if machine.kicks.swap(0, Ordering::Acquire) > 0 {
        seen += machine.run_until_idle();
    }
    assert_eq!(seen, posted, "an event was lost");
    assert_eq!(machine.scheduler.lock().unwrap().state(vcpu), Some(State::Blocked));
}

#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let (machine, vcpu) = Machine::new();
        let poster = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.post(vcpu))
        };
        let seen = machine.run_until_idle();
        poster.join().unwrap();
        settle(&machine, vcpu, seen, 1);
    });
}

/// With three threads all interleavings are too many: those with up to two preemptions.
#[test]
fn no_wake_up_of_two_posters_is_lost() {
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(2);
    bounded.check(|| {
        let (machine, vcpu) = Machine::new();
        let posters = [(); 2].map(|()| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.post(vcpu))
        });
        let seen = machine.run_until_idle();
        for poster in posters {
            poster.join().unwrap();
        }
        settle(&machine, vcpu, seen, 2);
    });
}

/// A pause that races with a wake-up neither loses the wake-up nor the pause.
#[test]
fn a_pause_keeps_the_wake_up() {
    loom::model(|| {
        let (machine, vcpu) = Machine::new();
        let poster = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.post(vcpu))
        };
        let operator = {
            let machine = Arc::clone(&machine);
            thread::spawn(move || {
                let kicks = machine.scheduler.lock().unwrap().pause(vcpu);
                if kicks.contains(VCPU_CORE) {
                    machine.kicks.fetch_add(1, Ordering::Release);
                }
            })
        };
        let mut seen = machine.run_until_idle();
        poster.join().unwrap();
        operator.join().unwrap();
        if machine.kicks.swap(0, Ordering::Acquire) > 0 {
            seen += machine.run_until_idle();
        }
        assert_eq!(machine.scheduler.lock().unwrap().state(vcpu), Some(State::Paused));
        let kicks = machine.scheduler.lock().unwrap().resume(vcpu, 1);
        if kicks.contains(VCPU_CORE) {
            machine.kicks.fetch_add(1, Ordering::Release);
        }
        settle(&machine, vcpu, seen, 1);
    });
}
