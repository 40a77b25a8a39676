//! After a VM has stopped, everything is as it was before it started. Here that is checked.
//!
//! The hypervisor makes services, tables and vCPUs anew for each start, so nothing of a VM can be left
//! in them; what could stay behind is what all VMs share: granules, entities of the scheduler, timers,
//! and the hardware of the cores. A finding makes the scenario fail.

use super::{Reason, Vm, vcpu, watchdog};
use crate::arch::control::{self, Register};
use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::{PerCpu, core_index};
use crate::arch::timer;
use crate::irq::registers::{self, PRIVATE_COUNT, SHARED_MAX};
use crate::run::{self, SCHEDULER};
use crate::sync::Lock;
use crate::{cores, per_cpu, println};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, Ordering};
use sched::CoreSet;

/// How long the cores may take to look after themselves at the end, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Values of registers, in the order in which they were shown.
struct Snapshot<const MAX: usize>(ArrayVec<u64, MAX>);

/// Shows registers with their values, always the same ones in the same order.
type Show = fn(&mut dyn FnMut(Register, u64));

impl<const MAX: usize> Snapshot<MAX> {
    const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    fn take(&mut self, show: Show) {
        self.0.clear();
        // What does not fit is found by `compare`.
        show(&mut |_, value| {
            let _ = self.0.try_push(value);
        });
    }

    /// Takes the value that `register` has now for the one that it is to have.
    fn accept(&mut self, register: Register, show: Show) {
        let mut values = self.0.iter_mut();
        show(&mut |shown, value| {
            if let Some(before) = values.next().filter(|_| shown == register) {
                *before = value;
            }
        });
    }

    /// Reports registers whose values have changed; `place` says whose they are.
    fn compare(&self, place: &str, show: Show) {
        let mut values = self.0.iter();
        show(&mut |register, now| match values.next() {
            Some(&before) if before == now => {}
            Some(before) => {
                report(Reason::new(format_args!(
                    "{place}: {register} is {now:#x}, was {before:#x}"
                )));
            }
            None => {
                report(Reason::new(format_args!("{place}: {register} was not looked at before")))
            }
        });
    }
}

/// How often was looked.
static LOOKS: AtomicU32 = AtomicU32::new(0);
/// The first thing that was not as before.
static FINDING: Lock<Option<Reason>> = Lock::new(None);
/// Bit per core that has to look after itself.
static ASKED: AtomicU32 = AtomicU32::new(0);
/// The shared interrupts before the first VM was built.
static SHARED: Lock<Snapshot<SHARED_MAX>> = Lock::new(Snapshot::new());
/// This core's own interrupts before it ran its first vCPU.
static PRIVATE: PerCpu<Snapshot<PRIVATE_COUNT>> = per_cpu!(Snapshot::new());
/// Its other registers then.
static CONTROL: PerCpu<Snapshot<{ control::MAX }>> = per_cpu!(Snapshot::new());

const _: () = assert!(MAX_CORES <= u32::BITS as usize);

/// Remembers the machine as it is before the first VM.
pub fn begin() {
    SHARED.lock().take(registers::each_shared);
}

/// Remembers this core as it is before its first vCPU, between which it is to be the same.
pub fn begin_core() {
    PRIVATE.with(|before| before.take(registers::each_private));
    CONTROL.with(|before| before.take(control::each));
}

/// Accepts that the shared interrupt `intid` is routed to another core than at the start: the
/// hypervisor's own has moved.
pub fn accept_route(intid: u32) {
    let route = Register::nth("GICD_IROUTER", intid as usize);
    SHARED.lock().accept(route, registers::each_shared);
}

fn report(finding: Reason) {
    log::error!("{finding}");
    FINDING.lock().get_or_insert(finding);
}

/// Looks for what `vm`, which has been taken apart, has left behind, and has each core look after
/// itself.
pub fn after_stop(vm: &Vm) {
    LOOKS.fetch_add(1, Ordering::Relaxed);
    let name = vm.name();
    let left = crate::memory::ledger().census_of(vm.owner());
    if !left.is_empty() {
        report(Reason::new(format_args!("vm {name} has left granules: {left}")));
    }
    if let Some(id) = vm.vcpus().find(|id| vm.entity(*id).is_some()) {
        report(Reason::new(format_args!("vm {name} has left {id} to the scheduler")));
    }
    if vm.services.lock().is_some() {
        report(Reason::new(format_args!("vm {name} has left its services")));
    }
    if watchdog::runs(vm) {
        report(Reason::new(format_args!("vm {name} has left its watchdog running")));
    }
    ASKED.fetch_or(cores::online_mask(), Ordering::AcqRel);
}

/// Looks whether the vCPUs of this core have left something in it, if it is asked to. Every core calls
/// this between vCPUs, when no vCPU is loaded.
pub fn check_core() {
    let bit = 1 << core_index();
    if ASKED.load(Ordering::Relaxed) & bit == 0 {
        return;
    }
    let place = Reason::new(format_args!("core {}", core_index()));
    PRIVATE.with(|before| before.compare(place.as_str(), registers::each_private));
    CONTROL.with(|before| before.compare(place.as_str(), control::each));
    log::debug!("{place}: looked after itself");
    // Only now: who waits for it may end the machine.
    ASKED.fetch_and(!bit, Ordering::AcqRel);
}

/// Looks at what is left at the end, when all VMs have ended, and says what was found; `true` if that is
/// nothing.
#[must_use]
pub fn finish() -> bool {
    wait_for_cores();
    let entities = SCHEDULER.lock().count();
    if entities != 0 {
        report(Reason::new(format_args!("the scheduler has {entities} vCPUs left")));
    }
    if !vcpu::all_gone() {
        report(Reason::new(format_args!("a place of a vCPU is in use")));
    }
    SHARED.lock().compare("at the end", registers::each_shared);
    match &*FINDING.lock() {
        None => {
            println!("state: as before, looked at {} times", LOOKS.load(Ordering::Relaxed));
            true
        }
        Some(finding) => {
            println!("state: FAILED: {finding}");
            false
        }
    }
}

fn wait_for_cores() {
    ASKED.fetch_and(cores::online_mask(), Ordering::AcqRel);
    check_core();
    run::kick(CoreSet::from_bits(ASKED.load(Ordering::Acquire)));
    let deadline = timer::now_ns() + PATIENCE_NS;
    while ASKED.load(Ordering::Acquire) & cores::online_mask() != 0 {
        if timer::now_ns() > deadline {
            let cores = ASKED.load(Ordering::Acquire);
            report(Reason::new(format_args!("cores {cores:#x} do not look after themselves")));
            return;
        }
        core::hint::spin_loop();
    }
}
