//! Cache maintenance by set and way, as boot loaders do it.

use guest_rt::println;

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

static WORD: AtomicU64 = AtomicU64::new(0);

/// Level 1, so many sets of 64 bytes in so many ways: what every core has at least, and more than
/// needed does no harm.
const SETS: u64 = 64;
const WAYS: u64 = 4;

/// One pass over sets and ways: clean and invalidate, or only invalidate.
fn pass(invalidate_only: bool) {
    for operand in (0..WAYS).flat_map(|way| (0..SETS).map(move |set| way << 30 | set << 6)) {
        if invalidate_only {
            // SAFETY: memory keeps its contents: EL2 turns an invalidation into one that cleans.
            unsafe { asm!("dc isw, {0}", in(reg) operand, options(nostack)) }
        } else {
            // SAFETY: what the caches hold goes to memory.
            unsafe { asm!("dc cisw, {0}", in(reg) operand, options(nostack)) }
        }
    }
}

pub(crate) fn check() -> Result<(), &'static str> {
    for round in 1..=4_u64 {
        WORD.store(round, Ordering::Relaxed);
        pass(round % 2 == 0);
        if WORD.load(Ordering::Relaxed) != round {
            return Err("an invalidation by set and way has lost data");
        }
    }
    println!("cpu: maintenance by set and way ok, {} operations", 4 * SETS * WAYS);
    Ok(())
}
