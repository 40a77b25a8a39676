//! Console lines: formatted whole, then written at once, so that lines of several vCPUs never mix.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayString;
use spin::mutex::SpinMutex;

/// Longest line in bytes, its newline included: what one host call can carry.
pub const MAX_LINE: usize = 240;

/// Takes one line or less and delivers it.
pub type Sink = fn(&str);

static SINK: SpinMutex<Option<Sink>> = SpinMutex::new(None);
static FORCED: AtomicBool = AtomicBool::new(false);

/// Sends all further lines to `sink`.
pub fn set_sink(sink: Sink) {
    *SINK.lock() = Some(sink);
}

/// Lets the reporter of a fault write although another line may be under way.
pub(crate) fn force_unlock() {
    FORCED.store(true, Ordering::Relaxed);
}

/// Formats one line and delivers it; what exceeds [`MAX_LINE`] is cut.
pub fn write_line(args: fmt::Arguments<'_>) {
    let mut line = ArrayString::<{ MAX_LINE - 1 }>::new();
    // An error says that the line was cut, and a cut line is what we want then.
    let _ = line.write_fmt(args);
    let mut whole = ArrayString::<MAX_LINE>::new();
    let _ = writeln!(whole, "{line}");
    if FORCED.load(Ordering::Relaxed) {
        if let Some(sink) = SINK.try_lock().and_then(|sink| *sink) {
            sink(&whole);
        }
        return;
    }
    let sink = SINK.lock();
    if let Some(sink) = *sink {
        sink(&whole);
    }
}

/// Writes one line to the console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {
        $crate::console::write_line(::core::format_args!($($arg)*))
    };
}
