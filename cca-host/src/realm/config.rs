//! Parameters of realms and RECs.

use crate::conduit::Host;
use crate::error::{Error, Invalid};
use crate::features::Abi;
use crate::geometry::Geometry;
use crate::layout::RealmFeatures;
use crate::measurement::HashAlgorithm;
use crate::rmm::Rmm;

/// Parameters of a realm (RmiRealmParams).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RealmConfig {
    /// Width of the IPA space, the shared half included.
    pub ipa_bits: u8,
    /// Level of the root tables; `None` takes the one that [`Geometry::new`] chooses. Not measured
    /// itself, but with RMI 1.0 it limits the size of entries that the RIM reflects.
    pub start_level: Option<i8>,
    /// Hash algorithm of the measurements.
    pub hash: HashAlgorithm,
    /// Realm personalization value: in attestation tokens, not in the RIM.
    pub rpv: [u8; 64],
    /// VMID of the realm in the realm world, non-zero and not in use there. RMI 1.0 only.
    pub vmid: u16,
    /// Number of breakpoints minus 1: 1 to what the RMM supports.
    pub breakpoints: u8,
    /// Number of watchpoints minus 1: 1 to what the RMM supports.
    pub watchpoints: u8,
    /// SVE vector length in units of 128 bits minus 1; `None` for no SVE.
    pub sve_vl: Option<u8>,
    /// PMU counters; `None` for no PMU.
    pub pmu_counters: Option<u8>,
    /// Whether the driver computes the RIM along with the construction, at the cost of hashing each
    /// measured page.
    pub compute_rim: bool,
    /// How much to map for one fault.
    pub fill: Fill,
}

/// How much memory a fault brings in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fill {
    /// One granule: shortest exit.
    #[default]
    Granule,
    /// The whole level-2 block (2 MiB) where nothing of it is there yet: fewest exits.
    Block,
}

/// Bits of flags0.
mod flags0 {
    pub(super) const LPA2: u64 = 1 << 0;
    pub(super) const SVE: u64 = 1 << 1;
    pub(super) const PMU: u64 = 1 << 2;
}

/// Widest IPA space without LPA2.
const MAX_IPA_BITS_WITHOUT_LPA2: u8 = 48;

impl RealmConfig {
    /// A realm with an IPA space of `ipa_bits`, SHA-256 and the least of everything else.
    #[must_use]
    pub const fn new(ipa_bits: u8) -> Self {
        Self {
            ipa_bits,
            start_level: None,
            hash: HashAlgorithm::Sha256,
            rpv: [0; 64],
            vmid: 1,
            breakpoints: 1,
            watchpoints: 1,
            sve_vl: None,
            pmu_counters: None,
            compute_rim: false,
            fill: Fill::Granule,
        }
    }

    /// The geometry for granules of `1 << granule_shift` bytes.
    ///
    /// # Errors
    /// No start level fits.
    pub fn geometry(&self, granule_shift: u8) -> Result<Geometry, Error> {
        match self.start_level {
            None => Geometry::new(self.ipa_bits, granule_shift),
            Some(level) => Geometry::with_start_level(self.ipa_bits, granule_shift, level),
        }
        .ok_or(Error::Invalid(Invalid::Parameter {
            name: "ipa_bits",
            asked: self.ipa_bits.into(),
            supported: MAX_IPA_BITS_WITHOUT_LPA2.into(),
        }))
    }

    /// The measured group of the parameters.
    pub(crate) fn features(&self) -> RealmFeatures {
        let mut flags0 = 0;
        if self.ipa_bits > MAX_IPA_BITS_WITHOUT_LPA2 {
            flags0 |= flags0::LPA2;
        }
        if self.sve_vl.is_some() {
            flags0 |= flags0::SVE;
        }
        if self.pmu_counters.is_some() {
            flags0 |= flags0::PMU;
        }
        RealmFeatures {
            flags0,
            s2sz: self.ipa_bits.into(),
            sve_vl: self.sve_vl.unwrap_or(0).into(),
            num_bps: self.breakpoints.into(),
            num_wps: self.watchpoints.into(),
            pmu_num_ctrs: self.pmu_counters.unwrap_or(0).into(),
            hash_algorithm: self.hash.code(),
            num_aux_planes: 0,
        }
    }

    /// Refuses what the RMM would refuse, with a better reason than ERROR_INPUT.
    pub(super) fn check<H: Host>(&self, rmm: &Rmm<'_, H>) -> Result<(), Error> {
        let features = &rmm.capabilities().features;
        let bounds = [
            ("ipa_bits", self.ipa_bits, features.max_ipa_bits),
            ("breakpoints", self.breakpoints, features.breakpoints),
            ("watchpoints", self.watchpoints, features.watchpoints),
            ("sve_vl", self.sve_vl.map_or(0, |vl| vl + 1), features.sve_vl.map_or(0, |vl| vl + 1)),
            ("pmu_counters", self.pmu_counters.unwrap_or(0), features.pmu_counters.unwrap_or(0)),
        ];
        for (name, asked, supported) in bounds {
            if asked > supported {
                let (asked, supported) = (asked.into(), supported.into());
                return Err(Error::Invalid(Invalid::Parameter { name, asked, supported }));
            }
        }
        for (name, asked, supported) in [
            ("breakpoints", self.breakpoints, features.breakpoints),
            ("watchpoints", self.watchpoints, features.watchpoints),
        ] {
            // An RMM that can offer two does not accept one.
            let least = supported.min(1);
            if asked < least {
                let (asked, supported) = (asked.into(), least.into());
                return Err(Error::Invalid(Invalid::Parameter { name, asked, supported }));
            }
        }
        // Later drafts of 2.0 have no flag for LPA2.
        let has_lpa2 = match rmm.capabilities().abi {
            Abi::V1 => features.lpa2,
            Abi::V2(dialect) => features.lpa2 && !dialect.late_draft,
        };
        if self.ipa_bits > MAX_IPA_BITS_WITHOUT_LPA2 && !has_lpa2 {
            let (asked, supported) = (self.ipa_bits.into(), MAX_IPA_BITS_WITHOUT_LPA2.into());
            return Err(Error::Invalid(Invalid::Parameter { name: "ipa_bits", asked, supported }));
        }
        if !features.supports(self.hash) {
            return Err(Error::Invalid(Invalid::Hash(self.hash)));
        }
        Ok(())
    }
}

/// Parameters of a REC (RmiRecParams). Its MPIDR follows from the order of creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecConfig {
    /// First instruction.
    pub pc: u64,
    /// x0 to x7 at the start.
    pub gprs: [u64; 8],
    /// Whether the REC runs from the start, or waits for PSCI CPU_ON. Only runnable RECs are measured.
    pub runnable: bool,
}

impl RecConfig {
    /// RmiRecParams flags: bit 0 runnable.
    pub(crate) const fn flags(&self) -> u64 {
        self.runnable as u64
    }
}
