//! The tables of one VM: map, unmap, protect, translate, tear down.

use super::descriptor::{Attributes, Decoded, Descriptor, Permissions};
use super::geometry::{Geometry, Level};
use super::vmid::{Vmid, VmidSlot};
use super::{MapError, OutOfTables, TableMemory, Tlb};
use crate::{Ipa, PAGE_SIZE, PhysAddr};

/// Entries of one table page.
pub(super) const ENTRIES: u64 = 512;

/// What one page or block of the IPA space maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The IPA asked about, or the first IPA of the page or block.
    pub ipa: Ipa,
    /// The physical address that `ipa` translates to.
    pub pa: PhysAddr,
    /// Level of the entry: it covers [`Level::entry_bytes`].
    pub level: Level,
    /// Attributes it was mapped with.
    pub attributes: Attributes,
    /// Touched since it was mapped or last [aged](Stage2::age).
    pub accessed: bool,
    /// Stored to since [write logging](Stage2::log_writes) began.
    pub dirty: bool,
}

/// Where a walk ended: at a leaf or at an invalid entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) level: Level,
    /// Physical address of the descriptor.
    pub(super) entry: PhysAddr,
    pub(super) descriptor: Descriptor,
    /// First IPA that the entry covers.
    pub(super) base: u64,
}

impl Slot {
    pub(super) const fn end(&self) -> u64 {
        self.base + self.level.entry_bytes()
    }

    /// The physical address and descriptor of a leaf, `None` for an invalid entry.
    pub(super) const fn leaf(&self) -> Option<PhysAddr> {
        match self.descriptor.decode(self.level) {
            Decoded::Leaf(pa) => Some(pa),
            _ => None,
        }
    }
}

/// The stage-2 tables of one VM; see the [module](super) for what it guarantees. Ends by
/// [`Stage2::teardown`]; dropping it loses its table pages.
#[derive(Debug)]
#[must_use = "dropping it loses its table pages; end it by `teardown`"]
pub struct Stage2<M: TableMemory, T: Tlb> {
    geometry: Geometry,
    root: PhysAddr,
    pub(super) table_pages: u64,
    pub(super) memory: M,
    pub(super) tlb: T,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Makes tables that map nothing.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`] when the root cannot be allocated.
    pub fn new(geometry: Geometry, mut memory: M, tlb: T) -> Result<Self, OutOfTables> {
        let root = memory.alloc(geometry.root_order())?;
        tlb.publish();
        Ok(Self { geometry, root, table_pages: 1 << geometry.root_order(), memory, tlb })
    }

    /// The shape of the tables.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The value of `VTTBR_EL2` under `vmid`.
    #[must_use]
    pub const fn vttbr(&self, vmid: Vmid) -> u64 {
        (vmid.get() as u64) << 48 | self.root.get()
    }

    /// Pages that the tables occupy, with the root.
    #[must_use]
    pub const fn table_pages(&self) -> u64 {
        self.table_pages
    }

    /// Maps `bytes` bytes from `ipa` to the contiguous memory from `pa`, with blocks of 1 GiB and
    /// 2 MiB wherever both addresses allow. New mappings count as accessed and clean.
    ///
    /// # Errors
    ///
    /// [`MapError::AlreadyMapped`] when any page of the range is mapped, the range errors, or
    /// [`MapError::OutOfTables`]. Nothing is mapped then.
    pub fn map(
        &mut self,
        slot: &VmidSlot,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
        attributes: Attributes,
    ) -> Result<(), MapError> {
        let end = self.check_range(ipa, bytes)?;
        let pa_end = pa.checked_add(bytes).ok_or(MapError::PaOutOfRange)?;
        if !pa.is_aligned(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        if pa_end.get() > 1 << self.geometry.pa_bits() {
            return Err(MapError::PaOutOfRange);
        }
        if let Some(leaf) = self.next_leaf(ipa.get(), end) {
            return Err(MapError::AlreadyMapped(Ipa::new(leaf.base.max(ipa.get()))));
        }
        let mut at = ipa.get();
        while at < end {
            let from = PhysAddr::new(pa.get() + (at - ipa.get()));
            match self.map_run(at, end, from, attributes) {
                Ok(next) => at = next,
                Err(OutOfTables) => {
                    // What this call has mapped so far ends exactly at `at`: nothing is split.
                    self.clear(slot, ipa.get(), at);
                    return Err(MapError::OutOfTables);
                }
            }
        }
        self.tlb.publish();
        Ok(())
    }

    /// Unmaps `bytes` bytes from `ipa`, and returns how many bytes of them were mapped; holes are
    /// allowed. Blocks that reach over an end of the range are split. When it returns, no core can
    /// reach the memory through this VM any more.
    ///
    /// # Errors
    ///
    /// The range errors, or [`MapError::OutOfTables`] when a block has to be split and no table page
    /// is left. Nothing is unmapped then.
    pub fn unmap(&mut self, slot: &VmidSlot, ipa: Ipa, bytes: u64) -> Result<u64, MapError> {
        let end = self.check_range(ipa, bytes)?;
        self.split_ends(slot, ipa.get(), end)?;
        Ok(self.clear(slot, ipa.get(), end))
    }

    /// Changes the permissions of `bytes` bytes from `ipa`, all of which must be mapped. Device memory
    /// stays non-executable. Write logging of the range ends.
    ///
    /// # Errors
    ///
    /// [`MapError::NotMapped`] with the first hole, the range errors, or [`MapError::OutOfTables`]
    /// when a block has to be split. No permission has changed then.
    pub fn protect(
        &mut self,
        slot: &VmidSlot,
        ipa: Ipa,
        bytes: u64,
        permissions: Permissions,
    ) -> Result<(), MapError> {
        let end = self.check_range(ipa, bytes)?;
        self.check_mapped(ipa.get(), end)?;
        self.split_ends(slot, ipa.get(), end)?;
        self.update_leaves(slot, ipa.get(), end, |descriptor| {
            let permissions = descriptor.attributes().with_permissions(permissions).permissions();
            descriptor.with_permissions(permissions)
        });
        Ok(())
    }

    /// Translates one IPA as the hardware does, except that the access flag and write logging do
    /// not fault.
    #[must_use]
    pub fn translate(&self, ipa: Ipa) -> Option<Mapping> {
        if !self.in_space(ipa) {
            return None;
        }
        let slot = self.walk(ipa.get());
        let base = slot.leaf()?;
        let pa = base.checked_add(ipa.get() - slot.base)?;
        Some(Mapping { ipa, pa, ..Self::mapping(&slot, base) })
    }

    /// Calls `visit` for every page and block that overlaps the `bytes` bytes from `ipa`, in
    /// ascending order.
    pub fn for_each_leaf(&self, ipa: Ipa, bytes: u64, mut visit: impl FnMut(Mapping)) {
        let end = ipa.get().saturating_add(bytes).min(1 << self.geometry.ipa_bits());
        let mut at = ipa.get();
        while let Some(slot) = self.next_leaf(at, end) {
            if let Some(pa) = slot.leaf() {
                visit(Self::mapping(&slot, pa));
            }
            at = slot.end();
        }
    }

    /// Frees all tables and returns the memory handle. No core may have these tables in `VTTBR_EL2`
    /// or load them any more.
    #[must_use]
    pub fn teardown(mut self, slot: &VmidSlot) -> M {
        if let Some(vmid) = slot.current() {
            self.tlb.invalidate_vmid(vmid);
        }
        let level = self.geometry.start_level();
        let entries = self.geometry.root_entries();
        self.free_below(self.root, level, entries);
        self.memory.free(self.root, self.geometry.root_order());
        self.memory
    }

    fn mapping(slot: &Slot, pa: PhysAddr) -> Mapping {
        Mapping {
            ipa: Ipa::new(slot.base),
            pa,
            level: slot.level,
            attributes: slot.descriptor.attributes(),
            accessed: slot.descriptor.is_accessed(),
            dirty: slot.descriptor.is_dirty(),
        }
    }

    /// Checks a range and returns its end.
    pub(super) fn check_range(&self, ipa: Ipa, bytes: u64) -> Result<u64, MapError> {
        if !ipa.is_aligned(PAGE_SIZE) || !bytes.is_multiple_of(PAGE_SIZE) || bytes == 0 {
            return Err(MapError::Misaligned);
        }
        match ipa.get().checked_add(bytes) {
            Some(end) if end <= 1 << self.geometry.ipa_bits() => Ok(end),
            _ => Err(MapError::IpaOutOfRange),
        }
    }

    fn check_mapped(&self, from: u64, end: u64) -> Result<(), MapError> {
        let mut at = from;
        while at < end {
            let slot = self.walk(at);
            if slot.leaf().is_none() {
                return Err(MapError::NotMapped(Ipa::new(at)));
            }
            at = slot.end();
        }
        Ok(())
    }

    /// Index of `ipa` in its table of `level`; the root may have up to 16 times 512 entries.
    pub(super) fn index(&self, ipa: u64, level: Level) -> u64 {
        let index = ipa >> level.shift();
        if level == self.geometry.start_level() {
            index & (self.geometry.root_entries() - 1)
        } else {
            index & (ENTRIES - 1)
        }
    }

    pub(super) fn entry(table: PhysAddr, index: u64) -> PhysAddr {
        PhysAddr::new(table.get() + index * 8)
    }

    pub(super) fn read(&self, entry: PhysAddr) -> Descriptor {
        Descriptor(self.memory.read(entry))
    }

    pub(super) fn write(&mut self, entry: PhysAddr, descriptor: Descriptor) {
        self.memory.write(entry, descriptor.0);
    }

    /// Walks to the entry that decides about `ipa`, which is inside the IPA space.
    pub(super) fn walk(&self, ipa: u64) -> Slot {
        self.walk_to(ipa, Level::L3)
    }

    /// Walks as [`Self::walk`] does, but no deeper than `deepest`, where the entry may be a table.
    pub(super) fn walk_to(&self, ipa: u64, deepest: Level) -> Slot {
        let mut level = self.geometry.start_level();
        let mut table = self.root;
        loop {
            let entry = Self::entry(table, self.index(ipa, level));
            let descriptor = self.read(entry);
            match (descriptor.decode(level), level.next()) {
                (Decoded::Table(next_table), Some(next)) if level < deepest => {
                    table = next_table;
                    level = next;
                }
                _ => {
                    return Slot {
                        level,
                        entry,
                        descriptor,
                        base: ipa & !(level.entry_bytes() - 1),
                    };
                }
            }
        }
    }

    /// Whether `ipa` is inside the IPA space.
    pub(super) const fn in_space(&self, ipa: Ipa) -> bool {
        ipa.get() >> self.geometry.ipa_bits() == 0
    }

    /// The first leaf that covers any of `from..end`.
    pub(super) fn next_leaf(&self, from: u64, end: u64) -> Option<Slot> {
        let mut at = from;
        while at < end {
            let slot = self.walk(at);
            if slot.leaf().is_some() {
                return Some(slot);
            }
            at = slot.end();
        }
        None
    }

    /// The coarsest level whose entries can map `ipa` to `pa` within `bytes`.
    fn leaf_level(ipa: u64, pa: PhysAddr, bytes: u64) -> Level {
        for level in [Level::L1, Level::L2] {
            let size = level.entry_bytes();
            if (ipa | pa.get()) & (size - 1) == 0 && bytes >= size {
                return level;
            }
        }
        Level::L3
    }

    /// Maps from `at` on as many entries of one size as stand in one table; returns where it stopped.
    /// All of `at..end` is unmapped.
    fn map_run(
        &mut self,
        at: u64,
        end: u64,
        pa: PhysAddr,
        attributes: Attributes,
    ) -> Result<u64, OutOfTables> {
        let level = Self::leaf_level(at, pa, end - at);
        let size = level.entry_bytes();
        let table = self.table_for(at, level)?;
        let first = self.index(at, level);
        let in_table = if level == self.geometry.start_level() {
            self.geometry.root_entries()
        } else {
            ENTRIES
        };
        let count = ((end - at) / size).min(in_table - first);
        for step in 0..count {
            let page = PhysAddr::new(pa.get() + step * size);
            let entry = Self::entry(table, first + step);
            let forced_write_back = self.geometry.forces_write_back();
            self.write(entry, Descriptor::leaf(level, page, attributes, forced_write_back));
        }
        Ok(at + count * size)
    }

    /// The table of `level` that covers `ipa`, made if absent. Nothing is mapped at `ipa`.
    fn table_for(&mut self, ipa: u64, level: Level) -> Result<PhysAddr, OutOfTables> {
        let Some(parent) = self.parent_level(level) else {
            return Ok(self.root);
        };
        let slot = self.walk_to(ipa, parent);
        if let Decoded::Table(table) = slot.descriptor.decode(slot.level) {
            return Ok(table);
        }
        // The walk ended at an invalid entry, perhaps levels too early. Build the missing chain
        // bottom-up in memory that nobody walks yet, then hook it in with one store.
        let chain = self.reserve(level as usize - slot.level as usize)?;
        let mut below: Option<PhysAddr> = None;
        let mut here = Some(level);
        for &table in &chain {
            if let (Some(below), Some(here)) = (below, here) {
                let entry = Self::entry(table, self.index(ipa, here));
                self.write(entry, Descriptor::table(below));
            }
            below = Some(table);
            here = here.and_then(|here| self.parent_level(here));
        }
        let (Some(&lowest), Some(&highest)) = (chain.first(), chain.last()) else {
            return Err(OutOfTables);
        };
        self.tlb.publish();
        self.write(slot.entry, Descriptor::table(highest));
        Ok(lowest)
    }

    /// The level above (coarser); `None` at the root.
    pub(super) fn parent_level(&self, level: Level) -> Option<Level> {
        if level == self.geometry.start_level() {
            return None;
        }
        match level {
            Level::L0 => None,
            Level::L1 => Some(Level::L0),
            Level::L2 => Some(Level::L1),
            Level::L3 => Some(Level::L2),
        }
    }
}
