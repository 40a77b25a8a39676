//! Which actions of a normal VM come to EL2: `HCR_EL2` and its companions.
//!
//! Set once per core: every normal VM runs under the same traps, and the RMM has its own EL2
//! register context, which EL3 exchanges around each call to it.

use super::sysreg::{read_sysreg, write_sysreg};
use bitflags::bitflags;

bitflags! {
    /// Bits of `HCR_EL2` that this hypervisor uses (Arm ARM, D24.2.48).
    #[derive(Clone, Copy, Debug)]
    struct Hcr: u64 {
        /// Stage-2 translation.
        const VM = 1 << 0;
        /// Set/way invalidation also cleans.
        const SWIO = 1 << 1;
        /// A stage-1 walk that hits device memory faults.
        const PTW = 1 << 2;
        /// Physical FIQ to EL2, virtual FIQ for the guest.
        const FMO = 1 << 3;
        /// Physical IRQ to EL2, virtual IRQ for the guest.
        const IMO = 1 << 4;
        /// SError to EL2, virtual SError for the guest.
        const AMO = 1 << 5;
        /// Guest TLB and cache maintenance is broadcast: the vCPU may move between cores.
        const FB = 1 << 9;
        /// Guest barriers reach the inner shareable domain at least.
        const BSU_INNER = 1 << 10;
        /// WFI.
        const TWI = 1 << 13;
        /// Feature ID registers.
        const TID3 = 1 << 18;
        /// SMC.
        const TSC = 1 << 19;
        /// Implementation defined registers.
        const TIDCP = 1 << 20;
        /// `ACTLR_EL1`.
        const TACR = 1 << 21;
        /// EL1 is AArch64.
        const RW = 1 << 31;
        /// Limited ordering region registers.
        const TLOR = 1 << 35;
        /// Error record registers.
        const TERR = 1 << 36;
        /// Pointer authentication keys are the guest's own.
        const APK = 1 << 40;
        /// Pointer authentication instructions are not trapped.
        const API = 1 << 41;
        /// Stage 2 makes Normal memory write-back cacheable whatever stage 1 says (FEAT_S2FWB).
        const FWB = 1 << 46;
        /// Granule protection faults of the guest come to EL2 (FEAT_RME).
        const GPF = 1 << 48;
    }
}

/// `CPTR_EL2` with E2H = 0: SVE, SME, trace and activity monitors trap; FP and SIMD do not.
const CPTR: u64 = 0x33ff | 1 << 20 | 1 << 30;
/// `MDCR_EL2`: debug, OS lock, PMU, trace filter and debug channel registers trap.
const MDCR: u64 = 1 << 27 | 1 << 19 | 1 << 11 | 1 << 10 | 1 << 9 | 1 << 6 | 1 << 5;

/// Configures this core for running normal VMs.
pub fn configure() {
    let mut hcr = Hcr::all();
    hcr.set(Hcr::GPF, read_sysreg!("id_aa64pfr0_el1") >> 52 & 0xf != 0);
    hcr.set(Hcr::FWB, super::cpu::has_forced_write_back());
    write_sysreg!("hcr_el2", hcr.bits());
    write_sysreg!("cptr_el2", CPTR);
    write_sysreg!("mdcr_el2", MDCR | read_sysreg!("mdcr_el2") & 0x1f);
    write_sysreg!("hstr_el2", 0);
    write_sysreg!("vpidr_el2", read_sysreg!("midr_el1"));
}
