//! The machine's serial console and the back end of the `log` crate.
//!
//! Everything that the hypervisor says goes through here a line at a time, so that lines of
//! different cores do not mix. Below them is, if there is one, the line that the operator types.

use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use crate::cores;
use crate::irq::{self, IrqError};
use crate::panic;
use crate::sync::Lock;
use crate::uart::{Place, Uart};
use arrayvec::{ArrayString, ArrayVec};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Once;

/// Attempts to take the console lock before a core that reports a fatal error goes without.
const FATAL_LOCK_ATTEMPTS: u32 = 1 << 20;

/// Most received bytes that wait to be looked at; the rest stays in the UART.
const INPUT_MAX: usize = 128;
/// Longest line that is shown below the output.
const BOTTOM_MAX: usize = 96;
/// Sets the cursor to the start of its line and erases the line.
const ERASE_LINE: &str = "\r\x1b[K";
const BELL: u8 = 0x07;

static CONSOLE: Lock<Option<Console>> = Lock::new(None);
/// Where the UART is once [`init`] has run, for reports that cannot wait for the lock.
static PLACE: Once<Place> = Once::new();
/// INTID of the UART once [`enable_input`] has run, else 0.
static INTERRUPT: AtomicU32 = AtomicU32::new(0);
/// Whether received bytes wait in [`Console::input`].
static HAS_INPUT: AtomicBool = AtomicBool::new(false);

struct Console {
    uart: Uart,
    input: ArrayVec<u8, INPUT_MAX>,
    /// The cursor is at the start of a line.
    at_start: bool,
    /// The last that was written is a part of a line of a VM that has the terminal to itself.
    raw_tail: bool,
    /// The last raw byte was a carriage return.
    raw_return: bool,
    /// What the operator types, to be shown below everything else; empty for nothing.
    bottom: ArrayString<BOTTOM_MAX>,
    /// It is on the screen.
    bottom_shown: bool,
}

impl Console {
    const fn new(uart: Uart) -> Self {
        Self {
            uart,
            input: ArrayVec::new_const(),
            at_start: true,
            raw_tail: false,
            raw_return: false,
            bottom: ArrayString::new_const(),
            bottom_shown: false,
        }
    }

    /// Writes text that does not go into a line that somebody else has begun.
    fn write_apart(&mut self, args: fmt::Arguments<'_>) {
        // Writing to the UART does not fail.
        if self.bottom_shown {
            let _ = self.write_str(ERASE_LINE);
            self.bottom_shown = false;
            self.at_start = true;
        } else if self.raw_tail {
            let _ = self.write_str("\n");
        }
        self.raw_tail = false;
        let _ = self.write_fmt(args);
        self.show_bottom();
    }

    fn show_bottom(&mut self) {
        if self.at_start && !self.bottom.is_empty() {
            let bottom = self.bottom;
            let _ = self.write_str(&bottom);
            self.bottom_shown = true;
        }
    }

    /// Takes what the UART has received, as much as there is room for.
    fn receive(&mut self) {
        while !self.input.is_full() {
            match self.uart.read() {
                Ok(Some(byte)) => self.input.push(byte),
                Ok(None) => break,
                // The byte is damaged, or it is the one after others that are lost: go on.
                Err(_) => {}
            }
        }
        // Without room the interrupt, which would come again at once, waits until there is some.
        self.uart.set_receive_interrupt(!self.input.is_full());
        HAS_INPUT.store(!self.input.is_empty(), Ordering::Release);
    }
}

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for piece in s.split_inclusive('\n') {
            match piece.strip_suffix('\n') {
                None => self.uart.write(piece.as_bytes()),
                Some(line) => {
                    self.uart.write(line.as_bytes());
                    self.uart.write(b"\r\n");
                }
            }
            self.at_start = piece.ends_with('\n');
        }
        Ok(())
    }
}

/// Starts the console on the UART at `place` and makes it the target of `log`.
///
/// # Safety
///
/// As for [`Uart::new`].
pub unsafe fn init(place: Place) {
    // SAFETY: the caller vouches for the registers and their exclusive use.
    let Some(mut uart) = (unsafe { Uart::new(place) }) else { return };
    uart.start(place);
    *CONSOLE.lock() = Some(Console::new(uart));
    PLACE.call_once(|| place);
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

/// Makes this core take what the console receives, by the UART's interrupt `intid`. Another core
/// that calls this takes over.
///
/// # Errors
///
/// If the GIC does not have this interrupt.
pub fn enable_input(intid: u32) -> Result<(), IrqError> {
    irq::enable_spi(intid, true)?;
    INTERRUPT.store(intid, Ordering::Release);
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.receive();
    }
    Ok(())
}

/// Lets another core take what the console receives, since this one stops. Returns the INTID of the
/// interrupt that is routed to another core now.
pub fn hand_over_input() -> Option<u32> {
    let intid = INTERRUPT.load(Ordering::Acquire);
    if intid == 0 {
        return None;
    }
    let other = (0..MAX_CORES).find(|&core| cores::is_online(core))?;
    // The GIC has this interrupt: it is enabled.
    irq::route_spi(intid, other).ok().map(|()| intid)
}

/// Takes what the UART has received if `intid` is its interrupt; `true` if so.
pub fn take_interrupt(intid: u32) -> bool {
    if intid != INTERRUPT.load(Ordering::Acquire) {
        return false;
    }
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.uart.acknowledge();
        console.receive();
    }
    true
}

/// Bytes that the console has received since the last call.
#[must_use]
pub fn take_input() -> ArrayVec<u8, INPUT_MAX> {
    if !HAS_INPUT.load(Ordering::Acquire) {
        return ArrayVec::new();
    }
    let mut guard = CONSOLE.lock();
    let Some(console) = guard.as_mut() else { return ArrayVec::new() };
    let input = core::mem::take(&mut console.input);
    // There may be more in the UART.
    console.receive();
    input
}

/// Shows `text` below all output; nothing if it is empty.
pub fn set_bottom_line(text: fmt::Arguments<'_>) {
    let mut bottom = ArrayString::new();
    // Cut to what fits.
    let _ = fmt::write(&mut bottom, text);
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.bottom = bottom;
        console.write_apart(format_args!(""));
    }
}

/// Ends the line that is shown below all output: it becomes a part of the output.
pub fn end_bottom_line() {
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.bottom.clear();
        if core::mem::take(&mut console.bottom_shown) {
            let _ = console.write_str("\n");
        }
    }
}

/// Rings the terminal's bell.
pub fn ring_bell() {
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.uart.write(&[BELL]);
    }
}

/// Writes a byte of a VM that has the terminal to itself.
pub fn write_raw(byte: u8) {
    if let Some(console) = CONSOLE.lock().as_mut() {
        // Guests that print no carriage return mean one.
        if byte == b'\n' && !console.raw_return {
            console.uart.write(b"\r");
        }
        console.uart.write(&[byte]);
        console.raw_return = byte == b'\r';
        console.at_start = byte == b'\n';
        console.raw_tail = byte != b'\n';
    }
}

/// Writes formatted text in one piece; text before [`init`] is dropped.
pub fn print(args: fmt::Arguments<'_>) {
    if panic::this_core_is_failing() {
        print_fatal(args);
        return;
    }
    if let Some(console) = CONSOLE.lock().as_mut() {
        console.write_apart(args);
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
    let Some(place) = PLACE.get() else { return };
    // SAFETY: `init` was given these registers. Another core may use them at the same time; the only
    // effect of the accesses to status and data registers made here is that characters mix.
    if let Some(uart) = unsafe { Uart::new(*place) } {
        let _ = Console::new(uart).write_fmt(args);
    }
}

/// Waits until the UART has sent everything.
pub fn flush() {
    if let Some(mut guard) = CONSOLE.try_lock()
        && let Some(console) = guard.as_mut()
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
