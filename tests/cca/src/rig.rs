//! The machine under the driver.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cca_host::{AccessFault, Conduit, HostMemory};
use mm::PhysAddr;
use mm::ledger::{Ledger, Owner, PhysRange, Undelegated, Use};
use rmm::Abi;
use rmm::host::{Config, Machine};
use rmm::v2::{Draft, Rmi2};
use rmm::{Pa, RamRange};

/// First address of the machine's RAM.
pub const RAM_BASE: u64 = 0x8000_0000;

/// A call to answer in place of the RMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Number of the call, counted from when the refusal was set.
    pub call: u64,
    /// X0 to X7 of the answer.
    pub answer: [u64; 8],
}

/// A machine with the reference RMM, and the calls that it refuses.
#[derive(Debug)]
pub struct Rig {
    /// The machine.
    pub machine: Machine,
    calls: AtomicU64,
    refusal: Mutex<Option<Refusal>>,
    refused: Mutex<Option<u64>>,
    input_errors: Mutex<Vec<(u64, [u64; 7])>>,
}

impl Rig {
    /// A machine with `bytes` of RAM and an RMM that speaks `abi`.
    #[must_use]
    pub fn new(bytes: u64, abi: Abi) -> Self {
        let ram = RamRange { base: Pa(RAM_BASE), size: bytes };
        let machine = Machine::new(Config { ram, abi, ..Config::default() });
        let calls = AtomicU64::new(0);
        Self {
            machine,
            calls,
            refusal: Mutex::new(None),
            refused: Mutex::new(None),
            input_errors: Mutex::default(),
        }
    }

    /// Refuses one call from now on, and counts calls and errors anew.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.calls.store(0, Ordering::Relaxed);
        *self.refused.lock().expect("no panic while locked") = None;
        self.input_errors.lock().expect("no panic while locked").clear();
        *self.refusal.lock().expect("no panic while locked") = refusal;
    }

    /// Function identifier of the call that was refused, if it has come to that.
    #[must_use]
    pub fn refused(&self) -> Option<u64> {
        *self.refused.lock().expect("no panic while locked")
    }

    /// Calls that the RMM has answered with ERROR_INPUT: identifier and arguments.
    #[must_use]
    pub fn input_errors(&self) -> Vec<(u64, [u64; 7])> {
        self.input_errors.lock().expect("no panic while locked").clone()
    }

    /// Calls since the refusal was set.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Conduit for &Rig {
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let refusal = *self.refusal.lock().expect("no panic while locked");
        if let Some(refusal) = refusal
            && refusal.call == number
        {
            *self.refused.lock().expect("no panic while locked") = Some(fid);
            return refusal.answer;
        }
        let answer = self.machine.call(fid, args);
        if answer[0] & 0xff == 1 {
            self.input_errors.lock().expect("no panic while locked").push((fid, args));
        }
        answer
    }
}

impl HostMemory for &Rig {
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault> {
        self.machine.read(Pa(addr.get()), bytes).map_err(|_| AccessFault { addr })
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        self.machine.write(Pa(addr.get()), bytes).map_err(|_| AccessFault { addr })
    }
}

/// A machine and a ledger over its RAM.
#[derive(Debug)]
pub struct World<'w> {
    /// The machine.
    pub rig: &'w Rig,
    /// The ledger.
    pub ledger: &'w Ledger<'static>,
    /// What the RMM speaks.
    pub abi: Abi,
}

impl World<'_> {
    /// Allocates pages in the normal world and fills page `n` with bytes that depend on `seed + n`.
    pub fn pages(&self, order: u8, used_for: Use, seed: u8) -> mm::ledger::Frames<Undelegated> {
        let frames = self.ledger.alloc(order, used_for, Owner::vm(99)).expect("memory");
        for page in 0..frames.count() {
            let bytes = contents(seed.wrapping_add(page as u8));
            let at = frames.base().get() + page * mm::PAGE_SIZE;
            self.rig.machine.write(Pa(at), &bytes).expect("normal memory");
        }
        frames
    }
}

/// Contents of a page by seed.
fn contents(seed: u8) -> [u8; 4096] {
    core::array::from_fn(|index| (index as u8).wrapping_mul(31) ^ seed)
}

/// The ABIs and drafts that the driver is tried against.
#[must_use]
pub fn abis() -> [Abi; 6] {
    [
        Abi::V1_0,
        Abi::V2_0(Rmi2::V0_9),
        Abi::V2_0(Rmi2::HEAD),
        // What later drafts may do, each a step further.
        Abi::V2_0(Rmi2 { whole_ranges: true, yields: true, ..Rmi2::HEAD }),
        Abi::V2_0(Rmi2 { draft: Draft::Late, ..Rmi2::HEAD }),
        Abi::V2_0(Rmi2::EVERYTHING),
    ]
}

/// Runs `test` on a machine with 16 MiB of RAM and RMI 1.0.
pub fn with_world<R>(test: impl FnOnce(World<'_>) -> R) -> R {
    with_world_of(16 << 20, Abi::V1_0, test)
}

/// Runs `test` on a machine with `bytes` of RAM and an RMM that speaks `abi`.
pub fn with_world_of<R>(bytes: u64, abi: Abi, test: impl FnOnce(World<'_>) -> R) -> R {
    let rig = Rig::new(bytes, abi);
    let start = PhysAddr::new(RAM_BASE);
    let ram = [PhysRange::new(start, PhysAddr::new(RAM_BASE + bytes))];
    let limit = PhysAddr::new(0x1_0000_0000);
    let words = Ledger::metadata_words(&ram, limit).expect("layout");
    let ledger = Ledger::new(&ram, limit, vec![0; words].leak()).expect("ledger");
    test(World { rig: &rig, ledger: &ledger, abi })
}

/// Runs `test` once per ABI on a machine with 16 MiB of RAM.
pub fn each_abi(test: impl Fn(World<'_>)) {
    for abi in abis() {
        println!("{abi:?}");
        with_world_of(16 << 20, abi, &test);
    }
}
