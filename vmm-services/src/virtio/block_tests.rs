use super::*;
use crate::testing::{Alone, Counting, Lines, RamDisks, Timer};
use crate::virtio::driver::{DATA, Driver, RAM_BYTES};
use crate::virtio::queue::{BYTES_PER_CALL, Queue};
use proptest::prelude::*;
use std::cell::RefCell;
use std::vec;
use std::vec::Vec;

const DISK: u64 = 64 << 10;
/// Where the tests put header, status and data of a request.
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x200;

struct Rig {
    device: Block,
    driver: Driver,
    queues: [Queue; 1],
    disks: RamDisks,
    calls: usize,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let (driver, queues) = Driver::new(64);
        let contents: Vec<u8> = (0..DISK).map(|at| (at / 512 + at) as u8).collect();
        let spec = BlockSpec { image: None, size: DISK, read_only };
        Self {
            device: Block::new(&spec, 0),
            driver,
            queues,
            disks: RamDisks(vec![RefCell::new(contents)]),
            calls: 0,
        }
    }

    fn disk(&self, at: u64, length: usize) -> Vec<u8> {
        self.disks.0[0].borrow()[at as usize..][..length].to_vec()
    }

    /// Offers a request with `data` (address, length, writable) between header and status.
    fn offer(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) {
        let header = u128::from(kind) | u128::from(sector) << 64;
        self.driver.write(HEADER, &header.to_le_bytes());
        self.driver.write(STATUS, &[0xff]);
        let all = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
        self.driver.offer_chain(0, &all);
    }

    /// One call of the device; whether it wants another.
    fn call(&mut self) -> Result<bool, QueueError> {
        self.calls += 1;
        let mut io = Io::new(&mut self.queues, &self.driver.ram);
        let worked = self.device.work(
            &mut io,
            &mut Context {
                memory: &self.driver.ram,
                console: &mut Lines::default(),
                entropy: &Counting::default(),
                disks: &self.disks,
                peers: &mut Alone,
                countdown: &Timer::default(),
            },
        );
        let more = io.has_more();
        worked.map(|()| more)
    }

    /// Serves a request to its end; its status and the length in the used ring.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.offer(kind, sector, data);
        while self.call().unwrap() {}
        let (head, written) = self.driver.take_used().expect("it is completed");
        assert_eq!((head, self.driver.take_used()), (0, None));
        (self.driver.read(STATUS, 1)[0], written)
    }
}

#[test]
fn reading_and_writing() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(IN, 3, &[(BUFFER, 100, true), (BUFFER + 0x400, 924, true)]), (0, 1025));
    assert_eq!(rig.driver.read(BUFFER, 100), rig.disk(3 * 512, 100));
    assert_eq!(rig.driver.read(BUFFER + 0x400, 924), rig.disk(3 * 512 + 100, 924));
    rig.driver.write(BUFFER, &[7; 512]);
    assert_eq!(rig.request(OUT, 127, &[(BUFFER, 512, false)]), (0, 1));
    assert_eq!(rig.disk(127 * 512, 512), [7; 512]);
    assert_eq!(rig.request(FLUSH, 0, &[]), (0, 1));
    assert_eq!(rig.request(IN, 0, &[]), (0, 1));
}

#[test]
fn identification() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(GET_ID, 0, &[(BUFFER, 20, true)]), (0, 21));
    assert_eq!(rig.driver.read(BUFFER, 20), b"suzerain-disk-0\0\0\0\0\0");
    assert_eq!(rig.request(GET_ID, 0, &[(BUFFER, 8, true)]), (0, 9));
    let mut config = [0; CONFIG_BYTES];
    rig.device.config(&mut config);
    assert_eq!(config[..8], 128_u64.to_le_bytes());
    assert_eq!(config[12..16], 62_u32.to_le_bytes());
}

#[test]
fn refused_requests() {
    let mut rig = Rig::new(false);
    for (sector, length) in [(128, 512), (127, 1024), (0, 100), (u64::MAX, 512), (1 << 55, 512)] {
        assert_eq!(rig.request(IN, sector, &[(BUFFER, length, true)]), (1, 0), "{sector}");
        assert_eq!(rig.request(OUT, sector, &[(BUFFER, length, false)]), (1, 1), "{sector}");
    }
    assert_eq!(rig.request(IN, 0, &[(BUFFER, u32::MAX - 511, true)]), (1, 0));
    assert_eq!(rig.request(99, 0, &[]), (2, 1));
    // The first half of the data is in memory, the second is not.
    assert_eq!(rig.request(IN, 0, &[(BUFFER, 4096, true), (0, 4096, true)]), (1, 4096));
    assert_eq!(rig.request(OUT, 0, &[(0, 512, false)]), (1, 1));
    let before = rig.disk(0, 512);
    let mut rig = Rig::new(true);
    assert_eq!(rig.request(OUT, 0, &[(BUFFER, 512, false)]), (1, 1));
    assert_eq!(rig.disk(0, 512), before);
    assert_eq!(rig.request(IN, 0, &[(BUFFER, 512, true)]), (0, 513));
}

#[test]
fn requests_that_cannot_be_answered_break_the_queue() {
    let mut rig = Rig::new(false);
    rig.driver.offer_chain(0, &[(HEADER, 16, false)]);
    assert_eq!(rig.call(), Err(QueueError::TooShort));
    let mut rig = Rig::new(false);
    rig.driver.offer_chain(0, &[(HEADER, 15, false), (STATUS, 1, true)]);
    assert_eq!(rig.call(), Err(QueueError::TooShort));
    let mut rig = Rig::new(false);
    rig.driver.offer_chain(0, &[(HEADER, 16, false), (0, 1, true)]);
    assert!(matches!(rig.call(), Err(QueueError::Memory(_))));
}

/// A request of more bytes than a call may move is served in several calls.
#[test]
fn long_requests_go_on_later() {
    let mut rig = Rig::new(false);
    let length = DISK as u32;
    assert!(DISK as usize + HEADER_BYTES > BYTES_PER_CALL && u64::from(length) < RAM_BYTES as u64);
    assert_eq!(rig.request(IN, 0, &[(BUFFER, length, true)]), (0, length + 1));
    assert_eq!(rig.calls, 2);
    assert_eq!(rig.driver.read(BUFFER, DISK as usize), rig.disk(0, DISK as usize));
    assert_eq!(rig.request(IN, 1, &[(BUFFER, 512, true)]), (0, 513));
    assert_eq!(rig.driver.read(BUFFER, 512), rig.disk(512, 512));
}

proptest! {
    /// Against an array of bytes: reads find what was written last.
    #[test]
    fn a_disk_is_an_array(
        requests in prop::collection::vec(
            (any::<bool>(), 0_u64..132, 0_u32..5, any::<u8>(), 0_u32..512), 1..40,
        ),
    ) {
        let mut rig = Rig::new(false);
        let mut model = rig.disk(0, DISK as usize);
        for (write, sector, sectors, byte, cut) in requests {
            let length = sectors * 512;
            let cut = cut.min(length);
            let parts = [(BUFFER, cut, !write), (BUFFER + u64::from(cut), length - cut, !write)];
            let inside = sector + u64::from(sectors) <= DISK / 512;
            rig.driver.write(BUFFER, &vec![byte; length as usize]);
            let (status, _) = rig.request(if write { OUT } else { IN }, sector, &parts);
            prop_assert_eq!(status == 0, inside);
            let span = sector as usize * 512..(sector as usize * 512 + length as usize);
            if write && inside {
                model[span].fill(byte);
            } else if inside {
                prop_assert_eq!(rig.driver.read(BUFFER, length as usize), &model[span]);
            }
        }
        prop_assert_eq!(rig.disk(0, DISK as usize), model);
    }
}
