//! Big-endian accesses to devices.

use core::arch::asm;

use guest_rt::{mmu, println};

/// GICD_TYPER.
const TYPER: u64 = 0x0800_0004;
/// GICD_IPRIORITYR8: priorities of interrupts 32 to 35.
const PRIORITIES: u64 = 0x0800_0420;

/// Reads and then writes the 32-bit registers at `read` and `write` (IPAs) while data accesses are
/// big-endian.
///
/// Walks of the guest's own tables would be big-endian, too: the MMU is off meanwhile.
fn exchange(read: u64, write: u64, value: u32) -> u32 {
    /// `SCTLR_EL1`: M.
    const MMU: u64 = 1;
    /// `SCTLR_EL1`: EE.
    const BIG_ENDIAN: u64 = 1 << 25;
    let found: u32;
    // SAFETY: the code is mapped one to one, and accesses no memory but registers of the interrupt
    // controller while the MMU is off; no interrupt comes in between.
    unsafe {
        asm!(
            "mrs {daif}, daif",
            "msr daifset, #0xf",
            "mrs {control}, sctlr_el1",
            "bic {other}, {control}, {mmu}",
            "orr {other}, {other}, {big_endian}",
            "msr sctlr_el1, {other}",
            "isb",
            "ldr {found:w}, [{read}]",
            "str {value:w}, [{write}]",
            "dsb sy",
            "msr sctlr_el1, {control}",
            "isb",
            "msr daif, {daif}",
            daif = out(reg) _, control = out(reg) _, other = out(reg) _, found = out(reg) found,
            mmu = in(reg) MMU, big_endian = in(reg) BIG_ENDIAN,
            read = in(reg) read, write = in(reg) write, value = in(reg) value,
            options(nostack),
        );
    }
    found
}

pub(crate) fn check() -> Result<(), &'static str> {
    let before = mmu::read_register(PRIORITIES);
    let found = exchange(TYPER, PRIORITIES, 0x1020_3040);
    let written = mmu::read_register(PRIORITIES);
    // SAFETY: the interrupts are not in use.
    unsafe { mmu::write_register(PRIORITIES, before) };
    if found.swap_bytes() != mmu::read_register(TYPER) {
        return Err("a big-endian read of a device register is wrong");
    }
    if written != 0x4030_2010 {
        return Err("a big-endian write of a device register is wrong");
    }
    println!("cpu: big-endian accesses ok");
    Ok(())
}
