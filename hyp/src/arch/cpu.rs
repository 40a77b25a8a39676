//! Small operations on the core itself.

use aarch64_cpu::registers::{DAIF, MPIDR_EL1, Readable, Writeable};

/// Affinity bits of `MPIDR_EL1`: Aff3 in [39:32], Aff2 to Aff0 in [23:0].
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// Instruction synchronization barrier: system register writes before it have taken effect.
pub fn isb() {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// Affinity of this core, as in the `reg` of its node in the device tree.
#[must_use]
pub fn affinity() -> u64 {
    MPIDR_EL1.get() & MPIDR_AFFINITY
}

/// Waits until an interrupt is pending, masked or not.
pub fn wait_for_interrupt() {
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
    aarch64_cpu::asm::wfi();
}

/// Stops this core for good.
pub fn park() -> ! {
    DAIF.write(DAIF::D::Masked + DAIF::A::Masked + DAIF::I::Masked + DAIF::F::Masked);
    loop {
        wait_for_interrupt();
    }
}

/// Whether this core implements the Realm Management Extension (`ID_AA64PFR0_EL1.RME`, bits
/// [55:52], not 0).
#[must_use]
pub fn has_rme() -> bool {
    aarch64_cpu::registers::ID_AA64PFR0_EL1.get() >> 52 & 0xf != 0
}

/// Whether stage 2 can force Normal memory to be write-back cacheable (FEAT_S2FWB):
/// `ID_AA64MMFR2_EL1.FWB`, bits [43:40].
#[must_use]
pub fn has_forced_write_back() -> bool {
    super::sysreg::read_sysreg!("id_aa64mmfr2_el1") >> 40 & 0xf != 0
}

/// Whether this core may report a stage-2 fault where stage 1 faults: erratum 834220 of Cortex-A57 up to
/// r1p2.
#[must_use]
pub fn has_erratum_834220() -> bool {
    /// `MIDR_EL1` without variant (bits [23:20]) and revision (bits [3:0]).
    const CORTEX_A57: u64 = 0x410f_d070;
    let midr = super::sysreg::read_sysreg!("midr_el1");
    midr & 0xff0f_fff0 == CORTEX_A57 && (midr >> 16 & 0xf0 | midr & 0xf) <= 0x12
}

/// What this core has of the features that the boot core decided on for all: forced write-back, widths of
/// physical addresses and VMIDs, realms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    forced_write_back: bool,
    pa_range: u64,
    vmid_bits: u64,
    realms: bool,
}

impl Features {
    /// Those of this core.
    #[must_use]
    pub fn here() -> Self {
        let field = |register: u64, shift: u32| register >> shift & 0xf;
        Self {
            forced_write_back: has_forced_write_back(),
            pa_range: field(super::sysreg::read_sysreg!("id_aa64mmfr0_el1"), 0),
            vmid_bits: field(super::sysreg::read_sysreg!("id_aa64mmfr1_el1"), 4),
            realms: field(super::sysreg::read_sysreg!("id_aa64pfr0_el1"), 52) != 0,
        }
    }

    /// Whether a core with these can do what was decided on one with `others`: tables that are shared have
    /// one format, and the rest may not be less.
    #[must_use]
    pub fn suffice_for(self, others: Self) -> bool {
        self.forced_write_back == others.forced_write_back
            && self.pa_range >= others.pa_range
            && self.vmid_bits >= others.vmid_bits
            && self.realms == others.realms
    }
}

/// Whether `HCR_EL2.E2H` can be 0: `ID_AA64MMFR4_EL1.E2H0`, bits [27:24], is not negative.
#[must_use]
pub fn has_classic_el2() -> bool {
    let mmfr4: u64;
    // SAFETY: reading this ID register (op0 3, op1 0, CRn 0, CRm 7, op2 4) has no side effects;
    // its encoding reads as zero where the register is not implemented.
    unsafe {
        core::arch::asm!("mrs {0}, S3_0_C0_C7_4", out(reg) mmfr4,
            options(nomem, nostack, preserves_flags));
    }
    mmfr4 >> 24 & 8 == 0
}

/// Bits of physical address that this core implements, at most 48 (`ID_AA64MMFR0_EL1.PARange`).
#[must_use]
pub fn physical_address_bits() -> u32 {
    match aarch64_cpu::registers::ID_AA64MMFR0_EL1.get() & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}
