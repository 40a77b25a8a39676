//! The messages between a vCPU and the services of its VM.
//!
//! The run loop turns whatever made a vCPU leave its guest into an [`Exit`]: a trap syndrome for an
//! ordinary vCPU, the exit record of REC_ENTER for a REC. The answer is a [`Resume`]. Neither side
//! can tell from the messages which kind of vCPU is meant, except where the RMM reserves a question
//! to realms ([`Exit::RipasChange`], [`Exit::Psci`]).
//!
//! # Program counter
//!
//! A `Resume` that completes an instruction ([`Resume::Read`], [`Resume::Done`],
//! [`Resume::Results`], [`Resume::HostCallDone`], waiting ones) means that the guest goes on behind it. For an ordinary vCPU the run loop
//! adds 4 to ELR_EL2 (an HVC already returns behind itself); for a REC the RMM does it. A `Resume`
//! that injects an exception leaves the program counter at the trapped instruction.

use crate::ids::VcpuId;
use mm::Ipa;

/// Width of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Half,
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Double,
}

impl Width {
    /// Decodes the `SAS` field of a data abort syndrome (Arm ARM, ESR_ELx ISS for data aborts).
    #[must_use]
    pub const fn from_sas(sas: u64) -> Self {
        match sas & 0b11 {
            0b00 => Self::Byte,
            0b01 => Self::Half,
            0b10 => Self::Word,
            _ => Self::Double,
        }
    }

    /// Number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// Mask of the value bits that such an access carries.
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
            Self::Double => u64::MAX,
        }
    }
}

/// Direction of an access, with the data of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest loads.
    Read,
    /// The guest stores this value, already masked to the access width.
    Write(u64),
}

/// An access to an address without memory behind it, with a valid syndrome (`ISV`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioAccess {
    /// Address of the first byte. For a realm the run loop has taken the shared-alias bit away.
    pub ipa: Ipa,
    /// Width of the access.
    pub width: Width,
    /// Load, or store with its data.
    pub access: Access,
}

/// Registers that a trapped `MRS`/`MSR` named, as in the syndrome of exception class 0x18.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysReg(u32);

impl SysReg {
    /// Bits of the syndrome that name the register: Op0, Op2, Op1, CRn, CRm.
    const NAME_MASK: u32 = 0x003f_fc1e;

    /// The encoding: Op0, Op2, Op1, CRn and CRm where an ESR's ISS has them.
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.0
    }

    /// Names the register by its encoding.
    #[must_use]
    pub const fn new(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> Self {
        Self(
            (op0 & 3) << 20
                | (op2 & 7) << 17
                | (op1 & 7) << 14
                | (crn & 15) << 10
                | (crm & 15) << 1,
        )
    }

    /// Takes the name out of `ESR_ELx.ISS`; direction and `Rt` are left out.
    #[must_use]
    pub const fn from_iss(iss: u32) -> Self {
        Self(iss & Self::NAME_MASK)
    }

    /// ICC_SGI1R_EL1: generate a group 1 SGI.
    pub const ICC_SGI1R_EL1: Self = Self::new(3, 0, 12, 11, 5);
    /// ICC_ASGI1R_EL1: generate a group 1 SGI for the other security state.
    pub const ICC_ASGI1R_EL1: Self = Self::new(3, 0, 12, 11, 6);
    /// ICC_SGI0R_EL1: generate a group 0 SGI.
    pub const ICC_SGI0R_EL1: Self = Self::new(3, 0, 12, 11, 7);
    /// ICC_DIR_EL1: deactivate an interrupt.
    pub const ICC_DIR_EL1: Self = Self::new(3, 0, 12, 11, 1);
    /// ICC_SRE_EL1: system register enable of the CPU interface.
    pub const ICC_SRE_EL1: Self = Self::new(3, 0, 12, 12, 5);
}

impl core::fmt::Debug for SysReg {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let field = |shift: u32, mask: u32| (self.0 >> shift) & mask;
        write!(
            f,
            "S{}_{}_C{}_C{}_{}",
            field(20, 3),
            field(14, 7),
            field(10, 15),
            field(1, 15),
            field(17, 7)
        )
    }
}

/// Number of argument registers that a call by the SMC calling convention carries (x0 to x7).
pub const CALL_REGISTERS: usize = 8;
/// Number of registers that a host call carries (x0 to x30).
pub const HOST_CALL_REGISTERS: usize = 31;
/// General registers x0 to x30 of a vCPU that made a call. They go beside the [`Exit`], which is
/// passed along for every kind of exit and is therefore kept small.
pub type Registers = [u64; HOST_CALL_REGISTERS];

/// A PSCI request of a realm that its RMM reports to the host (RMM specification, REC exit due to PSCI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciNotice {
    /// The REC suspended itself; the RMM has already answered it.
    CpuSuspend,
    /// The REC turned itself off and is not runnable any more.
    CpuOff,
    /// The REC wants the one with this MPIDR turned on; it waits for RMI_PSCI_COMPLETE.
    CpuOn {
        /// Affinity fields of the target.
        target: u64,
    },
    /// The REC asks whether the one with this MPIDR is on; it waits for RMI_PSCI_COMPLETE.
    AffinityInfo {
        /// Affinity fields of the target.
        target: u64,
    },
    /// The realm turned itself off.
    SystemOff,
    /// The realm wants to be restarted: its memory and RECs are void.
    SystemReset,
}

/// What kind of wait a vCPU entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitKind {
    /// WFI or WFIT.
    Interrupt,
    /// WFE or WFET.
    Event,
}

/// State of IPA space that a realm asks for (RSI_IPA_STATE_SET).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ripas {
    /// Not the realm's: to be shared with the host or left without memory.
    Empty,
    /// The realm's private memory.
    Ram,
}

/// Why a vCPU left its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An emulatable access to an address without memory.
    Mmio(MmioAccess),
    /// A fault that is not an emulatable device access: no memory, and no valid syndrome or an
    /// instruction fetch.
    ///
    /// Faults that the hypervisor mends by mapping memory never come here.
    Stage2Fault {
        /// Address of the fault; only its page is certain.
        ipa: Ipa,
        /// Whether an instruction fetch faulted.
        fetch: bool,
        /// Whether it was a store.
        write: bool,
    },
    /// `HVC #0` or `SMC #0`: a call by the SMC calling convention (Arm DEN 0028), with x0 to x7 of
    /// [`Registers`].
    Smccc {
        /// Function identifier (w0).
        function: u32,
    },
    /// `HVC #imm` with another immediate, or a realm's RSI_HOST_CALL: see [`crate::host_call`]. All of
    /// [`Registers`] belong to it.
    HostCall {
        /// The immediate.
        imm: u16,
    },
    /// A PSCI request that a realm's RMM reports.
    Psci(PsciNotice),
    /// The guest waits; `deadline` is the virtual count at which WFIT or WFET ends by itself.
    Wait {
        /// WFI or WFE.
        kind: WaitKind,
        /// Value of CNTVCT_EL0 at which the wait ends, if any.
        deadline: Option<u64>,
    },
    /// A trapped system register access.
    SysReg {
        /// The register.
        reg: SysReg,
        /// Read, or write with the value.
        access: Access,
    },
    /// A realm asks for a change of RIPAS of `[base, top)`; both are page aligned.
    RipasChange {
        /// First address.
        base: Ipa,
        /// End address, exclusive.
        top: Ipa,
        /// Wanted state.
        to: Ripas,
    },
    /// A physical interrupt was taken. The run loop deals with it; services have nothing to do.
    Interrupt,
    /// The guest did something that has no answer.
    Fatal(FatalCause),
}

/// Why a guest cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatalCause {
    /// An exception class that nothing is known to be done about.
    UnknownException {
        /// ESR_EL2.
        esr: u64,
    },
    /// A synchronous or asynchronous external abort out of the guest's doing.
    ExternalAbort {
        /// ESR_EL2.
        esr: u64,
        /// Faulting address, zero where the syndrome has none.
        ipa: u64,
    },
    /// The host has no memory for the tables that are to map RAM which the guest touched.
    OutOfMemory {
        /// The guest's address.
        ipa: u64,
    },
    /// A granule protection fault: the VM's stage-2 led to memory of another world.
    GranuleProtection {
        /// The guest's address.
        ipa: u64,
    },
}

/// Answer to a realm's request for another REC, to be given by RMI_PSCI_COMPLETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciVerdict {
    /// PSCI SUCCESS.
    Success,
    /// PSCI DENIED.
    Denied,
}

/// Why a VM has to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest made an exit that has no answer.
    Fatal(FatalCause),
    /// Exit and services disagree about what kind of guest this is.
    Protocol(&'static str),
}

/// What a vCPU is to do next.
///
/// Everything that concerns other vCPUs of the VM is in [`crate::Response`], or in the variant
/// itself for power operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Enter the guest again; nothing is to be written, the program counter stays.
    Continue,
    /// A load or register read is done; the value is zero extended to 64 bits.
    ///
    /// For a load, sign extension and truncation to the destination register are the run loop's
    /// (ordinary vCPU, from `SSE` and `SF` of the syndrome) or the RMM's.
    Read(u64),
    /// A store or register write is done.
    Done,
    /// A call is done: these are the new x0 to x3, and x4 to x17 stay (Arm DEN 0028 section 2.6).
    Results([u64; 4]),
    /// A host call is done: this is the new x0, and all other registers stay.
    HostCallDone(u64),
    /// Deliver a synchronous external abort for the access that faulted.
    InjectExternalAbort,
    /// Deliver an Undefined exception (exception class 0) for the instruction that trapped.
    InjectUndefined,
    /// The wait instruction is done, but the vCPU has nothing to do until an event for it: a virtual
    /// interrupt that [`crate::vgic::Vgic::has_pending`] reports, its timer, or the deadline.
    Block {
        /// Value of CNTVCT_EL0 at which the wait ends by itself.
        deadline: Option<u64>,
    },
    /// PSCI CPU_SUSPEND is done with SUCCESS in x0, and then as for [`Resume::Block`] without a
    /// deadline. (The RMM has answered a REC already; nothing is written for it.)
    Suspend,
    /// This vCPU goes into a powerdown state: as for [`Resume::Block`] without a deadline, and then it
    /// starts at `entry` with `context` in x0, as after [`Resume::CpuOn`]. It keeps its timers and
    /// its interrupts, those in the CPU interface included.
    PowerDown {
        /// First instruction.
        entry: Ipa,
        /// Value for x0.
        context: u64,
    },
    /// The wait instruction is done; let others run first.
    Yield,
    /// Call done with PSCI SUCCESS in x0; `target` is to start at `entry` with `context` in x0,
    /// EL1h, MMU off, interrupts masked. Its PSCI state is already "on".
    CpuOn {
        /// vCPU to start.
        target: VcpuId,
        /// First instruction.
        entry: Ipa,
        /// Value for x0.
        context: u64,
    },
    /// This vCPU is off. Its state is void.
    CpuOff,
    /// Complete the pending PSCI request of this REC towards `target` with RMI_PSCI_COMPLETE, then
    /// enter it again. After a CPU_ON, [`crate::VmServices::cpu_on_completed`] says whether to start
    /// `target`.
    PsciComplete {
        /// REC that the request names.
        target: VcpuId,
        /// Whether the host agrees.
        verdict: PsciVerdict,
        /// Whether the request is CPU_ON.
        cpu_on: bool,
    },
    /// All vCPUs of the VM are to stop: the guest turned itself off.
    SystemOff,
    /// All vCPUs of the VM are to stop: the guest wants to start over.
    SystemReset,
    /// Let the realm have its RIPAS change.
    RipasAccept,
    /// Refuse the RIPAS change.
    RipasReject,
    /// All vCPUs of the VM are to stop: it cannot go on.
    Stop(StopReason),
}

impl Resume {
    /// Whether the vCPU enters its guest again once its registers are written, with nothing else to be
    /// done for it.
    #[inline]
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        matches!(
            self,
            Self::Continue
                | Self::Read(_)
                | Self::Done
                | Self::Results(_)
                | Self::HostCallDone(_)
                | Self::InjectExternalAbort
                | Self::InjectUndefined
        )
    }
}
