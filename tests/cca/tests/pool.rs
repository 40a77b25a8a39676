//! The pool of delegated granules: what it saves, that it stays within its limit, and that it gives way to others.

use cca_host::plan::{BuildPlan, IpaRange, PageSource, Segment};
use cca_host::{Config, Realm, RealmConfig, RecConfig, Rmm};
use cca_tests::{Rig, Services, World, abis, destroy, run_to_end, with_world_of};
use mm::ledger::{Frames, Owner, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use rmm::{Abi, Rmi2};

const RAM: u64 = 0x4000_0000;

struct Pages(PhysAddr);

impl PageSource for Pages {
    fn page(&self, _: usize, page: u64) -> PhysAddr {
        PhysAddr::new(self.0.get() + page % 4 * PAGE_SIZE)
    }
}

/// Builds a small realm with two RECs, runs and destroys it; the number of calls.
fn round(world: &World<'_>, rmm: &Rmm<'_, &Rig>, image: PhysAddr) -> u64 {
    let before = rmm.calls().total();
    world.rig.machine.set_guest(|cpu| {
        cpu.store(rmm::Ipa(RAM + 0x10_0000), 8, 1)?;
        cpu.system_off()
    });
    let plan = BuildPlan {
        config: RealmConfig::new(33),
        ram: &[IpaRange { base: Ipa::new(RAM), top: Ipa::new(RAM + (2 << 20)) }],
        segments: &[Segment { ipa: Ipa::new(RAM), pages: 16, measured: false }],
        eager: false,
        recs: &[
            RecConfig { pc: RAM, gprs: [0; 8], runnable: true },
            RecConfig { pc: RAM, gprs: [0; 8], runnable: false },
        ],
    };
    let (mut realm, mut recs) =
        Realm::build(rmm, Owner::vm(1), &plan, &Pages(image)).expect("built");
    run_to_end(&mut realm, &mut recs, &mut Services::default()).expect("runs");
    destroy(realm, recs).expect("destroyed");
    rmm.calls().total() - before
}

#[test]
fn realms_that_follow_each_other_pay_no_delegation() {
    for abi in abis() {
        with_world_of(16 << 20, abi, |world| {
            let image = world.pages(2, Use::Bundle, 1);
            let rmm = Rmm::negotiate(world.rig, world.ledger, Config::default()).expect("an RMM");
            let start = world.ledger.census();
            let without = round(&world, &rmm, image.base());
            assert_eq!(rmm.pooled(), 0);
            rmm.set_pool_limit(64);
            let first = round(&world, &rmm, image.base());
            assert!((1..=64).contains(&rmm.pooled()), "{} granules", rmm.pooled());
            let delegated = world.ledger.census().in_realm_world();
            assert_eq!(delegated, rmm.pooled() as u64);
            let with = round(&world, &rmm, image.base());
            assert!((1..=64).contains(&rmm.pooled()), "{} granules", rmm.pooled());
            println!(
                "{abi:?}: calls of a round: {without} without the pool, {first} the first with it, {with} then"
            );
            if matches!(abi, Abi::V2_0(Rmi2 { whole_ranges: true, .. })) {
                // Little is to be spared, and the granules come one by one then.
                assert!(first <= without && with <= without + without / 8);
            } else {
                assert!(with <= first && first <= without && with < without);
            }
            rmm.set_pool_limit(3);
            assert_eq!(rmm.pooled(), 3, "those above the limit go back");
            rmm.drain_pool();
            assert_eq!(world.ledger.census(), start);
        });
    }
}

/// Takes all memory that is free.
fn hoard(world: &World<'_>) -> Vec<Frames<Undelegated>> {
    let next = || world.ledger.alloc(0, Use::VmMemory, Owner::vm(2)).ok();
    core::iter::from_fn(next).collect()
}

#[test]
fn the_pool_gives_way_when_memory_is_short() {
    for abi in abis() {
        with_world_of(16 << 20, abi, |world| {
            let image = world.pages(2, Use::Bundle, 1);
            let rmm =
                Rmm::negotiate(world.rig, world.ledger, Config { pool_limit: 64 }).expect("an RMM");
            let start = world.ledger.census();
            round(&world, &rmm, image.base());
            let kept = rmm.pooled();
            let others = hoard(&world);
            // A normal VM that finds no memory gets that of the pool.
            let alloc = || world.ledger.alloc(0, Use::VmMemory, Owner::vm(3));
            assert!(alloc().is_err());
            let granule = rmm.with_pool_as_reserve(alloc).expect("from the pool");
            assert_eq!(rmm.pooled(), 0);
            assert_eq!(world.ledger.census().free(), kept as u64 - 1);
            // And when there is nothing left, it is told so.
            let rest = hoard(&world);
            assert!(rmm.with_pool_as_reserve(alloc).is_err());
            rest.into_iter()
                .chain(others)
                .chain([granule])
                .for_each(|frames| world.ledger.free(frames));
            // A realm that needs a page of the normal world does the same.
            round(&world, &rmm, image.base());
            let others = hoard(&world);
            let realm = Realm::create(&rmm, Owner::vm(1), &RealmConfig::new(33)).expect("created");
            destroy(realm, []).expect("destroyed");
            others.into_iter().for_each(|frames| world.ledger.free(frames));
            rmm.drain_pool();
            assert_eq!(world.ledger.census(), start);
        });
    }
}
