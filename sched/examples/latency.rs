//! Prints how long entities wait from an event to the run that handles it, on simulated cores.
//!
//! `cargo run -p sched --release --example latency [SECONDS]`

#[path = "../tests/sim/mod.rs"]
#[expect(dead_code, reason = "stops of cores are for the tests")]
mod sim;

use sched::{Budget, CoreSet, Params};
use sim::{Delays, Load, Sim, Task};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;

fn task(priority: u8, affinity: u32, budget: Option<(u64, u64)>, load: Load) -> Task {
    let budget = budget.map(|(budget_ns, period_ns)| Budget { budget_ns, period_ns });
    let affinity = CoreSet::from_bits(affinity);
    Task { params: Params { priority, slice_ns: 2 * MS, budget, affinity }, load }
}

fn main() {
    let seconds: u64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(10);
    let events = |burst_ns, gap_ns| Load::Events { burst_ns, gap_ns };
    let tasks = [
        ("control loop, core 0", task(200, 0b01, None, events(50 * US, MS))),
        ("device server, 10% of a core", task(150, 0b11, Some((MS, 10 * MS)), events(80 * US, MS))),
        ("interactive", task(100, 0b11, None, events(300 * US, 3 * MS))),
        ("interactive", task(100, 0b11, None, events(300 * US, 3 * MS))),
        ("batch, 30% of a core", task(100, 0b11, Some((3 * MS, 10 * MS)), Load::Hog)),
        ("batch", task(50, 0b11, None, Load::Hog)),
        ("batch", task(50, 0b11, None, Load::Hog)),
        ("batch", task(50, 0b11, None, Load::Hog)),
    ];
    let delays = Delays { kick_ns: 2 * US, timer_ns: US, block_ns: US };
    let list = tasks.map(|(_, task)| task);
    let mut sim = Sim::<2>::new(&list, delays, 2_026);
    let end = seconds * 1_000 * MS;
    sim.run(end);

    println!("2 cores, {seconds} s, kick {} us, timer up to {} us late", 2, 1);
    println!(
        "{:<30} {:>4} {:>7} {:>8} | wake to run, us: {:>7} {:>7} {:>7} {:>8} | {:>9}",
        "entity", "prio", "cpu %", "events", "50%", "99%", "99.9%", "max", "max wait"
    );
    for (index, (name, task)) in tasks.iter().enumerate() {
        let latencies = sim.latencies(index);
        let at = |per_mille: usize| {
            let last = latencies.len().saturating_sub(1);
            let rank = (latencies.len() * per_mille / 1000).min(last);
            latencies.get(rank).map_or(0.0, |&ns| ns as f64 / 1e3)
        };
        let wait = sim.scheduler.stats(sim.id(index)).map_or(0, |stats| stats.max_wait_ns);
        println!(
            "{name:<30} {:>4} {:>7.1} {:>8} | {:>24.1} {:>7.1} {:>7.1} {:>8.1} | {:>9.1}",
            task.params.priority,
            sim.run_ns(index) as f64 * 100.0 / end as f64,
            latencies.len(),
            at(500),
            at(990),
            at(999),
            at(1000),
            wait as f64 / 1e3,
        );
    }
    println!(
        "{:.0} timer interrupts and {:.0} kicks a second",
        sim.timer_interrupts as f64 / seconds as f64,
        sim.kicks as f64 / seconds as f64,
    );
}
