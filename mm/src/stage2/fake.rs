//! A machine for tests: table memory, and a TLB that keeps stale entries for as long as the
//! architecture lets it.
//!
//! It panics where hardware would go wrong silently: a table that is hooked in before its contents are
//! visible, a valid entry that is replaced without break-before-make, a table that is freed while a
//! walk may still use it.

use std::boxed::Box;
use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::vec::Vec;

use super::{Geometry, Level, OutOfTables, Scope, TableMemory, Tlb, Vmid};
use crate::{Ipa, PhysAddr};

/// Tables come from here on; tests map only memory below.
const TABLES_FROM: u64 = 0x40_0000_0000;
/// What may change in a valid entry without break-before-make: write permission, access flag,
/// execute-never, software bits.
const MAY_CHANGE: u64 = 1 << 7 | 1 << 10 | 1 << 54 | 0xf << 55;

/// What the tests count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Invalidations by IPA, leaf scope.
    pub(super) leaf: u64,
    /// Invalidations by IPA, walk scope.
    pub(super) walk: u64,
    /// Invalidations of a whole VMID.
    pub(super) vmid: u64,
    /// Waits for invalidations by IPA.
    pub(super) complete: u64,
}

/// A leaf or a table entry in the TLB.
#[derive(Clone, Copy, Debug)]
struct Cached {
    vmid: Vmid,
    level: Level,
    base: u64,
    entry: u64,
    descriptor: u64,
}

impl Cached {
    fn covers(&self, vmid: Vmid, ipa: u64) -> bool {
        self.vmid == vmid && ipa & !(self.level.entry_bytes() - 1) == self.base
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pages: BTreeMap<u64, Box<[u64; 512]>>,
    orders: BTreeMap<u64, u32>,
    next: u64,
    /// Allocations that still succeed; `None`: all.
    pub(super) allocations_left: Option<u64>,
    /// Pages with writes that walkers may not see yet.
    unpublished: BTreeSet<u64>,
    /// Pages allocated since the last barrier: nothing walks them yet.
    fresh: BTreeSet<u64>,
    leaves: Vec<Cached>,
    walks: Vec<Cached>,
    pending: Vec<(Vmid, u64, Level, Scope)>,
    pub(super) counts: Counts,
}

/// Handle on the machine; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine(Rc<RefCell<State>>);

impl Machine {
    pub(super) fn state(&self) -> Ref<'_, State> {
        self.0.borrow()
    }

    /// Lets `count` allocations succeed and fails those after.
    pub(super) fn limit_allocations(&self, count: Option<u64>) {
        self.0.borrow_mut().allocations_left = count;
    }

    /// Counts since the last call.
    pub(super) fn take_counts(&self) -> Counts {
        core::mem::take(&mut self.0.borrow_mut().counts)
    }

    /// Pages that are allocated.
    pub(super) fn pages(&self) -> u64 {
        self.state().pages.len() as u64
    }

    /// No barrier or TLB maintenance is outstanding.
    pub(super) fn assert_settled(&self) {
        assert!(self.state().unpublished.is_empty(), "writes were not made visible");
        assert!(self.state().pending.is_empty(), "invalidations were not waited for");
    }

    /// A guest access: through the TLB, else by a table walk that fills the TLB. Returns the physical
    /// address and the descriptor.
    pub(super) fn access(
        &self,
        geometry: Geometry,
        vttbr: u64,
        vmid: Vmid,
        ipa: Ipa,
    ) -> Option<(PhysAddr, u64)> {
        self.0.borrow_mut().access(geometry, vttbr, vmid, ipa.get())
    }

    /// Visits every valid entry with its level; checks that no table but the root is empty.
    pub(super) fn for_each_entry(
        &self,
        geometry: Geometry,
        vttbr: u64,
        mut visit: impl FnMut(Level, bool),
    ) {
        let root = vttbr & 0xffff_ffff_f000;
        let state = self.state();
        state.visit(root, geometry.start_level(), geometry.root_entries(), &mut visit);
    }
}

fn is_table(level: Level, descriptor: u64) -> bool {
    level != Level::L3 && descriptor & 0b11 == 0b11
}

fn target(descriptor: u64) -> u64 {
    descriptor & 0xffff_ffff_f000
}

impl State {
    fn load(&self, entry: u64) -> u64 {
        let page = self.pages.get(&(entry & !0xfff));
        page.expect("a walk reads a page that is no table")[(entry as usize & 0xfff) / 8]
    }

    fn access(
        &mut self,
        geometry: Geometry,
        vttbr: u64,
        vmid: Vmid,
        ipa: u64,
    ) -> Option<(PhysAddr, u64)> {
        if let Some(hit) = self.leaves.iter().find(|leaf| leaf.covers(vmid, ipa)) {
            let offset = ipa & (hit.level.entry_bytes() - 1);
            return Some((PhysAddr::new(target(hit.descriptor) + offset), hit.descriptor));
        }
        // From the deepest cached table entry, as hardware may.
        let cached = self.walks.iter().filter(|walk| walk.covers(vmid, ipa));
        let (mut table, mut level) = match cached.max_by_key(|walk| walk.level) {
            Some(walk) => (target(walk.descriptor), walk.level.next().unwrap()),
            None => (target(vttbr), geometry.start_level()),
        };
        loop {
            let mut index = ipa >> level.shift();
            if level != geometry.start_level() {
                index &= 511;
            }
            let entry = table + index * 8;
            let descriptor = self.load(entry);
            let base = ipa & !(level.entry_bytes() - 1);
            let cached = Cached { vmid, level, base, entry, descriptor };
            if descriptor & 1 == 0 {
                return None;
            }
            if is_table(level, descriptor) {
                self.walks.push(cached);
                table = target(descriptor);
                level = level.next().unwrap();
                continue;
            }
            // A clear access flag faults, and the TLB keeps no such entry.
            if descriptor & 1 << 10 != 0 {
                self.leaves.push(cached);
            }
            return Some((PhysAddr::new(target(descriptor) + ipa - base), descriptor));
        }
    }

    fn visit(&self, table: u64, level: Level, entries: u64, visit: &mut impl FnMut(Level, bool)) {
        for index in 0..entries {
            let descriptor = self.load(table + index * 8);
            if descriptor & 1 == 0 {
                continue;
            }
            visit(level, is_table(level, descriptor));
            if is_table(level, descriptor) {
                let below = target(descriptor);
                let any = (0..512).any(|index| self.load(below + index * 8) & 1 != 0);
                assert!(any, "an empty table is hooked in");
                self.visit(below, level.next().unwrap(), 512, visit);
            }
        }
    }
}

impl TableMemory for Machine {
    fn alloc(&mut self, order: u32) -> Result<PhysAddr, OutOfTables> {
        let mut state = self.0.borrow_mut();
        if let Some(left) = &mut state.allocations_left {
            *left = left.checked_sub(1).ok_or(OutOfTables)?;
        }
        let bytes = 4096 << order;
        let base = (TABLES_FROM + state.next).next_multiple_of(bytes);
        state.next = base + bytes - TABLES_FROM;
        for page in (base..base + bytes).step_by(4096) {
            state.pages.insert(page, Box::new([0; 512]));
            state.unpublished.insert(page);
            state.fresh.insert(page);
        }
        state.orders.insert(base, order);
        Ok(PhysAddr::new(base))
    }

    fn free(&mut self, table: PhysAddr, order: u32) {
        let mut state = self.0.borrow_mut();
        assert_eq!(
            state.orders.remove(&table.get()),
            Some(order),
            "free of what was not allocated"
        );
        for page in (table.get()..table.get() + (4096 << order)).step_by(4096) {
            let walked = state.walks.iter().any(|walk| target(walk.descriptor) == page);
            assert!(!walked, "a walk may still use the freed table");
            let cached = state.leaves.iter().any(|leaf| leaf.entry & !0xfff == page);
            assert!(!cached, "the TLB still holds an entry of the freed table");
            state.pages.remove(&page);
            state.unpublished.remove(&page);
            state.fresh.remove(&page);
        }
    }

    fn read(&self, entry: PhysAddr) -> u64 {
        self.0.borrow().load(entry.get())
    }

    fn write(&mut self, entry: PhysAddr, new: u64) {
        let mut state = self.0.borrow_mut();
        let entry = entry.get();
        let page = entry & !0xfff;
        let old = state.load(entry);
        if new & 1 != 0 {
            assert!(
                old & 1 == 0 || (old ^ new) & !MAY_CHANGE == 0,
                "entry {old:#x} became {new:#x} without break"
            );
            let cached = state.leaves.iter().chain(&state.walks);
            let stale = cached
                .filter(|cached| cached.entry == entry)
                .any(|cached| (cached.descriptor ^ new) & !MAY_CHANGE != 0);
            assert!(!stale, "entry {new:#x} was made before the TLB forgot the old one");
            let hooked = target(new);
            assert!(
                !state.unpublished.contains(&hooked) || state.fresh.contains(&page),
                "a table was hooked in before its contents were visible"
            );
        }
        state.unpublished.insert(page);
        let slot = (entry as usize & 0xfff) / 8;
        state.pages.get_mut(&page).expect("a write to a page that is no table")[slot] = new;
    }
}

impl Tlb for Machine {
    fn publish(&self) {
        let mut state = self.0.borrow_mut();
        state.unpublished.clear();
        state.fresh.clear();
    }

    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, level: Level, scope: Scope) {
        let mut state = self.0.borrow_mut();
        assert!(state.unpublished.is_empty(), "invalidation before the change is visible");
        match scope {
            Scope::Leaf => state.counts.leaf += 1,
            Scope::Walk => state.counts.walk += 1,
        }
        state.pending.push((vmid, ipa.get(), level, scope));
    }

    fn complete(&self, vmid: Vmid) {
        let state = &mut *self.0.borrow_mut();
        state.counts.complete += 1;
        for (pending_vmid, ipa, level, scope) in state.pending.drain(..) {
            assert_eq!(pending_vmid, vmid);
            let hit = |cached: &Cached| cached.covers(vmid, ipa);
            match scope {
                // The level is a promise: hardware need not look at others.
                Scope::Leaf => state.leaves.retain(|leaf| !(hit(leaf) && leaf.level == level)),
                Scope::Walk => {
                    state.leaves.retain(|leaf| !hit(leaf));
                    state.walks.retain(|walk| !hit(walk));
                }
            }
        }
    }

    fn invalidate_vmid(&self, vmid: Vmid) {
        let mut state = self.0.borrow_mut();
        state.counts.vmid += 1;
        state.unpublished.clear();
        state.fresh.clear();
        state.leaves.retain(|leaf| leaf.vmid != vmid);
        state.walks.retain(|walk| walk.vmid != vmid);
    }
}
