//! QEMU's `virt` machine, with or without RME firmware (TF-A) at EL3.

use crate::Board;
use mm::PhysAddr;
use vmm_services::machine::UartModel;

/// The board.
pub(crate) static BOARD: Board = Board {
    name: "QEMU virt",
    compatible: &["linux,dummy-virt"],
    // TF-A built without ARM_LINUX_KERNEL_AS_BL33 passes the MPIDR in x0 and leaves QEMU's tree
    // where QEMU put it.
    device_tree: Some(PhysAddr::new(0x4000_0000)),
    console: Some((PhysAddr::new(0x0900_0000), UartModel::Pl011)),
    // Fixed clock `apb-pclk` of the tree.
    console_clock_hz: Some(24_000_000),
    bundle: Some(PhysAddr::new(0x7000_0000)),
    // TF-A's granule protection table for this machine covers the first 4 GiB.
    delegable_limit: Some(PhysAddr::new(0x1_0000_0000)),
    // TF-A disables its own memory's nodes in the tree and reserves the RMM's.
    secure_memory: &[],
};
