//! What the scheduler promises, on random sets of entities in simulated time.

mod sim;

use proptest::prelude::*;
use sched::{Budget, CoreSet, Params};
use sim::{Delays, Load, Sim, Task};

const MS: u64 = 1_000_000;

fn delays() -> impl Strategy<Value = Delays> {
    (0u64..20_000, 0u64..20_000, 0u64..20_000).prop_map(|(kick_ns, timer_ns, block_ns)| Delays {
        kick_ns,
        timer_ns,
        block_ns,
    })
}

fn load() -> impl Strategy<Value = Load> {
    prop_oneof![
        Just(Load::Hog),
        (1_000u64..500_000, 5_000u64..MS)
            .prop_map(|(burst_ns, gap_ns)| Load::Events { burst_ns, gap_ns }),
    ]
}

fn budget() -> impl Strategy<Value = Option<Budget>> {
    prop_oneof![
        2 => Just(None),
        1 => (10_000u64..500_000, 0u64..MS)
            .prop_map(|(budget_ns, rest)| Some(Budget { budget_ns, period_ns: budget_ns + rest })),
    ]
}

fn task(cores: usize) -> impl Strategy<Value = Task> {
    (1u32..1 << cores, 0u8..4, 10_000u64..500_000, budget(), load()).prop_map(
        |(affinity, priority, slice_ns, budget, load)| {
            let affinity = CoreSet::from_bits(affinity);
            Task { params: Params { priority, slice_ns, budget, affinity }, load }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Affinity, work conservation, priorities, budgets and wake-ups: `Sim` checks them at every event.
    #[test]
    fn promises_hold_on_one_core(
        tasks in prop::collection::vec(task(1), 1..8), delays in delays(), seed: u64,
    ) {
        Sim::<1>::new(&tasks, delays, seed).run(20 * MS);
    }

    #[test]
    fn promises_hold_on_four_cores(
        tasks in prop::collection::vec(task(4), 1..14), delays in delays(), seed: u64,
    ) {
        Sim::<4>::new(&tasks, delays, seed).run(20 * MS);
    }

    /// A core that stops takes along what it runs; all else goes on on the other cores.
    #[test]
    fn promises_hold_when_cores_stop(
        tasks in prop::collection::vec(task(4), 1..14),
        delays in delays(),
        seed: u64,
        stops in prop::sample::subsequence(vec![0u8, 1, 2, 3], 1..4),
    ) {
        let mut sim = Sim::<4>::new(&tasks, delays, seed);
        let mut lost = Vec::new();
        for (n, &core) in stops.iter().enumerate() {
            sim.run((n as u64 + 1) * 5 * MS);
            lost.extend(sim.retire(core));
        }
        for &actor in &lost {
            prop_assert_eq!(sim.scheduler.state(sim.id(actor)), Some(sched::State::Exited));
        }
        sim.run(30 * MS);
        for actor in lost {
            prop_assert_eq!(sim.scheduler.remove(sim.id(actor)), Ok(()));
        }
    }

    /// The most urgent entity runs as soon as a kick arrives, whatever else there is.
    #[test]
    fn the_most_urgent_entity_runs_at_once(
        mut tasks in prop::collection::vec(task(2), 1..8), delays in delays(), seed: u64,
    ) {
        let params =
            Params { priority: 9, slice_ns: MS, budget: None, affinity: CoreSet::from_bits(1) };
        tasks.push(Task { params, load: Load::Events { burst_ns: 50_000, gap_ns: 200_000 } });
        let urgent = tasks.len() - 1;
        let mut sim = Sim::<2>::new(&tasks, delays, seed);
        sim.run(20 * MS);
        let latencies = sim.latencies(urgent);
        prop_assert!(!latencies.is_empty());
        prop_assert!(latencies.iter().all(|&latency| latency <= delays.kick_ns));
    }

    /// Within a priority nobody waits longer than the slices of the others, and hogs get equal turns.
    #[test]
    fn nobody_starves_within_a_priority(
        loads in prop::collection::vec((load(), 10_000u64..500_000), 2..8),
        delays in delays(),
        seed: u64,
    ) {
        let tasks: Vec<Task> = loads
            .iter()
            .map(|&(load, slice_ns)| Task {
                params: Params { priority: 7, slice_ns, budget: None, affinity: CoreSet::ALL },
                load,
            })
            .collect();
        let mut sim = Sim::<1>::new(&tasks, delays, seed);
        sim.run(100 * MS);
        // A slice may end late by the timer, or by the kick that arms it.
        let late = delays.timer_ns + delays.kick_ns + delays.block_ns;
        for waiting in 0..tasks.len() {
            let others: u64 = (0..tasks.len())
                .filter(|&other| other != waiting)
                .map(|other| tasks[other].params.slice_ns + late)
                .sum();
            let longest = sim.scheduler.stats(sim.id(waiting)).unwrap().max_wait_ns;
            prop_assert!(longest <= others, "{} waited {} of {}", waiting, longest, others);
        }
    }

    /// Hogs share one core in proportion to their slices.
    #[test]
    fn hogs_share_by_their_slices(
        slices in prop::collection::vec(50_000u64..500_000, 2..6), seed: u64,
    ) {
        let tasks: Vec<Task> = slices
            .iter()
            .map(|&slice_ns| Task {
                params: Params { priority: 0, slice_ns, budget: None, affinity: CoreSet::ALL },
                load: Load::Hog,
            })
            .collect();
        let delays = Delays { kick_ns: 0, timer_ns: 0, block_ns: 0 };
        let mut sim = Sim::<1>::new(&tasks, delays, seed);
        let end = 200 * MS;
        sim.run(end);
        let round: u64 = slices.iter().sum();
        for (index, &slice) in slices.iter().enumerate() {
            let fair = end / round * slice;
            let got = sim.run_ns(index);
            prop_assert!(got.abs_diff(fair) <= 2 * slice + 50_000, "{} instead of {}", got, fair);
        }
    }
}

/// Entities that only compute keep their share of the machine, whatever those that come and go beside
/// them do to the queues.
#[test]
fn hogs_on_two_cores_keep_their_share() {
    proptest!(|(
        hogs in 2usize..7,
        events in prop::collection::vec((1..30 * MS, 1..40 * MS), 0..4),
        seed: u64,
    )| {
        let params = Params { priority: 3, slice_ns: MS, budget: None, affinity: CoreSet::ALL };
        let events = events.iter().map(|&(burst_ns, gap_ns)| Load::Events { burst_ns, gap_ns });
        let loads = core::iter::repeat_n(Load::Hog, hogs).chain(events);
        let tasks: Vec<Task> = loads.map(|load| Task { params, load }).collect();
        let delays = Delays { kick_ns: 1_000, timer_ns: 1_000, block_ns: 1_000 };
        let mut sim = Sim::<2>::new(&tasks, delays, seed);
        let end = 1_000 * MS;
        sim.run(end);
        let share = end / tasks.len().div_ceil(2) as u64;
        for hog in 0..hogs {
            let got = sim.run_ns(hog);
            prop_assert!(got >= share / 10 * 9, "hog {} got {} of {}", hog, got, share);
        }
    });
}

/// A lone entity without a budget is never interrupted by the scheduler.
#[test]
fn no_tick() {
    let params = Params { priority: 1, slice_ns: MS, budget: None, affinity: CoreSet::ALL };
    let delays = Delays { kick_ns: 1_000, timer_ns: 1_000, block_ns: 1_000 };
    let mut sim = Sim::<2>::new(&[Task { params, load: Load::Hog }], delays, 1);
    sim.run(1_000 * MS);
    assert_eq!(sim.timer_interrupts, 0);
    assert_eq!(sim.kicks, 1, "the one that started it");
}

/// Hogs that start on one core spread over the others.
#[test]
fn load_spreads() {
    let params = Params { priority: 1, slice_ns: MS, budget: None, affinity: CoreSet::ALL };
    let delays = Delays { kick_ns: 1_000, timer_ns: 1_000, block_ns: 1_000 };
    let mut sim = Sim::<4>::new(&[Task { params, load: Load::Hog }; 8], delays, 1);
    sim.run(400 * MS);
    for actor in 0..8 {
        let share = sim.run_ns(actor);
        assert!(share.abs_diff(200 * MS) < 5 * MS, "{share} of 200 ms");
    }
}
