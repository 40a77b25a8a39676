//! Which actions of a normal VM come to EL2: `HCR_EL2` and its companions.
//!
//! Set once per core: every normal VM runs under the same traps, and the RMM has its own EL2
//! register context, which EL3 exchanges around each call to it.

use super::control::Register;
use super::sysreg::{read_sysreg, write_sysreg};
use bitflags::bitflags;

bitflags! {
    /// Bits of `HCR_EL2` that this hypervisor uses (Arm ARM, D24.2.48).
    #[derive(Clone, Copy, Debug)]
    struct Hcr: u64 {
        /// Stage-2 translation.
        const VM = 1 << 0;
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
        /// Cache maintenance by set and way.
        const TSW = 1 << 22;
        /// Feature ID registers.
        const TID3 = 1 << 18;
        /// `REVIDR_EL1`, `AIDR_EL1`, `SMIDR_EL1`.
        const TID1 = 1 << 16;
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
        /// `GMID_EL1` (FEAT_MTE2; the other registers of MTE trap because ATA is clear).
        const TID5 = 1 << 58;
    }
}

/// `CPTR_EL2` with E2H = 0 while a vCPU uses FP and SIMD: SVE, SME, trace and activity monitors trap.
pub const CPTR: u64 = 0x33ff | 1 << 20 | 1 << 30;
/// `CPTR_EL2.TFP`: FP and SIMD trap, too, even at EL2.
pub const CPTR_TFP: u64 = 1 << 10;
/// `MDCR_EL2`: debug, OS lock, PMU, profiling, trace filter and debug channel registers trap; the
/// buffers of profiling and trace are EL2's, so that their registers trap, too.
const MDCR: u64 = 1 << 27 | 1 << 19 | 1 << 14 | 1 << 11 | 1 << 10 | 1 << 9 | 1 << 6 | 1 << 5;
/// `HCRX_EL2` with FEAT_NMI: writes of `ALLINT` trap. All other bits are clear, which makes what they
/// would enable trap: `TCR2_EL1`, `SCTLR2_EL1`, LD64B and ST64B, memory copies, `FPMR`, GCS.
const HCRX_TALLINT: u64 = 1 << 6;
/// `MPAM2_EL2`: `MPAM0_EL1` and `MPAM1_EL1` trap.
const MPAM2: u64 = 1 << 49 | 1 << 48;
/// `MPAMHCR_EL2`: `MPAMIDR_EL1` traps.
const MPAMHCR: u64 = 1 << 31;

/// Fields of the feature registers that say which of the registers below there are.
#[derive(Clone, Copy)]
struct Extensions {
    /// FEAT_HCX.
    hcx: bool,
    /// FEAT_NMI.
    nmi: bool,
    /// 1 for FEAT_FGT, 2 for FEAT_FGT2.
    fgt: u64,
    /// FEAT_AMUv1.
    amu: bool,
    /// FEAT_MPAM.
    mpam: bool,
    /// `MPAMIDR_EL1.HAS_HCR`.
    mpam_hcr: bool,
}

impl Extensions {
    fn read() -> Self {
        let field = |register: u64, shift: u32| register >> shift & 0xf;
        let (pfr0, pfr1) = (read_sysreg!("id_aa64pfr0_el1"), read_sysreg!("id_aa64pfr1_el1"));
        let mpam = field(pfr0, 40) != 0 || field(pfr1, 16) != 0;
        Self {
            hcx: field(read_sysreg!("id_aa64mmfr1_el1"), 40) != 0,
            nmi: field(pfr1, 36) != 0,
            fgt: field(read_sysreg!("id_aa64mmfr0_el1"), 56),
            amu: field(pfr0, 44) != 0,
            mpam,
            mpam_hcr: mpam && read_sysreg!("S3_0_C10_C4_4") >> 17 & 1 != 0,
        }
    }

    /// `HCR_EL2` of this core.
    fn hcr(self) -> u64 {
        let mut hcr = Hcr::all();
        hcr.set(Hcr::GPF, super::cpu::has_rme());
        hcr.set(Hcr::FWB, super::cpu::has_forced_write_back());
        hcr.bits()
    }
}

/// Makes of a list of registers, each with its name, its value and whether there is one, what sets them
/// and what shows them.
macro_rules! trap_registers {
    ($on:ident: $($name:literal, $register:literal = $value:expr, $there:expr;)*) => {
        fn write_all($on: Extensions) {
            $(if $there {
                write_sysreg!($register, $value);
            })*
        }

        /// Shows the registers that [`configure`] sets, as they are now.
        pub fn each(see: &mut dyn FnMut(Register, u64)) {
            let $on = Extensions::read();
            $(if $there {
                see(Register::one($name), read_sysreg!($register));
            })*
        }
    };
}

// Extensions: EL3 must let EL2 reach their controls (`SCR_EL3.HXEn`, `FGTEn` and `FGTEn2`,
// `MPAM3_EL3.TRAPLOWER` clear), as Linux demands too.
//
// The bits of the registers of FEAT_FGT and FEAT_FGT2 that name registers of Armv8.7 and earlier trap when
// they are set, those that name later ones when they are clear: zero makes all of the later ones trap, and
// the earlier ones trap by HCR_EL2, CPTR_EL2 and MDCR_EL2; the activity monitors by CPTR_EL2.
trap_registers! { on:
    "HCR_EL2", "hcr_el2" = on.hcr(), true;
    "CPTR_EL2", "cptr_el2" = CPTR | CPTR_TFP, true;
    "MDCR_EL2", "mdcr_el2" = MDCR | read_sysreg!("mdcr_el2") & 0x1f, true;
    "HSTR_EL2", "hstr_el2" = 0, true;
    "VPIDR_EL2", "vpidr_el2" = read_sysreg!("midr_el1"), true;
    "MDSCR_EL1", "mdscr_el1" = 0, true;
    "HCRX_EL2", "S3_4_C1_C2_2" = if on.nmi { HCRX_TALLINT } else { 0 }, on.hcx;
    "HFGRTR_EL2", "S3_4_C1_C1_4" = 0, on.fgt >= 1;
    "HFGWTR_EL2", "S3_4_C1_C1_5" = 0, on.fgt >= 1;
    "HFGITR_EL2", "S3_4_C1_C1_6" = 0, on.fgt >= 1;
    "HDFGRTR_EL2", "S3_4_C3_C1_4" = 0, on.fgt >= 1;
    "HDFGWTR_EL2", "S3_4_C3_C1_5" = 0, on.fgt >= 1;
    "HAFGRTR_EL2", "S3_4_C3_C1_6" = 0, on.fgt >= 1 && on.amu;
    "HFGRTR2_EL2", "S3_4_C3_C1_2" = 0, on.fgt >= 2;
    "HFGWTR2_EL2", "S3_4_C3_C1_3" = 0, on.fgt >= 2;
    "HFGITR2_EL2", "S3_4_C3_C1_7" = 0, on.fgt >= 2;
    "HDFGRTR2_EL2", "S3_4_C3_C1_0" = 0, on.fgt >= 2;
    "HDFGWTR2_EL2", "S3_4_C3_C1_1" = 0, on.fgt >= 2;
    "MPAM2_EL2", "S3_4_C10_C5_0" = MPAM2, on.mpam;
    "MPAMHCR_EL2", "S3_4_C10_C4_0" = MPAMHCR, on.mpam_hcr;
}

/// Configures this core for running normal VMs.
pub fn configure() {
    write_all(Extensions::read());
}
