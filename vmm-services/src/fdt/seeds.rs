//! Random numbers that a guest finds in its tree.

use crate::traits::{Entropy, EntropyError};
use core::fmt;

/// Random numbers for `/chosen`: where a kernel puts itself, and the first state of its generator.
///
/// They are secret between the hypervisor, which made them, and the guest, which erases them once it has
/// used them.
#[derive(Clone, PartialEq, Eq)]
pub struct Seeds {
    /// `kaslr-seed`.
    pub(super) kaslr: [u8; 8],
    /// `rng-seed`.
    pub(super) rng: [u8; 64],
}

impl Seeds {
    /// Draws seeds for one start of a guest.
    ///
    /// # Errors
    /// See [`EntropyError`].
    pub fn draw(entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let mut seeds = Self { kaslr: [0; 8], rng: [0; 64] };
        entropy.fill(&mut seeds.kaslr)?;
        entropy.fill(&mut seeds.rng)?;
        Ok(seeds)
    }
}

impl fmt::Debug for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seeds").finish_non_exhaustive()
    }
}
