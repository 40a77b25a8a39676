//! TLB maintenance for the EL1&0 regime of normal VMs (Arm ARM, D8.17 "TLB maintenance").

use super::sysreg::{read_sysreg, write_sysreg};
use core::arch::asm;
use mm::Ipa;
use mm::stage2::{Level, Scope, Tlb, Vmid};

macro_rules! maintain {
    ($($line:literal),+ $(, $name:ident = $value:expr)?) => {
        // SAFETY: barriers and TLB invalidations only make the hardware forget cached translations
        // of guests; EL2's own regime is not affected.
        unsafe { asm!($($line),+, $($name = in(reg) $value,)? options(nostack, preserves_flags)) }
    };
}

/// The TLBs of all cores, by broadcast instructions.
#[derive(Clone, Copy, Debug)]
pub struct Stage2Tlb;

/// Shift of the VMID in `VTTBR_EL2`.
const VMID_SHIFT: u32 = 48;

/// Tables that are loaded while no VM is: every walk of them ends at an invalid entry, which a TLB
/// does not keep. So whatever the core walks speculatively for the EL1&0 regime leaves no trace.
#[repr(C, align(8192))]
struct EmptyRoot([u64; 1024]);

static EMPTY_ROOT: EmptyRoot = EmptyRoot([0; 1024]);

/// Largest order of root tables (pages, log2) for which [`unload`] holds; checked at boot.
pub const MAX_ROOT_ORDER: u32 = 1;

/// `VTTBR_EL2` with `vmid` and no translations.
fn empty(vmid: u64) -> u64 {
    (&raw const EMPTY_ROOT).addr() as u64 | vmid << VMID_SHIFT
}

/// `VTTBR_EL2` of a core that runs no VM.
#[must_use]
pub fn no_tables() -> u64 {
    empty(0)
}

/// Loads the stage-2 tables of a VM on this core, after the EL1 registers that have been loaded.
pub fn load(vttbr: u64) {
    super::cpu::isb();
    write_sysreg!("vttbr_el2", vttbr);
    super::cpu::isb();
}

/// Forgets what this core has cached of the loaded VM's stage-1 translations.
///
/// A guest may use the same ASID for different tables on different vCPUs, as on different cores, and the
/// VMID cannot tell them apart.
pub fn invalidate_stage1_here() {
    maintain!("tlbi vmalle1", "dsb nsh", "isb");
}

/// Forgets every translation of every guest that this core has cached.
pub fn invalidate_guests_here() {
    maintain!("tlbi alle1", "dsb nsh", "isb");
}

/// Takes the stage-2 tables of a VM off this core.
pub fn unload() {
    load(no_tables());
}

/// Runs `f` with `vmid` in `VTTBR_EL2`, which selects what the instructions act on.
fn with_vmid(vmid: Vmid, f: impl FnOnce()) {
    let before = read_sysreg!("vttbr_el2");
    if before >> VMID_SHIFT == u64::from(vmid.get()) {
        f();
        return;
    }
    load(empty(u64::from(vmid.get())));
    f();
    load(before);
}

impl Tlb for Stage2Tlb {
    fn publish(&self) {
        maintain!("dsb ishst");
    }

    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, _level: Level, scope: Scope) {
        // Bits [35:0] are IPA[47:12]. The TTL hint in bits [47:44] stays 0: any level.
        let operand = ipa.get() >> 12;
        with_vmid(vmid, || match scope {
            Scope::Leaf => maintain!("tlbi ipas2le1is, {ipa}", ipa = operand),
            Scope::Walk => maintain!("tlbi ipas2e1is, {ipa}", ipa = operand),
        });
    }

    fn complete(&self, vmid: Vmid) {
        maintain!("dsb ish");
        with_vmid(vmid, || maintain!("tlbi vmalle1is"));
        maintain!("dsb ish", "isb");
    }

    fn invalidate_vmid(&self, vmid: Vmid) {
        maintain!("dsb ishst");
        with_vmid(vmid, || maintain!("tlbi vmalls12e1is"));
        maintain!("dsb ish", "isb");
    }
}

/// Forgets every translation of every guest on all cores: a VMID generation has begun.
pub fn invalidate_all_guests() {
    maintain!("dsb ishst", "tlbi alle1is", "dsb ish", "isb");
}
