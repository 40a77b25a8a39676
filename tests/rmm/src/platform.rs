//! What the core needs from the machine under it.

use crate::addr::{Ipa, Pa};
use crate::context::{GicState, RecContext};
use crate::granule::GranuleSlot;

/// A copy to or from a Non-secure granule took a granule protection fault: the granule is not in
/// the Non-secure physical address space any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GranuleFault;

/// EL3 refused to move a granule between physical address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GptRefused;

/// What the machine offers to realms; read once when the monitor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineFeatures {
    /// Physical address width in bits, which bounds the IPA width (32 to 48).
    pub pa_bits: u8,
    /// Breakpoints minus 1 (`ID_AA64DFR0_EL1.BRPs`).
    pub num_bps: u8,
    /// Watchpoints minus 1 (`ID_AA64DFR0_EL1.WRPs`).
    pub num_wps: u8,
    /// `ICH_VTR_EL2`; bits \[4:0\] are the number of list registers minus 1.
    pub ich_vtr: u64,
    /// Extended PPI and SPI ranges are implemented (`ICC_CTLR_EL1.ExtRange`).
    pub gic_ext_range: bool,
    /// Width of a VMID: 8 or 16 bits.
    pub vmid_bits: u8,
}

/// Stage-2 translation of one realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Regime {
    /// `VTTBR_EL2`: root table, VMID in bits \[63:48\].
    pub vttbr: u64,
    /// `VTCR_EL2`.
    pub vtcr: u64,
}

/// Instructions of a REC that exit for the run at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traps {
    /// Set `HCR_EL2.TWI`.
    pub wfi: bool,
    /// Set `HCR_EL2.TWE`.
    pub wfe: bool,
    /// Mask the virtual timer's output (`CNTHCTL_EL2.CNTVMASK`), because the host already knows
    /// that it is asserted and the physical interrupt must not storm.
    pub mask_cntv: bool,
    /// The same for the physical timer (`CNTHCTL_EL2.CNTPMASK`).
    pub mask_cntp: bool,
}

/// Why a REC stopped running, as the machine reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawExit {
    /// A synchronous exception to R-EL2.
    Sync {
        /// `ESR_EL2`.
        esr: u64,
        /// `FAR_EL2`.
        far: u64,
        /// `HPFAR_EL2`.
        hpfar: u64,
    },
    /// A physical interrupt is pending for the host.
    Irq,
    /// A physical FIQ is pending for the host or EL3.
    Fiq,
    /// An SError was taken; the platform has acknowledged it.
    SError {
        /// `ESR_EL2`.
        esr: u64,
    },
}

/// Encoding of a system register as in the ISS of a trapped `MRS`/`MSR`: the fields Op0, Op2, Op1,
/// CRn, CRm in bits \[21:1\] except Rt, everything else zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysRegIss(pub u64);

/// Where the core runs: memory, granule protection, TLB and the CPU that runs RECs.
///
/// The core calls the methods from any CPU at the same time. It guarantees, by granule states and
/// locks of its own, that:
/// * `*_realm` methods and table methods name granules that are in the Realm physical address
///   space (delegated) and that stay so during the call;
/// * [`Platform::run`] is never called for the same REC granule on two CPUs at once.
///
/// Addresses and lengths never cross a granule boundary in one call, and lie in the RAM that the
/// monitor was started with. Nothing else is guaranteed: `*_ns` methods may name a granule that
/// another CPU delegates at the same moment, in Realm or even Root space, and must then fail
/// instead of crash.
pub trait Platform: Sync {
    /// What the machine offers to realms.
    fn features(&self) -> MachineFeatures;

    /// The granule table's memory: one slot per granule of the RAM that the monitor starts with,
    /// always the same slice, touched by nobody else.
    fn granule_slots(&self) -> &[GranuleSlot];

    /// Moves a granule from the Non-secure to the Realm physical address space (through EL3).
    ///
    /// # Errors
    /// EL3 refused, for example because the granule is in Secure space. Nothing has changed.
    fn gpt_delegate(&self, pa: Pa) -> Result<(), GptRefused>;

    /// Moves a granule from the Realm back to the Non-secure physical address space. The core
    /// has wiped it where its contents were secret; the platform must make that visible to the
    /// Non-secure side (clean to the point of physical aliasing, which EL3 does).
    ///
    /// # Errors
    /// EL3 refused. Nothing has changed.
    fn gpt_undelegate(&self, pa: Pa) -> Result<(), GptRefused>;

    /// Copies from Non-secure memory.
    ///
    /// # Errors
    /// The granule is not Non-secure (any more). `buf` is then unspecified.
    fn read_ns(&self, pa: Pa, buf: &mut [u8]) -> Result<(), GranuleFault>;

    /// Copies to Non-secure memory.
    ///
    /// # Errors
    /// The granule is not Non-secure (any more). The part before the fault may be written.
    fn write_ns(&self, pa: Pa, bytes: &[u8]) -> Result<(), GranuleFault>;

    /// Copies from Realm memory.
    fn read_realm(&self, pa: Pa, buf: &mut [u8]);

    /// Copies to Realm memory.
    fn write_realm(&self, pa: Pa, bytes: &[u8]);

    /// Fills the granule at `pa` with zeroes. For a granule that becomes realm data this must also
    /// reach what a realm sees with its caches off.
    fn zero_granule(&self, pa: Pa);

    /// Reads the 8-byte translation table descriptor at `pa` (single-copy atomic, acquire).
    fn read_descriptor(&self, pa: Pa) -> u64;

    /// Writes the 8-byte translation table descriptor at `pa` (single-copy atomic, release) and
    /// makes it visible to table walkers (`DSB ISHST` or stronger) before it returns.
    fn write_descriptor(&self, pa: Pa, value: u64);

    /// Invalidates, on all CPUs, cached translations of `size` bytes from `ipa` on (all levels,
    /// and stage-1 entries combined with them) and waits for completion.
    fn tlb_invalidate(&self, regime: Stage2Regime, ipa: Ipa, size: u64);

    /// Invalidates, on all CPUs, all cached translations of the regime's VMID.
    fn tlb_invalidate_all(&self, regime: Stage2Regime);

    /// Prepares what the platform itself keeps for a new REC: bytes 2048 to 4095 of the REC
    /// granule, and the auxiliary granules, all zero now and the platform's until
    /// [`Platform::destroy_rec`].
    fn init_rec(&self, rec: Pa, aux: &[Pa]);

    /// Ends the platform's use of the REC granule and its auxiliary granules. The core wipes them.
    fn destroy_rec(&self, rec: Pa);

    /// Runs the REC until something needs R-EL2.
    ///
    /// Loads `context` and the regime, sets the traps, enters EL1/EL0, and stores all of `context`
    /// back. The list registers and `ich_hcr` of `context.gic` have been checked by the core, and with
    /// RMI 1.0 completed (`En` is set); `ich_misr` and the ISTATUS bits of the timers are stored as read at the
    /// exit. A pending physical interrupt makes it return [`RawExit::Irq`], at the latest after
    /// one instruction of the REC. Non-secure EL1 state that EL3 does not switch is the
    /// platform's to preserve.
    fn run(&self, rec: Pa, context: &mut RecContext, regime: Stage2Regime, traps: Traps)
    -> RawExit;

    /// The virtual CPU interface registers of this CPU as the host left them; with RMI 2.0 they are
    /// shared between host and monitor. A platform that serves only 1.0 has no use for it.
    fn host_cpu_interface(&self) -> GicState {
        GicState::default()
    }

    /// Leaves the virtual CPU interface registers of this CPU to the host (RMI 2.0).
    fn set_host_cpu_interface(&self, _state: &GicState) {}

    /// Reads the machine's ID register with this encoding, or 0 if it has none. The core hides
    /// features that realms do not get.
    fn id_register(&self, register: SysRegIss) -> u64;

    /// The system counter (`CNTPCT_EL0`), which is also what the timers of RECs compare with.
    fn counter(&self) -> u64;

    /// Called while the core spins on a granule lock.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}
