use super::{
    CR, DR, FR, Flags, ICR, IFLS, IMSC, Interrupts, LCR_H, LCR_H_FIFO_ENABLE, MIS, Pl011, RIS,
    RSR_ECR, RSR_OVERRUN,
};
use crate::exit::{Access, Width};
use proptest::prelude::*;
use std::vec::Vec;

fn read(uart: &mut Pl011, offset: u32) -> u32 {
    uart.access(offset, Width::Word, Access::Read).0 as u32
}

fn write(uart: &mut Pl011, offset: u32, value: u32) -> Option<u8> {
    uart.access(offset, Width::Word, Access::Write(u64::from(value))).1
}

fn with_fifo() -> Pl011 {
    let mut uart = Pl011::new();
    write(&mut uart, LCR_H, LCR_H_FIFO_ENABLE);
    uart
}

#[test]
fn sends_at_once() {
    let mut uart = Pl011::new();
    assert_eq!(write(&mut uart, DR, 0x141), Some(b'A'));
    assert_eq!(read(&mut uart, FR) & 1 << 5, 0, "never full");
    assert_ne!(read(&mut uart, FR) & Flags::TRANSMIT_EMPTY.bits(), 0);
    assert!(!uart.line(), "masked after reset");
    write(&mut uart, IMSC, Interrupts::TRANSMIT.bits());
    assert!(uart.line());
    write(&mut uart, ICR, Interrupts::TRANSMIT.bits());
    assert!(!uart.line());
    write(&mut uart, DR, 0);
    assert!(uart.line(), "the next byte is through as well");
}

#[test]
fn has_the_identity_of_a_pl011() {
    let mut uart = Pl011::new();
    let id: Vec<u32> = (0..8).map(|i| read(&mut uart, 0xfe0 + 4 * i)).collect();
    let periph = id[..4].iter().rev().fold(0, |word, byte| word << 8 | byte);
    assert_eq!(periph & 0x000f_ffff, 0x0004_1011);
    assert_eq!(id[4..], [0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn receives_in_order_with_interrupts() {
    let mut uart = with_fifo();
    write(&mut uart, IMSC, (Interrupts::RECEIVE | Interrupts::RECEIVE_TIMEOUT).bits());
    uart.receive(b'a');
    assert_eq!(read(&mut uart, MIS), Interrupts::RECEIVE_TIMEOUT.bits());
    assert!(uart.line());
    (b'b'..=b'h').for_each(|byte| uart.receive(byte));
    assert_ne!(read(&mut uart, RIS) & Interrupts::RECEIVE.bits(), 0, "half full");
    let mut taken = Vec::new();
    while read(&mut uart, FR) & Flags::RECEIVE_EMPTY.bits() == 0 {
        taken.push(read(&mut uart, DR) as u8);
    }
    assert_eq!(taken, b"abcdefgh");
    assert!(!uart.line());
}

#[test]
fn overrun_loses_the_new_byte_and_tells() {
    let mut uart = with_fifo();
    (0..16).for_each(|byte| uart.receive(byte));
    assert!(!uart.can_receive());
    assert_ne!(read(&mut uart, FR) & Flags::RECEIVE_FULL.bits(), 0);
    uart.receive(99);
    assert_eq!(read(&mut uart, RSR_ECR), RSR_OVERRUN);
    assert_ne!(read(&mut uart, RIS) & Interrupts::OVERRUN.bits(), 0);
    write(&mut uart, RSR_ECR, 0);
    assert_eq!(read(&mut uart, RSR_ECR), 0);
    let taken: Vec<u32> = (0..17).map(|_| read(&mut uart, DR)).collect();
    assert_eq!(taken[..16], (0..16).collect::<Vec<_>>());
    assert_eq!(taken[16], 0);
}

#[test]
fn without_fifo_there_is_room_for_one() {
    let mut uart = Pl011::new();
    uart.receive(1);
    assert!(!uart.can_receive());
    assert_ne!(read(&mut uart, RIS) & Interrupts::RECEIVE.bits(), 0);
    write(&mut uart, LCR_H, LCR_H_FIFO_ENABLE);
    assert!(read(&mut uart, FR) & Flags::RECEIVE_EMPTY.bits() != 0, "mode change empties it");
}

#[test]
fn loopback_receives_what_is_sent() {
    let mut uart = with_fifo();
    write(&mut uart, CR, 0x381);
    assert_eq!(write(&mut uart, DR, 0x42), None);
    assert_eq!(read(&mut uart, DR), 0x42);
}

proptest! {
    #[test]
    fn random_accesses_never_panic(
        steps in proptest::collection::vec((0u32..0x1010, 0u64..4, any::<Option<u32>>(), any::<bool>()), 0..200)
    ) {
        let mut uart = Pl011::new();
        for (offset, sas, value, input) in steps {
            let access = value.map_or(Access::Read, |v| Access::Write(u64::from(v)));
            let width = Width::from_sas(sas);
            let (value, sent) = uart.access(offset, width, access);
            prop_assert!(value <= width.mask());
            prop_assert!(sent.is_none() || access != Access::Read);
            if input && uart.can_receive() {
                uart.receive(1);
            }
            prop_assert!(uart.receive.len() <= uart.depth());
            prop_assert!((1..=14).contains(&uart.receive_trigger()));
            let _ = uart.access(IFLS, Width::Word, Access::Read);
        }
    }
}
