//! Both timers of a vCPU.

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTPCT_EL0, CNTVCT_EL0, Readable, Writeable,
};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_rt::{gic, println, timer};

/// PPI of the physical timer.
const PHYSICAL_TIMER: u32 = 30;

/// Interrupts of the physical timer on the first vCPU.
static PHYSICAL_TICKS: AtomicU64 = AtomicU64::new(0);

fn physical_now() -> u64 {
    barrier::isb(barrier::SY);
    CNTPCT_EL0.get()
}

/// Lowers the timer's output, as a one-shot timer's handler does.
fn handle(intid: u32) {
    assert!(intid == PHYSICAL_TIMER, "interrupt {intid} was never enabled");
    PHYSICAL_TICKS.fetch_add(1, Ordering::Relaxed);
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::IMASK::SET);
    barrier::isb(barrier::SY);
}

/// Arms the physical timer and sleeps until it has fired; fails if that was too early.
fn one_shot(milliseconds: u64) -> Result<(), &'static str> {
    let before = PHYSICAL_TICKS.load(Ordering::Relaxed);
    let deadline = physical_now() + timer::steps(milliseconds);
    CNTP_CVAL_EL0.set(deadline);
    CNTP_CTL_EL0.write(CNTP_CTL_EL0::ENABLE::SET);
    barrier::isb(barrier::SY);
    gic::sleep_until(|| PHYSICAL_TICKS.load(Ordering::Relaxed) > before);
    if physical_now() < deadline {
        return Err("the physical timer fired before its time");
    }
    if PHYSICAL_TICKS.load(Ordering::Relaxed) != before + 1 {
        return Err("the physical timer fired twice");
    }
    Ok(())
}

/// Sleeps for some milliseconds, by the virtual timer.
pub(crate) fn sleep(milliseconds: u64) {
    let tick = timer::ticks() + 1;
    timer::start(milliseconds);
    timer::wait_for_tick(tick);
    timer::stop();
}

pub(crate) fn check() -> Result<(), &'static str> {
    const SHOTS: u64 = 20;
    let (physical, virt) = (physical_now(), CNTVCT_EL0.get());
    sleep(2);
    if physical_now() <= physical || CNTVCT_EL0.get() <= virt {
        return Err("a counter stands still");
    }
    gic::enable(PHYSICAL_TIMER, handle)?;
    for _ in 0..SHOTS {
        one_shot(2)?;
    }
    // Both at once: the virtual timer's ticks go on.
    let ticks = timer::ticks();
    timer::start(3);
    for _ in 0..SHOTS {
        one_shot(2)?;
    }
    timer::stop();
    let ticks = timer::ticks() - ticks;
    if ticks < SHOTS / 2 {
        return Err("the virtual timer lost ticks beside the physical one");
    }
    println!("cpu: physical timer ok, {} interrupts", PHYSICAL_TICKS.load(Ordering::Relaxed));
    Ok(())
}
