//! Reference RMM: the judge that the host driver is tried against. Not a production RMM.
//!
//! The crate has one core and two hosts. The core ([`Monitor`]) implements the Realm Management
//! Interface: granule states, realm translation tables, RECs, measurement, the exit protocol, RSI
//! and the PSCI that a realm sees. It has no heap, no `unsafe` and no idea of where it runs: all
//! it needs from the machine is behind [`Platform`].
//!
//! * `host` (feature `std`): a simulated machine on the development machine, with memory, a
//!   granule protection table and realm guests that are Rust closures.
//! * The R-EL2 image in `el2/`: the real thing, loaded by EL3 firmware.
//!
//! What the specification rejects is rejected here, in the order of its failure conditions; the
//! driver under test must never be able to pass because its judge was lenient.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod abi;
pub mod addr;
pub mod context;
mod dispatch;
mod esr;
mod exit;
mod gic;
pub mod granule;
#[cfg(feature = "std")]
pub mod host;
mod inject;
pub mod measurement;
pub mod monitor;
pub mod platform;
mod psci;
mod realm;
mod rec;
mod rsi;
mod rtt;
mod run;
mod sysreg;
pub mod v2;
mod vmid;

pub use addr::{GRANULE_SIZE, Ipa, Pa};
pub use context::{El1State, GicState, RecContext, TimerState};
pub use granule::{GranuleSlot, GranuleState};
pub use monitor::{BootError, Monitor, RamRange};
pub use platform::{Platform, RawExit};
pub use rec::MAX_REC_AUX;
pub use v2::{Abi, Donation, Rmi2};
