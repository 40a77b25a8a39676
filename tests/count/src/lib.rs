//! A plugin for QEMU's TCG that counts the instructions which a machine executes, by the memory
//! they lie in: hypervisor, RMM, guests, and everything outside RAM, which is the firmware.
//!
//! Instructions are told apart by host address, which stands for the physical address: guests map
//! what they like where they like. Before the first guest runs, all code runs where it lies, so
//! the first instruction at an address of RAM tells where the host keeps RAM.
//!
//! A guest marks intervals by two instructions without effect, `movz xzr, #ID` where one begins and
//! `movz xzr, #(ID | 0x8000)` where it ends; the counts between them are kept. Intervals with
//! different IDs may overlap, and another vCPU may end what one began.
//!
//! Counts are exact under `-icount`, where one thread runs all processors.
//!
//! Arguments: `out=FILE` for the result, and `ram=`, `hypervisor=` and `rmm=`, each
//! `0xBASE:0xSIZE`. The result is text, one fact a line; see [`report`].

mod config;
mod intervals;
#[cfg(not(test))]
mod plugin;
#[cfg(not(test))]
mod qemu;
mod report;
