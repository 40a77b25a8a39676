//! PL011 UART (Arm DDI 0183), as far as drivers can tell it from a real one.
//!
//! Sending takes no time: the transmit FIFO is always empty, and what a guest writes is out. The
//! receive FIFO is real. DMA and modem lines are absent: DMACR reads back, CTS is asserted.

use crate::exit::{Access, Width};
use arrayvec::ArrayVec;

/// Depth of the receive FIFO with FIFOs enabled; without, it is one.
const FIFO_DEPTH: usize = 16;

const DR: u32 = 0x000;
const RSR_ECR: u32 = 0x004;
const FR: u32 = 0x018;
const ILPR: u32 = 0x020;
const IBRD: u32 = 0x024;
const FBRD: u32 = 0x028;
const LCR_H: u32 = 0x02c;
const CR: u32 = 0x030;
const IFLS: u32 = 0x034;
const IMSC: u32 = 0x038;
const RIS: u32 = 0x03c;
const MIS: u32 = 0x040;
const ICR: u32 = 0x044;
const DMACR: u32 = 0x048;
const PERIPH_ID0: u32 = 0xfe0;

/// PeriphID0 to 3 and PCellID0 to 3 of a PL011 r1p5.
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

bitflags::bitflags! {
    /// UARTFR.
    struct Flags: u32 {
        const CTS = 1 << 0;
        const RECEIVE_EMPTY = 1 << 4;
        const RECEIVE_FULL = 1 << 6;
        const TRANSMIT_EMPTY = 1 << 7;
    }

    /// UARTCR, the bits that matter here.
    #[derive(Clone, Copy)]
    struct Control: u32 {
        const UART_ENABLE = 1 << 0;
        const LOOPBACK = 1 << 7;
        const TRANSMIT_ENABLE = 1 << 8;
        const RECEIVE_ENABLE = 1 << 9;
    }

    /// UARTRIS, UARTMIS, UARTIMSC and UARTICR.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Interrupts: u32 {
        const RECEIVE = 1 << 4;
        const TRANSMIT = 1 << 5;
        const RECEIVE_TIMEOUT = 1 << 6;
        const OVERRUN = 1 << 10;
    }
}

/// Bits of UARTLCR_H that enable the FIFOs.
const LCR_H_FIFO_ENABLE: u32 = 1 << 4;
/// Overrun error, in UARTRSR.
const RSR_OVERRUN: u32 = 1 << 3;
const CR_RESET: u32 = Control::TRANSMIT_ENABLE.bits() | Control::RECEIVE_ENABLE.bits();
const IFLS_RESET: u32 = 0x12;
/// All interrupt bits of the register.
const INTERRUPT_MASK: u32 = 0x7ff;

/// A PL011.
#[derive(Clone, Debug)]
pub(crate) struct Pl011 {
    receive: ArrayVec<u8, FIFO_DEPTH>,
    receive_status: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    dmacr: u32,
    /// Raw interrupts that stay until cleared.
    raised: u32,
}

impl Pl011 {
    /// A UART after reset.
    pub(crate) const fn new() -> Self {
        Self {
            receive: ArrayVec::new_const(),
            receive_status: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
            dmacr: 0,
            raised: 0,
        }
    }

    fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FIFO_ENABLE != 0 { FIFO_DEPTH } else { 1 }
    }

    /// Fill of the receive FIFO at which its interrupt rises, from UARTIFLS.RXIFLSEL.
    fn receive_trigger(&self) -> usize {
        match (self.depth(), self.ifls >> 3 & 7) {
            (1, _) => 1,
            (depth, 0) => depth / 8,
            (depth, 1) => depth / 4,
            (depth, 2) => depth / 2,
            (depth, 3) => depth * 3 / 4,
            (depth, _) => depth * 7 / 8,
        }
    }

    fn raw_interrupts(&self) -> u32 {
        self.raised & INTERRUPT_MASK
    }

    /// Whether the interrupt line is high.
    pub(crate) fn line(&self) -> bool {
        self.raw_interrupts() & self.imsc != 0
    }

    /// Accesses the register at `offset`; returns the value of a read and a byte that was sent.
    ///
    /// Registers are 32 bits wide at most; accesses that are wider, not aligned, or to what does not
    /// exist read as zero and are ignored.
    pub(crate) fn access(
        &mut self,
        offset: u32,
        width: Width,
        access: Access,
    ) -> (u64, Option<u8>) {
        if width == Width::Double || !u64::from(offset).is_multiple_of(width.bytes()) {
            return (0, None);
        }
        // Narrow accesses reach the low part of a register only.
        match access {
            Access::Read => (u64::from(self.read(offset)) & width.mask(), None),
            Access::Write(value) => (0, self.write(offset, value as u32)),
        }
    }

    fn read(&mut self, offset: u32) -> u32 {
        match offset {
            DR => self.read_data(),
            RSR_ECR => self.receive_status,
            FR => self.flags().bits(),
            ILPR => self.ilpr,
            IBRD => self.ibrd,
            FBRD => self.fbrd,
            LCR_H => self.lcr_h,
            CR => self.cr,
            IFLS => self.ifls,
            IMSC => self.imsc,
            RIS => self.raw_interrupts(),
            MIS => self.raw_interrupts() & self.imsc,
            DMACR => self.dmacr,
            _ => {
                let index = offset.checked_sub(PERIPH_ID0).map(|distance| distance as usize / 4);
                index.and_then(|i| IDENTIFICATION.get(i)).copied().map_or(0, u32::from)
            }
        }
    }

    fn flags(&self) -> Flags {
        let mut flags = Flags::CTS | Flags::TRANSMIT_EMPTY;
        flags.set(Flags::RECEIVE_EMPTY, self.receive.is_empty());
        flags.set(Flags::RECEIVE_FULL, self.receive.len() >= self.depth());
        flags
    }

    fn read_data(&mut self) -> u32 {
        let byte = if self.receive.is_empty() { 0 } else { self.receive.remove(0) };
        if self.receive.len() < self.receive_trigger() {
            self.raised &= !Interrupts::RECEIVE.bits();
        }
        if self.receive.is_empty() {
            self.raised &= !Interrupts::RECEIVE_TIMEOUT.bits();
        }
        u32::from(byte)
    }

    fn write(&mut self, offset: u32, value: u32) -> Option<u8> {
        match offset {
            DR => return self.write_data(value as u8),
            RSR_ECR => self.receive_status = 0,
            ILPR => self.ilpr = value & 0xff,
            IBRD => self.ibrd = value & 0xffff,
            FBRD => self.fbrd = value & 0x3f,
            LCR_H => self.write_line_control(value & 0xff),
            CR => self.cr = value & 0xff87,
            IFLS => self.ifls = value & 0x3f,
            IMSC => self.imsc = value & INTERRUPT_MASK,
            ICR => self.raised &= !value,
            DMACR => self.dmacr = value & 7,
            _ => {}
        }
        None
    }

    fn write_line_control(&mut self, value: u32) {
        // Turning the FIFOs on or off empties them.
        if (self.lcr_h ^ value) & LCR_H_FIFO_ENABLE != 0 {
            self.receive.clear();
            self.raised &= !(Interrupts::RECEIVE.bits() | Interrupts::RECEIVE_TIMEOUT.bits());
        }
        self.lcr_h = value;
    }

    fn write_data(&mut self, byte: u8) -> Option<u8> {
        // The FIFO drains at once, below any trigger level.
        self.raised |= Interrupts::TRANSMIT.bits();
        let control = Control::from_bits_truncate(self.cr);
        if control.contains(Control::LOOPBACK) {
            self.receive(byte);
            return None;
        }
        // Guests print before they have set the UART up, as boot loaders leave it ready: the
        // enable bits are not asked.
        Some(byte)
    }

    /// Whether a byte would find room.
    pub(crate) fn can_receive(&self) -> bool {
        self.receive.len() < self.depth()
    }

    /// A byte comes in. Without room it is lost and the overrun is noted.
    pub(crate) fn receive(&mut self, byte: u8) {
        if !self.can_receive() {
            self.receive_status |= RSR_OVERRUN;
            self.raised |= Interrupts::OVERRUN.bits();
            return;
        }
        self.receive.push(byte);
        if self.receive.len() >= self.receive_trigger() {
            self.raised |= Interrupts::RECEIVE.bits();
        } else {
            // Input ends here for all we know, and then the timeout is what tells the driver.
            self.raised |= Interrupts::RECEIVE_TIMEOUT.bits();
        }
    }
}

#[cfg(test)]
mod tests;
