//! Realm test guest: uses everything that a realm is promised and checks what it gets.
//!
//! Its measurement goes out as `realm: rim <hex>`. Words of the command line: `ticks=N` is how long it
//! works, `rounds=N` how many host calls it makes for the instruction counter, `closed` says that its owner
//! lets it share no memory. What it reports as failed is the code of a group of checks, below.
#![no_std]
#![no_main]

mod attestation;
mod rsi;
mod sharing;
mod vector_registers;

use core::ops::Range;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use guest_rt::boot::BootInfo;
use guest_rt::failure::Failure;
use guest_rt::rsi::{RealmConfig, Status, VERSION_1_0, raw_call, version};
use guest_rt::{console, cpu_index, gic, host, mark, println, psci, timer, uart};
use rsi::Ripas;

/// Distance of two timer ticks in milliseconds.
const TICK_MS: u64 = 50;
/// Ticks that the first REC works for when the command line does not say.
const DEFAULT_TICKS: u64 = 20;
/// Milliseconds that another REC may take to come on or to go off.
const PATIENCE_MS: u64 = 10_000;
/// Context id of REC 0; that of REC `n` is `n` more.
const CONTEXT: u64 = 0x5eed_0000;
/// Last secondary REC that came on; they are started one after the other.
static LAST_STARTED: AtomicU64 = AtomicU64::new(0);
/// How many ticks a secondary REC works for; set before the first one starts.
static SECONDARY_TICKS: AtomicU64 = AtomicU64::new(0);

guest_rt::guest!("realm", run, secondary);

/// Gives the errors of one group of checks their code.
fn group(code: u64, result: Result<(), &'static str>) -> Result<(), Failure> {
    result.map_err(|what| Failure { code, what })
}

/// Console sink whose lines go through a host call and through the UART in turn, so that both
/// ways stay in use to the end.
fn alternate(text: &str) {
    static LINES: AtomicUsize = AtomicUsize::new(0);
    if LINES.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
        host::put_string(text);
    } else {
        uart::write(text);
    }
}

fn run(info: &BootInfo) -> Result<(), Failure> {
    console::set_sink(alternate);
    group(2, check_version())?;
    let config = info.realm.ok_or("this is no realm")?;
    group(3, check_config(&config, info))?;
    println!(
        "realm: RAM {:#x}..{:#x}, IPA width {}, {} RECs",
        info.ram.start, info.ram.end, config.ipa_width, info.cpus
    );

    if let Some(rounds) = info.number("rounds") {
        let mut refused = true;
        mark::each::<32>("host call of a realm (unknown function)", rounds, || {
            refused &= host::unknown_is_refused();
        });
        group(12, if refused { Ok(()) } else { Err("an unknown host call was served") })?;
    }
    group(4, attestation::check(config.algorithm))?;
    group(5, check_ripas(&info.ram))?;
    group(6, check_refusals())?;
    gic::init_distributor();
    group(7, gic::init_cpu())?;
    if info.flag("closed") {
        group(8, sharing::check_refused())?;
        println!("realm: no page can be shared");
    } else {
        group(8, sharing::check(config.alias()))?;
        println!("realm: page shared with the host and private again");
    }

    let ticks = info.number("ticks").unwrap_or(DEFAULT_TICKS);
    SECONDARY_TICKS.store((ticks / 2).max(1), Ordering::Release);
    for rec in info.secondaries() {
        group(9, start_rec(rec))?;
    }
    group(10, work(ticks))?;
    for rec in info.secondaries() {
        group(11, wait_until_off(rec))?;
    }
    Ok(())
}

fn secondary(context_id: u64) -> Result<(), Failure> {
    let rec = cpu_index() as u64;
    assert!(context_id == CONTEXT + rec, "context id {context_id:#x} is not what CPU_ON was given");
    group(7, gic::init_cpu())?;
    println!("realm: REC {rec} on");
    LAST_STARTED.store(rec, Ordering::Release);
    group(10, work(SECONDARY_TICKS.load(Ordering::Acquire)))?;
    println!("realm: REC {rec} off");
    Ok(())
}

fn check_version() -> Result<(), &'static str> {
    let (lower, higher) = version(VERSION_1_0).map_err(|_| "RSI_VERSION refused version 1.0")?;
    if !(lower..=higher).contains(&VERSION_1_0) {
        return Err("RSI_VERSION names a range without 1.0");
    }
    if version(0x7fff_0000) != Err(Status::ERROR_INPUT) {
        return Err("RSI_VERSION accepted a version that does not exist");
    }
    Ok(())
}

fn check_config(config: &RealmConfig, info: &BootInfo) -> Result<(), &'static str> {
    if !(32..=52).contains(&config.ipa_width) {
        return Err("IPA width is not in 32..=52");
    }
    if info.ram.end > 1 << (config.ipa_width - 1) {
        return Err("RAM reaches into the shared half of the IPA space");
    }
    if psci::version().map_err(|_| "PSCI VERSION")? < 0x1_0001 {
        return Err("PSCI is older than 1.1");
    }
    Ok(())
}

/// All of RAM must be private RAM when the realm starts.
fn check_ripas(ram: &Range<u64>) -> Result<(), &'static str> {
    let mut base = ram.start;
    while base < ram.end {
        let (ripas, top) = rsi::ripas(base, ram.end).map_err(|_| "IPA_STATE_GET")?;
        if ripas != Ripas::Ram as u64 {
            return Err("not all of RAM has RIPAS RAM");
        }
        if top <= base || top > ram.end {
            return Err("IPA_STATE_GET names a top outside its range");
        }
        base = top;
    }
    Ok(())
}

/// What the RMM must refuse, without an exit to the host.
fn check_refusals() -> Result<(), &'static str> {
    /// In the range of the RSI, and not a call of any version.
    const UNKNOWN_CALL: u32 = 0xc400_01ad;
    if raw_call(UNKNOWN_CALL, &[])[0] != u64::MAX {
        return Err("an unknown SMC was not answered with -1");
    }
    if psci::cpu_on(0xff, 0).is_ok() {
        return Err("CPU_ON started a REC that does not exist");
    }
    if rsi::ripas(0x4000_0001, 0x4000_1000) != Err(Status::ERROR_INPUT) {
        return Err("IPA_STATE_GET accepted a misaligned base");
    }
    Ok(())
}

fn start_rec(rec: u64) -> Result<(), &'static str> {
    psci::cpu_on(rec, CONTEXT + rec).map_err(|_| "CPU_ON was refused")?;
    if !timer::poll(PATIENCE_MS, || LAST_STARTED.load(Ordering::Acquire) >= rec) {
        return Err("a REC did not come on in ten seconds");
    }
    if psci::cpu_on(rec, 0).is_ok() {
        return Err("CPU_ON started a REC twice");
    }
    Ok(())
}

fn wait_until_off(rec: u64) -> Result<(), &'static str> {
    if timer::poll(PATIENCE_MS, || psci::is_on(rec) == Ok(false)) {
        Ok(())
    } else {
        Err("a REC did not go off in ten seconds")
    }
}

/// Computes through every other tick and sleeps through the rest, so that a REC both uses up its
/// time slice and gives it back; checks that nobody disturbs its vector registers meanwhile.
fn work(ticks: u64) -> Result<(), &'static str> {
    let rec = cpu_index() as u64;
    let seed = 0xf00d_0000_0000_0000 | rec << 32;
    vector_registers::fill(seed);
    let first = timer::ticks();
    let start = timer::now();
    timer::start(TICK_MS);
    for tick in 1..=ticks {
        if tick % 2 == 1 {
            while timer::ticks() < first + tick {
                core::hint::spin_loop();
            }
        } else {
            timer::wait_for_tick(first + tick);
        }
        if tick % 2 == 0 || tick == ticks {
            let ms = (timer::now() - start) / timer::steps(1).max(1);
            println!("realm: REC {rec} tick {tick} of {ticks} after {ms} ms");
        }
        if !vector_registers::unchanged(seed) {
            return Err("somebody changed the vector registers");
        }
    }
    timer::stop();
    Ok(())
}
