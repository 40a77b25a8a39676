//! Runtime of the bare-metal test guests.
//!
//! A guest is one flat arm64 `Image` that runs at EL1 wherever it is loaded, as a normal VM or as a realm.
//! The runtime relocates it, gives each vCPU a stack and exception vectors, reads the device tree, switches
//! the MMU on, calls the binary, and ends the guest as [`guest!`] says. The rest are services that the
//! binary uses as it likes, first among them [`gic`], which has to be set up, and [`timer`].
//!
//! The binaries are built for a target that has no floating point in compiled code: an interrupt
//! handler need not save those registers, and a guest can use them to check that nobody else
//! changes them.
#![no_std]
#![cfg(target_os = "none")]

pub mod boot;
pub mod channel;
pub mod console;
pub mod entry;
pub mod failure;
pub mod gic;
pub mod host;
pub mod mark;
pub mod mmu;
pub mod psci;
pub mod rng;
pub mod rsi;
pub mod timer;
pub mod uart;

/// Stacks, and so vCPUs, that a guest has at most.
pub const MAX_CPUS: usize = 4;

/// Index of the vCPU that runs this, below [`MAX_CPUS`]: the entry code parks all others.
#[must_use]
pub fn cpu_index() -> usize {
    use aarch64_cpu::registers::{MPIDR_EL1, Readable};
    (MPIDR_EL1.get() & 0xff) as usize % MAX_CPUS
}
