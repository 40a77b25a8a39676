//! PSCI by the conduit that the device tree names.

use smccc::psci::error::Error;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};
use smccc::{Hvc, Smc};

use crate::boot::{Conduit, Ending};
use crate::entry;

/// Version word: major in bits 31:16, minor in bits 15:0.
///
/// # Errors
///
/// What the implementation answers.
pub fn version(conduit: Conduit) -> Result<u32, Error> {
    let version = match conduit {
        Conduit::Hvc => psci::version::<Hvc>(),
        Conduit::Smc => psci::version::<Smc>(),
    }?;
    Ok(u32::from(version.major) << 16 | u32::from(version.minor))
}

/// Starts vCPU `mpidr` in the `secondary` function of [`guest!`](crate::guest).
///
/// # Errors
///
/// What the implementation answers.
pub fn cpu_on(conduit: Conduit, mpidr: u64, context_id: u64) -> Result<(), Error> {
    let entry = entry::secondary_entry_ipa();
    match conduit {
        Conduit::Hvc => psci::cpu_on::<Hvc>(mpidr, entry, context_id),
        Conduit::Smc => psci::cpu_on::<Smc>(mpidr, entry, context_id),
    }
}

/// Whether vCPU `mpidr` is on.
///
/// # Errors
///
/// What the implementation answers.
pub fn is_on(conduit: Conduit, mpidr: u64) -> Result<bool, Error> {
    let level = LowestAffinityLevel::All;
    let state = match conduit {
        Conduit::Hvc => psci::affinity_info::<Hvc>(mpidr, level),
        Conduit::Smc => psci::affinity_info::<Smc>(mpidr, level),
    }?;
    Ok(state != AffinityState::Off)
}

/// Ends this vCPU.
pub fn cpu_off(conduit: Conduit) -> ! {
    // It returns only when refused, and then parking is all that is left.
    let _ = match conduit {
        Conduit::Hvc => psci::cpu_off::<Hvc>(),
        Conduit::Smc => psci::cpu_off::<Smc>(),
    };
    park()
}

/// Ends the guest.
pub fn system_off(conduit: Conduit) -> ! {
    let _ = match conduit {
        Conduit::Hvc => psci::system_off::<Hvc>(),
        Conduit::Smc => psci::system_off::<Smc>(),
    };
    park()
}

/// Ends the guest as it was told to.
pub fn end(conduit: Conduit, ending: Ending) -> ! {
    match ending {
        Ending::Off => system_off(conduit),
        Ending::Reset => {
            let _ = match conduit {
                Conduit::Hvc => psci::system_reset::<Hvc>(),
                Conduit::Smc => psci::system_reset::<Smc>(),
            };
        }
        Ending::Hang => {}
    }
    park()
}

fn park() -> ! {
    loop {
        aarch64_cpu::asm::wfi();
    }
}
