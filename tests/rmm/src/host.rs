//! In-process host: a simulated machine with the monitor inside, for tests on the development
//! machine.
//!
//! A [`Machine`] has RAM whose granules are each in a physical address space, a translation cache
//! that forgets only what the monitor invalidates, a system counter that tests move by hand, and
//! realm guests that are Rust closures. What a guest touches is translated through the tables that
//! the monitor wrote, so a driver that maps wrongly fails as it would on hardware.
//!
//! ```
//! use rmm::abi::fid;
//! use rmm::host::{Config, Machine};
//!
//! let machine = Machine::new(Config::default());
//! let granule = machine.ram().base;
//! machine.write(granule, b"mine").unwrap();
//! assert_eq!(machine.call(fid::GRANULE_DELEGATE, [granule.0, 0, 0, 0, 0, 0, 0])[0], 0);
//! assert!(machine.write(granule, b"mine").is_err(), "granule protection fault");
//! ```
//!
//! # Fault injection
//!
//! [`Machine::call`] is the only way into the monitor, takes plain numbers and returns plain
//! numbers. A test that wants the N-th call refused wraps it: count, and answer for the monitor
//! instead of calling on. The monitor then knows nothing of the call, which is exactly what a
//! refusal means. [`Machine::census`] and [`Machine::granule_state`] tell what really happened to
//! each granule.

mod cpu;
mod guest;
mod machine;
mod memory;
mod translation;

pub use cpu::{Cpu, Stop};
pub use guest::GuestProgram;
pub use machine::{Census, Config, Machine};
pub use memory::{AccessFault, Space};
