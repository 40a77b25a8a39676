//! Numbers of the Realm Management Interface: function identifiers, status codes, enumerations.

/// SMC64 fast call, standard secure service: the base of all RMI, RSI and PSCI64 identifiers.
const FAST_CALL_64: u64 = 0xC400_0000;
/// The hint that the caller has no live SVE state; accepted and ignored.
pub(crate) const SVE_HINT: u64 = 1 << 16;
/// x0 of a call that is not implemented.
pub(crate) const SMC_UNKNOWN: u64 = u64::MAX;
/// Interface version 1.0 as a version word.
pub(crate) const VERSION_1_0: u64 = 1 << 16;
/// Interface version 2.0 as a version word.
pub(crate) const VERSION_2_0: u64 = 2 << 16;

/// Function identifiers of RMI 1.0.
pub mod fid {
    use super::FAST_CALL_64;

    /// RMI_VERSION.
    pub const VERSION: u64 = FAST_CALL_64 | 0x150;
    /// RMI_GRANULE_DELEGATE.
    pub const GRANULE_DELEGATE: u64 = FAST_CALL_64 | 0x151;
    /// RMI_GRANULE_UNDELEGATE.
    pub const GRANULE_UNDELEGATE: u64 = FAST_CALL_64 | 0x152;
    /// RMI_DATA_CREATE.
    pub const DATA_CREATE: u64 = FAST_CALL_64 | 0x153;
    /// RMI_DATA_CREATE_UNKNOWN.
    pub const DATA_CREATE_UNKNOWN: u64 = FAST_CALL_64 | 0x154;
    /// RMI_DATA_DESTROY.
    pub const DATA_DESTROY: u64 = FAST_CALL_64 | 0x155;
    /// RMI_REALM_ACTIVATE.
    pub const REALM_ACTIVATE: u64 = FAST_CALL_64 | 0x157;
    /// RMI_REALM_CREATE.
    pub const REALM_CREATE: u64 = FAST_CALL_64 | 0x158;
    /// RMI_REALM_DESTROY.
    pub const REALM_DESTROY: u64 = FAST_CALL_64 | 0x159;
    /// RMI_REC_CREATE.
    pub const REC_CREATE: u64 = FAST_CALL_64 | 0x15A;
    /// RMI_REC_DESTROY.
    pub const REC_DESTROY: u64 = FAST_CALL_64 | 0x15B;
    /// RMI_REC_ENTER.
    pub const REC_ENTER: u64 = FAST_CALL_64 | 0x15C;
    /// RMI_RTT_CREATE.
    pub const RTT_CREATE: u64 = FAST_CALL_64 | 0x15D;
    /// RMI_RTT_DESTROY.
    pub const RTT_DESTROY: u64 = FAST_CALL_64 | 0x15E;
    /// RMI_RTT_MAP_UNPROTECTED.
    pub const RTT_MAP_UNPROTECTED: u64 = FAST_CALL_64 | 0x15F;
    /// RMI_RTT_READ_ENTRY.
    pub const RTT_READ_ENTRY: u64 = FAST_CALL_64 | 0x161;
    /// RMI_RTT_UNMAP_UNPROTECTED.
    pub const RTT_UNMAP_UNPROTECTED: u64 = FAST_CALL_64 | 0x162;
    /// RMI_PSCI_COMPLETE.
    pub const PSCI_COMPLETE: u64 = FAST_CALL_64 | 0x164;
    /// RMI_FEATURES.
    pub const FEATURES: u64 = FAST_CALL_64 | 0x165;
    /// RMI_RTT_FOLD.
    pub const RTT_FOLD: u64 = FAST_CALL_64 | 0x166;
    /// RMI_REC_AUX_COUNT.
    pub const REC_AUX_COUNT: u64 = FAST_CALL_64 | 0x167;
    /// RMI_RTT_INIT_RIPAS.
    pub const RTT_INIT_RIPAS: u64 = FAST_CALL_64 | 0x168;
    /// RMI_RTT_SET_RIPAS.
    pub const RTT_SET_RIPAS: u64 = FAST_CALL_64 | 0x169;
}

/// Function identifiers of RSI 1.0, which realm guests call.
pub mod rsi_fid {
    use super::FAST_CALL_64;

    /// RSI_VERSION.
    pub const VERSION: u64 = FAST_CALL_64 | 0x190;
    /// RSI_FEATURES.
    pub const FEATURES: u64 = FAST_CALL_64 | 0x191;
    /// RSI_MEASUREMENT_READ.
    pub const MEASUREMENT_READ: u64 = FAST_CALL_64 | 0x192;
    /// RSI_MEASUREMENT_EXTEND.
    pub const MEASUREMENT_EXTEND: u64 = FAST_CALL_64 | 0x193;
    /// RSI_ATTESTATION_TOKEN_INIT.
    pub const ATTESTATION_TOKEN_INIT: u64 = FAST_CALL_64 | 0x194;
    /// RSI_ATTESTATION_TOKEN_CONTINUE.
    pub const ATTESTATION_TOKEN_CONTINUE: u64 = FAST_CALL_64 | 0x195;
    /// RSI_REALM_CONFIG.
    pub const REALM_CONFIG: u64 = FAST_CALL_64 | 0x196;
    /// RSI_IPA_STATE_SET.
    pub const IPA_STATE_SET: u64 = FAST_CALL_64 | 0x197;
    /// RSI_IPA_STATE_GET.
    pub const IPA_STATE_GET: u64 = FAST_CALL_64 | 0x198;
    /// RSI_HOST_CALL.
    pub const HOST_CALL: u64 = FAST_CALL_64 | 0x199;
}

/// Function identifiers and return codes of PSCI, which realm guests call.
pub mod psci_fid {
    use super::FAST_CALL_64;

    const FAST_CALL_32: u64 = 0x8400_0000;
    /// SMCCC_VERSION.
    pub const SMCCC_VERSION: u64 = 0x8000_0000;
    /// PSCI_VERSION.
    pub const VERSION: u64 = FAST_CALL_32;
    /// PSCI_CPU_SUSPEND, 32-bit call.
    pub const CPU_SUSPEND_32: u64 = FAST_CALL_32 | 1;
    /// PSCI_CPU_SUSPEND, 64-bit call.
    pub const CPU_SUSPEND: u64 = FAST_CALL_64 | 1;
    /// PSCI_CPU_OFF.
    pub const CPU_OFF: u64 = FAST_CALL_32 | 2;
    /// PSCI_CPU_ON, 32-bit call.
    pub const CPU_ON_32: u64 = FAST_CALL_32 | 3;
    /// PSCI_CPU_ON, 64-bit call.
    pub const CPU_ON: u64 = FAST_CALL_64 | 3;
    /// PSCI_AFFINITY_INFO, 32-bit call.
    pub const AFFINITY_INFO_32: u64 = FAST_CALL_32 | 4;
    /// PSCI_AFFINITY_INFO, 64-bit call.
    pub const AFFINITY_INFO: u64 = FAST_CALL_64 | 4;
    /// PSCI_SYSTEM_OFF.
    pub const SYSTEM_OFF: u64 = FAST_CALL_32 | 8;
    /// PSCI_SYSTEM_RESET.
    pub const SYSTEM_RESET: u64 = FAST_CALL_32 | 9;
    /// PSCI_FEATURES.
    pub const FEATURES: u64 = FAST_CALL_32 | 10;

    /// PSCI return code SUCCESS, and affinity state ON.
    pub const SUCCESS: u64 = 0;
    /// Affinity state OFF.
    pub const AFFINITY_OFF: u64 = 1;
    /// PSCI return code NOT_SUPPORTED.
    pub const NOT_SUPPORTED: u64 = -1_i64 as u64;
    /// PSCI return code INVALID_PARAMETERS.
    pub const INVALID_PARAMETERS: u64 = -2_i64 as u64;
    /// PSCI return code DENIED.
    pub const DENIED: u64 = -3_i64 as u64;
    /// PSCI return code ALREADY_ON.
    pub const ALREADY_ON: u64 = -4_i64 as u64;
    /// PSCI return code INVALID_ADDRESS.
    pub const INVALID_ADDRESS: u64 = -9_i64 as u64;
}

/// RmiStatusCode: bits \[7:0\] of x0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The command succeeded.
    Success = 0,
    /// An argument is not what the command needs.
    Input = 1,
    /// The realm's state does not allow the command.
    Realm = 2,
    /// The REC's state does not allow the command.
    Rec = 3,
    /// The RTT walk ended elsewhere than needed; the index is the level it reached.
    Rtt = 4,
    /// Nothing has changed; the same call works later (2.0).
    Busy = 10,
    /// The state of the monitor as a whole does not allow the command (2.0).
    Global = 11,
    /// The operation has begun and needs more calls (2.0).
    Incomplete = 13,
    /// Nothing has changed; other operations must end first (2.0).
    Blocked = 14,
    /// The granule protection table is not as the command needs (2.0).
    Gpt = 15,
}

/// RSI status codes, in x0 of a realm.
pub mod rsi_status {
    /// The call succeeded.
    pub const SUCCESS: u64 = 0;
    /// An argument is wrong.
    pub const ERROR_INPUT: u64 = 1;
    /// The REC's or realm's state does not allow the call.
    pub const ERROR_STATE: u64 = 2;
    /// The call could not be served for a reason outside the realm.
    pub const ERROR_UNKNOWN: u64 = 4;
}

/// Realm IPA state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ripas {
    /// No memory: an access is an abort for the realm.
    Empty = 0,
    /// Memory that the realm may use.
    Ram = 1,
    /// Memory that the host destroyed under the realm.
    Destroyed = 2,
}

/// RmiRttEntryState as RTT_READ_ENTRY reports it.
pub mod entry_state {
    /// No address behind the entry.
    pub const UNASSIGNED: u64 = 0;
    /// A granule or block behind the entry.
    pub const ASSIGNED: u64 = 1;
    /// A table behind the entry.
    pub const TABLE: u64 = 2;
}

/// RmiRecExitReason.
pub mod exit_reason {
    /// Synchronous exception.
    pub const SYNC: u64 = 0;
    /// IRQ, or a timer output changed.
    pub const IRQ: u64 = 1;
    /// FIQ.
    pub const FIQ: u64 = 2;
    /// PSCI request.
    pub const PSCI: u64 = 3;
    /// The realm asks for a RIPAS change.
    pub const RIPAS_CHANGE: u64 = 4;
    /// Host call.
    pub const HOST_CALL: u64 = 5;
    /// SError.
    pub const SERROR: u64 = 6;
}

/// RmiRecEnterFlags.
pub mod enter_flags {
    /// The host has emulated the access of the last exit.
    pub const EMUL_MMIO: u64 = 1 << 0;
    /// Inject an external abort for the access of the last exit.
    pub const INJECT_SEA: u64 = 1 << 1;
    /// WFI exits.
    pub const TRAP_WFI: u64 = 1 << 2;
    /// WFE exits.
    pub const TRAP_WFE: u64 = 1 << 3;
    /// The host rejects the pending RIPAS change.
    pub const RIPAS_RESPONSE: u64 = 1 << 4;
    /// All flags that 1.0 defines.
    pub const ALL: u64 = 0x1f;
    /// All flags that 2.0 defines: also responses for planes and devices, which never matter here.
    pub const ALL_V2: u64 = 0xff;
}

/// A refusal: what goes into x0 instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    pub(crate) index: u8,
}

impl Refusal {
    pub(crate) const INPUT: Self = Self { status: Status::Input, index: 0 };
    pub(crate) const REALM: Self = Self { status: Status::Realm, index: 0 };
    pub(crate) const REC: Self = Self { status: Status::Rec, index: 0 };
    pub(crate) const BUSY: Self = Self { status: Status::Busy, index: 0 };
    pub(crate) const GLOBAL: Self = Self { status: Status::Global, index: 0 };
    pub(crate) const BLOCKED: Self = Self { status: Status::Blocked, index: 0 };
    pub(crate) const GPT: Self = Self { status: Status::Gpt, index: 0 };

    /// A walk that ended at `level`. Levels fit: -1 to 3, as a signed byte.
    pub(crate) const fn rtt(level: i64) -> Self {
        Self { status: Status::Rtt, index: level as u8 }
    }

    const fn x0(self) -> u64 {
        self.status as u64 | (self.index as u64) << 8
    }
}

/// What a command answers: x0, and the outputs it defines from x1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    x0: u64,
    outputs: [u64; 4],
    count: usize,
}

impl Reply {
    /// Success with no output.
    pub(crate) const SUCCESS: Self = Self { x0: 0, outputs: [0; 4], count: 0 };

    /// There is no such command.
    pub(crate) const UNKNOWN: Self = Self { x0: SMC_UNKNOWN, ..Self::SUCCESS };

    /// Success with outputs in x1 and on; at most four are kept.
    pub(crate) fn with<const N: usize>(values: [u64; N]) -> Self {
        const { assert!(N <= 4) };
        let mut outputs = [0; 4];
        outputs[..N].copy_from_slice(&values);
        Self { x0: 0, outputs, count: N }
    }

    /// A refusal that still defines outputs.
    pub(crate) fn refused_with<const N: usize>(refusal: Refusal, values: [u64; N]) -> Self {
        Self { x0: refusal.x0(), ..Self::with(values) }
    }

    /// x0 to x7 of the call. Outputs that the command does not define are zero in x1 to x3; x4 to
    /// x7 keep the caller's values.
    pub(crate) fn registers(self, args: [u64; 7]) -> [u64; 8] {
        let [_, _, _, x4, x5, x6, x7] = args;
        let mut result = [self.x0, 0, 0, 0, x4, x5, x6, x7];
        for (register, value) in result[1..].iter_mut().zip(self.outputs).take(self.count) {
            *register = value;
        }
        result
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self { x0: refusal.x0(), ..Self::SUCCESS }
    }
}
