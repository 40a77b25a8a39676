//! Everything that needs the instruction set: the only place with assembly and system registers.

pub mod cache;
pub mod cpu;
pub mod crc;
pub mod entry;
pub mod exception;
pub mod guest;
pub mod layout;
pub mod percpu;
pub mod probe;
pub mod psci;
pub mod smc;
pub mod sysreg;
pub mod timer;
pub mod vectors;
