//! The machine under the core: `rmm::Platform` on the CPU that runs this.

use core::arch::asm;

use rmm::platform::{GptRefused, GranuleFault, MachineFeatures, Stage2Regime, SysRegIss, Traps};
use rmm::{GicState, GranuleSlot, Ipa, Pa, Platform, RawExit, RecContext};

use crate::sysreg::{self, read, write};
use crate::vector_state::{self, Private};
use crate::{el3, memory, vgic};

/// HCR_EL2 while a REC runs; WFI and WFE traps come on top.
///
/// VM, SWIO, FMO, IMO, AMO: stage 2 is on and every physical interrupt exits. TID3: ID registers are
/// answered by the core. TSC, TIDCP, TACR, TSW: calls, implementation defined
/// registers and cache maintenance by set and way exit. TERR, TEA: errors come here. FWB: the
/// attributes of stage 2 alone decide, so caches cannot be bypassed. API, APK: pointer
/// authentication is the realm's own. E2H and TGE are clear: this image runs in the classic regime.
const HCR_REC: u64 = 1 << 0 // VM
    | 1 << 1 // SWIO
    | 1 << 3 // FMO
    | 1 << 4 // IMO
    | 1 << 5 // AMO
    | 1 << 18 // TID3
    | 1 << 19 // TSC
    | 1 << 20 // TIDCP
    | 1 << 21 // TACR
    | 1 << 22 // TSW
    | 1 << 31 // RW
    | 1 << 36 // TERR
    | 1 << 37 // TEA
    | 1 << 40 // APK
    | 1 << 41 // API
    | 1 << 46; // FWB
const HCR_VSE: u64 = 1 << 8;
const HCR_TWI: u64 = 1 << 13;
const HCR_TWE: u64 = 1 << 14;

/// CNTHCTL_EL2 (E2H clear): EL1PCTEN and EL1PCEN, so the physical counter and timer do not trap.
const CNTHCTL_REC: u64 = 0b11;
const CNTHCTL_CNTVMASK: u64 = 1 << 18;
const CNTHCTL_CNTPMASK: u64 = 1 << 19;

/// INTIDs of the EL1 timers' private interrupts.
const VIRTUAL_TIMER: u64 = 27;
const PHYSICAL_TIMER: u64 = 30;

/// Granules of all RAM that the translation tables show.
const SLOTS: usize = ((memory::RAM_END - memory::RAM_BASE) / memory::GRANULE as u64) as usize;

/// State of every granule. Its section lies in fresh memory that the entry code clears.
#[unsafe(link_section = ".slots")]
pub(crate) static GRANULES: [GranuleSlot; SLOTS] = [const { GranuleSlot::new() }; SLOTS];

unsafe extern "C" {
    /// Enters a REC and comes back with the kind of exception that ended its run.
    ///
    /// # Safety
    /// EL1 state, stage 2 and the traps must be the REC's.
    fn rec_enter(context: *mut RecContext) -> u64;
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine;

/// Sets up what stays the same on this CPU for as long as it is on. EL3 keeps it for the Realm
/// world across the host's turns.
pub(crate) fn init_cpu() {
    // Debug and PMU registers trap: TPMCR, TPM, TDA, TDOSA, TDRA, TTRF.
    const MDCR_TRAPS: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 19;
    vector_state::init_cpu();
    write!("mdcr_el2", read!("mdcr_el2") | MDCR_TRAPS);
    write!("cnthctl_el2", CNTHCTL_REC);
    write!("cntvoff_el2", 0);
    write!("vpidr_el2", read!("midr_el1"));
    write!("hstr_el2", 0);
    write!("ich_hcr_el2", 0);
    isb();
}

impl Platform for Machine {
    fn granule_slots(&self) -> &[GranuleSlot] {
        &GRANULES
    }

    fn features(&self) -> MachineFeatures {
        // A reserved value counts as the largest width that the core can use.
        const PA_BITS: [u8; 8] = [32, 36, 40, 42, 44, 48, 52, 52];
        let debug = read!("id_aa64dfr0_el1");
        MachineFeatures {
            pa_bits: PA_BITS[(read!("id_aa64mmfr0_el1") & 7) as usize],
            num_bps: (debug >> 12 & 0xf) as u8,
            num_wps: (debug >> 20 & 0xf) as u8,
            ich_vtr: read!("ich_vtr_el2"),
            gic_ext_range: read!("icc_ctlr_el1") >> 19 & 1 == 1,
            vmid_bits: if read!("id_aa64mmfr1_el1") >> 4 & 0xf == 2 { 16 } else { 8 },
        }
    }

    fn gpt_delegate(&self, pa: Pa) -> Result<(), GptRefused> {
        el3::delegate(pa.0).map_err(|_| GptRefused)
    }

    fn gpt_undelegate(&self, pa: Pa) -> Result<(), GptRefused> {
        el3::undelegate(pa.0).map_err(|_| GptRefused)
    }

    fn read_ns(&self, pa: Pa, buf: &mut [u8]) -> Result<(), GranuleFault> {
        memory::read_nonsecure(pa, buf)
    }

    fn write_ns(&self, pa: Pa, bytes: &[u8]) -> Result<(), GranuleFault> {
        memory::write_nonsecure(pa, bytes)
    }

    fn read_realm(&self, pa: Pa, buf: &mut [u8]) {
        memory::read_realm(pa, buf);
    }

    fn write_realm(&self, pa: Pa, bytes: &[u8]) {
        memory::write_realm(pa, bytes);
    }

    fn zero_granule(&self, pa: Pa) {
        memory::zero_granule(pa);
    }

    fn read_descriptor(&self, pa: Pa) -> u64 {
        memory::read_descriptor(pa)
    }

    fn write_descriptor(&self, pa: Pa, value: u64) {
        memory::write_descriptor(pa, value);
    }

    fn tlb_invalidate(&self, regime: Stage2Regime, ipa: Ipa, size: u64) {
        /// More pages than this are not worth an instruction each.
        const MOST_PAGES: u64 = 512;
        let pages = size / memory::GRANULE as u64;
        if pages > MOST_PAGES {
            return self.tlb_invalidate_all(regime);
        }
        use_regime(regime);
        let first = ipa.0 >> 12;
        for page in first..first + pages {
            // SAFETY: invalidating translations of a realm takes nothing from this image.
            unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page, options(nostack)) }
        }
        // SAFETY: as above. Stage-1 entries that were combined with the old ones go second.
        unsafe { asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) }
    }

    fn tlb_invalidate_all(&self, regime: Stage2Regime) {
        use_regime(regime);
        // SAFETY: invalidating translations of a realm takes nothing from this image.
        unsafe { asm!("tlbi vmalls12e1is", "dsb ish", "isb", options(nostack)) }
    }

    /// The granule is all zeroes, which are good vector registers and keys for a start. Auxiliary
    /// granules are not used.
    fn init_rec(&self, _rec: Pa, _aux: &[Pa]) {}

    fn destroy_rec(&self, _rec: Pa) {}

    fn run(
        &self,
        rec: Pa,
        context: &mut RecContext,
        regime: Stage2Regime,
        traps: Traps,
    ) -> RawExit {
        let mut host_el1 = rmm::El1State::default();
        sysreg::store_el1(&mut host_el1);
        let host_timers = sysreg::store_timers();
        let private = memory::rec_private::<Private>(rec);
        // SAFETY: the second half of a REC granule is this, and the core lets one CPU run it at a time.
        let private = unsafe { &mut *private };

        vector_state::host_to_rec(private);
        sysreg::load_el1(&context.el1);
        write!("vmpidr_el2", context.el1.vmpidr_el2);
        vgic::load(&context.gic);
        load_timers(context, traps);
        load_vdisr(context.el1.disr_el1);
        use_regime(regime);
        write!("hcr_el2", hcr(context, traps));
        isb();

        // SAFETY: all of the state above is the REC's, and the core lets one CPU run it at a time.
        let kind = unsafe { rec_enter(context) };
        let exit = exit_of(kind);

        context.el1.vse_pending = u64::from(read!("hcr_el2") & HCR_VSE != 0);
        write!("hcr_el2", 0);
        context.el1.disr_el1 = store_vdisr();
        context.timers = sysreg::store_timers();
        write!("cnthctl_el2", CNTHCTL_REC);
        vgic::store(&mut context.gic);
        sysreg::store_el1(&mut context.el1);
        vector_state::rec_to_host(private);

        sysreg::load_timers(&host_timers);
        sysreg::load_el1(&host_el1);
        isb();
        exit
    }

    fn host_cpu_interface(&self) -> GicState {
        vgic::read()
    }

    fn set_host_cpu_interface(&self, state: &GicState) {
        vgic::load(state);
    }

    fn id_register(&self, register: SysRegIss) -> u64 {
        const AA64_ID_SPACE: u64 = 0b11 << 20;
        const OP0_OP1_CRN: u64 = 0b11 << 20 | 0b111 << 14 | 0b1111 << 10;
        if register.0 & OP0_OP1_CRN != AA64_ID_SPACE {
            return 0;
        }
        sysreg::id_register(register.0 >> 1 & 0xf, register.0 >> 17 & 7)
    }

    fn counter(&self) -> u64 {
        isb();
        read!("cntpct_el0")
    }
}

fn hcr(context: &RecContext, traps: Traps) -> u64 {
    let mut hcr = HCR_REC;
    for (set, bit) in
        [(traps.wfi, HCR_TWI), (traps.wfe, HCR_TWE), (context.el1.vse_pending != 0, HCR_VSE)]
    {
        if set {
            hcr |= bit;
        }
    }
    hcr
}

/// Loads the REC's timers with their outputs masked as the core asks, and lets the mask reach the
/// interrupt controller, so that an interrupt which the host knows of does not end the run at once.
fn load_timers(context: &RecContext, traps: Traps) {
    const PATIENCE: u32 = 10_000;
    let mut cnthctl = CNTHCTL_REC;
    if traps.mask_cntv {
        cnthctl |= CNTHCTL_CNTVMASK;
    }
    if traps.mask_cntp {
        cnthctl |= CNTHCTL_CNTPMASK;
    }
    write!("cnthctl_el2", cnthctl);
    isb();
    sysreg::load_timers(&context.timers);
    isb();
    for _ in 0..PATIENCE {
        let pending = read!("icc_hppir1_el1") & 0xff_ffff;
        let masked = pending == VIRTUAL_TIMER && traps.mask_cntv
            || pending == PHYSICAL_TIMER && traps.mask_cntp;
        if !masked {
            break;
        }
        core::hint::spin_loop();
    }
}

/// What the exception that ended a run means to the core.
fn exit_of(kind: u64) -> RawExit {
    let esr = read!("esr_el2");
    match kind {
        0 => RawExit::Sync { esr, far: read!("far_el2"), hpfar: read!("hpfar_el2") },
        1 => RawExit::Irq,
        2 => RawExit::Fiq,
        _ => RawExit::SError { esr },
    }
}

/// Loads the virtual deferred interrupt status, which is what a REC sees as `DISR_EL1`.
fn load_vdisr(value: u64) {
    if has_ras() {
        write!("S3_4_C12_C1_1", value);
    }
}

fn store_vdisr() -> u64 {
    if has_ras() { read!("S3_4_C12_C1_1") } else { 0 }
}

fn has_ras() -> bool {
    read!("id_aa64pfr0_el1") >> 28 & 0xf != 0
}

/// Makes a realm's stage 2 the current one, for its run or for the invalidation of its TLB entries.
fn use_regime(regime: Stage2Regime) {
    write!("vtcr_el2", regime.vtcr);
    write!("vttbr_el2", regime.vttbr);
    isb();
    // Descriptors that were written before must be visible before what comes next.
    // SAFETY: a barrier changes nothing.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) }
}

/// Lets all register writes before it take effect.
pub(crate) fn isb() {
    // SAFETY: a barrier changes nothing.
    unsafe { asm!("isb", options(nostack, preserves_flags)) }
}
