//! Token bucket: how many bytes a port may send.

use core::num::NonZeroU32;

/// Nanoseconds in which the bucket fills at the configured rate.
const FILL_NS: u64 = 20_000_000;
/// What the bucket holds at least, in bytes: a few frames of any size, however low the rate.
const MIN_DEPTH: u64 = 4 * super::MAX_FRAME as u64;

/// Limits the rate of a port in the long run; short bursts pass.
#[derive(Clone, Debug)]
pub(super) struct TokenBucket {
    rate_kbps: NonZeroU32,
    /// Most bytes that it holds.
    depth: u64,
    /// Bytes that may be sent now.
    tokens: u64,
    /// Time up to which `tokens` has been filled, in nanoseconds.
    filled_at: u64,
}

impl TokenBucket {
    /// A full bucket for `rate_kbps` thousand bits per second.
    pub(super) fn new(rate_kbps: NonZeroU32, now_ns: u64) -> Self {
        let depth = bytes_in(rate_kbps, FILL_NS).max(MIN_DEPTH);
        Self { rate_kbps, depth, tokens: depth, filled_at: now_ns }
    }

    /// Takes `bytes` tokens if there are so many.
    pub(super) fn take(&mut self, bytes: u64, now_ns: u64) -> bool {
        self.fill(now_ns);
        match self.tokens.checked_sub(bytes) {
            Some(left) => self.tokens = left,
            None => return false,
        }
        true
    }

    fn fill(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.filled_at);
        let earned = bytes_in(self.rate_kbps, elapsed);
        if self.tokens.saturating_add(earned) >= self.depth {
            self.tokens = self.depth;
            self.filled_at = self.filled_at.max(now_ns);
            return;
        }
        self.tokens += earned;
        // Only the time that whole bytes have cost: the remainder is earned next time.
        self.filled_at += time_of(self.rate_kbps, earned);
    }
}

/// Whole bytes that a rate gives in a time.
fn bytes_in(rate_kbps: NonZeroU32, ns: u64) -> u64 {
    // Thousand bits per second are 1 / 8_000_000 bytes per nanosecond.
    let bytes = u128::from(ns) * u128::from(rate_kbps.get()) / 8_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Nanoseconds that a rate takes for so many bytes, rounded up.
fn time_of(rate_kbps: NonZeroU32, bytes: u64) -> u64 {
    let ns = (u128::from(bytes) * 8_000_000).div_ceil(u128::from(rate_kbps.get()));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
