//! The true random number generator firmware interface (Arm DEN 0098), version 1.0.

use crate::exit::Resume;
use crate::traits::{Entropy, EntropyError};

/// Function identifiers of the interface; RND also exists with 64-bit registers.
pub(crate) const VERSION: u32 = 0x8400_0050;
const FEATURES: u32 = 0x8400_0051;
const GET_UUID: u32 = 0x8400_0052;
const RND32: u32 = 0x8400_0053;
const RND64: u32 = 0xc400_0053;

const VERSION_1_0: i64 = 0x1_0000;
const SUCCESS: u64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const NO_ENTROPY: i64 = -3;

/// Registers that carry entropy, the most significant first.
const RESULT_REGISTERS: usize = 3;
/// The generator's UUID, 89b7cb35-6563-4d30-b957-293351cfb467, as words of little-endian bytes.
const UUID: [u64; 4] = [0x35cb_b789, 0x304d_6365, 0x3329_57b9, 0x67b4_cf51];

/// Whether `function` belongs to the interface.
pub(crate) fn is_call(function: u32) -> bool {
    matches!(function, VERSION | FEATURES | GET_UUID | RND32 | RND64)
}

/// Answers a call. Without a source of entropy the interface is not there.
pub(crate) fn call(function: u32, argument: u64, entropy: &dyn Entropy) -> Resume {
    if !entropy.has_source() {
        return status(NOT_SUPPORTED);
    }
    match function {
        VERSION => status(VERSION_1_0),
        FEATURES if is_call(argument as u32) => status(0),
        GET_UUID => Resume::Results(UUID),
        RND32 => random::<4>(u64::from(argument as u32), entropy),
        RND64 => random::<8>(argument, entropy),
        _ => status(NOT_SUPPORTED),
    }
}

fn status(value: i64) -> Resume {
    Resume::Results([value.cast_unsigned(), 0, 0, 0])
}

/// TRNG_RND with registers of `WIDTH` bytes: `bits` of entropy, right-aligned in the result.
fn random<const WIDTH: usize>(bits: u64, entropy: &dyn Entropy) -> Resume {
    let register_bits = 8 * WIDTH as u64;
    if bits == 0 || bits > RESULT_REGISTERS as u64 * register_bits {
        return status(INVALID_PARAMETERS);
    }
    let mut bytes = [[0; WIDTH]; RESULT_REGISTERS];
    if let Err(error) = entropy.fill(bytes.as_flattened_mut()) {
        return status(match error {
            EntropyError::Exhausted => NO_ENTROPY,
            EntropyError::NoSource => NOT_SUPPORTED,
        });
    }
    let mut results = [SUCCESS, 0, 0, 0];
    let mut left = bits;
    // The last register has the least significant bits.
    for (register, bytes) in results[1..].iter_mut().rev().zip(bytes) {
        let taken = left.min(register_bits);
        let value = bytes.iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        *register = value & u64::MAX.checked_shr(64 - taken as u32).unwrap_or(0);
        left -= taken;
    }
    Resume::Results(results)
}

#[cfg(test)]
mod tests;
