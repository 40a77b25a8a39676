//! Creating, destroying and folding tables.

use crate::abi::{Refusal, Reply, Ripas};
use crate::addr::{GRANULE_BYTES, Ipa, Pa};
use crate::granule::GranuleState;
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::rtt::entry::Entry;
use crate::rtt::geometry::{ENTRIES, MIN_BLOCK_LEVEL, PAGE_LEVEL, Stage2, entry_size};
use crate::rtt::walk::{TableImage, Walk};

/// Checks the operands of the commands that name a table below the start level.
fn check_table_address(stage2: &Stage2, ipa: Ipa, level: u64) -> Result<i64, Refusal> {
    let level = level.cast_signed();
    let levels = stage2.start_level + 1..=PAGE_LEVEL;
    if levels.contains(&level) && stage2.is_entry_address(ipa, level - 1) {
        Ok(level)
    } else {
        Err(Refusal::INPUT)
    }
}

impl<P: Platform> Monitor<P> {
    /// RTT_CREATE: puts a table in the place of an entry of the level above, which it splits.
    pub(crate) fn rtt_create(
        &self,
        rd: Pa,
        table: Pa,
        ipa: Ipa,
        level: u64,
    ) -> Result<Reply, Refusal> {
        let (child, rd_granule) =
            self.lock_pair((table, GranuleState::Delegated), (rd, GranuleState::Rd))?;
        let stage2 = self.load_rd(&rd_granule).stage2();
        let level = check_table_address(&stage2, ipa, level)?;
        let walk = self.walk(&stage2, ipa, level - 1);
        if walk.level != level - 1 {
            return Err(Refusal::rtt(walk.level));
        }
        let mut image = [0; GRANULE_BYTES];
        for (chunk, index) in image.chunks_exact_mut(8).zip(0..) {
            let Some(entry) = walk.entry.split(level, index) else {
                return Err(Refusal::rtt(walk.level)); // a table is there already
            };
            chunk.copy_from_slice(&entry.encode(level).to_le_bytes());
        }
        self.platform.write_realm(table, &image);
        child.set_state(GranuleState::Rtt);
        if walk.entry.is_counted() {
            child.get(ENTRIES as u32);
        } else {
            self.get_table(walk.table, 1);
        }
        if walk.entry.is_mapping() {
            let range = (ipa, entry_size(walk.level));
            self.replace_entry(&stage2, &walk, range, Entry::Table(table));
        } else {
            self.set_entry(&walk, walk.index, Entry::Table(table));
        }
        Ok(Reply::SUCCESS)
    }

    /// RTT_DESTROY: removes a table that holds no reference. Protected addresses become
    /// DESTROYED; unprotected mappings vanish.
    pub(crate) fn rtt_destroy(&self, rd: Pa, ipa: Ipa, level: u64) -> Reply {
        match self.try_rtt_destroy(rd, ipa, level) {
            Ok(reply) => reply,
            Err((refusal, top)) => Reply::refused_with(refusal, [0, top.0]),
        }
    }

    fn try_rtt_destroy(&self, rd: Pa, ipa: Ipa, level: u64) -> Result<Reply, (Refusal, Ipa)> {
        let wrong = |refusal| (refusal, Ipa(0));
        let (_rd_granule, rd) = self.lock_rd(rd).map_err(wrong)?;
        let stage2 = rd.stage2();
        let level = check_table_address(&stage2, ipa, level).map_err(wrong)?;
        let walk = self.walk(&stage2, ipa, level - 1);
        let table = match walk.entry {
            Entry::Table(table) if walk.level == level - 1 => table,
            _ => return Err((Refusal::rtt(walk.level), self.skip_non_live(&walk, ipa))),
        };
        if self.lock_own(table, GranuleState::Rtt).refcount() != 0 {
            return Err((Refusal::rtt(level), ipa));
        }
        let hole = if stage2.is_protected(ipa) {
            Entry::Unassigned(Ripas::Destroyed)
        } else {
            Entry::UnassignedNs
        };
        self.replace_entry(&stage2, &walk, (ipa, entry_size(walk.level)), hole);
        self.put_table(walk.table, 1);
        self.release(&self.lock_own(table, GranuleState::Rtt));
        Ok(Reply::with([table.0, self.skip_non_live(&walk, ipa).0]))
    }

    /// RTT_FOLD: replaces a table whose entries are all alike by one entry of the level above.
    pub(crate) fn rtt_fold(&self, rd: Pa, ipa: Ipa, level: u64) -> Result<Reply, Refusal> {
        let (_rd_granule, rd) = self.lock_rd(rd)?;
        let stage2 = rd.stage2();
        let level = check_table_address(&stage2, ipa, level)?;
        let walk = self.walk(&stage2, ipa, level - 1);
        let table = match walk.entry {
            Entry::Table(table) if walk.level == level - 1 => table,
            _ => return Err(Refusal::rtt(walk.level)),
        };
        let folded = self.folded_entry(&walk, table)?;
        self.replace_entry(&stage2, &walk, (ipa, entry_size(walk.level)), folded);
        let child = self.lock_own(table, GranuleState::Rtt);
        if folded.is_counted() {
            child.put(ENTRIES as u32);
        } else {
            self.put_table(walk.table, 1);
        }
        self.release(&child);
        Ok(Reply::with([table.0]))
    }

    /// The one entry that says the same as all of the table behind the end of a walk.
    fn folded_entry(&self, walk: &Walk, table: Pa) -> Result<Entry, Refusal> {
        let level = walk.level + 1;
        let no_block = level <= MIN_BLOCK_LEVEL;
        let full = self.lock_own(table, GranuleState::Rtt).refcount() == ENTRIES as u32;
        if full && no_block {
            return Err(Refusal::rtt(walk.level));
        }
        let folded = fold(&self.read_table(table, level), level).ok_or(Refusal::rtt(level))?;
        if no_block && matches!(folded, Entry::AssignedNs(_)) {
            return Err(Refusal::rtt(walk.level));
        }
        Ok(folded)
    }
}

/// The entry of the level above that would split into exactly this table at `level`.
fn fold(table: &TableImage, level: i64) -> Option<Entry> {
    let first = table.entry(0);
    let aligned = match first {
        Entry::Unassigned(_) | Entry::UnassignedNs => true,
        Entry::Assigned(_, pa) => pa.is_aligned(entry_size(level - 1)),
        Entry::AssignedNs(host) => host.pa().is_aligned(entry_size(level - 1)),
        Entry::Table(_) => false,
    };
    let alike =
        table.entries().zip(0..).all(|(entry, index)| first.split(level, index) == Some(entry));
    (aligned && alike).then_some(first)
}
