//! SErrors that EL2 has yet to take, which belong to the guest that ran last (Arm ARM, "The RAS
//! Extension").

use super::sysreg::{read_sysreg, write_sysreg};

/// `DISR_EL1.A`: an SError was deferred.
const DEFERRED: u64 = 1 << 31;

/// Whether this core has FEAT_RAS.
pub(super) fn has_ras() -> bool {
    read_sysreg!("id_aa64pfr0_el1") >> 28 & 0xf != 0
}

/// Waits for what the core has under way, and takes an SError that comes of it; its syndrome, if there was
/// one. EL2 masks SErrors: left pending, it would be taken from the next guest. Without FEAT_RAS
/// nothing is taken.
#[must_use]
pub fn take() -> Option<u64> {
    if !has_ras() {
        return None;
    }
    // SAFETY: a barrier, and `ESB` (by its number, as older assemblers lack the name), which moves a pending
    // SError that is masked to DISR_EL1.
    unsafe { core::arch::asm!("dsb sy", "hint #16", "isb", options(nostack, preserves_flags)) }
    let syndrome = read_sysreg!("S3_0_C12_C1_1");
    if syndrome & DEFERRED == 0 {
        return None;
    }
    write_sysreg!("S3_0_C12_C1_1", 0);
    Some(syndrome)
}
