//! Walking tables, reading and changing single entries.

use crate::abi::{Refusal, Reply, Ripas, entry_state};
use crate::addr::{GRANULE_BYTES, Ipa, Pa};
use crate::granule::{GranuleState, Locked};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::realm::Rd;
use crate::rtt::entry::Entry;
use crate::rtt::geometry::{ENTRIES, PAGE_LEVEL, Stage2, entry_size};

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// The last table reached.
    pub(crate) table: Pa,
    /// Its level.
    pub(crate) level: i64,
    /// Number of the entry for the address in it.
    pub(crate) index: u64,
    /// That entry.
    pub(crate) entry: Entry,
}

/// All entries of one table, read at once.
pub(crate) struct TableImage {
    bytes: [u8; GRANULE_BYTES],
    level: i64,
}

impl TableImage {
    /// Entry number `index`, less than [`ENTRIES`].
    pub(crate) fn entry(&self, index: u64) -> Entry {
        let mut descriptor = [0; 8];
        let at = (index % ENTRIES) as usize * 8;
        descriptor.copy_from_slice(&self.bytes[at..at + 8]);
        Entry::decode(u64::from_le_bytes(descriptor), self.level)
    }

    /// All entries in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> {
        (0..ENTRIES).map(|index| self.entry(index))
    }
}

impl<P: Platform> Monitor<P> {
    /// Locks the realm descriptor that the host names and reads it.
    pub(crate) fn lock_rd(&self, rd: Pa) -> Result<(Locked<'_>, Rd), Refusal> {
        let granule = self.lock(rd, GranuleState::Rd)?;
        let rd = self.load_rd(&granule);
        Ok((granule, rd))
    }

    /// Walks towards `level`, at least the start level, for `ipa` in the IPA space.
    pub(crate) fn walk(&self, stage2: &Stage2, ipa: Ipa, level: i64) -> Walk {
        let (table, index) = stage2.start_entry(ipa);
        let mut walk = self.look_up(table, stage2.start_level, index);
        while let Entry::Table(next) = walk.entry
            && walk.level < level
        {
            let next_level = walk.level + 1;
            let index = ipa.0 / entry_size(next_level) % ENTRIES;
            walk = self.look_up(next, next_level, index);
        }
        walk
    }

    fn look_up(&self, table: Pa, level: i64, index: u64) -> Walk {
        let entry = Entry::decode(self.platform.read_descriptor(table.offset(index * 8)), level);
        Walk { table, level, index, entry }
    }

    /// The entry `index` of the table at the end of a walk.
    pub(crate) fn sibling(&self, walk: &Walk, index: u64) -> Entry {
        self.look_up(walk.table, walk.level, index).entry
    }

    pub(crate) fn read_table(&self, table: Pa, level: i64) -> TableImage {
        let mut bytes = [0; GRANULE_BYTES];
        self.platform.read_realm(table, &mut bytes);
        TableImage { bytes, level }
    }

    /// Writes entry `index` of the table at the end of a walk.
    pub(crate) fn set_entry(&self, walk: &Walk, index: u64, entry: Entry) {
        let at = walk.table.offset(index * 8);
        self.platform.write_descriptor(at, entry.encode(walk.level));
    }

    /// Replaces the entry at the end of a walk; break-before-make if the walker can hold
    /// translations of `size` bytes from `ipa` on.
    pub(crate) fn replace_entry(
        &self,
        stage2: &Stage2,
        walk: &Walk,
        (ipa, size): (Ipa, u64),
        entry: Entry,
    ) {
        const BROKEN: Entry = Entry::Unassigned(Ripas::Empty);
        self.set_entry(walk, walk.index, BROKEN);
        self.platform.tlb_invalidate(stage2.regime(&self.features), ipa, size);
        self.set_entry(walk, walk.index, entry);
    }

    /// The first address from `ipa` on, within the table at the end of the walk, whose entry is
    /// live; the end of the table if none is.
    pub(crate) fn skip_non_live(&self, walk: &Walk, ipa: Ipa) -> Ipa {
        let table = self.read_table(walk.table, walk.level);
        if table.entry(walk.index).is_live() {
            return ipa;
        }
        let size = entry_size(walk.level);
        let skipped = (walk.index..ENTRIES).take_while(|i| !table.entry(*i).is_live()).count();
        Ipa(ipa.0 & !(size - 1)).offset(skipped as u64 * size)
    }

    /// Changes the reference count of a table.
    pub(crate) fn get_table(&self, table: Pa, count: u32) {
        self.lock_own(table, GranuleState::Rtt).get(count);
    }

    /// Changes the reference count of a table.
    pub(crate) fn put_table(&self, table: Pa, count: u32) {
        self.lock_own(table, GranuleState::Rtt).put(count);
    }

    /// RTT_READ_ENTRY.
    pub(crate) fn rtt_read_entry(&self, rd: Pa, ipa: Ipa, level: u64) -> Result<Reply, Refusal> {
        let (_granule, rd) = self.lock_rd(rd)?;
        let stage2 = rd.stage2();
        let level = level.cast_signed();
        if !(stage2.start_level..=PAGE_LEVEL).contains(&level)
            || !stage2.is_entry_address(ipa, level)
        {
            return Err(Refusal::INPUT);
        }
        let walk = self.walk(&stage2, ipa, level);
        let empty = Ripas::Empty as u64;
        let (state, descriptor, ripas) = match walk.entry {
            Entry::Unassigned(ripas) => (entry_state::UNASSIGNED, 0, ripas as u64),
            Entry::Assigned(ripas, pa) => (entry_state::ASSIGNED, pa.0, ripas as u64),
            Entry::UnassignedNs => (entry_state::UNASSIGNED, 0, empty),
            Entry::AssignedNs(host) => (entry_state::ASSIGNED, host.value(), empty),
            Entry::Table(pa) => (entry_state::TABLE, pa.0, empty),
        };
        Ok(Reply::with([walk.level.cast_unsigned(), state, descriptor, ripas]))
    }
}
