//! Network device (virtio 1.3, 5.1) with one pair of queues and no offloads: a port of a virtual
//! switch of the machine ([`crate::switch`]).

use super::{CONFIG_BYTES, Device, Io, QueueError};
use crate::manifest::NetSpec;
use crate::switch::MAX_FRAME;
use crate::traits::Peers;
use crate::vm::Context;

/// Queue with buffers for frames to the guest (`receiveq1`).
const RECEIVE: usize = 0;
/// Queue with frames from the guest (`transmitq1`).
const TRANSMIT: usize = 1;
/// `VIRTIO_NET_F_MAC`: the address is in the configuration.
const F_MAC: u64 = 1 << 5;
/// Bytes of `struct virtio_net_hdr` in front of each frame. With `VIRTIO_F_VERSION_1` it ends with
/// `num_buffers` whatever else was agreed on.
const HEADER: usize = 12;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// The device.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    spec: NetSpec,
    /// Frames that came while no driver was there are of no use to the next one.
    stale: bool,
}

impl Net {
    /// The device that the manifest asks for.
    pub(crate) const fn new(spec: NetSpec) -> Self {
        Self { spec, stale: true }
    }

    /// Hands frames to the guest, as many as it has buffers for.
    fn receive(&self, io: &mut Io<'_>, peers: &mut dyn Peers) -> Result<(), QueueError> {
        let mut buffer = [0; HEADER + MAX_FRAME];
        while peers.has_frame(self.spec.nic) {
            let Some(chain) = io.front(RECEIVE)? else { break };
            let (header, frame) = buffer.split_at_mut(HEADER);
            header.fill(0);
            if let Some(low) = header.get_mut(NUM_BUFFERS) {
                *low = 1;
            }
            let Some(length) = peers.receive(self.spec.nic, frame) else { break };
            let filled = buffer.get(..HEADER + length).unwrap_or_default();
            // A frame that is longer than the driver's buffer is lost, and the buffer serves the next.
            if filled.len() as u64 <= chain.writable() {
                io.write(&chain, 0, filled)?;
                io.complete(RECEIVE, &chain, filled.len() as u32)?;
            }
        }
        Ok(())
    }

    /// Sends what the guest has put into its queue.
    fn transmit(&self, io: &mut Io<'_>, peers: &mut dyn Peers) -> Result<(), QueueError> {
        // One byte more than a frame may have, so that the switch sees that it is too long.
        let mut frame = [0; MAX_FRAME + 1];
        while let Some(chain) = io.front(TRANSMIT)? {
            // Nothing in the header concerns a device without offloads.
            let length = chain.readable().checked_sub(HEADER as u64).ok_or(QueueError::TooShort)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(frame.len());
            let frame = frame.get_mut(..length).unwrap_or_default();
            io.read(&chain, HEADER as u64, frame)?;
            peers.send(self.spec.nic, frame);
            io.complete(TRANSMIT, &chain, 0)?;
        }
        Ok(())
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        F_MAC
    }

    fn queues(&self) -> usize {
        2
    }

    fn config(&self, config: &mut [u8; CONFIG_BYTES]) {
        if let Some(mac) = config.first_chunk_mut() {
            *mac = self.spec.port.mac.0;
        }
    }

    fn reset(&mut self) {
        self.stale = true;
    }

    fn work(&mut self, io: &mut Io<'_>, context: &mut Context<'_>) -> Result<(), QueueError> {
        let peers = &mut *context.peers;
        if core::mem::take(&mut self.stale) {
            peers.discard(self.spec.nic);
        }
        self.receive(io, peers)?;
        self.transmit(io, peers)
    }
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
