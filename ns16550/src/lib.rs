//! Driver of UARTs of the 16550 type that firmware has set up: the line's settings are left alone.
//!
//! Registers are those of the 16550A; of Synopsys' DW_apb_uart one more is used. The accesses themselves are the
//! part of whoever implements [`Registers`], so the logic is tested against a model of the device.
#![no_std]
#![forbid(unsafe_code)]

/// Receive buffer (read) and transmit holding register (write).
const DATA: u8 = 0;
/// Interrupt enable register.
const IER: u8 = 1;
/// Interrupt identification register (read).
const IIR: u8 = 2;
/// FIFO control register (write).
const FCR: u8 = 2;
/// Line control register.
const LCR: u8 = 3;
/// Modem control register.
const MCR: u8 = 4;
/// Line status register.
const LSR: u8 = 5;
/// DW_apb_uart: UART status register.
const USR: u8 = 0x1f;

/// IER: data received, or received and left in the FIFO for a while.
const IER_RECEIVED: u8 = 1 << 0;
/// FCR: FIFOs on, their trigger at one byte, and neither of them reset.
const FCR_ENABLE: u8 = 1 << 0;
/// LCR: registers 0 and 1 are the divisor of the baud rate.
const LCR_DIVISOR: u8 = 1 << 7;
/// MCR: the output that gates the interrupt line where the UART has such a gate.
const MCR_OUT2: u8 = 1 << 3;
/// LSR: a byte was received.
const LSR_READY: u8 = 1 << 0;
/// LSR: parity error, framing error, break.
const LSR_DAMAGED: u8 = 0b111 << 2;
/// LSR: there is room for a byte to send.
const LSR_ROOM: u8 = 1 << 5;
/// LSR: everything is sent.
const LSR_IDLE: u8 = 1 << 6;
/// IIR: the bits that say which interrupt it is.
const IIR_CAUSE: u8 = 0xf;
/// IIR: bytes wait in the FIFO below its trigger.
const IIR_TIMEOUT: u8 = 0xc;
/// IIR of DW_apb_uart: LCR was written while the UART was busy.
const IIR_BUSY: u8 = 0x7;

/// Tries to leave the divisor's registers; a DW_apb_uart ignores them while it is busy.
const DIVISOR_TRIES: u32 = 1000;

/// Where the registers lie and how they are accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    shift: u8,
    width: Width,
    designware: bool,
}

/// Width of an access to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
}

impl Layout {
    /// Register `n` at `n << shift` bytes, accessed by `width` bytes (1, 2 or 4) at once: `reg-shift` and
    /// `reg-io-width` of device trees. `None` if registers would overlap, or that is beyond what
    /// there is.
    #[must_use]
    pub const fn new(shift: u32, width: u32, designware: bool) -> Option<Self> {
        let (width, bits) = match width {
            1 => (Width::Byte, 0),
            2 => (Width::Half, 1),
            4 => (Width::Word, 2),
            _ => return None,
        };
        if shift < bits || shift > 4 {
            return None;
        }
        Some(Self { shift: shift as u8, width, designware })
    }

    /// Byte offset of register `number`.
    #[must_use]
    pub const fn offset(&self, number: u8) -> usize {
        (number as usize) << self.shift
    }

    /// Width of an access.
    #[must_use]
    pub const fn width(&self) -> Width {
        self.width
    }

    /// Bytes from the first register that is used to behind the last one.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        let registers = if self.designware { USR + 1 } else { LSR + 1 };
        (registers as u64) << self.shift
    }
}

/// Access to the registers of a UART, by number. The numbers are within [`Layout::bytes`].
pub trait Registers {
    /// Reads a register.
    fn read(&mut self, number: u8) -> u8;
    /// Writes a register.
    fn write(&mut self, number: u8, value: u8);
}

/// A byte was damaged on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// A UART.
#[derive(Debug)]
pub struct Ns16550<R> {
    registers: R,
    designware: bool,
    /// Bits of [`LSR_DAMAGED`] that a read of LSR has cleared before the byte they belong to was read.
    damaged: u8,
}

impl<R: Registers> Ns16550<R> {
    /// The UART behind `registers`, which `layout` describes, as it is.
    pub const fn new(registers: R, layout: Layout) -> Self {
        Self { registers, designware: layout.designware, damaged: 0 }
    }

    /// Takes it over from firmware: no interrupts, FIFOs on, the line as it is.
    pub fn start(&mut self) {
        for _ in 0..DIVISOR_TRIES {
            let line = self.registers.read(LCR);
            if line & LCR_DIVISOR == 0 {
                break;
            }
            self.registers.write(LCR, line & !LCR_DIVISOR);
        }
        self.registers.write(IER, 0);
        self.registers.write(FCR, FCR_ENABLE);
    }

    fn line_status(&mut self) -> u8 {
        let status = self.registers.read(LSR);
        self.damaged |= status & LSR_DAMAGED;
        status
    }

    /// Whether [`write`](Self::write) may be called.
    pub fn can_write(&mut self) -> bool {
        self.line_status() & LSR_ROOM != 0
    }

    /// Sends a byte.
    pub fn write(&mut self, byte: u8) {
        self.registers.write(DATA, byte);
    }

    /// Whether there is something that is not sent yet.
    pub fn is_busy(&mut self) -> bool {
        self.line_status() & LSR_IDLE == 0
    }

    /// The next byte that was received.
    ///
    /// # Errors
    ///
    /// [`Damaged`] for a byte with a wrong parity or frame, or a break. The one behind it is next.
    pub fn read(&mut self) -> Result<Option<u8>, Damaged> {
        if self.line_status() & LSR_READY == 0 {
            return Ok(None);
        }
        let byte = self.registers.read(DATA);
        match core::mem::take(&mut self.damaged) {
            0 => Ok(Some(byte)),
            _ => Err(Damaged),
        }
    }

    /// Enables or disables the interrupt for received bytes, which lasts until they are read.
    pub fn set_receive_interrupt(&mut self, enabled: bool) {
        if enabled {
            let modem = self.registers.read(MCR);
            self.registers.write(MCR, modem | MCR_OUT2);
        }
        self.registers.write(IER, if enabled { IER_RECEIVED } else { 0 });
    }

    /// Ends interrupts that reading the bytes does not end. To be called when there is an interrupt,
    /// before the bytes are read.
    pub fn acknowledge(&mut self) {
        if !self.designware {
            return;
        }
        match self.registers.read(IIR) & IIR_CAUSE {
            // It is not ours to repeat the write to LCR: we make none after the start.
            IIR_BUSY => drop(self.registers.read(USR)),
            // Can be raised with an empty FIFO, and then only a read of the buffer ends it.
            IIR_TIMEOUT if self.line_status() & LSR_READY == 0 => drop(self.registers.read(DATA)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
