//! The shape of a stage-2 table: levels, input and output sizes, and the `VTCR_EL2` value.

use core::fmt;

/// Level of a translation table lookup with the 4 KiB granule.
///
/// Level 3 entries map pages, level 2 and 1 entries map 2 MiB and 1 GiB blocks or point to
/// tables, level 0 entries only point to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Each entry covers 512 GiB.
    L0 = 0,
    /// Each entry covers 1 GiB.
    L1 = 1,
    /// Each entry covers 2 MiB.
    L2 = 2,
    /// Each entry covers 4 KiB.
    L3 = 3,
}

impl Level {
    /// Lowest input address bit that indexes this level.
    #[must_use]
    pub const fn shift(self) -> u32 {
        12 + 9 * (3 - self as u32)
    }

    /// Bytes that one entry of this level covers.
    #[must_use]
    pub const fn entry_bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The level below (finer), `None` below level 3.
    #[must_use]
    pub const fn next(self) -> Option<Level> {
        match self {
            Level::L0 => Some(Level::L1),
            Level::L1 => Some(Level::L2),
            Level::L2 => Some(Level::L3),
            Level::L3 => None,
        }
    }

    /// Whether an entry of this level can map memory itself (page or block).
    #[must_use]
    pub const fn has_leaves(self) -> bool {
        !matches!(self, Level::L0)
    }
}

/// Physical address size of the machine, from `ID_AA64MMFR0_EL1.PARange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaRange {
    bits: u32,
    /// Encoding shared by `VTCR_EL2.PS` and `TCR_EL2.PS`.
    encoding: u64,
}

impl PaRange {
    /// Decodes the register field (bits 3:0 of `ID_AA64MMFR0_EL1`).
    ///
    /// Sizes above 48 bits need FEAT_LPA2 with the 4 KiB granule, which is not used here: they
    /// count as 48 bits.
    #[must_use]
    pub const fn from_id(field: u64) -> Self {
        let (bits, encoding) = match field & 0xf {
            0 => (32, 0),
            1 => (36, 1),
            2 => (40, 2),
            3 => (42, 3),
            4 => (44, 4),
            _ => (48, 5),
        };
        Self { bits, encoding }
    }

    /// Size in bits: 32 to 48.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Value for the `PS` field of `VTCR_EL2` and `TCR_EL2`.
    #[must_use]
    pub const fn encoding(self) -> u64 {
        self.encoding
    }
}

/// How many bits of VMID the machine has, from `ID_AA64MMFR1_EL1.VMIDBits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmidBits {
    /// VMIDs 0 to 255.
    Eight,
    /// VMIDs 0 to 65535 (FEAT_VMID16).
    Sixteen,
}

impl VmidBits {
    /// Decodes the register field (bits 7:4 of `ID_AA64MMFR1_EL1`).
    #[must_use]
    pub const fn from_id(field: u64) -> Self {
        if field & 0xf == 2 { Self::Sixteen } else { Self::Eight }
    }
}

/// Why a stage-2 geometry is impossible. The VM's configuration is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeometryError {
    /// The IPA size is not between 32 and 48 bits.
    IpaBits(u32),
    /// The IPA size exceeds the physical address size, which the architecture does not allow.
    ExceedsPaRange {
        /// IPA bits asked for.
        ipa_bits: u32,
        /// Physical address bits of the machine.
        pa_bits: u32,
    },
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpaBits(bits) => write!(f, "IPA size of {bits} bits is not within 32 to 48"),
            Self::ExceedsPaRange { ipa_bits, pa_bits } => write!(
                f,
                "IPA size of {ipa_bits} bits exceeds the machine's {pa_bits} physical address bits"
            ),
        }
    }
}

impl core::error::Error for GeometryError {}

/// Input size, start level and root size of one stage-2 table.
///
/// Up to 43 bits the walk starts at level 1, with 2 to 16 concatenated root tables above 39 bits
/// (Arm ARM, "Concatenated translation tables"); from 44 bits it starts at level 0 with one root
/// table. Level 2 starts would save nothing at 32 bits and could not use 1 GiB blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    ipa_bits: u32,
    pa_range: PaRange,
    forced_write_back: bool,
}

impl Geometry {
    /// Checks the sizes and fixes the shape.
    ///
    /// # Errors
    ///
    /// [`GeometryError`] when `ipa_bits` is not within 32 to 48, or exceeds `pa_range`.
    pub const fn new(ipa_bits: u32, pa_range: PaRange) -> Result<Self, GeometryError> {
        if ipa_bits < 32 || ipa_bits > 48 {
            return Err(GeometryError::IpaBits(ipa_bits));
        }
        if ipa_bits > pa_range.bits() {
            return Err(GeometryError::ExceedsPaRange { ipa_bits, pa_bits: pa_range.bits() });
        }
        Ok(Self { ipa_bits, pa_range, forced_write_back: false })
    }

    /// The same shape for cores that run its tables with `HCR_EL2.FWB` set (FEAT_S2FWB), which
    /// changes the encoding of memory types: Normal memory is then write-back cacheable whatever
    /// the guest's stage 1 says, also while the guest's MMU and caches are off.
    #[must_use]
    pub const fn with_forced_write_back(self) -> Self {
        Self { forced_write_back: true, ..self }
    }

    /// Whether the tables are for `HCR_EL2.FWB` set.
    #[must_use]
    pub const fn forces_write_back(self) -> bool {
        self.forced_write_back
    }

    /// IPA size in bits.
    #[must_use]
    pub const fn ipa_bits(self) -> u32 {
        self.ipa_bits
    }

    /// Physical address size in bits.
    #[must_use]
    pub const fn pa_bits(self) -> u32 {
        self.pa_range.bits()
    }

    /// Level at which the walk starts.
    #[must_use]
    pub const fn start_level(self) -> Level {
        if self.ipa_bits > 43 { Level::L0 } else { Level::L1 }
    }

    /// Entries of the (concatenated) root table.
    #[must_use]
    pub const fn root_entries(self) -> u64 {
        1 << (self.ipa_bits - self.start_level().shift())
    }

    /// The root is `2^order` pages, aligned to its size.
    #[must_use]
    pub const fn root_order(self) -> u32 {
        (self.ipa_bits - self.start_level().shift()).saturating_sub(9)
    }

    /// The whole `VTCR_EL2` value: 4 KiB granule, walks inner shareable write-back, hardware
    /// management of access flag and dirty state off (this walker does both in software).
    #[must_use]
    pub const fn vtcr(self, vmid_bits: VmidBits) -> u64 {
        const RES1: u64 = 1 << 31;
        const SH0_INNER: u64 = 0b11 << 12;
        const ORGN0_WBWA: u64 = 0b01 << 10;
        const IRGN0_WBWA: u64 = 0b01 << 8;
        let t0sz = 64 - self.ipa_bits as u64;
        let sl0: u64 = match self.start_level() {
            Level::L0 => 2,
            _ => 1,
        };
        let vs: u64 = match vmid_bits {
            VmidBits::Eight => 0,
            VmidBits::Sixteen => 1,
        };
        RES1 | vs << 19
            | self.pa_range.encoding() << 16
            | SH0_INNER
            | ORGN0_WBWA
            | IRGN0_WBWA
            | sl0 << 6
            | t0sz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(ipa_bits: u32) -> Geometry {
        Geometry::new(ipa_bits, PaRange::from_id(5)).unwrap()
    }

    #[test]
    fn shapes_follow_the_architecture() {
        // (IPA bits, start level, root pages)
        for (bits, level, pages) in [
            (32, Level::L1, 1),
            (33, Level::L1, 1),
            (39, Level::L1, 1),
            (40, Level::L1, 2),
            (42, Level::L1, 8),
            (43, Level::L1, 16),
            (44, Level::L0, 1),
            (48, Level::L0, 1),
        ] {
            let shape = geometry(bits);
            assert_eq!(shape.start_level(), level, "{bits}");
            assert_eq!(1 << shape.root_order(), pages, "{bits}");
            assert_eq!(
                shape.root_entries() << level.shift(),
                1 << bits,
                "the root covers exactly the IPA space of {bits} bits"
            );
        }
    }

    #[test]
    fn vtcr_values() {
        // 40 bits, PA 48, VMID16: T0SZ 24, SL0 1, PS 5, VS.
        assert_eq!(geometry(40).vtcr(VmidBits::Sixteen), 0x800d_3558);
        // 48 bits: T0SZ 16, SL0 2.
        assert_eq!(geometry(48).vtcr(VmidBits::Eight), 0x8005_3590);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(Geometry::new(31, PaRange::from_id(5)), Err(GeometryError::IpaBits(31)));
        assert_eq!(Geometry::new(49, PaRange::from_id(6)), Err(GeometryError::IpaBits(49)));
        assert_eq!(
            Geometry::new(44, PaRange::from_id(2)),
            Err(GeometryError::ExceedsPaRange { ipa_bits: 44, pa_bits: 40 })
        );
    }
}
