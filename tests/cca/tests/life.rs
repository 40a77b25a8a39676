//! Life cycles of realms against the reference RMM.

use std::sync::mpsc::channel;

use cca_host::plan::{BuildPlan, IpaRange, PageSource, Segment};
use cca_host::{
    Command, Config, Error, FaultIn, Fill, HashAlgorithm, Invalid, NegotiationError, Realm,
    RealmConfig, RecConfig, Ripas, Rmm,
};
use cca_tests::{
    BUDGET, Outcome, Rig, Services, World, destroy, each_abi, run_to_end, with_world, with_world_of,
};
use mm::ledger::{Owner, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use rmm::Abi;
use rmm::host::Cpu;

const OWNER: Owner = Owner::vm(1);
const RAM: u64 = 0x4000_0000;
const BLOCK: u64 = 2 << 20;

struct Contiguous(PhysAddr);

impl PageSource for Contiguous {
    fn page(&self, segment: usize, page: u64) -> PhysAddr {
        assert_eq!(segment, 0);
        PhysAddr::new(self.0.get() + page * PAGE_SIZE)
    }
}

fn ipa(addr: u64) -> rmm::Ipa {
    rmm::Ipa(addr)
}

fn config() -> RealmConfig {
    RealmConfig { compute_rim: true, ..RealmConfig::new(33) }
}

fn negotiate<'w>(world: &World<'w>, pool_limit: usize) -> Rmm<'w, &'w Rig> {
    Rmm::negotiate(world.rig, world.ledger, Config { pool_limit }).expect("an RMM is there")
}

/// Builds a realm from `pages` pages of contents, runs it with `guest` and destroys it; checks that
/// everything came back.
fn live(
    world: &World<'_>,
    pages: u64,
    ram_bytes: u64,
    services: &mut Services,
    guest: impl Fn(&mut Cpu) -> Result<(), rmm::host::Stop> + Send + Sync + 'static,
) -> Outcome {
    let rmm = negotiate(world, 0);
    let order = pages.next_power_of_two().trailing_zeros() as u8;
    let image = world.pages(order, Use::Bundle, 1);
    let start = world.ledger.census();
    world.rig.machine.set_guest(guest);
    let recs = [
        RecConfig { pc: RAM, gprs: [7; 8], runnable: true },
        RecConfig { pc: RAM, gprs: [0; 8], runnable: false },
    ];
    let plan = BuildPlan {
        config: config(),
        ram: &[IpaRange { base: Ipa::new(RAM), top: Ipa::new(RAM + ram_bytes) }],
        segments: &[Segment { ipa: Ipa::new(RAM), pages, measured: true }],
        eager: false,
        recs: &recs,
    };
    let (mut realm, mut recs) =
        Realm::build(&rmm, OWNER, &plan, &Contiguous(image.base())).expect("built");
    let rim = plan
        .rim(world.abi == Abi::V1_0, |_, page, buffer| {
            let at = image.base().get() + page * PAGE_SIZE;
            world.rig.machine.read(rmm::Pa(at), buffer).expect("normal memory");
            Ok::<(), cca_host::Error>(())
        })
        .expect("planned");
    assert_eq!(realm.rim(), Some(rim));
    let outcome = run_to_end(&mut realm, &mut recs, services).expect("runs");
    let returned = destroy(realm, recs).expect("destroyed");
    assert_eq!(returned.lost, 0);
    assert_eq!(world.ledger.census(), start, "granules are missing");
    let census = world.rig.machine.census();
    assert_eq!(census.undelegated, world.rig.machine.ram().size / PAGE_SIZE);
    println!("{}", rmm.calls());
    world.ledger.free(image);
    outcome
}

#[test]
fn negotiation_finds_the_reference_rmm() {
    with_world(|world| {
        let rmm = negotiate(&world, 0);
        let printed = rmm.capabilities().to_string();
        assert!(printed.starts_with("RMI 1.0 (offers 1.0 to 1.0), 4 KiB granules"), "{printed}");
    });
}

#[test]
fn without_an_rmm_the_reason_is_said() {
    struct Nothing;
    impl cca_host::Conduit for Nothing {
        fn call(&self, _: u64, _: [u64; 7]) -> [u64; 8] {
            [u64::MAX; 8]
        }
    }
    impl cca_host::HostMemory for Nothing {
        fn read(&self, addr: PhysAddr, _: &mut [u8]) -> Result<(), cca_host::AccessFault> {
            Err(cca_host::AccessFault { addr })
        }
        fn write(&self, addr: PhysAddr, _: &[u8]) -> Result<(), cca_host::AccessFault> {
            Err(cca_host::AccessFault { addr })
        }
    }
    with_world(|world| {
        let error = Rmm::negotiate(Nothing, world.ledger, Config::default()).err();
        assert_eq!(error, Some(NegotiationError::NoRmm));
    });
}

#[test]
fn a_realm_that_switches_itself_off() {
    each_abi(|world| {
        let mut services = Services::default();
        let outcome = live(&world, 3, BLOCK, &mut services, |cpu| cpu.system_off());
        assert_eq!(outcome, Outcome::Off);
    });
}

/// Every hash that the RMM offers; RMI 1.0 has no SHA-384.
#[test]
fn the_rim_that_the_realm_reads_is_the_planned_one() {
    for hash in [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512] {
        each_abi(|world| reads_the_planned_rim(&world, hash));
    }
}

fn reads_the_planned_rim(world: &World<'_>, hash: HashAlgorithm) {
    let (sender, receiver) = channel();
    let mut services = Services::default();
    let image = world.pages(2, Use::Bundle, 1);
    let plan = BuildPlan {
        config: RealmConfig { hash, ..config() },
        // Edges that need granules, blocks, and one more range.
        ram: &[
            IpaRange { base: Ipa::new(RAM), top: Ipa::new(RAM + BLOCK) },
            IpaRange {
                base: Ipa::new(RAM + 2 * BLOCK - 2 * PAGE_SIZE),
                top: Ipa::new(RAM + 4 * BLOCK + PAGE_SIZE),
            },
        ],
        segments: &[
            Segment { ipa: Ipa::new(RAM), pages: 3, measured: true },
            Segment { ipa: Ipa::new(RAM + 3 * BLOCK), pages: 2, measured: false },
        ],
        eager: false,
        recs: &[
            RecConfig { pc: RAM, gprs: [1, 2, 3, 4, 5, 6, 7, 8], runnable: true },
            RecConfig::default(),
        ],
    };
    struct Pages(PhysAddr);
    impl PageSource for Pages {
        fn page(&self, _: usize, page: u64) -> PhysAddr {
            PhysAddr::new(self.0.get() + page * PAGE_SIZE)
        }
    }
    let rim = plan
        .rim(world.abi == Abi::V1_0, |_, page, buffer| {
            let at = image.base().get() + page * PAGE_SIZE;
            world.rig.machine.read(rmm::Pa(at), buffer).expect("normal memory");
            Ok::<(), cca_host::Error>(())
        })
        .expect("planned");
    world.rig.machine.set_guest(move |cpu| {
        let read = cpu.smc(rmm::abi::rsi_fid::MEASUREMENT_READ, [0; 4])?;
        sender.send(read).expect("the test waits");
        cpu.system_off()
    });
    let rmm = negotiate(world, 0);
    let built = Realm::build(&rmm, OWNER, &plan, &Pages(image.base()));
    if hash == HashAlgorithm::Sha384 && world.abi == Abi::V1_0 {
        let error = built.err().map(|failure| failure.error);
        assert_eq!(error, Some(Error::Invalid(Invalid::Hash(hash))));
        return;
    }
    let (mut realm, mut recs) = built.expect("built");
    run_to_end(&mut realm, &mut recs, &mut services).expect("runs");
    let registers = receiver.recv().expect("the realm has sent it");
    let read: Vec<u8> = registers[1..9].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(registers[0], 0);
    let (digest, padding) = read.split_at(hash.digest_len());
    assert_eq!(digest, rim.as_bytes());
    assert!(padding.iter().all(|byte| *byte == 0));
    destroy(realm, recs).expect("destroyed");
}

#[test]
fn faults_devices_host_calls_and_conversions() {
    each_abi(|world| {
        let page = world.pages(0, Use::Shared, 9);
        let mut services =
            Services { device: 0x1234_5678, shared_page: Some(page.base()), ..Services::default() };
        let outcome = live(&world, 4, 2 * BLOCK, &mut services, |cpu| {
            let shared = 1u64 << 32;
            // Memory that was only promised.
            cpu.store(ipa(RAM + 0x10_0000), 8, 0xdead_beef)?;
            assert_eq!(cpu.load(ipa(RAM + 0x10_0000), 8)?, 0xdead_beef);
            cpu.store(ipa(RAM + BLOCK + 8), 4, 1)?;
            // A device.
            assert_eq!(cpu.load(ipa(shared | 0x900_0018), 4)?, 0x1234_5678);
            cpu.store(ipa(shared | 0x900_0000), 1, u64::from(b'x'))?;
            // Shared memory by touching it.
            cpu.touch(ipa(shared | (RAM + 0x5000)))?;
            let first = cpu.load(ipa(shared | (RAM + 0x5000)), 1)?;
            assert_eq!(first, 9);
            // A host call.
            let (status, results) = cpu.host_call(ipa(RAM + 0x1000), 42, [5; 31])?;
            assert_eq!((status, results), (0, [6; 31]));
            // Give memory away and take it back.
            assert!(cpu.set_ripas(ipa(RAM + BLOCK), ipa(RAM + 2 * BLOCK), 0, 0)?);
            assert!(cpu.load(ipa(RAM + BLOCK + 8), 4).is_err());
            assert!(cpu.set_ripas(ipa(RAM + BLOCK), ipa(RAM + 2 * BLOCK), 1, 0)?);
            assert_eq!(cpu.load(ipa(RAM + BLOCK + 8), 4)?, 0);
            cpu.wfi()?;
            cpu.system_off()
        });
        assert_eq!(outcome, Outcome::Off);
        assert_eq!(services.stores, [(0x900_0000, u64::from(b'x'))]);
        assert_eq!(services.host_calls, [42]);
        assert_eq!(services.faults, 3);
    });
}

#[test]
fn the_second_rec_is_switched_on_by_the_first() {
    each_abi(|world| {
        let outcome = live(&world, 2, BLOCK, &mut Services::default(), |cpu| {
            if cpu.index() == 0 {
                let args = [1, RAM + 0x100, 77, 0];
                assert_eq!(cpu.smc(rmm::abi::psci_fid::CPU_ON, args)?[0], 0);
                assert_eq!(cpu.smc(rmm::abi::psci_fid::CPU_ON, args)?[0] as i64, -4);
                loop {
                    cpu.wfi()?;
                }
            }
            assert_eq!(cpu.entry(), (RAM + 0x100, 77));
            cpu.system_off()
        });
        assert_eq!(outcome, Outcome::Off);
    });
}

#[test]
fn a_refused_conversion_is_told_to_the_realm() {
    each_abi(|world| {
        let mut services = Services { reject_ripas: true, ..Services::default() };
        let outcome = live(&world, 2, BLOCK, &mut services, |cpu| {
            assert!(cpu.set_ripas(ipa(RAM), ipa(RAM + 0x1000), 0, 0).is_ok());
            assert!(!cpu.set_ripas(ipa(RAM + BLOCK), ipa(RAM + 2 * BLOCK), 1, 0)?);
            cpu.system_off()
        });
        assert_eq!(outcome, Outcome::Off);
    });
}

#[test]
fn whole_blocks_are_folded_and_come_back() {
    each_abi(|world| {
        let mut services = Services::default();
        let outcome = live(&world, 600, 2 * BLOCK, &mut services, |cpu| {
            // Empty one page out of the folded block, and a range that ends inside it.
            assert!(cpu.set_ripas(ipa(RAM + 0x3000), ipa(RAM + 0x4000), 0, 0)?);
            assert!(cpu.load(ipa(RAM + 0x3000), 8).is_err());
            assert!(cpu.load(ipa(RAM + 0x4000), 8).is_ok());
            cpu.system_off()
        });
        assert_eq!(outcome, Outcome::Off);
    });
}

#[test]
fn eager_memory_costs_two_calls_per_page_and_little_more() {
    with_world_of(32 << 20, Abi::V1_0, |world| {
        let rmm = negotiate(&world, 8);
        let start = world.ledger.census();
        let mut realm = Realm::create(&rmm, OWNER, &config()).expect("created");
        let (base, top) = (Ipa::new(RAM), Ipa::new(RAM + 4 * BLOCK));
        realm.init_ripas(base, top).expect("RAM");
        let before = rmm.calls().total();
        let pages = realm.map_private(base, top).expect("mapped");
        let build = rmm.calls().total() - before;
        assert_eq!(pages, 4 * 512);
        assert_eq!(rmm.calls().of(Command::RttFold), 4);
        let entry = realm.read_entry(Ipa::new(RAM + BLOCK + 0x1000)).expect("read");
        assert_eq!((entry.level, entry.ripas), (2, Ripas::Ram));
        assert!(build * 100 < 2 * pages * 105, "{build} calls for {pages} pages");
        let before = rmm.calls().total();
        destroy(realm, []).expect("destroyed");
        rmm.drain_pool();
        let end = rmm.calls().total() - before;
        assert!(end * 100 < 2 * pages * 105, "{end} calls for {pages} pages");
        assert_eq!(world.ledger.census(), start);
    });
}

#[test]
fn a_fault_can_bring_in_a_whole_block() {
    each_abi(|world| {
        let rmm = negotiate(&world, 0);
        let config = RealmConfig { fill: Fill::Block, ..config() };
        let mut realm = Realm::create(&rmm, OWNER, &config).expect("created");
        realm.init_ripas(Ipa::new(RAM), Ipa::new(RAM + BLOCK)).expect("RAM");
        let fault = Ipa::new(RAM + 0x5000);
        // In parts that leave time for others.
        let mut parts = 0;
        while realm.fault_in(fault, BUDGET) == Ok(FaultIn::Underway) {
            parts += 1;
        }
        assert!(parts < 40, "{parts} parts");
        assert_eq!(realm.read_entry(fault).map(|entry| entry.level), Ok(2), "one block");
        assert_eq!(realm.fault_in(fault, BUDGET), Ok(FaultIn::AlreadyMapped));
        for _ in 0..100 {
            realm.fault_in(fault, BUDGET).expect("answered");
        }
        assert_eq!(realm.fault_in(fault, BUDGET), Ok(FaultIn::Livelock));
        // Given up by another REC meanwhile, or an RMM that does not tell the realm.
        let empty = Ipa::new(RAM + BLOCK);
        assert_eq!(realm.fault_in(empty, BUDGET), Ok(FaultIn::GivenUp));
        for _ in 0..100 {
            realm.fault_in(empty, BUDGET).expect("answered");
        }
        assert_eq!(realm.fault_in(empty, BUDGET), Ok(FaultIn::Livelock));
        destroy(realm, []).expect("destroyed");
    });
}

#[test]
fn dropping_everything_at_any_point_gives_everything_back() {
    each_abi(|world| {
        let rmm = negotiate(&world, 0);
        let start = world.ledger.census();
        let source = world.pages(0, Use::Bundle, 3);
        for step in 0..6 {
            let mut realm = Realm::create(&rmm, OWNER, &config()).expect("created");
            if step > 0 {
                realm.init_ripas(Ipa::new(RAM), Ipa::new(RAM + BLOCK)).expect("RAM");
            }
            if step > 1 {
                realm.populate(Ipa::new(RAM), 1, true, |_| source.base()).expect("mapped");
            }
            let rec = (step > 2).then(|| realm.create_rec(&RecConfig::default()).expect("a REC"));
            if step > 3 {
                let attrs = cca_host::SharedAttrs::NORMAL_RW;
                let at = Ipa::new(RAM);
                realm.map_shared(at, source.base(), PAGE_SIZE, attrs).expect("shared");
            }
            if step > 4 {
                let realm = realm.activate().expect("activated");
                drop(rec);
                drop(realm);
            } else {
                drop(rec);
                drop(realm);
            }
        }
        world.ledger.free(source);
        assert_eq!(world.ledger.census(), start);
    });
}

#[test]
fn shared_memory_is_mapped_by_blocks_and_unmapped_in_parts() {
    each_abi(|world| {
        let rmm = negotiate(&world, 0);
        let attrs = cca_host::SharedAttrs::NORMAL_RW;
        let shared = world.pages(10, Use::Shared, 0);
        let start = world.ledger.census();
        let mut realm = Realm::create(&rmm, OWNER, &config()).expect("created");
        let at = Ipa::new(RAM);
        realm.map_shared(at, shared.base(), shared.bytes(), attrs).expect("mapped");
        if world.abi == Abi::V1_0 {
            assert_eq!(rmm.calls().of(Command::RttMapUnprotected), 3, "one failed, two blocks");
        }
        let other = PhysAddr::new(shared.base().get() + PAGE_SIZE);
        assert!(realm.map_shared(at, other, PAGE_SIZE, attrs).is_err());
        realm.unmap_shared(Ipa::new(RAM + 0x1000), PAGE_SIZE).expect("unmapped");
        realm
            .map_shared(Ipa::new(RAM + 0x1000), shared.base(), PAGE_SIZE, attrs)
            .expect("mapped again");
        realm.unmap_shared(Ipa::new(RAM - BLOCK), 8 * BLOCK).expect("unmapped");
        realm.map_shared(at, shared.base(), shared.bytes(), attrs).expect("mapped once more");
        destroy(realm, []).expect("destroyed");
        assert_eq!(world.ledger.census(), start);
        world.ledger.free(shared);
    });
}
