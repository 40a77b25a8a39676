//! What the EL3 firmware serves beside PSCI, by the SMC calling convention (Arm DEN 0028).

use super::smc;
use core::sync::atomic::{AtomicBool, Ordering};
use smccc::{Smc, arch, psci};

/// Bytes that [`trng`] returns.
pub const TRNG_BYTES: usize = 24;

/// TRNG_VERSION and TRNG_RND64 (Arm DEN 0098).
const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_RND64: u32 = 0xc400_0053;
const TRNG_VERSION_1_0: u64 = 0x1_0000;

/// Whether numbers outside PSCI may be called at all: SMCCC 1.1 or later.
static SMCCC_1_1: AtomicBool = AtomicBool::new(false);

/// Finds out whether firmware follows SMCCC 1.1, as PSCI 1.0 tells; once, on the boot core.
///
/// Firmware before that need not survive a number that it does not know.
pub fn init() {
    let announced = psci::psci_features::<Smc>(arch::SMCCC_VERSION).is_ok();
    let version = if announced { arch::version::<Smc>().ok() } else { None };
    let modern = version.is_some_and(|version| (version.major, version.minor) >= (1, 1));
    SMCCC_1_1.store(modern, Ordering::Relaxed);
}

/// Whether firmware may be called by numbers outside PSCI.
#[must_use]
pub fn follows_smccc_1_1() -> bool {
    SMCCC_1_1.load(Ordering::Relaxed)
}

/// Whether firmware gives out random numbers.
#[must_use]
pub fn has_trng() -> bool {
    // Errors are negative numbers of 32 bits.
    follows_smccc_1_1()
        && (TRNG_VERSION_1_0..1 << 31).contains(&(smc::call(TRNG_VERSION, [0; 7])[0] & 0xffff_ffff))
}

/// 192 random bits; `None` while firmware has too little entropy.
#[must_use]
pub fn trng() -> Option<[[u8; 8]; TRNG_BYTES / 8]> {
    let [status, a, b, c, ..] = smc::call(TRNG_RND64, [8 * TRNG_BYTES as u64, 0, 0, 0, 0, 0, 0]);
    (status == 0).then_some([a, b, c].map(u64::to_le_bytes))
}
