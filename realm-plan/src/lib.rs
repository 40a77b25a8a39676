//! What a realm of a bundle is built from, in measured order.
//!
//! The hypervisor builds realms from this, and `xtask rim` computes their measurement from the same
//! value, so that the two cannot disagree.
#![no_std]
#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use cca_host::plan::{BuildPlan, IpaRange, Segment};
use cca_host::{Fill, HashAlgorithm, RealmConfig, RecConfig};
use core::fmt;
use mm::{Ipa, PAGE_SIZE};
use vmm_services::loader::{LoadPlan, MAX_SEGMENTS};
use vmm_services::manifest::{self, FaultSize, Populate, VmSpec};
use vmm_services::{MAX_VCPUS, layout};

/// A VM of the bundle that cannot be a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// The bundle says that it is an ordinary VM.
    NotARealm,
    /// An IPA width that no realm can have.
    IpaBits(u32),
    /// RAM does not end below the top of the address space.
    Memory(u64),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotARealm => f.write_str("the bundle says that it is not a realm"),
            Self::IpaBits(bits) => write!(f, "a realm cannot have an IPA width of {bits} bits"),
            Self::Memory(bytes) => write!(f, "{bytes} bytes of RAM do not fit the address space"),
        }
    }
}

impl core::error::Error for PlanError {}

/// The parts of a [`BuildPlan`], owned.
#[derive(Clone, Debug)]
pub struct RealmPlan {
    config: RealmConfig,
    ram: [IpaRange; 1],
    segments: ArrayVec<Segment, MAX_SEGMENTS>,
    recs: ArrayVec<RecConfig, MAX_VCPUS>,
    eager: bool,
}

impl RealmPlan {
    /// Plans the realm `spec`, whose images `load` has placed. `vmid`, which is not measured, is
    /// unique among the realms of the machine and not zero (RMI 1.0 only).
    ///
    /// All segments are measured; with [`Populate::Lazy`] without the pages that are zero. The boot REC starts at the entry point with the address of the
    /// device tree in x0; the others wait for PSCI `CPU_ON`.
    ///
    /// # Errors
    ///
    /// See [`PlanError`].
    pub fn new(spec: &VmSpec<'_>, load: &LoadPlan, vmid: u16) -> Result<Self, PlanError> {
        let realm = spec.realm().ok_or(PlanError::NotARealm)?;
        let ipa_bits =
            u8::try_from(realm.ipa_bits).map_err(|_| PlanError::IpaBits(realm.ipa_bits))?;
        let hash = match realm.hash {
            manifest::HashAlgorithm::Sha256 => HashAlgorithm::Sha256,
            manifest::HashAlgorithm::Sha384 => HashAlgorithm::Sha384,
            manifest::HashAlgorithm::Sha512 => HashAlgorithm::Sha512,
        };
        let fill = match realm.fault {
            FaultSize::Page => Fill::Granule,
            FaultSize::Block => Fill::Block,
        };
        let config = RealmConfig { hash, rpv: realm.rpv, vmid, fill, ..RealmConfig::new(ipa_bits) };
        let top = layout::RAM.checked_add(spec.memory).ok_or(PlanError::Memory(spec.memory))?;
        let segments = load.segments.iter().map(|segment| Segment {
            ipa: segment.ipa,
            pages: match spec.populate {
                // The rest is zero, as memory that comes by a fault is.
                Populate::Lazy => segment.length.div_ceil(PAGE_SIZE),
                Populate::Eager | Populate::Image => segment.size / PAGE_SIZE,
            },
            measured: true,
        });
        let rec = |index: usize| {
            if index == 0 {
                let mut gprs = [0; 8];
                gprs[0] = load.fdt.get();
                RecConfig { pc: load.entry.get(), gprs, runnable: true }
            } else {
                RecConfig::default()
            }
        };
        Ok(Self {
            config,
            eager: spec.populate == Populate::Eager,
            ram: [IpaRange { base: layout::RAM, top }],
            segments: segments.collect(),
            recs: (0..spec.vcpus.min(MAX_VCPUS)).map(rec).collect(),
        })
    }

    /// The plan that the realm builder and the computation of the RIM execute.
    #[must_use]
    pub fn as_build_plan(&self) -> BuildPlan<'_> {
        BuildPlan {
            config: self.config,
            ram: &self.ram,
            segments: &self.segments,
            recs: &self.recs,
            eager: self.eager,
        }
    }

    /// Address of page `page` of segment `segment`, for whoever supplies its contents.
    #[must_use]
    pub fn page_address(&self, segment: usize, page: u64) -> Option<Ipa> {
        let segment = self.segments.get(segment).filter(|segment| page < segment.pages)?;
        segment.ipa.checked_add(page.checked_mul(PAGE_SIZE)?)
    }
}
