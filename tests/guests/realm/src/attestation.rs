//! Measurements and the attestation token: the realm initial measurement, an extensible one, and a
//! token that carries both.

use core::fmt;

use guest_rt::println;
use guest_rt::rsi::Status;
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
    check_token(digest)?;

    if rsi::extend_measurement(RIM, &[0; 32]) != Err(Status::ERROR_INPUT)
        || rsi::measurement(AFTER_LAST_REM) != Err(Status::ERROR_INPUT)
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

/// Gets an attestation token, which must carry the challenge and the RIM.
///
/// What is checked is that these bytes are in it, not the signature: that is a verifier's.
fn check_token(rim: &[u8]) -> Result<(), &'static str> {
    let mut challenge = [0; rsi::CHALLENGE];
    for (index, byte) in challenge.iter_mut().enumerate() {
        *byte = 0xa5 ^ index as u8;
    }
    let limit = match rsi::begin_token(&challenge) {
        Ok(limit) => limit,
        Err(Status::ERROR_UNKNOWN) => {
            println!("realm: no attestation token: the RMM has no key");
            return Ok(());
        }
        Err(_) => return Err("ATTESTATION_TOKEN_INIT"),
    };
    let mut granule = rsi::TokenGranule([0; rsi::GRANULE]);
    let length = rsi::finish_token(&mut granule).map_err(|_| "ATTESTATION_TOKEN_CONTINUE")?;
    let token = granule.0.get(..length).filter(|_| length as u64 <= limit);
    let token = token.ok_or("the attestation token is larger than announced")?;
    let carries = |bytes: &[u8]| token.windows(bytes.len()).any(|window| window == bytes);
    if !carries(&challenge) || !carries(rim) {
        return Err("the attestation token lacks the challenge or the RIM");
    }
    println!("realm: attestation token of {length} bytes carries challenge and RIM");
    Ok(())
}
