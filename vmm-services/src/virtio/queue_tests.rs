use super::{
    BYTES_PER_CALL, Buffer, Chain, DESCRIPTORS_PER_CALL, Io, NEXT, NO_INTERRUPT, QUEUE_SIZE_MAX,
    Queue, QueueError,
};
use crate::traits::{GuestMemory, MemoryFault};
use crate::virtio::driver::{AVAILABLE, BASE, DATA, Driver, RAM_BYTES, TABLE, USED};
use mm::Ipa;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

fn front(driver: &Driver, queues: &mut [Queue]) -> Result<Option<Chain>, QueueError> {
    Io::new(queues, &driver.ram).front(0)
}

#[test]
fn a_chain_goes_there_and_back() {
    let (mut driver, mut queues) = Driver::new(8);
    assert_eq!(front(&driver, &mut queues), Ok(None));
    driver.write(DATA, b"abcdef");
    let parts = [(DATA, 2, false), (DATA + 2, 0, false), (DATA + 2, 4, false)];
    let rest = [(DATA + 0x100, 3, true), (DATA + 0x200, 5, true)];
    driver.offer_chain(2, &[&parts[..], &rest].concat());

    let mut io = Io::new(&mut queues, &driver.ram);
    let chain = io.front(0).unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (6, 8));
    let mut middle = [0; 4];
    io.read(&chain, 1, &mut middle).unwrap();
    assert_eq!(&middle, b"bcde");
    assert_eq!(io.read(&chain, 3, &mut middle), Err(QueueError::TooShort));
    assert_eq!(io.read(&chain, u64::MAX, &mut middle), Err(QueueError::TooShort));
    io.write(&chain, 2, b"xyz").unwrap();
    assert_eq!(io.write(&chain, 6, b"xyz"), Err(QueueError::TooShort));
    assert_eq!(io.front(0), Ok(Some(chain.clone())), "it stays until it is completed");
    io.complete(0, &chain, 5).unwrap();
    assert_eq!(io.front(0), Ok(None));
    assert_eq!(driver.read(DATA + 0x102, 1), b"x");
    assert_eq!(driver.read(DATA + 0x200, 2), b"yz");
    assert_eq!(driver.take_used(), Some((2, 5)));
    assert_eq!(driver.take_used(), None);
}

#[test]
fn the_driver_is_told_once_and_only_if_it_wants() {
    let (mut driver, mut queues) = Driver::new(4);
    let complete = |driver: &mut Driver, queues: &mut [Queue]| {
        driver.offer_chain(0, &[(DATA, 1, true)]);
        let mut io = Io::new(queues, &driver.ram);
        let chain = io.front(0).unwrap().unwrap();
        io.complete(0, &chain, 0).unwrap();
        queues[0].take_notification(&driver.ram)
    };
    assert_eq!(queues[0].take_notification(&driver.ram), Ok(false));
    assert_eq!(complete(&mut driver, &mut queues), Ok(true));
    assert_eq!(queues[0].take_notification(&driver.ram), Ok(false));
    driver.write(AVAILABLE, &NO_INTERRUPT.to_le_bytes());
    assert_eq!(complete(&mut driver, &mut queues), Ok(false));
}

#[test]
fn broken_chains() {
    let broken = |make: &dyn Fn(&mut Driver)| {
        let (mut driver, mut queues) = Driver::new(8);
        make(&mut driver);
        front(&driver, &mut queues).unwrap_err()
    };
    let outside = |at| QueueError::Memory(MemoryFault { ipa: Ipa::new(at) });
    assert_eq!(broken(&|d| d.offer(8)), QueueError::Descriptor(8));
    assert_eq!(broken(&|d| d.offer(u16::MAX)), QueueError::Descriptor(u16::MAX));
    let flags = |flags, next| {
        move |d: &mut Driver| {
            d.descriptor(0, DATA, 1, flags, next);
            d.offer(0);
        }
    };
    assert_eq!(broken(&flags(NEXT, 8)), QueueError::Descriptor(8));
    assert_eq!(broken(&flags(NEXT, 0)), QueueError::Loop);
    assert_eq!(broken(&flags(4, 0)), QueueError::Flags(4));
    assert_eq!(
        broken(&|d| d.offer_chain(0, &[(DATA, 1, true), (DATA, 1, false)])),
        QueueError::Order
    );
    assert_eq!(
        broken(&|d| d.offer_chain(0, &[(DATA, u32::MAX, true), (DATA, 2, true)])),
        QueueError::TooLong
    );
    assert_eq!(broken(&|d| d.write(AVAILABLE + 2, &9_u16.to_le_bytes())), QueueError::Index(9));
    assert_eq!(
        broken(&|d| d.write(AVAILABLE + 2, &0xffff_u16.to_le_bytes())),
        QueueError::Index(0xffff)
    );

    let (driver, mut queues) = Driver::new(8);
    queues[0].driver = 0x1000;
    assert_eq!(front(&driver, &mut queues), Err(outside(0x1002)));
}

#[test]
fn buffers_outside_of_memory() {
    let (mut driver, mut queues) = Driver::new(8);
    driver.offer_chain(0, &[(u64::MAX - 1, 8, false), (BASE + RAM_BYTES as u64 - 2, 4, true)]);
    let mut io = Io::new(&mut queues, &driver.ram);
    let chain = io.front(0).unwrap().unwrap();
    let fault = |result| matches!(result, Err(QueueError::Memory(_)));
    assert!(fault(io.read(&chain, 0, &mut [0; 1])));
    assert!(fault(io.read(&chain, 4, &mut [0; 1])), "the address overflows");
    assert!(fault(io.write(&chain, 0, &[0; 3])));
    assert!(io.write(&chain, 0, &[0; 2]).is_ok());
}

#[test]
fn places_that_a_queue_cannot_have() {
    let usable = |change: &dyn Fn(&mut Queue)| {
        let (_, [mut queue]) = Driver::new(8);
        queue.disable();
        change(&mut queue);
        queue.enable();
        queue.is_ready()
    };
    assert!(usable(&|_| {}));
    for size in [0, 3, 128, 65536, u32::MAX] {
        assert!(!usable(&|q| q.size = size), "{size}");
    }
    assert!(usable(&|q| q.size = QUEUE_SIZE_MAX.into()));
    assert!(!usable(&|q| q.descriptors = 8));
    assert!(!usable(&|q| q.driver = 1));
    assert!(!usable(&|q| q.device = 2));
    assert!(!usable(&|q| q.descriptors = u64::MAX - 15));
    assert!(!usable(&|q| q.driver = u64::MAX - 1));
    assert!(!usable(&|q| q.device = u64::MAX - 3));
}

/// A call looks at a bounded number of descriptors, and the next one goes on where it stopped.
#[test]
fn a_call_may_spend_so_much() {
    let (mut driver, mut queues) = Driver::new(64);
    let chain: Vec<_> = (0..64).map(|_| (DATA, 1, false)).collect();
    for _ in 0..20 {
        driver.offer_chain(0, &chain);
    }
    let mut calls = Vec::new();
    loop {
        let mut io = Io::new(&mut queues, &driver.ram);
        let mut completed = 0;
        while let Some(chain) = io.front(0).unwrap() {
            io.complete(0, &chain, 0).unwrap();
            completed += 1;
        }
        calls.push(completed);
        if !io.has_more() {
            break;
        }
    }
    let most = DESCRIPTORS_PER_CALL as usize / 64;
    assert_eq!(calls, [most; 5]);

    driver.offer_chain(0, &[(DATA, 0x1_0000, false)]);
    driver.offer_chain(0, &[(DATA, 0x1_0000, false)]);
    let mut io = Io::new(&mut queues, &driver.ram);
    let chain = io.front(0).unwrap().unwrap();
    io.read(&chain, 0, &mut vec![0; BYTES_PER_CALL]).unwrap();
    assert_eq!(io.bytes_left(), 0);
    io.complete(0, &chain, 0).unwrap();
    assert_eq!((io.front(0), io.has_more()), (Ok(None), true));
}

/// What a device does in the tests: answers each request with as many of its bytes, inverted, as
/// there is room for.
fn invert(io: &mut Io<'_>) -> Result<(), QueueError> {
    while let Some(chain) = io.front(0)? {
        let size = chain.readable().min(chain.writable()).min(io.bytes_left() as u64) as usize;
        let mut bytes = vec![0; size];
        io.read(&chain, 0, &mut bytes)?;
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        io.write(&chain, 0, &bytes)?;
        io.complete(0, &chain, size as u32)?;
    }
    Ok(())
}

/// Memory that gives other bytes at each read, and counts.
struct Restless {
    state: Cell<u64>,
    small: u64,
    accesses: Cell<usize>,
    written: RefCell<Vec<u64>>,
}

impl GuestMemory for Restless {
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.accesses.set(self.accesses.get() + 1);
        for byte in buf.iter_mut() {
            // xorshift64
            let mut x = self.state.get();
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            self.state.set(x);
            // Small values and zero bytes are what gets past the first checks.
            *byte = if x >> 60 < self.small { (x >> 32) as u8 & 7 } else { (x >> 24) as u8 };
        }
        if ipa.get() >> 44 == 0xf { Err(MemoryFault { ipa }) } else { Ok(()) }
    }

    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        self.accesses.set(self.accesses.get() + 1);
        let end = ipa.checked_add(data.len() as u64).ok_or(MemoryFault { ipa })?;
        self.written.borrow_mut().push(end.get());
        Ok(())
    }
}

proptest! {
    /// Against a model: any chains, offered and served in any order, come back with the right bytes.
    #[test]
    fn chains_come_back_as_they_should(
        size in prop::sample::select(vec![1_u16, 2, 8, 64]),
        rounds in prop::collection::vec(
            prop::collection::vec((prop::collection::vec(0_u32..40, 1..4), prop::collection::vec(0_u32..40, 0..4)), 0..5),
            1..20,
        ),
    ) {
        let (mut driver, mut queues) = Driver::new(size);
        for chains in rounds {
            let (mut descriptor, mut address) = (0, DATA);
            let mut expected = Vec::new();
            for (readable, writable) in chains {
                let count = (readable.len() + writable.len()) as u16;
                if descriptor + count > size {
                    break;
                }
                let mut place = |length: &u32| {
                    let at = address;
                    address += u64::from(*length) + 3;
                    (at, *length)
                };
                let readable: Vec<_> = readable.iter().map(&mut place).collect();
                let writable: Vec<_> = writable.iter().map(&mut place).collect();
                let mut sent = Vec::new();
                for &(at, length) in &readable {
                    let bytes: Vec<u8> = (0..length).map(|i| (u64::from(i) * 7 + at) as u8).collect();
                    driver.write(at, &bytes);
                    sent.extend(bytes);
                }
                let buffers: Vec<_> = readable.iter().map(|&(a, l)| (a, l, false))
                    .chain(writable.iter().map(|&(a, l)| (a, l, true))).collect();
                driver.offer_chain(descriptor, &buffers);
                expected.push((descriptor, writable, sent));
                descriptor += count;
            }
            invert(&mut Io::new(&mut queues, &driver.ram)).unwrap();
            let told = queues[0].take_notification(&driver.ram).unwrap();
            prop_assert_eq!(told, !expected.is_empty());
            for (head, writable, sent) in expected {
                let room: u32 = writable.iter().map(|w| w.1).sum();
                let written = room.min(sent.len() as u32);
                prop_assert_eq!(driver.take_used(), Some((head.into(), written)));
                let found: Vec<u8> = writable.iter()
                    .flat_map(|&(at, length)| driver.read(at, length as usize)).collect();
                for (index, byte) in found.iter().enumerate().take(written as usize) {
                    prop_assert_eq!(*byte, !sent[index]);
                }
            }
            prop_assert_eq!(driver.take_used(), None);
        }
    }

    /// Rings of random bytes that change at each look: no panic, a bounded number of accesses, and
    /// nothing is written anywhere but to buffers and the used ring.
    #[test]
    fn restless_rings_are_harmless(seed in 1_u64.., small in 0_u64..16, size in 0_u32..7) {
        let memory = Restless {
            state: Cell::new(seed),
            small,
            accesses: Cell::new(0),
            written: RefCell::new(Vec::new()),
        };
        let mut queue = Queue {
            size: 1 << size, descriptors: TABLE, driver: AVAILABLE, device: USED, ..Queue::default()
        };
        queue.enable();
        let mut queues = [queue];
        for _ in 0..20 {
            memory.accesses.set(0);
            let mut io = Io::new(&mut queues, &memory);
            let _ = invert(&mut io);
            let _ = queues[0].take_notification(&memory);
            // For each descriptor: itself, one buffer; for each chain: index, entry, used ring.
            let most = (DESCRIPTORS_PER_CALL as usize + usize::from(QUEUE_SIZE_MAX)) * 6;
            prop_assert!(memory.accesses.get() <= most, "{} accesses", memory.accesses.get());
        }
    }

    /// Splitting a chain's bytes into pieces loses and repeats none.
    #[test]
    fn pieces_cover_what_was_asked_for(
        lengths in prop::collection::vec(0_u32..50, 0..8),
        offset in 0_u64..400,
        length in 0_usize..400,
    ) {
        let buffers: Vec<Buffer> = (0..).zip(&lengths)
            .map(|(i, &length)| Buffer { address: i * 1000, length }).collect();
        let all: Vec<u64> = buffers.iter()
            .flat_map(|b| b.address..b.address + u64::from(b.length)).collect();
        let expected = all.get(offset as usize..offset as usize + length);
        let found = super::pieces(&buffers, offset, length).ok().map(|pieces| {
            pieces.flat_map(|(at, size)| {
                let at = at.unwrap().get();
                at..at + size as u64
            }).collect::<Vec<u64>>()
        });
        prop_assert_eq!(found.as_deref(), expected);
    }
}
