//! After a VM has stopped, everything is as it was before it started. Here that is checked.
//!
//! The hypervisor makes services, tables and vCPUs anew for each start, so nothing of a VM can be left
//! in them; what could stay behind is what all VMs share: granules, entities of the scheduler, timers,
//! and the hardware of the cores. A finding makes the scenario fail.

use super::{Reason, Vm, vcpu, watchdog};
use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::{PerCpu, core_index};
use crate::arch::{el1, timer, tlb, vgic_hw};
use crate::irq::{self, PrivateState, SharedState};
use crate::run::{self, SCHEDULER};
use crate::sync::Lock;
use crate::{cores, per_cpu, println};
use core::sync::atomic::{AtomicU32, Ordering};
use sched::CoreSet;
use spin::Once;

/// How long the cores may take to look after themselves at the end, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000_000;

/// How often was looked.
static LOOKS: AtomicU32 = AtomicU32::new(0);
/// The first thing that was not as before.
static FINDING: Lock<Option<Reason>> = Lock::new(None);
/// Bit per core that has to look after itself.
static ASKED: AtomicU32 = AtomicU32::new(0);
/// The shared interrupts before the first VM was built.
static SHARED: Once<SharedState> = Once::new();
/// This core's own interrupts before it ran its first vCPU.
static PRIVATE: PerCpu<Option<PrivateState>> = per_cpu!(None);

const _: () = assert!(MAX_CORES <= u32::BITS as usize);

/// Remembers the machine as it is before the first VM.
pub fn begin() {
    SHARED.call_once(irq::shared_state);
}

/// Remembers this core as it is before its first vCPU.
pub fn begin_core() {
    PRIVATE.with(|state| *state = Some(irq::private_state()));
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
    let core = core_index();
    if let Some(before) = PRIVATE.with(|state| *state) {
        let now = irq::private_state();
        if now != before {
            report(Reason::new(format_args!(
                "core {core}: interrupts enabled {:#x}, active {:#x}, before {:#x} and {:#x}",
                now.enabled, now.active, before.enabled, before.active
            )));
        }
    }
    if el1::timer_deadline(true, true).is_some() {
        report(Reason::new(format_args!("core {core}: a guest's timer runs")));
    }
    if vgic_hw::is_enabled() {
        report(Reason::new(format_args!("core {core}: the virtual CPU interface is on")));
    }
    if tlb::is_loaded() {
        report(Reason::new(format_args!("core {core}: a guest's stage-2 tables are loaded")));
    }
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
    if SHARED.get().is_none_or(|before| *before != irq::shared_state()) {
        report(Reason::new(format_args!("the shared interrupts are not as before")));
    }
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
