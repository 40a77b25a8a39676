//! Calls of the RSI that only this guest makes, beside what `guest_rt::rsi` has.

use guest_rt::rsi::{Status, call, raw_call};

const FID_MEASUREMENT_READ: u32 = 0xc400_0192;
const FID_MEASUREMENT_EXTEND: u32 = 0xc400_0193;
const FID_ATTESTATION_TOKEN_INIT: u32 = 0xc400_0194;
const FID_ATTESTATION_TOKEN_CONTINUE: u32 = 0xc400_0195;
const FID_IPA_STATE_SET: u32 = 0xc400_0197;
const FID_IPA_STATE_GET: u32 = 0xc400_0198;

/// Size in bytes of the widest measurement.
pub(crate) const MAX_MEASUREMENT: usize = 64;

/// Size in bytes of a granule, and the alignment of what the RMM writes into.
pub(crate) const GRANULE: usize = 4096;
/// Size in bytes of the challenge in an attestation token.
pub(crate) const CHALLENGE: usize = 64;

/// Where the RMM writes an attestation token.
#[repr(C, align(4096))]
pub(crate) struct TokenGranule(pub(crate) [u8; GRANULE]);

/// State of a private IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Ripas {
    /// Unused: an access takes an abort, and the IPA's shared alias is in use instead, if any.
    Empty = 0,
    /// Private RAM.
    Ram = 1,
}

/// Reads measurement `index`: 0 is the RIM, 1 to 4 are the REMs. Shorter ones end in zeroes.
pub(crate) fn measurement(index: u64) -> Result<[u8; MAX_MEASUREMENT], Status> {
    let results = call(FID_MEASUREMENT_READ, &[index])?;
    let mut value = [0; MAX_MEASUREMENT];
    for (bytes, word) in value.chunks_exact_mut(8).zip(&results[1..9]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Ok(value)
}

/// Extends measurement `index`, 1 to 4, by `value`, which is cut to 64 bytes.
pub(crate) fn extend_measurement(index: u64, value: &[u8]) -> Result<(), Status> {
    let mut args = [0; 10];
    args[0] = index;
    args[1] = value.len() as u64;
    for (arg, bytes) in args[2..].iter_mut().zip(value.chunks(8)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        *arg = u64::from_le_bytes(word);
    }
    call(FID_MEASUREMENT_EXTEND, &args).map(|_| ())
}

/// Begins an attestation token over `challenge`; answers the most bytes that it can have.
pub(crate) fn begin_token(challenge: &[u8; CHALLENGE]) -> Result<u64, Status> {
    let mut args = [0; CHALLENGE / 8];
    for (arg, word) in args.iter_mut().zip(challenge.as_chunks().0) {
        *arg = u64::from_le_bytes(*word);
    }
    call(FID_ATTESTATION_TOKEN_INIT, &args).map(|results| results[1])
}

/// Goes on with the token until it is whole; answers how many bytes of `granule` it fills. A token
/// that is larger than a granule is [`Status::ERROR_INPUT`].
pub(crate) fn finish_token(granule: &mut TokenGranule) -> Result<usize, Status> {
    let address = granule.0.as_mut_ptr().expose_provenance() as u64;
    let mut length = 0;
    loop {
        let room = (GRANULE - length) as u64;
        // The RMM comes back early when an interrupt is pending, or when the granule is full.
        let results = raw_call(FID_ATTESTATION_TOKEN_CONTINUE, &[address, length as u64, room]);
        let written = results[1].min(room) as usize;
        match Status(results[0]) {
            Status(0) => return Ok(length + written),
            Status::INCOMPLETE if length + written < GRANULE => length += written,
            Status::INCOMPLETE => return Err(Status::ERROR_INPUT),
            status => return Err(status),
        }
    }
}

/// Changes `base..top` to `ripas`, in as many calls as the host takes for it.
pub(crate) fn set_ripas(mut base: u64, top: u64, ripas: Ripas) -> Result<(), Status> {
    const ACCEPT: u64 = 0;
    const REJECTED: Status = Status(u64::MAX - 1);
    while base < top {
        let results = call(FID_IPA_STATE_SET, &[base, top, ripas as u64, 0])?;
        if results[2] != ACCEPT || results[1] <= base || results[1] > top {
            return Err(REJECTED);
        }
        base = results[1];
    }
    Ok(())
}

/// State of the IPAs from `base` on, and where the range of this state ends, at most `top`.
pub(crate) fn ripas(base: u64, top: u64) -> Result<(u64, u64), Status> {
    call(FID_IPA_STATE_GET, &[base, top]).map(|results| (results[2], results[1]))
}
