//! Several cores build, fill and destroy realms over one ledger, one pool and one RMM, while another drains the
//! pool all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cca_host::{Config, Entry, ExitCause, GicImage, Realm, RealmConfig, RecConfig, Resume, Rmm};
use cca_tests::{BUDGET, Rig, abis, destroy, with_world_of};
use mm::Ipa;
use mm::ledger::Owner;

const RAM: u64 = 0x4000_0000;
const CORES: u16 = 3;
const ROUNDS: usize = 2;

/// One realm from creation to destruction, its REC run on another core than the realm is kept on.
fn live(rmm: &Rmm<'_, &Rig>, core: u16) {
    let config = RealmConfig { vmid: core + 1, ..RealmConfig::new(33) };
    let mut realm = Realm::create(rmm, Owner::vm(core + 1), &config).expect("created");
    realm.init_ripas(Ipa::new(RAM), Ipa::new(RAM + 0x40_0000)).expect("RAM");
    let rec = RecConfig { pc: RAM, gprs: [0; 8], runnable: true };
    let mut rec = realm.create_rec(&rec).expect("a REC");
    let mut realm = realm.activate().expect("active");
    thread::scope(|scope| {
        let runner = scope.spawn(|| {
            for _ in 0..8 {
                let entry = Entry::new(Resume::Plain);
                let exit = rec.enter(entry, &mut GicImage::default()).expect("entered");
                assert_eq!(exit.cause, ExitCause::Irq);
            }
        });
        for page in 0..24 {
            realm.fault_in(Ipa::new(RAM + page * 0x3000), BUDGET).expect("mapped");
        }
        runner.join().expect("ran");
    });
    let returned = destroy(realm, [rec]).expect("destroyed");
    assert_eq!(returned.lost, 0);
}

#[test]
fn realms_on_several_cores_share_ledger_and_pool() {
    for abi in abis() {
        with_world_of(16 << 20, abi, |world| {
            world.rig.machine.set_guest(|cpu| {
                loop {
                    cpu.interrupted()?;
                }
            });
            let rmm =
                Rmm::negotiate(world.rig, world.ledger, Config { pool_limit: 16 }).expect("RMM");
            let start = world.ledger.census();
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        rmm.drain_pool();
                        thread::sleep(Duration::from_millis(1));
                    }
                });
                let rmm = &rmm;
                let cores: Vec<_> = (0..CORES)
                    .map(|core| scope.spawn(move || (0..ROUNDS).for_each(|_| live(rmm, core))))
                    .collect();
                let outcomes: Vec<_> = cores.into_iter().map(|core| core.join()).collect();
                done.store(true, Ordering::Relaxed);
                assert!(outcomes.iter().all(Result::is_ok), "a core has failed");
            });
            rmm.drain_pool();
            assert_eq!(world.ledger.census(), start);
        });
    }
}
