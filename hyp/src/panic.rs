//! The end of the line: panics, and the stop of a core that cannot go on.

use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use crate::arch::{cpu, psci};
use crate::{console, println};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

/// Bit per core that reports, or has reported, a fatal error.
static FAILING: AtomicU32 = AtomicU32::new(0);

const _: () = assert!(MAX_CORES <= u32::BITS as usize);

/// Whether this core is reporting a fatal error, so that it must not wait for locks.
#[must_use]
pub fn this_core_is_failing() -> bool {
    FAILING.load(Ordering::Relaxed) & 1 << core_index() != 0
}

/// Cores that have stopped on a fatal error: one bit per core index.
#[must_use]
pub fn failed_cores() -> u32 {
    FAILING.load(Ordering::Relaxed)
}

/// Marks this core as failing. A core that fails again while it reports stops at once.
pub fn begin_fatal_report() {
    let bit = 1 << core_index();
    if FAILING.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        cpu::park();
    }
}

/// Stops this core after a fatal report. The other cores go on if there are any that run guests;
/// the machine powers off when there are none.
pub fn stop(reason: &str) -> ! {
    println!("scenario: failed ({reason})");
    if crate::cores::leave() == 0 {
        power_off();
    }
    println!("core {} has stopped, the others go on", core_index());
    cpu::park()
}

/// Powers the machine off, or stops this core if firmware cannot.
pub fn power_off() -> ! {
    console::flush();
    psci::system_off();
    cpu::park()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin_fatal_report();
    println!("core {}: {info}", core_index());
    println!("scenario: failed (panic)");
    power_off()
}
