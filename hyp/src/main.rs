//! Suzerain's EL2 kernel: boot, traps, the world switch, the run loop and the monitor of VMs.
//!
//! `unsafe` and assembly live in [`arch`], apart from the few lines of drivers that reach
//! registers. There is no heap.
#![no_std]
#![no_main]

pub mod arch;
pub mod boot;
pub mod console;
pub mod cores;
pub mod entropy;
pub mod irq;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod panic;
pub mod run;
pub mod sync;
pub mod uart;
pub mod vm;
