//! Feature registers (RMI_FEATURES) and what the driver knows about the RMM.

use core::fmt;

use crate::measurement::HashAlgorithm;

/// A revision of the RMI: `major.minor`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision {
    /// Major version; different ones are incompatible.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl Revision {
    /// RMI 1.0.
    pub const V1_0: Self = Self { major: 1, minor: 0 };
    /// RMI 2.0.
    pub const V2_0: Self = Self { major: 2, minor: 0 };

    /// The version word: major in bits 30:16, minor in bits 15:0.
    #[must_use]
    pub const fn word(self) -> u64 {
        (self.major as u64) << 16 | self.minor as u64
    }

    /// Decodes a version word; `None` if reserved bits are set.
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        if word >> 31 != 0 {
            return None;
        }
        Some(Self { major: (word >> 16) as u16, minor: word as u16 })
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Which of the two ABIs the RMM speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abi {
    /// RMI 1.0: calls per granule, GIC state in the run page, auxiliary granules per REC.
    V1,
    /// RMI 2.0: calls per range, stateful operations, GIC list registers in hardware.
    V2(Dialect),
}

/// Differences between RMMs that all report 2.0, found by harmless probing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dialect {
    /// RTT_MAP_UNPROTECTED instead of RTT_UNPROT_MAP: TF-RMM v0.9.
    pub per_entry_unprotected: bool,
    /// REALM_TERMINATE exists: everything after v0.9.
    pub terminate: bool,
    /// RMM_STATE_GET or GPT_INFO exist: drafts after TF-RMM main of July 2026.
    pub late_draft: bool,
}

/// How closely the RMM keeps track of memory (RmiTrackingRegionState). Only granules of finely tracked memory can be
/// delegated one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracking {
    /// Not at all: it cannot be delegated.
    None,
    /// By granule.
    Fine,
    /// By region.
    Coarse,
    /// A reserved state, or one of later drafts.
    Other(u64),
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V1 => f.write_str("1.0"),
            Self::V2(dialect) if dialect.late_draft => f.write_str("2.0 (late draft)"),
            Self::V2(dialect) if dialect.terminate => f.write_str("2.0"),
            Self::V2(_) => f.write_str("2.0 (first draft)"),
        }
    }
}

/// Where the virtual GIC state of a REC lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicModel {
    /// In the run page; the firmware switches the hardware registers (RMI 1.x).
    RunPage {
        /// Number of list registers, 1 to 16.
        list_registers: u8,
    },
    /// In the `ICH_*` registers, which both worlds share (RMI 2.0): the hypervisor loads them before
    /// REC_ENTER and saves them after.
    Hardware,
}

/// What the RMM supports, from the feature registers, in the same form for both ABIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Largest IPA width in bits.
    pub max_ipa_bits: u8,
    /// 52-bit addresses with 4 KiB granules.
    pub lpa2: bool,
    /// SVE vector length limit in units of 128 bits minus 1, if SVE is there.
    pub sve_vl: Option<u8>,
    /// Largest value of the breakpoints field: number of breakpoints minus 1.
    pub breakpoints: u8,
    /// Largest value of the watchpoints field: number of watchpoints minus 1.
    pub watchpoints: u8,
    /// PMU counters, if the PMU is there.
    pub pmu_counters: Option<u8>,
    /// SHA-256 measurements.
    pub sha256: bool,
    /// SHA-384 measurements.
    pub sha384: bool,
    /// SHA-512 measurements.
    pub sha512: bool,
    /// Largest number of RECs per realm.
    pub max_recs: u32,
    /// List registers per REC where the run page holds them.
    pub list_registers: u8,
}

const fn field(register: u64, low: u32, width: u32) -> u64 {
    register >> low & ((1 << width) - 1)
}

const fn bit(register: u64, position: u32) -> bool {
    field(register, position, 1) != 0
}

const fn max_recs(order: u64) -> u32 {
    // The limit is 2^order - 1; order 0 is an RMM that does not say.
    if order == 0 { u32::MAX } else { (1 << order) - 1 }
}

impl Features {
    /// Decodes feature register 0 of RMI 1.x.
    #[must_use]
    pub const fn from_v1(reg0: u64) -> Self {
        Self {
            sha256: bit(reg0, 32),
            sha384: false,
            sha512: bit(reg0, 33),
            list_registers: field(reg0, 34, 4) as u8 + 1,
            max_recs: max_recs(field(reg0, 38, 4)),
            ..Self::common(reg0)
        }
    }

    /// Decodes feature registers 0 and 1 of RMI 2.0.
    ///
    /// SHA-384 counts as supported where SHA-512 is: TF-RMM accepts it without saying so.
    #[must_use]
    pub const fn from_v2(reg0: u64, reg1: u64) -> Self {
        Self {
            sha256: bit(reg1, 3),
            sha384: bit(reg1, 4) || bit(reg1, 5),
            sha512: bit(reg1, 5),
            max_recs: max_recs(field(reg1, 6, 4)),
            list_registers: 0,
            ..Self::common(reg0)
        }
    }

    /// The fields that both ABIs have in bits 31:0 of register 0.
    const fn common(reg0: u64) -> Self {
        Self {
            max_ipa_bits: field(reg0, 0, 8) as u8,
            lpa2: bit(reg0, 8),
            sve_vl: if bit(reg0, 9) { Some(field(reg0, 10, 4) as u8) } else { None },
            breakpoints: field(reg0, 14, 6) as u8,
            watchpoints: field(reg0, 20, 6) as u8,
            pmu_counters: if bit(reg0, 26) { Some(field(reg0, 27, 5) as u8) } else { None },
            sha256: false,
            sha384: false,
            sha512: false,
            max_recs: 0,
            list_registers: 0,
        }
    }

    /// Whether realms can be measured with this algorithm.
    #[must_use]
    pub const fn supports(&self, hash: HashAlgorithm) -> bool {
        match hash {
            HashAlgorithm::Sha256 => self.sha256,
            HashAlgorithm::Sha384 => self.sha384,
            HashAlgorithm::Sha512 => self.sha512,
        }
    }
}

/// What negotiation found out. `Display` prints one line fit for a boot log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Lowest revision that the RMM offers.
    pub lower: Revision,
    /// Highest revision that the RMM offers.
    pub higher: Revision,
    /// The ABI in use.
    pub abi: Abi,
    /// Features.
    pub features: Features,
    /// The feature registers as read, 0 where the ABI has none.
    pub registers: [u64; 5],
    /// Where the virtual GIC state lives.
    pub gic: GicModel,
    /// log2 of the granule size agreed on.
    pub granule_shift: u8,
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = &self.features;
        write!(f, "RMI {} (offers {} to {})", self.abi, self.lower, self.higher)?;
        write!(f, ", {} KiB granules", (1u32 << self.granule_shift) / 1024)?;
        write!(f, ", IPA {} bits", features.max_ipa_bits)?;
        if features.lpa2 {
            f.write_str(" LPA2")?;
        }
        for (supported, name) in [
            (features.sha256, ", SHA-256"),
            (features.sha384, ", SHA-384"),
            (features.sha512, ", SHA-512"),
        ] {
            if supported {
                f.write_str(name)?;
            }
        }
        let (breakpoints, watchpoints) = (features.breakpoints, features.watchpoints);
        write!(f, ", {} breakpoints, {} watchpoints", breakpoints + 1, watchpoints + 1)?;
        if let Some(vl) = features.sve_vl {
            write!(f, ", SVE {} bits", (u32::from(vl) + 1) * 128)?;
        }
        if let Some(counters) = features.pmu_counters {
            write!(f, ", PMU {counters} counters")?;
        }
        if features.max_recs != u32::MAX {
            write!(f, ", {} RECs", features.max_recs)?;
        }
        match self.gic {
            GicModel::RunPage { list_registers } => {
                write!(f, ", {list_registers} list registers in the run page")
            }
            GicModel::Hardware => f.write_str(", list registers in hardware"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use super::*;

    #[test]
    fn register_0_of_1_0_is_decoded() {
        let reg0 = 48 | 1 << 9 | 3 << 10 | 5 << 14 | 3 << 20 | 3 << 32 | 15 << 34 | 9 << 38;
        let features = Features::from_v1(reg0);
        assert_eq!(features.max_ipa_bits, 48);
        assert_eq!(features.sve_vl, Some(3));
        assert_eq!((features.breakpoints, features.watchpoints), (5, 3));
        assert_eq!(features.pmu_counters, None);
        assert!(features.sha256 && features.sha512 && !features.sha384);
        assert_eq!(features.list_registers, 16);
        assert_eq!(features.max_recs, 511);
    }

    #[test]
    fn registers_of_2_0_are_decoded() {
        let features = Features::from_v2(40, 1 | 1 << 3 | 1 << 5 | 4 << 6);
        assert!(features.sha256 && features.sha384 && features.sha512);
        assert_eq!(features.max_recs, 15);
    }

    #[test]
    fn reserved_bits_make_no_version() {
        assert_eq!(Revision::from_word(0x1_0000), Some(Revision::V1_0));
        assert_eq!(Revision::from_word(u64::MAX), None);
        assert_eq!(format!("{}", Revision::V2_0), "2.0");
    }
}
