//! Normal test guest: what a vCPU has, and what it has not.
//!
//! Each check prints `cpu: NAME ok`, with what it counted. Words of the command line: with `fp=N` every
//! vCPU checks its FP registers N times while others run; with `storm=N` the guest does nothing but raise
//! and take interrupts for N seconds.
#![no_std]
#![no_main]

mod caches;
mod endianness;
mod features;
mod firmware;
mod fp;
mod storm;
mod timers;

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::boot::BootInfo;
use guest_rt::failure::Failure;
use guest_rt::{cpu_index, gic, println, psci, timer};

/// Context id of CPU_ON for vCPU `n` is this plus `n`.
const CONTEXT: u64 = 0x5eed_0000;
/// Rounds of the FP check if the command line does not say.
const FP_ROUNDS: u64 = 20;

/// vCPUs that are done.
static DONE: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

guest_rt::guest!("cpu", run, secondary);

fn run(info: &BootInfo) -> Result<(), Failure> {
    gic::init_distributor();
    gic::init_cpu()?;
    if let Some(seconds) = info.number("storm") {
        storm::begin(seconds);
        start_others(info)?;
        return Ok(storm::endure(info)?);
    }
    ROUNDS.store(info.number("fp").unwrap_or(FP_ROUNDS), Ordering::Relaxed);
    features::check()?;
    firmware::check_calls()?;
    timers::check()?;
    caches::check()?;
    endianness::check()?;
    firmware::check_standby()?;
    let others = start_others(info)?;
    let rounds = fp::check(ROUNDS.load(Ordering::Relaxed))?;
    println!("cpu: {} FP registers ok, {rounds} rounds", cpu_index());
    let deadline = timer::now() + timer::steps(30_000);
    while DONE.load(Ordering::Acquire) != others {
        if timer::now() > deadline {
            return Err("another vCPU was not done in thirty seconds".into());
        }
        timers::sleep(10);
    }
    Ok(())
}

/// Turns the other vCPUs on; returns how many there are.
fn start_others(info: &BootInfo) -> Result<u64, &'static str> {
    let others = info.secondaries();
    for cpu in others.clone() {
        psci::cpu_on(cpu, CONTEXT + cpu).map_err(|_| "CPU_ON was refused")?;
    }
    Ok(others.end - others.start)
}

fn secondary(context_id: u64) -> Result<(), Failure> {
    let cpu = cpu_index() as u64;
    if context_id == CONTEXT + cpu {
        gic::init_cpu()?;
        if storm::is_wanted() {
            return Ok(storm::send()?);
        }
        // Comes back as another call of `secondary`, with another context.
        firmware::power_down(firmware::WOKEN + cpu)?;
    }
    if context_id != firmware::WOKEN + cpu {
        return Err("the context id is not what was given".into());
    }
    // The CPU interface and the timers are as before.
    gic::unmask_irqs();
    println!("cpu: {cpu} came back from a powerdown state");
    let rounds = fp::check(ROUNDS.load(Ordering::Relaxed))?;
    println!("cpu: {cpu} FP registers ok, {rounds} rounds");
    DONE.fetch_add(1, Ordering::AcqRel);
    Ok(())
}
