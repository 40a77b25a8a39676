//! Register state of a REC, as plain data.
//!
//! The core owns the layout and changes the few registers that RMI, RSI and PSCI speak of. A
//! platform loads the state into the machine before a REC runs and stores it back afterwards.
//! Vector and floating-point state is not here: a platform keeps it in the second half of the REC
//! granule (see [`crate::Platform::run`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// EL1 and EL0 system registers of a REC, each by its architectural name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the architectural register of that name")]
pub struct El1State {
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub elr_el1: u64,
    pub spsr_el1: u64,
    pub tpidrro_el0: u64,
    pub tpidr_el0: u64,
    pub tpidr_el1: u64,
    pub csselr_el1: u64,
    pub sctlr_el1: u64,
    pub actlr_el1: u64,
    pub cpacr_el1: u64,
    pub ttbr0_el1: u64,
    pub ttbr1_el1: u64,
    pub tcr_el1: u64,
    pub esr_el1: u64,
    pub afsr0_el1: u64,
    pub afsr1_el1: u64,
    pub far_el1: u64,
    pub mair_el1: u64,
    pub amair_el1: u64,
    pub vbar_el1: u64,
    pub contextidr_el1: u64,
    pub cntkctl_el1: u64,
    pub par_el1: u64,
    pub mdscr_el1: u64,
    pub mdccint_el1: u64,
    pub disr_el1: u64,
    /// `VMPIDR_EL2`: what the REC reads as `MPIDR_EL1`.
    pub vmpidr_el2: u64,
    /// Virtual SError syndrome and pending bit are armed by setting this to 1 before a run; the
    /// platform sets `HCR_EL2.VSE` and stores back what is left of it.
    pub vse_pending: u64,
}

/// Generic timers of a REC. `CNTVOFF_EL2` and `CNTPOFF_EL2` of a REC are zero.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the architectural register of that name")]
pub struct TimerState {
    /// `CNTV_CTL_EL0`, with ISTATUS as it was at the exit.
    pub cntv_ctl: u64,
    pub cntv_cval: u64,
    /// `CNTP_CTL_EL0`, with ISTATUS as it was at the exit.
    pub cntp_ctl: u64,
    pub cntp_cval: u64,
}

/// Number of GIC list registers that the interface can carry.
pub const MAX_LRS: usize = 16;

/// Virtual CPU interface of a REC (`ICH_*_EL2`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[expect(missing_docs, reason = "each field is the architectural register of that name")]
pub struct GicState {
    pub ich_hcr: u64,
    pub ich_vmcr: u64,
    /// `ICH_MISR_EL2` as it was at the exit.
    pub ich_misr: u64,
    pub ich_lr: [u64; MAX_LRS],
    pub ich_ap0r: [u64; 4],
    pub ich_ap1r: [u64; 4],
}

/// All of a REC that the core knows and that a platform loads for a run.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecContext {
    /// x0 to x30.
    pub gprs: [u64; 31],
    /// Address of the next instruction (`ELR_EL2`).
    pub pc: u64,
    /// `SPSR_EL2`.
    pub pstate: u64,
    /// EL1 and EL0 system registers.
    pub el1: El1State,
    /// Generic timers.
    pub timers: TimerState,
    /// Virtual CPU interface.
    pub gic: GicState,
}
