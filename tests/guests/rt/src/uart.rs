//! PL011 UART. The hypervisor's model needs no baud rate.

use core::ptr::NonNull;

use arm_pl011_uart::{PL011Registers, Uart};
use safe_mmio::UniqueMmioPointer;
use spin::mutex::SpinMutex;

use crate::mmu;

/// IPA of the UART without the alias bit.
pub const UART_IPA: u64 = 0x0900_0000;

static UART: SpinMutex<Option<Uart<'static>>> = SpinMutex::new(None);

/// Takes the UART into use. Called once, with the window mapped.
pub(crate) fn init() {
    let registers: NonNull<PL011Registers> = mmu::device(UART_IPA);
    // SAFETY: the MMU maps the UART there as device memory, and only this static refers to it.
    let registers = unsafe { UniqueMmioPointer::new(registers) };
    *UART.lock() = Some(Uart::new(registers));
}

/// Writes `text`, byte by byte; does nothing before [`init`].
pub fn write(text: &str) {
    let mut uart = UART.lock();
    let Some(uart) = uart.as_mut() else { return };
    for byte in text.bytes() {
        while uart.is_tx_fifo_full() {
            core::hint::spin_loop();
        }
        uart.write_word(byte);
    }
}
