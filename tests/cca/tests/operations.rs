//! Stateful operations of RMI 2.0: every form of donation, memory that runs out on the way, and operations that are
//! cancelled or cannot be.

use cca_host::{
    Blame, Command, Config, Error, Invalid, Realm, RealmConfig, RecConfig, Rmm, Tracking,
};
use cca_tests::{RAM_BASE, Refusal, Rig, World, abis, destroy, with_world_of};
use mm::ledger::{Frames, Owner, Undelegated, Use};
use mm::{Ipa, PhysAddr};
use rmm::v2::Draft;
use rmm::{Abi, Donation, Rmi2};

const OWNER: Owner = Owner::vm(1);
const RAM: u64 = 0x4000_0000;

/// Runs `test` once per form of donation, on the RMM that the drafts in the field are like and on a later one.
fn each_form(test: impl Fn(World<'_>, Donation)) {
    for draft in [Draft::Head, Draft::Late] {
        each_form_of(draft, &test);
    }
}

fn each_form_of(draft: Draft, test: impl Fn(World<'_>, Donation)) {
    for bits in 0..8 {
        let donation = Donation {
            contiguous: bits & 1 != 0,
            undelegated: bits & 2 != 0,
            cancellable: bits & 4 != 0,
            ..Donation::PAGES
        };
        println!("{draft:?}: {donation:?}");
        let abi = Abi::V2_0(Rmi2 { draft, donations: [donation; 2], ..Rmi2::HEAD });
        with_world_of(1 << 20, abi, |world| test(world, donation));
    }
}

fn negotiate<'w>(world: &World<'w>, pool_limit: usize) -> Rmm<'w, &'w Rig> {
    Rmm::negotiate(world.rig, world.ledger, Config { pool_limit }).expect("an RMM is there")
}

/// Takes all memory but `left` granules that are next to each other if `together`.
fn exhaust(world: &World<'_>, left: usize, together: bool) -> Vec<Frames<Undelegated>> {
    let mut hoard = Vec::new();
    while let Ok(granule) = world.ledger.alloc(0, Use::VmMemory, Owner::vm(2)) {
        hoard.push(granule);
    }
    let step = if together { 1 } else { 2 };
    for index in (0..left).rev() {
        world.ledger.free(hoard.remove(index * step));
    }
    hoard
}

#[test]
fn recs_are_created_whatever_the_form_of_the_donation() {
    each_form(|world, _| {
        for pool_limit in [0, 5, 64] {
            let rmm = negotiate(&world, pool_limit);
            let start = world.ledger.census();
            for _ in 0..3 {
                let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
                let recs =
                    [(); 2].map(|()| realm.create_rec(&RecConfig::default()).expect("a REC"));
                let returned = destroy(realm, recs).expect("destroyed");
                assert_eq!(returned.lost, 0);
            }
            rmm.drain_pool();
            assert_eq!(world.ledger.census(), start);
        }
    });
}

#[test]
fn an_operation_that_memory_runs_out_for_gives_everything_back() {
    each_form(|world, donation| {
        let rmm = negotiate(&world, 0);
        let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
        realm.init_ripas(Ipa::new(RAM), Ipa::new(RAM + 0x20_0000)).expect("RAM");
        // The REC itself, its run page, the pages of parameters and of the list, and some of 16 auxiliary ones.
        for left in 0..22 {
            for together in [true, false] {
                let hoard = exhaust(&world, left, together);
                let before = world.ledger.census();
                let cancelled = rmm.calls().of(Command::OpCancel);
                match realm.create_rec(&RecConfig::default()) {
                    Ok(rec) => {
                        let needed = if donation.contiguous { together } else { left >= 20 };
                        assert!(needed, "{left} granules, together: {together}");
                        rec.destroy().expect("destroyed");
                    }
                    Err(error) => {
                        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
                        let cancelled = rmm.calls().of(Command::OpCancel) - cancelled;
                        assert!(donation.cancellable || cancelled == 0);
                        // With memory for what comes first, it is the operation that runs out of it.
                        assert!(!donation.cancellable || left < 5 || cancelled == 1);
                    }
                }
                assert_eq!(world.ledger.census(), before, "{left} granules");
                hoard.into_iter().for_each(|granule| world.ledger.free(granule));
            }
        }
        destroy(realm, []).expect("destroyed");
    });
}

#[test]
fn a_refused_step_of_a_cancellation_is_survived() {
    let donation = Donation { cancellable: true, ..Donation::PAGES };
    with_world_of(8 << 20, Abi::V2_0(Rmi2 { donations: [donation; 2], ..Rmi2::HEAD }), |world| {
        let rmm = negotiate(&world, 0);
        let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
        // So little that some of the donation is there, in pieces, when memory runs out.
        let hoard = exhaust(&world, 12, false);
        let start = world.ledger.census();
        world.rig.refuse(None);
        assert!(realm.create_rec(&RecConfig::default()).is_err());
        assert_eq!(world.ledger.census(), start);
        let (mut cases, mut kept) = (0, 0);
        for call in 0..world.rig.calls() {
            for word in [1, 3, 4, 10, 11, 14, 17, u64::MAX] {
                let before = world.ledger.census();
                world.rig.refuse(Some(Refusal { call, answer: [word, 0, 0, 0, 0, 0, 0, 0] }));
                assert!(realm.create_rec(&RecConfig::default()).is_err());
                world.rig.refuse(None);
                let after = world.ledger.census();
                assert_eq!(after.total(), before.total());
                let missing = before.free() - after.free();
                assert_eq!(missing, after.in_realm_world() - before.in_realm_world());
                cases += 1;
                kept += missing;
                if missing > 0 {
                    // The next case would not have the same memory.
                    break;
                }
            }
        }
        println!(
            "{cases} refused steps survived, {kept} granules kept by operations that were not allowed to end"
        );
        assert!(cases > 20);
        hoard.into_iter().for_each(|granule| world.ledger.free(granule));
    });
}

/// RMMs whose delegation of a range takes a granule of the normal world for the time.
fn each_borrower(test: impl Fn(World<'_>, Donation)) {
    for cancellable in [false, true] {
        let scratch = Donation { undelegated: true, cancellable, ..Donation::PAGES };
        for yields in [false, true] {
            let rmi2 = Rmi2 { yields, scratch: Some(scratch), ..Rmi2::EVERYTHING };
            println!("{rmi2:?}");
            with_world_of(4 << 20, Abi::V2_0(rmi2), |world| test(world, scratch));
        }
    }
}

/// RAM of a realm, all of which gets memory.
const BYTES: u64 = 0x20_0000;

#[test]
fn ranges_are_delegated_whatever_the_operation_wants() {
    each_borrower(|world, _| {
        for pool_limit in [0, 64] {
            let rmm = negotiate(&world, pool_limit);
            let start = world.ledger.census();
            let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
            let (base, top) = (Ipa::new(RAM), Ipa::new(RAM + BYTES));
            realm.init_ripas(base, top).expect("RAM");
            assert_eq!(realm.map_private(base, top), Ok(512));
            let rec = realm.create_rec(&RecConfig::default()).expect("a REC");
            assert!(rmm.calls().of(Command::OpMemDonate) > 1);
            assert_eq!(destroy(realm, [rec]).expect("destroyed").lost, 0);
            rmm.drain_pool();
            assert_eq!(world.ledger.census(), start);
        }
    });
}

#[test]
fn a_delegation_that_memory_runs_out_for_is_a_refusal() {
    each_borrower(|world, scratch| {
        let rmm = negotiate(&world, 0);
        let start = world.ledger.census();
        let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
        let (base, top) = (Ipa::new(RAM), Ipa::new(RAM + 8 * 4096));
        realm.init_ripas(base, top).expect("RAM");
        realm.map_private(base, Ipa::new(RAM + 4096)).expect("the tables");
        let ended = |command| rmm.calls().of(command);
        let before = (ended(Command::OpCancel), ended(Command::OpMemDonate));
        // Two granules that are delegated together; none is left for the operation.
        let mut hoard = exhaust(&world, 0, true);
        let pair = hoard
            .windows(2)
            .position(|pair| pair[0].base().is_aligned(0x2000) && pair[1].base() == pair[0].end());
        let pair = pair.expect("they come in order");
        hoard.drain(pair..pair + 2).for_each(|granule| world.ledger.free(granule));
        let there = world.ledger.census().in_realm_world();
        let error = realm.map_private(Ipa::new(RAM + 2 * 4096), top).expect_err("no memory");
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
        assert_eq!(ended(Command::OpCancel) > before.0, scratch.cancellable);
        assert_eq!(ended(Command::OpMemDonate) > before.1, !scratch.cancellable);
        assert_eq!(world.ledger.census().in_realm_world(), there);
        hoard.into_iter().for_each(|granule| world.ledger.free(granule));
        destroy(realm, []).expect("destroyed");
        assert_eq!(world.ledger.census(), start);
    });
}

#[test]
fn an_rmm_that_wants_delegated_memory_to_delegate_is_refused() {
    let rmi2 = Rmi2 { scratch: Some(Donation::PAGES), ..Rmi2::EVERYTHING };
    with_world_of(4 << 20, Abi::V2_0(rmi2), |world| {
        let rmm = negotiate(&world, 8);
        let start = world.ledger.census();
        let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(33)).expect("created");
        let (base, top) = (Ipa::new(RAM), Ipa::new(RAM + BYTES));
        realm.init_ripas(base, top).expect("RAM");
        let error = realm.map_private(base, top).expect_err("not to be had");
        assert_eq!(error.blame(), Blame::Rmm, "{error}");
        destroy(realm, []).expect("destroyed");
        rmm.drain_pool();
        assert_eq!(world.ledger.census(), start);
    });
}

#[test]
fn tracking_of_memory_is_asked_for_in_each_form() {
    for abi in abis() {
        with_world_of(8 << 20, abi, |world| {
            let rmm = negotiate(&world, 0);
            let (base, top) = (PhysAddr::new(RAM_BASE), PhysAddr::new(RAM_BASE + (8 << 20)));
            assert_eq!(rmm.tracking(base, top), Ok((Tracking::Fine, top)), "{abi:?}");
            if abi != Abi::V1_0 {
                // Neither draft knows of memory there, or that there can be any.
                let (base, top) = (PhysAddr::new(1 << 30), PhysAddr::new(2 << 30));
                assert_eq!(rmm.tracking(base, top), Ok((Tracking::None, top)), "{abi:?}");
                let far = PhysAddr::new(1 << 56);
                assert!(rmm.tracking(far, PhysAddr::new((1 << 56) + 4096)).is_err());
            }
        });
    }
}

#[test]
fn numbers_of_breakpoints_have_bounds_on_both_sides() {
    for abi in abis() {
        with_world_of(8 << 20, abi, |world| {
            let rmm = negotiate(&world, 0);
            let features = rmm.capabilities().features;
            let before = rmm.calls().total();
            let most = (features.breakpoints, features.watchpoints);
            for (breakpoints, watchpoints, nearest) in [
                (0, 1, 1),
                (1, 0, 1),
                (most.0 + 1, 1, most.0.into()),
                (1, most.1 + 1, most.1.into()),
            ] {
                let config = RealmConfig { breakpoints, watchpoints, ..RealmConfig::new(33) };
                let refused = Realm::create(&rmm, OWNER, &config).err();
                let Some(Error::Invalid(Invalid::Parameter { supported, .. })) = refused else {
                    panic!("{config:?}: {refused:?}");
                };
                assert_eq!(supported, nearest);
            }
            assert_eq!(rmm.calls().total(), before, "what the RMM would refuse is not sent");
            let (breakpoints, watchpoints) = most;
            let config = RealmConfig { breakpoints, watchpoints, ..RealmConfig::new(33) };
            destroy(Realm::create(&rmm, OWNER, &config).expect("created"), []).expect("destroyed");
        });
    }
}

#[test]
fn wide_address_spaces_need_an_rmm_with_lpa2() {
    for abi in abis() {
        with_world_of(8 << 20, abi, |world| {
            let rmm = negotiate(&world, 0);
            let before = rmm.calls().total();
            for bits in [49, 52, 53] {
                let refused = Realm::create(&rmm, OWNER, &RealmConfig::new(bits)).err();
                assert!(matches!(refused, Some(Error::Invalid(_))), "{bits} bits: {refused:?}");
            }
            assert_eq!(rmm.calls().total(), before, "what the RMM would refuse is not sent");
        });
    }
}
