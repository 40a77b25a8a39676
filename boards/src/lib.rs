//! Board descriptions: what the device tree that firmware passes does not say.
//!
//! Addresses come from the device tree. A board is data for what the tree cannot say: where things
//! lie that are needed before the tree is found, and what firmware cannot do. A machine that no
//! board claims runs as [`GENERIC`]. `docs/porting.md` tells how to add a board.
#![no_std]
#![forbid(unsafe_code)]

mod qemu_virt;

use mm::PhysAddr;
use mm::ledger::PhysRange;
use vmm_services::machine::UartModel;

/// A board: what Suzerain must know about it beyond its device tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Board {
    /// Name for messages.
    pub name: &'static str,
    /// Values of the root node's `compatible` that select this board.
    pub compatible: &'static [&'static str],
    /// Where firmware leaves the device tree when it passes no pointer to one: the start of DRAM
    /// on many machines.
    pub device_tree: Option<PhysAddr>,
    /// The UART to use if the tree names none that there is a driver for: its registers, and what
    /// it is.
    pub console: Option<(PhysAddr, UartModel)>,
    /// Input clock of the console in Hz if that is a PL011 and the hypervisor is to set the line to
    /// 115200 8N1; `None` leaves what firmware has set.
    pub console_clock_hz: Option<u32>,
    /// Where the bundle of VMs lies if `/chosen` names no initrd.
    pub bundle: Option<PhysAddr>,
    /// First address that firmware cannot delegate to the realm world, although there may be RAM
    /// from there on; `None` if all RAM can be delegated.
    pub delegable_limit: Option<PhysAddr>,
    /// Memory that the tree calls RAM and that the normal world must not touch.
    pub secure_memory: &'static [PhysRange],
}

/// Used where no board module claims the machine: everything comes from the device tree.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_boards_claim_the_same_machine() {
        for (index, board) in BOARDS.iter().enumerate() {
            for name in board.compatible {
                let claims = BOARDS.iter().filter(|other| other.compatible.contains(name));
                assert_eq!(claims.count(), 1, "{name}");
            }
            assert!(!BOARDS[..index].contains(board), "{} is listed twice", board.name);
        }
    }

    #[test]
    fn the_most_specific_name_decides() {
        assert_eq!(select(["acme,board", "linux,dummy-virt"].into_iter()).name, "QEMU virt");
        assert_eq!(select(["acme,board"].into_iter()), &GENERIC);
        assert_eq!(select([].into_iter()), &GENERIC);
    }

    #[test]
    fn addresses_needed_before_the_tree_are_usable() {
        for board in BOARDS {
            assert!(board.device_tree.is_none_or(|at| at.is_aligned(8)), "{}", board.name);
            assert!(board.bundle.is_none_or(|at| at.is_aligned(4096)), "{}", board.name);
            assert!(board.console.is_none_or(|(at, _)| at.is_aligned(4)), "{}", board.name);
        }
    }
}
