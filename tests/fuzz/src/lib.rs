//! What the fuzz tests share: cases by number, and inputs that follow from the number alone.
//!
//! Each fuzz test is an ordinary test whose name begins with `fuzz_`. It runs for two seconds, so that
//! every `./x test` runs it, and for as long as one likes by hand:
//!
//! ```text
//! FUZZ_SECONDS=3600 cargo test --release -p vmm-services -p cca-tests fuzz_ -- --nocapture
//! ```
//!
//! A failure names the case; `FUZZ_CASE=N` runs that case alone. `FUZZ_FROM=N` begins with another case than
//! case 0, so that a second run does not do what the first one did.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Seconds that a test runs unless it is told otherwise.
const SECONDS: u64 = 2;
/// Cases that a test runs however slow the machine is.
const AT_LEAST: u64 = 50;

/// Runs `case` with the inputs of case after case until the time is up.
///
/// # Panics
/// If a case does; the message says how to repeat it.
pub fn run(what: &str, case: impl Fn(&Input)) {
    if let Some(only) = setting("FUZZ_CASE") {
        return case(&Input::new(only));
    }
    let seconds = setting("FUZZ_SECONDS").unwrap_or(SECONDS);
    let first = setting("FUZZ_FROM").unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut number = first;
    while number - first < AT_LEAST || Instant::now() < end {
        let outcome = catch_unwind(AssertUnwindSafe(|| case(&Input::new(number))));
        assert!(outcome.is_ok(), "{what}: FUZZ_CASE={number} repeats this");
        number += 1;
    }
    println!("{what}: {} cases", number - first);
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The random choices of one case.
#[derive(Debug)]
pub struct Input(Cell<u64>);

impl Input {
    /// The choices of the case with this number.
    #[must_use]
    pub const fn new(case: u64) -> Self {
        Self(Cell::new(case))
    }

    /// Any word. (SplitMix64: neighbouring cases have nothing in common.)
    pub fn word(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`; 0 if `limit` is 0.
    pub fn below(&self, limit: u64) -> u64 {
        self.word().checked_rem(limit).unwrap_or(0)
    }

    /// An index below `limit`; 0 if `limit` is 0.
    pub fn index(&self, limit: usize) -> usize {
        self.below(limit as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// A number that is more likely than others to be treated wrongly: near zero, near a power of two, near the
    /// largest, or any.
    pub fn number(&self) -> u64 {
        let near = self.below(5).wrapping_sub(2);
        match self.below(4) {
            0 => near,
            1 => (1 << self.below(64)) + near.min(2),
            2 => (1_u64 << self.below(64)).wrapping_sub(self.below(3)),
            _ => self.word() >> self.below(64),
        }
    }

    /// `length` bytes.
    pub fn bytes(&self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.word() as u8).collect()
    }

    /// Changes `bytes` in one to `changes` places: bits, bytes, numbers of either byte order, and parts that are
    /// cut out, doubled, or moved.
    pub fn mutate(&self, bytes: &mut Vec<u8>, changes: u64) {
        for _ in 0..=self.below(changes) {
            self.mutate_once(bytes);
        }
    }

    fn mutate_once(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.extend(self.bytes(8));
            return;
        }
        let at = self.index(bytes.len());
        // Most parts are short, as headers and fields are.
        let longest = if self.one_in(4) { bytes.len() - at } else { (bytes.len() - at).min(64) };
        let length = self.index(longest) + 1;
        match self.below(12) {
            0..3 => bytes[at] ^= 1 << self.below(8),
            3 => bytes[at] = self.word() as u8,
            4..9 => {
                let width = self.pick(&[2, 4, 4, 8]);
                // Fields are aligned to their size.
                let at = at - at % width;
                let number = self.number();
                let encoded =
                    if self.one_in(2) { number.to_le_bytes() } else { number.to_be_bytes() };
                let encoded =
                    if self.one_in(2) { &encoded[..width] } else { &encoded[8 - width..] };
                for (to, from) in bytes[at..].iter_mut().zip(encoded) {
                    *to = *from;
                }
            }
            9 => drop(bytes.drain(at..at + length)),
            10 => {
                let part = bytes[at..at + length].to_vec();
                let to = self.index(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            _ => {
                let part = bytes[at..at + length].to_vec();
                let to = self.index(bytes.len() - length + 1);
                bytes[to..to + length].copy_from_slice(&part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Input;

    #[test]
    fn a_case_repeats() {
        let bytes = |case| {
            let input = Input::new(case);
            let mut bytes = input.bytes(100);
            input.mutate(&mut bytes, 10);
            bytes
        };
        assert_eq!(bytes(7), bytes(7));
        assert_ne!(bytes(7), bytes(8));
    }

    #[test]
    fn choices_stay_within_their_limits() {
        for case in 0..2000 {
            let input = Input::new(case);
            assert!(input.below(3) < 3);
            assert_eq!(input.below(0), 0);
            let _ = input.number();
            let mut bytes = input.bytes(input.index(20));
            input.mutate(&mut bytes, 20);
        }
    }

    #[test]
    fn a_case_that_fails_is_named() {
        let outcome = std::panic::catch_unwind(|| super::run("odd", |_| panic!("oh")));
        let message = outcome.unwrap_err();
        let message = message.downcast_ref::<String>().unwrap();
        assert_eq!(message, "odd: FUZZ_CASE=0 repeats this");
    }
}
