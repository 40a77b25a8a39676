//! Result words of RMI calls (RmiResult, RmiStatusCode).

use core::fmt;

/// Outcome of an RMI call, from X0: status in bits 7:0, index in bits 15:8.
///
/// The numbers 5 and 6 were swapped between two drafts of 1.1; they read as in 2.0. RMI 1.0 does not
/// use them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Done.
    Success,
    /// An argument is wrong, or a granule is not in the needed state.
    Input,
    /// The realm's state does not allow it. The index means something for REC_ENTER in 1.0 only.
    Realm {
        /// 0: not activated yet; 1: switched off.
        index: u8,
    },
    /// The REC is running, not runnable, or has an unanswered request; or the entry is malformed.
    Rec,
    /// The walk of the stage-2 tables ended at `level`, or the entry there is not as needed.
    Rtt {
        /// Level of the last table reached; -1 only with LPA2.
        level: i8,
    },
    /// Not supported by this RMM.
    NotSupported,
    /// A device is not in the needed state.
    Device,
    /// An auxiliary (plane) table is in the way.
    RttAux,
    /// A stream table of a physical SMMU is in the way.
    PsmmuSt,
    /// A device permission table is in the way.
    Dpt,
    /// Nothing has changed; repeat the call.
    Busy,
    /// The state of the RMM as a whole does not allow it, or it is out of identifiers.
    Global,
    /// The tracking region of the address is not in the needed state.
    Tracking,
    /// A stateful operation has begun.
    Incomplete {
        /// What the operation waits for.
        request: MemoryRequest,
        /// Whether it can be cancelled.
        cancellable: bool,
    },
    /// Nothing has changed; another incomplete operation holds the object.
    Blocked,
    /// The granule protection tables are not as needed.
    Gpt,
    /// A granule is not in the needed state.
    Granule,
    /// The RMM does not implement the function, or there is no RMM: X0 is -1.
    NotImplemented,
    /// A status that no known version defines.
    Unknown {
        /// X0.
        word: u64,
    },
}

/// What an incomplete operation waits for (bits 9:8 of the result).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryRequest {
    /// To be continued.
    None,
    /// Memory from the host.
    Donate,
    /// The host to take memory back.
    Reclaim,
    /// Reserved value.
    Reserved,
}

impl Status {
    /// Decodes X0.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let index = (word >> 8) as u8;
        if word == u64::MAX {
            return Self::NotImplemented;
        }
        if word >> 16 != 0 {
            return Self::Unknown { word };
        }
        match word as u8 {
            0 => Self::Success,
            1 => Self::Input,
            2 => Self::Realm { index },
            3 => Self::Rec,
            4 => Self::Rtt { level: index as i8 },
            5 => Self::NotSupported,
            6 => Self::Device,
            7 => Self::RttAux,
            8 => Self::PsmmuSt,
            9 => Self::Dpt,
            10 => Self::Busy,
            11 => Self::Global,
            12 => Self::Tracking,
            13 => Self::Incomplete {
                request: match index & 3 {
                    0 => MemoryRequest::None,
                    1 => MemoryRequest::Donate,
                    2 => MemoryRequest::Reclaim,
                    _ => MemoryRequest::Reserved,
                },
                cancellable: index & 4 != 0,
            },
            14 => Self::Blocked,
            15 => Self::Gpt,
            16 => Self::Granule,
            _ => Self::Unknown { word },
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("SUCCESS"),
            Self::Input => f.write_str("ERROR_INPUT"),
            Self::Realm { index } => write!(f, "ERROR_REALM({index})"),
            Self::Rec => f.write_str("ERROR_REC"),
            Self::Rtt { level } => write!(f, "ERROR_RTT({level})"),
            Self::NotSupported => f.write_str("ERROR_NOT_SUPPORTED"),
            Self::Device => f.write_str("ERROR_DEVICE"),
            Self::RttAux => f.write_str("ERROR_RTT_AUX"),
            Self::PsmmuSt => f.write_str("ERROR_PSMMU_ST"),
            Self::Dpt => f.write_str("ERROR_DPT"),
            Self::Busy => f.write_str("BUSY"),
            Self::Global => f.write_str("ERROR_GLOBAL"),
            Self::Tracking => f.write_str("ERROR_TRACKING"),
            Self::Incomplete { .. } => f.write_str("INCOMPLETE"),
            Self::Blocked => f.write_str("BLOCKED"),
            Self::Gpt => f.write_str("ERROR_GPT"),
            Self::Granule => f.write_str("ERROR_GRANULE"),
            Self::NotImplemented => f.write_str("not implemented"),
            Self::Unknown { word } => write!(f, "unknown status {word:#x}"),
        }
    }
}
