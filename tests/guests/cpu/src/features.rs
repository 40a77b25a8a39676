//! What the identification registers show, and that what they hide is not there.

use guest_rt::{attempt, println};

/// Whether the exception says that an instruction is undefined: class 0, or that of a trapped system
/// register for identification registers that are not there (FEAT_IDST).
const fn is_undefined(syndrome: u64) -> bool {
    matches!(syndrome >> 26 & 0x3f, 0 | 0x18)
}

/// What some checks came to.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Counts the check of `what`, which came out as `outcome`.
    fn count(&mut self, what: &str, outcome: Result<(), Finding>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(finding) => {
                self.failed += 1;
                println!("cpu: {what}: {finding:x?}");
            }
        }
    }
}

/// What is not as it should be.
#[derive(Debug)]
#[expect(dead_code, reason = "printed by their names")]
enum Finding {
    /// The instruction is not undefined, and gave this.
    IsThere(u64),
    /// It took an exception other than Undefined, with this syndrome.
    Traps(u64),
    /// A register shows this.
    Shows(u64),
}

/// Checks that each instruction is undefined.
macro_rules! undefined {
    ($tally:expr; $($what:literal: $instruction:literal;)*) => {
        $(
            // SAFETY: a read of a register into x0, or an instruction without operands in memory.
            $tally.count($what, match unsafe { attempt!($instruction, 0) } {
                Err(syndrome) if is_undefined(syndrome) => Ok(()),
                Err(syndrome) => Err(Finding::Traps(syndrome)),
                Ok(value) => Err(Finding::IsThere(value)),
            });
        )*
    };
}

/// Checks that each register reads as zero and can be written without effect.
macro_rules! inert {
    ($tally:expr; $($what:literal: $read:literal, $write:literal;)*) => {
        $(
            // SAFETY: a write to a register that only debuggers look at, or that has no effect, and a read.
            $tally.count($what, match unsafe { [attempt!($write, !0), attempt!($read, !0)] } {
                [Ok(_), Ok(0)] => Ok(()),
                [_, Ok(value)] => Err(Finding::Shows(value)),
                [_, Err(syndrome)] => Err(Finding::Traps(syndrome)),
            });
        )*
    };
}

/// Checks that the masked bits of each register are the given ones.
macro_rules! shows {
    ($tally:expr; $($what:literal: $read:literal, $mask:expr, $value:expr;)*) => {
        $(
            // SAFETY: as above.
            $tally.count($what, match unsafe { attempt!($read, 0) } {
                Ok(value) if value & $mask == $value => Ok(()),
                Ok(value) => Err(Finding::Shows(value)),
                Err(syndrome) => Err(Finding::Traps(syndrome)),
            });
        )*
    };
}

pub(crate) fn check() -> Result<(), &'static str> {
    /// `CPACR_EL1`: SVE, FP and SME do not trap to EL1, so that it is seen what EL2 does.
    const NOTHING_TRAPS: u64 = 3 << 24 | 3 << 20 | 3 << 16;
    // SAFETY: CPACR_EL1 only says what traps.
    let _ = unsafe { attempt!("msr cpacr_el1, x0", NOTHING_TRAPS) };
    let mut tally = Tally::default();
    absent(&mut tally);
    identification(&mut tally);
    inert! { tally;
        "MDSCR_EL1": "mrs x0, S2_0_C0_C2_2", "msr S2_0_C0_C2_2, x0";
        "DBGBVR0_EL1": "mrs x0, S2_0_C0_C0_4", "msr S2_0_C0_C0_4, x0";
        "DBGBCR1_EL1": "mrs x0, S2_0_C0_C1_5", "msr S2_0_C0_C1_5, x0";
        "DBGWVR0_EL1": "mrs x0, S2_0_C0_C0_6", "msr S2_0_C0_C0_6, x0";
        "OSDLR_EL1": "mrs x0, S2_0_C1_C3_4", "msr S2_0_C1_C3_4, x0";
        "ACTLR_EL1": "mrs x0, S3_0_C1_C0_1", "msr S3_0_C1_C0_1, x0";
    }
    // SAFETY: the hypervisor ignores the write, or the guest has no interrupt controller any more.
    let _ = unsafe { attempt!("msr S3_0_C12_C12_5, x0", 0) };
    shows! { tally;
        // System registers, and no bypass.
        "ICC_SRE_EL1": "mrs x0, S3_0_C12_C12_5", !0, 0b111;
    }
    if tally.failed != 0 {
        return Err("features");
    }
    println!("cpu: features ok, {} registers and instructions", tally.passed);
    Ok(())
}

fn absent(tally: &mut Tally) {
    undefined! { tally;
        "RDVL (SVE)": ".inst 0x04bf5020";
        "ZCR_EL1 (SVE)": "mrs x0, S3_0_C1_C2_0";
        "SMCR_EL1 (SME)": "mrs x0, S3_0_C1_C2_6";
        "SVCR (SME)": "mrs x0, S3_3_C4_C2_2";
        "SMIDR_EL1 (SME)": "mrs x0, S3_1_C0_C0_6";
        "SMPRI_EL1 (SME)": "mrs x0, S3_0_C1_C2_4";
        "TPIDR2_EL0 (SME)": "mrs x0, S3_3_C13_C0_5";
        "SMSTART (SME)": ".inst 0xd503477f";
        "GCR_EL1 (MTE)": "mrs x0, S3_0_C1_C0_6";
        "RGSR_EL1 (MTE)": "mrs x0, S3_0_C1_C0_5";
        "TFSR_EL1 (MTE)": "mrs x0, S3_0_C5_C6_0";
        "GMID_EL1 (MTE)": "mrs x0, S3_1_C0_C0_4";
        "PMCR_EL0 (PMU)": "mrs x0, S3_3_C9_C12_0";
        "PMCCNTR_EL0 (PMU)": "mrs x0, S3_3_C9_C13_0";
        "PMMIR_EL1 (PMU)": "mrs x0, S3_0_C9_C14_6";
        "PMSCR_EL1 (SPE)": "mrs x0, S3_0_C9_C9_0";
        "PMSIDR_EL1 (SPE)": "mrs x0, S3_0_C9_C9_7";
        "PMBPTR_EL1 (SPE)": "mrs x0, S3_0_C9_C10_1";
        "PMBIDR_EL1 (SPE)": "mrs x0, S3_0_C9_C10_7";
        "TRFCR_EL1 (trace)": "mrs x0, S3_0_C1_C2_1";
        "TRBLIMITR_EL1 (trace)": "mrs x0, S3_0_C9_C11_0";
        "TRCPRGCTLR (trace)": "mrs x0, S2_1_C0_C1_0";
        "BRBCR_EL1 (BRBE)": "mrs x0, S2_1_C9_C0_0";
        "AMCR_EL0 (AMU)": "mrs x0, S3_3_C13_C2_0";
        "AMEVCNTR00_EL0 (AMU)": "mrs x0, S3_3_C13_C4_0";
        "MPAM1_EL1 (MPAM)": "mrs x0, S3_0_C10_C5_0";
        "MPAM0_EL1 (MPAM)": "mrs x0, S3_0_C10_C5_1";
        "MPAMIDR_EL1 (MPAM)": "mrs x0, S3_0_C10_C4_4";
        "ERRIDR_EL1 (RAS)": "mrs x0, S3_0_C5_C3_0";
        "ERRSELR_EL1 (RAS)": "mrs x0, S3_0_C5_C3_1";
        "LORID_EL1 (LORegion)": "mrs x0, S3_0_C10_C4_7";
        "LORC_EL1 (LORegion)": "mrs x0, S3_0_C10_C4_3";
        "SCXTNUM_EL1 (CSV2_2)": "mrs x0, S3_0_C13_C0_7";
        "SCXTNUM_EL0 (CSV2_2)": "mrs x0, S3_3_C13_C0_7";
        "TCR2_EL1": "mrs x0, S3_0_C2_C0_3";
        "SCTLR2_EL1": "mrs x0, S3_0_C1_C0_3";
        "PIR_EL1 (S1PIE)": "mrs x0, S3_0_C10_C2_3";
        "POR_EL1 (S1POE)": "mrs x0, S3_0_C10_C2_4";
        "POR_EL0 (S1POE)": "mrs x0, S3_3_C10_C2_4";
        "MAIR2_EL1 (AIE)": "mrs x0, S3_0_C10_C2_1";
        "GCSCR_EL1 (GCS)": "mrs x0, S3_0_C2_C5_0";
        "GCSPR_EL0 (GCS)": "mrs x0, S3_3_C2_C5_1";
        "RCWMASK_EL1 (THE)": "mrs x0, S3_0_C13_C0_6";
        "ACCDATA_EL1 (LS64)": "mrs x0, S3_0_C13_C0_5";
        "FPMR (FP8)": "mrs x0, S3_3_C4_C4_2";
        "ALLINT (NMI)": "msr S3_0_C4_C3_0, x0";
        "S3_0_C15_C0_0 (implementation defined)": "mrs x0, S3_0_C15_C0_0";
        "S3_0_C11_C0_0 (implementation defined)": "mrs x0, S3_0_C11_C0_0";
        "CNTHP_CTL_EL2": "mrs x0, S3_4_C14_C2_1";
        "ICC_SRE_EL2": "mrs x0, S3_4_C12_C9_5";
    }
}

fn identification(tally: &mut Tally) {
    shows! { tally;
        // EL2, EL3, RAS, SVE, SEL2, MPAM, AMU, RME: none. EL1 and EL0: AArch64 only.
        "ID_AA64PFR0_EL1": "mrs x0, S3_0_C0_C4_0", 0x00f0_ffff_f000_ffff, 0x11;
        // All but BT and SSBS.
        "ID_AA64PFR1_EL1": "mrs x0, S3_0_C0_C4_1", !0xff, 0;
        "ID_AA64PFR2_EL1": "mrs x0, S3_0_C0_C4_2", !0, 0;
        "ID_AA64ZFR0_EL1": "mrs x0, S3_0_C0_C4_4", !0, 0;
        "ID_AA64SMFR0_EL1": "mrs x0, S3_0_C0_C4_5", !0, 0;
        "ID_AA64FPFR0_EL1": "mrs x0, S3_0_C0_C4_7", !0, 0;
        // Debug of Armv8.0 with two breakpoints and two watchpoints, and nothing else.
        "ID_AA64DFR0_EL1": "mrs x0, S3_0_C0_C5_0", !0, 0x0010_1006;
        "ID_AA64DFR1_EL1": "mrs x0, S3_0_C0_C5_1", !0, 0;
        "ID_AA64AFR0_EL1": "mrs x0, S3_0_C0_C5_4", !0, 0;
        "ID_AA64AFR1_EL1": "mrs x0, S3_0_C0_C5_5", !0, 0;
        // TME.
        "ID_AA64ISAR0_EL1": "mrs x0, S3_0_C0_C6_0", 0xf << 24, 0;
        // XS, LS64.
        "ID_AA64ISAR1_EL1": "mrs x0, S3_0_C0_C6_1", 0xff << 56, 0;
        // WFxT, MOPS, 128-bit registers.
        "ID_AA64ISAR2_EL1": "mrs x0, S3_0_C0_C6_2", 0xff_000f_000f, 0;
        "ID_AA64ISAR3_EL1": "mrs x0, S3_0_C0_C6_3", !0, 0;
        // FGT.
        "ID_AA64MMFR0_EL1": "mrs x0, S3_0_C0_C7_0", 0xf << 56, 0;
        // VMIDBits, VH, LO, XNX, TWED, HCX.
        "ID_AA64MMFR1_EL1": "mrs x0, S3_0_C0_C7_1", 0x0f0f_f00f_0ff0, 0;
        // IESB, NV, IDS, FWB, EVT.
        "ID_AA64MMFR2_EL1": "mrs x0, S3_0_C0_C7_2", 0x0f00_fff0_0f00_f000, 0;
        "ID_AA64MMFR3_EL1": "mrs x0, S3_0_C0_C7_3", u64::MAX >> 4, 0;
        "ID_AA64MMFR4_EL1": "mrs x0, S3_0_C0_C7_4", !0, 0;
        "ID_PFR0_EL1": "mrs x0, S3_0_C0_C1_0", !0, 0;
        "ID_ISAR0_EL1": "mrs x0, S3_0_C0_C2_0", !0, 0;
        "MVFR0_EL1": "mrs x0, S3_0_C0_C3_0", !0, 0;
        "S3_0_C0_C7_7": "mrs x0, S3_0_C0_C7_7", !0, 0;
    }
}
