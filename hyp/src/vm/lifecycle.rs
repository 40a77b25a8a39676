//! How a VM ends, and what happens then: taken apart, built once more, or recorded.

use super::output::VmConsole;
use super::vcpu::{self, Kind, Vcpu};
use super::{End, Reason, Space, Vm, build, channel};
use crate::arch::timer;
use crate::run::{self, SCHEDULER};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, Ordering};
use mm::Ipa;
use sched::lifecycle::Phase;
use vmm_services::MAX_VCPUS;
use vmm_services::exit::{FatalCause, StopReason};

/// VMs of the bundle that have not ended.
static ALIVE: AtomicU32 = AtomicU32::new(0);

/// Says how many VMs there are to wait for.
pub fn expect(count: usize) {
    ALIVE.store(count as u32, Ordering::Release);
}

/// Stops `vm`: no vCPU enters the guest again, and a core takes it apart when all have left.
/// The first reason given is the one that counts: `false` if it does not run any more.
pub fn stop(vm: &'static Vm, end: End) -> bool {
    let mut recorded = vm.end.lock();
    let Some(kicks) = vm.life.stop(&mut SCHEDULER.lock()) else { return false };
    *recorded = Some(end);
    drop(recorded);
    run::kick(kicks);
    true
}

/// Keeps the vCPUs of `vm` from running until [`resume`]; its time goes on. `false` if it does not run.
#[must_use]
pub fn pause(vm: &'static Vm) -> bool {
    let kicks = vm.life.pause(&mut SCHEDULER.lock());
    kicks.map(run::kick).is_some()
}

/// Ends a pause. `false` if there is none.
#[must_use]
pub fn resume(vm: &'static Vm) -> bool {
    let kicks = vm.life.resume(&mut SCHEDULER.lock(), timer::now_ns());
    kicks.map(run::kick).is_some()
}

/// Records that `vm` could not be built.
pub fn refuse(vm: &'static Vm, reason: Reason) {
    log::error!("vm {}: refused: {reason}", vm.name());
    *vm.end.lock() = Some(End::Refused(reason));
    vm.life.end();
    retire();
}

/// Takes apart VMs whose vCPUs have all left the cores. Every core calls this between vCPUs.
pub fn work() {
    for vm in super::all() {
        // The lock is taken only for a VM that is stopping.
        if vm.phase() == Phase::Stopping && vm.life.claim(&SCHEDULER.lock()) {
            reap(vm);
        }
    }
}

/// Takes `vm` apart, checks that its granules are back, and builds it again if it is to repeat.
fn reap(vm: &'static Vm) {
    take_apart(vm);
    let left = crate::memory::ledger().census_of(vm.owner());
    if !left.is_empty() {
        log::error!("vm {}: granules still accounted to it: {left}", vm.name());
    }
    let again = matches!(*vm.end.lock(), Some(End::Off))
        && vm.rounds.load(Ordering::Relaxed) < vm.spec().map_or(1, |spec| spec.repeat);
    if !again {
        log::info!("vm {}: destroyed", vm.name());
        vm.life.end();
        retire();
        return;
    }
    *vm.end.lock() = None;
    match build::build(vm) {
        Ok(()) => build::start(vm),
        Err(reason) => refuse(vm, reason),
    }
}

/// Gives everything back that `vm` holds: RECs, memory, devices. Also used for half-built VMs.
pub fn take_apart(vm: &'static Vm) {
    if let Some(mut services) = vm.services.lock().take() {
        services.flush_console(&mut VmConsole(vm));
    }
    let mut recs = ArrayVec::<_, MAX_VCPUS>::new();
    for vcpu in vm.vcpus() {
        let Some(slot) = vm.entity(vcpu).and_then(vcpu::slot) else { continue };
        if let Some(Vcpu { kind: Kind::Rec(rec), .. }) = slot.empty() {
            recs.push(rec.into_rec());
        }
        vm.life.dismiss(&mut SCHEDULER.lock(), vcpu.index());
    }
    let space = core::mem::replace(&mut *vm.space.lock(), Space::None);
    match space {
        Space::None => {}
        Space::Normal(memory) => memory.release(&vm.vmid),
        Space::Realm(realm) => realm.destroy(vm, recs),
    }
    channel::leave(vm);
}

/// One VM less to wait for; the last one ends the machine.
fn retire() {
    if ALIVE.fetch_sub(1, Ordering::AcqRel) == 1 {
        super::summary::finish();
    }
}

/// Says in words why the services stopped a VM.
#[must_use]
pub fn explain(vm: &Vm, reason: &StopReason) -> Reason {
    match *reason {
        StopReason::Fatal(FatalCause::GranuleProtection { ipa }) => {
            granule_protection(vm, Ipa::new(ipa))
        }
        StopReason::Fatal(FatalCause::ExternalAbort { esr, .. }) => {
            Reason::new(format_args!("external abort (ESR_EL2 {esr:#x})"))
        }
        StopReason::Fatal(FatalCause::UnknownException { esr }) => {
            Reason::new(format_args!("exception that nothing can answer (ESR_EL2 {esr:#x})"))
        }
        StopReason::Protocol(text) => Reason::new(format_args!("{text}")),
    }
}

fn granule_protection(vm: &Vm, ipa: Ipa) -> Reason {
    let Space::Normal(memory) = &*vm.space.lock() else {
        return Reason::new(format_args!("granule protection fault at IPA {ipa}"));
    };
    match memory.backing(ipa.align_down(mm::PAGE_SIZE)) {
        Some((mapping, Some(state))) => Reason::new(format_args!(
            "granule protection fault at IPA {ipa}: stage-2 maps {}, {state}",
            mapping.pa
        )),
        Some((mapping, None)) => Reason::new(format_args!(
            "granule protection fault at IPA {ipa}: stage-2 maps {}, which is not RAM",
            mapping.pa
        )),
        None => Reason::new(format_args!("granule protection fault at IPA {ipa}")),
    }
}
