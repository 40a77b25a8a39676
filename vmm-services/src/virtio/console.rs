//! Console device (virtio 1.3, 5.3) with one port.

use super::{Device, Io, QueueError};
use crate::console::LineBuffer;
use crate::traits::ConsoleSink;
use crate::vm::Context;
use arrayvec::ArrayVec;

/// Queue with buffers for what is typed.
const RECEIVE: usize = 0;
/// Queue with what the guest prints.
const TRANSMIT: usize = 1;
/// Typed bytes that wait for the guest to take them.
const INPUT_MAX: usize = 64;

/// The device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Console {
    output: LineBuffer,
    input: ArrayVec<u8, INPUT_MAX>,
    /// Bytes of the chain at the front of [`TRANSMIT`] that were printed in earlier calls.
    printed: u64,
}

impl Console {
    /// Takes typed bytes, as many as there is room for; returns how many.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.input.remaining_capacity());
        self.input.extend(bytes.iter().copied().take(taken));
        taken
    }

    /// Gives out a line that has begun.
    pub(crate) fn flush(&mut self, console: &mut dyn ConsoleSink) {
        self.output.flush(console);
    }

    fn transmit(
        &mut self,
        io: &mut Io<'_>,
        console: &mut dyn ConsoleSink,
    ) -> Result<(), QueueError> {
        while let Some(chain) = io.front(TRANSMIT)? {
            // The driver may have shortened it since the last call.
            let mut left = chain.readable().saturating_sub(self.printed);
            while left > 0 {
                let mut piece = [0; 256];
                let size = left.min(piece.len() as u64).min(io.bytes_left() as u64);
                if size == 0 {
                    io.go_on_later();
                    return Ok(());
                }
                let piece = piece.get_mut(..size as usize).unwrap_or_default();
                io.read(&chain, self.printed, piece)?;
                self.output.write(piece, console);
                self.printed += size;
                left -= size;
            }
            self.printed = 0;
            io.complete(TRANSMIT, &chain, 0)?;
        }
        Ok(())
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        3
    }

    fn queues(&self) -> usize {
        2
    }

    fn reset(&mut self) {
        self.printed = 0;
    }

    fn work(&mut self, io: &mut Io<'_>, context: &mut Context<'_>) -> Result<(), QueueError> {
        while !self.input.is_empty() {
            let Some(chain) = io.front(RECEIVE)? else { break };
            let size = self.input.len().min(usize::try_from(chain.writable()).unwrap_or(INPUT_MAX));
            io.write(&chain, 0, self.input.get(..size).unwrap_or_default())?;
            io.complete(RECEIVE, &chain, size as u32)?;
            self.input.drain(..size);
        }
        self.transmit(io, context.console)
    }
}
