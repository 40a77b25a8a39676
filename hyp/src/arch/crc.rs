//! CRC-32 (IEEE 802.3) with the CRC32 instructions, where the core has them.

use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, Readable};
use core::arch::asm;
use vmm_services::crc32;

/// The fastest checksum that this core can do.
#[must_use]
pub fn best() -> crc32::Update {
    // FEAT_CRC32: ID_AA64ISAR0_EL1.CRC32, bits [19:16].
    if ID_AA64ISAR0_EL1.get() >> 16 & 0xf == 0 { crc32::update } else { update }
}

/// Bytes of one round over a large range.
const BLOCK: usize = 128;

/// The rounds over a large range. Every byte of the bundle goes through here at boot.
fn update_blocks(mut crc: u32, blocks: &[[u8; BLOCK]]) -> u32 {
    if blocks.is_empty() {
        return crc;
    }
    // SAFETY: the loop reads `blocks`, which has at least one, and combines registers; `update` is
    // only given out by `best`, which has checked that the core has the instruction.
    unsafe {
        asm!(
            ".arch_extension crc",
            "2:",
            ".rept 4",
            "ldp {a}, {b}, [{from}], #16",
            "ldp {c}, {d}, [{from}], #16",
            "crc32x {crc:w}, {crc:w}, {a}",
            "crc32x {crc:w}, {crc:w}, {b}",
            "crc32x {crc:w}, {crc:w}, {c}",
            "crc32x {crc:w}, {crc:w}, {d}",
            ".endr",
            "cmp {from}, {end}",
            "b.lo 2b",
            ".arch_extension nocrc",
            from = inout(reg) blocks.as_ptr() => _,
            end = in(reg) blocks.as_ptr_range().end,
            crc = inout(reg) crc,
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    crc
}

macro_rules! step {
    ($instruction:literal, $crc:ident, $data:expr) => {
        // SAFETY: the instruction combines two registers; `update` is only given out by `best`,
        // which has checked that the core has it.
        unsafe {
            asm!(".arch_extension crc", $instruction, ".arch_extension nocrc",
                crc = inout(reg) $crc, data = in(reg) $data,
                options(pure, nomem, nostack, preserves_flags));
        }
    };
}

/// Continues the checksum `crc` with `data`, as [`crc32::update`] does.
#[inline(never)]
fn update(crc: u32, data: &[u8]) -> u32 {
    let mut crc = !crc;
    let (blocks, rest) = data.as_chunks::<BLOCK>();
    crc = update_blocks(crc, blocks);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        step!("crc32x {crc:w}, {crc:w}, {data:x}", crc, word);
    }
    for &byte in rest {
        let byte = u32::from(byte);
        step!("crc32b {crc:w}, {crc:w}, {data:w}", crc, byte);
    }
    !crc
}
