//! Reads and writes of system registers of every encoding, and system instructions.

use crate::guest::{Guest, scratch};
use crate::probe::{self, STUBS};
use guest_rt::rng::Rng;

/// MSR and MRS (register), SYS and SYSL: op0 is in bits 20:19, and bit 21 tells reads.
const SYSTEM: u32 = 0xd500_0000;
const READ: u32 = 1 << 21;

/// `op1`, `CRn`, `CRm`, `op2` as the instruction has them.
const fn encoding(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

/// Registers whose change would only take the guest its own footing: SCTLR, SCTLR2, ACTLR-less
/// control of translation (TTBR0, TTBR1, TCR, TCR2, MAIR, MAIR2, PIRE0, PIR, POR, S2POR), VBAR,
/// GCSCR and the stack pointer selection.
const KEPT: &[u32] = &[
    encoding(3, 0, 1, 0, 0),
    encoding(3, 0, 1, 0, 3),
    encoding(3, 0, 2, 0, 0),
    encoding(3, 0, 2, 0, 1),
    encoding(3, 0, 2, 0, 2),
    encoding(3, 0, 2, 0, 3),
    encoding(3, 0, 10, 2, 0),
    encoding(3, 0, 10, 2, 1),
    encoding(3, 0, 10, 2, 2),
    encoding(3, 0, 10, 2, 3),
    encoding(3, 0, 10, 2, 4),
    encoding(3, 0, 10, 2, 5),
    encoding(3, 0, 12, 0, 0),
    encoding(3, 0, 2, 5, 0),
];

/// Registers that somebody has a reason to look at closely: interrupt controller, timers, feature
/// registers, debug, performance monitors.
const INTERESTING: &[(u32, u32, u32)] = &[
    (3, 0, 12),
    (3, 0, 4),
    (3, 3, 14),
    (3, 0, 14),
    (3, 0, 0),
    (3, 3, 0),
    (2, 0, 0),
    (2, 0, 1),
    (3, 3, 9),
    (3, 0, 9),
    (3, 0, 1),
    (3, 0, 2),
    (3, 4, 12),
    (3, 4, 1),
];

/// A register access with `x1`.
fn register_access(rng: &mut Rng) -> u32 {
    loop {
        let name = if rng.one_in(2) {
            let (op0, op1, crn) = rng.pick(INTERESTING);
            encoding(op0, op1, crn, rng.below(16) as u32, rng.below(8) as u32)
        } else {
            // op0 2 and 3.
            encoding(2, 0, 0, 0, 0) | (rng.next_u64() as u32 & (0x7fff << 5))
        };
        let read = rng.one_in(2);
        if read || !KEPT.contains(&name) {
            return SYSTEM | if read { READ } else { 0 } | name | 1;
        }
    }
}

/// Accesses with random values.
pub(crate) fn registers(guest: &mut Guest) -> u64 {
    for index in 0..STUBS {
        probe::write(index, &[register_access(&mut guest.rng)]);
    }
    probe::synchronize();
    for index in 0..STUBS {
        let registers = [0; 8].map(|_| guest.rng.number());
        guest.faults += u64::from(probe::run(index, registers).faulted);
    }
    STUBS as u64
}

/// TLB, cache and address translation instructions of every encoding, set/way among them, and
/// MSR with an immediate, hints and barriers.
pub(crate) fn maintenance(guest: &mut Guest) -> u64 {
    /// WFE, WFI, and the same with a timeout would block; they have their own cases.
    const HINTS: u32 = encoding(0, 3, 2, 0, 0);
    for index in 0..STUBS {
        let word = match guest.rng.below(8) {
            // op0 0 with Rt 31; DAIF and the like are restored behind the probe.
            0 => {
                let name = guest.rng.next_u64() as u32 & (0x3fff << 5);
                if name & (0x7 << 16 | 0xf << 12) == HINTS || name >> 12 & 0xf == 1 {
                    continue;
                }
                SYSTEM | name | 31
            }
            // The operations that exist: op1 0, 3 and 4, CRn 7 and 8.
            1..=5 => {
                let op1 = guest.rng.pick(&[0, 0, 0, 3, 4, 6]);
                let crn = guest.rng.pick(&[7, 7, 8, 8, 9]);
                let [crm, op2] = [16, 8].map(|n| guest.rng.below(n) as u32);
                SYSTEM | encoding(1, op1, crn, crm, op2)
            }
            _ => {
                let name = guest.rng.next_u64() as u32 & (0x3fff << 5);
                SYSTEM | encoding(1, 0, 0, 0, 0) | name | guest.rng.pick(&[0, READ])
            }
        };
        probe::write(index, &[word]);
    }
    probe::synchronize();
    for index in 0..STUBS {
        let mut registers = [0; 8].map(|_| guest.rng.number());
        // DC ZVA and the like write there.
        registers[0] = match guest.rng.below(4) {
            0 => crate::space::address(guest),
            // Set/way: level in bits 3:1.
            1 => guest.rng.next_u64() & 0xffff_fffe,
            // ASID and page number.
            2 => guest.rng.next_u64(),
            _ => scratch() + guest.rng.below(4096),
        };
        if is_ram(guest, registers[0]) {
            registers[0] = scratch();
        }
        guest.faults += u64::from(probe::run(index, registers).faulted);
    }
    STUBS as u64
}

/// Whether the guest itself would feel a write near `address`.
fn is_ram(guest: &Guest, address: u64) -> bool {
    let scratch = scratch();
    let plain = address & 0x3f_ffff_ffff;
    (guest.ram.start..guest.ram.end).contains(&plain) && !(scratch..scratch + 4096).contains(&plain)
}
