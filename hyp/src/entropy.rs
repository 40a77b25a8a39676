//! Random numbers for guests: from the core if it has FEAT_RNG, else from firmware (Arm DEN 0098).

use crate::arch::{firmware, rndr};
use core::fmt;
use spin::Once;
use vmm_services::fdt::Seeds;
use vmm_services::{Entropy, EntropyError};

/// Where random numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cores' own generator.
    Core,
    /// TRNG_RND64 of the firmware.
    Firmware,
    /// Nowhere.
    None,
}

static SOURCE: Once<Source> = Once::new();

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Core => "RNDR",
            Self::Firmware => "TRNG of the firmware",
            Self::None => "none",
        })
    }
}

/// Looks for a source; called once, on the boot core.
pub fn init() -> Source {
    *SOURCE.call_once(|| {
        if rndr::is_implemented() {
            Source::Core
        } else if firmware::has_trng() {
            Source::Firmware
        } else {
            Source::None
        }
    })
}

/// The machine's random numbers, for services.
#[derive(Clone, Copy, Debug)]
pub struct MachineEntropy;

impl Entropy for MachineEntropy {
    fn has_source(&self) -> bool {
        SOURCE.get().is_some_and(|source| *source != Source::None)
    }

    fn fill(&self, buf: &mut [u8]) -> Result<(), EntropyError> {
        match SOURCE.get() {
            Some(Source::Core) => {
                for piece in buf.chunks_mut(size_of::<u64>()) {
                    let random = rndr::next().ok_or(EntropyError::Exhausted)?.to_le_bytes();
                    piece.iter_mut().zip(random).for_each(|(to, from)| *to = from);
                }
                Ok(())
            }
            Some(Source::Firmware) => {
                for piece in buf.chunks_mut(firmware::TRNG_BYTES) {
                    let random = firmware::trng().ok_or(EntropyError::Exhausted)?;
                    let random = random.as_flattened();
                    piece.iter_mut().zip(random).for_each(|(to, from)| *to = *from);
                }
                Ok(())
            }
            Some(Source::None) | None => Err(EntropyError::NoSource),
        }
    }
}

/// Seeds for a guest that starts. None if the machine has no source, or, which is logged, if it delivers
/// nothing at the moment: a guest gets by without.
#[must_use]
pub fn seeds() -> Option<Seeds> {
    let seeds = Seeds::draw(&MachineEntropy);
    if let Err(error @ EntropyError::Exhausted) = seeds {
        log::warn!("no seeds for a guest: {error}");
    }
    seeds.ok()
}
