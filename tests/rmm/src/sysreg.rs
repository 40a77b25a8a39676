//! System register accesses of a realm that trap.

use crate::platform::SysRegIss;

/// Direction bit of the ISS: 1 for a read.
pub(crate) const READ: u64 = 1;
/// Rt field of the ISS.
pub(crate) const TRANSFER_REGISTER: u64 = 0x1f << 5;
/// Op0, Op2, Op1, CRn and CRm fields of the ISS.
pub(crate) const REGISTER_MASK: u64 = register(3, 7, 15, 15, 7);

/// ISS fields of a system register.
const fn register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// How the monitor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SysRegTrap {
    /// An ID register: the machine's value without what realms do not get.
    Id,
    /// GIC CPU interface: the host emulates it.
    CpuInterface,
    /// Features that realms do not have.
    Undefined,
    /// Reads as zero, ignores writes.
    Other,
}

const ID_MASK: u64 = register(3, 7, 15, 0, 0);
const ID: u64 = register(3, 0, 0, 0, 0);
/// ICC_*_EL1 in CRm 8 to 15.
const ICC_MASK: u64 = register(3, 3, 15, 8, 0);
const ICC: u64 = register(3, 0, 12, 8, 0);
const ICC_PMR: u64 = register(3, 0, 4, 6, 0);
/// MPAM*_EL1 in CRm 4 and 5.
const MPAM_MASK: u64 = register(3, 7, 15, 14, 0);
const MPAM: u64 = register(3, 0, 10, 4, 0);
const S2POR: u64 = register(3, 0, 10, 2, 5);
/// Branch record buffer: CRn 8 and 9 of Op0 2, Op1 1.
const BRBE_MASK: u64 = register(3, 7, 14, 0, 0);
const BRBE: u64 = register(2, 1, 8, 0, 0);

pub(crate) fn classify(register: SysRegIss) -> SysRegTrap {
    let bits = register.0;
    if bits & ID_MASK == ID {
        SysRegTrap::Id
    } else if bits & ICC_MASK == ICC || bits == ICC_PMR {
        SysRegTrap::CpuInterface
    } else if bits & MPAM_MASK == MPAM || bits & BRBE_MASK == BRBE || bits == S2POR {
        SysRegTrap::Undefined
    } else {
        SysRegTrap::Other
    }
}

const ID_AA64PFR0: u64 = register(3, 0, 0, 4, 0);
const ID_AA64PFR1: u64 = register(3, 0, 0, 4, 1);
const ID_AA64PFR2: u64 = register(3, 0, 0, 4, 2);
const ID_AA64ZFR0: u64 = register(3, 0, 0, 4, 4);
const ID_AA64SMFR0: u64 = register(3, 0, 0, 4, 5);
const ID_AA64DFR0: u64 = register(3, 0, 0, 5, 0);
const ID_AA64ISAR2: u64 = register(3, 0, 0, 6, 2);
const ID_AA64MMFR3: u64 = register(3, 0, 0, 7, 3);

/// A four-bit ID field at bit `at`.
const fn field(at: u64) -> u64 {
    0xf << at
}

/// The ID register value that a realm sees.
pub(crate) fn hide_features(register: SysRegIss, value: u64) -> u64 {
    let hidden = match register.0 {
        // EL2, EL3, SVE, SEL2, MPAM, AMU, RME.
        ID_AA64PFR0 => {
            field(8) | field(12) | field(32) | field(36) | field(40) | field(44) | field(52)
        }
        // MTE, MPAM_frac, SME, NMI, MTE_frac, GCS.
        ID_AA64PFR1 => field(8) | field(16) | field(24) | field(36) | field(40) | field(44),
        // TraceVer, PMUVer, PMSVer, TraceFilt, TraceBuffer, MTPMU, BRBE.
        ID_AA64DFR0 => {
            field(4) | field(8) | field(32) | field(40) | field(44) | field(48) | field(52)
        }
        // MOPS.
        ID_AA64ISAR2 => field(16),
        ID_AA64PFR2 | ID_AA64ZFR0 | ID_AA64SMFR0 | ID_AA64MMFR3 => u64::MAX,
        _ => 0,
    };
    value & !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_classified() {
        let of = |op0, op1, crn, crm, op2| classify(SysRegIss(register(op0, op1, crn, crm, op2)));
        assert_eq!(of(3, 0, 0, 4, 0), SysRegTrap::Id);
        assert_eq!(of(3, 0, 12, 11, 5), SysRegTrap::CpuInterface, "ICC_SGI1R_EL1");
        assert_eq!(of(3, 0, 4, 6, 0), SysRegTrap::CpuInterface, "ICC_PMR_EL1");
        assert_eq!(of(3, 0, 10, 5, 1), SysRegTrap::Undefined, "MPAM0_EL1");
        assert_eq!(of(2, 1, 9, 0, 0), SysRegTrap::Undefined, "BRBCR_EL1");
        assert_eq!(of(3, 3, 9, 12, 0), SysRegTrap::Other, "PMCR_EL0");
    }
}
