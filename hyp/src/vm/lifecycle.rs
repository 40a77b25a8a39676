//! How a VM ends, and what happens then: taken apart, built once more, or recorded.

use super::output::VmConsole;
use super::vcpu::{self, Kind, Vcpu};
use super::{End, Reason, Space, Vm, build, channel, disks, net, passthrough};
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

/// Time after which a core that runs a vCPU comes back to go on with [`work`].
pub const WORK_PERIOD_NS: u64 = 1_000_000;

/// Takes apart VMs whose vCPUs have all left the cores, and builds those anew that are to repeat, one
/// step at a time. Every core calls this between vCPUs. Returns whether there is more to do.
pub fn work() -> bool {
    let mut more = false;
    for vm in super::all() {
        let phase = vm.phase();
        if !matches!(phase, Phase::Stopping | Phase::Reaping) {
            continue;
        }
        let Some(_guard) = vm.work.try_lock() else {
            more = true;
            continue;
        };
        match vm.phase() {
            Phase::Stopping if vm.life.claim(&SCHEDULER.lock()) => take_apart(vm),
            Phase::Reaping => step(vm),
            // It is not ours: a vCPU is still in a guest, and its core comes here when it has left.
            _ => continue,
        }
        return true;
    }
    more
}

/// One step of taking `vm` apart or of building it again.
fn step(vm: &'static Vm) {
    let building = matches!(*vm.space.lock(), Space::Construction(_));
    let built = match building {
        true => build::advance(vm),
        false if !demolish(vm) => return,
        false => {
            let left = crate::memory::ledger().census_of(vm.owner());
            if !left.is_empty() {
                log::error!("vm {}: granules still accounted to it: {left}", vm.name());
            }
            if !is_to_repeat(vm) {
                end(vm);
                return;
            }
            *vm.end.lock() = None;
            build::begin(vm)
        }
    };
    match built {
        Ok(true) => build::start(vm),
        Ok(false) => {}
        Err(reason) => {
            *vm.end.lock() = Some(End::Refused(reason));
            take_apart(vm);
        }
    }
}

fn is_to_repeat(vm: &Vm) -> bool {
    matches!(*vm.end.lock(), Some(End::Off))
        && vm.rounds.load(Ordering::Relaxed) < vm.spec().map_or(1, |spec| spec.repeat)
}

/// Ends `vm`, of which nothing is left.
fn end(vm: &'static Vm) {
    let refused = match &*vm.end.lock() {
        Some(End::Refused(reason)) => Some(reason.clone()),
        _ => None,
    };
    match refused {
        Some(reason) => refuse(vm, reason),
        None => {
            log::info!("vm {}: destroyed", vm.name());
            vm.life.end();
            retire();
        }
    }
}

/// Goes on destroying the realm of `vm`, for a bounded number of RMI calls; `true` when that is done or
/// there is none. The memory of its channels is let go then.
pub fn demolish(vm: &'static Vm) -> bool {
    let mut space = vm.space.lock();
    if let Space::Demolition(demolition) = &mut *space
        && !demolition.step(vm)
    {
        return false;
    }
    *space = Space::None;
    drop(space);
    channel::leave(vm);
    true
}

/// Takes everything away that `vm` holds: vCPUs, memory, devices. Also used for half-built VMs. A realm
/// is left to be demolished ([`demolish`]).
pub fn take_apart(vm: &'static Vm) {
    passthrough::release(vm);
    if let Some(mut services) = vm.services.lock().take() {
        services.flush_console(&mut VmConsole(vm));
    }
    disks::free(vm);
    net::unplug(vm);
    let mut recs = ArrayVec::<_, MAX_VCPUS>::new();
    for vcpu in vm.vcpus() {
        let Some(slot) = vm.entity(vcpu).and_then(vcpu::slot) else { continue };
        if let Some(Vcpu { kind: Kind::Rec(rec), .. }) = slot.empty() {
            recs.push(rec.into_rec());
        }
        vm.life.dismiss(&mut SCHEDULER.lock(), vcpu.index());
    }
    let mut space = vm.space.lock();
    *space = match core::mem::replace(&mut *space, Space::None) {
        Space::None => Space::None,
        Space::Normal(memory) => {
            memory.release(&vm.vmid);
            Space::None
        }
        Space::Realm(realm) => Space::Demolition(realm.demolish(recs)),
        Space::Construction(construction) => Space::Demolition(construction.demolish()),
        demolition @ Space::Demolition(_) => demolition,
    };
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
