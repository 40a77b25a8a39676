//! The report at the end: what became of each VM, what it cost, and whether all granules are back.

use super::stats::{Cause, Life, Milliseconds};
use super::{End, Vm, audit};
use crate::arch::smc;
use crate::{panic, println};
use core::sync::atomic::{AtomicBool, Ordering};
use mm::ledger::Census;
use spin::Once;
use vmm_services::manifest::Expect;

/// The ledger before the first VM was built.
static START: Once<Census> = Once::new();
/// Whether the self test, if the scenario has one, found what it should.
static SELF_TEST_FAILED: AtomicBool = AtomicBool::new(false);

/// Remembers the ledger as it is before the first VM.
pub fn begin() {
    START.call_once(|| crate::memory::ledger().census());
    audit::begin();
}

/// Makes the scenario fail: a self test did not find what it should.
pub fn fail_self_test() {
    SELF_TEST_FAILED.store(true, Ordering::Relaxed);
}

/// Prints the report and powers the machine off.
pub fn finish() -> ! {
    crate::monitor::detach();
    table();
    super::realm::drain_pool();
    let granules_ok = granules();
    if super::selftest::is_missing() {
        println!("selftest: FAILED, no VM ran long enough to be tested");
        fail_self_test();
    }
    let state_ok = audit::finish();
    let mut ok = granules_ok && state_ok && !SELF_TEST_FAILED.load(Ordering::Relaxed);
    for (core, reason) in panic::stopped_cores() {
        println!("core {core} stopped: {reason}");
        ok = false;
    }
    for vm in super::all() {
        ok &= verdict(vm);
    }
    let scenario = super::bundle().map_or("?", |bundle| bundle.scenario);
    println!("scenario {scenario}: {}", if ok { "ok" } else { "failed" });
    panic::power_off()
}

fn table() {
    println!();
    println!(
        "{:<16} {:<5} {:<8} {:>5} {:>12} {:>12} {:>12} {:>9}",
        "vm", "kind", "end", "vcpus", "guest ms", "hyp ms", "rmm ms", "granules"
    );
    for vm in super::all() {
        let Some(spec) = vm.spec() else { continue };
        let stats = &vm.stats;
        println!(
            "{:<16} {:<5} {:<8} {:>5} {:>12} {:>12} {:>12} {:>9}",
            spec.name,
            vm.kind(),
            vm.state(),
            spec.vcpus,
            Milliseconds(stats.guest_ticks()),
            Milliseconds(stats.host_ticks.load(Ordering::Relaxed)),
            Milliseconds(stats.rmm_ticks.load(Ordering::Relaxed)),
            stats.granules.load(Ordering::Relaxed),
        );
    }
    println!("times: guest of a realm is REC_ENTER as a whole; rmm is all other RMI calls");
    for vm in super::all() {
        crate::print!("exits of {}:", vm.name());
        for &cause in Cause::ALL {
            crate::print!(" {} {}", cause.name(), vm.stats.exits(cause));
        }
        println!();
    }
    for vm in super::all() {
        let starts = vm.starts.load(Ordering::Relaxed);
        if starts > 1 {
            let resets = vm.resets.load(Ordering::Relaxed);
            println!("starts of {}: {starts}, of which {resets} after resets", vm.name());
        }
    }
    for vm in super::all().iter().filter(|vm| vm.kind() == "realm") {
        let calls = |life| vm.stats.rmi_calls(life);
        println!(
            "rmi calls of {}: build {}, run {}, teardown {}",
            vm.name(),
            calls(Life::Build),
            calls(Life::Run),
            calls(Life::Teardown)
        );
    }
    if super::all().iter().any(|vm| vm.kind() == "realm") {
        println!("rmi calls in a row: at most {}", smc::longest_uninterrupted());
    }
}

/// Compares the ledger with that of the start.
fn granules() -> bool {
    let now = crate::memory::ledger().census();
    let used: u64 = super::all().iter().map(|vm| vm.stats.granules.load(Ordering::Relaxed)).sum();
    let Some(start) = START.get() else { return false };
    if *start == now {
        println!("granules: all {used} returned");
        return true;
    }
    let missing = start.free().saturating_sub(now.free());
    println!("granules: {missing} of {used} missing ({now})");
    false
}

/// Prints the line that tools read for one VM; `true` if it ended as the scenario expects.
fn verdict(vm: &Vm) -> bool {
    let Some(spec) = vm.spec() else { return false };
    let record = vm.record.lock();
    let reason = match &record.end {
        Some(End::Stopped(reason) | End::Refused(reason)) => reason.as_str(),
        _ => "",
    };
    let (expected, matches) = match spec.expect {
        Expect::Off => ("off", matches!(record.end, Some(End::Off))),
        Expect::Stopped => ("stopped", matches!(record.end, Some(End::Stopped(_)))),
        Expect::Refused => ("refused", matches!(record.end, Some(End::Refused(_)))),
    };
    let ok = matches && spec.expect_reason.is_none_or(|wanted| reason.contains(wanted));
    // The state needs the lock again.
    let reason = super::Reason::new(format_args!("{reason}"));
    drop(record);
    println!(
        "end vm={} kind={} state={} reason=\"{reason}\" expect={expected} ok={}",
        spec.name,
        vm.kind(),
        vm.state(),
        if ok { "yes" } else { "no" }
    );
    ok
}
