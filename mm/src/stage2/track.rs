//! Stage-2 faults that the tables themselves explain, and the tracking of accesses and stores that is
//! built on them.
//!
//! Tracking is done in software, which every Armv8-A core can: a leaf whose access flag is clear, or
//! that is write-protected for the log, faults on its first use, and [`Stage2::resolve_fault`] notes
//! it. Whoever wants the result reads [`Mapping`](super::Mapping) through [`Stage2::for_each_leaf`].
//! The unit is the page or block that is mapped.

use super::invalidation::Invalidation;
use super::vmid::VmidSlot;
use super::walker::Stage2;
use super::{MapError, TableMemory, Tlb};
use crate::Ipa;

/// What the guest tried when it faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load, a stage-1 table walk, or cache maintenance.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// What a stage-2 fault means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FaultOutcome {
    /// The access is allowed now: resume the guest at the same instruction. Either tracking was the
    /// cause and has been noted, or the fault hit a moment of break-before-make.
    Retry,
    /// Nothing is mapped there: emulated device, memory on demand, or a guest error.
    NotMapped,
    /// Mapped, but not for this kind of access.
    Denied,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Decides about a translation, access flag or permission fault at `ipa`. Call it for every
    /// such fault before anything else is made of it.
    pub fn resolve_fault(&mut self, slot: &VmidSlot, ipa: Ipa, access: Access) -> FaultOutcome {
        if !self.in_space(ipa) {
            return FaultOutcome::NotMapped;
        }
        let leaf = self.walk(ipa.get());
        if leaf.leaf().is_none() {
            return FaultOutcome::NotMapped;
        }
        let old = leaf.descriptor;
        let permissions = old.attributes().permissions();
        let new = match access {
            Access::Write if !permissions.write => return FaultOutcome::Denied,
            Access::Execute if !permissions.execute => return FaultOutcome::Denied,
            Access::Write if old.is_write_logged() => old.note_store(),
            _ => old.with_accessed(true),
        };
        if new != old {
            let mut stale = Invalidation::new();
            self.write(leaf.entry, new);
            // A clear access flag is never cached, a missing permission may be.
            if old.is_accessed() {
                stale.leaf(Ipa::new(leaf.base), leaf.level);
            }
            stale.finish(&self.tlb, slot);
        }
        FaultOutcome::Retry
    }

    /// Forgets accesses: pages and blocks that overlap the range count as not accessed until the
    /// guest touches them again.
    ///
    /// # Errors
    ///
    /// The range errors of [`MapError`].
    pub fn age(&mut self, slot: &VmidSlot, ipa: Ipa, bytes: u64) -> Result<(), MapError> {
        let end = self.check_range(ipa, bytes)?;
        self.update_leaves(slot, ipa.get(), end, |leaf| leaf.with_accessed(false));
        Ok(())
    }

    /// Begins, or begins anew, to log stores: pages and blocks that overlap the range count as clean
    /// until the guest stores to them. [`Stage2::protect`] ends the log of its range.
    ///
    /// # Errors
    ///
    /// The range errors of [`MapError`].
    pub fn log_writes(&mut self, slot: &VmidSlot, ipa: Ipa, bytes: u64) -> Result<(), MapError> {
        let end = self.check_range(ipa, bytes)?;
        self.update_leaves(slot, ipa.get(), end, |leaf| leaf.start_write_log());
        Ok(())
    }
}
