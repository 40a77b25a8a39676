//! Client of the machine's PSCI firmware (DEN0022), by SMC.
//!
//! A hypervisor at EL2 can only reach PSCI by SMC: HVC would call itself. A device tree that says
//! `hvc` describes firmware that runs at EL2, below us, and is refused at boot. Without firmware SMC is an
//! undefined instruction, so nothing here is called unless [`is_present`].

use core::sync::atomic::{AtomicBool, Ordering};
use mm::PhysAddr;
use smccc::psci::{self, Error, LowestAffinityLevel, Version};
use smccc::{Smc, psci::AffinityState};

/// Whether the device tree says that PSCI is called by SMC.
static PRESENT: AtomicBool = AtomicBool::new(false);

/// Notes what the device tree says: whether PSCI is called by SMC.
pub fn init(present: bool) {
    PRESENT.store(present, Ordering::Relaxed);
}

/// Whether there is PSCI firmware to call.
#[must_use]
pub fn is_present() -> bool {
    PRESENT.load(Ordering::Relaxed)
}

/// PSCI version of the firmware.
///
/// # Errors
///
/// If firmware does not know PSCI.
pub fn version() -> Result<Version, Error> {
    psci::version::<Smc>()
}

/// Starts the core with affinity `mpidr` at physical address `entry` at EL2, with `context` in
/// `x0`.
///
/// # Errors
///
/// As PSCI says.
pub fn cpu_on(mpidr: u64, entry: PhysAddr, context: u64) -> Result<(), Error> {
    psci::cpu_on::<Smc>(mpidr, entry.get(), context)
}

/// Power state of the core with affinity `mpidr`.
///
/// # Errors
///
/// As PSCI says.
pub fn affinity_info(mpidr: u64) -> Result<AffinityState, Error> {
    psci::affinity_info::<Smc>(mpidr, LowestAffinityLevel::All)
}

/// Powers this core off; returns only on failure.
pub fn cpu_off() -> Error {
    match psci::cpu_off::<Smc>() {
        Err(error) => error,
        Ok(()) => Error::InternalFailure,
    }
}

/// Powers the machine off; returns only if firmware does not.
pub fn system_off() {
    // The caller parks the core either way.
    let _ = psci::system_off::<Smc>();
}
