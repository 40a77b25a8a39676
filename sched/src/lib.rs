//! Scheduling policy of Suzerain: pure logic, tested on the development machine.
//!
//! # Policy
//!
//! - **Entities** are vCPUs; whether one is an ordinary vCPU or a REC makes no difference here.
//! - **Fixed priorities**, higher number first; entities of one priority take turns on their core, each
//!   for its time slice. An entity that is preempted by a more urgent one keeps the rest of its slice and
//!   its place at the head of the queue.
//! - **Budgets** are enforced: an entity that has used its budget is throttled until the next period
//!   begins. A stop that comes late is charged to the periods after it.
//! - **One queue per core.** A wake-up goes to the core where the entity ran before if that core would
//!   run it at once, else to one that would, else to a queue that is not longer than others. An entity
//!   whose slice is over moves to a core with a shorter queue.
//! - **No core idles** while an entity that it may run is queued anywhere, and none runs an entity while a
//!   more urgent one that it may run waits, except for the time that a kick takes.
//! - **No tick.** [`Scheduler::pick`] tells the one time at which the core must pick again, if any.
//!
//! # Use
//!
//! There is no clock and no lock inside. `now` is in nanoseconds from any fixed origin, the same on all
//! cores, and does not go back. All cores share one [`Scheduler`] under one lock: every call is short and its
//! cost does not depend on the number of entities in the common case.
//!
//! Each core runs this loop: `pick`; run the entity, or sleep, until an interrupt or an exit that ends
//! the run; `stop` with the reason; again. A *kick* is an interrupt that makes a core do so.
//!
//! # No lost wake-up
//!
//! A vCPU executes WFI while another core posts an interrupt for it. The poster makes the interrupt
//! pending first and calls [`Scheduler::wake`] then. The vCPU's core looks for pending interrupts first,
//! and calls [`Scheduler::stop`] with [`Stop::Blocked`] then. Either the core sees the interrupt, or `wake` comes
//! after the look: before the stop, it is remembered and the stop leaves the entity runnable; after it, it
//! wakes the blocked entity. `tests/models` checks all interleavings with a model checker.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(any(test, loom))]
extern crate std;

mod budget;
mod entity;
pub mod lifecycle;
mod placement;
mod queue;
mod scheduler;
mod set;
mod sync;

use core::fmt;

pub use budget::Budget;
pub use entity::{Params, State, Stats};
pub use scheduler::{Next, Pick, Scheduler, Stop};
pub use set::{CoreId, CoreSet, EntityId};

/// Shortest slice and budget in nanoseconds: 10 us. Shorter ones would spend the core on switching.
pub const MIN_NS: u64 = 10_000;

/// Why an entity was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// All entity numbers are in use.
    Full,
    /// Its affinity contains no core of this machine.
    NoCore,
    /// Its slice is shorter than [`MIN_NS`].
    SliceTooShort,
    /// Its budget is shorter than [`MIN_NS`] or longer than its period.
    BadBudget,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "no free entity number",
            Self::NoCore => "affinity contains no core of this machine",
            Self::SliceTooShort => "time slice is too short",
            Self::BadBudget => "budget is too short or longer than its period",
        })
    }
}

impl core::error::Error for AddError {}

/// Why an entity was not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// No entity has this number.
    Unknown,
    /// A core runs it.
    Running,
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no such entity",
            Self::Running => "the entity is running",
        })
    }
}

impl core::error::Error for RemoveError {}
