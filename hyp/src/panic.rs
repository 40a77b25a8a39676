//! The end of the line: panics, and the stop of a core that cannot go on.

use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use crate::arch::{cpu, psci};
use crate::vm::{Reason, abandon};
use crate::{console, println};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Once;

/// Bit per core that reports, or has reported, a fatal error.
static FAILING: AtomicU32 = AtomicU32::new(0);

const _: () = assert!(MAX_CORES <= u32::BITS as usize);

/// Whether this core is reporting a fatal error, so that it must not wait for locks.
#[must_use]
pub fn this_core_is_failing() -> bool {
    FAILING.load(Ordering::Relaxed) & 1 << core_index() != 0
}

/// Why each core that has stopped did so.
static REASONS: [Once<Reason>; MAX_CORES] = [const { Once::new() }; MAX_CORES];

/// Marks this core as failing. A core that fails again while it reports may have left the others
/// waiting for it: the machine powers off.
pub fn begin_fatal_report() {
    let bit = 1 << core_index();
    if FAILING.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        println!("scenario: failed (core {} failed while it reported a failure)", core_index());
        power_off();
    }
}

/// Stops this core after a fatal report. The VM whose vCPU it ran ends with it, the other cores and VMs
/// go on. If it was at something that all need, or no other core is left, the machine powers off.
pub fn stop(what: &str) -> ! {
    let core = core_index();
    if let Some(reason) = REASONS.get(core) {
        reason.call_once(|| Reason::new(format_args!("{what} on core {core}")));
    }
    match abandon::this_core(what) {
        Ok(vm) => {
            println!("core {core} has stopped, and vm {} with it; the others go on", vm.name())
        }
        Err(obstacle) => {
            println!("scenario: failed ({what} on core {core}, {obstacle})");
            power_off()
        }
    }
    cpu::park()
}

/// Cores that have stopped, and why.
pub fn stopped_cores() -> impl Iterator<Item = (usize, &'static Reason)> {
    REASONS.iter().enumerate().filter_map(|(core, reason)| Some((core, reason.get()?)))
}

/// Bit per core that has asked firmware to power the machine off.
static OFF: AtomicU32 = AtomicU32::new(0);

/// Powers the machine off, or stops this core if there is no firmware that does.
pub fn power_off() -> ! {
    let bit = 1 << core_index();
    // The call itself may have ended in the exception whose report leads here.
    let again = OFF.fetch_or(bit, Ordering::Relaxed) & bit != 0;
    if psci::is_present() && !again {
        console::flush();
        psci::system_off();
    }
    println!("core {} is parked: no firmware powers this machine off", core_index());
    console::flush();
    cpu::park()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin_fatal_report();
    println!("core {}: {info}", core_index());
    stop("panic")
}
