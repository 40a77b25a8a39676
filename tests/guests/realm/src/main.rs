//! Realm test guest: uses everything that a realm is promised and checks what it gets.
//!
//! Its last line is `realm: all checks passed`, or `realm: FAILED` with the reason after it has
//! reported the failure to the host as well. Its measurement goes out as `realm: rim <hex>`.
#![no_std]
#![no_main]

mod attestation;
mod host;
mod rsi;
mod sharing;
mod vector_registers;

use core::ops::Range;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::boot::{self, BootInfo, Conduit, Ending};
use guest_rt::rsi::{RealmConfig, realm_config};
use guest_rt::{console, cpu_index, gic, mark, mmu, println, psci, timer, uart};
use rsi::Ripas;

/// Distance of two timer ticks in milliseconds.
const TICK_MS: u64 = 50;
/// Ticks that the first REC works for when the command line does not say.
const DEFAULT_TICKS: u64 = 20;
/// Context id of REC 0; that of REC `n` is `n` more.
const CONTEXT: u64 = 0x5eed_0000;
/// Last secondary REC that came on; they are started one after the other.
static LAST_STARTED: AtomicU64 = AtomicU64::new(0);
/// How many ticks a secondary REC works for; set before the first one starts.
static SECONDARY_TICKS: AtomicU64 = AtomicU64::new(0);

guest_rt::guest!(primary, secondary);

/// A check that did not hold; `code` goes to the host.
struct Failure {
    code: u64,
    what: &'static str,
}

/// Gives the errors of one group of checks their code.
fn group(code: u64, result: Result<(), &'static str>) -> Result<(), Failure> {
    result.map_err(|what| Failure { code, what })
}

fn primary(device_tree: u64) -> ! {
    console::set_sink(host::put_string);
    match run(device_tree) {
        Ok(ending) => {
            println!("realm: all checks passed");
            psci::end(Conduit::Smc, ending)
        }
        Err(Failure { code, what }) => fail(code, format_args!("{what}")),
    }
}

fn run(device_tree: u64) -> Result<Ending, Failure> {
    // SAFETY: the boot protocol puts the address of the device tree into x0 of the first REC.
    let info = unsafe { boot::parse(device_tree) }.map_err(|what| Failure { code: 1, what })?;
    group(2, check_version())?;
    let config = realm_config().map_err(|_| Failure { code: 3, what: "REALM_CONFIG" })?;
    group(3, check_config(&config, &info))?;
    let alias = 1 << (config.ipa_width - 1);
    mmu::enable(&info.ram, alias);
    uart::init();
    console::set_sink(host::alternate);
    println!(
        "realm: RAM {:#x}..{:#x}, IPA width {}, {} RECs",
        info.ram.start, info.ram.end, config.ipa_width, info.cpus
    );

    if let Some(rounds) = info.rounds {
        let mut refused = true;
        mark::each::<32>("host call of a realm (unknown function)", rounds, || {
            refused &= host::unknown();
        });
        group(12, if refused { Ok(()) } else { Err("an unknown host call was served") })?;
    }
    group(4, attestation::check(config.algorithm))?;
    group(5, check_ripas(&info.ram))?;
    group(6, check_refusals())?;
    gic::init_distributor();
    group(7, gic::init_cpu())?;
    if info.closed {
        group(8, sharing::check_refused())?;
        println!("realm: no page can be shared");
    } else {
        group(8, sharing::check(alias))?;
        println!("realm: page shared with the host and private again");
    }

    let ticks = info.ticks.unwrap_or(DEFAULT_TICKS);
    SECONDARY_TICKS.store((ticks / 2).max(1), Ordering::Release);
    let secondaries = 1..info.cpus.min(guest_rt::MAX_CPUS) as u64;
    for rec in secondaries.clone() {
        group(9, start_rec(rec))?;
    }
    group(10, work(ticks))?;
    for rec in secondaries {
        group(11, wait_until_off(rec))?;
    }
    Ok(info.ending)
}

fn secondary(context_id: u64) -> ! {
    mmu::enable_secondary();
    let rec = cpu_index() as u64;
    assert!(context_id == CONTEXT + rec, "context id {context_id:#x} is not what CPU_ON was given");
    if let Err(what) = gic::init_cpu() {
        fail(7, format_args!("REC {rec} {what}"));
    }
    println!("realm: REC {rec} on");
    LAST_STARTED.store(rec, Ordering::Release);
    if let Err(what) = work(SECONDARY_TICKS.load(Ordering::Acquire)) {
        fail(10, format_args!("REC {rec} {what}"));
    }
    println!("realm: REC {rec} off");
    psci::cpu_off(Conduit::Smc)
}

fn check_version() -> Result<(), &'static str> {
    let (lower, higher) =
        rsi::version(rsi::VERSION_1_0).map_err(|_| "RSI_VERSION refused version 1.0")?;
    if !(lower..=higher).contains(&rsi::VERSION_1_0) {
        return Err("RSI_VERSION names a range without 1.0");
    }
    if rsi::version(0x7fff_0000) != Err(rsi::ERROR_INPUT) {
        return Err("RSI_VERSION accepted a version that does not exist");
    }
    Ok(())
}

fn check_config(config: &RealmConfig, info: &BootInfo) -> Result<(), &'static str> {
    if !(32..=48).contains(&config.ipa_width) {
        return Err("IPA width is not in 32..=48");
    }
    if info.ram.end > 1 << (config.ipa_width - 1) {
        return Err("RAM reaches into the shared half of the IPA space");
    }
    if info.conduit != Conduit::Smc {
        return Err("PSCI conduit is not smc");
    }
    let version = psci::version(info.conduit).map_err(|_| "PSCI VERSION")?;
    if version < 0x1_0001 {
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
    if rsi::raw_call(UNKNOWN_CALL, &[])[0] != u64::MAX {
        return Err("an unknown SMC was not answered with -1");
    }
    if psci::cpu_on(Conduit::Smc, 0xff, 0).is_ok() {
        return Err("CPU_ON started a REC that does not exist");
    }
    if rsi::ripas(0x4000_0001, 0x4000_1000) != Err(rsi::ERROR_INPUT) {
        return Err("IPA_STATE_GET accepted a misaligned base");
    }
    Ok(())
}

fn start_rec(rec: u64) -> Result<(), &'static str> {
    psci::cpu_on(Conduit::Smc, rec, CONTEXT + rec).map_err(|_| "CPU_ON was refused")?;
    let deadline = timer::now() + timer::steps(10_000);
    while LAST_STARTED.load(Ordering::Acquire) < rec {
        if timer::now() > deadline {
            return Err("a REC did not come on in ten seconds");
        }
        core::hint::spin_loop();
    }
    if psci::cpu_on(Conduit::Smc, rec, 0).is_ok() {
        return Err("CPU_ON started a REC twice");
    }
    Ok(())
}

fn wait_until_off(rec: u64) -> Result<(), &'static str> {
    let deadline = timer::now() + timer::steps(10_000);
    while psci::is_on(Conduit::Smc, rec).map_err(|_| "AFFINITY_INFO was refused")? {
        if timer::now() > deadline {
            return Err("a REC did not go off in ten seconds");
        }
        core::hint::spin_loop();
    }
    Ok(())
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

/// Reports a failure everywhere and ends the realm.
fn fail(code: u64, what: core::fmt::Arguments<'_>) -> ! {
    println!("realm: FAILED {what}");
    host::report_failure(code);
    psci::system_off(Conduit::Smc)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    const PANIC: u64 = 100;
    fail(PANIC, format_args!("REC {} {}", cpu_index(), info.message()))
}
