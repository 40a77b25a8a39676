//! Feature registers as a normal VM reads them.
//!
//! `HCR_EL2.TID3` traps every read of the feature ID space (op0 3, op1 0, CRn 0, CRm 1 to 7), TID1
//! those of the registers beside it. A guest sees a feature only if the hypervisor either keeps its
//! state per vCPU or has none to keep; whatever needs `HCRX_EL2`, a further trap or more state reads
//! as absent, and [`super::traps`] makes its registers undefined. `docs/guest-abi.md` has the policy
//! by feature.

use super::esr::encoding;
use super::sysreg::read_sysreg;

/// Largest `ID_AA64MMFR0_EL1.PARange` shown to a guest: 40 bits, the widest stage-2 in use.
const PA_RANGE_40_BITS: u64 = 2;
/// `ID_AA64DFR0_EL1`: Armv8.0 debug, two breakpoints, two watchpoints, nothing else.
const DFR0_MINIMUM: u64 = 0x0010_1006;
/// `ID_AA64PFR0_EL1`: EL0 and EL1 are AArch64 only.
const PFR0_AARCH64_ONLY: u64 = 0x11;

/// `ID_AA64PFR0_EL1.CSV2`: branch targets of other contexts are of no effect.
const CSV2_WITHOUT_SCXTNUM: u64 = 1;
/// `ID_AA64MMFR0_EL1.ECV`: self-synchronized counters.
const ECV_WITHOUT_OFFSET: u64 = 1;
/// `ID_AA64MMFR1_EL1.HAFDBS`: access flag and dirty state by hardware.
const HAFDBS_DIRTY_STATE: u64 = 2;

/// `value` with its four-bit field at `shift` no greater than `most`.
fn at_most(value: u64, shift: u32, most: u64) -> u64 {
    let field = value >> shift & 0xf;
    value & !(0xf << shift) | field.min(most) << shift
}

/// Value that a guest reads from the feature register with this `encoding`.
///
/// Returns `None` for an encoding outside the feature ID space. Registers inside it that have no
/// name yet read as zero, as the architecture says.
#[must_use]
pub fn read(register: u32) -> Option<u64> {
    const fn id(crm: u32, op2: u32) -> u32 {
        encoding(3, 0, 0, crm, op2)
    }
    const PFR0: u32 = id(4, 0);
    const PFR1: u32 = id(4, 1);
    const DFR0: u32 = id(5, 0);
    const ISAR0: u32 = id(6, 0);
    const ISAR1: u32 = id(6, 1);
    const ISAR2: u32 = id(6, 2);
    const MMFR0: u32 = id(7, 0);
    const MMFR1: u32 = id(7, 1);
    const MMFR2: u32 = id(7, 2);
    const MMFR3: u32 = id(7, 3);
    const REVIDR: u32 = id(0, 6);
    const AIDR: u32 = encoding(3, 1, 0, 0, 7);

    let value = match register {
        // FP, AdvSIMD, GIC, DIT, CSV3; of CSV2 what comes without SCXTNUM_ELx.
        PFR0 => {
            let value = read_sysreg!("id_aa64pfr0_el1");
            at_most(value, 56, CSV2_WITHOUT_SCXTNUM) & 0xff0f_0000_0fff_0000 | PFR0_AARCH64_ONLY
        }
        // BT, SSBS.
        PFR1 => read_sysreg!("id_aa64pfr1_el1") & 0xff,
        DFR0 => DFR0_MINIMUM,
        // All but TME.
        ISAR0 => read_sysreg!("id_aa64isar0_el1") & !(0xf << 24),
        // All but XS, LS64.
        ISAR1 => read_sysreg!("id_aa64isar1_el1") & 0x00ff_ffff_ffff_ffff,
        // RPRES, GPA3, APA3, BC, PAC_frac, CLRBHB, RPRFM, CSSC. Not WFxT: QEMU's syndrome of a trapped
        // WFIT is that of a WFI, which would never end.
        ISAR2 => read_sysreg!("S3_0_C0_C6_2") & 0x00ff_0000_fff0_fff0,
        // All but FGT and the stage-2 granules; PARange is bounded, and ECV without an offset of the
        // physical counter, which is EL2's.
        MMFR0 => {
            let value = at_most(read_sysreg!("id_aa64mmfr0_el1"), 0, PA_RANGE_40_BITS);
            at_most(value, 60, ECV_WITHOUT_OFFSET) & 0xf000_f000_ffff_ffff
        }
        // HPDS, PAN, ETS, AFP, nTLBPA, ECBHB; of HAFDBS what does not need TCR2_EL1.
        MMFR1 => {
            let value = read_sysreg!("id_aa64mmfr1_el1");
            at_most(value, 0, HAFDBS_DIRTY_STATE) & 0xf00f_f0f0_00f0_f00f
        }
        // All but IESB, NV, IDS, FWB, EVT.
        MMFR2 => read_sysreg!("S3_0_C0_C7_2") & 0xf0ff_000f_f0ff_0fff,
        // Spec_FPACC.
        MMFR3 => read_sysreg!("S3_0_C0_C7_3") & 0xf000_0000_0000_0000,
        _ if (id(1, 0)..=id(7, 7)).contains(&register) => 0,
        REVIDR => read_sysreg!("revidr_el1"),
        AIDR => read_sysreg!("aidr_el1"),
        _ => return None,
    };
    Some(value)
}

/// Whether this core has pointer authentication (FEAT_PAuth), by any algorithm.
#[must_use]
pub fn has_pointer_authentication() -> bool {
    const API_AND_APA: u64 = 0xff << 4;
    const APA3: u64 = 0xf << 12;
    read_sysreg!("id_aa64isar1_el1") & API_AND_APA != 0 || read_sysreg!("S3_0_C0_C6_2") & APA3 != 0
}
