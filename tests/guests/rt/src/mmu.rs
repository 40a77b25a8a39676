//! Stage-1 translation: RAM one to one, and a second view of everything at the shared alias.
//!
//! | virtual addresses | output | memory |
//! |---|---|---|
//! | `0x4000_0000..` RAM | same | normal write-back, executable |
//! | [`SHARED_WINDOW`] + IPA below 1 GiB | IPA with the alias bit | device nGnRE, never executable |
//! | [`SHARED_WINDOW`] + IPA of channels' memory | IPA with the alias bit | normal write-back, never executable |
//! | [`SHARED_WINDOW`] + IPA of RAM | IPA with the alias bit | normal write-back, never executable |
//!
//! In a normal VM the alias bit is 0 and the window shows the same memory again.

use core::arch::asm;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    ID_AA64MMFR0_EL1, MAIR_EL1, ReadWriteable, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1, Writeable,
};

/// Virtual address at which the shared alias of IPA 0 is mapped.
pub const SHARED_WINDOW: u64 = 256 << 30;

/// Bytes that an entry of the level-1 table maps.
const BLOCK: u64 = 1 << 30;
/// Bytes that an entry of the level-2 table maps.
const SMALL_BLOCK: u64 = 2 << 20;
/// Where the memory of channels is.
const CHANNEL_MEMORY: Range<u64> = 0x2000_0000..0x2400_0000;
/// Start of RAM; below lie the devices.
const RAM_BASE: u64 = 0x4000_0000;
/// A start level of 1 with one table translates 39 bits.
const T0SZ: u64 = 64 - 39;

// Level-1 and level-2 descriptors, Armv8-A VMSAv8-64.
const BLOCK_VALID: u64 = 0b01;
const TABLE_VALID: u64 = 0b11;
const ATTR_DEVICE: u64 = 0 << 2;
const ATTR_NORMAL: u64 = 1 << 2;
/// Where output addresses have 48 bits; with 52, `TCR_EL1` says it for all, and their bits [51:50] are here.
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const NORMAL: u64 = ATTR_NORMAL | ACCESSED | UXN | BLOCK_VALID;
const DEVICE: u64 = ATTR_DEVICE | ACCESSED | UXN | BLOCK_VALID;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static LEVEL_1: Table = Table([const { AtomicU64::new(0) }; 512]);
/// Of the first GiB of the window.
static LEVEL_2: Table = Table([const { AtomicU64::new(0) }; 512]);

/// Whether output addresses have 52 bits: FEAT_LPA2, and an address space of that size.
fn is_wide() -> bool {
    const LPA2: u64 = 1;
    const BITS_52: u64 = 6;
    let read = |field| ID_AA64MMFR0_EL1.read(field);
    read(ID_AA64MMFR0_EL1::TGran4) == LPA2 && read(ID_AA64MMFR0_EL1::PARange) >= BITS_52
}

/// Descriptor of a block at `address`.
fn block(address: u64, memory: u64) -> u64 {
    const LOW: u64 = (1 << 50) - 1;
    if is_wide() {
        address & LOW | address >> 50 << 8 | memory
    } else {
        address | INNER_SHAREABLE | memory
    }
}

/// RAM that every guest has: what an entry maps at its start.
pub(crate) const LEAST_RAM: Range<u64> = RAM_BASE..RAM_BASE + BLOCK;

/// Entries that RAM takes. More than 255 GiB is not mapped.
fn blocks(ram: &Range<u64>) -> Range<u64> {
    let first = ram.start.max(RAM_BASE) / BLOCK;
    first..ram.end.div_ceil(BLOCK).min(SHARED_WINDOW / BLOCK)
}

/// Maps RAM and switches the MMU on. Called once, on the first vCPU.
pub(crate) fn enable(ram: &Range<u64>) {
    for gib in blocks(ram) {
        set_entry(gib, block(gib * BLOCK, NORMAL));
    }
    clean_image();
    enable_secondary();
}

/// Maps the window, which was not mapped before. Called once, after [`enable`]. `alias` is the alias bit
/// of a realm, 0 for a normal VM.
pub(crate) fn map_window(ram: &Range<u64>, alias: u64) {
    for (entry, index) in LEVEL_2.0.iter().zip(0..) {
        let ipa = index * SMALL_BLOCK;
        let memory = if CHANNEL_MEMORY.contains(&ipa) { NORMAL } else { DEVICE };
        entry.store(block(alias | ipa, memory | PXN), Ordering::Relaxed);
    }
    let window = SHARED_WINDOW / BLOCK;
    set_entry(window, (&raw const LEVEL_2).expose_provenance() as u64 | TABLE_VALID);
    for gib in blocks(ram) {
        set_entry(window + gib, block(alias | (gib * BLOCK), NORMAL | PXN));
    }
    // Walks see the entries, and so do later instructions.
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

/// Switches the MMU on with the table that [`enable`] built. Called on every further vCPU, first.
pub(crate) fn enable_secondary() {
    MAIR_EL1.set(0xff04); // index 0: device nGnRE; index 1: normal write-back
    /// `TCR_EL1.DS`: output addresses of 52 bits.
    const DS: u64 = 1 << 59;
    let (ds, widest) = if is_wide() { (DS, 0b110) } else { (0, 0b101) };
    let pa_range = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange);
    TCR_EL1.set(
        ds | (TCR_EL1::T0SZ.val(T0SZ)
            + TCR_EL1::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
            + TCR_EL1::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
            + TCR_EL1::SH0::Inner
            + TCR_EL1::TG0::KiB_4
            + TCR_EL1::EPD1::DisableTTBR1Walks
            + TCR_EL1::IPS.val(pa_range.min(widest)))
        .value,
    );
    TTBR0_EL1.set((&raw const LEVEL_1).expose_provenance() as u64);
    barrier::isb(barrier::SY);
    SCTLR_EL1.modify(SCTLR_EL1::M::Enable + SCTLR_EL1::C::Cacheable + SCTLR_EL1::I::Cacheable);
    barrier::isb(barrier::SY);
}

/// Pointer to a device register block at `ipa`, through the shared window.
///
/// # Panics
///
/// When `ipa` is not below 1 GiB or not aligned for `T`.
#[must_use]
pub fn device<T>(ipa: u64) -> NonNull<T> {
    assert!(ipa < BLOCK && ipa.is_multiple_of(align_of::<T>() as u64));
    shared(ipa)
}

/// Reads the 32-bit device register at `ipa`, by an access that a hypervisor can emulate.
///
/// # Panics
///
/// As for [`device`].
#[must_use]
pub fn read_register(ipa: u64) -> u32 {
    let register = device::<u32>(ipa).as_ptr();
    let value: u32;
    // SAFETY: no object of Rust lies at the registers of devices, nor do reads of them change memory.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) register, options(nostack)) }
    value
}

/// Writes the 32-bit device register at `ipa`, by an access that a hypervisor can emulate.
///
/// # Safety
///
/// It must not make a device access memory that an object of Rust lies in.
///
/// # Panics
///
/// As for [`device`].
pub unsafe fn write_register(ipa: u64, value: u32) {
    let register = device::<u32>(ipa).as_ptr();
    // SAFETY: no object of Rust lies at the registers of devices; what the device does is the caller's
    // promise.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) register, options(nostack)) }
}

/// Pointer to what lies at the shared alias of `ipa`.
///
/// # Panics
///
/// When `ipa` lies above the window.
#[must_use]
pub fn shared<T>(ipa: u64) -> NonNull<T> {
    assert!(ipa < SHARED_WINDOW);
    let pointer = core::ptr::with_exposed_provenance_mut((SHARED_WINDOW + ipa) as usize);
    NonNull::new(pointer).expect("the window does not start at 0")
}

fn set_entry(index: u64, descriptor: u64) {
    if let Some(entry) = LEVEL_1.0.get(index as usize) {
        entry.store(descriptor, Ordering::Relaxed);
    }
}

/// Drops stale cache lines over the image, its data and its stacks: what was written with the MMU
/// off went past the caches, and reads through them begin now.
fn clean_image() {
    unsafe extern "C" {
        static image_start: u8;
        static image_end: u8;
    }
    let mut line = (&raw const image_start).addr();
    let end = (&raw const image_end).addr();
    while line < end {
        // SAFETY: cleaning and invalidating to the point of coherency keeps memory contents. 16
        // bytes is the smallest line that the architecture allows.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack)) }
        line += 16;
    }
    barrier::dsb(barrier::SY);
}
