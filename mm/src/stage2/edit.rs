//! Changes of live tables: splitting blocks, clearing and rewriting leaves, freeing tables.

use arrayvec::ArrayVec;

use super::descriptor::{Decoded, Descriptor};
use super::geometry::Level;
use super::invalidation::Invalidation;
use super::vmid::VmidSlot;
use super::walker::{ENTRIES, Slot, Stage2};
use super::{OutOfTables, Scope, TableMemory, Tlb};
use crate::{Ipa, PAGE_SIZE, PhysAddr};

/// Table pages that one change can need in advance: a range has two ends, each of which can split a
/// 1 GiB block and then a 2 MiB block. A chain of missing tables is shorter.
const MAX_RESERVE: usize = 4;

/// Zeroed table pages that are counted as part of the tables but not hooked in yet.
pub(super) type Reserve = ArrayVec<PhysAddr, MAX_RESERVE>;

/// A block that a change has to split: its level and its first IPA.
type Split = (Level, u64);

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Allocates `count` table pages, or none.
    pub(super) fn reserve(&mut self, count: usize) -> Result<Reserve, OutOfTables> {
        let mut reserve = Reserve::new();
        for _ in 0..count {
            let page = self.memory.alloc(0);
            match page.and_then(|page| reserve.try_push(page).map_err(|_| OutOfTables)) {
                Ok(()) => {}
                Err(OutOfTables) => {
                    for page in reserve {
                        self.memory.free(page, 0);
                    }
                    return Err(OutOfTables);
                }
            }
        }
        self.table_pages += reserve.len() as u64;
        Ok(reserve)
    }

    /// Splits the blocks that reach over `from` or `end`, so that no leaf crosses either. Splits none
    /// when the tables for all of them cannot be had.
    pub(super) fn split_ends(
        &mut self,
        slot: &VmidSlot,
        from: u64,
        end: u64,
    ) -> Result<(), OutOfTables> {
        let mut splits = ArrayVec::<Split, MAX_RESERVE>::new();
        self.plan_splits(from, &mut splits);
        if self.in_space(Ipa::new(end)) {
            self.plan_splits(end, &mut splits);
        }
        let reserve = self.reserve(splits.len())?;
        for ((level, base), table) in splits.into_iter().zip(reserve) {
            let block = self.walk_to(base, level);
            self.split(slot, &block, table);
        }
        Ok(())
    }

    /// Adds the blocks, coarse before fine, that must be split so that a leaf ends at `boundary`.
    fn plan_splits(&self, boundary: u64, splits: &mut ArrayVec<Split, MAX_RESERVE>) {
        let leaf = self.walk(boundary);
        if leaf.leaf().is_none() {
            return;
        }
        let mut level = leaf.level;
        while boundary & (level.entry_bytes() - 1) != 0 {
            let split = (level, boundary & !(level.entry_bytes() - 1));
            // Both ends may lie in the same block. Two splits per end always fit.
            if !splits.contains(&split) && splits.try_push(split).is_err() {
                return;
            }
            let Some(next) = level.next() else { return };
            level = next;
        }
    }

    /// Replaces a block by `table`, which maps the same, with break-before-make.
    fn split(&mut self, slot: &VmidSlot, block: &Slot, table: PhysAddr) {
        for index in 0..ENTRIES {
            if let Some(child) = block.descriptor.child(block.level, index) {
                self.write(Self::entry(table, index), child);
            }
        }
        self.write(block.entry, Descriptor::INVALID);
        self.tlb.publish();
        if let Some(vmid) = slot.current() {
            let ipa = Ipa::new(block.base);
            self.tlb.invalidate_ipa(vmid, ipa, block.level, Scope::Leaf);
            self.tlb.complete(vmid);
        }
        self.write(block.entry, Descriptor::table(table));
        self.tlb.publish();
    }

    /// Rewrites every leaf that overlaps `from..end` by `change`, which may only alter what needs no
    /// break-before-make: permissions, access flag, software bits.
    pub(super) fn update_leaves(
        &mut self,
        slot: &VmidSlot,
        from: u64,
        end: u64,
        change: impl Fn(Descriptor) -> Descriptor,
    ) {
        let mut stale = Invalidation::new();
        let mut at = from;
        while let Some(leaf) = self.next_leaf(at, end) {
            let changed = change(leaf.descriptor);
            if changed != leaf.descriptor {
                self.write(leaf.entry, changed);
                // The TLB holds no entry whose access flag is clear.
                if leaf.descriptor.is_accessed() {
                    stale.leaf(Ipa::new(leaf.base), leaf.level);
                }
            }
            at = leaf.end();
        }
        stale.finish(&self.tlb, slot);
    }

    /// Clears all leaves of `from..end`, none of which crosses an end, and frees the tables that
    /// became empty. Returns how many bytes were mapped.
    pub(super) fn clear(&mut self, slot: &VmidSlot, from: u64, end: u64) -> u64 {
        let mut stale = Invalidation::new();
        let mut dead = None;
        let mut cleared = 0;
        let mut at = from;
        while let Some(leaf) = self.next_leaf(at, end) {
            self.write(leaf.entry, Descriptor::INVALID);
            stale.leaf(Ipa::new(leaf.base), leaf.level);
            self.unhook_if_empty(&leaf, &mut stale, &mut dead);
            cleared += leaf.level.entry_bytes();
            at = leaf.end();
        }
        stale.finish(&self.tlb, slot);
        while let Some(table) = dead {
            dead = self.read(table).dead_next();
            self.free_table(table);
        }
        cleared
    }

    /// Unhooks the table in which `cleared` stands when nothing else is in it, and so on upwards. The
    /// unhooked tables are chained through their first entry, from `dead`, which costs no memory
    /// and looks invalid to a walker that still sees them.
    fn unhook_if_empty(
        &mut self,
        cleared: &Slot,
        stale: &mut Invalidation,
        dead: &mut Option<PhysAddr>,
    ) {
        let mut level = cleared.level;
        let mut entry = cleared.entry;
        while let Some(parent) = self.parent_level(level) {
            let table = entry.align_down(PAGE_SIZE);
            if !self.is_empty(table, level, entry) {
                return;
            }
            let hook = self.walk_to(cleared.base, parent);
            self.write(hook.entry, Descriptor::INVALID);
            self.write(table, Descriptor::dead_link(*dead));
            *dead = Some(table);
            stale.table_of_last_leaf();
            level = parent;
            entry = hook.entry;
        }
    }

    /// Whether no entry of a table is valid. Starts behind `cleared`: in a range that is cleared in
    /// ascending order the next entry is valid, and one look suffices.
    fn is_empty(&self, table: PhysAddr, level: Level, cleared: PhysAddr) -> bool {
        let first = cleared.page_offset() / 8 + 1;
        (first..first + ENTRIES).all(|index| {
            let entry = Self::entry(table, index % ENTRIES);
            self.read(entry).decode(level) == Decoded::Invalid
        })
    }

    /// Frees the tables below the `entries` entries of `table`, but not `table` itself.
    pub(super) fn free_below(&mut self, table: PhysAddr, level: Level, entries: u64) {
        let Some(next) = level.next() else { return };
        for index in 0..entries {
            let entry = self.read(Self::entry(table, index));
            if let Decoded::Table(below) = entry.decode(level) {
                self.free_below(below, next, ENTRIES);
                self.free_table(below);
            }
        }
    }

    fn free_table(&mut self, table: PhysAddr) {
        self.memory.free(table, 0);
        self.table_pages -= 1;
    }
}
