//! Virtqueues as no driver would leave them: loops, addresses outside RAM, overlaps, absurd
//! lengths, indices and descriptors that change while the device looks at them.
//!
//! Registers and layouts are those of Virtual I/O Device (VIRTIO) 1.2, sections 4.2 and 2.7.

use core::ptr::NonNull;

use guest_rt::mmu;

use crate::guest::{Guest, SCRATCH_BYTES, put, scratch};
use crate::space::{VIRTIO, VIRTIO_SLOTS, VIRTIO_STRIDE};
use guest_rt::rng::Rng;

const MAGIC_VALUE: u64 = 0x000;
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;

const MAGIC: u32 = 0x7472_6976;
const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;

/// Where the rings of a queue that is not outright broken lie in scratch memory.
const TABLE_AT: u64 = 0;
const DRIVER_AT: u64 = 0x4000;
const DEVICE_AT: u64 = 0x8000;
const BUFFERS_AT: u64 = 0xc000;
/// Notifications between two resets of a device.
const NOTIFICATIONS: u64 = 8;

/// One transport.
#[derive(Clone, Copy)]
struct Device(NonNull<u32>);

impl Device {
    /// The transport in `slot`.
    fn new(slot: u64) -> Self {
        Self(mmu::device(VIRTIO + slot * VIRTIO_STRIDE))
    }

    /// Reads a register; what does not exist reads as zero, since the probe steps over the abort.
    fn read(self, offset: u64) -> u32 {
        let address = self.0.addr().get() as u64 + offset;
        let outcome = crate::probe::run(0, [address, 0, 0, 0, 0, 0, 0, 0]);
        if outcome.faulted { 0 } else { outcome.registers[1] as u32 }
    }

    fn is_present(self) -> bool {
        self.read(MAGIC_VALUE) == MAGIC && self.read(DEVICE_ID) != 0
    }

    fn write(self, offset: u64, value: u32) {
        let address = self.0.addr().get() as u64 + offset;
        crate::probe::run(1, [address, u64::from(value), 0, 0, 0, 0, 0, 0]);
    }
}

/// Prepares the stubs that reach registers.
fn prepare() {
    crate::probe::write(0, &[0xb940_0001]); // ldr w1, [x0]
    crate::probe::write(1, &[0xb900_0001]); // str w1, [x0]
    crate::probe::synchronize();
}

/// One device from reset through a few notifications; 0 cases if the VM has no virtio device.
pub(crate) fn break_device(guest: &mut Guest) -> u64 {
    prepare();
    let present = || (0..VIRTIO_SLOTS).map(Device::new).filter(|device| device.is_present());
    let count = present().count() as u64;
    if count == 0 {
        return 0;
    }
    let chosen = guest.rng.below(count) as usize;
    present().nth(chosen).map_or(0, |device| drive(guest, device))
}

fn drive(guest: &mut Guest, device: Device) -> u64 {
    device.write(STATUS, 0);
    let mut status = STATUS_ACKNOWLEDGE;
    for flag in [STATUS_DRIVER, STATUS_FEATURES_OK, STATUS_DRIVER_OK] {
        if flag == STATUS_FEATURES_OK {
            negotiate(&mut guest.rng, device);
        }
        // At times a step is left out.
        if !guest.rng.one_in(16) {
            status |= flag;
            device.write(STATUS, status);
        }
        if flag == STATUS_FEATURES_OK {
            for queue in 0..guest.rng.below(4) {
                set_queue_up(guest, device, queue as u32);
            }
        }
    }
    for _ in 0..NOTIFICATIONS {
        fill_rings(guest);
        let queue = guest.rng.pick(&[0, 0, 0, 1, 1, 2, guest.cpus as u32, u32::MAX]);
        device.write(QUEUE_NOTIFY, queue);
        let cause = device.read(INTERRUPT_STATUS);
        device.write(INTERRUPT_ACK, if guest.rng.one_in(2) { cause } else { u32::MAX });
        if guest.rng.one_in(4) {
            disturb(guest, device);
        }
    }
    NOTIFICATIONS
}

/// Takes what is offered, or whatever comes to mind.
fn negotiate(rng: &mut Rng, device: Device) {
    for half in 0..2 {
        device.write(DEVICE_FEATURES_SEL, half);
        let offered = device.read(DEVICE_FEATURES);
        device.write(DRIVER_FEATURES_SEL, half);
        let wanted = match rng.below(8) {
            0 => rng.next_u64() as u32,
            1 => offered & rng.next_u64() as u32,
            _ => offered,
        };
        device.write(DRIVER_FEATURES, wanted);
    }
}

fn set_queue_up(guest: &mut Guest, device: Device, queue: u32) {
    device.write(QUEUE_SEL, if guest.rng.one_in(16) { guest.rng.next_u64() as u32 } else { queue });
    let most = device.read(QUEUE_NUM_MAX);
    let size = match guest.rng.below(8) {
        0 => guest.rng.number() as u32,
        1 => most.wrapping_add(1),
        2 => 0,
        3 => 1 << guest.rng.below(8),
        _ => most.min(256),
    };
    device.write(QUEUE_NUM, size);
    for (register, place) in
        [(QUEUE_DESC, TABLE_AT), (QUEUE_DRIVER, DRIVER_AT), (QUEUE_DEVICE, DEVICE_AT)]
    {
        let address = if guest.rng.one_in(8) {
            odd_address(guest)
        } else {
            scratch() + place + 0x400 * u64::from(queue % 4)
        };
        device.write(register, address as u32);
        device.write(register + 4, (address >> 32) as u32);
    }
    device.write(QUEUE_READY, if guest.rng.one_in(16) { guest.rng.next_u64() as u32 } else { 1 });
}

/// An address where no buffer ought to be: outside RAM, across its end, wrapping around, odd, or on
/// top of the rings. Never the guest's image, which a device might write.
fn odd_address(guest: &mut Guest) -> u64 {
    let end = guest.ram.end;
    match guest.rng.below(8) {
        0 => end - guest.rng.below(64),
        1 => end + guest.rng.number() / 2,
        2 => u64::MAX - guest.rng.below(0x1000),
        3 => guest.rng.below(0x4000_0000),
        4 => guest.alias | guest.rng.below(0x4000_0000),
        5 => 0,
        _ => scratch() + guest.rng.below(SCRATCH_BYTES),
    }
}

/// Descriptors and available rings of all queues, with loops and nonsense.
pub(crate) fn fill_rings(guest: &mut Guest) {
    const NEXT: u64 = 1;
    const WRITE: u64 = 2;
    const INDIRECT: u64 = 4;
    for n in 0..64 {
        let rng = &mut guest.rng;
        let length = match rng.below(8) {
            0 => rng.number() & 0xffff_ffff,
            1 => 0,
            2 => 0xffff_ffff,
            3 => 16,
            _ => rng.below(0x1000),
        };
        let flags = match rng.below(8) {
            0 => rng.next_u64() & 0xffff,
            1 => INDIRECT | rng.pick(&[0, NEXT, WRITE]),
            2 | 3 => NEXT,
            4 => NEXT | WRITE,
            5 => WRITE,
            _ => 0,
        };
        // Mostly the next one, so that chains get long, and often one before, so that they loop.
        let next = match rng.below(4) {
            0 => rng.below(64),
            1 => rng.next_u64() & 0xffff,
            _ => n + 1,
        };
        let address = match guest.rng.below(4) {
            0 => odd_address(guest),
            _ => scratch() + BUFFERS_AT + guest.rng.below(0x3000),
        };
        let at = TABLE_AT + 0x400 * guest.rng.below(4) + 16 * n;
        put(at, address);
        put(at + 8, length | flags << 32 | next << 48);
    }
    for queue in 0..4 {
        let ring = DRIVER_AT + 0x400 * queue;
        for word in 1..64 {
            let rng = &mut guest.rng;
            let heads = (0..4).fold(0, |heads, n| {
                let head = if rng.one_in(8) { rng.next_u64() & 0xffff } else { rng.below(64) };
                heads | head << (16 * n)
            });
            put(ring + 8 * word, heads);
        }
        let index = match guest.rng.below(4) {
            0 => guest.rng.next_u64() & 0xffff,
            _ => crate::guest::get(ring) >> 16 & 0xffff,
        };
        let index = index.wrapping_add(guest.rng.below(8)) & 0xffff;
        let flags = guest.rng.pick(&[0, 0, 1, 0xffff]);
        put(ring, flags | index << 16 | guest.rng.below(64) << 32 | guest.rng.below(64) << 48);
    }
}

/// Changes of a queue that is in use.
fn disturb(guest: &mut Guest, device: Device) {
    match guest.rng.below(6) {
        0 => device.write(STATUS, guest.rng.next_u64() as u32),
        1 => device.write(QUEUE_READY, 0),
        2 => set_queue_up(guest, device, 0),
        3 => negotiate(&mut guest.rng, device),
        4 => device.write(guest.rng.below(0x200) & !3, guest.rng.next_u64() as u32),
        _ => {
            device.read(guest.rng.below(0x200));
        }
    }
}

/// What the other vCPUs do meanwhile: overwrite rings and descriptors. These are no cases of their
/// own.
pub(crate) fn overwrite(guest: &mut Guest) -> u64 {
    const WRITES: u64 = 256;
    for _ in 0..WRITES {
        let at = guest.rng.below(BUFFERS_AT);
        let value = match guest.rng.below(4) {
            0 => guest.rng.next_u64(),
            1 => odd_address(guest),
            _ => crate::guest::get(at) ^ 1 << guest.rng.below(64),
        };
        // An address field must not lead a device to the guest's image.
        let harmless = !(guest.ram.start..guest.ram.end).contains(&value)
            || (scratch()..scratch() + SCRATCH_BYTES).contains(&value);
        if harmless {
            put(at, value);
        }
    }
    0
}
