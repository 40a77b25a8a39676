//! The CCA driver on two cores: both take granules from the pool of delegated granules and give them to it,
//! and the pool is drained meanwhile.
//!
//! The driver, its pool and the ledger are the real ones, the RMM is the reference RMM in process. It
//! refuses a granule that is delegated twice or that is not delegated, so that a granule given to two cores,
//! or lost between them, fails the model.
#![cfg(loom)]

use std::sync::Arc as StdArc;

use cca_host::{AccessFault, Conduit, Config, HostMemory, Realm, RealmConfig, Rmm};
use cca_tests::{RAM_BASE, Rig, destroy};
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use mm::ledger::{Frames, Ledger, Owner, PhysRange, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use models::check;

/// RAM of the machine: a small one, since each interleaving has its own.
const RAM: u64 = 64 * PAGE_SIZE;
/// RAM of a realm.
const RAM_OF_REALM: Ipa = Ipa::new(0x4000_0000);

/// The machine, owned by the driver.
struct Host(StdArc<Rig>);

impl Conduit for Host {
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        (&*self.0).call(fid, args)
    }
}

impl HostMemory for Host {
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault> {
        (&*self.0).read(addr, bytes)
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        (&*self.0).write(addr, bytes)
    }
}

/// A driver whose pool keeps at most `pool_limit` granules, and how its ledger was at first.
fn driver(abi: rmm::Abi, pool_limit: usize) -> (Arc<Rmm<'static, Host>>, mm::ledger::Census) {
    let ram = [PhysRange::new(PhysAddr::new(RAM_BASE), PhysAddr::new(RAM_BASE + RAM))];
    let limit = PhysAddr::new(1 << 32);
    let words = Ledger::metadata_words(&ram, limit).unwrap();
    let ledger = Ledger::new(&ram, limit, vec![0; words].leak()).unwrap();
    let ledger: &Ledger<'static> = Box::leak(Box::new(ledger));
    let host = Host(StdArc::new(Rig::new(RAM, abi)));
    let rmm = Rmm::negotiate(host, ledger, Config { pool_limit }).expect("an RMM");
    // After that: with RMI 2.0 the driver keeps a page for itself.
    let census = ledger.census();
    (Arc::new(rmm), census)
}

/// Creates a realm with a page of memory, and destroys it.
fn live(rmm: &Rmm<'_, Host>, core: u16) {
    let config = RealmConfig { vmid: core + 1, ..RealmConfig::new(33) };
    let mut realm = Realm::create(rmm, Owner::vm(core + 1), &config).expect("created");
    realm.init_ripas(RAM_OF_REALM, Ipa::new(RAM_OF_REALM.get() + PAGE_SIZE)).expect("RAM");
    let mut realm = realm.activate().expect("active");
    realm.fault_in(RAM_OF_REALM, 64).expect("a page");
    assert_eq!(destroy(realm, []).expect("destroyed").lost, 0);
}

/// A thread with more stack than the model checker gives by itself, which the reference RMM needs.
fn on_core(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().stack_size(1 << 17).spawn(work).unwrap()
}

/// Runs `first` and `second` on two cores, with a driver that `prepare` has brought into a state, for both
/// versions of the RMI. Afterwards all granules must be free again.
fn on_two_cores<T: Copy + Send + Sync + 'static>(
    pool_limit: usize,
    prepare: fn(&Rmm<'static, Host>) -> Vec<Frames<Undelegated>>,
    argument: [T; 2],
    work: fn(&Rmm<'static, Host>, T),
) {
    for abi in [rmm::Abi::V1_0, rmm::Abi::V2_0(rmm::v2::Rmi2::HEAD)] {
        check(2, move || {
            let boot = on_core(move || {
                let (rmm, start) = driver(abi, pool_limit);
                let occupied = prepare(&rmm);
                let second = {
                    let rmm = Arc::clone(&rmm);
                    on_core(move || work(&rmm, argument[1]))
                };
                work(&rmm, argument[0]);
                second.join().unwrap();
                assert_eq!(rmm.drain_pool().lost, 0);
                occupied.into_iter().for_each(|frames| rmm.ledger().free(frames));
                assert_eq!(rmm.ledger().census(), start);
            });
            boot.join().unwrap();
        });
    }
}

#[test]
fn two_realms_share_the_pool() {
    on_two_cores(2, |_| Vec::new(), [0, 1], |rmm, core| live(rmm, core));
}

#[test]
fn the_pool_is_drained_under_a_realm() {
    on_two_cores(
        4,
        |_| Vec::new(),
        [false, true],
        |rmm, drains| match drains {
            false => live(rmm, 0),
            true => (0..2).for_each(|_| assert_eq!(rmm.drain_pool().lost, 0)),
        },
    );
}

#[test]
fn the_pool_is_limited_under_a_realm() {
    on_two_cores(
        4,
        |_| Vec::new(),
        [false, true],
        |rmm, limits| match limits {
            false => live(rmm, 0),
            true => {
                assert_eq!(rmm.set_pool_limit(1).lost, 0);
                // What a realm gives back meanwhile may exceed the new limit by what was on its way.
                assert!(rmm.pooled() <= 2);
            }
        },
    );
}

/// All memory is in use except for two granules, which the pool has: two cores that need one each get one
/// each.
#[test]
fn the_pool_is_a_reserve_for_two_cores() {
    fn occupy(rmm: &Rmm<'static, Host>) -> Vec<Frames<Undelegated>> {
        live(rmm, 0);
        assert_eq!(rmm.pooled(), 2);
        let mut occupied = Vec::new();
        for order in (0..7).rev() {
            while let Ok(frames) = rmm.ledger().alloc(order, Use::VmMemory, Owner::vm(9)) {
                occupied.push(frames);
            }
        }
        occupied
    }
    on_two_cores(2, occupy, [0, 1], |rmm, core| {
        let wanted = || rmm.ledger().alloc(0, Use::VmMemory, Owner::vm(core + 1));
        let frames = rmm.with_pool_as_reserve(wanted).expect("the pool has two granules");
        rmm.ledger().free(frames);
    });
}
