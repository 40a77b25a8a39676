//! Registers of a core whose values are the same whenever no vCPU is loaded, to be compared with what
//! they were before the first one.

use super::sysreg::read_sysreg;
use super::{traps, vgic_hw};
use core::fmt;

/// A register, by its architectural name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    name: &'static str,
    index: Option<usize>,
}

impl Register {
    /// A register of which there is one.
    #[must_use]
    pub const fn one(name: &'static str) -> Self {
        Self { name, index: None }
    }

    /// One of many.
    #[must_use]
    pub const fn nth(name: &'static str, index: usize) -> Self {
        Self { name, index: Some(index) }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.index.map_or(Ok(()), |index| write!(f, "<{index}>"))
    }
}

/// Most registers that [`each`] shows.
pub const MAX: usize = 48 + vgic_hw::REGISTERS_MAX;

/// Shows what this core has in these registers: what traps and how EL2 itself runs, stage-2, the timers of
/// guests, the virtual CPU interface, and the physical one with its active priorities.
pub fn each(see: &mut dyn FnMut(Register, u64)) {
    /// `CNTx_CTL_EL0`: ENABLE and IMASK. ISTATUS tells nothing of a timer that is off.
    const TIMER_CONTROL: u64 = 0b11;
    macro_rules! show {
        ($($name:literal = $value:expr;)*) => { $(see(Register::one($name), $value);)* };
    }
    traps::each(see);
    show! {
        "VTTBR_EL2" = read_sysreg!("vttbr_el2");
        "VTCR_EL2" = read_sysreg!("vtcr_el2");
        "CNTHCTL_EL2" = read_sysreg!("cnthctl_el2");
        "CNTV_CTL_EL0" = read_sysreg!("cntv_ctl_el0") & TIMER_CONTROL;
        "CNTP_CTL_EL0" = read_sysreg!("cntp_ctl_el0") & TIMER_CONTROL;
        "SCTLR_EL2" = read_sysreg!("sctlr_el2");
        "TCR_EL2" = read_sysreg!("tcr_el2");
        "TTBR0_EL2" = read_sysreg!("ttbr0_el2");
        "MAIR_EL2" = read_sysreg!("mair_el2");
        "VBAR_EL2" = read_sysreg!("vbar_el2");
        "TPIDR_EL2" = read_sysreg!("tpidr_el2");
        "ICC_SRE_EL2" = read_sysreg!("S3_4_C12_C9_5");
        "ICC_PMR_EL1" = read_sysreg!("S3_0_C4_C6_0");
        "ICC_CTLR_EL1" = read_sysreg!("S3_0_C12_C12_4");
        "ICC_IGRPEN1_EL1" = read_sysreg!("S3_0_C12_C12_7");
        "ICC_AP1R0_EL1" = read_sysreg!("S3_0_C12_C9_0");
        "ICC_RPR_EL1" = read_sysreg!("S3_0_C12_C11_3");
    }
    vgic_hw::each(see);
}
