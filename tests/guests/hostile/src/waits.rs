//! Floods of WFI, WFE and their relatives.

use core::arch::asm;

use guest_rt::timer;

use crate::guest::Guest;
use crate::interrupts;
use crate::probe;

/// Cases of one batch.
const BATCH: u64 = 32;
/// WFI, WFE, SEV, SEVL, YIELD, WFET x1, WFIT x1.
const INSTRUCTIONS: [u32; 7] =
    [0xd503_207f, 0xd503_205f, 0xd503_209f, 0xd503_20bf, 0xd503_203f, 0xd503_1001, 0xd503_1021];

/// Waits with a timer that ends them, and interrupts masked or not.
pub(crate) fn flood(guest: &mut Guest) -> u64 {
    for (index, word) in INSTRUCTIONS.iter().enumerate() {
        probe::write(index, &[*word]);
    }
    probe::synchronize();
    for _ in 0..BATCH {
        interrupts::restore();
        let ticks = guest.rng.below(4000);
        if guest.rng.one_in(2) {
            interrupts::mask();
        }
        // SAFETY: the timer has no effect on memory, and the handler serves its interrupt.
        unsafe {
            asm!("msr cntv_tval_el0, {}", "msr cntv_ctl_el0, {}", "isb",
                in(reg) ticks, in(reg) 1_u64, options(nostack));
        }
        let deadline = match guest.rng.below(4) {
            0 => guest.rng.next_u64(),
            _ => timer::now() + guest.rng.below(4000),
        };
        let index = guest.rng.below(INSTRUCTIONS.len() as u64) as usize;
        let outcome = probe::run(index, [0, deadline, 0, 0, 0, 0, 0, 0]);
        guest.faults += u64::from(outcome.faulted);
        interrupts::unmask();
    }
    BATCH
}
