//! Console lines: formatted whole, then written at once, so that lines of several vCPUs never mix.

use core::fmt::{self, Write};

use arrayvec::ArrayString;
use spin::mutex::SpinMutex;

use crate::host;

/// Longest line in bytes, its newline included: what one host call can carry.
pub const MAX_LINE: usize = host::MAX_STRING;
/// How often [`write_last`] tries to get the console for itself.
const PATIENCE: u32 = 1_000_000;

/// Takes one line or less and delivers it.
pub type Sink = fn(&str);

static SINK: SpinMutex<Sink> = SpinMutex::new(host::put_string);

/// Sends all further lines to `sink`.
pub fn set_sink(sink: Sink) {
    *SINK.lock() = sink;
}

/// Formats one line; what exceeds [`MAX_LINE`] is cut.
fn line(args: fmt::Arguments<'_>) -> ArrayString<MAX_LINE> {
    let mut text = ArrayString::<{ MAX_LINE - 1 }>::new();
    // An error says that the line was cut, and a cut line is what we want then.
    let _ = text.write_fmt(args);
    let mut whole = ArrayString::new();
    let _ = writeln!(whole, "{text}");
    whole
}

/// Formats one line and delivers it; what exceeds [`MAX_LINE`] is cut.
pub fn write_line(args: fmt::Arguments<'_>) {
    let line = line(args);
    let sink = SINK.lock();
    sink(&line);
}

/// Writes the line of a vCPU that fails, by a host call, which needs no device. Waits for a line that is
/// being written, but not for ever: this vCPU may have failed while it had the console.
pub(crate) fn write_last(args: fmt::Arguments<'_>) {
    let line = line(args);
    let guard = (0..PATIENCE).find_map(|_| SINK.try_lock());
    host::put_string(&line);
    drop(guard);
}

/// Writes one line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {
        $crate::console::write_line(::core::format_args!($($arg)*))
    };
}
