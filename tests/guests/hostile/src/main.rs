//! Hostile test guest: throws at its hypervisor whatever a guest can throw.
//!
//! Command line: `cases=N` of each kind (some kinds take a fraction of that), `seed=S`. The first vCPU
//! does N cases kind by kind; the others do more of the same kind meanwhile, or change memory under its
//! hands. It prints how many cases of each kind there were and powers off. It does not judge the
//! answers, apart from registers that must not change: the hypervisor and the other VMs have to
//! live through it.
#![no_std]
#![no_main]

mod calls;
mod guest;
mod interrupts;
mod mmio;
mod power;
mod probe;
mod queues;
mod realm;
mod space;
mod sysregs;
mod tables;
mod waits;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use guest::Guest;
use guest_rt::boot::BootInfo;
use guest_rt::failure::Failure;
use guest_rt::{MAX_CPUS, console, cpu_index, println, psci, rsi, timer, uart};
use spin::Once;

/// Cases of each kind when the command line does not say.
const DEFAULT_CASES: u64 = 10_000;
/// Context id of a vCPU that is to take part.
const TAKE_PART: u64 = 0x5eed_0000;

/// Which guests try a kind of case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    All,
    Vms,
    Realms,
}

/// One kind of case.
struct Kind {
    name: &'static str,
    who: Who,
    /// The part of the number of cases that is done: one in so many.
    share: u64,
    /// A batch of cases of the first vCPU; returns how many.
    run: fn(&mut Guest) -> u64,
    /// What the others do meanwhile.
    beside: fn(&mut Guest) -> u64,
}

const fn kind(
    name: &'static str,
    who: Who,
    share: u64,
    run: fn(&mut Guest) -> u64,
    beside: fn(&mut Guest) -> u64,
) -> Kind {
    Kind { name, who, share, run, beside }
}

const KINDS: &[Kind] = &[
    kind("mmio accesses", Who::All, 1, mmio::accesses, mmio::accesses),
    kind("instruction fetches", Who::All, 4, mmio::fetches, mmio::fetches),
    kind("hypercalls", Who::Vms, 1, calls::calls, calls::calls),
    kind("system registers", Who::All, 1, sysregs::registers, sysregs::registers),
    kind("cache and TLB maintenance", Who::All, 2, sysregs::maintenance, sysregs::maintenance),
    kind("stage-1 tables", Who::All, 4, tables::games, tables::games),
    kind("virtqueue notifications", Who::All, 4, queues::break_device, queues::overwrite),
    kind("interrupt storms", Who::All, 1, interrupts::storm, interrupts::storm),
    kind("waits", Who::All, 8, waits::flood, waits::flood),
    kind("host calls", Who::Realms, 2, realm::host_calls, realm::host_calls),
    kind("RIPAS changes", Who::Realms, 8, realm::ripas_storm, realm::ripas_storm),
    kind("pages shared and taken back", Who::Realms, 16, realm::flips, realm::flips),
];

/// Number of calls per case: storms of CPU_ON are slow.
const POWER_SHARE: u64 = 16;

/// Kind of case under way, as an index; [`OVER`] when siblings are to go off.
static PHASE: AtomicUsize = AtomicUsize::new(0);
const OVER: usize = usize::MAX;
/// The kind of case that each of the others has gone over to.
static JOINED: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
/// Cases that the other vCPUs did.
static BESIDE: AtomicU64 = AtomicU64::new(0);
/// vCPUs that have come on to take part.
static TAKING_PART: AtomicU64 = AtomicU64::new(0);
/// What all vCPUs have to know: the device tree, and the seed of the random numbers.
static SETUP: Once<(BootInfo, u64)> = Once::new();

guest_rt::guest!("hostile", run, secondary);

fn run(info: &BootInfo) -> Result<(), Failure> {
    let seed = info.number("seed").unwrap_or(1);
    let cases = info.number("cases").unwrap_or(DEFAULT_CASES);
    SETUP.call_once(|| (info.clone(), seed));
    console::set_sink(say);
    space::build(info.alias());
    enter();
    let mut guest = Guest::new(info, seed, 0);
    println!("hostile: seed {seed}, {cases} cases of each kind, {} vCPUs", guest.cpus);
    let done = do_cases(&mut guest, cases);
    println!("hostile: {done} cases in all, still here");
    power::let_one_run_wild(&guest);
    Ok(())
}

/// What every vCPU needs before it does any case.
fn enter() {
    space::enter();
    probe::init_vectors();
    interrupts::restore();
}

fn secondary(context: u64) -> Result<(), Failure> {
    let (info, seed) = SETUP.get().ok_or("nobody has set up")?;
    let mut guest = Guest::new(info, *seed, cpu_index());
    if context & !3 == power::CONTEXT {
        power::come_on(&mut guest, context);
        return Ok(());
    }
    enter();
    TAKING_PART.fetch_add(1, Ordering::AcqRel);
    loop {
        let phase = PHASE.load(Ordering::Acquire);
        let Some(kind) = KINDS.get(phase) else { break };
        JOINED[cpu_index()].store(phase, Ordering::Release);
        BESIDE.fetch_add((kind.beside)(&mut guest), Ordering::Relaxed);
    }
    interrupts::quiet();
    Ok(())
}

/// Does all kinds of cases; returns how many cases there were.
fn do_cases(guest: &mut Guest, cases: u64) -> u64 {
    for cpu in 1..guest.cpus as u64 {
        let on = psci::cpu_on(cpu, TAKE_PART);
        assert!(on.is_ok(), "CPU_ON was refused: {on:?}");
        in_time("come on", || TAKING_PART.load(Ordering::Acquire) >= cpu);
    }
    let own = if rsi::is_realm() { Who::Realms } else { Who::Vms };
    let mut all = 0;
    for (phase, kind) in KINDS.iter().enumerate() {
        if ![Who::All, own].contains(&kind.who) {
            continue;
        }
        PHASE.store(phase, Ordering::Release);
        // Nobody is still at the last kind, so that no interrupt that ends a wait gets turned off.
        let others = &JOINED[1..guest.cpus.max(1)];
        in_time("join", || others.iter().all(|j| j.load(Ordering::Acquire) == phase));
        let before = BESIDE.load(Ordering::Relaxed);
        guest.faults = 0;
        let wanted = cases.div_ceil(kind.share);
        let mut done = 0;
        while done < wanted {
            match (kind.run)(guest) {
                0 => break,
                more => done += more,
            }
        }
        if done == 0 {
            println!("hostile: there is no device for {}", kind.name);
            continue;
        }
        let beside = BESIDE.load(Ordering::Relaxed) - before;
        println!(
            "hostile: {}: {done} cases, {} took an exception; {beside} on other vCPUs",
            kind.name, guest.faults
        );
        all += done + beside;
    }
    PHASE.store(OVER, Ordering::Release);
    interrupts::quiet();
    println!("hostile: {} interrupts taken", interrupts::taken());
    in_time("go off", || power::all_off(guest));
    let wanted = cases.div_ceil(POWER_SHARE);
    let mut done = 0;
    while done < wanted && guest.cpus > 1 {
        done += power::storm(guest);
    }
    in_time("go off", || power::all_off(guest));
    println!("hostile: {done} PSCI calls, a sibling came on {} times", power::came_on());
    all + done
}

/// Waits until `done`.
///
/// # Panics
///
/// When the other vCPUs take longer than thirty seconds for `what`.
fn in_time(what: &str, done: impl FnMut() -> bool) {
    assert!(timer::poll(30_000, done), "other vCPUs did not {what} in thirty seconds");
}

/// Writes to the UART, whatever a case has done to its settings.
fn say(text: &str) {
    interrupts::restore_uart();
    uart::write(text);
}
