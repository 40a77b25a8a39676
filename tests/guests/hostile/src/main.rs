//! Hostile test guest: throws at its hypervisor whatever a guest can throw.
//!
//! Command line: `cases=N` of each kind (some kinds take a fraction of that), `seed=S`. One binary
//! is a normal VM or a realm, as the PSCI conduit of its device tree says. The first vCPU does N
//! cases kind by kind; the others do more of the same kind meanwhile, or change memory under its
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
mod rng;
mod space;
mod sysregs;
mod tables;
mod waits;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use guest::{Guest, Setup};
use guest_rt::boot::{self, Conduit};
use guest_rt::{MAX_CPUS, console, cpu_index, mmu, println, psci, rsi, timer, uart};

/// Cases of each kind when the command line does not say.
const DEFAULT_CASES: u64 = 10_000;
/// Context id of a vCPU that is to take part.
const TAKE_PART: u64 = 0x5eed_0000;

/// One kind of case.
struct Kind {
    name: &'static str,
    /// A batch of cases of the first vCPU; returns how many.
    run: fn(&mut Guest) -> u64,
    /// What the others do meanwhile.
    beside: fn(&mut Guest) -> u64,
    /// The part of the number of cases that is done: one in so many.
    share: u64,
    /// For which guests.
    vms: bool,
    realms: bool,
}

const KINDS: &[Kind] = &[
    both("mmio accesses", mmio::accesses, mmio::accesses, 1),
    both("instruction fetches", mmio::fetches, mmio::fetches, 4),
    only_vm("hypercalls", calls::calls, calls::calls, 1),
    both("system registers", sysregs::registers, sysregs::registers, 1),
    both("cache and TLB maintenance", sysregs::maintenance, sysregs::maintenance, 2),
    both("stage-1 tables", tables::games, tables::games, 4),
    both("virtqueue notifications", queues::break_device, queues::overwrite, 4),
    both("interrupt storms", interrupts::storm, interrupts::storm, 1),
    both("waits", waits::flood, waits::flood, 8),
    only_realm("host calls", realm::host_calls, realm::host_calls, 2),
    only_realm("RIPAS changes", realm::ripas_storm, realm::ripas_storm, 8),
    only_realm("pages shared and taken back", realm::flips, realm::flips, 16),
];

const fn both(
    name: &'static str,
    run: fn(&mut Guest) -> u64,
    beside: fn(&mut Guest) -> u64,
    share: u64,
) -> Kind {
    Kind { name, run, beside, share, vms: true, realms: true }
}

const fn only_vm(
    name: &'static str,
    run: fn(&mut Guest) -> u64,
    beside: fn(&mut Guest) -> u64,
    share: u64,
) -> Kind {
    Kind { name, run, beside, share, vms: true, realms: false }
}

const fn only_realm(
    name: &'static str,
    run: fn(&mut Guest) -> u64,
    beside: fn(&mut Guest) -> u64,
    share: u64,
) -> Kind {
    Kind { name, run, beside, share, vms: false, realms: true }
}

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
/// PSCI conduit for those who cannot be told: whether it is SMC.
static BY_SMC: AtomicBool = AtomicBool::new(false);

/// [`Setup`] in parts: seed, start and end of RAM, number of vCPUs, alias bit.
static SETUP: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

guest_rt::guest!(primary, secondary);

fn conduit() -> Conduit {
    if BY_SMC.load(Ordering::Acquire) { Conduit::Smc } else { Conduit::Hvc }
}

fn setup() -> Setup {
    let [seed, start, end, cpus, alias] = SETUP.each_ref().map(|v| v.load(Ordering::Acquire));
    Setup { seed, ram: start..end, cpus: cpus as usize, conduit: conduit(), alias }
}

fn primary(device_tree: u64) -> ! {
    // SAFETY: the boot protocol puts the address of the device tree into x0.
    let info = match unsafe { boot::parse(device_tree) } {
        Ok(info) => info,
        // Without the tree there is no conduit to end by, but the UART is where it always is.
        Err(reason) => {
            mmu::enable(&(space::RAM..2 * space::RAM), 0);
            start_console();
            panic!("{reason}");
        }
    };
    BY_SMC.store(info.conduit == Conduit::Smc, Ordering::Release);
    let alias = if info.conduit == Conduit::Smc {
        rsi::realm_config().map_or(0, |config| 1 << (config.ipa_width - 1))
    } else {
        0
    };
    let seed = info.seed.unwrap_or(1);
    let values = [seed, info.ram.start, info.ram.end, info.cpus as u64, alias];
    SETUP.iter().zip(values).for_each(|(to, value)| to.store(value, Ordering::Release));
    mmu::enable(&info.ram, alias);
    start_console();
    space::build(alias);
    enter();
    let cases = info.cases.unwrap_or(DEFAULT_CASES);
    let mut guest = Guest::new(&setup(), 0);
    println!("hostile: seed {seed}, {cases} cases of each kind, {} vCPUs", guest.cpus);
    let done = run(&mut guest, cases);
    println!("hostile: {done} cases in all, still here");
    power::let_one_run_wild(&guest);
    psci::system_off(info.conduit)
}

/// What every vCPU needs before it does any case.
fn enter() {
    space::enter();
    probe::init_vectors();
    interrupts::restore();
}

fn secondary(context: u64) -> ! {
    mmu::enable_secondary();
    let mut guest = Guest::new(&setup(), cpu_index());
    if context & !3 == power::CONTEXT {
        power::off_again(&mut guest, context);
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
    psci::cpu_off(guest.conduit)
}

/// Does all kinds of cases; returns how many cases there were.
fn run(guest: &mut Guest, cases: u64) -> u64 {
    for cpu in 1..guest.cpus as u64 {
        if psci::cpu_on(guest.conduit, cpu, TAKE_PART).is_err() {
            panic!("CPU_ON was refused");
        }
        within_ten_seconds("come on", || TAKING_PART.load(Ordering::Acquire) >= cpu);
    }
    let mut all = 0;
    for (phase, kind) in KINDS.iter().enumerate() {
        if !(if guest.is_realm() { kind.realms } else { kind.vms }) {
            continue;
        }
        PHASE.store(phase, Ordering::Release);
        // Nobody is still at the last kind, so that no interrupt that ends a wait gets turned off.
        let others = &JOINED[1..guest.cpus.max(1)];
        within_ten_seconds("join", || others.iter().all(|j| j.load(Ordering::Acquire) == phase));
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
    within_ten_seconds("go off", || power::all_off(guest));
    let wanted = cases.div_ceil(POWER_SHARE);
    let mut done = 0;
    while done < wanted && guest.cpus > 1 {
        done += power::storm(guest);
    }
    within_ten_seconds("go off", || power::all_off(guest));
    println!("hostile: {done} PSCI calls, a sibling came on {} times", power::came_on());
    all + done
}

/// Waits until `done`.
///
/// # Panics
///
/// When the other vCPUs take longer than ten seconds for `what`.
fn within_ten_seconds(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = timer::now() + timer::steps(30_000);
    while !done() {
        assert!(timer::now() < deadline, "other vCPUs did not {what} in ten seconds");
        core::hint::spin_loop();
    }
}

fn start_console() {
    uart::init();
    console::set_sink(say);
}

/// Writes to the UART, whatever a case has done to its settings.
fn say(text: &str) {
    interrupts::restore_uart();
    uart::write(text);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("hostile: FAILED cpu {} {}", cpu_index(), info.message());
    psci::system_off(conduit())
}
