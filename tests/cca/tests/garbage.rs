//! An RMM that answers garbage: the driver neither panics nor hangs, writes only to its own pages, and the
//! ledger still accounts for each granule.
//!
//! The crate `fuzz` says how to run this for longer.

use std::cell::{Cell, RefCell};

use cca_host::plan::{BuildPlan, IpaRange, PageSource, Segment};
use cca_host::{
    AccessFault, Command, Conduit, Config, Host, HostMemory, Realm, RealmConfig, RecConfig, Rmm,
    SharedAttrs,
};
use cca_tests::{Rig, Services, abis, run_to_end, with_world_of};
use fuzz::Input;
use mm::ledger::{GranuleState, Ledger, Owner, PhysRange, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};

const RAM_BASE: u64 = 0x8000_0000;
const RAM_BYTES: u64 = 16 << 20;
const OWNER: Owner = Owner::vm(1);
const REALM_RAM: u64 = 0x4000_0000;

/// Most calls that one case may take. A legitimate life takes a few hundred; a sweep over what a realm can own
/// in this machine a few times its 4096 granules.
const MAX_CALLS: u64 = 400_000;

/// A number that might be taken for something: small, an address, a bit more than that, or anything.
fn word(garbage: &Input, near: u64) -> u64 {
    match garbage.below(8) {
        0 => 0,
        1 => garbage.below(8),
        2 => RAM_BASE + garbage.below(RAM_BYTES / PAGE_SIZE) * PAGE_SIZE,
        3 => near.wrapping_add(PAGE_SIZE << garbage.below(20)),
        4 => near,
        5 => garbage.below(1 << 40) & !(PAGE_SIZE - 1),
        6 => (RAM_BASE + garbage.below(RAM_BYTES)) | (1 << 2),
        _ => garbage.word(),
    }
}

/// The machine: memory of the normal world, and garbage.
struct Liar<'l> {
    garbage: &'l Input,
    ledger: &'l Ledger<'static>,
    memory: RefCell<Vec<u8>>,
    calls: Cell<u64>,
    v2: bool,
    /// Success in so many of 16 answers.
    honesty: u64,
}

impl Liar<'_> {
    /// A first answer that gets the driver past negotiation.
    fn negotiate(&self, fid: u64, args: [u64; 7]) -> Option<[u64; 8]> {
        let version = if self.v2 { 0x2_0000 } else { 0x1_0000 };
        if fid == Command::Version.fid() {
            let status = u64::from(args[0] != version);
            return Some([status, version, version, 0, 0, 0, 0, 0]);
        }
        if fid == Command::Features.fid() {
            let value =
                if args[0] == 1 { 1 | 7 << 3 } else { 48 | 5 << 14 | 3 << 20 | 3 << 32 | 15 << 34 };
            return Some([0, value, 0, 0, 0, 0, 0, 0]);
        }
        None
    }
}

impl Conduit for &Liar<'_> {
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        self.calls.set(self.calls.get() + 1);
        assert!(self.calls.get() < MAX_CALLS, "the driver does not come to an end");
        if let Some(answer) = self.negotiate(fid, args) {
            return answer;
        }
        if fid == Command::RecEnter.fid() {
            // The run page is the RMM's to write.
            let mut memory = self.memory.borrow_mut();
            let start = (args[1] - RAM_BASE) as usize + 0x800;
            for at in (start..start + 0x800).step_by(8) {
                let word = word(self.garbage, REALM_RAM).to_le_bytes();
                memory[at..at + 8].copy_from_slice(&word);
            }
            let reason = self.garbage.below(8).to_le_bytes();
            memory[start..start + 8].copy_from_slice(&reason);
        }
        let status = if self.garbage.below(16) < self.honesty {
            0
        } else {
            match self.garbage.below(4) {
                0 => self.garbage.below(18),
                1 => 4 | self.garbage.below(5) << 8,
                2 => 13 | self.garbage.below(8) << 8,
                _ => word(self.garbage, 0),
            }
        };
        let mut answer = [0; 8];
        answer[0] = status;
        for (index, register) in answer.iter_mut().enumerate().skip(1) {
            *register = word(self.garbage, args[index % 4]);
        }
        answer
    }
}

impl HostMemory for &Liar<'_> {
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault> {
        let start = addr.get().checked_sub(RAM_BASE).ok_or(AccessFault { addr })? as usize;
        let memory = self.memory.borrow();
        bytes.copy_from_slice(memory.get(start..start + bytes.len()).ok_or(AccessFault { addr })?);
        Ok(())
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        let state = self.ledger.state(addr);
        let own = matches!(state, Some(GranuleState::Ns { used_for: Use::Interface, .. }));
        assert!(own, "the driver writes to {addr}, which is {state:?}");
        assert!(addr.page_offset() + bytes.len() as u64 <= PAGE_SIZE, "an access crosses a page");
        let start = (addr.get() - RAM_BASE) as usize;
        self.memory.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

struct Pages(PhysAddr);

impl PageSource for Pages {
    fn page(&self, _: usize, _: u64) -> PhysAddr {
        self.0
    }
}

/// Builds, runs, changes and destroys a realm, whatever the RMM says.
fn exercise<H: Host>(rmm: &Rmm<'_, H>, source: PhysAddr) {
    let plan = BuildPlan {
        config: RealmConfig::new(33),
        ram: &[IpaRange { base: Ipa::new(REALM_RAM), top: Ipa::new(REALM_RAM + (4 << 20)) }],
        segments: &[Segment { ipa: Ipa::new(REALM_RAM), pages: 3, measured: true }],
        eager: false,
        recs: &[RecConfig { runnable: true, ..RecConfig::default() }, RecConfig::default()],
    };
    if let Ok((mut realm, mut recs)) = Realm::build(rmm, OWNER, &plan, &Pages(source)) {
        let mut services = Services { shared_page: Some(source), ..Services::default() };
        let _ = realm.map_private(Ipa::new(REALM_RAM), Ipa::new(REALM_RAM + (2 << 20)));
        let _ = run_to_end(&mut realm, &mut recs, &mut services);
        let attrs = SharedAttrs::NORMAL_RW;
        let _ = realm.map_shared(Ipa::new(REALM_RAM), source, PAGE_SIZE, attrs);
        let _ = realm.unmap_shared(Ipa::new(0), 4 << 20);
    }
}

/// One life of a realm under a lying RMM.
fn live(garbage: &Input) {
    let v2 = garbage.below(2) == 1;
    let honesty = 12 + garbage.below(5);
    let ram = [PhysRange::new(PhysAddr::new(RAM_BASE), PhysAddr::new(RAM_BASE + RAM_BYTES))];
    let limit = PhysAddr::new(1 << 32);
    let words = Ledger::metadata_words(&ram, limit).expect("layout");
    let ledger: &Ledger<'static> =
        Box::leak(Box::new(Ledger::new(&ram, limit, vec![0; words].leak()).expect("ledger")));
    let total = ledger.census().total();
    let source = ledger.alloc(0, Use::Bundle, Owner::vm(99)).expect("memory");
    let memory = RefCell::new(vec![0; RAM_BYTES as usize]);
    let liar = Liar { garbage, ledger, memory, calls: Cell::new(0), v2, honesty };
    let Ok(rmm) = Rmm::negotiate(&liar, ledger, Config { pool_limit: 4 }) else { return };
    exercise(&rmm, source.base());
    rmm.drain_pool();
    assert_eq!(ledger.census().total(), total);
}

/// The reference RMM, some of whose answers are replaced by garbage on the way.
struct Corrupted<'r> {
    rig: &'r Rig,
    garbage: &'r Input,
    /// One register of one in so many answers is replaced.
    rarity: u64,
}

impl Conduit for &Corrupted<'_> {
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        let mut answer = self.rig.call(fid, args);
        if self.garbage.below(self.rarity) == 0 {
            let register = self.garbage.index(4);
            answer[register] = if register == 0 && self.garbage.below(4) != 0 {
                self.garbage.below(18) | self.garbage.below(6) << 8
            } else {
                word(self.garbage, args[self.garbage.index(4)])
            };
        }
        answer
    }
}

impl HostMemory for &Corrupted<'_> {
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault> {
        self.rig.read(addr, bytes)
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        self.rig.write(addr, bytes)
    }
}

/// One life of a realm whose RMM's answers are corrupted now and then.
fn live_corrupted(garbage: &Input) {
    let abi = garbage.pick(&abis());
    let rarity = 5 << garbage.below(7);
    with_world_of(16 << 20, abi, |world| {
        let total = world.ledger.census().total();
        let source = world.pages(0, Use::Bundle, 1);
        world.rig.machine.set_guest(|cpu| {
            let at = |addr| rmm::Ipa(addr);
            cpu.store(at(REALM_RAM + 0x30_0000), 8, 1)?;
            cpu.touch(at(1 << 32 | REALM_RAM))?;
            cpu.load(at(1 << 32 | 0x900_0000), 4)?;
            cpu.set_ripas(at(REALM_RAM + 0x1000), at(REALM_RAM + 0x20_0000), 0, 0)?;
            cpu.system_off()
        });
        let corrupted = Corrupted { rig: world.rig, garbage, rarity };
        let config = Config { pool_limit: 4 };
        let Ok(rmm) = Rmm::negotiate(&corrupted, world.ledger, config) else { return };
        exercise(&rmm, source.base());
        rmm.drain_pool();
        assert_eq!(world.ledger.census().total(), total);
        let calls = rmm.calls().total();
        assert!(calls < MAX_CALLS, "{calls} calls");
    });
}

#[test]
fn fuzz_driver_under_garbage() {
    fuzz::run("driver under an RMM that answers garbage", live);
}

#[test]
fn fuzz_driver_under_corruption() {
    fuzz::run("driver under an RMM whose answers are corrupted", live_corrupted);
}
