use super::*;
use crate::manifest::VirtioDevice;
use crate::testing::{Alone, Counting, Lines, Ram, RamDisks, Timer};
use proptest::prelude::*;

/// A transport with a console, and what it may reach.
struct Rig {
    transport: Transport,
    ram: Ram,
    lines: Lines,
}

impl Rig {
    fn new() -> Self {
        let mut models = Model::all(&[VirtioDevice::Console]);
        let transport = Transport::new(models.next().unwrap());
        Self { transport, ram: Ram::new(0x1_0000), lines: Lines::default() }
    }

    fn read(&mut self, offset: u32) -> u32 {
        self.transport.access(offset, Width::Word, Access::Read) as u32
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.transport.access(offset, Width::Word, Access::Write(value.into()));
    }

    fn work(&mut self) {
        let entropy = Counting::default();
        self.transport.work(&mut Context {
            memory: &self.ram,
            console: &mut self.lines,
            entropy: &entropy,
            disks: &RamDisks::default(),
            peers: &mut Alone,
            countdown: &Timer::default(),
        });
    }

    /// Goes through the initialisation of virtio 1.3, 3.1.1, with the transmit queue at the start
    /// of RAM: 8 descriptors, then the rings.
    fn set_up(&mut self) {
        for status in [0, 1, 3] {
            self.write(STATUS, status);
        }
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, 3);
        self.write(STATUS, 11);
        self.write(QUEUE_SEL, 1);
        self.write(QUEUE_SIZE, 8);
        self.write(QUEUE_DESC_LOW, 0x4000_0000);
        self.write(QUEUE_DRIVER_LOW, 0x4000_1000);
        self.write(QUEUE_DEVICE_LOW, 0x4000_2000);
        self.write(QUEUE_READY, 1);
        self.write(STATUS, 15);
    }

    /// Offers descriptor 0 with `text` as chain number `index`.
    fn print(&self, index: u16, text: &[u8]) {
        let put = |at: usize, bytes: &[u8]| {
            self.ram.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0x3000, text);
        put(0, &0x4000_3000_u64.to_le_bytes());
        put(8, &(text.len() as u32).to_le_bytes());
        put(0x1002, &(index + 1).to_le_bytes());
    }
}

#[test]
fn identification() {
    let mut rig = Rig::new();
    let id: [u32; 3] = [0, 4, 8].map(|offset| rig.read(offset));
    assert_eq!(id, [0x7472_6976, 2, 3]);
    assert_eq!(rig.read(0xb0), u32::MAX, "no shared memory");
    assert_eq!(rig.read(QUEUE_SIZE_MAX), 64);
    rig.write(QUEUE_SEL, 2);
    assert_eq!(rig.read(QUEUE_SIZE_MAX), 0, "it has two queues");
    rig.write(DEVICE_FEATURES_SEL, 1);
    assert_eq!(rig.read(DEVICE_FEATURES), 3, "VERSION_1 and ACCESS_PLATFORM");
    rig.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(rig.read(DEVICE_FEATURES), 0);
}

#[test]
fn printing() {
    let mut rig = Rig::new();
    rig.set_up();
    assert_eq!((rig.read(STATUS), rig.read(QUEUE_READY)), (15, 1));
    rig.work();
    assert!(!rig.transport.line());
    rig.print(0, b"hello\n");
    rig.write(QUEUE_NOTIFY, 1);
    assert!(rig.transport.has_work());
    rig.work();
    assert_eq!(rig.lines.0, [(b"hello".to_vec(), true)]);
    assert!(rig.transport.line() && !rig.transport.has_work());
    assert_eq!(rig.read(INTERRUPT_STATUS), USED_BUFFER);
    rig.write(INTERRUPT_ACK, USED_BUFFER);
    assert!(!rig.transport.line());
}

#[test]
fn a_broken_ring_makes_the_device_ask_for_a_reset() {
    let mut rig = Rig::new();
    rig.set_up();
    rig.ram.0.borrow_mut()[0x1002] = 200;
    rig.write(QUEUE_NOTIFY, 1);
    rig.work();
    assert_eq!(rig.read(STATUS), 15 | 64);
    assert_eq!(rig.read(INTERRUPT_STATUS), CONFIGURATION_CHANGE);
    rig.print(0, b"not printed\n");
    rig.write(QUEUE_NOTIFY, 1);
    assert!(!rig.transport.has_work());
    rig.write(STATUS, 0);
    assert_eq!((rig.read(STATUS), rig.read(INTERRUPT_STATUS)), (0, 0));
    rig.set_up();
    rig.work();
    assert_eq!(rig.lines.0, [(b"not printed".to_vec(), true)], "now it is");
}

#[test]
fn features_that_are_not_offered_are_refused() {
    for (low, high, agreed) in
        [(0, 1, true), (0, 3, true), (0, 2, false), (1, 1, false), (0, 5, false)]
    {
        let mut rig = Rig::new();
        rig.write(DRIVER_FEATURES, low);
        rig.write(DRIVER_FEATURES_SEL, 1);
        rig.write(DRIVER_FEATURES, high);
        rig.write(STATUS, 11);
        assert_eq!(rig.read(STATUS), if agreed { 11 } else { 3 }, "{low:#x} {high:#x}");
        rig.write(STATUS, 15);
        assert_eq!(rig.read(STATUS) & 4 != 0, agreed, "no DRIVER_OK without FEATURES_OK");
    }
}

#[test]
fn queues_are_set_up_between_features_and_readiness() {
    let mut rig = Rig::new();
    rig.write(QUEUE_SIZE, 8);
    rig.write(QUEUE_READY, 1);
    assert_eq!(rig.read(QUEUE_READY), 0);
    rig.set_up();
    rig.write(QUEUE_DESC_LOW, 0x1234_5670);
    rig.write(QUEUE_SIZE, 3);
    rig.print(0, b"still where it was\n");
    rig.write(QUEUE_NOTIFY, 1);
    rig.work();
    assert_eq!(rig.lines.0.len(), 1);
    rig.write(QUEUE_READY, 0);
    assert_eq!(rig.read(QUEUE_READY), 0);
    rig.print(1, b"of a stopped queue\n");
    rig.write(QUEUE_NOTIFY, 1);
    rig.work();
    assert_eq!(rig.lines.0.len(), 1);
}

#[test]
fn accesses_of_other_widths_do_nothing() {
    let mut rig = Rig::new();
    for width in [Width::Byte, Width::Half, Width::Double] {
        assert_eq!(rig.transport.access(0, width, Access::Read), 0);
        rig.transport.access(STATUS, width, Access::Write(1));
    }
    assert_eq!(rig.transport.access(2, Width::Word, Access::Read), 0);
    assert_eq!(rig.read(STATUS), 0);
    assert_eq!(rig.transport.access(0x1fc, Width::Double, Access::Read), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A driver that writes what it likes, where it likes: no panic, the line follows the status,
    /// and what is left to do gets less.
    #[test]
    fn random_accesses(
        accesses in prop::collection::vec(
            (0_u32..0x80, prop_oneof![0_u32..16, any::<u32>(), Just(0x4000_0000)], 0_u64..5), 1..200,
        ),
        rings in prop::collection::vec((0_usize..0x2200, prop_oneof![0_u8..4, any::<u8>()]), 0..300),
        set_up: bool,
    ) {
        let mut rig = Rig::new();
        for (at, byte) in rings {
            // Descriptors, available ring, or used ring.
            let at = if at < 0x2000 { at & 0x7f } else { 0x1000 | at & 0x1fff };
            rig.ram.0.borrow_mut()[at] = byte;
        }
        if set_up {
            rig.set_up();
        }
        for (word, value, kind) in accesses {
            match kind {
                0 => { rig.read(4 * word); }
                1 => rig.write(4 * (word & 0x1f), value),
                2 => rig.write(QUEUE_NOTIFY, value & 1),
                3 => rig.write(4 * word, value),
                sas => {
                    let width = Width::from_sas(sas + u64::from(value));
                    rig.transport.access(word, width, Access::Write(value.into()));
                }
            }
            let mut calls = 0;
            while rig.transport.has_work() {
                rig.work();
                calls += 1;
                // 8 descriptors of 4 GiB at most, of which RAM is a small part.
                prop_assert!(calls < 100);
            }
            prop_assert_eq!(rig.transport.line(), rig.read(INTERRUPT_STATUS) != 0);
        }
    }
}
