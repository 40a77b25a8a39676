//! What the tests of the CCA driver share: a machine with the reference RMM behind the driver's traits, a
//! wrapper that refuses chosen calls, and a run loop that serves a realm as a hypervisor would.

mod rig;
mod run;

pub use rig::{RAM_BASE, Refusal, Rig, World, abis, each_abi, with_world, with_world_of};
pub use run::{BUDGET, Outcome, RunError, Services, destroy, run_to_end};
