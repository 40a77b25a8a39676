//! Time: the system counter, and this core's EL2 physical timer (`CNTHP_*_EL2`).
//!
//! Times are nanoseconds since the counter started, or ticks of the counter where a guest's timer
//! is concerned.

use super::sysreg::{read_sysreg, write_sysreg};
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTHCTL_EL2, CNTHP_CTL_EL2, CNTPCT_EL0, CNTVOFF_EL2, Readable, Writeable,
};
use core::sync::atomic::{AtomicU64, Ordering};

/// Fraction bits of [`NS_PER_TICK`]: room for the 4000 ns of a counter of 250 kHz.
const NS_FRACTION: u32 = 52;
/// Fraction bits of [`TICKS_PER_NS`]: room for the 4 ticks of a counter of 4 GHz, and an error
/// below one tick for all times that fit.
const TICKS_FRACTION: u32 = 61;

/// Nanoseconds per tick, fixed point.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(0);
/// Ticks per nanosecond, fixed point.
static TICKS_PER_NS: AtomicU64 = AtomicU64::new(0);

/// The counter's frequency (`CNTFRQ_EL0`, in Hz) is not set or outside 250 kHz to 4 GHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrequency(pub u64);

impl core::fmt::Display for NoFrequency {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "firmware left {} Hz as the frequency of the system counter", self.0)
    }
}

impl core::error::Error for NoFrequency {}

/// Reads the counter's frequency; once, on the boot core.
///
/// # Errors
///
/// If firmware has not set a usable frequency.
pub fn init() -> Result<u64, NoFrequency> {
    let hz = frequency();
    if !(250_000..=4_000_000_000).contains(&hz) {
        return Err(NoFrequency(hz));
    }
    let ns_per_tick = (1_000_000_000_u128 << NS_FRACTION) / u128::from(hz);
    let ticks_per_ns = (u128::from(hz) << TICKS_FRACTION) / 1_000_000_000;
    // Both fit: the range of `hz` bounds them by 4000 << 52 and 4 << 61.
    NS_PER_TICK.store(ns_per_tick as u64, Ordering::Relaxed);
    TICKS_PER_NS.store(ticks_per_ns as u64, Ordering::Relaxed);
    Ok(hz)
}

/// Prepares this core: guests may read the counters and use both EL1 timers, which are off, as is
/// the EL2 timer.
///
/// Their physical counter is the machine's own. To give it an offset, `CNTPOFF_EL2`, takes a feature
/// that few cores have and that EL3 must have enabled.
pub fn init_core() {
    disarm();
    CNTHCTL_EL2.write(CNTHCTL_EL2::EL1PCTEN::SET + CNTHCTL_EL2::EL1PCEN::SET);
    CNTVOFF_EL2.set(0);
    stop_guest_timers();
}

/// Turns off both EL1 timers of this core.
pub fn stop_guest_timers() {
    write_sysreg!("cntv_ctl_el0", 0);
    write_sysreg!("cntp_ctl_el0", 0);
}

/// Frequency of the system counter in Hz.
#[must_use]
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get()
}

/// The physical counter, in ticks.
#[must_use]
pub fn now_ticks() -> u64 {
    super::cpu::isb();
    CNTPCT_EL0.get()
}

/// Time since the counter started, in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    ticks_to_ns(now_ticks())
}

/// Converts ticks to nanoseconds, rounding down.
#[must_use]
pub fn ticks_to_ns(ticks: u64) -> u64 {
    scale(ticks, NS_PER_TICK.load(Ordering::Relaxed), NS_FRACTION)
}

/// Converts nanoseconds to ticks, rounding down; saturates.
#[must_use]
pub fn ns_to_ticks(ns: u64) -> u64 {
    scale(ns, TICKS_PER_NS.load(Ordering::Relaxed), TICKS_FRACTION)
}

fn scale(value: u64, factor: u64, fraction: u32) -> u64 {
    let product = (u128::from(value) * u128::from(factor)) >> fraction;
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// Arms this core's EL2 timer: its interrupt becomes pending at `deadline_ns` or, if that is past,
/// at once. It may come up to a tick late, never early.
pub fn arm(deadline_ns: u64) {
    // One tick more makes up for rounding down, so that a core woken by the timer finds that the
    // deadline has passed.
    write_sysreg!("cnthp_cval_el2", ns_to_ticks(deadline_ns).saturating_add(1));
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
    super::cpu::isb();
}

/// Arms this core's EL2 timer for `deadline_ns` unless it is armed for a time before that.
pub fn arm_no_later(deadline_ns: u64) {
    let armed = CNTHP_CTL_EL2.is_set(CNTHP_CTL_EL2::ENABLE)
        && !CNTHP_CTL_EL2.is_set(CNTHP_CTL_EL2::IMASK)
        && read_sysreg!("cnthp_cval_el2") <= ns_to_ticks(deadline_ns);
    if !armed {
        arm(deadline_ns);
    }
}

/// Turns this core's EL2 timer off; its interrupt is no longer pending.
pub fn disarm() {
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::IMASK::SET);
    super::cpu::isb();
}
