//! Marks for the instruction counter (`tests/count`): instructions without effect that say where an
//! interval begins and ends.

use core::arch::asm;

use crate::println;

/// Bit of a mark that says where an interval ends.
const END: u16 = 0x8000;

/// Marks the beginning of an interval `ID`, below 0x8000.
#[inline(always)]
pub fn begin<const ID: u16>() {
    // SAFETY: a write to the zero register has no effect.
    unsafe { asm!("movz xzr, #{id}", id = const ID, options(nostack)) }
}

/// Marks the end of the interval `ID`.
#[inline(always)]
pub fn end<const ID: u16>() {
    // SAFETY: as above.
    unsafe { asm!("movz xzr, #{id}", id = const ID | END, options(nostack)) }
}

/// Says on the console, for `./x bench`, what the intervals `ID` are.
pub fn announce<const ID: u16>(what: &str) {
    println!("interval {ID}: {what}");
}

/// Makes each of `rounds` calls of `f` an interval `ID`, and says what they are.
pub fn each<const ID: u16>(what: &str, rounds: u64, mut f: impl FnMut()) {
    announce::<ID>(what);
    for _ in 0..rounds {
        begin::<ID>();
        f();
        end::<ID>();
    }
}
