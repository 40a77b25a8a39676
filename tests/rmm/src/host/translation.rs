//! Stage-2 translation as the simulated CPU does it: from the control registers and descriptors
//! alone, with a translation cache that only invalidation empties.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::host::memory::{Memory, Space};
use crate::platform::Stage2Regime;

/// A translated page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) pa: Pa,
    pub(crate) space: Space,
    readable: bool,
    writable: bool,
    executable: bool,
    level: u64,
}

/// Kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// Fault status code of a failed translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FaultStatus(pub(crate) u64);

const ADDRESS_SIZE: u64 = 0x00;
const TRANSLATION: u64 = 0x04;
const ACCESS_FLAG: u64 = 0x08;
const PERMISSION: u64 = 0x0c;
/// Granule protection fault, not on a table walk.
pub(crate) const GRANULE_PROTECTION: FaultStatus = FaultStatus(0x28);

/// Translations that were made, by VMID and page.
#[derive(Debug, Default)]
pub(crate) struct TranslationCache(Mutex<HashMap<(u64, u64), Page>>);

impl TranslationCache {
    pub(crate) fn invalidate(&self, regime: Stage2Regime, ipa: Ipa, size: u64) {
        let vmid = regime.vttbr >> 48;
        let pages = ipa.0 / GRANULE_SIZE..(ipa.0 + size).div_ceil(GRANULE_SIZE);
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(tag, page), _| *tag != vmid || !pages.contains(page));
    }

    pub(crate) fn invalidate_all(&self, regime: Stage2Regime) {
        let vmid = regime.vttbr >> 48;
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|(tag, _), _| *tag != vmid);
    }

    /// Translates the page of `ipa` and checks the access.
    pub(crate) fn translate(
        &self,
        memory: &Memory,
        regime: Stage2Regime,
        ipa: Ipa,
        access: Access,
    ) -> Result<Page, FaultStatus> {
        let key = (regime.vttbr >> 48, ipa.0 / GRANULE_SIZE);
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let page = match cache.get(&key) {
            Some(page) => *page,
            None => {
                let page = walk(memory, regime, ipa)?;
                cache.insert(key, page);
                page
            }
        };
        let allowed = match access {
            Access::Read => page.readable,
            Access::Write => page.writable,
            Access::Execute => page.executable,
        };
        if allowed { Ok(page) } else { Err(FaultStatus(PERMISSION + page.level)) }
    }
}

/// Walks the tables for the page of `ipa`.
fn walk(memory: &Memory, regime: Stage2Regime, ipa: Ipa) -> Result<Page, FaultStatus> {
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    let ipa_bits = 64 - (regime.vtcr & 0x3f);
    let mut level = match regime.vtcr >> 6 & 0b11 {
        0 => 2,
        1 => 1,
        _ => 0_u64,
    };
    if ipa.0 >> ipa_bits != 0 {
        return Err(FaultStatus(TRANSLATION + level));
    }
    let mut table = regime.vttbr & ADDRESS;
    let shift = |level: u64| 12 + 9 * (3 - level);
    // Start tables side by side work as one table with more entries.
    let mut index = ipa.0 >> shift(level);
    loop {
        let mut bytes = [0; 8];
        let read = memory.read(Pa(table + 8 * index), Space::Realm, &mut bytes);
        assert!(read.is_ok(), "table walk outside realm memory: {read:?}");
        let descriptor = u64::from_le_bytes(bytes);
        match (descriptor & 0b11, level) {
            (0b11, 0..3) => {
                table = descriptor & ADDRESS;
                level += 1;
                index = ipa.0 >> shift(level) & 0x1ff;
            }
            (0b11, 3) | (0b01, 1..3) => {
                return leaf(descriptor, level, ipa, (1 << shift(level)) - 1);
            }
            _ => return Err(FaultStatus(TRANSLATION + level)),
        }
    }
}

fn leaf(descriptor: u64, level: u64, ipa: Ipa, within: u64) -> Result<Page, FaultStatus> {
    const ACCESSED: u64 = 1 << 10;
    const NON_SECURE: u64 = 1 << 55;
    let base = descriptor & 0x0000_ffff_ffff_f000;
    if base & within != 0 {
        return Err(FaultStatus(ADDRESS_SIZE + level));
    }
    if descriptor & ACCESSED == 0 {
        return Err(FaultStatus(ACCESS_FLAG + level));
    }
    let non_secure = descriptor & NON_SECURE != 0;
    Ok(Page {
        pa: Pa(base | ipa.0 & within & !(GRANULE_SIZE - 1)),
        space: if non_secure { Space::NonSecure } else { Space::Realm },
        readable: descriptor >> 6 & 1 != 0,
        writable: descriptor >> 7 & 1 != 0,
        // A realm never executes from Non-secure memory.
        executable: !non_secure && descriptor >> 53 & 0b11 == 0,
        level,
    })
}
