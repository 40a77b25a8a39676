//! Map of a guest's intermediate physical address space.
//!
//! The same for every VM. A realm reaches the devices at the shared alias of these addresses, with
//! bit `ipa_bits - 1` set.

use mm::Ipa;

/// Flash of QEMU's `virt`, for guests that look for their settings there.
pub const FLASH: Ipa = Ipa::new(0);
/// Size of the flash in bytes, both banks together.
pub const FLASH_SIZE: u64 = 0x0800_0000;
/// GIC distributor.
pub const GICD: Ipa = Ipa::new(0x0800_0000);
/// Size of the distributor's register frame in bytes.
pub const GICD_SIZE: u64 = 0x1_0000;
/// First GIC redistributor; the one of vCPU `n` follows at `n * GICR_STRIDE`.
pub const GICR: Ipa = Ipa::new(0x080a_0000);
/// Bytes of one redistributor: RD_base and SGI_base frames of 64 KiB.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// PL011 UART.
pub const UART: Ipa = Ipa::new(0x0900_0000);
/// Size of the UART's register frame in bytes.
pub const UART_SIZE: u64 = 0x1000;
/// Interrupt of the UART.
pub const UART_INTID: u32 = 33;
/// First virtio-mmio transport; number `n` follows at `n * VIRTIO_STRIDE`.
pub const VIRTIO: Ipa = Ipa::new(0x0a00_0000);
/// Bytes of one virtio-mmio transport.
pub const VIRTIO_STRIDE: u64 = 0x200;
/// Interrupt of the first virtio-mmio transport; number `n` has `VIRTIO_INTID + n`.
pub const VIRTIO_INTID: u32 = 48;
/// Most virtio-mmio transports of a VM.
pub const MAX_VIRTIO: usize = 8;
/// Registers of the first channel ([`crate::channel`]); those of number `n` follow at `n` pages.
pub const CHANNEL: Ipa = Ipa::new(0x0c00_0000);
/// Interrupt of the first channel; number `n` has `CHANNEL_INTID + n`.
pub const CHANNEL_INTID: u32 = 56;
/// Most channels of a VM.
pub const MAX_VM_CHANNELS: usize = 4;
/// Memory of the first channel; that of number `n` follows at `n * CHANNEL_MEMORY_STRIDE`.
pub const CHANNEL_MEMORY: Ipa = Ipa::new(0x2000_0000);
/// Distance of two channels' memory, and the most that a channel has, in bytes.
pub const CHANNEL_MEMORY_STRIDE: u64 = 16 << 20;
/// Where a VM that is told to stray maps a granule it does not own.
pub const STRAY: Ipa = Ipa::new(0x3000_0000);
/// Start of RAM.
pub const RAM: Ipa = Ipa::new(0x4000_0000);

/// Virtual timer interrupt of every vCPU.
pub const VTIMER_INTID: u32 = 27;
/// Physical (EL1) timer interrupt of every vCPU.
pub const PTIMER_INTID: u32 = 30;

/// Whether the shared interrupt `intid` belongs to a place of the map: to a virtio-mmio transport or a
/// channel, whether the guest has one there or not.
#[must_use]
pub const fn is_reserved_interrupt(intid: u32) -> bool {
    let virtio = VIRTIO_INTID <= intid && intid < VIRTIO_INTID + MAX_VIRTIO as u32;
    let channel = CHANNEL_INTID <= intid && intid < CHANNEL_INTID + MAX_VM_CHANNELS as u32;
    virtio || channel
}

/// Whether `[base, base + size)` is free for a device of a guest with `memory` bytes of RAM.
#[must_use]
pub fn is_free(base: u64, size: u64, memory: u64) -> bool {
    let Some(end) = base.checked_add(size) else { return false };
    let taken = [
        (FLASH, FLASH_SIZE),
        (GICD, GICD_SIZE),
        (GICR, crate::MAX_VCPUS as u64 * GICR_STRIDE),
        (VIRTIO, MAX_VIRTIO as u64 * VIRTIO_STRIDE),
        (CHANNEL, MAX_VM_CHANNELS as u64 * mm::PAGE_SIZE),
        (CHANNEL_MEMORY, MAX_VM_CHANNELS as u64 * CHANNEL_MEMORY_STRIDE),
        (STRAY, mm::PAGE_SIZE),
        (RAM, memory),
    ];
    taken
        .iter()
        .all(|&(start, size)| end <= start.get() || base >= start.get().saturating_add(size))
}
