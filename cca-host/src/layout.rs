//! Structures that the host and the RMM share through 4 KiB pages in the normal world.
//!
//! The page-sized types describe where things are and are never instantiated: the driver copies the
//! groups of fields inside them, at offsets that the compiler takes from these types. Fields that are
//! narrower in the specification are written as 64-bit values with a zero upper half, which all known
//! versions accept.

use core::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! shared {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$fdoc])* pub(crate) $field: $ty,)* }
    };
}

shared! {
    /// First group of RmiRealmParams: everything that is measured.
    RealmFeatures {
        flags0: u64,
        s2sz: u64,
        sve_vl: u64,
        num_bps: u64,
        num_wps: u64,
        pmu_num_ctrs: u64,
        hash_algorithm: u64,
        num_aux_planes: u64,
    }
}

shared! {
    /// Last group of RmiRealmParams: identifiers and root tables.
    RealmTables {
        /// RMI 1.x only.
        vmid: u64,
        rtt_base: u64,
        rtt_level_start: i64,
        rtt_num_start: u64,
        flags1: u64,
    }
}

/// RmiRealmParams.
#[repr(C)]
pub(crate) struct RealmParams {
    pub(crate) features: RealmFeatures,
    _pad0: [u8; 0x400 - 0x40],
    pub(crate) rpv: [u8; 64],
    _pad1: [u8; 0x800 - 0x440],
    pub(crate) tables: RealmTables,
    _pad2: [u8; 0x1000 - 0x828],
}

shared! {
    /// Auxiliary granules of a REC, RMI 1.x only.
    RecAux {
        num_aux: u64,
        aux: [u64; 16],
    }
}

/// RmiRecParams.
#[repr(C)]
pub(crate) struct RecParams {
    pub(crate) flags: u64,
    _pad0: [u8; 0x100 - 0x8],
    pub(crate) mpidr: u64,
    _pad1: [u8; 0x200 - 0x108],
    pub(crate) pc: u64,
    _pad2: [u8; 0x300 - 0x208],
    pub(crate) gprs: [u64; 8],
    _pad3: [u8; 0x800 - 0x340],
    pub(crate) aux: RecAux,
    _pad4: [u8; 0x1000 - 0x888],
}

shared! {
    /// GIC state given to a REC, RMI 1.x only.
    EnterGic {
        hcr: u64,
        lrs: [u64; 16],
    }
}

shared! {
    /// Fault registers of an exit.
    ExitSyndrome {
        esr: u64,
        far: u64,
        hpfar: u64,
    }
}

shared! {
    /// GIC state after an exit, RMI 1.x only.
    ExitGic {
        hcr: u64,
        lrs: [u64; 16],
        misr: u64,
        vmcr: u64,
    }
}

shared! {
    /// EL1 timers after an exit.
    ExitTimers {
        cntp_ctl: u64,
        cntp_cval: u64,
        cntv_ctl: u64,
        cntv_cval: u64,
    }
}

shared! {
    /// RIPAS change that the realm asks for.
    ExitRipas {
        base: u64,
        top: u64,
        value: u64,
    }
}

/// RmiRecEnter, the first half of RmiRecRun.
#[repr(C)]
pub(crate) struct RecEnter {
    pub(crate) flags: u64,
    _pad0: [u8; 0x200 - 0x8],
    pub(crate) gprs: [u64; 31],
    _pad1: [u8; 0x300 - 0x2f8],
    pub(crate) gic: EnterGic,
    _pad2: [u8; 0x800 - 0x388],
}

/// RmiRecExit, the second half of RmiRecRun.
#[repr(C)]
pub(crate) struct RecExit {
    pub(crate) exit_reason: u64,
    _pad0: [u8; 0x100 - 0x8],
    pub(crate) syndrome: ExitSyndrome,
    _pad1: [u8; 0x200 - 0x118],
    pub(crate) gprs: [u64; 31],
    _pad2: [u8; 0x300 - 0x2f8],
    pub(crate) gic: ExitGic,
    _pad3: [u8; 0x400 - 0x398],
    pub(crate) timers: ExitTimers,
    _pad4: [u8; 0x500 - 0x420],
    pub(crate) ripas: ExitRipas,
    _pad5: [u8; 0x600 - 0x518],
    pub(crate) imm: u64,
    _pad6: [u8; 0x800 - 0x608],
}

/// RmiRecRun.
#[repr(C)]
pub(crate) struct RecRun {
    pub(crate) enter: RecEnter,
    pub(crate) exit: RecExit,
}

shared! {
    /// RmiRmmConfig, RMI 2.0 only.
    RmmConfig {
        tracking_region_size: u64,
        granule_size: u64,
    }
}

const _: () = {
    assert!(size_of::<RealmParams>() == 0x1000);
    assert!(offset_of!(RealmParams, features.hash_algorithm) == 0x30);
    assert!(offset_of!(RealmParams, features.num_aux_planes) == 0x38);
    assert!(offset_of!(RealmParams, rpv) == 0x400);
    assert!(offset_of!(RealmParams, tables.vmid) == 0x800);
    assert!(offset_of!(RealmParams, tables.rtt_base) == 0x808);
    assert!(offset_of!(RealmParams, tables.rtt_level_start) == 0x810);
    assert!(offset_of!(RealmParams, tables.rtt_num_start) == 0x818);
    assert!(offset_of!(RealmParams, tables.flags1) == 0x820);
    assert!(size_of::<RecParams>() == 0x1000);
    assert!(offset_of!(RecParams, mpidr) == 0x100);
    assert!(offset_of!(RecParams, pc) == 0x200);
    assert!(offset_of!(RecParams, gprs) == 0x300);
    assert!(offset_of!(RecParams, aux.num_aux) == 0x800);
    assert!(offset_of!(RecParams, aux.aux) == 0x808);
    assert!(size_of::<RecRun>() == 0x1000);
    assert!(offset_of!(RecRun, enter.gprs) == 0x200);
    assert!(offset_of!(RecRun, enter.gic.hcr) == 0x300);
    assert!(offset_of!(RecRun, enter.gic.lrs) == 0x308);
    assert!(offset_of!(RecRun, exit) == 0x800);
    assert!(offset_of!(RecExit, syndrome.esr) == 0x100);
    assert!(offset_of!(RecExit, syndrome.far) == 0x108);
    assert!(offset_of!(RecExit, syndrome.hpfar) == 0x110);
    assert!(offset_of!(RecExit, gprs) == 0x200);
    assert!(offset_of!(RecExit, gic.hcr) == 0x300);
    assert!(offset_of!(RecExit, gic.lrs) == 0x308);
    assert!(offset_of!(RecExit, gic.misr) == 0x388);
    assert!(offset_of!(RecExit, gic.vmcr) == 0x390);
    assert!(offset_of!(RecExit, timers.cntp_ctl) == 0x400);
    assert!(offset_of!(RecExit, timers.cntv_cval) == 0x418);
    assert!(offset_of!(RecExit, ripas.base) == 0x500);
    assert!(offset_of!(RecExit, ripas.value) == 0x510);
    assert!(offset_of!(RecExit, imm) == 0x600);
};
