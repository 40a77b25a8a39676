//! RMI 2.0: range commands, stateful operations, activation of the monitor.
//!
//! All drafts of 2.0 have one version word, and the implementations in the field differ, so what
//! differs is configured ([`Rmi2`]). Devices, planes, memory encryption contexts and granule sizes
//! other than 4 KiB are not implemented: the feature registers say so.

mod dispatch;
mod global;
mod granules;
mod map;
mod operation;
mod range;
mod rec;
mod unmap;

use crate::rec::MAX_REC_AUX;

pub use operation::MAX_CONTEXTS;
pub(crate) use operation::OperationPool;

/// Which interface the monitor speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Abi {
    /// RMI 1.0.
    #[default]
    V1_0,
    /// RMI 2.0.
    V2_0(Rmi2),
}

/// Which implementation of 2.0 to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draft {
    /// TF-RMM v0.9.0: RTT_MAP_UNPROTECTED and RTT_UNMAP_UNPROTECTED of 1.0, data ranges of one
    /// page and SINGLE only, no REALM_TERMINATE, GRANULE_TRACKING_GET of one region.
    V0_9,
    /// TF-RMM main of July 2026.
    Head,
    /// Drafts after that, as far as they are known: RMM_STATE_GET, a state of two bits in address
    /// descriptors, PSCI_COMPLETE without the target REC (two operands), which the monitor finds
    /// by the MPIDR, so that AFFINITY_INFO does not exit.
    Late,
}

impl Draft {
    /// PSCI_COMPLETE names the target REC.
    pub(crate) const fn psci_names_target(self) -> bool {
        !matches!(self, Self::Late)
    }
}

/// Details in which implementations of RMI 2.0 differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rmi2 {
    /// The set of commands.
    pub draft: Draft,
    /// GRANULE_RANGE_DELEGATE and UNDELEGATE work on the whole range; if not, on one granule per
    /// call.
    pub whole_ranges: bool,
    /// RTT_DATA_MAP and the unmap commands without a list answer INCOMPLETE once before they
    /// tell their result, and commands on ranges of granules when they are half done, as if an
    /// interrupt had been pending.
    pub yields: bool,
    /// How GRANULE_RANGE_DELEGATE and UNDELEGATE want a granule for the time that they work on a
    /// range of more than one, if they do.
    pub scratch: Option<Donation>,
    /// How REC_CREATE wants its auxiliary granules: one operation after the other in turns.
    pub donations: [Donation; 2],
    /// Contexts for stateful operations, at most [`MAX_CONTEXTS`].
    pub contexts: usize,
}

/// How an operation wants the memory that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Donation {
    /// At most so many granules by one request; never 0.
    pub most: u64,
    /// What a request asks for in one piece, aligned to its size.
    pub contiguous: bool,
    /// Undelegated: the monitor delegates it, and gives it back undelegated.
    pub undelegated: bool,
    /// The operation can be cancelled until it has all of it.
    pub cancellable: bool,
}

impl Donation {
    /// All at once, delegated pages anywhere, and no way back, as in both implementations.
    pub const PAGES: Self = Self {
        most: MAX_REC_AUX as u64,
        contiguous: false,
        undelegated: false,
        cancellable: false,
    };

    /// How many granules are asked for when so many are missing.
    pub(crate) fn request(&self, missing: u64) -> u64 {
        missing.min(self.most)
    }
}

impl Rmi2 {
    /// Like TF-RMM v0.9.0.
    pub const V0_9: Self = Self {
        draft: Draft::V0_9,
        whole_ranges: false,
        yields: false,
        scratch: None,
        donations: [Donation::PAGES; 2],
        contexts: MAX_CONTEXTS,
    };
    /// Like TF-RMM main of July 2026.
    pub const HEAD: Self = Self { draft: Draft::Head, ..Self::V0_9 };
    /// A late draft with all that the interface allows and neither implementation does: whole
    /// ranges, operations that yield, donations in pieces, contiguous or undelegated.
    pub const EVERYTHING: Self = Self {
        whole_ranges: true,
        yields: true,
        scratch: Some(Donation { undelegated: true, cancellable: true, ..Donation::PAGES }),
        donations: [
            Donation { contiguous: true, undelegated: true, cancellable: true, ..Donation::PAGES },
            Donation { most: 6, cancellable: true, ..Donation::PAGES },
        ],
        draft: Draft::Late,
        ..Self::HEAD
    };
}

/// Function identifiers that RMI 2.0 has and 1.0 has not.
pub mod fid {
    const BASE: u64 = 0xC400_0000;

    /// RMI_RTT_DATA_MAP_INIT (the number of DATA_CREATE in 1.0).
    pub const RTT_DATA_MAP_INIT: u64 = BASE | 0x153;
    /// RMI_RMM_CONFIG_SET.
    pub const RMM_CONFIG_SET: u64 = BASE | 0x16E;
    /// RMI_GRANULE_TRACKING_GET.
    pub const GRANULE_TRACKING_GET: u64 = BASE | 0x1E1;
    /// RMI_RMM_STATE_GET.
    pub const RMM_STATE_GET: u64 = BASE | 0x1EE;
    /// RMI_RMM_CONFIG_GET.
    pub const RMM_CONFIG_GET: u64 = BASE | 0x1EC;
    /// RMI_GRANULE_RANGE_DELEGATE.
    pub const GRANULE_RANGE_DELEGATE: u64 = BASE | 0x1F1;
    /// RMI_GRANULE_RANGE_UNDELEGATE.
    pub const GRANULE_RANGE_UNDELEGATE: u64 = BASE | 0x1F2;
    /// RMI_GPT_L1_CREATE.
    pub const GPT_L1_CREATE: u64 = BASE | 0x1F3;
    /// RMI_RTT_DATA_MAP.
    pub const RTT_DATA_MAP: u64 = BASE | 0x1F5;
    /// RMI_RTT_DATA_UNMAP.
    pub const RTT_DATA_UNMAP: u64 = BASE | 0x1F6;
    /// RMI_RTT_UNPROT_MAP.
    pub const RTT_UNPROT_MAP: u64 = BASE | 0x1FB;
    /// RMI_RTT_UNPROT_UNMAP.
    pub const RTT_UNPROT_UNMAP: u64 = BASE | 0x1FC;
    /// RMI_REALM_TERMINATE.
    pub const REALM_TERMINATE: u64 = BASE | 0x201;
    /// RMI_RMM_ACTIVATE.
    pub const RMM_ACTIVATE: u64 = BASE | 0x202;
    /// RMI_OP_CONTINUE.
    pub const OP_CONTINUE: u64 = BASE | 0x203;
    /// RMI_OP_MEM_DONATE.
    pub const OP_MEM_DONATE: u64 = BASE | 0x208;
    /// RMI_OP_MEM_RECLAIM.
    pub const OP_MEM_RECLAIM: u64 = BASE | 0x209;
    /// RMI_OP_CANCEL.
    pub const OP_CANCEL: u64 = BASE | 0x20A;
}
