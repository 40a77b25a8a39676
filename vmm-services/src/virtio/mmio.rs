//! The register interface of a device: virtio 1.3, 4.2 "Virtio Over MMIO", version 2.

use super::queue::{Io, Queue};
use super::{CONFIG_BYTES, MAX_QUEUES, Model};
use crate::exit::{Access, Width};
use crate::vm::Context;
use bitflags::bitflags;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"SUZE");

/// `VIRTIO_F_VERSION_1`.
const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_ACCESS_PLATFORM`: addresses in the rings are what the platform's DMA uses. A realm's
/// driver then keeps to memory that it has shared with the host.
const F_ACCESS_PLATFORM: u64 = 1 << 33;

const MAGIC_VALUE: u32 = 0x000;
const VERSION_REG: u32 = 0x004;
const DEVICE_ID: u32 = 0x008;
const VENDOR_ID: u32 = 0x00c;
const DEVICE_FEATURES: u32 = 0x010;
const DEVICE_FEATURES_SEL: u32 = 0x014;
const DRIVER_FEATURES: u32 = 0x020;
const DRIVER_FEATURES_SEL: u32 = 0x024;
const QUEUE_SEL: u32 = 0x030;
const QUEUE_SIZE_MAX: u32 = 0x034;
const QUEUE_SIZE: u32 = 0x038;
const QUEUE_READY: u32 = 0x044;
const QUEUE_NOTIFY: u32 = 0x050;
const INTERRUPT_STATUS: u32 = 0x060;
const INTERRUPT_ACK: u32 = 0x064;
const STATUS: u32 = 0x070;
const QUEUE_DESC_LOW: u32 = 0x080;
const QUEUE_DESC_HIGH: u32 = 0x084;
const QUEUE_DRIVER_LOW: u32 = 0x090;
const QUEUE_DRIVER_HIGH: u32 = 0x094;
const QUEUE_DEVICE_LOW: u32 = 0x0a0;
const QUEUE_DEVICE_HIGH: u32 = 0x0a4;
/// Length and base of a shared memory region: all ones where there is none.
const SHM: core::ops::RangeInclusive<u32> = 0x0b0..=0x0bc;
const CONFIG: u32 = 0x100;

/// `InterruptStatus`: buffers were used.
const USED_BUFFER: u32 = 1;
/// `InterruptStatus`: configuration changed, or the device needs a reset.
const CONFIGURATION_CHANGE: u32 = 2;

bitflags! {
    /// Device status field (virtio 1.3, 2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Status: u32 {
        const ACKNOWLEDGE = 1;
        const DRIVER = 2;
        const DRIVER_OK = 4;
        const FEATURES_OK = 8;
        const DEVICE_NEEDS_RESET = 64;
        const FAILED = 128;
    }
}

/// A device with its registers.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    model: Model,
    status: Status,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: [Queue; MAX_QUEUES],
    interrupts: u32,
    work: bool,
}

impl Transport {
    /// A device after reset.
    pub(crate) fn new(model: Model) -> Self {
        Self {
            model,
            status: Status::empty(),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: Default::default(),
            interrupts: 0,
            work: false,
        }
    }

    /// The device behind the registers.
    pub(crate) fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// The same, to look at.
    pub(crate) const fn model(&self) -> &Model {
        &self.model
    }

    /// Level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.interrupts != 0
    }

    /// Whether [`Transport::work`] has something to do.
    pub(crate) fn has_work(&self) -> bool {
        self.work
    }

    /// Notes that the device has something to do: a notification, or an event from outside.
    pub(crate) fn request_work(&mut self) {
        self.work = self.is_running();
    }

    /// The driver has set the device up, and it has not failed since.
    fn is_running(&self) -> bool {
        let stopped = Status::DEVICE_NEEDS_RESET | Status::FAILED;
        self.status.contains(Status::DRIVER_OK) && !self.status.intersects(stopped)
    }

    /// Lets the device go through its queues, as far as one call may.
    pub(crate) fn work(&mut self, context: &mut Context<'_>) {
        if !core::mem::take(&mut self.work) || !self.is_running() {
            return;
        }
        let memory = context.memory;
        let mut io = Io::new(&mut self.queues, memory);
        let done = self.model.device_mut().work(&mut io, context);
        self.work = io.has_more();
        let notify = self.queues.iter_mut().try_fold(false, |notify, queue| {
            queue.take_notification(memory).map(|wanted| notify | wanted)
        });
        match (done, notify) {
            (Ok(()), Ok(notify)) => self.interrupts |= u32::from(notify) * USED_BUFFER,
            _ => self.ask_for_reset(),
        }
    }

    /// The driver broke its rings: nothing more is done for it until it resets the device.
    fn ask_for_reset(&mut self) {
        self.work = false;
        self.status |= Status::DEVICE_NEEDS_RESET;
        self.interrupts |= CONFIGURATION_CHANGE;
    }

    fn reset(&mut self) {
        self.model.device_mut().reset();
        self.status = Status::empty();
        self.driver_features = 0;
        self.queues = Default::default();
        self.interrupts = 0;
        self.work = false;
    }

    /// Carries out an access at `offset`; returns what a load gives. The registers are 32 bits wide
    /// and aligned; accesses of another kind read as zero and write nothing.
    pub(crate) fn access(&mut self, offset: u32, width: Width, access: Access) -> u64 {
        if offset >= CONFIG {
            return match access {
                Access::Read => self.read_config(offset - CONFIG, width),
                // No device has a field that its driver may write.
                Access::Write(_) => 0,
            };
        }
        if width != Width::Word || !offset.is_multiple_of(4) {
            return 0;
        }
        match access {
            Access::Read => u64::from(self.read(offset)),
            Access::Write(value) => {
                self.write(offset, value as u32);
                0
            }
        }
    }

    fn read_config(&self, offset: u32, width: Width) -> u64 {
        let mut config = [0; CONFIG_BYTES];
        self.model.device().config(&mut config);
        let bytes = config.iter().skip(offset as usize).take(width.bytes() as usize);
        bytes.rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_ACCESS_PLATFORM | self.model.device().features()
    }

    fn queue(&self) -> Option<&Queue> {
        let index = self.queue_sel as usize;
        self.queues.get(index).filter(|_| index < self.model.device().queues())
    }

    /// The selected queue, while its size and places may be set: features are agreed on, and it is
    /// not in operation.
    fn queue_to_set_up(&mut self) -> Option<&mut Queue> {
        self.queue().filter(|queue| !queue.is_ready())?;
        let negotiated = self.status.contains(Status::FEATURES_OK);
        self.queues.get_mut(self.queue_sel as usize).filter(|_| negotiated)
    }

    fn read(&self, offset: u32) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION_REG => VERSION,
            DEVICE_ID => self.model.device().id(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.features(), self.device_features_sel),
            QUEUE_SIZE_MAX => self.queue().map_or(0, |_| u32::from(super::QUEUE_SIZE_MAX)),
            QUEUE_READY => self.queue().is_some_and(Queue::is_ready).into(),
            INTERRUPT_STATUS => self.interrupts,
            STATUS => self.status.bits(),
            offset if SHM.contains(&offset) => u32::MAX,
            // Among them ConfigGeneration: no device changes its configuration.
            _ => 0,
        }
    }

    fn write(&mut self, offset: u32, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES if !self.status.contains(Status::FEATURES_OK) => {
                let selected = self.driver_features_sel;
                set_half(&mut self.driver_features, selected, value);
            }
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_READY if value & 1 == 0 => {
                if let Some(queue) = self.queues.get_mut(self.queue_sel as usize) {
                    queue.disable();
                }
            }
            QUEUE_NOTIFY => {
                let known = (value as usize) < self.model.device().queues();
                if known {
                    self.request_work();
                }
            }
            INTERRUPT_ACK => self.interrupts &= !value,
            STATUS => self.write_status(value),
            _ => {
                if let Some(queue) = self.queue_to_set_up() {
                    set_up(queue, offset, value);
                }
            }
        }
    }

    /// Bits that a driver sets stay set until it writes zero.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let wanted = Status::from_bits_truncate(value);
        self.status |= wanted & (Status::ACKNOWLEDGE | Status::DRIVER | Status::FAILED);
        let agreed =
            self.driver_features & !self.features() == 0 && self.driver_features & F_VERSION_1 != 0;
        if wanted.contains(Status::FEATURES_OK) && agreed {
            self.status |= Status::FEATURES_OK;
        }
        if wanted.contains(Status::DRIVER_OK) && self.status.contains(Status::FEATURES_OK) {
            self.status |= Status::DRIVER_OK;
            // What the driver made available before is seen to without a notification.
            self.request_work();
        }
    }
}

fn set_up(queue: &mut Queue, offset: u32, value: u32) {
    match offset {
        QUEUE_SIZE => queue.size = value,
        QUEUE_READY => queue.enable(),
        QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
        QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
        QUEUE_DRIVER_LOW => set_half(&mut queue.driver, 0, value),
        QUEUE_DRIVER_HIGH => set_half(&mut queue.driver, 1, value),
        QUEUE_DEVICE_LOW => set_half(&mut queue.device, 0, value),
        QUEUE_DEVICE_HIGH => set_half(&mut queue.device, 1, value),
        _ => {}
    }
}

/// Half `index` of `value`, counted from the low one; zero where there is none.
fn half(value: u64, index: u32) -> u32 {
    match index {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, index: u32, half: u32) {
    match index {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
