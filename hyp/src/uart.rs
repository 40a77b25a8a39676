//! The kinds of UART that the console can be on.

use arm_pl011_uart::{DataBits, Interrupts, LineConfig, PL011Registers, Parity, StopBits};
use core::ptr::NonNull;
use mm::PhysAddr;
use ns16550::{Layout, Ns16550, Registers, Width};
use safe_mmio::UniqueMmioPointer;
use safe_mmio::fields::ReadWrite;
use vmm_services::machine::UartModel;

/// Baud rate where the UART's clock is known and the UART is ours to configure.
const BAUD_RATE: u32 = 115_200;
/// Interrupts of a PL011 that tell that it has received something.
const PL011_RECEIVED: Interrupts = Interrupts::RXI.union(Interrupts::RTI);

/// Where a UART is, and how it is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First of its registers.
    pub registers: PhysAddr,
    /// What it is.
    pub model: UartModel,
    /// Input clock of a PL011 in Hz, if the hypervisor is to set the line to 115200 8N1.
    pub clock_hz: Option<u32>,
}

/// A byte was damaged on the line, or others before it were lost.
pub struct Damaged;

/// A UART.
pub enum Uart {
    /// A PL011, or what the Server Base System Architecture makes of it.
    Pl011(arm_pl011_uart::Uart<'static>),
    /// A 16550.
    Ns16550(Ns16550<Mmio>),
}

impl Uart {
    /// The UART at `place`, as it is; `None` if that is address zero.
    ///
    /// # Safety
    ///
    /// Its registers must be there, mapped as device memory at EL2 for good, and no other driver of
    /// this image may use them.
    pub unsafe fn new(place: Place) -> Option<Self> {
        let address = place.registers.get() as usize;
        match place.model {
            UartModel::Pl011 | UartModel::Sbsa => {
                let registers = NonNull::new(address as *mut PL011Registers)?;
                // SAFETY: the caller vouches for the registers and their exclusive use.
                let registers = unsafe { UniqueMmioPointer::new(registers) };
                Some(Self::Pl011(arm_pl011_uart::Uart::new(registers)))
            }
            UartModel::Ns16550(layout) => {
                // SAFETY: as above.
                let registers = unsafe { Mmio::new(address, layout) }?;
                Some(Self::Ns16550(Ns16550::new(registers, layout)))
            }
        }
    }

    /// Takes it over from firmware, whose last bytes are sent first.
    pub fn start(&mut self, place: Place) {
        while self.is_busy() {
            core::hint::spin_loop();
        }
        match (self, place.model, place.clock_hz) {
            (Self::Pl011(uart), UartModel::Pl011, Some(clock)) => {
                let line = LineConfig {
                    data_bits: DataBits::Bits8,
                    parity: Parity::None,
                    stop_bits: StopBits::One,
                };
                // A clock too slow for the baud rate leaves the settings of firmware in place.
                let _ = uart.enable(line, BAUD_RATE, clock);
            }
            (Self::Pl011(_), ..) => {}
            (Self::Ns16550(uart), ..) => uart.start(),
        }
    }

    /// Sends bytes, each as soon as there is room for it.
    pub fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Pl011(uart) => bytes.iter().for_each(|byte| {
                while uart.is_tx_fifo_full() {
                    core::hint::spin_loop();
                }
                uart.write_word(*byte);
            }),
            Self::Ns16550(uart) => bytes.iter().for_each(|byte| {
                while !uart.can_write() {
                    core::hint::spin_loop();
                }
                uart.write(*byte);
            }),
        }
    }

    /// Whether there is something that is not sent yet.
    pub fn is_busy(&mut self) -> bool {
        match self {
            Self::Pl011(uart) => uart.is_busy(),
            Self::Ns16550(uart) => uart.is_busy(),
        }
    }

    /// The next byte that was received.
    ///
    /// # Errors
    ///
    /// [`Damaged`] instead of a byte. There may be others behind it.
    pub fn read(&mut self) -> Result<Option<u8>, Damaged> {
        match self {
            Self::Pl011(uart) => uart.read_word().map_err(|_| Damaged),
            Self::Ns16550(uart) => uart.read().map_err(|_| Damaged),
        }
    }

    /// Ends what reading the received bytes does not end of an interrupt.
    pub fn acknowledge(&mut self) {
        match self {
            Self::Pl011(_) => {}
            Self::Ns16550(uart) => uart.acknowledge(),
        }
    }

    /// Enables or disables the interrupt for received bytes.
    pub fn set_receive_interrupt(&mut self, enabled: bool) {
        match self {
            Self::Pl011(uart) => {
                let wanted = if enabled { PL011_RECEIVED } else { Interrupts::empty() };
                uart.set_interrupt_masks(wanted);
            }
            Self::Ns16550(uart) => uart.set_receive_interrupt(enabled),
        }
    }
}

/// Registers of a 16550.
pub struct Mmio {
    layout: Layout,
    cells: Cells,
}

/// Registers by the width in which they are accessed; those between two are not touched.
enum Cells {
    Bytes(UniqueMmioPointer<'static, [ReadWrite<u8>]>),
    Halves(UniqueMmioPointer<'static, [ReadWrite<u16>]>),
    Words(UniqueMmioPointer<'static, [ReadWrite<u32>]>),
}

/// The memory-mapped cells of type `T` in the `bytes` bytes from `address` on; `None` for address zero.
///
/// # Safety
///
/// As [`UniqueMmioPointer::new`] asks.
unsafe fn cells<T>(address: usize, bytes: u64) -> Option<UniqueMmioPointer<'static, [T]>> {
    let first = NonNull::new(address as *mut T)?;
    let cells = NonNull::slice_from_raw_parts(first, bytes as usize / size_of::<T>());
    // SAFETY: the caller vouches for it.
    Some(unsafe { UniqueMmioPointer::new(cells) })
}

impl Mmio {
    /// # Safety
    ///
    /// As for [`Uart::new`].
    unsafe fn new(address: usize, layout: Layout) -> Option<Self> {
        let cells = match layout.width() {
            // SAFETY: the caller vouches for the registers, which are as long as the layout says.
            Width::Byte => unsafe { cells(address, layout.bytes()) }.map(Cells::Bytes),
            // SAFETY: as above.
            Width::Half => unsafe { cells(address, layout.bytes()) }.map(Cells::Halves),
            // SAFETY: as above.
            Width::Word => unsafe { cells(address, layout.bytes()) }.map(Cells::Words),
        };
        Some(Self { layout, cells: cells? })
    }
}

impl Registers for Mmio {
    fn read(&mut self, number: u8) -> u8 {
        let offset = self.layout.offset(number);
        // The layout covers all registers that the driver uses.
        match &mut self.cells {
            Cells::Bytes(cells) => cells.get(offset).map_or(0, |mut cell| cell.read()),
            Cells::Halves(cells) => cells.get(offset / 2).map_or(0, |mut cell| cell.read() as u8),
            Cells::Words(cells) => cells.get(offset / 4).map_or(0, |mut cell| cell.read() as u8),
        }
    }

    fn write(&mut self, number: u8, value: u8) {
        let offset = self.layout.offset(number);
        match &mut self.cells {
            Cells::Bytes(cells) => cells.get(offset).map(|mut cell| cell.write(value)),
            Cells::Halves(cells) => cells.get(offset / 2).map(|mut cell| cell.write(value.into())),
            Cells::Words(cells) => cells.get(offset / 4).map(|mut cell| cell.write(value.into())),
        };
    }
}
