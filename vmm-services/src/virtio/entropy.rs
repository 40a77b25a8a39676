//! Entropy device (virtio 1.3, 5.4).

use super::{Device, Io, QueueError};
use crate::vm::Context;

const REQUESTS: usize = 0;
/// Most bytes that one request gets; who wants more asks again.
const REQUEST_MAX: u64 = 256;

/// The device. It keeps nothing between requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntropyDevice;

impl Device for EntropyDevice {
    fn id(&self) -> u32 {
        4
    }

    fn queues(&self) -> usize {
        1
    }

    fn work(&mut self, io: &mut Io<'_>, context: &mut Context<'_>) -> Result<(), QueueError> {
        while let Some(chain) = io.front(REQUESTS)? {
            let wanted = chain.writable().min(REQUEST_MAX);
            let mut given = 0;
            while given < wanted {
                let mut bytes = [0; 32];
                let size = (wanted - given).min(bytes.len() as u64);
                let bytes = bytes.get_mut(..size as usize).unwrap_or_default();
                // A source that has run dry for now gives a short answer, or an empty one: waiting
                // is for the driver to do, whose other threads go on meanwhile.
                if context.entropy.fill(bytes).is_err() {
                    break;
                }
                io.write(&chain, given, bytes)?;
                given += size;
            }
            io.complete(REQUESTS, &chain, given as u32)?;
        }
        Ok(())
    }
}
