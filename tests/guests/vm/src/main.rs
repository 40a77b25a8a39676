//! Normal test guest: what a small RTOS would ask of the hypervisor.
//!
//! Prints over the PL011, takes timer interrupts, sleeps in WFI, starts every further vCPU by
//! PSCI, and waits until they are off again. Words of the command line: `ticks=N` is how long it works,
//! `rtc` says that it has the machine's real-time clock, `stray` that it is to touch memory that is not its
//! own.
#![no_std]
#![no_main]

mod rtc;

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::boot::BootInfo;
use guest_rt::failure::Failure;
use guest_rt::{cpu_index, gic, mmu, println, psci, timer};

/// Distance of two timer ticks in milliseconds.
const TICK_MS: u64 = 50;
/// Ticks that a vCPU works for when the command line does not say.
const DEFAULT_TICKS: u64 = 20;
/// Milliseconds that another vCPU may take to come on or to go off.
const PATIENCE_MS: u64 = 10_000;

/// Context id of vCPU 0; that of vCPU `n` is `n` more.
const CONTEXT: u64 = 0x5eed_0000;

/// Last secondary vCPU that came on; they are started one after the other.
static STARTED: AtomicU64 = AtomicU64::new(0);
/// How many ticks a secondary vCPU works for; set before the first one starts.
static SECONDARY_TICKS: AtomicU64 = AtomicU64::new(0);

guest_rt::guest!("vm", run, secondary);

fn secondary(context_id: u64) -> Result<(), Failure> {
    gic::init_cpu()?;
    let cpu = cpu_index() as u64;
    assert!(context_id == CONTEXT + cpu, "context id {context_id:#x} is not what CPU_ON was given");
    println!("vm: cpu {cpu} on");
    STARTED.store(cpu, Ordering::Release);
    work(SECONDARY_TICKS.load(Ordering::Acquire));
    println!("vm: cpu {cpu} off");
    Ok(())
}

fn run(info: &BootInfo) -> Result<(), Failure> {
    println!("vm: RAM {:#x}..{:#x}, {} vCPUs", info.ram.start, info.ram.end, info.cpus);
    let version = psci::version().map_err(|_| "PSCI VERSION")?;
    if version >> 16 == 0 {
        return Err("PSCI is older than 1.0".into());
    }
    println!("vm: PSCI {}.{}", version >> 16, version & 0xffff);
    gic::init_distributor();
    gic::init_cpu()?;

    if info.flag("stray") {
        stray()?;
    }
    if info.flag("rtc") {
        rtc::check()?;
    }
    let ticks = info.number("ticks").unwrap_or(DEFAULT_TICKS);
    SECONDARY_TICKS.store((ticks / 2).max(1), Ordering::Release);
    for cpu in info.secondaries() {
        psci::cpu_on(cpu, CONTEXT + cpu).map_err(|_| "CPU_ON was refused")?;
        if !timer::poll(PATIENCE_MS, || STARTED.load(Ordering::Acquire) >= cpu) {
            return Err("another vCPU did not come on in ten seconds".into());
        }
        if psci::cpu_on(cpu, 0).is_ok() {
            return Err("CPU_ON started a vCPU twice".into());
        }
    }
    work(ticks);
    for cpu in info.secondaries() {
        if !timer::poll(PATIENCE_MS, || psci::is_on(cpu) == Ok(false)) {
            return Err("another vCPU did not go off in ten seconds".into());
        }
    }
    if info.flag("rtc") {
        rtc::leave_alarm_on()?;
    }
    Ok(())
}

/// Touches the granule of a realm that the hypervisor maps here on purpose in the scenario
/// `isolation`. Whoever comes back from this has seen what is not its own.
fn stray() -> Result<(), &'static str> {
    /// Where the hypervisor maps it (`vmm_services::layout::STRAY`).
    const STRAY: u64 = 0x3000_0000;
    println!("vm: straying to {STRAY:#x}");
    let _ = mmu::read_register(STRAY);
    Err("nobody stopped the access to a granule of a realm")
}

/// Sleeps from tick to tick and reports a few of them.
fn work(ticks: u64) {
    let first = timer::ticks();
    let start = timer::now();
    timer::start(TICK_MS);
    for tick in 1..=ticks {
        timer::wait_for_tick(first + tick);
        if tick % 5 == 0 || tick == ticks {
            let ms = (timer::now() - start) / timer::steps(1).max(1);
            println!("vm: cpu {} tick {tick} of {ticks} after {ms} ms", cpu_index());
        }
    }
    timer::stop();
}
