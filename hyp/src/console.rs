//! The machine's serial console and the back end of the `log` crate.
//!
//! Everything that the hypervisor says goes through here a line at a time, so that lines of
//! different cores do not mix.

use crate::arch::percpu::core_index;
use crate::panic;
use crate::sync::Lock;
use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use mm::PhysAddr;
use safe_mmio::UniqueMmioPointer;

/// Baud rate where the UART's clock is known and the UART is ours to configure.
const BAUD_RATE: u32 = 115_200;
/// Attempts to take the console lock before a core that reports a fatal error goes without.
const FATAL_LOCK_ATTEMPTS: u32 = 1 << 20;

static CONSOLE: Lock<Option<Console>> = Lock::new(None);
/// Address of the UART once [`init`] has run, for reports that cannot wait for the lock.
static UART_BASE: AtomicUsize = AtomicUsize::new(0);

struct Console {
    uart: Uart<'static>,
}

impl Console {
    fn write_byte(&mut self, byte: u8) {
        while self.uart.is_tx_fifo_full() {
            core::hint::spin_loop();
        }
        self.uart.write_word(byte);
    }
}

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.write_byte(b'\r');
            }
            self.write_byte(byte);
        }
        Ok(())
    }
}

/// Starts the console on the PL011 at `base` and makes it the target of `log`.
///
/// `clock_hz` is the UART's input clock; with `None` the line settings stay as firmware left them.
///
/// # Safety
///
/// `base` must be the registers of a PL011 that is mapped as device memory at EL2 for good, and
/// that no other driver of this image uses.
pub unsafe fn init(base: PhysAddr, clock_hz: Option<u32>) {
    let Some(registers) = NonNull::new(base.get() as *mut PL011Registers) else { return };
    // SAFETY: the caller vouches for the registers and their exclusive use.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    if let Some(clock) = clock_hz {
        while uart.is_busy() {
            core::hint::spin_loop();
        }
        let line = LineConfig {
            data_bits: DataBits::Bits8,
            parity: Parity::None,
            stop_bits: StopBits::One,
        };
        // A clock too slow for the baud rate leaves the settings of firmware in place.
        let _ = uart.enable(line, BAUD_RATE, clock);
    }
    *CONSOLE.lock() = Some(Console { uart });
    UART_BASE.store(registers.as_ptr().addr(), Ordering::Release);
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Sets the most verbose level that is logged from a command line with a word `log=LEVEL`, where
/// `LEVEL` is `off`, `error`, `warn`, `info`, `debug` or `trace`.
pub fn set_level(command_line: &str) {
    let level = command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix("log="));
    match level.map(str::parse) {
        Some(Ok(level)) => log::set_max_level(level),
        Some(Err(_)) => {
            log::warn!("unknown log level on the command line: {}", level.unwrap_or(""))
        }
        None => {}
    }
}

/// Takes one byte that the console has received, if there is one.
pub fn read_byte() -> Option<u8> {
    CONSOLE.lock().as_mut()?.uart.read_word().ok().flatten()
}

/// Writes formatted text in one piece; text before [`init`] is dropped.
pub fn print(args: fmt::Arguments<'_>) {
    if panic::this_core_is_failing() {
        print_fatal(args);
        return;
    }
    if let Some(console) = CONSOLE.lock().as_mut() {
        // Writing to the UART does not fail.
        let _ = console.write_fmt(args);
    }
}

/// Writes although another core, or this one, may hold the lock and never release it.
fn print_fatal(args: fmt::Arguments<'_>) {
    for _ in 0..FATAL_LOCK_ATTEMPTS {
        if let Some(mut guard) = CONSOLE.try_lock() {
            if let Some(console) = guard.as_mut() {
                let _ = console.write_fmt(args);
            }
            return;
        }
        core::hint::spin_loop();
    }
    let Some(registers) = NonNull::new(UART_BASE.load(Ordering::Acquire) as *mut PL011Registers)
    else {
        return;
    };
    // SAFETY: `init` was given these registers. Another core may use them at the same time; the
    // only effect of the flag and data register accesses made here is that characters mix.
    let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let _ = Console { uart }.write_fmt(args);
}

/// Waits until the UART has sent everything.
pub fn flush() {
    if let Some(guard) = CONSOLE.try_lock()
        && let Some(console) = guard.as_ref()
    {
        while console.uart.is_busy() {
            core::hint::spin_loop();
        }
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            println!("[{} core {}] {}", record.level(), core_index(), record.args());
        }
    }

    fn flush(&self) {
        flush();
    }
}
