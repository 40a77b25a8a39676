//! Device models, PSCI, guest device tree, loaders and manifest of Suzerain.
//!
//! Everything a virtual machine needs beside memory and processor time. The interface is
//! message-shaped: a vCPU that left its guest becomes an [`Exit`], [`VmServices::handle`] answers
//! with a [`Response`], and neither holds a reference into the hypervisor. Guest memory is reached
//! through [`GuestMemory`], interrupts are raised through [`VirtualIrq`], console output leaves
//! through [`ConsoleSink`], random numbers come from [`Entropy`]. A vCPU of an ordinary VM and a REC of a realm look the same from here.
//!
//! Every value that comes from a guest or from a file is taken as hostile: it is checked before
//! use, and no such value makes this crate panic.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod channel;
mod console;
pub mod crc32;
pub mod exit;
pub mod fdt;
#[cfg(test)]
mod fuzz_tests;
pub mod host_call;
pub mod ids;
pub mod layout;
pub mod loader;
pub mod machine;
pub mod manifest;
pub mod passthrough;
mod psci;
mod smccc;
pub mod switch;
#[cfg(test)]
pub(crate) mod testing;
pub mod traits;
mod trng;
mod uart;
pub mod vgic;
pub mod virtio;
pub mod vm;
pub mod watchdog;

pub use exit::{Exit, Resume};
pub use ids::{MAX_VCPUS, VcpuId, VcpuSet};
pub use traits::{
    ConsoleSink, Countdown, DiskError, Disks, Entropy, EntropyError, GuestMemory, MemoryFault,
    NicId, Peers, VirtualIrq,
};
pub use vm::{Response, VmServices};
