//! Random changes to a running realm: after each one the ledger agrees with the RMM granule for granule, no call
//! was refused for a reason that the driver could have known, and calls stay below the bound.

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use cca_host::{
    Config, Entry, ExitCause, FaultIn, GicImage, Realm, RealmConfig, Rec, RecConfig, Resume,
    RipasProgress, Rmm, SharedAttrs,
};
use cca_tests::{BUDGET, Rig, World, abis, destroy, with_world_of};
use mm::ledger::{GranuleState, Owner, RmmUse, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use proptest::prelude::*;

const OWNER: Owner = Owner::vm(1);
const RAM: u64 = 0x4000_0000;
const RAM_PAGES: u64 = 3 * 512;

/// A change to the realm. Pages count from the start of its RAM.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// The host fills a range.
    Map { page: u64, pages: u64 },
    /// The realm touches a page.
    Fault { page: u64 },
    /// The realm converts a range: to RAM or to EMPTY.
    Convert { page: u64, pages: u64, ram: bool },
    /// The host maps shared memory.
    Share { page: u64, pages: u64 },
    /// The host unmaps shared memory.
    Unshare { page: u64, pages: u64 },
}

fn change() -> impl Strategy<Value = Change> {
    let range = || {
        let pages = prop_oneof![4 => 1u64..40, 1 => Just(512u64), 1 => 400u64..1100];
        (prop_oneof![3 => 0..RAM_PAGES, 1 => (0u64..3).prop_map(|block| block * 512)], pages)
            .prop_map(|(page, pages)| (page, pages.min(RAM_PAGES - page)))
    };
    prop_oneof![
        1 => range().prop_map(|(page, pages)| Change::Map { page, pages }),
        1 => (0..RAM_PAGES).prop_map(|page| Change::Fault { page }),
        3 => (range(), any::<bool>())
            .prop_map(|((page, pages), ram)| Change::Convert { page, pages, ram }),
        1 => range().prop_map(|(page, pages)| Change::Share { page, pages: pages.min(512) }),
        1 => range().prop_map(|(page, pages)| Change::Unshare { page, pages }),
    ]
}

/// A running realm and the line on which it is told what to do.
struct Subject<'l> {
    realm: Realm<'l, &'l Rig, cca_host::Active>,
    rec: Rec<'l, &'l Rig>,
    orders: Sender<(u64, u64, u64)>,
    shared: PhysAddr,
}

fn ipa(page: u64) -> Ipa {
    Ipa::new(RAM + page * PAGE_SIZE)
}

impl Subject<'_> {
    /// Makes one change; returns how many calls it may take.
    fn make(&mut self, change: Change) -> u64 {
        match change {
            Change::Map { page, pages } => {
                self.realm.map_private(ipa(page), ipa(page + pages)).expect("mapped");
                // A delegation and a mapping per page, and back where there was memory before; tables.
                3 * pages + 8 * (pages / 512 + 2)
            }
            Change::Fault { page } => {
                let answer = self.realm.fault_in(ipa(page), BUDGET).expect("answered");
                assert_ne!(answer, FaultIn::Livelock);
                12
            }
            Change::Convert { page, pages, ram } => {
                let order = (ipa(page).get(), ipa(page + pages).get(), u64::from(ram));
                self.orders.send(order).expect("the realm listens");
                self.convert();
                // An entry, a page and its undelegation each; splits and folds.
                3 * pages + 16 * (pages / 512 + 2)
            }
            Change::Share { page, pages } => {
                let attrs = SharedAttrs::NORMAL_RW;
                let bytes = pages * PAGE_SIZE;
                self.realm.unmap_shared(ipa(page), bytes).expect("unmapped");
                self.realm.map_shared(ipa(page), self.shared, bytes, attrs).expect("mapped");
                3 * pages + 16 * (pages / 512 + 2)
            }
            Change::Unshare { page, pages } => {
                self.realm.unmap_shared(ipa(page), pages * PAGE_SIZE).expect("unmapped");
                3 * pages + 16 * (pages / 512 + 2)
            }
        }
    }

    /// Runs the REC until it has made the change that it was told.
    fn convert(&mut self) {
        let mut resume = Resume::Plain;
        for _ in 0..4000 {
            let entry = Entry::new(resume).trap_wfi(true);
            match self.rec.enter(entry, &mut GicImage::default()).expect("entered").cause {
                ExitCause::RipasChange(_) => {
                    while self.realm.change_ripas(&mut self.rec, BUDGET).expect("changed")
                        == RipasProgress::Underway
                    {}
                    resume = Resume::RipasAccept;
                }
                ExitCause::Sync(cca_host::SyncExit::Wfi) => {
                    return;
                }
                _ => resume = Resume::Plain,
            }
        }
        panic!("the conversion does not come to an end");
    }
}

/// Whether the ledger and the RMM agree on every granule.
fn agree(world: &World<'_>) {
    let mut addr = world.rig.machine.ram().base.0;
    let end = addr + world.rig.machine.ram().size;
    while addr < end {
        let ours = world.ledger.state(PhysAddr::new(addr)).expect("RAM");
        let theirs = world.rig.machine.granule_state(rmm::Pa(addr)).expect("RAM");
        let agree = match theirs {
            rmm::GranuleState::Undelegated => ours.is_ns(),
            rmm::GranuleState::Delegated => matches!(ours, GranuleState::Delegated { .. }),
            rmm::GranuleState::Rd => is(ours, RmmUse::Rd),
            rmm::GranuleState::Rec => is(ours, RmmUse::Rec),
            rmm::GranuleState::RecAux => is(ours, RmmUse::Aux),
            rmm::GranuleState::Rtt => is(ours, RmmUse::Rtt),
            rmm::GranuleState::Data => is(ours, RmmUse::Data),
            _ => false,
        };
        assert!(agree, "granule {addr:#x}: {ours} and {theirs:?}");
        addr += PAGE_SIZE;
    }
}

fn is(state: GranuleState, wanted: RmmUse) -> bool {
    matches!(state, GranuleState::Rmm { used_for, owner: OWNER } if used_for == wanted)
}

/// Makes all changes to a realm and destroys it.
fn live(world: &World<'_>, changes: &[Change], pool_limit: usize, split: u64) {
    let rmm = Rmm::negotiate(world.rig, world.ledger, Config { pool_limit }).expect("an RMM");
    world.rig.refuse(None);
    let shared = world.pages(9, Use::Shared, 0);
    let start = world.ledger.census();
    let (orders, listener) = channel::<(u64, u64, u64)>();
    let listener = Mutex::new(listener);
    world.rig.machine.set_guest(move |cpu| {
        loop {
            let order = listener.lock().expect("one REC").recv();
            let Ok((base, top, ripas)) = order else { return cpu.system_off() };
            assert!(cpu.set_ripas(rmm::Ipa(base), rmm::Ipa(top), ripas, 1)?);
            cpu.wfi()?;
        }
    });
    let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
    // RAM in two ranges, so that their edges vary.
    realm.init_ripas(ipa(0), ipa(split)).expect("RAM");
    realm.init_ripas(ipa(split), ipa(RAM_PAGES)).expect("RAM");
    let rec = RecConfig { pc: RAM, gprs: [0; 8], runnable: true };
    let rec = realm.create_rec(&rec).expect("a REC");
    let realm = realm.activate().expect("active");
    let shared_at = shared.base();
    let mut subject = Subject { realm, rec, orders, shared: shared_at };
    for change in changes {
        let before = rmm.calls().total();
        let bound = subject.make(*change);
        let calls = rmm.calls().total() - before;
        assert!(calls <= bound, "{calls} calls for {change:?}, {bound} allowed");
        agree(world);
        assert_eq!(world.rig.input_errors(), []);
    }
    let Subject { realm, rec, orders, .. } = subject;
    drop(orders);
    destroy(realm, [rec]).expect("destroyed");
    rmm.drain_pool();
    agree(world);
    assert_eq!(world.rig.input_errors(), []);
    assert_eq!(world.ledger.census(), start);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn ledger_and_rmm_agree_after_every_change(
        changes in prop::collection::vec(change(), 1..16),
        pool_limit in 0usize..8,
        split in 1..RAM_PAGES,
    ) {
        for abi in abis() {
            with_world_of(16 << 20, abi, |world| live(&world, &changes, pool_limit, split));
        }
    }
}
