//! Exceptions that the monitor injects into a realm: taken to EL1 as if by hardware.

use crate::context::RecContext;
use crate::esr;
use crate::rec::RESET_PSTATE;

const PSTATE_MODE: u64 = 0xf;
const MODE_EL0: u64 = 0b0000;
const MODE_EL1_SP0: u64 = 0b0100;
const PSTATE_AARCH32: u64 = 1 << 4;

/// Offset of the synchronous vector for an exception from this PSTATE to EL1.
fn vector_offset(pstate: u64) -> u64 {
    match pstate & PSTATE_MODE {
        MODE_EL1_SP0 => 0x000,
        MODE_EL0 if pstate & PSTATE_AARCH32 == 0 => 0x400,
        _ if pstate & PSTATE_AARCH32 != 0 => 0x600,
        _ => 0x200,
    }
}

fn take_exception(context: &mut RecContext, esr: u64) {
    context.el1.elr_el1 = context.pc;
    context.el1.spsr_el1 = context.pstate;
    context.el1.esr_el1 = esr;
    context.pc = context.el1.vbar_el1.wrapping_add(vector_offset(context.pstate));
    context.pstate = RESET_PSTATE;
}

/// Injects a synchronous external abort for the instruction or data abort `esr_el2` at `far`.
pub(crate) fn external_abort(context: &mut RecContext, esr_el2: u64, far: u64) {
    let kept = esr_el2 & !(esr::EC_MASK | esr::ABORT_FSC | esr::ABORT_FNV | esr::ABORT_S1PTW);
    // The class for an abort from the same level follows the one for a lower level.
    let from_el0 = context.pstate & PSTATE_MODE == MODE_EL0;
    let class = esr::class(esr_el2) + u64::from(!from_el0);
    context.el1.far_el1 = far;
    take_exception(context, kept | class << esr::EC_SHIFT | esr::ABORT_EA | esr::FSC_EXTERNAL);
}

/// Injects an exception of unknown reason: the instruction is UNDEFINED.
pub(crate) fn undefined(context: &mut RecContext) {
    take_exception(context, esr::IL);
}
