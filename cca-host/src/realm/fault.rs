//! Faults of a realm on its protected memory.

use mm::Ipa;

use super::{Core, Fill, Realm, RealmState};
use crate::conduit::Host;
use crate::error::Error;
use crate::exit::Ripas;
use crate::geometry::LAST_LEVEL;
use crate::rtt::{Budget, Entry, EntryState};

/// What a fault on protected memory came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultIn {
    /// Memory was mapped: enter the REC again.
    Mapped {
        /// Granules mapped.
        granules: u64,
    },
    /// The budget was spent before the memory was there: call again, or enter the REC, which then faults again.
    Underway,
    /// Memory was there already, another REC was faster: enter the REC again.
    AlreadyMapped,
    /// Another REC has given the page up since the fault: enter the REC again, the RMM tells it by itself.
    GivenUp,
    /// The memory was taken away before and the realm knows nothing of it: mapping would not help, the
    /// access would fault forever. Stop the realm or tell its owner.
    Destroyed,
    /// The RIPAS is one that the host has no memory for; the RMM should have told the realm.
    NotRam(Ripas),
    /// The same access faults again and again although no other REC changes anything. Stop the realm.
    Livelock,
}

/// Faults in a row on the same granule, mapped or given up, that are taken for races of other RECs.
const MAX_REPEATED_FAULTS: u32 = 64;

impl<H: Host, S: RealmState> Realm<'_, H, S> {
    /// Answers a fault on a protected address ([`crate::SyncExit::ProtectedFault`]): looks at the entry first, and
    /// maps memory only where that can help, with about `budget` calls at a time.
    ///
    /// # Errors
    /// The address is not protected, memory is short, or the RMM refuses.
    pub fn fault_in(&mut self, ipa: Ipa, budget: u64) -> Result<FaultIn, Error> {
        let granule = self.core.geometry.granule();
        let page = ipa.align_down(granule);
        let top = page.checked_add(granule).ok_or(Error::range(page, page))?;
        self.core.check_protected(page, top)?;
        let mut budget = Budget::new(budget);
        if let Some(answer) = self.core.finish_block(page, &mut budget)? {
            return Ok(answer);
        }
        let entry =
            self.core.with_tables(&mut budget, |tables| tables.read_entry(page, LAST_LEVEL))?;
        match (entry.state, entry.ripas) {
            (_, Ripas::Destroyed) => Ok(FaultIn::Destroyed),
            (EntryState::Assigned, Ripas::Ram) => Ok(self.core.count_repeated(page)),
            (EntryState::Unassigned, Ripas::Ram) => self.core.fill(page, &entry, &mut budget),
            (_, Ripas::Empty) => Ok(match self.core.count_repeated(page) {
                FaultIn::AlreadyMapped => FaultIn::GivenUp,
                livelock => livelock,
            }),
            (_, ripas) => Ok(FaultIn::NotRam(ripas)),
        }
    }
}

impl<H: Host> Core<'_, H> {
    /// Goes on with the block that a fault has begun to fill, if there is one. `None`: see to `page` now.
    fn finish_block(&mut self, page: Ipa, budget: &mut Budget) -> Result<Option<FaultIn>, Error> {
        let bytes = self.geometry.entry_bytes(LAST_LEVEL - 1);
        self.with_tables(budget, |tables| {
            let Some(at) = tables.supplied() else { return Ok(None) };
            let block = Ipa::new(at).align_down(bytes);
            let top = block.get().saturating_add(bytes);
            let mapped = tables.map(at, top, top)?;
            Ok(match mapped.upto {
                upto if upto < top || tables.budget.is_spent() => Some(FaultIn::Underway),
                _ if block == page.align_down(bytes) => {
                    Some(FaultIn::Mapped { granules: mapped.granules })
                }
                _ => None,
            })
        })
    }

    /// Maps memory for a fault at `page`, whose entry is unassigned RAM.
    fn fill(&mut self, page: Ipa, entry: &Entry, budget: &mut Budget) -> Result<FaultIn, Error> {
        self.repeated = (page, 0);
        let block_level = LAST_LEVEL - 1;
        let bytes = self.geometry.entry_bytes(block_level);
        let base = page.align_down(bytes).get();
        let by_blocks = self.fill == Fill::Block && entry.level <= block_level;
        self.with_tables(budget, |tables| {
            if by_blocks && tables.stock_block(base) {
                let mapped = tables.map(base, base + bytes, base + bytes)?;
                return Ok(if mapped.upto < base + bytes {
                    FaultIn::Underway
                } else {
                    FaultIn::Mapped { granules: mapped.granules }
                });
            }
            tables.create_tables(page, entry.level, LAST_LEVEL)?;
            let mapped = tables.map_one(page.get())?;
            Ok(FaultIn::Mapped { granules: u64::from(mapped) })
        })
    }

    /// Counts faults in a row on the same page, where there is nothing to map.
    fn count_repeated(&mut self, page: Ipa) -> FaultIn {
        let (last, count) = self.repeated;
        let count = if last == page { count + 1 } else { 1 };
        self.repeated = (page, count.min(MAX_REPEATED_FAULTS));
        if count >= MAX_REPEATED_FAULTS { FaultIn::Livelock } else { FaultIn::AlreadyMapped }
    }
}
