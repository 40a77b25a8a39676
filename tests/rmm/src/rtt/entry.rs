//! One RTT entry: what it means, and its encoding as an architectural stage-2 descriptor.
//!
//! Valid descriptors are exactly what the table walker needs; invalid ones keep the host state
//! (HIPAS) and the realm state (RIPAS) in bits that the walker ignores:
//!
//! | entry | bit 0 | other bits |
//! |---|---|---|
//! | table | 1 | bit 1, table address |
//! | assigned, RAM | 1 | bit 1 at level 3, address, MemAttr Normal write-back, S2AP read/write, SH inner, AF |
//! | assigned, not RAM | 0 | HIPAS assigned, RIPAS, address |
//! | unassigned | 0 | HIPAS unassigned, RIPAS |
//! | assigned, unprotected | 1 | bit 1 at level 3, address, the host's MemAttr and S2AP, SH inner, AF, NS, XN |
//! | unassigned, unprotected | 0 | NS |

use crate::abi::Ripas;
use crate::addr::Pa;
use crate::rtt::geometry::{PAGE_LEVEL, entry_size};

const VALID: u64 = 1 << 0;
/// Table (levels below 3) or page (level 3).
const TABLE_OR_PAGE: u64 = 1 << 1;
/// Host state of an invalid entry: 1 if assigned.
const HIPAS_ASSIGNED: u64 = 1 << 2;
const RIPAS_SHIFT: u32 = 5;
const MEM_ATTR_MASK: u64 = 0b111 << 2;
const MEM_ATTR_RESERVED: u64 = 0b100 << 2;
const MEM_ATTR_NORMAL_WB: u64 = 0b110 << 2;
const S2AP_MASK: u64 = 0b11 << 6;
const S2AP_RW: u64 = 0b11 << 6;
const SH_INNER: u64 = 0b11 << 8;
const AF: u64 = 1 << 10;
/// Neither EL1 nor EL0 may execute.
const XN: u64 = 0b10 << 53;
/// Output address is in the Non-secure physical address space.
const NS: u64 = 1 << 55;
const ADDRESS_MASK: u64 = 0x0000_ffff_ffff_f000;

/// The host's part of an unprotected mapping: address, MemAttr and S2AP in descriptor position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostDescriptor(u64);

impl HostDescriptor {
    /// Checks the operand of RTT_MAP_UNPROTECTED for a mapping at `level`: an aligned address of
    /// at most 48 bits, a memory attribute that is not reserved, and nothing else.
    pub(crate) fn new(value: u64, level: i64) -> Option<Self> {
        let address = ADDRESS_MASK & !(entry_size(level) - 1);
        let known = value & !(address | MEM_ATTR_MASK | S2AP_MASK) == 0;
        (known && value & MEM_ATTR_MASK != MEM_ATTR_RESERVED).then_some(Self(value))
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }

    pub(crate) fn pa(self) -> Pa {
        Pa(self.0 & ADDRESS_MASK)
    }

    /// The same attributes at another address.
    pub(crate) fn with_pa(self, pa: Pa) -> Self {
        Self(self.0 & !ADDRESS_MASK | pa.0)
    }
}

/// The meaning of an RTT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Protected, nothing behind it.
    Unassigned(Ripas),
    /// Protected, a data granule or block behind it.
    Assigned(Ripas, Pa),
    /// Unprotected, nothing behind it.
    UnassignedNs,
    /// Unprotected, host memory behind it.
    AssignedNs(HostDescriptor),
    /// The next table.
    Table(Pa),
}

impl Entry {
    /// Encodes the entry for a table at `level`.
    pub(crate) fn encode(self, level: i64) -> u64 {
        let leaf = VALID | if level == PAGE_LEVEL { TABLE_OR_PAGE } else { 0 };
        match self {
            Self::Unassigned(ripas) => (ripas as u64) << RIPAS_SHIFT,
            Self::Assigned(Ripas::Ram, pa) => {
                leaf | MEM_ATTR_NORMAL_WB | S2AP_RW | SH_INNER | AF | pa.0
            }
            Self::Assigned(ripas, pa) => HIPAS_ASSIGNED | (ripas as u64) << RIPAS_SHIFT | pa.0,
            Self::UnassignedNs => NS,
            Self::AssignedNs(host) => leaf | SH_INNER | AF | NS | XN | host.value(),
            Self::Table(pa) => VALID | TABLE_OR_PAGE | pa.0,
        }
    }

    /// Decodes an entry of a table at `level`.
    pub(crate) fn decode(descriptor: u64, level: i64) -> Self {
        let pa = Pa(descriptor & ADDRESS_MASK);
        if descriptor & VALID == 0 {
            let ripas = match descriptor >> RIPAS_SHIFT & 0b11 {
                0 => Ripas::Empty,
                1 => Ripas::Ram,
                _ => Ripas::Destroyed,
            };
            return match (descriptor & NS != 0, descriptor & HIPAS_ASSIGNED != 0) {
                (true, _) => Self::UnassignedNs,
                (false, true) => Self::Assigned(ripas, pa),
                (false, false) => Self::Unassigned(ripas),
            };
        }
        if level < PAGE_LEVEL && descriptor & TABLE_OR_PAGE != 0 {
            Self::Table(pa)
        } else if descriptor & NS != 0 {
            Self::AssignedNs(HostDescriptor(
                descriptor & (ADDRESS_MASK | MEM_ATTR_MASK | S2AP_MASK),
            ))
        } else {
            Self::Assigned(Ripas::Ram, pa)
        }
    }

    /// True if something is behind the entry, so that walks over holes must stop at it.
    pub(crate) fn is_live(self) -> bool {
        !matches!(self, Self::Unassigned(_) | Self::UnassignedNs)
    }

    /// True if the table walker can have cached a translation from the entry.
    pub(crate) fn is_mapping(self) -> bool {
        matches!(self, Self::Assigned(Ripas::Ram, _) | Self::AssignedNs(_))
    }

    /// True if the entry counts as a reference to its table.
    pub(crate) fn is_counted(self) -> bool {
        matches!(self, Self::Assigned(..) | Self::Table(_))
    }

    /// Entry number `index` of the table at `level` that this entry of the level above turns into
    /// when it is split; none if it is a table.
    pub(crate) fn split(self, level: i64, index: u64) -> Option<Self> {
        let offset = index * entry_size(level);
        match self {
            Self::Unassigned(_) | Self::UnassignedNs => Some(self),
            Self::Assigned(ripas, pa) => Some(Self::Assigned(ripas, pa.offset(offset))),
            Self::AssignedNs(host) => {
                Some(Self::AssignedNs(host.with_pa(host.pa().offset(offset))))
            }
            Self::Table(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn samples(level: i64) -> Vec<Entry> {
        let pa = Pa(1 << 39);
        let host = HostDescriptor::new(pa.0 | MEM_ATTR_NORMAL_WB | S2AP_RW, level).unwrap();
        let mut entries = Vec::from([Entry::UnassignedNs, Entry::AssignedNs(host)]);
        for ripas in [Ripas::Empty, Ripas::Ram, Ripas::Destroyed] {
            entries.push(Entry::Unassigned(ripas));
            entries.push(Entry::Assigned(ripas, pa));
        }
        if level < PAGE_LEVEL {
            entries.push(Entry::Table(pa));
        }
        entries
    }

    #[test]
    fn encoding_is_reversible() {
        for level in 0..=PAGE_LEVEL {
            for entry in samples(level) {
                assert_eq!(Entry::decode(entry.encode(level), level), entry);
            }
        }
    }

    #[test]
    fn only_mappings_and_tables_are_valid_for_the_walker() {
        for entry in samples(2) {
            let valid = entry.encode(2) & VALID != 0;
            assert_eq!(valid, entry.is_mapping() || matches!(entry, Entry::Table(_)));
        }
    }

    #[test]
    fn host_descriptors_are_checked() {
        assert!(HostDescriptor::new(0x8000_0000 | MEM_ATTR_NORMAL_WB, 2).is_some());
        assert!(HostDescriptor::new(0x8000_1000 | MEM_ATTR_NORMAL_WB, 2).is_none());
        assert!(HostDescriptor::new(0x8000_1000 | MEM_ATTR_NORMAL_WB, 3).is_some());
        assert!(HostDescriptor::new(0x8000_0000 | MEM_ATTR_RESERVED, 3).is_none());
        assert!(HostDescriptor::new(0x8000_0000 | AF, 3).is_none());
        assert!(HostDescriptor::new(1 << 48, 3).is_none());
    }
}
