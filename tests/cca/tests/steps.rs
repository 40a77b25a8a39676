//! Realms built, filled, changed and destroyed in steps: each step makes a bounded number of calls, and the work may
//! be broken off between any two.

use std::cell::Cell;

use cca_host::plan::{BuildPlan, Builder, IpaRange, PageSource, Segment};
use cca_host::{
    Config, Dismantling, Entry, ExitCause, FaultIn, Fill, GicImage, Realm, RealmConfig, RecConfig,
    Resume, RipasProgress, Rmm,
};
use cca_tests::{Rig, World, abis, destroy, with_world_of};
use mm::ledger::{Owner, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use rmm::Abi;

const OWNER: Owner = Owner::vm(1);
const RAM: u64 = 0x4000_0000;
const BLOCK: u64 = 2 << 20;
const BLOCK_PAGES: u64 = BLOCK / PAGE_SIZE;

/// Calls that a step may make beyond its budget to finish what it has begun: a REC and its 16 granules, each
/// delegated or undelegated alone, with the calls of the operation that it is in 2.0; or the tables of one page.
const OVERRUN: u64 = 24;

struct Pages(PhysAddr);

impl PageSource for Pages {
    fn page(&self, _: usize, page: u64) -> PhysAddr {
        PhysAddr::new(self.0.get() + page % 4 * PAGE_SIZE)
    }
}

/// RAM whose blocks have an image at their start, in their middle, and not at all; two RECs.
const PLAN: BuildPlan<'static> = BuildPlan {
    config: RealmConfig::new(33),
    ram: &[
        IpaRange { base: Ipa::new(RAM), top: Ipa::new(RAM + 3 * BLOCK) },
        IpaRange { base: Ipa::new(RAM + 4 * BLOCK), top: Ipa::new(RAM + 5 * BLOCK + PAGE_SIZE) },
    ],
    segments: &[
        Segment { ipa: Ipa::new(RAM), pages: 3, measured: true },
        Segment { ipa: Ipa::new(RAM + BLOCK + 7 * PAGE_SIZE), pages: 600, measured: false },
    ],
    eager: true,
    recs: &[
        RecConfig { pc: RAM, gprs: [0; 8], runnable: true },
        RecConfig { pc: RAM, gprs: [0; 8], runnable: false },
    ],
};

fn negotiate<'w>(world: &World<'w>, pool_limit: usize) -> Rmm<'w, &'w Rig> {
    Rmm::negotiate(world.rig, world.ledger, Config { pool_limit }).expect("an RMM is there")
}

/// Makes one step and checks how many calls it takes.
fn step<R>(rmm: &Rmm<'_, &Rig>, budget: u64, most: &Cell<u64>, work: impl FnOnce() -> R) -> R {
    let before = rmm.calls().total();
    let result = work();
    let calls = rmm.calls().total() - before;
    assert!(calls <= budget + OVERRUN, "{calls} calls in a step of {budget}");
    most.set(most.get().max(calls));
    result
}

/// Destroys a realm step by step.
fn dismantle(rmm: &Rmm<'_, &Rig>, mut realm: Dismantling<'_, &Rig>, budget: u64, most: &Cell<u64>) {
    for _ in 0..100_000 {
        if let Some(report) = step(rmm, budget, most, || realm.step(budget)).expect("no refusal") {
            assert_eq!((report.returned.lost, report.stranded), (0, 0));
            return;
        }
    }
    panic!("the destruction does not come to an end");
}

#[test]
fn an_eager_realm_is_built_and_destroyed_in_steps() {
    for abi in abis() {
        for budget in [1, 64] {
            with_world_of(24 << 20, abi, |world| {
                let rmm = negotiate(&world, 16);
                let image = world.pages(2, Use::Bundle, 1);
                let start = world.ledger.census();
                let most = Cell::new(0);
                let mut builder = Builder::new(&rmm, OWNER, &PLAN).expect("created");
                let pages = Pages(image.base());
                while !step(&rmm, budget, &most, || builder.advance(&PLAN, &pages, budget))
                    .expect("no refusal")
                {}
                builder.activate().expect("not refused");
                let (mut realm, recs) = builder.finish().expect("active");
                let at = |addr| Ipa::new(RAM + addr);
                // Nothing is missing, and blocks are whole wherever alignment allows.
                for (addr, level) in
                    [(0, 2), (BLOCK, 2), (2 * BLOCK, 2), (4 * BLOCK, 2), (5 * BLOCK, 3)]
                {
                    let entry = realm.read_entry(at(addr)).expect("read");
                    assert_eq!(
                        (entry.state, entry.level),
                        (cca_host::EntryState::Assigned, level),
                        "{addr:#x}"
                    );
                }
                let mapped = world.rig.machine.census().data;
                assert_eq!(mapped, 4 * BLOCK_PAGES + 1);
                dismantle(&rmm, realm.dismantle(recs), budget, &most);
                rmm.drain_pool();
                assert_eq!(world.ledger.census(), start);
                println!("{abi:?}: at most {} calls in a step of {budget}", most.get());
            });
        }
    }
}

#[test]
fn construction_can_be_broken_off_after_any_step() {
    for abi in [Abi::V1_0, Abi::V2_0(rmm::Rmi2::HEAD)] {
        with_world_of(24 << 20, abi, |world| {
            let rmm = negotiate(&world, 4);
            let image = world.pages(2, Use::Bundle, 1);
            let start = world.ledger.census();
            let (budget, most) = (97, Cell::new(0));
            for steps in 0.. {
                let mut builder = Builder::new(&rmm, OWNER, &PLAN).expect("created");
                let pages = Pages(image.base());
                let done =
                    (0..steps).any(|_| builder.advance(&PLAN, &pages, budget).expect("no refusal"));
                dismantle(&rmm, builder.dismantle(), budget, &most);
                rmm.drain_pool();
                assert_eq!(world.ledger.census(), start, "{steps} steps");
                if done {
                    assert!(steps > 10);
                    break;
                }
            }
        });
    }
}

#[test]
fn memory_that_runs_out_while_a_realm_is_filled_comes_back() {
    for abi in abis() {
        with_world_of(6 << 20, abi, |world| {
            let rmm = negotiate(&world, 4);
            let image = world.pages(2, Use::Bundle, 1);
            let start = world.ledger.census();
            let mut builder = Builder::new(&rmm, OWNER, &PLAN).expect("created");
            let pages = Pages(image.base());
            let error = loop {
                match builder.advance(&PLAN, &pages, 64) {
                    Ok(done) => assert!(!done, "there is not enough memory"),
                    Err(failure) => break failure.error,
                }
            };
            assert!(matches!(error, cca_host::Error::OutOfMemory(_)), "{error}");
            dismantle(&rmm, builder.dismantle(), 64, &Cell::new(0));
            rmm.drain_pool();
            assert_eq!(world.ledger.census(), start);
        });
    }
}

#[test]
fn faults_and_conversions_leave_time_for_others() {
    for abi in abis() {
        with_world_of(24 << 20, abi, |world| {
            let rmm = negotiate(&world, 0);
            let start = world.ledger.census();
            world.rig.machine.set_guest(|cpu| {
                assert!(cpu.set_ripas(rmm::Ipa(RAM), rmm::Ipa(RAM + 2 * BLOCK), 0, 0)?);
                assert!(cpu.set_ripas(rmm::Ipa(RAM), rmm::Ipa(RAM + 2 * BLOCK), 1, 0)?);
                cpu.system_off()
            });
            let config = RealmConfig { fill: Fill::Block, ..RealmConfig::new(33) };
            let mut realm = Realm::create(&rmm, OWNER, &config).expect("created");
            realm.init_ripas(Ipa::new(RAM), Ipa::new(RAM + 2 * BLOCK)).expect("RAM");
            let rec = RecConfig { pc: RAM, gprs: [0; 8], runnable: true };
            let mut rec = realm.create_rec(&rec).expect("a REC");
            let mut realm = realm.activate().expect("active");
            let (budget, most) = (64, Cell::new(0));
            // Two RECs fault in different blocks, in turns.
            let mut waiting = vec![RAM + 5 * PAGE_SIZE, RAM + BLOCK + 9 * PAGE_SIZE];
            while !waiting.is_empty() {
                waiting.retain(|fault| {
                    let answer =
                        step(&rmm, budget, &most, || realm.fault_in(Ipa::new(*fault), budget));
                    matches!(answer, Ok(FaultIn::Underway))
                });
            }
            assert_eq!(world.rig.machine.census().data, 2 * BLOCK_PAGES);
            let mut resume = Resume::Plain;
            loop {
                let exit =
                    rec.enter(Entry::new(resume), &mut GicImage::default()).expect("entered");
                let ExitCause::RipasChange(_) = exit.cause else { break };
                let mut steps = 0;
                while step(&rmm, budget, &most, || realm.change_ripas(&mut rec, budget))
                    .expect("changed")
                    == RipasProgress::Underway
                {
                    steps += 1;
                    assert!(steps < 1000, "the change does not come to an end");
                }
                resume = Resume::RipasAccept;
            }
            assert_eq!(world.rig.machine.census().data, 0);
            destroy(realm, [rec]).expect("destroyed");
            assert_eq!(world.ledger.census(), start);
            println!("{abi:?}: at most {} calls in a step of {budget}", most.get());
        });
    }
}
