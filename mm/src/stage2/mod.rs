//! Stage-2 translation tables of normal VMs: VMSAv8-64, 4 KiB granule, IPA sizes of 32 to 48 bits.
//!
//! [`Stage2`] owns the tables of one VM. It reaches table memory only through [`TableMemory`] and the
//! TLB only through [`Tlb`], so that all of it runs on the development machine.
//!
//! # What holds at every moment
//!
//! The hardware walks the tables while they are changed. Therefore:
//! - a table is complete and visible before the descriptor that points to it is written;
//! - a block is replaced by a table with break-before-make (Arm ARM, "Using break-before-make when
//!   updating translation table entries"): invalid entry, TLB invalidation, new entry. A guest that
//!   touches the block in between takes a translation fault, which [`Stage2::resolve_fault`] recognises
//!   as already resolved;
//! - a table that became empty is unhooked, and freed only after TLB invalidation has completed on all
//!   cores;
//! - every call does all or nothing. Tables that a split needs are allocated before the first entry
//!   changes; a mapping that runs out of tables half-way is taken back. After an error the translation
//!   is what it was, and no table is lost or left empty.
//!
//! Descriptors are written by this walker alone: hardware update of the access flag and the dirty
//! state stays off, so plain 64-bit stores suffice.

mod descriptor;
mod edit;
mod geometry;
mod invalidation;
mod track;
mod vmid;
mod walker;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod properties;

use core::fmt;

pub use descriptor::{Attributes, MemoryType, Permissions};
pub use geometry::{Geometry, GeometryError, Level, PaRange, VmidBits};
pub use track::{Access, FaultOutcome};
pub use vmid::{Entry, Vmid, VmidAllocator, VmidSlot};
pub use walker::{Mapping, Stage2};

use crate::{Ipa, PhysAddr};

/// No page is left for a translation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTables;

impl fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory left for translation tables")
    }
}

impl core::error::Error for OutOfTables {}

/// Memory that holds translation tables, addressed physically.
pub trait TableMemory {
    /// Allocates `2^order` zeroed pages, aligned to their size. Orders up to 4 occur, above 0 only
    /// for root tables.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`] when there are none. The caller goes on with its state as before.
    fn alloc(&mut self, order: u32) -> Result<PhysAddr, OutOfTables>;

    /// Takes back what [`Self::alloc`] gave out. No walker uses the pages any more; their contents
    /// are arbitrary.
    fn free(&mut self, table: PhysAddr, order: u32);

    /// Reads the descriptor at `entry` (8-byte aligned, inside an allocated table), single-copy
    /// atomically.
    fn read(&self, entry: PhysAddr) -> u64;

    /// Writes the descriptor at `entry`, single-copy atomically. Ordering against walkers comes from
    /// [`Tlb::publish`].
    fn write(&mut self, entry: PhysAddr, descriptor: u64);
}

/// How deep one TLB invalidation by IPA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Only the last-level entry changed (`TLBI IPAS2LE1IS`); the level may be given as a hint.
    Leaf,
    /// A table was unhooked as well: cached intermediate entries must go too (`TLBI IPAS2E1IS`), and
    /// the level is no hint.
    Walk,
}

/// TLB maintenance for stage 2, inner shareable. One implementation issues instructions, the other
/// one records what a test should see.
///
/// The instructions act on the VMID in `VTTBR_EL2`. An implementation loads `vmid` there when another
/// is current, and restores it.
pub trait Tlb {
    /// Makes all earlier descriptor writes visible to all walkers before anything later (`DSB ISHST`).
    fn publish(&self);

    /// Begins to invalidate what is cached for `ipa` under `vmid`, where an entry of `level` changed.
    fn invalidate_ipa(&self, vmid: Vmid, ipa: Ipa, level: Level, scope: Scope);

    /// Waits for the invalidations begun, then removes combined stage-1 and stage-2 entries of
    /// `vmid`, which invalidation by IPA does not reach (`DSB ISH; TLBI VMALLE1IS; DSB ISH; ISB`).
    fn complete(&self, vmid: Vmid);

    /// Invalidates everything cached under `vmid` and waits
    /// (`DSB ISHST; TLBI VMALLS12E1IS; DSB ISH; ISB`).
    fn invalidate_vmid(&self, vmid: Vmid);
}

/// Why a change of a stage-2 table was refused. Nothing has changed.
///
/// All but [`MapError::OutOfTables`] say that the caller asked for something impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// An address or a size is not a multiple of 4 KiB, or the size is 0.
    Misaligned,
    /// The range leaves the IPA space.
    IpaOutOfRange,
    /// The range leaves the machine's physical address space.
    PaOutOfRange,
    /// Something is mapped at this IPA already.
    AlreadyMapped(Ipa),
    /// Nothing is mapped at this IPA.
    NotMapped(Ipa),
    /// No page is left for a table.
    OutOfTables,
}

impl From<OutOfTables> for MapError {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned => f.write_str("address or size is not a multiple of 4 KiB"),
            Self::IpaOutOfRange => f.write_str("range leaves the IPA space"),
            Self::PaOutOfRange => f.write_str("range leaves the physical address space"),
            Self::AlreadyMapped(ipa) => write!(f, "IPA {ipa} is mapped already"),
            Self::NotMapped(ipa) => write!(f, "IPA {ipa} is not mapped"),
            Self::OutOfTables => fmt::Display::fmt(&OutOfTables, f),
        }
    }
}

impl core::error::Error for MapError {}
