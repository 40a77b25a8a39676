//! Each call of a life cycle refused in turn with each status: no panic, no endless loop, an error that
//! names the call, and every granule accounted for afterwards.

use cca_host::plan::{BuildPlan, Builder, IpaRange, PageSource, Segment};
use cca_host::{Command, Config, Error, Realm, RealmConfig, RecConfig, Rmm};
use cca_tests::{Refusal, Rig, RunError, Services, World, destroy, run_to_end, with_world_of};
use mm::ledger::{Census, Owner, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use rmm::host::{Cpu, Stop};
use rmm::{Abi, Rmi2};

const OWNER: Owner = Owner::vm(1);
const RAM: u64 = 0x4000_0000;
const BLOCK: u64 = 2 << 20;

/// Nothing has changed, repeat the call.
const BUSY: u64 = 10;
/// Nothing has changed, repeat the call once another operation is over.
const BLOCKED: u64 = 14;

/// A stateful operation has begun.
const INCOMPLETE: u64 = 13;

/// Result words: each status of section 1.4 of the reference, with the indices that occur, and some that
/// no version defines.
fn words() -> Vec<u64> {
    let mut words: Vec<u64> = (1..=16).filter(|status| !matches!(status, 2 | 4)).collect();
    words.extend([2, 0x102, 0x202]);
    words.extend([0x004, 0x104, 0x204, 0x304, 0x404, 0xff04]);
    words.extend([0x10d, 0x20d, 0x30d, 0x50d, 17, 0xff, 0x1_0000, u64::MAX - 1, u64::MAX]);
    words
}

struct Pages(PhysAddr);

impl PageSource for Pages {
    fn page(&self, _: usize, page: u64) -> PhysAddr {
        PhysAddr::new(self.0.get() + page * PAGE_SIZE)
    }
}

/// What the realm does: faults, a device, shared memory, a host call, conversions, a second REC.
fn guest(cpu: &mut Cpu) -> Result<(), Stop> {
    let shared = 1u64 << 32;
    let at = |addr| rmm::Ipa(addr);
    if cpu.index() != 0 {
        cpu.load(at(RAM + 0x2000), 8)?;
        return cpu.system_off();
    }
    cpu.store(at(RAM + 0x3000), 8, 1)?;
    cpu.load(at(shared | 0x900_0000), 4)?;
    cpu.touch(at(shared | 0x4000_5000))?;
    cpu.host_call(at(RAM + 0x1000), 42, [5; 31])?;
    cpu.set_ripas(at(RAM + 0x3000), at(RAM + 0x5000), 0, 0)?;
    cpu.set_ripas(at(RAM + 0x3000), at(RAM + 0x5000), 1, 0)?;
    cpu.set_ripas(at(RAM + BLOCK), at(RAM + 2 * BLOCK), 0, 0)?;
    cpu.store(at(RAM + 0x3000), 8, 2)?;
    cpu.smc(rmm::abi::psci_fid::CPU_ON, [1, RAM, 0, 0])?;
    loop {
        cpu.wfi()?;
    }
}

/// What a life cycle came to.
#[derive(Debug)]
struct Life {
    errors: Vec<Error>,
    entries_refused: bool,
}

/// Builds, runs and destroys a realm, and gives the driver's pool back.
fn live(world: &World<'_>, rmm: &Rmm<'_, &Rig>, image: PhysAddr, shared: PhysAddr) -> Life {
    let mut life = Life { errors: Vec::new(), entries_refused: false };
    let plan = BuildPlan {
        config: RealmConfig::new(33),
        ram: &[IpaRange { base: Ipa::new(RAM), top: Ipa::new(RAM + 3 * BLOCK) }],
        segments: &[Segment { ipa: Ipa::new(RAM), pages: 2, measured: true }],
        eager: false,
        recs: &[
            RecConfig { pc: RAM, gprs: [0; 8], runnable: true },
            RecConfig { pc: RAM, gprs: [0; 8], runnable: false },
        ],
    };
    world.rig.machine.set_guest(guest);
    match Realm::build(rmm, OWNER, &plan, &Pages(image)) {
        Err(error) => life.errors.push(error.error),
        Ok((mut realm, mut recs)) => {
            let mut services = Services { shared_page: Some(shared), ..Services::default() };
            match run_to_end(&mut realm, &mut recs, &mut services) {
                Ok(_) => {}
                Err(RunError::Serve(error)) => life.errors.push(error),
                Err(RunError::Enter(_)) => life.entries_refused = true,
            }
            if let Err(error) = destroy(realm, recs) {
                life.errors.push(error);
            }
        }
    }
    rmm.drain_pool();
    life
}

/// Builds a realm whose RAM gets memory at once and destroys it, both in steps, and gives the driver's pool back.
fn live_in_steps(world: &World<'_>, rmm: &Rmm<'_, &Rig>, image: PhysAddr, _: PhysAddr) -> Life {
    let mut life = Life { errors: Vec::new(), entries_refused: false };
    let plan = BuildPlan {
        config: RealmConfig::new(33),
        ram: &[IpaRange { base: Ipa::new(RAM), top: Ipa::new(RAM + 10 * PAGE_SIZE) }],
        segments: &[Segment { ipa: Ipa::new(RAM + 2 * PAGE_SIZE), pages: 2, measured: false }],
        eager: true,
        recs: &[RecConfig { pc: RAM, gprs: [0; 8], runnable: true }],
    };
    match Builder::new(rmm, OWNER, &plan) {
        Err(error) => life.errors.push(error.error),
        Ok(mut builder) => {
            let built = loop {
                match builder.advance(&plan, &Pages(image), STEP) {
                    Ok(false) => {}
                    Ok(true) => break builder.activate(),
                    Err(error) => break Err(error),
                }
            };
            life.errors.extend(built.err().map(|error| error.error));
            let mut realm = builder.dismantle();
            let mut refused = 0;
            while refused < 4 {
                match realm.step(STEP) {
                    Ok(None) => {}
                    Ok(Some(_)) => break,
                    Err(error) => {
                        refused += 1;
                        life.errors.push(error);
                    }
                }
            }
        }
    }
    assert!(world.rig.calls() < 100_000, "an endless loop");
    rmm.drain_pool();
    life
}

/// Calls of a step.
const STEP: u64 = 5;

/// A life cycle whose calls are refused.
type LifeCycle = fn(&World<'_>, &Rmm<'_, &Rig>, PhysAddr, PhysAddr) -> Life;

/// What came of all cases of a test.
#[derive(Debug, Default)]
struct Totals {
    cases: u64,
    lost: u64,
    held: u64,
}

/// Refuses each call of the life cycle in turn with `word`.
fn refuse_each_call(live: LifeCycle, word: u64, abi: Abi, pool_limit: usize, totals: &mut Totals) {
    let mut call = 0;
    while let Some(next) = refuse_calls_from(call, live, word, abi, pool_limit, totals) {
        call = next;
    }
}

/// Refuses the calls from number `first` on a fresh machine, until a realm could not be destroyed or all
/// calls have been tried; returns where to go on.
fn refuse_calls_from(
    first: u64,
    live: LifeCycle,
    word: u64,
    abi: Abi,
    pool_limit: usize,
    totals: &mut Totals,
) -> Option<u64> {
    with_world_of(16 << 20, abi, |world| {
        let rmm = Rmm::negotiate(world.rig, world.ledger, Config { pool_limit }).expect("RMM");
        let image = world.pages(1, Use::Bundle, 1);
        let shared = world.pages(0, Use::Shared, 1);
        let start = world.ledger.census();
        world.rig.refuse(None);
        let life = live(&world, &rmm, image.base(), shared.base());
        assert!(life.errors.is_empty() && !life.entries_refused, "{life:?}");
        assert_eq!(world.ledger.census(), start);
        let calls = world.rig.calls();
        for call in first..calls {
            let answer = [word, 0, 0, 0, 0, 0, 0, 0];
            let before = world.ledger.census();
            world.rig.refuse(Some(Refusal { call, answer }));
            let life = live(&world, &rmm, image.base(), shared.base());
            // Granules lost before can make a life shorter: then try on a fresh machine.
            let Some(fid) = world.rig.refused() else {
                return (call > first).then_some(call);
            };
            world.rig.refuse(None);
            let case = format!("{abi:?}: call {call} ({fid:#x}) answered {word:#x}: {life:?}");
            let after = world.ledger.census();
            let held = after.held_by_rmm() - before.held_by_rmm();
            totals.cases += 1;
            totals.lost += after.lost() - before.lost();
            totals.held += held;
            check(&case, word, fid, &life, &before, &after);
            if held > 0 {
                return Some(call + 1);
            }
        }
        None
    })
}

/// Whether a call is a step of a stateful operation. One that refuses such a step leaves the protocol and
/// keeps what the operation has.
fn is_step(fid: u64) -> bool {
    [Command::OpContinue, Command::OpMemDonate, Command::OpMemReclaim]
        .iter()
        .any(|command| command.fid() == fid)
}

/// Checks one case.
fn check(case: &str, word: u64, fid: u64, life: &Life, before: &Census, after: &Census) {
    assert_eq!(after.total(), before.total(), "{case}");
    let newly_lost = after.lost() - before.lost();
    let incomplete = word & 0xff == INCOMPLETE;
    if is_step(fid) || incomplete {
        // Each granule is free, or known to be held by the RMM, or the run page of a REC that it holds.
        let missing = before.free() - after.free();
        let held = after.in_realm_world() - before.in_realm_world();
        assert!((held..=held + 2).contains(&missing), "{case}: {after}");
    } else {
        let undelegation = [Command::GranuleUndelegate, Command::GranuleRangeUndelegate];
        let refused = undelegation.iter().any(|command| command.fid() == fid);
        assert!(newly_lost <= u64::from(refused), "{case}");
        assert_eq!(after.free() + newly_lost, before.free(), "{case}: {after}");
        assert_eq!(after.held_by_rmm(), before.held_by_rmm(), "{case}: {after}");
    }
    if matches!(word, BUSY | BLOCKED) {
        assert!(life.errors.is_empty() && !life.entries_refused, "{case}");
    }
    // ERROR_RTT and INCOMPLETE steer what is called next: a false one shows only in the next answer. A
    // refused step of an operation is an error of the operation.
    let steers = word & 0xff == 4 || incomplete || is_step(fid);
    let named =
        life.errors.iter().all(|error| error.command().is_none_or(|command| command.fid() == fid));
    assert!(named || steers, "{case}");
}

fn refuse_everything(live: LifeCycle, abi: Abi, pool_limits: &[usize]) {
    let mut totals = Totals::default();
    for &pool_limit in pool_limits {
        for word in words() {
            refuse_each_call(live, word, abi, pool_limit, &mut totals);
        }
    }
    let Totals { cases, lost, held } = totals;
    println!(
        "{abi:?}: {cases} refused calls survived, {lost} granules lost to refused undelegations, {held} \
         kept by operations that were not allowed to end"
    );
}

#[test]
fn every_refusal_of_1_0_is_survived_and_accounted_for() {
    refuse_everything(live, Abi::V1_0, &[0, 4]);
}

#[test]
fn every_refusal_of_2_0_is_survived_and_accounted_for() {
    refuse_everything(live, Abi::V2_0(Rmi2::HEAD), &[0]);
}

#[test]
fn every_refusal_of_a_later_2_0_is_survived_and_accounted_for() {
    refuse_everything(live, Abi::V2_0(Rmi2::EVERYTHING), &[4]);
}

#[test]
fn every_refusal_of_a_step_is_survived_and_accounted_for() {
    for abi in [Abi::V1_0, Abi::V2_0(Rmi2::HEAD)] {
        refuse_everything(live_in_steps, abi, &[0]);
    }
}
