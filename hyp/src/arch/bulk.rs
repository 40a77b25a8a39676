//! Clearing and copying whole pages: what creating a VM spends most of its instructions on.

use core::arch::asm;

/// Bytes that one round of the copy loop moves.
const COPY_BLOCK: usize = 64;

/// Fills `memory` with zeros, by `DC ZVA` where the core allows it.
pub fn zero(memory: &mut [u8]) {
    let dczid = super::sysreg::read_sysreg!("dczid_el0");
    let block = 4usize << (dczid & 0xf);
    // DCZID_EL0.DZP: the instruction is prohibited.
    if dczid & 0x10 != 0 {
        memory.fill(0);
        return;
    }
    let start = memory.as_ptr().addr();
    let head = start.next_multiple_of(block) - start;
    if head >= memory.len() {
        memory.fill(0);
        return;
    }
    let (first, rest) = memory.split_at_mut(head);
    first.fill(0);
    let (blocks, last) = rest.split_at_mut(rest.len() / block * block);
    last.fill(0);
    if blocks.is_empty() {
        return;
    }
    // SAFETY: every `DC ZVA` writes one block-aligned block of `blocks`, which is exclusively
    // borrowed, starts block-aligned and is a whole number of blocks long. RAM is mapped as Normal
    // memory, so the instruction cannot take an alignment fault.
    unsafe {
        asm!(
            "2: dc zva, {address}",
            "add {address}, {address}, {block}",
            "cmp {address}, {end}",
            "b.lo 2b",
            address = inout(reg) blocks.as_mut_ptr() => _,
            end = in(reg) blocks.as_ptr_range().end,
            block = in(reg) block,
            options(nostack),
        );
    }
}

/// Copies the beginning of `to` from `from`; copies as much as both have.
///
/// Returns the number of bytes copied.
pub fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    let (to, from) = (&mut to[..len], &from[..len]);
    let bulk = len / COPY_BLOCK * COPY_BLOCK;
    to[bulk..].copy_from_slice(&from[bulk..]);
    if bulk == 0 {
        return len;
    }
    // SAFETY: the loop reads and writes `bulk` bytes, a non-zero multiple of 64, from and to the
    // start of two slices that are at least that long; the slices cannot overlap, since one is
    // exclusively borrowed.
    unsafe {
        asm!(
            "2: ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "stp {c}, {d}, [{to}], #16",
            "ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "stp {a}, {b}, [{to}], #16",
            "stp {c}, {d}, [{to}], #16",
            "subs {left}, {left}, #64",
            "b.ne 2b",
            from = inout(reg) from.as_ptr() => _,
            to = inout(reg) to.as_mut_ptr() => _,
            left = inout(reg) bulk => _,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            options(nostack),
        );
    }
    len
}
