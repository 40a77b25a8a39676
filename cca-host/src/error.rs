//! Errors of the driver: what happened, who is to blame, and what the caller should do.

use core::fmt;

use mm::ledger::{NotOurs, OutOfMemory};
use mm::{Ipa, PhysAddr};

use crate::command::Command;
use crate::conduit::AccessFault;
use crate::measurement::HashAlgorithm;
use crate::status::Status;

/// Why an operation of the driver failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The RMM refused a call.
    Refused {
        /// The call.
        command: Command,
        /// Its answer.
        status: Status,
    },
    /// The RMM accepted a call but its answer makes no sense.
    Misbehaved {
        /// The call.
        command: Command,
        /// What is wrong with the answer.
        answer: BadAnswer,
    },
    /// The hypervisor has no memory left for it.
    OutOfMemory(OutOfMemory),
    /// The hypervisor could not reach its own memory.
    Memory(AccessFault),
    /// The caller asked for something that no RMM would accept.
    Invalid(Invalid),
}

/// How an answer of the RMM contradicts the specification or the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadAnswer {
    /// It returned a granule that the ledger did not give it for that use.
    NotOurs(NotOurs),
    /// It reported progress that is none, or that lies outside the range asked for.
    Progress {
        /// Where the call began.
        from: u64,
        /// Where the RMM says that it ended.
        to: u64,
    },
    /// It reported a table level that is impossible or has just been created.
    Level(i8),
    /// It asked for or returned more than the interface allows.
    Amount(u64),
    /// It left the protocol of stateful operations.
    Protocol(Status),
    /// It wants delegated memory in order to delegate or undelegate memory.
    Donation,
}

/// What is wrong with a request of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalid {
    /// The range is empty, misaligned, or outside the part of the IPA space that it must lie in.
    Range {
        /// First address.
        base: Ipa,
        /// First address after the range.
        top: Ipa,
    },
    /// The physical address is misaligned.
    PhysAddr(PhysAddr),
    /// A parameter of the realm is more, or less, than the RMM supports.
    Parameter {
        /// Name of the parameter.
        name: &'static str,
        /// Value asked for.
        asked: u64,
        /// Nearest value supported.
        supported: u64,
    },
    /// A hash algorithm that the RMM does not offer.
    Hash(HashAlgorithm),
    /// More RECs than the driver or the RMM supports.
    TooManyRecs,
    /// The REC has no request of that kind pending.
    NothingPending,
    /// Something is mapped there already.
    Mapped(Ipa),
}

/// Who is to blame for an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// The realm asked for something impossible or has stopped.
    Guest,
    /// The hypervisor: wrong arguments, or lost track of a granule.
    Host,
    /// The RMM broke its interface.
    Rmm,
    /// Nobody: memory or identifiers ran out.
    Resources,
    /// Nobody: another core was faster, or the object is in use.
    Race,
}

/// What to do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Try again after other cores have made progress.
    Retry,
    /// Stop and destroy the realm; other VMs go on.
    Destroy,
    /// Refuse the request; the realm can go on.
    Refuse,
}

impl Error {
    /// Who is to blame.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Refused { status, .. } => match status {
                Status::Busy | Status::Blocked | Status::Rec => Blame::Race,
                Status::Realm { .. } => Blame::Guest,
                Status::Global => Blame::Resources,
                Status::NotImplemented | Status::Unknown { .. } | Status::Success => Blame::Rmm,
                _ => Blame::Host,
            },
            Self::Misbehaved { .. } => Blame::Rmm,
            Self::OutOfMemory(_) => Blame::Resources,
            Self::Memory(_) | Self::Invalid(_) => Blame::Host,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn reaction(&self) -> Reaction {
        match self {
            Self::Refused { status: Status::Busy | Status::Blocked | Status::Rec, .. } => {
                Reaction::Retry
            }
            Self::OutOfMemory(_) | Self::Invalid(_) => Reaction::Refuse,
            _ => Reaction::Destroy,
        }
    }

    /// The RMI call that failed, if it was one.
    #[must_use]
    pub const fn command(&self) -> Option<Command> {
        match self {
            Self::Refused { command, .. } | Self::Misbehaved { command, .. } => Some(*command),
            _ => None,
        }
    }

    /// The status with which the RMM refused, if it did.
    #[must_use]
    pub const fn status(&self) -> Option<Status> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) const fn progress(command: Command, from: u64, to: u64) -> Self {
        Self::Misbehaved { command, answer: BadAnswer::Progress { from, to } }
    }

    pub(crate) const fn range(base: Ipa, top: Ipa) -> Self {
        Self::Invalid(Invalid::Range { base, top })
    }
}

impl From<OutOfMemory> for Error {
    fn from(error: OutOfMemory) -> Self {
        Self::OutOfMemory(error)
    }
}

impl From<AccessFault> for Error {
    fn from(error: AccessFault) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { command, status } => write!(f, "{command} refused: {status}"),
            Self::Misbehaved { command, answer } => write!(f, "{command} answered badly: {answer}"),
            Self::OutOfMemory(error) => write!(f, "{error}"),
            Self::Memory(error) => write!(f, "{error}"),
            Self::Invalid(invalid) => write!(f, "{invalid}"),
        }
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs(error) => write!(f, "{error}"),
            Self::Progress { from, to } => write!(f, "progress from {from:#x} to {to:#x}"),
            Self::Level(level) => write!(f, "table level {level}"),
            Self::Amount(amount) => write!(f, "amount {amount}"),
            Self::Protocol(status) => write!(f, "{status} out of turn"),
            Self::Donation => f.write_str("it wants delegated memory for a delegation"),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { base, top } => write!(f, "bad address range {base}..{top}"),
            Self::PhysAddr(addr) => write!(f, "bad physical address {addr}"),
            Self::Parameter { name, asked, supported } => {
                write!(f, "{name} of {asked} is not supported (RMM: {supported})")
            }
            Self::Hash(hash) => write!(f, "the RMM does not measure by {}", hash.name()),
            Self::TooManyRecs => f.write_str("too many RECs"),
            Self::NothingPending => f.write_str("no such request is pending"),
            Self::Mapped(ipa) => write!(f, "{ipa} is mapped already"),
        }
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Host => "host",
            Self::Rmm => "RMM",
            Self::Resources => "resources",
            Self::Race => "race",
        })
    }
}

impl core::error::Error for Error {}
