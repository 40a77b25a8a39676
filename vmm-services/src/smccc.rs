//! Calls by the SMC calling convention (Arm DEN 0028) that an ordinary guest makes by `HVC #0` or
//! `SMC #0`: which service answers which number.

use crate::exit::{CALL_REGISTERS, Resume};
use crate::ids::VcpuId;
use crate::psci::{self, PowerState};
use crate::trng;
use crate::vm::Context;

pub(crate) const VERSION: u32 = 0x8000_0000;
const ARCH_FEATURES: u32 = 0x8000_0001;
/// General queries of the vendor-specific hypervisor service.
const VENDOR_UID: u32 = 0x8600_ff01;
const VENDOR_REVISION: u32 = 0x8600_ff03;

/// SMCCC 1.2: arguments and results beyond x7 and x3, none of which we use.
const VERSION_1_2: u32 = 0x1_0002;
pub(crate) const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
/// This hypervisor's UID, b050fd3d-8036-4c3c-9cca-06d28851f5ef, as words of little-endian bytes.
const UID: [u64; 4] = [0x3dfd_50b0, 0x3c4c_3680, 0xd206_ca9c, 0xeff5_5188];

/// A call's answer: new x0, and nothing else.
pub(crate) fn result(value: i64) -> Resume {
    Resume::Results([value.cast_unsigned(), 0, 0, 0])
}

/// Answers `HVC #0` or `SMC #0` of an ordinary guest.
///
/// SMCCC_ARCH_WORKAROUND_n never come here: what they do is done to the core, by the run loop.
pub(crate) fn call(
    power: &mut PowerState,
    vcpu: VcpuId,
    args: &[u64; CALL_REGISTERS],
    context: &Context<'_>,
) -> Resume {
    // The function identifier is W0.
    let [function, argument, ..] = *args;
    match function as u32 {
        VERSION => result(i64::from(VERSION_1_2)),
        ARCH_FEATURES => result(match argument as u32 {
            VERSION | ARCH_FEATURES => SUCCESS,
            _ => NOT_SUPPORTED,
        }),
        VENDOR_UID => Resume::Results(UID),
        VENDOR_REVISION => Resume::Results([REVISION.0, REVISION.1, 0, 0]),
        call if psci::is_call(call) => power.call(vcpu, args, context.memory),
        call if trng::is_call(call) => trng::call(call, argument, context.entropy),
        _ => result(NOT_SUPPORTED),
    }
}

/// Major and minor revision of what the hypervisor offers by such calls.
const REVISION: (u64, u64) = (1, 0);

#[cfg(test)]
mod tests;
