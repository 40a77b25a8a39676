//! What becomes of a core that cannot go on after a fault in the hypervisor, and of what it was at.
//!
//! Only the core itself knows where it was, so it does this itself, before it parks: the VM whose vCPU
//! it ran is stopped, and the locks of that VM are broken. What they protect may be half changed, so
//! devices and memory of the VM are not touched again; granules whose owner is in doubt stay
//! accounted to it.

use super::{Reason, Space, Vm, audit, lifecycle, vcpu};
use crate::arch::percpu::core_index;
use crate::arch::{timer, tlb, vgic_hw};
use crate::run::{self, SCHEDULER};
use crate::{console, cores, memory, sync};
use core::fmt;
use sched::{CoreId, CoreSet};

/// How long the ledger may be in use by others before this core must be the one, in nanoseconds.
const LEDGER_NS: u64 = 100_000_000;

/// Why the machine cannot go on without this core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It holds so many locks of what all cores share.
    SharedLocks(u32),
    /// It is in the middle of a change of the ledger.
    Ledger,
    /// It was not running a vCPU: boot, or work on behalf of a VM.
    NotInVcpu,
    /// No other core is left.
    LastCore,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedLocks(1) => f.write_str("with a lock that all cores share"),
            Self::SharedLocks(count) => write!(f, "with {count} locks that all cores share"),
            Self::Ledger => f.write_str("in the middle of a change of the ledger"),
            Self::NotInVcpu => f.write_str("outside any vCPU"),
            Self::LastCore => f.write_str("the last core"),
        }
    }
}

/// Takes this core out of service, which is about to park: `what` has happened to it. Returns the VM
/// that ended with it.
///
/// # Errors
///
/// Why the machine cannot go on.
pub fn this_core(what: &str) -> Result<&'static Vm, Obstacle> {
    let held = sync::held_by_this_core();
    if held != 0 {
        return Err(Obstacle::SharedLocks(held));
    }
    if ledger_is_stuck() {
        return Err(Obstacle::Ledger);
    }
    let vm = running().ok_or(Obstacle::NotInVcpu)?;
    if cores::leave() == 0 {
        return Err(Obstacle::LastCore);
    }
    let core = core_index();
    // First, so that its vCPUs on other cores leave instead of using what is discarded below.
    lifecycle::fail(vm, Reason::new(format_args!("{what} on core {core}")));
    leave_guest();
    break_locks(vm);
    retire();
    if let Some(intid) = console::hand_over_input() {
        audit::accept_route(intid);
    }
    Ok(vm)
}

/// The VM whose vCPU this core runs.
fn running() -> Option<&'static Vm> {
    let entity = SCHEDULER.lock().running(CoreId(core_index() as u8))?;
    super::all().iter().find(|vm| vm.vcpus().any(|vcpu| vm.entity(vcpu) == Some(entity)))
}

fn ledger_is_stuck() -> bool {
    let give_up = timer::now_ns() + LEDGER_NS;
    while memory::ledger().is_locked() {
        if timer::now_ns() > give_up {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// Takes everything of a guest out of this core's registers that could act by itself.
fn leave_guest() {
    timer::disarm();
    timer::stop_guest_timers();
    vgic_hw::disable();
    tlb::unload();
}

/// Frees the locks of `vm` that this core holds. Its vCPUs remain, for who takes the VM apart: a REC has
/// to be destroyed.
fn break_locks(vm: &'static Vm) {
    // SAFETY: this core parks after this, and never returns to what it was doing.
    unsafe { vm.services.break_if_held(|services| *services = None) };
    // While its vCPUs run only the contents of disks change.
    // SAFETY: as above.
    unsafe { vm.disks.break_if_held(|_| ()) };
    // The memory is neither dropped nor used: its frames stay the VM's in the ledger.
    let discard = |space: &mut Space| core::mem::forget(core::mem::replace(space, Space::None));
    // SAFETY: as above.
    if unsafe { vm.space.break_if_held(discard) } {
        log::error!("vm {}: its memory was being changed, and stays accounted to it", vm.name());
    }
    for slot in vm.vcpus().filter_map(|id| vm.entity(id)).filter_map(vcpu::slot) {
        // SAFETY: as above.
        unsafe { slot.state.break_if_held(|_| ()) };
    }
}

/// Hands what waits for this core to the others, and stops VMs that can run on no other.
fn retire() {
    let core = CoreId(core_index() as u8);
    let now = timer::now_ns();
    let mut kicks = SCHEDULER.lock().retire(core, now);
    kicks = kicks.union(vcpu::wake_watched(core, now));
    let left = CoreSet::from_bits(cores::online_mask());
    for vm in super::all() {
        let affinity =
            vm.spec().and_then(|spec| spec.affinity).map_or(CoreSet::ALL, CoreSet::from_bits);
        if affinity.intersection(left).is_empty() {
            lifecycle::fail(vm, Reason::new(format_args!("its cores have stopped")));
        }
    }
    // Some core has to take the stopped VMs apart, even if it had nothing to do.
    run::kick(kicks.union(left));
}
