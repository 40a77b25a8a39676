//! What a machine is: facts that its device tree states ([`Machine`]), and facts that a board
//! module has to add ([`Board`]).
//!
//! Addresses come from the device tree that firmware passes. A board is data for what the tree
//! cannot say: where things lie that are needed before the tree is found, and limits of firmware.
//! `docs/porting.md` tells how to add one.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod machine;
mod qemu_virt;

pub use machine::{
    CONSOLE_COMPATIBLE, Conduit, Cpu, Gic, MAX_CPUS, Machine, MachineError, PpiIds, Range, Reserved,
};

use mm::PhysAddr;

/// A board: what Suzerain must know about it beyond its device tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Board {
    /// Name for messages.
    pub name: &'static str,
    /// Values of the root node's `compatible` property that select this board.
    pub compatible: &'static [&'static str],
    /// Where firmware leaves the device tree when it passes no pointer to one: the start of DRAM
    /// on many machines.
    pub device_tree: Option<PhysAddr>,
    /// Registers of the PL011 to use if `/chosen/stdout-path` names none that works.
    pub console: Option<PhysAddr>,
    /// Input clock of the console UART in Hz, if the hypervisor is to set the line to 115200 8N1;
    /// `None` leaves what firmware has set.
    pub console_clock_hz: Option<u32>,
    /// Where the bundle of VMs lies if `/chosen` names no initrd.
    pub bundle: Option<PhysAddr>,
    /// First address that the machine's firmware cannot delegate to the realm world, although
    /// there may be RAM from there on.
    pub delegable_limit: Option<PhysAddr>,
    /// Memory that the device tree calls RAM and that the normal world must not touch.
    pub secure_memory: &'static [Range],
}

/// Used where no board module claims the machine: everything from the device tree.
pub static GENERIC: Board = Board {
    name: "generic",
    compatible: &[],
    device_tree: None,
    console: None,
    console_clock_hz: None,
    bundle: None,
    delegable_limit: None,
    secure_memory: &[],
};

/// All boards.
pub static BOARDS: &[&Board] = &[&qemu_virt::BOARD];

/// The board for a device tree whose root node is compatible with `compatible`, most specific
/// first; [`GENERIC`] if none claims it.
pub fn select<'a>(mut compatible: impl Iterator<Item = &'a str>) -> &'static Board {
    compatible
        .find_map(|name| BOARDS.iter().copied().find(|board| board.compatible.contains(&name)))
        .unwrap_or(&GENERIC)
}
