//! Periodic ticks of the virtual timer, counted per vCPU.

use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, Readable, Writeable,
};

use crate::{MAX_CPUS, cpu_index, gic};

static TICKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static PERIOD: AtomicU64 = AtomicU64::new(0);

/// Current value of the virtual counter.
#[must_use]
pub fn now() -> u64 {
    barrier::isb(barrier::SY);
    CNTVCT_EL0.get()
}

/// Counter steps in `milliseconds`.
#[must_use]
pub fn steps(milliseconds: u64) -> u64 {
    CNTFRQ_EL0.get() * milliseconds / 1000
}

/// Starts this vCPU's ticks. All vCPUs share the period that was set last.
pub fn start(milliseconds: u64) {
    PERIOD.store(steps(milliseconds), Ordering::Relaxed);
    CNTV_CVAL_EL0.set(now() + steps(milliseconds));
    CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
    barrier::isb(barrier::SY);
}

/// Stops this vCPU's ticks.
pub fn stop() {
    CNTV_CTL_EL0.set(0);
    barrier::isb(barrier::SY);
}

/// Ticks of this vCPU so far.
#[must_use]
pub fn ticks() -> u64 {
    TICKS[cpu_index()].load(Ordering::Relaxed)
}

/// Sleeps in WFI until this vCPU has seen `count` ticks in all.
pub fn wait_for_tick(count: u64) {
    gic::sleep_until(|| ticks() >= count);
}

/// Polls `done` for at most `milliseconds`; whether it came true.
pub fn poll(milliseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let deadline = now() + steps(milliseconds);
    loop {
        // In this order, so that a vCPU that was away for long looks once more.
        let late = now() > deadline;
        if done() {
            return true;
        }
        if late {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Counts a tick and lowers the timer's output by setting the next deadline.
pub(crate) fn handle_irq() {
    TICKS[cpu_index()].fetch_add(1, Ordering::Relaxed);
    let period = PERIOD.load(Ordering::Relaxed).max(1);
    // Counted from the deadline, so that the ticks keep their distance; a vCPU that was away for
    // long starts afresh instead of catching up in a burst.
    let next = CNTV_CVAL_EL0.get() + period;
    let now = now();
    CNTV_CVAL_EL0.set(if next > now { next } else { now + period });
    barrier::isb(barrier::SY);
}
