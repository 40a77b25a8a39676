//! What a granule is used for and by whom.

use core::fmt;

/// Who a granule is accounted to: the hypervisor or one of its VMs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Owner(u16);

impl Owner {
    /// The hypervisor itself.
    pub const HYPERVISOR: Self = Self(0);

    /// The VM with this number; VMs count from 1.
    #[must_use]
    pub const fn vm(id: u16) -> Self {
        Self(id)
    }

    /// The number: 0 for the hypervisor.
    #[must_use]
    pub const fn id(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("hypervisor"),
            id => write!(f, "vm {id}"),
        }
    }
}

macro_rules! coded {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $code,)* }

        impl $name {
            /// Every value, in code order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            const fn code(self) -> u8 {
                self as u8
            }

            const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)* })
            }
        }
    };
}

coded! {
    /// What the normal world uses a granule for.
    Use {
        /// Boot firmware, the RMM, and whatever else the device tree reserves.
        Firmware = 0, "firmware";
        /// The hypervisor's image, stacks and boot tables.
        Image = 1, "image";
        /// The ledger's own metadata.
        Metadata = 2, "metadata";
        /// The machine's device tree.
        DeviceTree = 3, "device tree";
        /// The bundle of guest images.
        Bundle = 4, "bundle";
        /// Memory of the hypervisor at run time.
        Hypervisor = 5, "hypervisor";
        /// Memory of a normal VM.
        VmMemory = 6, "VM memory";
        /// Stage-2 tables of a normal VM.
        Stage2 = 7, "stage-2";
        /// Normal memory that a realm reaches through its unprotected addresses.
        Shared = 8, "shared";
        /// Run pages, parameter pages and address lists passed to the RMM.
        Interface = 9, "RMI interface";
        /// Memory on its way into or out of delegation.
        Realm = 10, "realm";
        /// Contents of a VM's disks.
        Disk = 11, "disk";
    }
}

impl Use {
    /// Whether the RMM must know the granule: it is delegated, or read and written by the RMM.
    #[must_use]
    pub const fn needs_rmm(self) -> bool {
        matches!(self, Self::Shared | Self::Interface | Self::Realm)
    }
}

coded! {
    /// What the RMM uses a delegated granule for.
    RmmUse {
        /// Realm descriptor.
        Rd = 0, "RD";
        /// Realm stage-2 table.
        Rtt = 1, "RTT";
        /// Realm execution context.
        Rec = 2, "REC";
        /// Memory donated to a REC or another object.
        Aux = 3, "auxiliary";
        /// Protected memory of a realm.
        Data = 4, "data";
    }
}

/// State of one granule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GranuleState {
    /// In the allocator.
    Free,
    /// Set aside at boot.
    Reserved(Use),
    /// In the normal world, allocated.
    Ns {
        /// Purpose.
        used_for: Use,
        /// Account.
        owner: Owner,
    },
    /// Delegated to the realm world, not in use there.
    Delegated {
        /// Account.
        owner: Owner,
    },
    /// Delegated and in use by the RMM.
    Rmm {
        /// Purpose.
        used_for: RmmUse,
        /// Account.
        owner: Owner,
    },
    /// The RMM refused to give it back. Never allocated again.
    Lost {
        /// Account at the time of the loss.
        owner: Owner,
    },
}

/// Number of distinct codes of [`GranuleState::kind_code`].
pub(super) const KINDS: usize = 32;

const FREE: u8 = 0;
const DELEGATED: u8 = 1;
const LOST: u8 = 2;
const RMM: u8 = 3;
const RESERVED: u8 = RMM + 5;
const NS: u8 = RESERVED + 12;

const _: () = {
    assert!(RmmUse::ALL.len() == (RESERVED - RMM) as usize);
    assert!(Use::ALL.len() == (NS - RESERVED) as usize);
    assert!(NS as usize + Use::ALL.len() <= KINDS);
};

impl GranuleState {
    /// The account, where there is one.
    #[must_use]
    pub const fn owner(self) -> Option<Owner> {
        match self {
            Self::Free | Self::Reserved(_) => None,
            Self::Ns { owner, .. }
            | Self::Delegated { owner }
            | Self::Rmm { owner, .. }
            | Self::Lost { owner } => Some(owner),
        }
    }

    /// Whether the normal world may touch the granule: anything else takes a granule protection
    /// fault.
    #[must_use]
    pub const fn is_ns(self) -> bool {
        matches!(self, Self::Free | Self::Reserved(_) | Self::Ns { .. })
    }

    /// State without the owner, as a number below [`KINDS`].
    pub(super) const fn kind_code(self) -> u8 {
        match self {
            Self::Free => FREE,
            Self::Delegated { .. } => DELEGATED,
            Self::Lost { .. } => LOST,
            Self::Rmm { used_for, .. } => RMM + used_for.code(),
            Self::Reserved(used_for) => RESERVED + used_for.code(),
            Self::Ns { used_for, .. } => NS + used_for.code(),
        }
    }

    /// Inverse of [`Self::kind_code`]; unknown codes read as lost, which is never allocated.
    pub(super) const fn from_code(code: u8, owner: Owner) -> Self {
        match code {
            FREE => Self::Free,
            DELEGATED => Self::Delegated { owner },
            RMM..RESERVED => match RmmUse::from_code(code - RMM) {
                Some(used_for) => Self::Rmm { used_for, owner },
                None => Self::Lost { owner },
            },
            RESERVED..NS => match Use::from_code(code - RESERVED) {
                Some(used_for) => Self::Reserved(used_for),
                None => Self::Lost { owner },
            },
            NS.. => match Use::from_code(code - NS) {
                Some(used_for) => Self::Ns { used_for, owner },
                None => Self::Lost { owner },
            },
            LOST => Self::Lost { owner },
        }
    }
}

impl fmt::Display for GranuleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Reserved(used_for) => write!(f, "reserved for {used_for}"),
            Self::Ns { used_for, owner } => write!(f, "{used_for} of {owner}"),
            Self::Delegated { owner } => write!(f, "delegated, of {owner}"),
            Self::Rmm { used_for, owner } => write!(f, "{used_for} granule of {owner}"),
            Self::Lost { owner } => write!(f, "lost, last of {owner}"),
        }
    }
}
