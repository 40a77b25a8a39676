//! How a guest fails: it says why, reports to the hypervisor, so that its VM ends as failed, and powers
//! off.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::{MAX_CPUS, console, cpu_index, entry, host, psci};

/// Code of a check that has none of its own.
const CHECK: u64 = 1;
/// Code of a panic, which an unexpected exception is as well.
const PANIC: u64 = 100;

/// A check that did not hold.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// What the hypervisor is told; not 0.
    pub code: u64,
    /// What the console says.
    pub what: &'static str,
}

impl From<&'static str> for Failure {
    fn from(what: &'static str) -> Self {
        Self { code: CHECK, what }
    }
}

/// How often each vCPU has come here.
static ATTEMPTS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// Ends the guest because of `reason`.
pub(crate) fn fail(code: u64, reason: fmt::Arguments<'_>) -> ! {
    // Each step is left out after it has failed itself.
    let attempt = ATTEMPTS[cpu_index()].fetch_add(1, Ordering::Relaxed);
    if attempt == 0 {
        let name = entry::guest().name;
        console::write_last(format_args!("{name}: FAILED on cpu {}: {reason}", cpu_index()));
    }
    if attempt <= 1 {
        host::report_failure(code);
    }
    if attempt <= 2 {
        psci::system_off();
    }
    psci::park()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(place) => {
            fail(PANIC, format_args!("{}:{}: {}", place.file(), place.line(), info.message()))
        }
        None => fail(PANIC, format_args!("{}", info.message())),
    }
}
