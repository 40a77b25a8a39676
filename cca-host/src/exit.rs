//! REC exits (RmiRecExit), typed completely.

use mm::Ipa;

use crate::geometry::Geometry;
use crate::layout;

/// A REC exit: why, and the state that every exit reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecExit {
    /// Why the REC exited.
    pub cause: ExitCause,
    /// The realm's EL1 timers at the exit.
    pub timers: Timers,
}

/// Why a REC exited (RmiRecExitReason). Only reasons 0 to 6 mean the same in all versions.
#[expect(clippy::large_enum_variant, reason = "host calls carry 31 registers and there is no heap")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitCause {
    /// Reason 0: a synchronous exception.
    Sync(SyncExit),
    /// Reason 1: an interrupt is pending for the host, or the output of a timer has changed.
    Irq,
    /// Reason 2: an FIQ is pending.
    Fiq,
    /// Reason 3: a PSCI call that concerns the host.
    Psci(PsciRequest),
    /// Reason 4: the realm asks to change the RIPAS of a range.
    RipasChange(RipasChange),
    /// Reason 5: a call of the realm to the host.
    HostCall(HostCall),
    /// Reason 6: a system error. The RMM has told the realm if it concerns it.
    SError {
        /// Masked ESR_EL2.
        esr: u64,
    },
    /// A reason that RMI 1.0 does not have (planes and devices), or that no version has.
    Unknown {
        /// The reason.
        reason: u64,
    },
}

/// A synchronous exit by exception class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncExit {
    /// Access to protected memory that is not there: the host maps a page, unless the IPA's RIPAS is
    /// DESTROYED.
    ProtectedFault {
        /// Page of the access.
        ipa: Ipa,
        /// Kind of access.
        access: Access,
    },
    /// Access to an unprotected address that the host can emulate.
    Mmio(Mmio),
    /// Access to an unprotected address that cannot be emulated (no valid syndrome): the host maps
    /// memory there or injects an external abort.
    UnprotectedFault {
        /// Page of the access.
        ipa: Ipa,
        /// Kind of access.
        access: Access,
    },
    /// A synchronous external abort was taken while the realm ran. The RMM has told the realm, or the access is
    /// repeated when the REC is entered again.
    ExternalAbort {
        /// Masked ESR_EL2.
        esr: u64,
        /// Whether the state of the realm is as it was before the access (UEO) or can be recovered (UER).
        recoverable: bool,
        /// Page of the access as far as known.
        ipa: Ipa,
    },
    /// The realm waits for an interrupt.
    Wfi,
    /// The realm waits for an event.
    Wfe,
    /// The realm waits for an interrupt until a counter value, where the RMM reports it.
    WfiTimeout(Option<u64>),
    /// The realm waits for an event until a counter value, where the RMM reports it.
    WfeTimeout(Option<u64>),
    /// Access to a trapped system register of the GIC CPU interface.
    SysReg(SysRegAccess),
    /// A class that the interface does not define.
    Other {
        /// ESR_EL2 as reported.
        esr: u64,
        /// FAR_EL2 as reported.
        far: u64,
        /// HPFAR_EL2 as reported.
        hpfar: u64,
    },
}

/// Kind of a memory access that faulted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load or store; the RMM does not say which when the syndrome is not valid.
    Data,
    /// An instruction fetch.
    Instruction,
}

/// An emulatable access to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mmio {
    /// Address of the access, with the bit that marks it as shared.
    pub ipa: Ipa,
    /// Width in bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// The value stored, zero extended from the width; `None` for a load.
    pub write: Option<u64>,
}

/// Encoding of a system register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SysReg {
    /// Op0.
    pub op0: u8,
    /// Op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// Op2.
    pub op2: u8,
}

/// A trapped system register access. The RMM has moved the program counter on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysRegAccess {
    /// The register.
    pub register: SysReg,
    /// The value written; `None` for a read.
    pub write: Option<u64>,
    /// The general register of the instruction, where the RMM reports it; 0 otherwise.
    pub rt: u8,
}

/// A PSCI call of the realm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciRequest {
    /// The REC sleeps until it has an interrupt. Already answered by the RMM.
    CpuSuspend,
    /// The REC has switched itself off.
    CpuOff,
    /// Another REC is to be switched on. Must be answered by [`crate::Rec::complete_psci`].
    CpuOn {
        /// MPIDR of the target.
        mpidr: u64,
    },
    /// The state of another REC is asked for. Must be answered by [`crate::Rec::complete_psci`].
    AffinityInfo {
        /// MPIDR of the target.
        mpidr: u64,
    },
    /// The realm has switched itself off: no REC of it can be entered any more.
    SystemOff,
    /// The realm wants to be restarted: no REC of it can be entered any more.
    SystemReset,
    /// A call that should not have come to the host.
    Other {
        /// PSCI function identifier.
        fid: u64,
    },
}

/// A RIPAS change that the realm asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RipasChange {
    /// First address.
    pub base: Ipa,
    /// First address after the range.
    pub top: Ipa,
    /// Wanted RIPAS.
    pub ripas: Ripas,
}

/// Realm IPA state (RmiRipas).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ripas {
    /// Not memory; the realm takes an abort.
    Empty,
    /// Protected memory.
    Ram,
    /// Was memory until the host took it away.
    Destroyed,
    /// Protected device memory; not in 1.0.
    Device,
    /// A value that no version defines.
    Unknown(u8),
}

impl Ripas {
    /// Decodes an RmiRipas.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Empty,
            1 => Self::Ram,
            2 => Self::Destroyed,
            3 => Self::Device,
            other => Self::Unknown(other),
        }
    }
}

/// A host call: an immediate and all general registers x0 to x30, which the answer replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostCall {
    /// Immediate value.
    pub imm: u16,
    /// x0 to x30.
    pub gprs: [u64; 31],
}

/// State of one EL1 timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimerState {
    /// CNTx_CTL: ENABLE bit 0, IMASK bit 1, ISTATUS bit 2.
    pub ctl: u64,
    /// CNTx_CVAL, in ticks of the physical counter.
    pub cval: u64,
}

impl TimerState {
    const ENABLE: u64 = 1 << 0;
    const IMASK: u64 = 1 << 1;
    const ISTATUS: u64 = 1 << 2;

    /// Whether the timer's interrupt is asserted.
    #[must_use]
    pub const fn asserted(&self) -> bool {
        self.ctl & (Self::ENABLE | Self::IMASK | Self::ISTATUS) == Self::ENABLE | Self::ISTATUS
    }

    /// Counter value at which the timer's interrupt will be asserted, if it will: the host wakes the REC
    /// then.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        if self.ctl & (Self::ENABLE | Self::IMASK) == Self::ENABLE { Some(self.cval) } else { None }
    }
}

/// The EL1 timers of a REC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timers {
    /// Physical timer, INTID 30.
    pub physical: TimerState,
    /// Virtual timer, INTID 27.
    pub virt: TimerState,
}

impl Timers {
    /// The earlier of the two deadlines.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match (self.physical.deadline(), self.virt.deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

impl From<layout::ExitTimers> for Timers {
    fn from(timers: layout::ExitTimers) -> Self {
        Self {
            physical: TimerState { ctl: timers.cntp_ctl, cval: timers.cntp_cval },
            virt: TimerState { ctl: timers.cntv_ctl, cval: timers.cntv_cval },
        }
    }
}

/// Numbers of the exit reasons that all versions share.
pub(crate) mod reason {
    pub(crate) const SYNC: u64 = 0;
    pub(crate) const IRQ: u64 = 1;
    pub(crate) const FIQ: u64 = 2;
    pub(crate) const PSCI: u64 = 3;
    pub(crate) const RIPAS_CHANGE: u64 = 4;
    pub(crate) const HOST_CALL: u64 = 5;
    pub(crate) const SERROR: u64 = 6;
}

/// Bits `low..low + width` of a syndrome.
const fn bits(word: u64, low: u32, width: u32) -> u64 {
    word >> low & ((1 << width) - 1)
}

/// IPA of a fault: HPFAR_EL2.FIPA, bits 47:4, is IPA bits 55:12.
const fn fault_page(hpfar: u64) -> Ipa {
    Ipa::new((hpfar & 0x0000_ffff_ffff_fff0) << 8)
}

impl SyncExit {
    const EC_WFX: u64 = 0x01;
    const EC_SYSREG: u64 = 0x18;
    const EC_INSTRUCTION_ABORT: u64 = 0x20;
    const EC_DATA_ABORT: u64 = 0x24;

    /// Decodes the fault registers of an exit and x0.
    pub(crate) fn decode(syndrome: &layout::ExitSyndrome, x0: u64, geometry: &Geometry) -> Self {
        let layout::ExitSyndrome { esr, far, hpfar } = *syndrome;
        match bits(esr, 26, 6) {
            Self::EC_WFX => match bits(esr, 0, 2) {
                0 => Self::Wfi,
                1 => Self::Wfe,
                // RV, bit 9 of the ISS, says that the RMM has put the timeout into x0.
                2 => Self::WfiTimeout((bits(esr, 9, 1) != 0).then_some(x0)),
                _ => Self::WfeTimeout((bits(esr, 9, 1) != 0).then_some(x0)),
            },
            Self::EC_SYSREG => Self::SysReg(SysRegAccess {
                register: SysReg {
                    op0: bits(esr, 20, 2) as u8,
                    op1: bits(esr, 14, 3) as u8,
                    crn: bits(esr, 10, 4) as u8,
                    crm: bits(esr, 1, 4) as u8,
                    op2: bits(esr, 17, 3) as u8,
                },
                write: (bits(esr, 0, 1) == 0).then_some(x0),
                rt: bits(esr, 5, 5) as u8,
            }),
            Self::EC_DATA_ABORT => Self::decode_abort(syndrome, x0, geometry, Access::Data),
            Self::EC_INSTRUCTION_ABORT => {
                Self::decode_abort(syndrome, x0, geometry, Access::Instruction)
            }
            _ => Self::Other { esr, far, hpfar },
        }
    }

    fn decode_abort(
        syndrome: &layout::ExitSyndrome,
        x0: u64,
        geometry: &Geometry,
        access: Access,
    ) -> Self {
        let layout::ExitSyndrome { esr, far, hpfar } = *syndrome;
        let ipa = fault_page(hpfar);
        let status = bits(esr, 0, 6);
        // Fault status 0b010000 and 0b0100xx/0b0101xx are external aborts, on the access or a walk.
        if bits(status, 4, 2) == 1 && bits(status, 3, 1) == 0 {
            // SET: 0 recoverable, 2 uncontainable, 3 restartable; 1 is reserved.
            let recoverable = matches!(bits(esr, 11, 2), 0 | 3);
            return Self::ExternalAbort { esr, recoverable, ipa };
        }
        if ipa >= geometry.end() {
            return Self::Other { esr, far, hpfar };
        }
        if geometry.is_protected(ipa) {
            return Self::ProtectedFault { ipa, access };
        }
        let valid = bits(esr, 24, 1) != 0;
        if !valid || access == Access::Instruction {
            return Self::UnprotectedFault { ipa, access };
        }
        let width = 1u8 << bits(esr, 22, 2);
        let is_write = bits(esr, 6, 1) != 0;
        let mask = u64::MAX >> (64 - 8 * u32::from(width));
        Self::Mmio(Mmio {
            ipa: Ipa::new(ipa.get() | far & 0xfff),
            width,
            write: is_write.then_some(x0 & mask),
        })
    }
}

impl PsciRequest {
    /// Decodes x0 (function identifier, SMC32 or SMC64) and x1 of a PSCI exit.
    pub(crate) const fn decode(fid: u64, x1: u64) -> Self {
        const SMC64: u64 = 1 << 30;
        match fid & !SMC64 {
            0x8400_0001 => Self::CpuSuspend,
            0x8400_0002 => Self::CpuOff,
            0x8400_0003 => Self::CpuOn { mpidr: x1 },
            0x8400_0004 => Self::AffinityInfo { mpidr: x1 },
            0x8400_0008 => Self::SystemOff,
            0x8400_0009 => Self::SystemReset,
            _ => Self::Other { fid },
        }
    }

    /// MPIDR of the REC that the answer concerns, if the host must answer.
    #[must_use]
    pub const fn target(&self) -> Option<u64> {
        match self {
            Self::CpuOn { mpidr } | Self::AffinityInfo { mpidr } => Some(*mpidr),
            _ => None,
        }
    }
}
