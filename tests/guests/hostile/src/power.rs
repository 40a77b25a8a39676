//! vCPUs turned on and off as fast as PSCI goes.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{psci, rsi};

use crate::guest::{Guest, scratch};

/// Context id of a vCPU that is to go off again at once.
pub(crate) const CONTEXT: u64 = 0x0ff0_0000;
/// Times that a sibling came on.
static CAME_ON: AtomicU64 = AtomicU64::new(0);

/// Times that a sibling came on in these storms.
pub(crate) fn came_on() -> u64 {
    CAME_ON.load(Ordering::Relaxed)
}

/// Turns siblings on, or tries to. Returns the number of calls.
pub(crate) fn storm(guest: &mut Guest) -> u64 {
    for _ in 0..8 {
        let target = match guest.rng.below(8) {
            0 => guest.rng.number(),
            _ => guest.rng.below(guest.cpus as u64),
        };
        match guest.rng.below(4) {
            0 => drop(psci::is_on(target)),
            _ => {
                let on = psci::cpu_on(target, CONTEXT | guest.rng.below(4));
                // At times the next call comes while the sibling is coming on or going off.
                if on.is_ok() && !guest.rng.one_in(4) {
                    crate::in_time("go off again", || all_off(guest));
                }
            }
        }
    }
    8
}

/// What a sibling does that came on with `context`, before it goes off again: little.
pub(crate) fn come_on(guest: &mut Guest, context: u64) {
    CAME_ON.fetch_add(1, Ordering::Relaxed);
    match context & 3 {
        0 => {}
        1 => drop(psci::cpu_on(guest.rng.below(guest.cpus as u64), CONTEXT)),
        2 => drop(psci::is_on(0)),
        // SAFETY: an SGI to all others has no effect on memory; they have interrupts masked or
        // handle it.
        _ => unsafe { asm!("msr icc_sgi1r_el1, {}", in(reg) 1_u64 << 40, options(nostack)) },
    }
}

/// Whether all siblings are off.
pub(crate) fn all_off(guest: &Guest) -> bool {
    (1..guest.cpus as u64).all(|cpu| psci::is_on(cpu) == Ok(false))
}

/// Leaves a sibling running where there is no code: it takes exceptions for ever. Normal VMs only.
pub(crate) fn let_one_run_wild(guest: &Guest) {
    if guest.cpus > 1 && !rsi::is_realm() {
        crate::guest::put(0, 0);
        let registers = [0xc400_0003, 1, scratch(), 0, 0, 0, 0, 0];
        crate::probe::write(0, &[0xd400_0002]);
        crate::probe::synchronize();
        crate::probe::run(0, registers);
    }
}
