//! EL1 and EL0 state of a normal vCPU that stays in the registers of a core while the vCPU runs
//! and is exchanged only when the core runs another one.
//!
//! RECs do not use this: their state is kept by the RMM. The RMM preserves the EL1 state of the
//! normal world across `REC_ENTER`, but not every register of it is named by the specification,
//! so a vCPU is always unloaded before a REC runs on its core.

use super::sysreg::{read_sysreg, write_sysreg};

macro_rules! register_file {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $register:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        struct $name {
            $($field: u64,)*
        }

        impl $name {
            /// Reads each register into its field.
            fn save(&mut self) {
                $(self.$field = read_sysreg!($register);)*
            }

            /// Writes each register from its field.
            fn restore(&self) {
                $(write_sysreg!($register, self.$field);)*
            }
        }
    };
}

register_file! {
    /// Registers of every Armv8.0 core.
    Base {
        sctlr = "sctlr_el1",
        actlr = "actlr_el1",
        cpacr = "cpacr_el1",
        ttbr0 = "ttbr0_el1",
        ttbr1 = "ttbr1_el1",
        tcr = "tcr_el1",
        esr = "esr_el1",
        far = "far_el1",
        afsr0 = "afsr0_el1",
        afsr1 = "afsr1_el1",
        mair = "mair_el1",
        amair = "amair_el1",
        vbar = "vbar_el1",
        contextidr = "contextidr_el1",
        tpidr_el0 = "tpidr_el0",
        tpidrro_el0 = "tpidrro_el0",
        tpidr_el1 = "tpidr_el1",
        sp_el0 = "sp_el0",
        sp_el1 = "sp_el1",
        elr = "elr_el1",
        spsr = "spsr_el1",
        par = "par_el1",
        csselr = "csselr_el1",
        cntkctl = "cntkctl_el1",
        vmpidr = "vmpidr_el2",
        cntvoff = "cntvoff_el2",
        cntv_cval = "cntv_cval_el0",
        cntv_ctl = "cntv_ctl_el0",
        cntp_cval = "cntp_cval_el0",
        cntp_ctl = "cntp_ctl_el0",
    }
}

register_file! {
    /// Pointer authentication keys (FEAT_PAuth).
    PointerKeys {
        ia_lo = "S3_0_C2_C1_0", ia_hi = "S3_0_C2_C1_1",
        ib_lo = "S3_0_C2_C1_2", ib_hi = "S3_0_C2_C1_3",
        da_lo = "S3_0_C2_C2_0", da_hi = "S3_0_C2_C2_1",
        db_lo = "S3_0_C2_C2_2", db_hi = "S3_0_C2_C2_3",
        ga_lo = "S3_0_C2_C3_0", ga_hi = "S3_0_C2_C3_1",
    }
}

/// What a core holds for the vCPU that it runs.
#[derive(Clone, Debug)]
pub struct El1State {
    base: Base,
    keys: PointerKeys,
}

/// `SCTLR_EL1` of a vCPU that starts: MMU and caches off, RES1 bits of Armv8.0 set.
const SCTLR_RESET: u64 = 0x30d0_0800;

impl El1State {
    /// State of a vCPU at power-on (PSCI `CPU_ON`, or the first vCPU of a VM).
    ///
    /// `mpidr` is what the guest reads as its `MPIDR_EL1`; `counter_offset`, in timer ticks, is
    /// subtracted from the physical counter to give its virtual counter.
    #[must_use]
    pub fn at_reset(mpidr: u64, counter_offset: u64) -> Self {
        let base =
            Base { sctlr: SCTLR_RESET, vmpidr: mpidr, cntvoff: counter_offset, ..Base::default() };
        Self { base, keys: PointerKeys::default() }
    }

    /// Resets the state that this core has loaded, but for the identity and the timers of the vCPU.
    pub fn power_down(&mut self) {
        self.save();
        let Base { vmpidr, cntvoff, cntv_cval, cntv_ctl, cntp_cval, cntp_ctl, .. } = self.base;
        *self = Self::at_reset(vmpidr, cntvoff);
        self.base = Base { cntv_cval, cntv_ctl, cntp_cval, cntp_ctl, ..self.base.clone() };
        self.restore();
    }

    /// Takes the state out of this core's registers and stops the guest's timers on it.
    pub fn save(&mut self) {
        self.base.save();
        super::timer::stop_guest_timers();
        if super::id_regs::has_pointer_authentication() {
            self.keys.save();
        }
    }

    /// Puts the state into this core's registers.
    pub fn restore(&self) {
        self.base.restore();
        if super::serror::has_ras() {
            // What EL1 reads and writes as DISR_EL1, which no trap keeps from it, and the syndrome of a
            // virtual SError.
            write_sysreg!("S3_4_C12_C1_1", 0);
            write_sysreg!("S3_4_C5_C2_3", 0);
        }
        if super::id_regs::has_pointer_authentication() {
            self.keys.restore();
        }
    }

    /// Ticks between the physical and the guest's virtual counter.
    #[must_use]
    pub fn counter_offset(&self) -> u64 {
        self.base.cntvoff
    }
}

/// Turns stage 1 of this core's EL1 off, whatever ran there before the hypervisor, so that nothing is
/// walked for it.
pub fn reset_translation() {
    write_sysreg!("sctlr_el1", SCTLR_RESET);
    super::cpu::isb();
}

/// Value of the physical counter at which the first timer of the loaded vCPU fires that can, among those
/// asked for; `None` while none can.
#[must_use]
pub fn timer_deadline(virtual_timer: bool, physical_timer: bool) -> Option<u64> {
    /// `CNTx_CTL_EL0`: ENABLE, and IMASK clear.
    const ENABLED: u64 = 0b01;
    const IMASK_ENABLE: u64 = 0b11;
    let armed = |control: u64| control & IMASK_ENABLE == ENABLED;
    // A guest that wants none sets the largest value, which must not wrap into the past.
    let virtual_timer = (virtual_timer && armed(read_sysreg!("cntv_ctl_el0")))
        .then(|| read_sysreg!("cntv_cval_el0").saturating_add(read_sysreg!("cntvoff_el2")));
    let physical_timer = (physical_timer && armed(read_sysreg!("cntp_ctl_el0")))
        .then(|| read_sysreg!("cntp_cval_el0"));
    [virtual_timer, physical_timer].into_iter().flatten().min()
}

/// Translates a virtual address of the loaded vCPU by its own stage-1 tables, as a read at EL1;
/// `None` if they do not map it. For faults whose IPA the core does not report.
#[must_use]
pub fn translate(virtual_address: u64) -> Option<mm::Ipa> {
    /// `PAR_EL1.F`: the translation failed.
    const FAILED: u64 = 1;
    /// `PAR_EL1.PA`, bits [51:12].
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    let result = super::probe::translate(virtual_address)?;
    (result & FAILED == 0).then(|| mm::Ipa::new(result & ADDRESS | virtual_address & 0xfff))
}

/// Whether data accesses of the loaded vCPU, in the state `pstate`, are big-endian.
#[must_use]
pub fn is_big_endian(pstate: u64) -> bool {
    /// `SCTLR_EL1.EE` and `E0E`.
    const EE: u64 = 1 << 25;
    const E0E: u64 = 1 << 24;
    let control = if pstate & 0xf == 0 { E0E } else { EE };
    read_sysreg!("sctlr_el1") & control != 0
}

/// Bits of `SPSR_EL2` for an exception taken to EL1h with D, A, I and F masked.
const PSTATE_EL1H_MASKED: u64 = 0x3c5;
/// `PSTATE.PAN`.
const PSTATE_PAN: u64 = 1 << 22;
/// `PSTATE.DIT`, which exceptions leave as it is.
const PSTATE_DIT: u64 = 1 << 24;
/// `SCTLR_EL1.SPAN`: an exception leaves PAN as it is.
const SCTLR_SPAN: u64 = 1 << 23;
/// `SCTLR_EL1.DSSBS`: what an exception makes of `PSTATE.SSBS`.
const SCTLR_DSSBS: u64 = 1 << 44;
/// `PSTATE.SSBS`.
const PSTATE_SSBS: u64 = 1 << 12;
/// `ESR_ELx.IL`: the instruction was 32 bits long.
const ESR_IL: u64 = 1 << 25;

/// Processor state of a vCPU at its first instruction: EL1h, all exceptions masked.
pub const PSTATE_RESET: u64 = PSTATE_EL1H_MASKED;

/// An exception that the hypervisor delivers to the guest at EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// Undefined instruction (exception class 0).
    Undefined,
    /// Synchronous external abort of a data access at virtual address `far`.
    DataAbort {
        /// What the guest reads in `FAR_EL1`.
        far: u64,
    },
    /// Synchronous external abort of an instruction fetch at virtual address `far`.
    InstructionAbort {
        /// What the guest reads in `FAR_EL1`.
        far: u64,
    },
}

/// Makes the loaded vCPU take `injection` as its next instruction (Arm ARM, D1.3 "Exceptions").
pub fn inject(context: &mut super::guest::GuestContext, injection: Injection) {
    /// Status code of a synchronous external abort, not on a table walk.
    const EXTERNAL_ABORT: u64 = 0x10;
    let from = context.pstate & 0x1f;
    // M[3:0] 0 is EL0; M[4] says AArch32, which EL1 of a guest never is.
    let (offset, same_el) = match from {
        0b0_0000 => (0x400, false),
        0b0_0100 => (0x000, true),
        0b0_0101 => (0x200, true),
        _ => (0x600, false),
    };
    let class = |lower: u64| (lower + u64::from(same_el)) << 26 | ESR_IL | EXTERNAL_ABORT;
    let esr = match injection {
        Injection::Undefined => ESR_IL,
        Injection::DataAbort { far } => {
            write_sysreg!("far_el1", far);
            class(0x24)
        }
        Injection::InstructionAbort { far } => {
            write_sysreg!("far_el1", far);
            class(0x20)
        }
    };
    write_sysreg!("esr_el1", esr);
    write_sysreg!("elr_el1", context.pc);
    write_sysreg!("spsr_el1", context.pstate);
    let sctlr = read_sysreg!("sctlr_el1");
    let pan = if sctlr & SCTLR_SPAN == 0 { PSTATE_PAN } else { context.pstate & PSTATE_PAN };
    let ssbs = if sctlr & SCTLR_DSSBS == 0 { 0 } else { PSTATE_SSBS };
    context.pstate = PSTATE_EL1H_MASKED | pan | ssbs | context.pstate & PSTATE_DIT;
    context.pc = read_sysreg!("vbar_el1").wrapping_add(offset);
}
