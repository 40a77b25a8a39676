//! PSCI: by SMC in a realm, whose RMM answers, else by HVC. [`boot::parse`](crate::boot::parse) has checked
//! that the device tree says the same.

use smccc::psci::error::Error;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};
use smccc::{Hvc, Smc};

use crate::boot::Ending;
use crate::{entry, rsi};

/// A function of `smccc::psci` by this guest's conduit.
macro_rules! call {
    ($function:ident($($argument:expr),*)) => {
        if rsi::is_realm() {
            psci::$function::<Smc>($($argument),*)
        } else {
            psci::$function::<Hvc>($($argument),*)
        }
    };
}

/// Version word: major in bits 31:16, minor in bits 15:0.
///
/// # Errors
///
/// What the implementation answers.
pub fn version() -> Result<u32, Error> {
    let version = call!(version())?;
    Ok(u32::from(version.major) << 16 | u32::from(version.minor))
}

/// Starts vCPU `mpidr` in the `secondary` function of [`guest!`](crate::guest).
///
/// # Errors
///
/// What the implementation answers.
pub fn cpu_on(mpidr: u64, context_id: u64) -> Result<(), Error> {
    call!(cpu_on(mpidr, entry::secondary_entry_ipa(), context_id))
}

/// Whether vCPU `mpidr` is on.
///
/// # Errors
///
/// What the implementation answers.
pub fn is_on(mpidr: u64) -> Result<bool, Error> {
    let state = call!(affinity_info(mpidr, LowestAffinityLevel::All))?;
    Ok(state != AffinityState::Off)
}

/// Ends this vCPU.
pub(crate) fn cpu_off() -> ! {
    // It returns only when refused, and then parking is all that is left.
    let _ = call!(cpu_off());
    park()
}

/// Ends the guest.
pub(crate) fn system_off() -> ! {
    let _ = call!(system_off());
    park()
}

/// Ends the guest as it was told to.
pub(crate) fn end(ending: Ending) -> ! {
    match ending {
        Ending::Off => system_off(),
        Ending::Reset => {
            let _ = call!(system_reset());
        }
        Ending::Hang => {}
    }
    park()
}

pub(crate) fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}
