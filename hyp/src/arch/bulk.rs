//! Clearing and copying whole images and VMs' memory: what creating a VM spends most of its
//! instructions on.

use super::sysreg::read_sysreg;
use core::arch::asm;

/// Blocks that one round of the `DC ZVA` loop clears.
const ZVA_ROUND: usize = 8;

/// Whether the core has FEAT_MOPS: single instructions that set or copy any number of bytes.
fn has_mops() -> bool {
    // ID_AA64ISAR2_EL1.MOPS, bits [19:16]. By encoding, since older assemblers lack the name.
    read_sysreg!("S3_0_C0_C6_2") >> 16 & 0xf != 0
}

/// Fills `memory` with zeros, by the fastest means that the core has.
#[inline(never)]
pub fn zero(memory: &mut [u8]) {
    if has_mops() {
        // SAFETY: the instructions write `memory`, which is exclusively borrowed, and nothing
        // else. A core that has them has all three, and EL2 does not move to another core between
        // them.
        unsafe {
            asm!(
                ".arch_extension mops",
                "setp [{to}]!, {left}!, xzr",
                "setm [{to}]!, {left}!, xzr",
                "sete [{to}]!, {left}!, xzr",
                ".arch_extension nomops",
                to = inout(reg) memory.as_mut_ptr() => _,
                left = inout(reg) memory.len() => _,
                options(nostack),
            );
        }
        return;
    }
    let dczid = read_sysreg!("dczid_el0");
    // DCZID_EL0.DZP: DC ZVA is prohibited.
    if dczid & 0x10 != 0 {
        memory.fill(0);
        return;
    }
    let block = 4_usize << (dczid & 0xf);
    let round = ZVA_ROUND * block;
    let start = memory.as_ptr().addr();
    let head = (start.next_multiple_of(block) - start).min(memory.len());
    let (first, rest) = memory.split_at_mut(head);
    let (rounds, last) = rest.split_at_mut(rest.len() / round * round);
    first.fill(0);
    last.fill(0);
    if rounds.is_empty() {
        return;
    }
    // SAFETY: every `DC ZVA` writes one block-aligned block of `rounds`, which is exclusively
    // borrowed, starts block-aligned and is a whole number of eight blocks long. RAM is mapped as
    // Normal memory, so the instruction cannot take an alignment fault.
    unsafe {
        asm!(
            "2:",
            ".rept 8",
            "dc zva, {address}",
            "add {address}, {address}, {block}",
            ".endr",
            "cmp {address}, {end}",
            "b.lo 2b",
            address = inout(reg) rounds.as_mut_ptr() => _,
            end = in(reg) rounds.as_ptr_range().end,
            block = in(reg) block,
            options(nostack),
        );
    }
}

/// Copies the beginning of `to` from `from`; copies as much as both have.
///
/// Returns the number of bytes copied.
#[inline(never)]
pub fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    let (to, from) = (&mut to[..len], &from[..len]);
    if !has_mops() {
        to.copy_from_slice(from);
        return len;
    }
    // SAFETY: the instructions read `from` and write `to`, which are equally long and do not
    // overlap, since one is exclusively borrowed. As for `zero`, all three run on one core.
    unsafe {
        asm!(
            ".arch_extension mops",
            "cpyfp [{to}]!, [{from}]!, {left}!",
            "cpyfm [{to}]!, [{from}]!, {left}!",
            "cpyfe [{to}]!, [{from}]!, {left}!",
            ".arch_extension nomops",
            to = inout(reg) to.as_mut_ptr() => _,
            from = inout(reg) from.as_ptr() => _,
            left = inout(reg) len => _,
            options(nostack),
        );
    }
    len
}
