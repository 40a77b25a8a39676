//! Unprotected mappings: RTT_MAP_UNPROTECTED, RTT_UNMAP_UNPROTECTED.
//!
//! The monitor keeps no hold on the host's memory: if the host delegates it while it is mapped, the
//! realm's access takes a granule protection fault.

use crate::abi::{Refusal, Reply};
use crate::addr::{Ipa, Pa};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::rtt::entry::{Entry, HostDescriptor};
use crate::rtt::geometry::{MIN_BLOCK_LEVEL, PAGE_LEVEL, Stage2, entry_size};

/// Checks that `level` may hold pages or blocks.
fn check_level(level: u64) -> Result<i64, Refusal> {
    let level = level.cast_signed();
    if (MIN_BLOCK_LEVEL..=PAGE_LEVEL).contains(&level) { Ok(level) } else { Err(Refusal::INPUT) }
}

/// Checks that `ipa` is an unprotected address of an entry at `level`.
fn check_address(stage2: &Stage2, ipa: Ipa, level: i64) -> Result<(), Refusal> {
    let unprotected = stage2.is_entry_address(ipa, level) && !stage2.is_protected(ipa);
    if unprotected && level >= stage2.start_level { Ok(()) } else { Err(Refusal::INPUT) }
}

impl<P: Platform> Monitor<P> {
    /// RTT_MAP_UNPROTECTED.
    pub(crate) fn rtt_map_unprotected(
        &self,
        rd: Pa,
        ipa: Ipa,
        level: u64,
        descriptor: u64,
    ) -> Result<Reply, Refusal> {
        let level = check_level(level)?;
        let (_rd_granule, rd) = self.lock_rd(rd)?;
        let stage2 = rd.stage2();
        let host = HostDescriptor::new(descriptor, level).ok_or(Refusal::INPUT)?;
        check_address(&stage2, ipa, level)?;
        let walk = self.walk(&stage2, ipa, level);
        if walk.level != level || walk.entry != Entry::UnassignedNs {
            return Err(Refusal::rtt(walk.level));
        }
        self.set_entry(&walk, walk.index, Entry::AssignedNs(host));
        Ok(Reply::SUCCESS)
    }

    /// RTT_UNMAP_UNPROTECTED.
    pub(crate) fn rtt_unmap_unprotected(&self, rd: Pa, ipa: Ipa, level: u64) -> Reply {
        match self.try_unmap_unprotected(rd, ipa, level) {
            Ok(top) => Reply::with([top.0]),
            Err((refusal, top)) => Reply::refused_with(refusal, [top.0]),
        }
    }

    fn try_unmap_unprotected(&self, rd: Pa, ipa: Ipa, level: u64) -> Result<Ipa, (Refusal, Ipa)> {
        let wrong = |refusal| (refusal, Ipa(0));
        let level = check_level(level).map_err(wrong)?;
        let (_rd_granule, rd) = self.lock_rd(rd).map_err(wrong)?;
        let stage2 = rd.stage2();
        check_address(&stage2, ipa, level).map_err(wrong)?;
        let walk = self.walk(&stage2, ipa, level);
        if walk.level != level || !matches!(walk.entry, Entry::AssignedNs(_)) {
            return Err((Refusal::rtt(walk.level), self.skip_non_live(&walk, ipa)));
        }
        self.replace_entry(&stage2, &walk, (ipa, entry_size(level)), Entry::UnassignedNs);
        Ok(self.skip_non_live(&walk, ipa))
    }
}
