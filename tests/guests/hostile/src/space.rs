//! The address space as the hostile guest sees it, and addresses in it that are worth a try.
//!
//! | virtual addresses | output | memory |
//! |---|---|---|
//! | 0 to 1 GiB | same | device, executable |
//! | from 1 GiB, and behind the end of RAM up to 4 GiB | same | normal, executable |
//! | 4 GiB + n * 1 GiB | far addresses, in and outside the IPA space | device or normal, executable |
//! | `mmu::SHARED_WINDOW` | the shared alias of the first 2 GiB | as `mmu` says |

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{gic, mmu, uart};

use crate::guest::Guest;

pub(crate) const GIB: u64 = 1 << 30;
/// Start of RAM.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const GICD: u64 = gic::GICD_IPA;
pub(crate) const GICR: u64 = gic::GICR_IPA;
pub(crate) const UART: u64 = uart::UART_IPA;
pub(crate) const VIRTIO: u64 = 0x0a00_0000;
pub(crate) const VIRTIO_STRIDE: u64 = 0x200;
/// Virtio-mmio transports that a VM can have.
pub(crate) const VIRTIO_SLOTS: u64 = 8;

/// Start and size of what lies, or could lie, below RAM.
const PLACES: &[(u64, u64)] = &[
    (GICD, 0x1_0000),
    (GICD, 0x1000),
    (GICR, 0x4_0000),
    (GICR, 0x20_0000),
    (UART, 0x1000),
    (UART, 0x100),
    (VIRTIO, VIRTIO_SLOTS * VIRTIO_STRIDE),
    (VIRTIO, 0x1000),
    (0, 0x0800_0000),
    (0x0808_0000, 0x2_0000),
    (0x0901_0000, 0x3_0000),
    (0x3000_0000, 0x1000),
    (0x1000_0000, 0x3000_0000),
];

/// Block descriptors, VMSAv8-64.
const DEVICE: u64 = 1 << 10 | 0b01;
const NORMAL: u64 = 1 << 10 | 3 << 8 | 1 << 2 | 0b01;
const UXN: u64 = 1 << 54;
const PXN: u64 = 1 << 53;

/// Outputs of the blocks from 4 GiB on.
const FAR: [u64; 12] = [
    4 * GIB,
    1 << 35,
    1 << 36,
    (1 << 39) - GIB,
    1 << 39,
    (1 << 40) - GIB,
    1 << 40,
    1 << 42,
    1 << 44,
    (1 << 47) - GIB,
    1 << 47,
    (1 << 48) - GIB,
];

#[repr(C, align(4096))]
pub(crate) struct Table(pub(crate) [AtomicU64; 512]);

static TABLE: Table = Table([const { AtomicU64::new(0) }; 512]);

/// Fills `table` with the map above.
pub(crate) fn fill(table: &Table, alias: u64) {
    let set = |index: u64, descriptor: u64| {
        if let Some(entry) = table.0.get(index as usize) {
            entry.store(descriptor, Ordering::Relaxed);
        }
    };
    set(0, DEVICE | UXN);
    (1..4).for_each(|gib| set(gib, (gib * GIB) | NORMAL | UXN));
    for (n, output) in FAR.into_iter().enumerate() {
        set(4 + n as u64, output | if n % 2 == 0 { NORMAL } else { DEVICE } | UXN);
    }
    let window = mmu::SHARED_WINDOW / GIB;
    set(window, alias | DEVICE | PXN | UXN);
    (1..4).for_each(|gib| set(window + gib, alias | (gib * GIB) | NORMAL | PXN | UXN));
}

/// Switches this vCPU, whose MMU is on, to the map above.
pub(crate) fn enter() {
    /// `TCR_EL1.IPS`: 48 bits, whatever the guest is told.
    const IPS_48: u64 = 5 << 32;
    let root = (&raw const TABLE).expose_provenance() as u64;
    // SAFETY: the new table maps RAM as the old one does, and devices in the same window.
    unsafe {
        asm!(
            "dsb ishst",
            "mrs {t}, tcr_el1",
            "bic {t}, {t}, #(7 << 32)",
            "orr {t}, {t}, {ips}",
            "msr tcr_el1, {t}",
            "msr ttbr0_el1, {root}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            t = out(reg) _,
            ips = in(reg) IPS_48,
            root = in(reg) root,
            options(nostack),
        );
    }
}

/// Builds the map; once, on the first vCPU.
pub(crate) fn build(alias: u64) {
    fill(&TABLE, alias);
}

/// Whether a store there shows on the console.
pub(crate) fn is_uart_data(address: u64) -> bool {
    let address = address & !mmu::SHARED_WINDOW;
    // With room for what pairs, vectors and offsets reach.
    (UART - 64..UART + 8).contains(&address)
}

/// An address for a data access: a virtual one.
pub(crate) fn address(guest: &mut Guest) -> u64 {
    let rng = &mut guest.rng;
    let offset_of = |rng: &mut guest_rt::rng::Rng, size: u64| {
        let offset = rng.below(size);
        // Mostly aligned: registers are.
        match rng.below(8) {
            0 => offset,
            1 => offset & !1,
            2 | 3 => offset & !7,
            _ => offset & !3,
        }
    };
    match rng.below(16) {
        // Both edges of RAM, so that an access crosses them.
        0 => guest.ram.end.wrapping_add(rng.below(64)).wrapping_sub(32).max(guest.ram.end - 8),
        1 => RAM - 1 - rng.below(16),
        2 => guest.ram.end + rng.below(4 * GIB - guest.ram.end),
        3 => 4 * GIB + rng.below(FAR.len() as u64) * GIB + offset_of(rng, GIB),
        // The private side of the devices, which in a normal VM is the same.
        4 => {
            let (start, size) = rng.pick(PLACES);
            start + offset_of(rng, size)
        }
        5 => mmu::SHARED_WINDOW + GIB - 1 - rng.below(16),
        _ => {
            let (start, size) = rng.pick(PLACES);
            mmu::SHARED_WINDOW + start + offset_of(rng, size)
        }
    }
}

/// An address to fetch instructions from: never one where the guest's own memory is.
pub(crate) fn fetch_address(guest: &mut Guest) -> u64 {
    let rng = &mut guest.rng;
    let address = match rng.below(4) {
        0 => guest.ram.end + rng.below(4 * GIB - guest.ram.end),
        1 => 4 * GIB + rng.below(FAR.len() as u64 * GIB),
        _ => {
            let (start, size) = rng.pick(PLACES);
            start + rng.below(size)
        }
    };
    if rng.one_in(8) { address } else { address & !3 }
}

/// Root of the map above, for `TTBR0_EL1`.
pub(crate) fn root() -> u64 {
    (&raw const TABLE).expose_provenance() as u64
}
