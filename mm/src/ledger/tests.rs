//! Unit tests, and random operation sequences against a model with one entry per granule.

extern crate std;

use std::collections::BTreeMap;
use std::format;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::bits::BitTree;
use super::*;

const LIMIT: PhysAddr = PhysAddr::new(0x1_0000_0000);

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), PhysAddr::new(end))
}

fn ledger(ram: &[PhysRange]) -> Ledger<'static> {
    let words = Ledger::metadata_words(ram, LIMIT).expect("layout");
    Ledger::new(ram, LIMIT, vec![0; words].leak()).expect("ledger")
}

#[test]
fn metadata_is_small() {
    let ram = [range(0x4000_0000, 0x1_0000_0000)];
    let bytes = 4 * Ledger::metadata_words(&ram, LIMIT).expect("layout") as u64;
    let granules = ram[0].bytes() / PAGE_SIZE;
    assert!(bytes * 100 < granules * 430, "{bytes} bytes for {granules} granules");
}

#[test]
fn blocks_up_to_a_gibibyte_are_naturally_aligned() {
    let ram = [range(0x4000_0000, 0x1_0000_0000)];
    let ledger = ledger(&ram);
    ledger.reserve(range(0x4000_0000, 0x4000_1000), Use::Firmware).expect("reserve");
    let start = ledger.census();
    for order in 0..=MAX_ORDER {
        let frames = ledger.alloc(order, Use::VmMemory, Owner::vm(1)).expect("memory");
        assert!(frames.base().is_aligned(PAGE_SIZE << order));
        assert_eq!(frames.count(), 1 << order);
        ledger.free(frames);
        assert_eq!(ledger.census(), start);
    }
    assert!(ledger.alloc(MAX_ORDER + 1, Use::VmMemory, Owner::vm(1)).is_err());
}

#[test]
fn memory_of_the_rmm_stays_below_the_limit() {
    let ram = [range(0xffff_e000, 0x1_0000_4000)];
    let ledger = ledger(&ram);
    let high = ledger.alloc(0, Use::VmMemory, Owner::vm(1)).expect("memory");
    assert_eq!(high.base(), LIMIT);
    let low = [(); 2].map(|()| ledger.alloc(0, Use::Realm, Owner::vm(2)).expect("memory"));
    assert!(low.iter().all(|frames| frames.base() < LIMIT));
    assert_eq!(
        ledger.alloc(0, Use::Realm, Owner::vm(2)).err(),
        Some(OutOfMemory { order: 0, used_for: Use::Realm })
    );
    ledger.free(high);
    low.into_iter().for_each(|frames| ledger.free(frames));
    assert_eq!(ledger.census().free(), 6);
}

#[test]
fn a_granule_goes_to_the_rmm_and_back_only_as_recorded() {
    let ram = [range(0x4000_0000, 0x4040_0000)];
    let ledger = ledger(&ram);
    let owner = Owner::vm(7);
    let frames = ledger.alloc(9, Use::Realm, owner).expect("memory");
    let base = frames.base();
    let frames = ledger.delegated(frames);
    assert_eq!(ledger.state(base), Some(GranuleState::Delegated { owner }));
    let (data, rest) = frames.split_at(511);
    ledger.hand_over(data, RmmUse::Data);
    ledger.hand_over(rest, RmmUse::Rtt);

    let last = PhysAddr::new(base.get() + 511 * PAGE_SIZE);
    assert!(ledger.take_back(last, 1, RmmUse::Data, owner).is_err());
    assert!(ledger.take_back(base, 512, RmmUse::Data, owner).is_err());
    assert!(ledger.take_back(base, 1, RmmUse::Data, Owner::vm(8)).is_err());
    assert!(ledger.take_back(PhysAddr::new(base.get() + 8), 1, RmmUse::Data, owner).is_err());
    assert!(ledger.take_back(PhysAddr::new(0), 1, RmmUse::Data, owner).is_err());

    let rtt = ledger.take_back(last, 1, RmmUse::Rtt, owner).expect("recorded");
    ledger.lose(rtt);
    let data = ledger.take_back(base, 511, RmmUse::Data, owner).expect("recorded");
    ledger.free(ledger.undelegated(data));
    let census = ledger.census();
    assert_eq!((census.lost(), census.free()), (1, 1023));
    assert_eq!(format!("{}", ledger.census_of(owner)), "1 lost");
    let lost = ledger.find(GranuleState::Lost { owner }, PhysAddr::new(0)).expect("one is lost");
    assert_eq!(lost.start, last);
}

#[test]
fn reserving_twice_keeps_the_first_reason() {
    let ram = [range(0x4000_0000, 0x4001_0000), range(0x8000_0000, 0x8001_0000)];
    let ledger = ledger(&ram);
    let first = range(0x3fff_0000, 0x4000_1001);
    assert_eq!(ledger.reserve(first, Use::Firmware), Ok(2));
    assert_eq!(ledger.reserve(range(0, u64::MAX), Use::Bundle), Ok(30));
    assert_eq!(
        ledger.state(PhysAddr::new(0x4000_1000)),
        Some(GranuleState::Reserved(Use::Firmware))
    );
    assert!(ledger.release(range(0x4000_0000, 0x4000_3000), Use::Bundle).is_err());
    assert_eq!(ledger.release(range(0x8000_0000, 0x8001_0000), Use::Bundle), Ok(()));
    assert_eq!(ledger.census().free(), 16);
}

#[test]
fn what_the_rmm_does_not_track_is_not_for_realms() {
    let ram = [range(0x4000_0000, 0x4000_8000), range(0x8000_0000, 0x8000_8000)];
    let ledger = ledger(&ram);
    let used = ledger.alloc(0, Use::Realm, Owner::vm(1)).expect("memory");
    // All of the upper part, and three granules of the lower one, of which one is in use.
    assert_eq!(ledger.forbid_delegation(range(0x8000_0000, 0x9000_0000)), 0);
    assert_eq!(ledger.forbid_delegation(range(0x3000_0000, 0x4000_2001)), 2);
    let realms = [(); 5].map(|()| ledger.alloc(0, Use::Realm, Owner::vm(1)).expect("memory"));
    assert!(realms.iter().all(|frames| (0x4000_3000..0x4000_8000).contains(&frames.base().get())));
    assert!(ledger.alloc(0, Use::Realm, Owner::vm(1)).is_err());
    let normal = ledger.alloc(3, Use::VmMemory, Owner::vm(2)).expect("memory");
    assert_eq!(normal.base(), PhysAddr::new(0x8000_0000));
    for frames in realms.into_iter().chain([used, normal]) {
        ledger.free(frames);
    }
    assert_eq!(ledger.census().free(), 14);
}

#[test]
fn bad_layouts_are_refused() {
    let overlapping = [range(0x1000, 0x3000), range(0x2000, 0x4000)];
    assert!(matches!(Ledger::metadata_words(&overlapping, LIMIT), Err(LayoutError::Overlap(_))));
    let many: Vec<_> = (0..17).map(|i| range(i * 0x4000, i * 0x4000 + 0x1000)).collect();
    assert_eq!(Ledger::metadata_words(&many, LIMIT), Err(LayoutError::TooManyRegions));
    let ram = [range(0x1000, 0x3000)];
    assert!(matches!(
        Ledger::new(&ram, LIMIT, &mut []),
        Err(LayoutError::Metadata { given: 0, .. })
    ));
}

proptest! {
    #[test]
    fn bit_tree_is_a_set(len in 1usize..5000, ops in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200)) {
        let mut words = vec![0; BitTree::words_for(len)];
        let mut tree = BitTree::new(&mut words, len);
        let mut model = std::collections::BTreeSet::new();
        for (insert, index) in ops {
            let member = index.index(len);
            if insert {
                tree.insert(member);
                model.insert(member);
            } else {
                tree.remove(member);
                model.remove(&member);
            }
            prop_assert_eq!(tree.first(), model.first().copied());
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Alloc { order: u8, realm: bool, owner: u16 },
    Free(prop::sample::Index),
    Split(prop::sample::Index, u64),
    Delegate(prop::sample::Index),
    Undelegate(prop::sample::Index),
    HandOver(prop::sample::Index),
    TakeBack(prop::sample::Index, u64),
    Lose(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0u8..6, any::<bool>(), 1u16..4)
            .prop_map(|(order, realm, owner)| Op::Alloc { order, realm, owner }),
        3 => index().prop_map(Op::Free),
        2 => (index(), 0u64..40).prop_map(|(which, at)| Op::Split(which, at)),
        3 => index().prop_map(Op::Delegate),
        2 => index().prop_map(Op::Undelegate),
        2 => index().prop_map(Op::HandOver),
        2 => (index(), 1u64..9).prop_map(|(which, count)| Op::TakeBack(which, count)),
        1 => index().prop_map(Op::Lose),
    ]
}

/// What the ledger should say, granule by granule.
struct Model {
    states: BTreeMap<u64, GranuleState>,
    ns: Vec<Frames<Undelegated>>,
    delegated: Vec<Frames<Delegated>>,
}

impl Model {
    fn set<S: World>(&mut self, frames: &Frames<S>, state: GranuleState) {
        for granule in 0..frames.count() {
            let old = self.states.insert(pfn_of(frames.base()) + granule, state);
            assert!(old.is_some(), "token outside RAM");
        }
    }

    fn run(&mut self, ledger: &Ledger<'_>, op: Op) {
        match op {
            Op::Alloc { order, realm, owner } => {
                let used_for = if realm { Use::Realm } else { Use::VmMemory };
                let owner = Owner::vm(owner);
                if let Ok(frames) = ledger.alloc(order, used_for, owner) {
                    for granule in 0..frames.count() {
                        let state = self.states.get(&(pfn_of(frames.base()) + granule));
                        assert_eq!(state, Some(&GranuleState::Free), "allocated twice");
                    }
                    self.set(&frames, GranuleState::Ns { used_for, owner });
                    self.ns.push(frames);
                } else {
                    assert!(!self.has_free_block(order, realm), "memory was there");
                }
            }
            Op::Free(which) if !self.ns.is_empty() => {
                let frames = self.ns.swap_remove(which.index(self.ns.len()));
                self.set(&frames, GranuleState::Free);
                ledger.free(frames);
            }
            Op::Split(which, at) if !self.ns.is_empty() => {
                let (a, b) = self.ns.swap_remove(which.index(self.ns.len())).split_at(at);
                self.ns.extend([a, b]);
            }
            Op::Delegate(which) if !self.ns.is_empty() => {
                let frames = self.ns.swap_remove(which.index(self.ns.len()));
                self.set(&frames, GranuleState::Delegated { owner: frames.owner() });
                self.delegated.push(ledger.delegated(frames));
            }
            Op::Undelegate(which) if !self.delegated.is_empty() => {
                let frames = self.delegated.swap_remove(which.index(self.delegated.len()));
                let owner = frames.owner();
                self.set(&frames, GranuleState::Ns { used_for: Use::Realm, owner });
                self.ns.push(ledger.undelegated(frames));
            }
            Op::HandOver(which) if !self.delegated.is_empty() => {
                let frames = self.delegated.swap_remove(which.index(self.delegated.len()));
                let owner = frames.owner();
                self.set(&frames, GranuleState::Rmm { used_for: RmmUse::Data, owner });
                ledger.hand_over(frames, RmmUse::Data);
            }
            Op::TakeBack(which, count) => {
                let pfns: Vec<u64> = self.states.keys().copied().collect();
                let pfn = pfns[which.index(pfns.len())];
                let owner = self.states[&pfn].owner().unwrap_or(Owner::vm(1));
                let from = GranuleState::Rmm { used_for: RmmUse::Data, owner };
                let ours = (pfn..pfn + count).all(|at| self.states.get(&at) == Some(&from));
                // A run that crosses from one region to the next is refused as a whole.
                match ledger.take_back(addr_of(pfn), count, RmmUse::Data, owner) {
                    Ok(frames) => {
                        assert!(ours);
                        self.set(&frames, GranuleState::Delegated { owner });
                        self.delegated.push(frames);
                    }
                    Err(error) => assert!(!ours || error.found.is_none(), "{error}"),
                }
            }
            Op::Lose(which) if !self.delegated.is_empty() => {
                let frames = self.delegated.swap_remove(which.index(self.delegated.len()));
                self.set(&frames, GranuleState::Lost { owner: frames.owner() });
                ledger.lose(frames);
            }
            _ => {}
        }
    }

    /// Whether an aligned run of free granules exists where this allocation may look.
    fn has_free_block(&self, order: u8, realm: bool) -> bool {
        self.states.keys().any(|&pfn| {
            pfn.is_multiple_of(1 << order)
                && (pfn..pfn + (1 << order)).all(|at| {
                    self.states.get(&at) == Some(&GranuleState::Free)
                        && (at < pfn_of(LIMIT)) == (pfn < pfn_of(LIMIT))
                        && (!realm || at < pfn_of(LIMIT))
                })
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn ledger_agrees_with_one_entry_per_granule(ops in prop::collection::vec(op(), 1..120)) {
        // Odd edges, a hole, and a part above the delegable limit.
        let ram = [range(0x4000_3000, 0x4004_5000), range(0xffff_5000, 0x1_0001_7000)];
        let ledger = ledger(&ram);
        let start = ledger.census();
        let states = ram
            .iter()
            .flat_map(|range| pfn_of(range.start)..pfn_of(range.end))
            .map(|pfn| (pfn, GranuleState::Free))
            .collect();
        let mut model = Model { states, ns: Vec::new(), delegated: Vec::new() };
        for op in ops {
            model.run(&ledger, op);
        }
        let mut census = Census::EMPTY;
        for (&pfn, &state) in &model.states {
            prop_assert_eq!(ledger.state(addr_of(pfn)), Some(state));
            census.add(state, 1);
        }
        prop_assert_eq!(ledger.census(), census);
        // Give everything back: but for what is lost, the ledger is as it was.
        let mut rmm = Vec::new();
        for (&pfn, &state) in &model.states {
            if let GranuleState::Rmm { used_for, owner } = state {
                rmm.push(ledger.take_back(addr_of(pfn), 1, used_for, owner).expect("ours"));
            }
        }
        for frames in rmm.into_iter().chain(model.delegated) {
            ledger.free(ledger.undelegated(frames));
        }
        for frames in model.ns {
            ledger.free(frames);
        }
        prop_assert_eq!(ledger.census().free() + ledger.census().lost(), start.free());
        if ledger.census().lost() == 0 {
            prop_assert_eq!(ledger.census(), start);
        }
    }
}
