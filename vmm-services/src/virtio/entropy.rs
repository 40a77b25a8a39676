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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Alone, Counting, Lines, RamDisks, Timer};
    use crate::virtio::driver::{DATA, Driver};

    /// Asks for `length` bytes of a source that has `left`; how many came.
    fn ask(length: u32, left: usize) -> (Driver, u32) {
        let (mut driver, mut queues) = Driver::new(4);
        driver.offer_chain(0, &[(DATA, length, true)]);
        let entropy = Counting::default();
        entropy.left.set(left);
        let mut io = Io::new(&mut queues, &driver.ram);
        let worked = EntropyDevice.work(
            &mut io,
            &mut Context {
                memory: &driver.ram,
                console: &mut Lines::default(),
                entropy: &entropy,
                disks: &RamDisks::default(),
                peers: &mut Alone,
                countdown: &Timer::default(),
            },
        );
        assert_eq!(worked, Ok(()));
        let (_, given) = driver.take_used().unwrap();
        (driver, given)
    }

    #[test]
    fn requests_are_filled_as_far_as_the_source_gives() {
        let (driver, given) = ask(40, usize::MAX);
        assert_eq!(given, 40);
        assert_eq!(driver.read(DATA, 41)[38..], [40, 41, 0], "one is left out between pieces");
        assert_eq!(ask(100_000, usize::MAX).1, 256);
        assert_eq!(ask(100, 64).1, 64);
        let (driver, given) = ask(100, 0);
        assert_eq!((given, driver.read(DATA, 2)), (0, std::vec![0, 0]));
        assert_eq!(ask(0, usize::MAX).1, 0);
    }
}
