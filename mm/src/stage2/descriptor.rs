//! Stage-2 descriptors of VMSAv8-64 with the 4 KiB granule, for `HCR_EL2.FWB` clear or set.

use super::geometry::Level;
use crate::PhysAddr;

/// What a guest may do with memory. Reading is always allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Stores are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub execute: bool,
}

impl Permissions {
    /// Read only.
    pub const RO: Self = Self { write: false, execute: false };
    /// Read and write.
    pub const RW: Self = Self { write: true, execute: false };
    /// Read and execute.
    pub const RX: Self = Self { write: false, execute: true };
    /// Read, write and execute: guest RAM, whose own stage 1 decides the rest.
    pub const RWX: Self = Self { write: true, execute: true };
}

/// Memory type that stage 2 imposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// Normal, inner and outer write-back, inner shareable. The guest's stage 1 may make it less
    /// cacheable unless `HCR_EL2.FWB` is set.
    Normal,
    /// Device-nGnRE, whatever the guest's stage 1 says.
    Device,
}

/// Attributes of a mapping. Device memory is never executable: the constructor leaves no way to
/// ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    memory: MemoryType,
    permissions: Permissions,
}

impl Attributes {
    /// Normal memory.
    #[must_use]
    pub const fn normal(permissions: Permissions) -> Self {
        Self { memory: MemoryType::Normal, permissions }
    }

    /// Device memory; `permissions.execute` is dropped.
    #[must_use]
    pub const fn device(permissions: Permissions) -> Self {
        Self {
            memory: MemoryType::Device,
            permissions: Permissions { write: permissions.write, execute: false },
        }
    }

    /// Memory type.
    #[must_use]
    pub const fn memory(self) -> MemoryType {
        self.memory
    }

    /// Permissions.
    #[must_use]
    pub const fn permissions(self) -> Permissions {
        self.permissions
    }

    /// The same memory type with other permissions (execution stays off for device memory).
    #[must_use]
    pub const fn with_permissions(self, permissions: Permissions) -> Self {
        match self.memory {
            MemoryType::Normal => Self::normal(permissions),
            MemoryType::Device => Self::device(permissions),
        }
    }
}

const VALID: u64 = 1 << 0;
/// Table at levels 0 to 2, page at level 3.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// With `VALID` clear: the address field links to another dead table.
const DEAD_LINK: u64 = 1 << 1;
const MEMATTR_MASK: u64 = 0xf << 2;
const MEMATTR_NORMAL_WB: u64 = 0b1111 << 2;
/// With `HCR_EL2.FWB` set, where the other value means "as stage 1 says".
const MEMATTR_NORMAL_FORCED_WB: u64 = 0b0110 << 2;
/// The same with `HCR_EL2.FWB` clear and set.
const MEMATTR_DEVICE_NGNRE: u64 = 0b0001 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const SH_INNER: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const ADDRESS_MASK: u64 = 0x0000_ffff_ffff_f000;
/// Bits 54:53. Without FEAT_XNX bit 53 is RES0 and bit 54 alone decides; 0b10 means "never
/// executable" with and without the feature.
const XN: u64 = 1 << 54;
/// Software bit: writable for the guest, but write-protected so that the first store is seen.
const WRITE_LOGGED: u64 = 1 << 55;
/// Software bit: stored to since write logging began.
const DIRTY: u64 = 1 << 56;

/// One stage-2 descriptor as it stands in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) u64);

/// A descriptor, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// The hardware takes a translation fault here.
    Invalid,
    /// Points to the next level's table.
    Table(PhysAddr),
    /// Maps a page or block that starts here.
    Leaf(PhysAddr),
}

impl Descriptor {
    pub(super) const INVALID: Self = Self(0);

    pub(super) const fn table(table: PhysAddr) -> Self {
        Self((table.get() & ADDRESS_MASK) | TABLE_OR_PAGE | VALID)
    }

    pub(super) const fn leaf(
        level: Level,
        pa: PhysAddr,
        attributes: Attributes,
        forced_write_back: bool,
    ) -> Self {
        let kind = match level {
            Level::L3 => TABLE_OR_PAGE | VALID,
            _ => VALID,
        };
        let memory = match attributes.memory {
            MemoryType::Normal if forced_write_back => MEMATTR_NORMAL_FORCED_WB | SH_INNER,
            MemoryType::Normal => MEMATTR_NORMAL_WB | SH_INNER,
            MemoryType::Device => MEMATTR_DEVICE_NGNRE,
        };
        Self((pa.get() & ADDRESS_MASK) | kind | memory | ACCESS_FLAG)
            .with_permissions(attributes.permissions)
    }

    pub(super) const fn decode(self, level: Level) -> Decoded {
        let address = PhysAddr::new(self.0 & ADDRESS_MASK);
        let table_or_page = self.0 & TABLE_OR_PAGE != 0;
        if self.0 & VALID == 0 {
            return Decoded::Invalid;
        }
        match (level, table_or_page) {
            (Level::L3, true) | (Level::L1 | Level::L2, false) => Decoded::Leaf(address),
            (Level::L0 | Level::L1 | Level::L2, true) => Decoded::Table(address),
            // Reserved encodings fault like invalid ones; this walker never writes them.
            (Level::L3 | Level::L0, false) => Decoded::Invalid,
        }
    }

    /// Attributes that the mapping was made with. A page under write logging counts as writable.
    pub(super) const fn attributes(self) -> Attributes {
        let permissions = Permissions {
            write: self.0 & (S2AP_WRITE | WRITE_LOGGED) != 0,
            execute: self.0 & XN == 0,
        };
        if self.0 & MEMATTR_MASK == MEMATTR_DEVICE_NGNRE {
            Attributes::device(permissions)
        } else {
            Attributes::normal(permissions)
        }
    }

    /// Sets the permissions of a leaf; ends write logging of it.
    pub(super) const fn with_permissions(self, permissions: Permissions) -> Self {
        let mut bits = self.0 & !(S2AP_WRITE | XN | WRITE_LOGGED) | S2AP_READ;
        if permissions.write {
            bits |= S2AP_WRITE;
        }
        if !permissions.execute {
            bits |= XN;
        }
        Self(bits)
    }

    /// The entry number `index` of the table that replaces this block of `level`; `None` when
    /// `level` has no blocks. Everything but the address is inherited.
    pub(super) fn child(self, level: Level, index: u64) -> Option<Self> {
        let Decoded::Leaf(base) = self.decode(level) else {
            return None;
        };
        let next = level.next()?;
        let pa = base.checked_add(index << next.shift())?;
        let kind = match next {
            Level::L3 => TABLE_OR_PAGE,
            _ => 0,
        };
        Some(Self((self.0 & !ADDRESS_MASK) | (pa.get() & ADDRESS_MASK) | kind))
    }

    pub(super) const fn is_accessed(self) -> bool {
        self.0 & ACCESS_FLAG != 0
    }

    pub(super) const fn with_accessed(self, accessed: bool) -> Self {
        if accessed { Self(self.0 | ACCESS_FLAG) } else { Self(self.0 & !ACCESS_FLAG) }
    }

    pub(super) const fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    pub(super) const fn is_write_logged(self) -> bool {
        self.0 & WRITE_LOGGED != 0
    }

    /// Write-protects a writable leaf until its first store, and forgets earlier stores.
    pub(super) const fn start_write_log(self) -> Self {
        if self.0 & (S2AP_WRITE | WRITE_LOGGED) != 0 {
            Self(self.0 & !(S2AP_WRITE | DIRTY) | WRITE_LOGGED)
        } else {
            Self(self.0 & !DIRTY)
        }
    }

    /// Notes the first store to a leaf under write logging and lets stores through again.
    pub(super) const fn note_store(self) -> Self {
        Self(self.0 & !WRITE_LOGGED | S2AP_WRITE | DIRTY | ACCESS_FLAG)
    }

    /// An invalid descriptor that carries the address of a page: links tables that are unhooked but
    /// may still be walked. The hardware takes it for invalid whatever the address.
    pub(super) const fn dead_link(next: Option<PhysAddr>) -> Self {
        match next {
            Some(table) => Self((table.get() & ADDRESS_MASK) | DEAD_LINK),
            None => Self::INVALID,
        }
    }

    pub(super) const fn dead_next(self) -> Option<PhysAddr> {
        if self.0 & DEAD_LINK == 0 { None } else { Some(PhysAddr::new(self.0 & ADDRESS_MASK)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `MemAttr` of a page, and its memory type read back.
    fn page(attributes: Attributes, forced_write_back: bool) -> (u64, MemoryType) {
        let leaf = Descriptor::leaf(Level::L3, PhysAddr::new(0), attributes, forced_write_back);
        (leaf.0 >> 2 & 0xf, leaf.attributes().memory())
    }

    #[test]
    fn encodings_of_memory_types() {
        // Arm ARM, "Stage 2 memory type and Cacheability attributes", FEAT_S2FWB disabled, enabled.
        for (forced, normal) in [(false, 0b1111), (true, 0b0110)] {
            assert_eq!(
                page(Attributes::normal(Permissions::RWX), forced),
                (normal, MemoryType::Normal)
            );
            assert_eq!(
                page(Attributes::device(Permissions::RW), forced),
                (0b0001, MemoryType::Device)
            );
        }
    }
}
