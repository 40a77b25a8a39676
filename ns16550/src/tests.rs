extern crate std;

use super::*;
use std::collections::VecDeque;
use std::vec::Vec;

/// A UART as its manuals describe it, with a line that sends at once when `drain` is called.
#[derive(Default)]
struct Model {
    designware: bool,
    received: VecDeque<(u8, u8)>,
    /// LSR's error bits of the byte that is next have been read.
    told: bool,
    sending: VecDeque<u8>,
    sent: Vec<u8>,
    ier: u8,
    lcr: u8,
    mcr: u8,
    fifo: bool,
    busy_detected: bool,
    /// A timeout interrupt without data.
    spurious_timeout: bool,
}

impl Model {
    fn drain(&mut self) {
        self.sent.extend(self.sending.drain(..));
    }

    fn cause(&self) -> u8 {
        match () {
            () if self.busy_detected => IIR_BUSY,
            () if self.ier & IER_RECEIVED == 0 => 1,
            () if self.spurious_timeout => IIR_TIMEOUT,
            () if !self.received.is_empty() => 4,
            () => 1,
        }
    }

    /// The interrupt line.
    fn line(&self) -> bool {
        self.mcr & MCR_OUT2 != 0 && self.cause() != 1
    }
}

impl Registers for &mut Model {
    fn read(&mut self, number: u8) -> u8 {
        match number {
            DATA if self.lcr & LCR_DIVISOR == 0 => {
                self.told = false;
                self.spurious_timeout = false;
                self.received.pop_front().map_or(0, |(byte, _)| byte)
            }
            IIR => self.cause() | 0xc0,
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => {
                let errors = self.received.front().filter(|_| !self.told).map_or(0, |next| next.1);
                self.told = true;
                let ready = if self.received.is_empty() { 0 } else { LSR_READY };
                let room = if self.sending.is_empty() { LSR_ROOM | LSR_IDLE } else { 0 };
                errors | ready | room
            }
            USR if self.designware => {
                self.busy_detected = false;
                0
            }
            _ => panic!("read of register {number}"),
        }
    }

    fn write(&mut self, number: u8, value: u8) {
        match number {
            DATA if self.lcr & LCR_DIVISOR == 0 => {
                assert!(self.sending.is_empty(), "no room");
                self.sending.push_back(value);
            }
            IER if self.lcr & LCR_DIVISOR == 0 => self.ier = value,
            FCR => self.fifo = value & 1 != 0,
            // Busy: the write is ignored and raises an interrupt; the line drains meanwhile.
            LCR if self.designware && !self.sending.is_empty() => {
                self.busy_detected = true;
                self.drain();
            }
            LCR => self.lcr = value,
            MCR => self.mcr = value,
            _ => panic!("write of register {number}"),
        }
    }
}

fn layout(designware: bool) -> Layout {
    Layout::new(2, 4, designware).unwrap()
}

#[test]
fn layouts() {
    let legacy = Layout::new(0, 1, false).unwrap();
    assert_eq!((legacy.offset(LSR), legacy.bytes(), legacy.width()), (5, 6, Width::Byte));
    let designware = layout(true);
    assert_eq!((designware.offset(USR), designware.bytes()), (0x7c, 0x80));
    assert_eq!(Layout::new(2, 1, false).unwrap().bytes(), 0x18);
    assert_eq!(Layout::new(1, 2, false).unwrap().width(), Width::Half);
    for (shift, width) in [(0, 4), (1, 4), (0, 2), (2, 3), (2, 8), (5, 1), (u32::MAX, 1)] {
        assert_eq!(Layout::new(shift, width, false), None, "{shift} {width}");
    }
}

#[test]
fn bytes_are_sent_when_there_is_room() {
    let mut model = Model::default();
    let mut uart = Ns16550::new(&mut model, layout(false));
    uart.start();
    assert!(uart.can_write() && !uart.is_busy());
    uart.write(b'a');
    assert!(!uart.can_write() && uart.is_busy());
    uart.registers.drain();
    assert!(uart.can_write());
    uart.write(b'b');
    uart.registers.drain();
    assert_eq!((model.sent.as_slice(), model.fifo), (&b"ab"[..], true));
}

#[test]
fn received_bytes_raise_the_interrupt_until_they_are_read() {
    let mut model = Model::default();
    model.received.extend([(b'x', 0), (b'y', 0)]);
    let mut uart = Ns16550::new(&mut model, layout(false));
    uart.start();
    assert!(!uart.registers.line(), "off until asked for");
    uart.set_receive_interrupt(true);
    assert!(uart.registers.line());
    uart.set_receive_interrupt(false);
    assert!(!uart.registers.line());
    uart.set_receive_interrupt(true);
    uart.acknowledge();
    assert_eq!([uart.read(), uart.read(), uart.read()], [Ok(Some(b'x')), Ok(Some(b'y')), Ok(None)]);
    assert!(!uart.registers.line());
}

#[test]
fn damage_is_told_with_its_byte_although_sending_reads_the_same_register() {
    let mut model = Model::default();
    model.received.extend([(0, 1 << 4), (b'z', 0)]);
    let mut uart = Ns16550::new(&mut model, layout(false));
    uart.start();
    assert!(uart.can_write());
    assert_eq!([uart.read(), uart.read()], [Err(Damaged), Ok(Some(b'z'))]);
}

#[test]
fn the_divisor_is_left_even_when_the_uart_is_busy() {
    let mut model = Model { designware: true, lcr: LCR_DIVISOR | 3, ..Model::default() };
    model.sending.push_back(b'!');
    let mut uart = Ns16550::new(&mut model, layout(true));
    uart.start();
    uart.set_receive_interrupt(true);
    assert_eq!((uart.registers.lcr, uart.registers.cause()), (3, IIR_BUSY));
    uart.acknowledge();
    assert!(!uart.registers.line(), "USR was read");
}

#[test]
fn a_timeout_without_data_does_not_come_for_ever() {
    let mut model = Model { designware: true, spurious_timeout: true, ..Model::default() };
    let mut uart = Ns16550::new(&mut model, layout(true));
    uart.start();
    uart.set_receive_interrupt(true);
    assert!(uart.registers.line());
    uart.acknowledge();
    assert_eq!(uart.read(), Ok(None));
    assert!(!uart.registers.line());
}
