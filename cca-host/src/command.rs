//! RMI commands and their function identifiers.

use core::fmt;

macro_rules! commands {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// An RMI command, of either ABI. Commands that keep their meaning share an entry.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Command { $($(#[$doc])* $variant,)* }

        impl Command {
            /// Every command that the driver can send.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The SMC64 function identifier.
            #[must_use]
            pub const fn fid(self) -> u64 {
                0xc400_0000 | match self { $(Self::$variant => $number,)* }
            }

            /// The command's name, without the `RMI_` prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

commands! {
    /// Interface version.
    Version = 0x150, "VERSION";
    /// 1.0: delegate one granule.
    GranuleDelegate = 0x151, "GRANULE_DELEGATE";
    /// 1.0: undelegate one granule.
    GranuleUndelegate = 0x152, "GRANULE_UNDELEGATE";
    /// 1.0: map a protected page with contents. 2.0 calls the same function RTT_DATA_MAP_INIT.
    DataCreate = 0x153, "DATA_CREATE";
    /// 1.0: map a protected page without contents.
    DataCreateUnknown = 0x154, "DATA_CREATE_UNKNOWN";
    /// 1.0: unmap a protected page.
    DataDestroy = 0x155, "DATA_DESTROY";
    /// Let a realm run.
    RealmActivate = 0x157, "REALM_ACTIVATE";
    /// Create a realm.
    RealmCreate = 0x158, "REALM_CREATE";
    /// Destroy a realm.
    RealmDestroy = 0x159, "REALM_DESTROY";
    /// Create a REC.
    RecCreate = 0x15a, "REC_CREATE";
    /// Destroy a REC.
    RecDestroy = 0x15b, "REC_DESTROY";
    /// Run a REC.
    RecEnter = 0x15c, "REC_ENTER";
    /// Create a stage-2 table.
    RttCreate = 0x15d, "RTT_CREATE";
    /// Destroy a stage-2 table.
    RttDestroy = 0x15e, "RTT_DESTROY";
    /// 1.0 and the first 2.0 RMM: map an unprotected entry.
    RttMapUnprotected = 0x15f, "RTT_MAP_UNPROTECTED";
    /// Read a stage-2 entry.
    RttReadEntry = 0x161, "RTT_READ_ENTRY";
    /// 1.0 and the first 2.0 RMM: unmap an unprotected entry.
    RttUnmapUnprotected = 0x162, "RTT_UNMAP_UNPROTECTED";
    /// Answer a PSCI request of a realm.
    PsciComplete = 0x164, "PSCI_COMPLETE";
    /// Feature registers.
    Features = 0x165, "FEATURES";
    /// Replace a homogeneous table by one entry.
    RttFold = 0x166, "RTT_FOLD";
    /// 1.0: auxiliary granules per REC.
    RecAuxCount = 0x167, "REC_AUX_COUNT";
    /// Set the initial RIPAS.
    RttInitRipas = 0x168, "RTT_INIT_RIPAS";
    /// Change the RIPAS on a realm's request.
    RttSetRipas = 0x169, "RTT_SET_RIPAS";
    /// 2.0: configure the RMM.
    RmmConfigSet = 0x16e, "RMM_CONFIG_SET";
    /// 2.0: state of a tracking region.
    GranuleTrackingGet = 0x1e1, "GRANULE_TRACKING_GET";
    /// 2.0: read the RMM's configuration.
    RmmConfigGet = 0x1ec, "RMM_CONFIG_GET";
    /// 2.0, late drafts: state of the RMM. Only probed for.
    RmmStateGet = 0x1ee, "RMM_STATE_GET";
    /// 2.0: delegate a range.
    GranuleRangeDelegate = 0x1f1, "GRANULE_RANGE_DELEGATE";
    /// 2.0: undelegate a range.
    GranuleRangeUndelegate = 0x1f2, "GRANULE_RANGE_UNDELEGATE";
    /// 2.0: map protected memory.
    RttDataMap = 0x1f5, "RTT_DATA_MAP";
    /// 2.0: unmap protected memory.
    RttDataUnmap = 0x1f6, "RTT_DATA_UNMAP";
    /// 2.0: map unprotected memory.
    RttUnprotMap = 0x1fb, "RTT_UNPROT_MAP";
    /// 2.0: unmap unprotected memory.
    RttUnprotUnmap = 0x1fc, "RTT_UNPROT_UNMAP";
    /// 2.0: stop a realm for good.
    RealmTerminate = 0x201, "REALM_TERMINATE";
    /// 2.0: switch the RMM on.
    RmmActivate = 0x202, "RMM_ACTIVATE";
    /// 2.0: go on with a stateful operation.
    OpContinue = 0x203, "OP_CONTINUE";
    /// 2.0: give memory to a stateful operation.
    OpMemDonate = 0x208, "OP_MEM_DONATE";
    /// 2.0: take memory back from a stateful operation.
    OpMemReclaim = 0x209, "OP_MEM_RECLAIM";
    /// 2.0: cancel a stateful operation.
    OpCancel = 0x20a, "OP_CANCEL";
    /// 2.0, late drafts: granule protection table regions. Only probed for.
    GptInfo = 0x211, "GPT_INFO";
}

impl Command {
    /// Number of commands.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`Command::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RMI_{}", self.name())
    }
}
