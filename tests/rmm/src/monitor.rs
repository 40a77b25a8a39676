//! The monitor: one per machine, shared by all CPUs.

use crate::addr::Pa;
use crate::granule::GranuleSlot;
use crate::platform::Platform;

/// A range of RAM whose granules can be delegated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First byte, granule aligned.
    pub base: Pa,
    /// Size in bytes, a multiple of the granule size.
    pub size: u64,
}

/// Why a monitor could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// There are more RAM ranges than the monitor keeps.
    TooManyRanges,
    /// A RAM range is empty, misaligned, or overlaps or precedes the range before it.
    BadRange,
    /// There are fewer granule slots than granules of RAM.
    TooFewSlots,
}

/// The Realm Management Monitor.
#[derive(Debug)]
pub struct Monitor<'m, P> {
    platform: P,
    #[expect(dead_code, reason = "the table follows")]
    slots: &'m [GranuleSlot],
}

impl<'m, P: Platform> Monitor<'m, P> {
    /// Starts a monitor over `ram`, ascending ranges, with one of `slots` for each granule.
    ///
    /// # Errors
    /// The ranges or slots do not fit, see [`BootError`].
    pub fn new(platform: P, ram: &[RamRange], slots: &'m [GranuleSlot]) -> Result<Self, BootError> {
        let granules: u64 = ram.iter().map(|range| range.size / crate::GRANULE_SIZE).sum();
        if (slots.len() as u64) < granules {
            return Err(BootError::TooFewSlots);
        }
        Ok(Self { platform, slots })
    }

    /// The machine under the monitor.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// Handles one RMI call: `fid` is x0, `args` x1 to x7; the result is x0 to x7 (1.0 hosts get
    /// x0 to x4 from EL3). Registers that the command does not define as outputs keep their
    /// values. May be called on any CPU at any time, interrupts masked.
    pub fn handle(&self, _fid: u64, args: [u64; 7]) -> [u64; 8] {
        let [x1, x2, x3, x4, x5, x6, x7] = args;
        [u64::MAX, x1, x2, x3, x4, x5, x6, x7]
    }
}
