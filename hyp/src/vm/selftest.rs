//! Deliberate faults of the hypervisor.
//!
//! `granule-protection` (scenario `isolation`): proof on the running machine that a realm's granules
//! are out of reach, even for the hypervisor and even if it is wrong. `el2-fault`: an exception at EL2
//! ends one VM, and not the machine.

use super::{Vm, summary};
use crate::arch::exception;
use crate::arch::percpu::core_index;
use crate::arch::probe::{self, ProbeError};
use crate::println;
use core::sync::atomic::{AtomicBool, Ordering};
use mm::PhysAddr;
use mm::ledger::{GranuleState, RmmUse};
use sched::lifecycle::Phase;
use vmm_services::manifest::SelfTest;

/// Kinds of granule that the test touches.
const VICTIMS: [RmmUse; 3] = [RmmUse::Data, RmmUse::Rec, RmmUse::Rtt];

static DONE: AtomicBool = AtomicBool::new(false);

/// Runs the test once, as soon as a realm has run. Every core calls this between vCPUs.
pub fn work() {
    let wanted = super::bundle().and_then(|bundle| bundle.self_test);
    if wanted != Some(SelfTest::GranuleProtection) || DONE.load(Ordering::Relaxed) {
        return;
    }
    let running = super::all().iter().find(|vm| {
        vm.phase() == Phase::Running
            && vm.spec().is_some_and(|spec| spec.realm().is_some())
            && vm.stats.guest_ticks() > 0
    });
    let Some(realm) = running else { return };
    // Only the core that sets it goes on. The realm cannot lose its granules meanwhile: it is not
    // taken apart before this core has passed `lifecycle::work` or another core has seen it stop;
    // a granule that is back in the normal world by then is reported as a failure.
    if !DONE.swap(true, Ordering::AcqRel) {
        test(realm);
    }
}

/// Takes an exception at EL2, if that is the test, when the first VM turns on another vCPU. It hits
/// with locks of that VM held.
pub fn fault(vm: &Vm) {
    let wanted = super::bundle().and_then(|bundle| bundle.self_test);
    if wanted != Some(SelfTest::El2Fault) || vm.index != 0 || DONE.swap(true, Ordering::AcqRel) {
        return;
    }
    println!("selftest: an exception at EL2 on core {}, for vm {}", core_index(), vm.name());
    let services = vm.services.lock();
    exception::provoke();
    drop(services);
    println!("selftest: FAILED, it was not taken");
    summary::fail_self_test();
}

/// Whether the test still has to run, so that a scenario that never ran it fails.
#[must_use]
pub fn is_missing() -> bool {
    super::bundle().is_some_and(|bundle| bundle.self_test.is_some())
        && !DONE.load(Ordering::Relaxed)
}

fn test(realm: &Vm) {
    for used_for in VICTIMS {
        let state = GranuleState::Rmm { used_for, owner: realm.owner() };
        let Some(range) = crate::memory::ledger().find(state, PhysAddr::new(0)) else {
            println!("selftest: {} has no {used_for} granule", realm.name());
            summary::fail_self_test();
            continue;
        };
        let target = range.start;
        judge("read of", realm, target, state, probe::read(target).map(|_| ()));
        // SAFETY: the ledger says that the granule is the RMM's: no object of this image is there.
        let written = unsafe { probe::write(target, !0) };
        judge("write to", realm, target, state, written);
    }
}

fn judge(
    access: &str,
    realm: &Vm,
    target: PhysAddr,
    state: GranuleState,
    result: Result<(), ProbeError>,
) {
    let name = realm.name();
    match result {
        Err(fault @ ProbeError::GranuleProtection { .. }) => {
            println!("selftest: {access} {target} ({state}, {name}): {fault}, survived");
        }
        Err(fault) => {
            println!("selftest: {access} {target} ({state}, {name}): FAILED, {fault}");
            summary::fail_self_test();
        }
        Ok(()) => {
            println!("selftest: {access} {target} ({state}, {name}): FAILED, not stopped");
            summary::fail_self_test();
        }
    }
}

/// A data granule of the realm `name`, for a VM that is told to stray to it.
#[must_use]
pub fn granule_of(name: &str) -> Option<PhysAddr> {
    let realm = super::all().iter().find(|vm| vm.name() == name)?;
    let state = GranuleState::Rmm { used_for: RmmUse::Data, owner: realm.owner() };
    Some(crate::memory::ledger().find(state, PhysAddr::new(0))?.start)
}
