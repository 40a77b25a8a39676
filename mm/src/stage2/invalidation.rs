//! Collects what one change must invalidate, so that the barriers are paid once.

use super::geometry::Level;
use super::vmid::VmidSlot;
use super::{Scope, Tlb};
use crate::Ipa;

/// Invalidations by IPA up to which one change stays precise; beyond, the whole VMID goes. Each one
/// is broadcast to all cores, so at some count refilling the TLB is cheaper.
pub(super) const MAX_PRECISE: usize = 64;

/// The leaf entries that one change made stale.
#[derive(Debug)]
pub(super) struct Invalidation {
    entries: [(Ipa, Level, Scope); MAX_PRECISE],
    len: usize,
    overflow: bool,
}

impl Invalidation {
    pub(super) const fn new() -> Self {
        Self {
            entries: [(Ipa::new(0), Level::L3, Scope::Leaf); MAX_PRECISE],
            len: 0,
            overflow: false,
        }
    }

    /// Notes that the leaf of `level` at `ipa` changed.
    pub(super) fn leaf(&mut self, ipa: Ipa, level: Level) {
        match self.entries.get_mut(self.len) {
            Some(entry) => {
                *entry = (ipa, level, Scope::Leaf);
                self.len += 1;
            }
            None => self.overflow = true,
        }
    }

    /// Notes that the table in which the last noted leaf stood was unhooked: the invalidation of
    /// that leaf takes the cached walk with it.
    pub(super) fn table_of_last_leaf(&mut self) {
        match self.len.checked_sub(1).and_then(|last| self.entries.get_mut(last)) {
            Some(entry) => entry.2 = Scope::Walk,
            None => self.overflow = true,
        }
    }

    /// Makes the changed descriptors visible and invalidates. When it returns, no core uses the old
    /// translations or the unhooked tables.
    pub(super) fn finish<T: Tlb>(self, tlb: &T, slot: &VmidSlot) {
        tlb.publish();
        if self.len == 0 && !self.overflow {
            return;
        }
        // A VM that never ran has nothing in any TLB.
        let Some(vmid) = slot.current() else { return };
        if self.overflow {
            tlb.invalidate_vmid(vmid);
            return;
        }
        for &(ipa, level, scope) in self.entries.iter().take(self.len) {
            tlb.invalidate_ipa(vmid, ipa, level, scope);
        }
        tlb.complete(vmid);
    }
}
