//! RMI calls to build, fill and take apart a realm with 256 MiB, against the fewest that the ABI allows.

use cca_host::{Config, Realm, RealmConfig, RecConfig, Rmm};
use cca_tests::{destroy, with_world_of};
use mm::ledger::Owner;
use mm::{Ipa, PAGE_SIZE};
use rmm::{Abi, Rmi2};

const RAM: u64 = 0x4000_0000;
const BYTES: u64 = 256 << 20;
const BLOCK: u64 = 2 << 20;

/// Calls by phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Calls {
    build: u64,
    fill: u64,
    destroy: u64,
}

fn measure(abi: Abi) -> Calls {
    with_world_of(320 << 20, abi, |world| {
        let rmm = Rmm::negotiate(world.rig, world.ledger, Config { pool_limit: 16 }).expect("RMM");
        let start = world.ledger.census();
        let mut before = rmm.calls().total();
        let mut phase = || {
            let calls = rmm.calls().total() - before;
            before += calls;
            calls
        };
        let (base, top) = (Ipa::new(RAM), Ipa::new(RAM + BYTES));
        let mut realm = Realm::create(&rmm, Owner::vm(1), &RealmConfig::new(33)).expect("created");
        realm.init_ripas(base, top).expect("RAM");
        let rec = realm.create_rec(&RecConfig::default()).expect("a REC");
        let realm_and_rec = phase();
        let mut realm = realm;
        assert_eq!(realm.map_private(base, top), Ok(BYTES / PAGE_SIZE));
        let fill = phase();
        let realm = realm.activate().expect("active");
        let build = realm_and_rec + phase();
        destroy(realm, [rec]).expect("destroyed");
        rmm.drain_pool();
        assert_eq!(world.ledger.census(), start);
        Calls { build, fill, destroy: phase() }
    })
}

/// The fewest calls: each granule that the RMM gets is delegated and undelegated, in calls of `per_delegation`
/// granules, and each object is made and destroyed by a call.
fn fewest(abi: Abi) -> Calls {
    let pages = BYTES / PAGE_SIZE;
    let blocks = BYTES / BLOCK;
    // RD, root table, level-2 table, REC, each with its delegation; RIPAS; activation.
    let objects = 2 + 1 + 2 + 2 + 1 + 1;
    // REC, level-2 table, realm, and what comes back: RD, root table, level-2 table, REC.
    let dismantling = 3 + 4;
    match abi {
        // A level-3 table per block, created and folded, and the other way round.
        Abi::V1_0 => Calls {
            build: objects + 1 + 16,
            fill: 2 * pages + 2 * blocks,
            destroy: 2 * pages + 2 * blocks + dismantling + 16,
        },
        // Donation of 16 granules and the end of the operation, and the other way round; termination.
        Abi::V2_0(rmi2) => {
            let granules = |count| if rmi2.whole_ranges { 1 } else { count };
            Calls {
                build: objects + granules(16) + 2,
                fill: granules(pages) + 1,
                destroy: granules(pages) + 1 + granules(16) + 2 + dismantling + 1,
            }
        }
    }
}

#[test]
fn calls_stay_near_the_fewest_that_the_abi_allows() {
    let later = Rmi2 { whole_ranges: true, ..Rmi2::HEAD };
    for (name, abi) in [
        ("1.0", Abi::V1_0),
        ("2.0, a granule per delegation", Abi::V2_0(Rmi2::HEAD)),
        ("2.0, a range per delegation", Abi::V2_0(later)),
        ("2.0, a range per delegation, which pauses", Abi::V2_0(Rmi2 { yields: true, ..later })),
    ] {
        let (calls, fewest) = (measure(abi), fewest(abi));
        println!("{name}: {calls:?}, fewest {fewest:?}");
        // Walks that find a table missing, and sweeps that find the end, cost a few calls whatever the size.
        const FIXED: u64 = 12;
        for (used, least) in [
            (calls.build, fewest.build),
            (calls.fill, fewest.fill),
            (calls.destroy, fewest.destroy),
        ] {
            assert!(used * 100 <= least * 105 + FIXED * 100, "{name}: {used} for {least}");
        }
    }
}
