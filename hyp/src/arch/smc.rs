//! Calls to EL3 firmware and, through it, to the RMM (SMCCC 1.2 and later).

use super::layout::MAX_CORES;
use super::percpu::core_index;
use cca_host::{AccessFault, Conduit, HostMemory};
use core::sync::atomic::{AtomicU64, Ordering};
use mm::PhysAddr;

/// RMI calls of each core.
static RMI_CALLS: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(0) }; MAX_CORES];

/// RMI calls of each core since it last could have turned to something else.
static SINCE: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(0) }; MAX_CORES];
/// The most RMI calls of a core between two such times.
static LONGEST: AtomicU64 = AtomicU64::new(0);

/// Notes that this core is about to look for something more urgent: it picks a vCPU, or enters a REC, which
/// comes back at once if an interrupt is pending.
pub fn scheduling_point() {
    if let Some(since) = SINCE.get(core_index()) {
        LONGEST.fetch_max(since.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Forgets the calls that this core has made before it entered its run loop.
pub fn begin_counting() {
    if let Some(since) = SINCE.get(core_index()) {
        since.store(0, Ordering::Relaxed);
    }
}

/// The most RMI calls that a core has made without looking for something more urgent.
#[must_use]
pub fn longest_uninterrupted() -> u64 {
    LONGEST.load(Ordering::Relaxed)
}

/// RMI calls that this core has made. A core works for one VM at a time, so the difference between
/// two times is what was called for that VM.
#[must_use]
pub fn rmi_calls() -> u64 {
    RMI_CALLS.get(core_index()).map_or(0, |calls| calls.load(Ordering::Relaxed))
}

/// Executes `SMC #0` with function identifier `fid` in `x0` and `args` in `x1` to `x7`; returns
/// `x0` to `x7`. `x8` to `x17` are passed as zero and their results discarded.
#[must_use]
pub fn call(fid: u32, args: [u64; 7]) -> [u64; 8] {
    let mut all = [0; 17];
    all[..7].copy_from_slice(&args);
    let results = smccc::smc64(fid, all);
    let mut out = [0; 8];
    out.copy_from_slice(&results[..8]);
    out
}

/// The machine as the realm driver sees it: calls by SMC, memory by its physical address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smc;

impl Conduit for Smc {
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        if let Some(calls) = RMI_CALLS.get(core_index()) {
            calls.fetch_add(1, Ordering::Relaxed);
        }
        if fid == cca_host::Command::RecEnter.fid() {
            scheduling_point();
        } else if let Some(since) = SINCE.get(core_index()) {
            since.fetch_add(1, Ordering::Relaxed);
        }
        // Function identifiers have 32 bits (SMCCC); the upper half of x0 is ignored.
        call(fid as u32, args)
    }
}

impl HostMemory for Smc {
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault> {
        super::probe::copy_from(addr, bytes).map_err(|_| AccessFault { addr })
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        if crate::memory::is_own(addr, bytes.len() as u64) {
            return Err(AccessFault { addr });
        }
        // SAFETY: the range holds nothing of this image (just checked). The driver writes only
        // granules whose token the ledger gave to it and to nobody else.
        unsafe { super::probe::copy_to(addr, bytes) }.map_err(|_| AccessFault { addr })
    }
}
