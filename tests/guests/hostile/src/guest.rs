//! What every kind of case works with.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::MAX_CPUS;
use guest_rt::boot::BootInfo;

use guest_rt::rng::Rng;

/// Bytes of scratch memory.
pub(crate) const SCRATCH_BYTES: u64 = 0x1_0000;

#[repr(C, align(4096))]
struct Scratch([AtomicU64; SCRATCH_BYTES as usize / 8]);

/// Memory that all vCPUs overwrite at will.
static SCRATCH: Scratch = Scratch([const { AtomicU64::new(0) }; SCRATCH_BYTES as usize / 8]);

/// Address of the scratch memory, which is also its IPA.
pub(crate) fn scratch() -> u64 {
    (&raw const SCRATCH).expose_provenance() as u64
}

/// Writes the 64-bit word at byte `offset` of the scratch memory, modulo its size.
pub(crate) fn put(offset: u64, value: u64) {
    let words = SCRATCH.0.len();
    SCRATCH.0[offset as usize / 8 % words].store(value, Ordering::Relaxed);
}

/// Reads the 64-bit word at byte `offset` of the scratch memory, modulo its size.
pub(crate) fn get(offset: u64) -> u64 {
    let words = SCRATCH.0.len();
    SCRATCH.0[offset as usize / 8 % words].load(Ordering::Relaxed)
}

/// One vCPU of the hostile guest.
pub(crate) struct Guest {
    /// Its own random numbers.
    pub(crate) rng: Rng,
    /// RAM of the VM.
    pub(crate) ram: Range<u64>,
    /// Number of vCPUs, at most [`MAX_CPUS`].
    pub(crate) cpus: usize,
    /// Alias bit of a realm, 0 in a normal VM.
    pub(crate) alias: u64,
    /// How many cases so far of the kind under way ended in an exception.
    pub(crate) faults: u64,
}

impl Guest {
    /// The vCPU with index `cpu` of the guest that `info` describes; `seed` is that of all its vCPUs.
    pub(crate) fn new(info: &BootInfo, seed: u64, cpu: usize) -> Self {
        Self {
            rng: Rng::new(seed ^ (cpu as u64) << 56),
            ram: info.ram.clone(),
            cpus: info.cpus.min(MAX_CPUS),
            alias: info.alias(),
            faults: 0,
        }
    }
}
