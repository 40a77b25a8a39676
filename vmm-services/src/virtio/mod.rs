//! Virtio devices (virtio 1.3), modern only, over MMIO.
//!
//! A device is a [`Device`] behind the registers of a [`Transport`]. Its driver in the guest is not
//! trusted: see [`queue`] for what is done about it. A device is called when its driver sends a
//! notification or something outside of the VM happened; each call is bounded
//! ([`queue::DESCRIPTORS_PER_CALL`], [`queue::BYTES_PER_CALL`]) and the rest is left for the next
//! one, so no guest can hold a core for long by the size of its requests.

mod block;
mod console;
#[cfg(test)]
mod driver;
mod entropy;
mod mmio;
mod net;
mod queue;

pub(crate) use block::{Block, SECTOR};
pub(crate) use console::Console;
use entropy::EntropyDevice;
pub(crate) use mmio::Transport;
use net::Net;
pub use queue::{BYTES_PER_CALL, Chain, DESCRIPTORS_PER_CALL, Io, QUEUE_SIZE_MAX, QueueError};

use crate::layout::MAX_VIRTIO;
use crate::manifest::VirtioDevice;
use crate::vm::Context;

/// Most queues of a device.
pub(crate) const MAX_QUEUES: usize = 2;
/// Bytes that a device's configuration may have.
pub(crate) const CONFIG_BYTES: usize = 64;

/// What a kind of device does behind its registers.
pub(crate) trait Device {
    /// Device ID (virtio 1.3, 5).
    fn id(&self) -> u32;

    /// Features offered beside those of the transport.
    fn features(&self) -> u64 {
        0
    }

    /// Number of queues, at most [`MAX_QUEUES`].
    fn queues(&self) -> usize;

    /// Writes the device's configuration to the start of `config`, which is zero.
    fn config(&self, _config: &mut [u8; CONFIG_BYTES]) {}

    /// The driver reset the device: forget everything that belongs to a request.
    fn reset(&mut self) {}

    /// Sees to the queues, after a notification of any of them or an event from outside.
    ///
    /// # Errors
    /// The driver broke the rules of the queues or of the device: it is to reset the device.
    fn work(&mut self, io: &mut Io<'_>, context: &mut Context<'_>) -> Result<(), QueueError>;
}

/// The kinds of devices.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a few in each VM, and no heap to put the large ones on"
)]
pub(crate) enum Model {
    Console(Console),
    Entropy(EntropyDevice),
    Block(Block),
    Net(Net),
}

impl Model {
    /// The devices that the manifest asks for, by slot.
    pub(crate) fn all(devices: &[VirtioDevice]) -> impl Iterator<Item = Self> {
        let mut disks = 0..;
        devices.iter().take(MAX_VIRTIO).map(move |device| match device {
            VirtioDevice::Console => Self::Console(Console::default()),
            VirtioDevice::Entropy => Self::Entropy(EntropyDevice),
            VirtioDevice::Block(spec) => {
                Self::Block(Block::new(spec, disks.next().unwrap_or_default()))
            }
            VirtioDevice::Net(spec) => Self::Net(Net::new(*spec)),
        })
    }

    /// The console, if it is one.
    pub(crate) fn as_console(&mut self) -> Option<&mut Console> {
        match self {
            Self::Console(device) => Some(device),
            Self::Entropy(_) | Self::Block(_) | Self::Net(_) => None,
        }
    }

    /// Whether other VMs send to it.
    pub(crate) const fn is_net(&self) -> bool {
        matches!(self, Self::Net(_))
    }

    fn device(&self) -> &dyn Device {
        match self {
            Self::Console(device) => device,
            Self::Entropy(device) => device,
            Self::Block(device) => device,
            Self::Net(device) => device,
        }
    }

    fn device_mut(&mut self) -> &mut dyn Device {
        match self {
            Self::Console(device) => device,
            Self::Entropy(device) => device,
            Self::Block(device) => device,
            Self::Net(device) => device,
        }
    }
}
