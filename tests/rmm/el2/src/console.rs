//! The console that EL3 names: a PL011 which EL3 has set up, shared with EL3 and the host.

use core::fmt::{self, Write};

use spin::mutex::SpinMutex;

/// The 2 MiB that the translation tables map as device memory.
const DEVICE_BLOCK: u64 = 0x0900_0000;
const DEVICE_BLOCK_SIZE: u64 = 2 << 20;
const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const TX_FIFO_FULL: u32 = 1 << 5;

static UART: SpinMutex<Option<Uart>> = SpinMutex::new(None);

/// A PL011 by the address of its registers.
struct Uart(usize);

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while self.read(FLAGS) & TX_FIFO_FULL != 0 {
                core::hint::spin_loop();
            }
            self.write(DATA, u32::from(byte));
        }
        Ok(())
    }
}

impl Uart {
    fn read(&self, offset: usize) -> u32 {
        let register = core::ptr::with_exposed_provenance::<u32>(self.0 + offset);
        // SAFETY: `init` checked that the registers lie in the device mapping.
        unsafe { register.read_volatile() }
    }

    fn write(&self, offset: usize, value: u32) {
        let register = core::ptr::with_exposed_provenance_mut::<u32>(self.0 + offset);
        // SAFETY: as above.
        unsafe { register.write_volatile(value) }
    }
}

/// Takes the console at `base` into use if it is where the tables map devices.
pub(crate) fn init(base: u64) {
    let offset = base.wrapping_sub(DEVICE_BLOCK);
    if offset < DEVICE_BLOCK_SIZE && base.is_multiple_of(4096) {
        *UART.lock() = Some(Uart(base as usize));
    }
}

/// Writes one line.
pub(crate) fn write_line(args: fmt::Arguments<'_>) {
    if let Some(uart) = UART.lock().as_mut() {
        let _ = writeln!(uart, "RMM: {args}\r");
    }
}

/// Writes one line although another CPU, or this one, may be in the middle of one.
pub(crate) fn write_last_line(args: fmt::Arguments<'_>) {
    const PATIENCE: u32 = 1_000_000;
    for _ in 0..PATIENCE {
        if let Some(mut uart) = UART.try_lock() {
            if let Some(uart) = uart.as_mut() {
                let _ = writeln!(uart, "RMM: {args}\r");
            }
            return;
        }
        core::hint::spin_loop();
    }
}
