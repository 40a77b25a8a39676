//! How VMs start, stop, and start again.
//!
//! Whatever stops a VM says how it ended and what is to become of it; the cores do the rest in
//! [`work`], step by step: take it apart, check that nothing is left, and build it again or end it.

use super::output::VmConsole;
use super::vcpu::{self, Kind, Vcpu};
use super::{
    End, Reason, Record, Space, Vm, audit, build, channel, disks, net, passthrough, watchdog,
};
use crate::arch::timer;
use crate::run::{self, SCHEDULER};
use arrayvec::ArrayVec;
use core::fmt;
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

/// What is to become of a VM that is taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has ended.
    End,
    /// It has ended, but the machine stays on: an operator may start it again.
    Hold,
    /// It is built, and waits to be started.
    Build,
    /// It is built and runs.
    Run,
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::End => "over",
            Self::Hold => "kept for a start",
            Self::Build => "built anew",
            Self::Run => "built and started anew",
        })
    }
}

/// Stops `vm`: no vCPU enters the guest again, and the cores take it apart when all have left. The
/// first who stops it decides how it ended, if it has, and what is next: `false` for others, and for a
/// VM that neither runs nor could.
fn stop_for(vm: &'static Vm, end: Option<End>, next: Next) -> bool {
    let mut record = vm.record.lock();
    let Some(kicks) = vm.life.stop(&mut SCHEDULER.lock()) else { return false };
    *record = Record { end, next };
    drop(record);
    run::kick(kicks);
    log::debug!("vm {}: stopping, then {next}", vm.name());
    true
}

/// Ends `vm` because it cannot go on.
pub fn fail(vm: &'static Vm, reason: Reason) {
    stop_for(vm, Some(End::Stopped(reason)), Next::End);
}

/// Ends `vm` because it has turned itself off, or starts its next round.
pub fn turn_off(vm: &'static Vm) {
    let rounds = vm.spec().map_or(1, |spec| spec.repeat);
    let more = vm.rounds.load(Ordering::Relaxed).saturating_add(1) < rounds;
    if stop_for(vm, Some(End::Off), if more { Next::Run } else { Next::End }) {
        vm.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Starts `vm` again, because of `why`, or ends it if that has come too often.
pub fn reset(vm: &'static Vm, why: &str) {
    let allowed = vm.spec().map_or(0, |spec| spec.max_resets);
    if vm.resets.load(Ordering::Relaxed) < allowed {
        if stop_for(vm, None, Next::Run) {
            let count = vm.resets.fetch_add(1, Ordering::Relaxed) + 1;
            log::info!("vm {}: reset {count} of {allowed}: {why}", vm.name());
        }
    } else if allowed == 0 {
        fail(vm, Reason::new(format_args!("{why}")));
    } else {
        fail(vm, Reason::new(format_args!("{why}, after {allowed} resets")));
    }
}

/// Builds `vm`, of which nothing is there, and runs it if `next` says so. `false` if that is not so,
/// or if the scenario is over.
#[must_use]
pub fn bring_back(vm: &'static Vm, next: Next) -> bool {
    let mut record = vm.record.lock();
    let held = record.next == Next::Hold;
    if vm.phase() != Phase::Ended || !(held || unretire()) {
        return false;
    }
    *record = Record { end: None, next };
    let revived = vm.life.revive(&mut SCHEDULER.lock());
    drop(record);
    // Other cores may be asleep, and this one is about to look for work.
    revived
}

/// Runs `vm`, which an operator has had built. `false` if it is not [`Phase::Built`].
#[must_use]
pub fn launch(vm: &'static Vm) -> bool {
    if vm.phase() != Phase::Built {
        return false;
    }
    build::start(vm)
}

/// Stops `vm` so that it can be started again. `false` if it does not run.
#[must_use]
pub fn hold(vm: &'static Vm) -> bool {
    stop_for(vm, Some(by_operator()), Next::Hold)
}

/// Stops `vm` and starts it again. `false` if it does not run.
#[must_use]
pub fn restart(vm: &'static Vm) -> bool {
    stop_for(vm, None, Next::Run)
}

/// Ends `vm` for good. `false` if it has ended.
#[must_use]
pub fn destroy(vm: &'static Vm) -> bool {
    if stop_for(vm, Some(by_operator()), Next::End) {
        return true;
    }
    let mut record = vm.record.lock();
    let held = record.next == Next::Hold && vm.phase() == Phase::Ended;
    if held {
        record.next = Next::End;
        drop(record);
        // Said now: the last one ends the machine.
        log::info!("vm {}: not waited for any more", vm.name());
        retire();
    }
    held
}

fn by_operator() -> End {
    End::Stopped(Reason::new(format_args!("the operator stopped it")))
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

/// Records that `vm` could not be built, and ends it.
pub fn refuse(vm: &'static Vm, reason: Reason) {
    *vm.record.lock() = Record { end: Some(End::Refused(reason)), next: Next::End };
    end(vm);
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
    let building = matches!(*vm.space.lock(), Space::Construction(_) | Space::Population(_));
    let built = match building {
        true => build::advance(vm),
        false if !demolish(vm) => return,
        false => {
            audit::after_stop(vm);
            if matches!(vm.record.lock().next, Next::End | Next::Hold) {
                end(vm);
                return;
            }
            build::begin(vm).map(|()| false)
        }
    };
    match built {
        Ok(true) => {
            let mut record = vm.record.lock();
            record.end = None;
            vm.life.ready();
            let run = record.next == Next::Run;
            drop(record);
            if run {
                build::start(vm);
            }
        }
        Ok(false) => {}
        Err(reason) => {
            *vm.record.lock() = Record { end: Some(End::Refused(reason)), next: Next::End };
            take_apart(vm);
        }
    }
}

/// Ends `vm`, of which nothing is left.
fn end(vm: &'static Vm) {
    let record = vm.record.lock();
    match &record.end {
        Some(End::Refused(reason)) => log::error!("vm {}: refused: {reason}", vm.name()),
        Some(End::Stopped(reason)) => log::info!("vm {}: stopped: {reason}", vm.name()),
        Some(End::Off) | None => log::info!("vm {}: off", vm.name()),
    }
    // An operator who starts it again sees all of this, or nothing.
    vm.life.end();
    let next = record.next;
    drop(record);
    if next != Next::Hold {
        retire();
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
    watchdog::stop(vm);
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
        Space::Population(population) => {
            population.finish().0.release(&vm.vmid);
            Space::None
        }
        Space::Realm(realm) => Space::Demolition(realm.demolish(recs)),
        Space::Construction(construction) => Space::Demolition(construction.demolish()),
        demolition @ Space::Demolition(_) => demolition,
    };
}

/// One VM more to wait for; `false` if the last one has ended.
fn unretire() -> bool {
    let more = |alive: u32| if alive == 0 { None } else { alive.checked_add(1) };
    ALIVE.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
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
        StopReason::Fatal(FatalCause::OutOfMemory { ipa }) => {
            Reason::new(format_args!("no memory left for its tables, at IPA {}", Ipa::new(ipa)))
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
