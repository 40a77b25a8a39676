//! The time that the watchdogs of VMs have left.

use super::{MAX_VMS, Vm, lifecycle};
use crate::arch::percpu::core_index;
use crate::arch::timer;
use crate::cores;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use vmm_services::Countdown;

const NS_PER_MS: u64 = 1_000_000;

/// Bit per VM whose watchdog runs.
static RUNNING: AtomicU32 = AtomicU32::new(0);
static TIMERS: [Timer; MAX_VMS] = [const { Timer::new() }; MAX_VMS];

const _: () = assert!(MAX_VMS <= u32::BITS as usize);

struct Timer {
    /// When the VM is to be restarted, in nanoseconds.
    deadline: AtomicU64,
    /// Core that sees to it.
    watcher: AtomicUsize,
}

impl Timer {
    const fn new() -> Self {
        Self { deadline: AtomicU64::new(0), watcher: AtomicUsize::new(0) }
    }
}

/// The watchdog of a VM.
pub struct VmWatchdog(pub &'static Vm);

impl Countdown for VmWatchdog {
    fn restart(&self, ms: u32) {
        let Some(this) = TIMERS.get(self.0.index()) else { return };
        let deadline = timer::now_ns().saturating_add(u64::from(ms) * NS_PER_MS);
        this.watcher.store(core_index(), Ordering::Relaxed);
        this.deadline.store(deadline, Ordering::Relaxed);
        RUNNING.fetch_or(1 << self.0.index(), Ordering::Release);
        timer::arm_no_later(deadline);
    }

    fn remaining_ms(&self) -> u32 {
        let Some(this) = TIMERS.get(self.0.index()) else { return 0 };
        let left = this.deadline.load(Ordering::Relaxed).saturating_sub(timer::now_ns());
        u32::try_from(left / NS_PER_MS).unwrap_or(u32::MAX)
    }
}

/// Starts the watchdog of `vm`, if it has one.
pub fn start(vm: &'static Vm) {
    if let Some(ms) = vm.spec().and_then(|spec| spec.watchdog_ms) {
        VmWatchdog(vm).restart(ms);
    }
}

/// Stops the watchdog of `vm`.
pub fn stop(vm: &Vm) {
    RUNNING.fetch_and(!(1 << vm.index()), Ordering::Release);
}

/// Whether the watchdog of `vm` runs.
#[must_use]
pub fn runs(vm: &Vm) -> bool {
    RUNNING.load(Ordering::Acquire) >> vm.index() & 1 != 0
}

/// When this core is to call [`work`] next, in nanoseconds.
#[must_use]
pub fn next_check() -> Option<u64> {
    watched().map(|(_, deadline)| deadline).min()
}

/// Restarts VMs that have left their watchdog alone. Every core calls this between vCPUs.
pub fn work() {
    for (vm, deadline) in watched() {
        if timer::now_ns() < deadline {
            continue;
        }
        if vm.life.is_paused() {
            // It cannot help it: its time begins anew.
            start(vm);
        } else {
            stop(vm);
            lifecycle::reset(vm, "its watchdog expired");
        }
    }
}

/// The VMs whose watchdog this core sees to, and when it expires.
fn watched() -> impl Iterator<Item = (&'static Vm, u64)> {
    let running = RUNNING.load(Ordering::Acquire);
    let vms = if running == 0 { &[] } else { super::all() };
    vms.iter().filter_map(move |vm| {
        let timer = TIMERS.get(vm.index()).filter(|_| running >> vm.index() & 1 != 0)?;
        let mine = cores::is_for_this(timer.watcher.load(Ordering::Relaxed));
        mine.then(|| (vm, timer.deadline.load(Ordering::Relaxed)))
    })
}
