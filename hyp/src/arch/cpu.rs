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
