//! Stage-1 tables in device memory, in holes, in scratch memory that changes, and the MMU off.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{MAX_CPUS, cpu_index};

use crate::guest::{Guest, SCRATCH_BYTES, put, scratch};
use crate::probe;
use crate::space::{self, GIB, RAM, Table};
use guest_rt::rng::Rng;

/// Cases between two fillings of the table.
const RUNS: u64 = 64;
/// First and last block that is a table to play with: RAM is in block 1.
const BLOCKS: core::ops::Range<u64> = 2..256;

static TABLES: [Table; MAX_CPUS] = [const { Table([const { AtomicU64::new(0) }; 512]) }; MAX_CPUS];

/// `ttbr0_el1` from x1, a load, a store or a fetch at x0, then the old tables from x2.
const WITH_TABLES: [[u32; 12]; 3] = [
    with_tables(0xf940_0003), // ldr x3, [x0]
    with_tables(0xf900_0004), // str x4, [x0]
    with_tables(0xd508_7800), // at s1e1r, x0
];

const fn with_tables(access: u32) -> [u32; 12] {
    [
        0xd518_2001, // msr ttbr0_el1, x1
        0xd503_3fdf, // isb
        0xd508_871f, // tlbi vmalle1
        0xd503_3b9f, // dsb ish
        0xd503_3fdf,
        access,
        0xd518_2002, // msr ttbr0_el1, x2
        0xd503_3fdf,
        0xd508_871f,
        0xd503_3b9f,
        0xd503_3fdf,
        0xd503_201f, // nop
    ]
}

/// MMU off, a load at x0, MMU on again.
const MMU_OFF: [u32; 9] = [
    0xd538_1001, // mrs x1, sctlr_el1
    0xd240_0022, // eor x2, x1, #1
    0xd518_1002, // msr sctlr_el1, x2
    0xd503_3fdf,
    0xf940_0003, // ldr x3, [x0]
    0xd503_3fdf,
    0xd518_1001, // msr sctlr_el1, x1
    0xd503_3fdf,
    0xd503_201f,
];

/// Switches tables and touches what they lead to.
pub(crate) fn games(guest: &mut Guest) -> u64 {
    let table = &TABLES[cpu_index()];
    space::fill(table, guest.alias);
    for block in BLOCKS {
        if let Some(entry) = table.0.get(block as usize) {
            entry.store(descriptor(&mut guest.rng, guest.ram.end), Ordering::Relaxed);
        }
    }
    for offset in (0..SCRATCH_BYTES).step_by(8) {
        put(offset, descriptor(&mut guest.rng, guest.ram.end));
    }
    for (index, words) in WITH_TABLES.iter().enumerate() {
        probe::write(index, words);
    }
    probe::write(3, &MMU_OFF);
    probe::synchronize();
    let root = (&raw const *table).expose_provenance() as u64;
    let old = space::root();
    for _ in 0..RUNS {
        let rng = &mut guest.rng;
        let index = rng.below(4) as usize;
        let address = if index == 3 {
            let address =
                rng.pick(&[space::GICD, space::UART, 0x3000_0000, guest.ram.end, GIB * 5])
                    + (rng.below(0x1000) & !7);
            address | rng.pick(&[0, 0, guest.alias])
        } else {
            BLOCKS.start * GIB + rng.below((BLOCKS.end - BLOCKS.start) * GIB)
        };
        let registers = [address, root, old, 0, rng.next_u64(), 0, 0, 0];
        guest.faults += u64::from(probe::run(index, registers).faulted);
    }
    RUNS
}

/// A descriptor that leads somewhere odd, but never lets the guest write its own image.
fn descriptor(rng: &mut Rng, ram_end: u64) -> u64 {
    /// Table, or page at level 3.
    const TABLE: u64 = 0b11;
    const READ_ONLY: u64 = 1 << 7;
    let place = match rng.below(8) {
        0 => space::GICD + (rng.below(16) << 12),
        1 => space::UART,
        2 => ram_end,
        3 => ram_end - 0x1000,
        4 => rng.next_u64() & 0x000f_ffff_ffff_f000,
        5 => RAM + (rng.below(GIB) & !0xfff),
        _ => scratch() + (rng.below(SCRATCH_BYTES) & !0xfff),
    };
    let kind = rng.pick(&[TABLE, TABLE, TABLE, 0b01, 0]);
    // As a block or page; a table ignores these bits, or takes them for limits of its own.
    place | kind | READ_ONLY | 1 << 10 | rng.pick(&[0, 1 << 2]) | rng.pick(&[0, 1 << 61])
}
