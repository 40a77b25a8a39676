//! Measurements: the realm initial measurement and an extensible one.

use core::fmt;

use guest_rt::println;
use sha2::{Digest, Sha256, Sha512};

use crate::rsi;

const RIM: u64 = 0;
const FIRST_REM: u64 = 1;
const AFTER_LAST_REM: u64 = 5;

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Prints the RIM, and extends a REM by what the realm can compute for itself.
///
/// # Errors
///
/// Says what did not hold.
pub(crate) fn check(algorithm: u8) -> Result<(), &'static str> {
    let length = match algorithm {
        0 => 32,
        1 => 64,
        _ => return Err("hash algorithm is not known"),
    };
    let rim = rsi::measurement(RIM).map_err(|_| "RIM cannot be read")?;
    let (digest, rest) = rim.split_at(length);
    if digest.iter().all(|byte| *byte == 0) || rest.iter().any(|byte| *byte != 0) {
        return Err("RIM has the wrong length");
    }
    println!("realm: rim {}", Hex(digest));

    if rsi::extend_measurement(RIM, &[0; 32]) != Err(rsi::ERROR_INPUT)
        || rsi::measurement(AFTER_LAST_REM) != Err(rsi::ERROR_INPUT)
    {
        return Err("a measurement that must not change or does not exist was accepted");
    }
    let before = rsi::measurement(FIRST_REM).map_err(|_| "REM 1 cannot be read")?;
    let event = *b"suzerain realm guest, event one.";
    rsi::extend_measurement(FIRST_REM, &event).map_err(|_| "REM 1 cannot be extended")?;
    let after = rsi::measurement(FIRST_REM).map_err(|_| "REM 1 cannot be read")?;
    let extended = match length {
        32 => {
            Sha256::new().chain_update(&before[..32]).chain_update(event).finalize()[..]
                == after[..32]
        }
        _ => Sha512::new().chain_update(before).chain_update(event).finalize()[..] == after[..],
    };
    if extended { Ok(()) } else { Err("REM 1 is not the hash of its old value and the event") }
}
