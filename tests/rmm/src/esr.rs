//! Fields of exception syndromes (`ESR_EL2`).

pub(crate) const EC_SHIFT: u32 = 26;
pub(crate) const EC_MASK: u64 = 0x3f << EC_SHIFT;
/// 32-bit instruction.
pub(crate) const IL: u64 = 1 << 25;

pub(crate) const EC_WFX: u64 = 0x01;
pub(crate) const EC_FP: u64 = 0x07;
pub(crate) const EC_HVC: u64 = 0x16;
pub(crate) const EC_SMC: u64 = 0x17;
pub(crate) const EC_SYSREG: u64 = 0x18;
pub(crate) const EC_SVE: u64 = 0x19;
pub(crate) const EC_SME: u64 = 0x1d;
pub(crate) const EC_INSTRUCTION_ABORT: u64 = 0x20;
pub(crate) const EC_DATA_ABORT: u64 = 0x24;

/// Trapped instruction field of WFx.
pub(crate) const WFX_TI: u64 = 0b11;

pub(crate) const ABORT_FSC: u64 = 0x3f;
pub(crate) const ABORT_WNR: u64 = 1 << 6;
pub(crate) const ABORT_S1PTW: u64 = 1 << 7;
pub(crate) const ABORT_EA: u64 = 1 << 9;
pub(crate) const ABORT_FNV: u64 = 1 << 10;
pub(crate) const ABORT_SET: u64 = 0b11 << 11;
pub(crate) const ABORT_SF: u64 = 1 << 15;
pub(crate) const ABORT_SRT_SHIFT: u32 = 16;
pub(crate) const ABORT_SSE: u64 = 1 << 21;
pub(crate) const ABORT_SAS_SHIFT: u32 = 22;
pub(crate) const ABORT_SAS: u64 = 0b11 << ABORT_SAS_SHIFT;
pub(crate) const ABORT_ISV: u64 = 1 << 24;

/// Severity of an external abort: uncontainable.
pub(crate) const SET_UNCONTAINABLE: u64 = 0b10 << 11;
/// Severity of an external abort: restartable (the realm may go on).
pub(crate) const SET_RESTARTABLE: u64 = 0b11 << 11;

/// Translation fault at level 0; the level adds to it.
pub(crate) const FSC_TRANSLATION: u64 = 0x04;
/// Synchronous external abort, not on a table walk.
pub(crate) const FSC_EXTERNAL: u64 = 0x10;

/// What the host sees of an abort that it cannot emulate.
pub(crate) const NON_EMULATABLE: u64 = EC_MASK | ABORT_SET | ABORT_FNV | ABORT_EA | ABORT_FSC;
/// What the host sees of an abort that it can emulate.
pub(crate) const EMULATABLE: u64 = NON_EMULATABLE | ABORT_ISV | ABORT_SAS | ABORT_SF | ABORT_WNR;

/// Implementation defined SError syndrome.
pub(crate) const SERROR_IDS: u64 = 1 << 24;
pub(crate) const SERROR_AET: u64 = 0b111 << 10;
/// SError: uncontainable.
pub(crate) const AET_UNCONTAINABLE: u64 = 0b000 << 10;
/// SError: unrecoverable.
pub(crate) const AET_UNRECOVERABLE: u64 = 0b001 << 10;
/// SError: recoverable.
pub(crate) const AET_RECOVERABLE: u64 = 0b011 << 10;
/// What the host sees of an SError.
pub(crate) const SERROR_VISIBLE: u64 = SERROR_IDS | SERROR_AET | ABORT_EA | ABORT_FSC;

/// Exception class.
pub(crate) fn class(esr: u64) -> u64 {
    esr >> EC_SHIFT & 0x3f
}

/// Register number of an access with a valid syndrome.
pub(crate) fn transfer_register(esr: u64) -> usize {
    (esr >> ABORT_SRT_SHIFT & 0x1f) as usize
}

/// Bits of an access with a valid syndrome: 8, 16, 32 or 64.
pub(crate) fn access_bits(esr: u64) -> u32 {
    8 << (esr >> ABORT_SAS_SHIFT & 0b11)
}

/// All ones over the width of an access.
pub(crate) fn access_mask(esr: u64) -> u64 {
    u64::MAX >> (64 - access_bits(esr))
}

/// True for the fault status codes of synchronous external aborts, also on table walks.
pub(crate) fn is_external_abort(esr: u64) -> bool {
    matches!(esr & ABORT_FSC, 0x10 | 0x13..=0x17)
}
