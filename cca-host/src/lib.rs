//! Host-side Arm CCA driver: what a hypervisor in the normal world needs to host realms.
//!
//! The Realm Management Monitor (RMM) owns the memory and the register state of realms. This crate
//! speaks its interface, the RMI, in both versions that are in the field, and keeps account of every
//! granule that moves between the worlds:
//!
//! * [`Rmm`]: negotiation, calls, granule delegation. Works over a [`Conduit`] and [`HostMemory`] that the
//!   hypervisor implements.
//! * [`Realm`]: life cycle of a realm, its stage-2 tables, faults, RIPAS changes, shared memory.
//! * [`Rec`]: a virtual CPU of a realm: entry, typed exits, answers.
//! * [`plan`]: the order of construction, written once for the builder and for [`rim`], which computes
//!   the realm initial measurement beforehand.
//!
//! A refusal of the RMM is an outcome, not a panic: [`Error`] says which call was refused, why, and who is to
//! blame, and whatever was refused, the [`mm::ledger::Ledger`] can say where each granule is.
//!
//! The crate needs no heap and contains no `unsafe` code.
#![no_std]
#![forbid(unsafe_code)]

mod command;
mod conduit;
mod error;
mod exit;
mod features;
mod geometry;
mod layout;
mod measurement;
pub mod plan;
mod realm;
mod rec;
pub mod rim;
mod rmm;
mod rtt;
mod status;
mod v2;

pub use self::command::Command;
pub use self::conduit::{AccessFault, Conduit, Host, HostMemory};
pub use self::error::{BadAnswer, Blame, Error, Invalid, Reaction};
pub use self::exit::{
    Access, ExitCause, HostCall, Mmio, PsciRequest, RecExit, Ripas, RipasChange, SyncExit, SysReg,
    SysRegAccess, TimerState, Timers,
};
pub use self::features::{Abi, Capabilities, Dialect, Features, GicModel, Revision, Tracking};
pub use self::geometry::{Geometry, LAST_LEVEL, TOP_BLOCK_LEVEL};
pub use self::measurement::{Digest, HashAlgorithm};
pub use self::realm::{
    Active, DestroyFailure, DestroyReport, Dismantling, FaultIn, Fill, New, Realm, RealmConfig,
    RealmState, RecConfig, RipasProgress,
};
pub use self::rec::{
    EnterError, Entry, GicImage, Pending, PsciStatus, Rec, RecDestroyFailure, RecId, Resume,
    rec_mpidr,
};
pub use self::rmm::{CallCounts, Config, NegotiationError, POOL_CAPACITY, Returned, Rmm};
pub use self::rtt::{Entry as RttEntry, EntryState, MemoryType, SharedAttrs};
pub use self::status::{MemoryRequest, Status};
