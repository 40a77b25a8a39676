//! Stage-2 tables against a map of segments, with a TLB that holds on to what it may, and with
//! every allocation failing once.

use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::fake::Machine;
use super::*;

type Tables = Stage2<Machine, Machine>;

const PAGE: u64 = 4096;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// What should be mapped: start of a segment to its end, physical address and attributes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<u64, (u64, u64, Attributes)>);

impl Model {
    fn at(&self, ipa: u64) -> Option<(u64, Attributes)> {
        let (&start, &(end, pa, attributes)) = self.0.range(..=ipa).next_back()?;
        (ipa < end).then_some((pa + ipa - start, attributes))
    }

    fn split(&mut self, boundary: u64) {
        if let Some((&start, &(end, pa, attributes))) = self.0.range(..boundary).next_back()
            && boundary < end
        {
            self.0.insert(start, (boundary, pa, attributes));
            self.0.insert(boundary, (end, pa + boundary - start, attributes));
        }
    }

    fn segments(&mut self, from: u64, end: u64) -> Vec<(u64, u64)> {
        self.split(from);
        self.split(end);
        self.0.range(from..end).map(|(&start, &(end, ..))| (start, end)).collect()
    }

    fn first_mapped(&self, from: u64, end: u64) -> Option<u64> {
        if self.at(from).is_some() {
            return Some(from);
        }
        self.0.range(from..end).next().map(|(&start, _)| start)
    }

    fn first_hole(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            match self.0.range(..=at).next_back() {
                Some((_, &(segment_end, ..))) if at < segment_end => at = segment_end,
                _ => return Some(at),
            }
        }
        None
    }

    fn map(&mut self, from: u64, pa: u64, bytes: u64, attributes: Attributes) {
        self.0.insert(from, (from + bytes, pa, attributes));
    }

    fn unmap(&mut self, from: u64, end: u64) -> u64 {
        let segments = self.segments(from, end);
        self.0.retain(|&start, _| start < from || start >= end);
        segments.iter().map(|(start, end)| end - start).sum()
    }

    fn protect(&mut self, from: u64, end: u64, permissions: Permissions) {
        for (start, _) in self.segments(from, end) {
            let segment = self.0.get_mut(&start).unwrap();
            segment.2 = segment.2.with_permissions(permissions);
        }
    }

    /// Pages at and around every change of mapping, and inside.
    fn probes(&self) -> Vec<u64> {
        let mut probes = Vec::new();
        for (&start, &(end, ..)) in &self.0 {
            probes.extend([start, end - PAGE, start + (end - start) / 2 / PAGE * PAGE]);
            probes.extend([start.wrapping_sub(PAGE), end]);
        }
        probes
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, u64, Attributes),
    Unmap(u64, u64),
    Protect(u64, u64, Permissions),
    Age(u64, u64),
    LogWrites(u64, u64),
    Fault(u64, Access),
}

fn address() -> impl Strategy<Value = u64> {
    // Both sides of 512 GiB, where concatenated roots and level 0 entries meet.
    let base = prop_oneof![Just(0), Just(510 * GIB)];
    let fine = prop_oneof![
        4 => Just(0),
        2 => (0u64..4).prop_map(|page| page * PAGE),
        1 => (508u64..512).prop_map(|page| page * PAGE)
    ];
    (base, 0u64..4, 0u64..3, fine)
        .prop_map(|(base, gib, mib2, fine)| base + gib * GIB + mib2 * MIB2 + fine)
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        (1u64..600).prop_map(|pages| pages * PAGE),
        (1u64..4).prop_map(|blocks| blocks * MIB2),
        (1u64..3).prop_map(|blocks| blocks * GIB),
        (1u64..3, 1u64..3).prop_map(|(blocks, pages)| blocks * MIB2 + pages * PAGE),
    ]
}

fn permissions() -> impl Strategy<Value = Permissions> {
    (any::<bool>(), any::<bool>()).prop_map(|(write, execute)| Permissions { write, execute })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    (permissions(), any::<bool>()).prop_map(|(permissions, device)| {
        if device { Attributes::device(permissions) } else { Attributes::normal(permissions) }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Execute)];
    prop_oneof![
        // Any offset against any other, which ends in single pages: not too many of them.
        6 => (address(), address(), 1u64..1200, attributes()).prop_map(|(ipa, pa, pages, attributes)| {
            Op::Map(ipa, pa % (200 * GIB), pages * PAGE, attributes)
        }),
        // The usual case: equal offsets, so that blocks are possible.
        6 => (address(), size(), attributes())
            .prop_map(|(ipa, bytes, attributes)| Op::Map(ipa, ipa % (8 * GIB), bytes, attributes)),
        6 => (address(), size()).prop_map(|(ipa, bytes)| Op::Unmap(ipa, bytes)),
        3 => (address(), size(), permissions()).prop_map(|(ipa, bytes, p)| Op::Protect(ipa, bytes, p)),
        1 => (address(), size()).prop_map(|(ipa, bytes)| Op::Age(ipa, bytes)),
        1 => (address(), size()).prop_map(|(ipa, bytes)| Op::LogWrites(ipa, bytes)),
        2 => (address(), access).prop_map(|(ipa, access)| Op::Fault(ipa, access)),
    ]
}

struct Rig {
    machine: Machine,
    tables: Tables,
    slot: VmidSlot,
    vmid: Vmid,
    model: Model,
}

impl Rig {
    fn new(ipa_bits: u32) -> Self {
        let machine = Machine::default();
        let geometry = Geometry::new(ipa_bits, PaRange::from_id(5)).unwrap();
        let tables = Stage2::new(geometry, machine.clone(), machine.clone()).unwrap();
        let slot = VmidSlot::new();
        let vmid = VmidAllocator::<1>::new(VmidBits::Eight).enter(0, &slot).vmid;
        Self { machine, tables, slot, vmid, model: Model::default() }
    }

    fn geometry(&self) -> Geometry {
        self.tables.geometry()
    }

    /// Does `op` with as few allocations as let it succeed: each failure before must leave everything as
    /// it was.
    fn apply_with_failures(&mut self, op: &Op) {
        let before = self.model.clone();
        let pages = self.tables.table_pages();
        for allocations in 0.. {
            self.machine.limit_allocations(Some(allocations));
            let out_of_tables = self.apply(op);
            self.machine.limit_allocations(None);
            self.check();
            if !out_of_tables {
                return;
            }
            assert_eq!(self.model, before);
            assert_eq!(self.tables.table_pages(), pages, "tables were lost");
            assert!(allocations < 4 * 600, "it never succeeds");
        }
    }

    /// Does `op` on tables and model, and compares the outcome. Returns whether tables ran out.
    fn apply(&mut self, op: &Op) -> bool {
        let limit = 1 << self.geometry().ipa_bits();
        let outcome = match *op {
            Op::Map(ipa, pa, bytes, attributes) => {
                let outcome = self.tables.map(
                    &self.slot,
                    Ipa::new(ipa),
                    PhysAddr::new(pa),
                    bytes,
                    attributes,
                );
                if ipa + bytes > limit {
                    assert_eq!(outcome, Err(MapError::IpaOutOfRange));
                } else if let Some(mapped) = self.model.first_mapped(ipa, ipa + bytes) {
                    assert_eq!(outcome, Err(MapError::AlreadyMapped(Ipa::new(mapped))));
                } else if outcome.is_ok() {
                    self.model.map(ipa, pa, bytes, attributes);
                }
                outcome
            }
            Op::Unmap(ipa, bytes) => {
                let outcome = self.tables.unmap(&self.slot, Ipa::new(ipa), bytes);
                if ipa + bytes > limit {
                    assert_eq!(outcome, Err(MapError::IpaOutOfRange));
                } else if let Ok(unmapped) = outcome {
                    assert_eq!(unmapped, self.model.unmap(ipa, ipa + bytes));
                }
                outcome.map(drop)
            }
            Op::Protect(ipa, bytes, permissions) => {
                let outcome = self.tables.protect(&self.slot, Ipa::new(ipa), bytes, permissions);
                if ipa + bytes > limit {
                    assert_eq!(outcome, Err(MapError::IpaOutOfRange));
                } else if let Some(hole) = self.model.first_hole(ipa, ipa + bytes) {
                    assert_eq!(outcome, Err(MapError::NotMapped(Ipa::new(hole))));
                } else if outcome.is_ok() {
                    self.model.protect(ipa, ipa + bytes, permissions);
                }
                outcome
            }
            Op::Age(ipa, bytes) => self.tables.age(&self.slot, Ipa::new(ipa), bytes),
            Op::LogWrites(ipa, bytes) => self.tables.log_writes(&self.slot, Ipa::new(ipa), bytes),
            Op::Fault(ipa, access) => {
                let outcome = self.tables.resolve_fault(&self.slot, Ipa::new(ipa), access);
                assert_eq!(outcome, self.expected_fault(ipa, access));
                self.check_noted(ipa, access);
                Ok(())
            }
        };
        if matches!(op, Op::Age(ipa, bytes) | Op::LogWrites(ipa, bytes) if ipa + bytes <= limit) {
            assert_eq!(outcome, Ok(()));
        }
        outcome == Err(MapError::OutOfTables)
    }

    fn expected_fault(&self, ipa: u64, access: Access) -> FaultOutcome {
        match (self.model.at(ipa), access) {
            (None, _) => FaultOutcome::NotMapped,
            (Some((_, a)), Access::Write) if !a.permissions().write => FaultOutcome::Denied,
            (Some((_, a)), Access::Execute) if !a.permissions().execute => FaultOutcome::Denied,
            _ => FaultOutcome::Retry,
        }
    }

    /// After a fault that ends in a retry, the hardware lets the access through.
    fn check_noted(&self, ipa: u64, access: Access) {
        if self.expected_fault(ipa, access) != FaultOutcome::Retry {
            return;
        }
        let (_, descriptor) = self.guest_access(ipa).unwrap();
        assert!(descriptor & 1 << 10 != 0, "access flag");
        if access == Access::Write {
            assert!(descriptor & 1 << 7 != 0, "write permission");
        }
    }

    fn guest_access(&self, ipa: u64) -> Option<(PhysAddr, u64)> {
        let vttbr = self.tables.vttbr(self.vmid);
        self.machine.access(self.geometry(), vttbr, self.vmid, Ipa::new(ipa))
    }

    /// Compares what the walker says, and what a guest gets through the TLB, with the model; checks the
    /// accounting. Leaves the TLB full of what it saw.
    fn check(&self) {
        self.machine.assert_settled();
        let mut probes = self.model.probes();
        probes.extend([0, GIB, MIB2, 511 * GIB, 512 * GIB - PAGE, 512 * GIB]);
        for ipa in probes {
            if ipa >> self.geometry().ipa_bits() != 0 {
                assert_eq!(self.tables.translate(Ipa::new(ipa)), None);
                continue;
            }
            let expected = self.model.at(ipa);
            let walked = self.tables.translate(Ipa::new(ipa));
            assert_eq!(walked.map(|m| (m.pa.get(), m.attributes)), expected, "at {ipa:#x}");
            let seen = self.guest_access(ipa);
            assert_eq!(seen.map(|(pa, _)| pa.get()), expected.map(|(pa, _)| pa), "TLB at {ipa:#x}");
            if let (Some((_, descriptor)), Some((_, attributes))) = (seen, expected) {
                check_descriptor(descriptor, attributes, walked.unwrap().level);
            }
        }
        let root_pages = 1 << self.geometry().root_order();
        let mut tables = root_pages;
        let mut leaf_bytes = 0;
        let vttbr = self.tables.vttbr(self.vmid);
        self.machine.for_each_entry(self.geometry(), vttbr, |level, is_table| {
            if is_table {
                tables += 1;
            } else {
                leaf_bytes += level.entry_bytes();
            }
        });
        assert_eq!(self.tables.table_pages(), tables);
        assert_eq!(self.machine.pages(), tables, "table pages were lost");
        let mapped: u64 = self.model.0.iter().map(|(start, (end, ..))| end - start).sum();
        assert_eq!(leaf_bytes, mapped);
    }

    fn finish(self) {
        let Self { machine, tables, slot, .. } = self;
        let _memory = tables.teardown(&slot);
        assert_eq!(machine.pages(), 0);
    }
}

/// What the hardware may do by `descriptor` is within what the attributes allow.
fn check_descriptor(descriptor: u64, attributes: Attributes, level: Level) {
    let permissions = attributes.permissions();
    assert!(descriptor & 1 << 6 != 0, "readable");
    assert!(descriptor & 1 << 7 == 0 || permissions.write);
    assert_eq!(descriptor >> 53 & 0b11, if permissions.execute { 0 } else { 0b10 });
    match attributes.memory() {
        MemoryType::Normal => assert_eq!(descriptor >> 2 & 0xf, 0xf),
        MemoryType::Device => {
            assert_eq!(descriptor >> 2 & 0xf, 1);
            assert_eq!(descriptor >> 53 & 0b11, 0b10, "device memory is executable");
        }
    }
    assert_eq!(descriptor & 0b11, if level == Level::L3 { 0b11 } else { 0b01 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn tables_agree_with_the_model(
        ipa_bits in prop_oneof![Just(40u32), Just(39), Just(44), Just(48), Just(33)],
        ops in prop::collection::vec(op(), 1..24),
    ) {
        let mut rig = Rig::new(ipa_bits);
        for op in &ops {
            rig.apply_with_failures(op);
        }
        rig.finish();
    }
}

fn rig_with_counts() -> Rig {
    let rig = Rig::new(40);
    let _ = rig.machine.take_counts();
    rig
}

fn map(rig: &mut Rig, ipa: u64, bytes: u64) {
    assert!(!rig.apply(&Op::Map(ipa, ipa, bytes, Attributes::normal(Permissions::RWX))));
}

fn counts(leaf: u64, walk: u64, vmid: u64, complete: u64) -> fake::Counts {
    fake::Counts { leaf, walk, vmid, complete }
}

#[test]
fn mapping_takes_the_largest_blocks_and_no_invalidation() {
    let mut rig = rig_with_counts();
    map(&mut rig, GIB - MIB2 - PAGE, 2 * MIB2 + 2 * PAGE + GIB);
    // Level 2 and 3 tables at either end; one page, one 2 MiB block, one 1 GiB block, and again.
    assert_eq!(rig.tables.table_pages(), 2 + 4);
    let mut leaves = [0; 4];
    rig.tables.for_each_leaf(Ipa::new(0), u64::MAX, |leaf| leaves[leaf.level as usize] += 1);
    assert_eq!(leaves, [0, 1, 2, 2]);
    assert_eq!(rig.machine.take_counts(), counts(0, 0, 0, 0));
    rig.check();
    rig.finish();
}

#[test]
fn unmapping_a_page_of_a_block_breaks_before_it_makes() {
    let mut rig = rig_with_counts();
    map(&mut rig, 0, GIB);
    rig.check();
    assert!(!rig.apply(&Op::Unmap(MIB2 + PAGE, PAGE)));
    // Split of the 1 GiB block, split of one 2 MiB block, and the page.
    assert_eq!(rig.machine.take_counts(), counts(3, 0, 0, 3));
    assert_eq!(rig.tables.table_pages(), 2 + 2);
    rig.check();
    // The other 511 pages: more than stays precise, and their table goes.
    assert!(!rig.apply(&Op::Unmap(MIB2, MIB2)));
    assert_eq!(rig.machine.take_counts(), counts(0, 0, 1, 0));
    assert_eq!(rig.tables.table_pages(), 2 + 1);
    rig.check();
    rig.finish();
}

#[test]
fn the_last_page_takes_its_tables_along_with_one_invalidation() {
    let mut rig = rig_with_counts();
    map(&mut rig, 5 * PAGE, 2 * PAGE);
    rig.check();
    assert!(!rig.apply(&Op::Unmap(5 * PAGE, PAGE)));
    assert_eq!(rig.machine.take_counts(), counts(1, 0, 0, 1));
    rig.check();
    assert!(!rig.apply(&Op::Unmap(0, MIB2)));
    assert_eq!(rig.machine.take_counts(), counts(0, 1, 0, 1));
    assert_eq!(rig.tables.table_pages(), 2);
    rig.finish();
}

#[test]
fn a_vm_that_never_ran_needs_no_invalidation() {
    let mut rig = rig_with_counts();
    rig.slot = VmidSlot::new();
    map(&mut rig, 0, GIB);
    assert!(!rig.apply(&Op::Unmap(PAGE, PAGE)));
    assert_eq!(rig.machine.take_counts(), counts(0, 0, 0, 0));
    rig.finish();
}

#[test]
fn tracking_sees_accesses_and_stores() {
    let mut rig = rig_with_counts();
    map(&mut rig, 0, 3 * PAGE);
    let at = |rig: &Rig, page: u64| rig.tables.translate(Ipa::new(page * PAGE)).unwrap();
    assert!(at(&rig, 0).accessed && !at(&rig, 0).dirty);
    rig.check();

    assert!(!rig.apply(&Op::Age(0, 2 * PAGE)));
    assert_eq!(rig.machine.take_counts(), counts(2, 0, 0, 1));
    assert!(!at(&rig, 0).accessed && !at(&rig, 1).accessed && at(&rig, 2).accessed);
    assert!(!rig.apply(&Op::Fault(0, Access::Read)));
    // What faults for its access flag is in no TLB.
    assert_eq!(rig.machine.take_counts(), counts(0, 0, 0, 0));
    assert!(at(&rig, 0).accessed && !at(&rig, 1).accessed);

    assert!(!rig.apply(&Op::LogWrites(0, 3 * PAGE)));
    let (_, descriptor) = rig.guest_access(2 * PAGE).unwrap();
    assert!(descriptor & 1 << 7 == 0, "write-protected");
    assert!(at(&rig, 2).attributes.permissions().write, "but writable for the guest");
    let _ = rig.machine.take_counts();
    assert!(!rig.apply(&Op::Fault(2 * PAGE, Access::Write)));
    assert_eq!(rig.machine.take_counts(), counts(1, 0, 0, 1));
    assert!(at(&rig, 2).dirty && !at(&rig, 0).dirty);

    assert!(!rig.apply(&Op::LogWrites(0, 3 * PAGE)));
    assert!(!at(&rig, 2).dirty, "a new round begins clean");
    rig.finish();
}

#[test]
fn errors_name_what_is_wrong() {
    let mut rig = rig_with_counts();
    let slot = VmidSlot::new();
    let rw = Attributes::normal(Permissions::RW);
    let mut try_map =
        |ipa, pa, bytes| rig.tables.map(&slot, Ipa::new(ipa), PhysAddr::new(pa), bytes, rw);
    assert_eq!(try_map(1, 0, PAGE), Err(MapError::Misaligned));
    assert_eq!(try_map(0, 1, PAGE), Err(MapError::Misaligned));
    assert_eq!(try_map(0, 0, 1), Err(MapError::Misaligned));
    assert_eq!(try_map(0, 0, 0), Err(MapError::Misaligned));
    assert_eq!(try_map(1 << 40, 0, PAGE), Err(MapError::IpaOutOfRange));
    assert_eq!(try_map((1 << 40) - PAGE, 0, 2 * PAGE), Err(MapError::IpaOutOfRange));
    assert_eq!(try_map(!(PAGE - 1), 0, PAGE), Err(MapError::IpaOutOfRange));
    assert_eq!(try_map(0, 1 << 48, PAGE), Err(MapError::PaOutOfRange));
    assert_eq!(try_map(0, (1 << 48) - PAGE, 2 * PAGE), Err(MapError::PaOutOfRange));
    assert_eq!(try_map((1 << 40) - PAGE, 0, PAGE), Ok(()));
    rig.finish();
}
