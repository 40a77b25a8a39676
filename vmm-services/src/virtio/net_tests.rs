//! Two network devices on one switch, with a driver of a few lines behind each.

use super::*;
use crate::channel::Endpoint;
use crate::exit::{Access, Width};
use crate::switch::{MIN_QUEUE_BYTES, MacAddr, Port, PortConfig, SourcePolicy, Switch};
use crate::testing::{Counting, Lines, Ram, RamDisks, Timer};
use crate::traits::NicId;
use crate::virtio::{Model, Transport};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;

/// Entries of each queue.
const SIZE: usize = 8;
/// Distance of the areas of the two queues in memory.
const QUEUE: usize = 0x8000;
/// Offsets in it: the rings and the buffers, one of 2 KiB for each descriptor.
const AVAILABLE: usize = 0x400;
const USED: usize = 0x800;
const BUFFERS: usize = 0x1000;
const BUFFER: usize = 0x800;

/// The switch; device number `n` is behind port `n`.
struct Lan {
    switch: Switch<Vec<u8>>,
    ports: Vec<Port>,
}

impl Peers for Lan {
    fn send(&mut self, nic: NicId, frame: &[u8]) {
        let _ = self.switch.send(&self.ports[usize::from(nic.number)], frame, 0);
    }

    fn has_frame(&mut self, nic: NicId) -> bool {
        self.switch.has_frame(&self.ports[usize::from(nic.number)])
    }

    fn receive(&mut self, nic: NicId, into: &mut [u8]) -> Option<usize> {
        self.switch.receive(&self.ports[usize::from(nic.number)], into)
    }

    fn discard(&mut self, nic: NicId) {
        self.switch.discard(&self.ports[usize::from(nic.number)]);
    }

    fn channel_access(&mut self, _: &Endpoint, _: u64, _: Width, _: Access) -> u32 {
        unreachable!("there are no channels")
    }

    fn channel_line(&mut self, _: &Endpoint) -> bool {
        unreachable!("there are no channels")
    }
}

fn mac(number: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, number])
}

fn spec(number: u8) -> NetSpec {
    let port = PortConfig {
        mac: mac(number),
        source: SourcePolicy::Own,
        queue_frames: 4,
        rate_kbps: None,
    };
    NetSpec { nic: NicId { switch: 0, number }, port, queue_bytes: MIN_QUEUE_BYTES as u32 }
}

fn lan() -> Lan {
    let mut switch = Switch::new();
    let attach = |n| switch.attach(spec(n).port, vec![0; MIN_QUEUE_BYTES], 0).unwrap();
    let ports = (0..2).map(attach).collect();
    Lan { switch, ports }
}

/// A device and its driver.
struct Station {
    transport: Transport,
    ram: Ram,
    /// Chains made available and chains found used, per queue.
    available: [u16; 2],
    used: [u16; 2],
}

impl Station {
    fn new(number: u8) -> Self {
        let transport = Transport::new(Model::Net(Net::new(spec(number))));
        let ram = Ram::new(2 * QUEUE);
        let mut station = Self { transport, ram, available: [0; 2], used: [0; 2] };
        station.start();
        station
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.transport.access(offset, Width::Word, Access::Write(value.into()));
    }

    fn read(&mut self, offset: u32, width: Width) -> u64 {
        self.transport.access(offset, width, Access::Read)
    }

    /// Virtio 1.3, 3.1.1, with both queues.
    fn start(&mut self) {
        self.ram.0.borrow_mut().fill(0);
        (self.available, self.used) = ([0; 2], [0; 2]);
        // Status: reset, ACKNOWLEDGE, DRIVER; features VERSION_1 and MAC; FEATURES_OK.
        let features = [(0x24, 1), (0x20, 1), (0x24, 0), (0x20, 1 << 5)];
        for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3)].into_iter().chain(features) {
            self.write(offset, value);
        }
        self.write(0x70, 11);
        for queue in 0..2 {
            let at = 0x4000_0000 + (queue * QUEUE) as u32;
            let places = [(0x80, 0), (0x90, AVAILABLE), (0xa0, USED)];
            self.write(0x30, queue as u32);
            self.write(0x38, SIZE as u32);
            places.iter().for_each(|&(offset, place)| self.write(offset, at + place as u32));
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70, Width::Word), 15);
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.ram.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.ram.0.borrow()[at..at + 2].try_into().unwrap())
    }

    /// Makes a chain of one descriptor with `length` bytes available, without a notification.
    fn offer(&mut self, queue: usize, length: usize, writable: bool) {
        let index = usize::from(self.available[queue]) % SIZE;
        let base = queue * QUEUE;
        let buffer = 0x4000_0000 + (base + BUFFERS + index * BUFFER) as u64;
        let flags = if writable { 2_u16 } else { 0 };
        self.put(base + 16 * index, &buffer.to_le_bytes());
        self.put(base + 16 * index + 8, &(length as u32).to_le_bytes());
        self.put(base + 16 * index + 12, &flags.to_le_bytes());
        self.put(base + AVAILABLE + 4 + 2 * index, &(index as u16).to_le_bytes());
        self.available[queue] += 1;
        self.put(base + AVAILABLE + 2, &self.available[queue].to_le_bytes());
    }

    fn send(&mut self, frame: &[u8]) {
        let index = usize::from(self.available[TRANSMIT]) % SIZE;
        self.put(QUEUE + BUFFERS + index * BUFFER, &[&[0xa5; HEADER], frame].concat());
        self.offer(TRANSMIT, HEADER + frame.len(), false);
        self.write(0x50, TRANSMIT as u32);
    }

    /// Takes the next frame that the device has given to the guest, and checks its header.
    fn take(&mut self) -> Option<Vec<u8>> {
        let next = self.used[RECEIVE];
        if next == self.half(USED + 2) {
            return None;
        }
        self.used[RECEIVE] += 1;
        let element = USED + 4 + 8 * (usize::from(next) % SIZE);
        let (index, length) = (self.half(element) as usize, self.half(element + 4) as usize);
        let start = BUFFERS + index * BUFFER;
        let buffer = self.ram.0.borrow()[start..start + length].to_vec();
        assert_eq!(buffer[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        Some(buffer[HEADER..].to_vec())
    }

    fn work(&mut self, lan: &mut Lan) {
        while self.transport.has_work() {
            let entropy = Counting::default();
            self.transport.work(&mut Context {
                memory: &self.ram,
                console: &mut Lines::default(),
                entropy: &entropy,
                disks: &RamDisks::default(),
                peers: lan,
                countdown: &Timer::default(),
            });
        }
    }

    /// What a VM does when it is told that another one has sent something.
    fn called(&mut self, lan: &mut Lan) {
        self.transport.request_work();
        self.work(lan);
    }
}

fn frame(to: u8, from: u8, length: usize, tag: u8) -> Vec<u8> {
    let mut frame = [mac(to).0, mac(from).0].concat();
    frame.resize(length, tag);
    frame
}

fn pair() -> (Lan, Station, Station) {
    let mut lan = lan();
    let (mut a, mut b) = (Station::new(0), Station::new(1));
    a.work(&mut lan);
    b.work(&mut lan);
    (lan, a, b)
}

#[test]
fn the_driver_finds_its_address() {
    let mut station = Station::new(1);
    assert_eq!(station.read(0x08, Width::Word), 1);
    station.write(0x14, 0);
    assert_eq!(station.read(0x10, Width::Word), 1 << 5);
    let found: Vec<u64> = (0..8).map(|n| station.read(0x100 + n, Width::Byte)).collect();
    assert_eq!(found, [2, 0, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_frame_crosses_and_interrupts() {
    let (mut lan, mut a, mut b) = pair();
    b.offer(RECEIVE, 1526, true);
    a.send(&frame(1, 0, 1514, 7));
    a.work(&mut lan);
    assert_eq!(a.half(QUEUE + USED + 2), 1, "the sender has its buffer back");
    assert!(a.transport.line() && !b.transport.line());
    b.called(&mut lan);
    assert!(b.transport.line());
    assert_eq!((b.take(), b.take()), (Some(frame(1, 0, 1514, 7)), None));
}

#[test]
fn frames_wait_for_buffers_and_no_longer_than_the_driver() {
    let (mut lan, mut a, mut b) = pair();
    a.send(&frame(1, 0, 60, 1));
    a.work(&mut lan);
    b.called(&mut lan);
    assert_eq!((b.take(), b.transport.line()), (None, false));
    b.offer(RECEIVE, 1526, true);
    b.write(0x50, RECEIVE as u32);
    b.work(&mut lan);
    assert_eq!(b.take(), Some(frame(1, 0, 60, 1)));
    // What comes while the driver starts over is not for the next one.
    a.send(&frame(1, 0, 60, 2));
    a.work(&mut lan);
    b.start();
    b.offer(RECEIVE, 1526, true);
    b.work(&mut lan);
    assert_eq!(b.take(), None);
    a.send(&frame(1, 0, 60, 3));
    a.work(&mut lan);
    b.called(&mut lan);
    assert_eq!(b.take(), Some(frame(1, 0, 60, 3)));
}

#[test]
fn what_does_not_fit_is_lost_alone() {
    let (mut lan, mut a, mut b) = pair();
    b.offer(RECEIVE, HEADER + 100, true);
    for (length, tag) in [(101, 1), (100, 2)] {
        a.send(&frame(1, 0, length, tag));
    }
    a.send(&frame(1, 0, MAX_FRAME + 1, 3));
    a.work(&mut lan);
    b.called(&mut lan);
    assert_eq!((b.take(), b.take()), (Some(frame(1, 0, 100, 2)), None));
    assert_eq!(lan.switch.stats(&lan.ports[0]).dropped_size, 1);
    assert_eq!(a.half(QUEUE + USED + 2), 3);
}

#[test]
fn a_chain_without_a_header_breaks_the_device_alone() {
    let (mut lan, mut a, mut b) = pair();
    a.offer(TRANSMIT, HEADER - 1, false);
    a.write(0x50, TRANSMIT as u32);
    a.work(&mut lan);
    assert_eq!(a.read(0x70, Width::Word), 15 | 64, "DEVICE_NEEDS_RESET");
    b.send(&frame(0, 1, 60, 1));
    b.work(&mut lan);
    a.called(&mut lan);
    a.start();
    b.offer(RECEIVE, 1526, true);
    a.send(&frame(1, 0, 60, 2));
    a.work(&mut lan);
    b.called(&mut lan);
    assert_eq!(b.take(), Some(frame(1, 0, 60, 2)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames arrive whole and in order, whenever the guest offers buffers; none is lost but those for
    /// which the port's queue of four frames had no room.
    #[test]
    fn frames_arrive_in_order(
        steps in prop::collection::vec((0..4_u8, 14..1515_usize), 1..60)
    ) {
        let (mut lan, mut a, mut b) = pair();
        let (mut waiting, mut bytes, mut expected) = (0, 0, VecDeque::new());
        for (tag, (step, length)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => {
                    let frame = frame(1, 0, length, tag as u8);
                    a.send(&frame);
                    a.work(&mut lan);
                    let fits = waiting < 4 && bytes + frame.len() + 2 <= MIN_QUEUE_BYTES;
                    if fits {
                        (waiting, bytes) = (waiting + 1, bytes + frame.len() + 2);
                        expected.push_back(frame);
                    }
                }
                2 if usize::from(b.available[RECEIVE] - b.used[RECEIVE]) < SIZE => {
                    b.offer(RECEIVE, 1526, true);
                }
                _ => b.called(&mut lan),
            }
            while let Some(frame) = b.take() {
                (waiting, bytes) = (waiting - 1, bytes - frame.len() - 2);
                prop_assert_eq!(Some(frame), expected.pop_front());
            }
        }
        prop_assert_eq!(waiting, expected.len());
    }
}
