//! The RTT engine: stage-2 tables of one realm, built, filled, emptied and destroyed through the RMM.
//!
//! The engine keeps no copy of the tables. It sends the call that it wants, and where the RMM reports
//! that the walk ended at a level above, creates the missing tables and sends it again. What comes back
//! is checked against the ledger. Each loop makes provable progress or ends with an error, so that an RMM
//! that answers nonsense cannot hold the hypervisor.
//!
//! # How many calls
//!
//! For a range of P granules that touches T entries of level 2, an RMM that delegates a granule per call, and an
//! empty pool. Tables above level 3 serve 512 entries or more; two are counted for each range.
//!
//! * Mapping: at most 3 P + 8 (T + 1). A granule is delegated, mapped, and undelegated again if there was memory
//!   already. An entry costs the call that finds its table missing, that table (delegated, created), and the fold
//!   that replaces it by a block (and its undelegation); the same without the fold for the tables above.
//! * Unmapping: at most 2 P + 4 T + 2. A granule is unmapped and undelegated; a block that 1.0 cannot unmap, or that
//!   reaches beyond the range, costs the refusal and a table; a hole costs a call for each table.
//! * A RIPAS change: at most 3 P + 16 (T + 1): an entry of the range at a time, and the unmapping with a fold for each
//!   table if it gives memory up.
//!
//! `tests/cca/tests/properties.rs` holds each of them against random layouts.

mod book;
mod budget;
mod ripas;
mod shared;
mod supply;
mod sweep;
mod teardown;

use mm::ledger::{Owner, RmmUse};
use mm::{Ipa, PhysAddr};

pub(crate) use self::book::Book;
pub(crate) use self::budget::Budget;
pub use self::shared::{MemoryType, SharedAttrs};
pub(crate) use self::supply::Mapped;
pub(crate) use self::teardown::Teardown;
use crate::command::Command;
use crate::conduit::Host;
use crate::error::{BadAnswer, Error};
use crate::exit::Ripas;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::rmm::{Reply, Returned, Rmm};
use crate::status::Status;

/// State of a stage-2 entry (RmiRttEntryState).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryState {
    /// Nothing is mapped.
    Unassigned,
    /// A page or block is mapped.
    Assigned,
    /// The entry points to a table.
    Table,
    /// A state of planes or devices.
    Other(u64),
}

/// A stage-2 entry as the RMM shows it (RTT_READ_ENTRY).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Level at which the walk ended.
    pub level: i8,
    /// State.
    pub state: EntryState,
    /// Descriptor: output address and, for unprotected entries, attributes.
    pub descriptor: u64,
    /// RIPAS, meaningful for protected addresses.
    pub ripas: Ripas,
}

/// The tables of one realm, for one operation of the driver.
pub(crate) struct Tables<'r, 'l, H> {
    pub(crate) rmm: &'r Rmm<'l, H>,
    pub(crate) rd: PhysAddr,
    pub(crate) owner: Owner,
    pub(crate) geometry: Geometry,
    /// What is remembered from one operation to the next.
    pub(crate) book: &'r mut Book,
    /// Calls that the operation may make.
    pub(crate) budget: Budget,
}

impl<H: Host> Tables<'_, '_, H> {
    /// Reads the entry for `ipa`, walking down to `level` at most.
    pub(crate) fn read_entry(&mut self, ipa: Ipa, level: i8) -> Result<Entry, Error> {
        let command = Command::RttReadEntry;
        self.budget.spend(1);
        let ipa = ipa.align_down(self.geometry.entry_bytes(level));
        let reply = self.rmm.demand(command, [self.rd.get(), ipa.get(), level_arg(level)])?;
        let reached = reply.x[1] as i8;
        if reached < self.geometry.start_level() || reached > level {
            return Err(Error::Misbehaved { command, answer: BadAnswer::Level(reached) });
        }
        Ok(Entry {
            level: reached,
            state: match reply.x[2] {
                0 => EntryState::Unassigned,
                1 => EntryState::Assigned,
                2 => EntryState::Table,
                other => EntryState::Other(other),
            },
            descriptor: reply.x[3],
            ripas: Ripas::from_code(reply.x[4] as u8),
        })
    }

    /// Creates the tables for `ipa` below level `reached`, down to level `wanted`.
    ///
    /// At level `reached` the walk of the failed call ended: creating the levels after it in turn is
    /// always right, and a table that has come into being meanwhile is no error.
    pub(crate) fn create_tables(&mut self, ipa: Ipa, reached: i8, wanted: i8) -> Result<(), Error> {
        for level in reached.max(self.geometry.start_level()) + 1..=wanted {
            self.create_table(ipa, level)?;
        }
        Ok(())
    }

    /// Creates one table at `level`; an entry that is a block there is split.
    fn create_table(&mut self, ipa: Ipa, level: i8) -> Result<(), Error> {
        let command = Command::RttCreate;
        let bytes = self.geometry.table_bytes(level);
        let ipa = ipa.align_down(bytes);
        let table = self.rmm.alloc_delegated(0, self.owner)?;
        self.budget.spend(1);
        let args = [self.rd.get(), table.base().get(), ipa.get(), level_arg(level)];
        let outcome = match self.operate(command, args) {
            Ok(reply) => match reply.status {
                Status::Success => {
                    self.rmm.ledger.hand_over(table, RmmUse::Rtt);
                    self.book.tables(level).add(ipa.get(), bytes, 1);
                    return Ok(());
                }
                Status::Rtt { level: reached } if reached == level - 1 => Ok(()),
                status => Err(Error::Refused { command, status }),
            },
            Err(error) => Err(error),
        };
        self.rmm.retire(table);
        outcome
    }

    /// Replaces the table at `level` for `ipa` by a single entry, if its entries allow that.
    ///
    /// Returns whether it was folded. That a table cannot be folded is normal.
    pub(crate) fn fold(&mut self, ipa: Ipa, level: i8) -> Result<bool, Error> {
        let command = Command::RttFold;
        let ipa = ipa.align_down(self.geometry.table_bytes(level));
        let args = [self.rd.get(), ipa.get(), level_arg(level)];
        let reply = self.operate(command, args)?;
        if reply.status != Status::Success {
            return Ok(false);
        }
        let table = self.rmm.take_back(command, reply.x[1], 1, RmmUse::Rtt, self.owner)?;
        self.book.tables(level).remove(1);
        self.rmm.retire(table);
        self.budget.spend(1);
        Ok(true)
    }

    /// Makes a call, and carries it to its end if it turns out to be a stateful operation.
    pub(crate) fn operate<const N: usize>(
        &mut self,
        command: Command,
        args: [u64; N],
    ) -> Result<Reply, Error> {
        self.budget.spend(1);
        self.rmm.operate(command, args, self.owner)
    }

    /// Sends a call that acts on an entry at `wanted`, creating missing tables until the walk reaches
    /// that level.
    ///
    /// Returns the first answer that is not ERROR_RTT with a level above `wanted`. At most one call more
    /// than there are levels: each round reports a lower level than the one before, or ends.
    pub(crate) fn with_tables<const N: usize>(
        &mut self,
        command: Command,
        args: [u64; N],
        ipa: Ipa,
        wanted: i8,
    ) -> Result<Reply, Error> {
        let mut last = self.geometry.start_level() - 1;
        loop {
            let reply = self.operate(command, args)?;
            let Status::Rtt { level: reached } = reply.status else { return Ok(reply) };
            if reached >= wanted {
                return Ok(reply);
            }
            if reached <= last {
                return Err(Error::Misbehaved { command, answer: BadAnswer::Level(reached) });
            }
            self.create_tables(ipa, reached, wanted)?;
            last = reached.max(last);
        }
    }

    /// Checks that a call over `from..top` has moved on to a granule boundary inside the range.
    pub(crate) fn progress(
        &self,
        command: Command,
        from: u64,
        top: u64,
        to: u64,
    ) -> Result<u64, Error> {
        if to <= from || to > top || to & (self.geometry.granule() - 1) != 0 {
            return Err(Error::progress(command, from, to));
        }
        Ok(to)
    }

    /// Most calls that a sweep over the tables may need: each call frees a granule of ours, or skips to
    /// the next entry in use or the end of a table.
    fn sweep_calls(&self, shared_entries: u64) -> u64 {
        4 * self.rmm.ledger.census_of(self.owner).total() + 2 * shared_entries + 64
    }

    /// The entry or table after `at`, at `level`.
    pub(crate) fn after(&self, at: u64, level: i8) -> u64 {
        let level = level.clamp(self.geometry.start_level(), LAST_LEVEL);
        let bytes = self.geometry.entry_bytes(level);
        (at & !(bytes - 1)).saturating_add(bytes)
    }
}

/// A table level as an argument: sign extended, since level -1 exists with LPA2.
pub(crate) const fn level_arg(level: i8) -> u64 {
    level as i64 as u64
}

/// Granules that came back and the first thing that went wrong on the way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) returned: Returned,
    pub(crate) error: Option<Error>,
}

impl Outcome {
    fn note(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    /// Adds what another one has, and empties it.
    fn absorb(&mut self, other: &mut Self) {
        let other = core::mem::take(other);
        self.returned += other.returned;
        self.error = self.error.or(other.error);
    }
}
