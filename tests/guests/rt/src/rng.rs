//! Random numbers: SplitMix64, so that a seed gives the same ones again.

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that starts at `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number of random width, so that small ones are as likely as large ones; at times one of
    /// the borders of a width.
    pub fn number(&mut self) -> u64 {
        let bits = self.below(65);
        match self.below(8) {
            0 => 1_u64.checked_shl(bits as u32).unwrap_or(0).wrapping_sub(1),
            1 => 1_u64.checked_shl(bits as u32).unwrap_or(0),
            _ => self.next_u64().checked_shr(64 - bits as u32).unwrap_or(0),
        }
    }
}
