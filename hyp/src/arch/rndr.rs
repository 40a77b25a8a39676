//! Random numbers of the core (FEAT_RNG).

use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, Readable};
use core::arch::asm;

/// Attempts before the generator counts as dry: it may need a moment to reseed itself.
const ATTEMPTS: u32 = 16;

/// Whether this core has the generator (`ID_AA64ISAR0_EL1.RNDR`, bits [63:60]).
#[must_use]
pub fn is_implemented() -> bool {
    ID_AA64ISAR0_EL1.get() >> 60 != 0
}

/// 64 random bits of a generator that reseeds itself from a true source now and then; `None` if the
/// core has none, or it does not deliver at the moment.
///
/// `RNDR`, not `RNDRRS`, which reseeds for each number: guests that ask without end would take the
/// seeds of all others.
#[must_use]
pub fn next() -> Option<u64> {
    is_implemented().then(|| (0..ATTEMPTS).find_map(|_| read()))?
}

fn read() -> Option<u64> {
    let value: u64;
    let delivered: u64;
    // SAFETY: the register exists (checked by `next`); reading it sets the flags, Z if it delivers
    // nothing, and has no other effect.
    unsafe {
        asm!("mrs {value}, S3_3_C2_C4_0", "cset {delivered}, ne",
            value = out(reg) value, delivered = out(reg) delivered, options(nomem, nostack));
    }
    (delivered != 0).then_some(value)
}
