//! Everything that needs the instruction set: the only place with assembly and system registers.

pub mod bulk;
pub mod cache;
pub mod cpu;
pub mod crc;
pub mod el1;
pub mod entry;
pub mod esr;
pub mod exception;
pub mod firmware;
pub mod guest;
pub mod id_regs;
pub mod layout;
mod mem;
pub mod mitigation;
pub mod percpu;
pub mod phys;
pub mod probe;
pub mod psci;
pub mod rndr;
pub mod smc;
pub mod sysreg;
pub mod tables;
pub mod timer;
pub mod tlb;
pub mod traps;
pub mod vectors;
pub mod vgic_hw;
