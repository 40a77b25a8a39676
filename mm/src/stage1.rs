//! EL2 stage-1 tables: the hypervisor's own identity map, on `aarch64-paging`.
//!
//! Classic regime (`HCR_EL2.E2H` = 0), 4 KiB granule, 48-bit input addresses, virtual address =
//! physical address. The crate is used without its heap: table pages come from a fixed pool. What this
//! wrapper adds is what the crate leaves to its users: running out of table pages and mapping over
//! something else are errors found before anything changes (the crate would panic, or remap).
//!
//! Nothing is both writable and executable: no [`Kind`] says so, and the hypervisor sets
//! `SCTLR_EL2.WXN` as well. Guard pages are pages that are not mapped. Memory that is delegated to the
//! realm world stays mapped, in large blocks: an access to it takes a granule protection fault, which names
//! the granule, and architecturally that check comes after translation whatever these tables say.
//!
//! The first tables, with which the MMU is switched on, are made by the boot assembly of `hyp`; this
//! code uses atomics and so runs with the MMU on.

use core::fmt;
use core::mem::ManuallyDrop;
use core::num::NonZeroUsize;
use core::ptr::NonNull;

use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use aarch64_paging::{MapError, Mapping};

use crate::ledger::PhysRange;
use crate::{PAGE_SIZE, PhysAddr};

/// `MAIR_EL2` for these tables: index 0 Device-nGnRE, index 1 Normal write-back with read and write
/// allocation, index 2 Device-nGnRnE.
pub const MAIR: u64 = 0x00_ff_04;

/// Input addresses are below this.
const INPUT_END: u64 = 1 << 48;
/// Bytes that an entry of level 0, 1 and 2 covers.
const ENTRY_BYTES: [u64; 3] = [1 << 39, 1 << 30, 1 << 21];

/// A page for a table.
pub type TablePage = PageTable<El23Attributes>;

/// What a range is mapped as. Nothing can be both writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Normal memory, read and execute.
    Code,
    /// Normal memory, read.
    ReadOnly,
    /// Normal memory, read and write.
    Data,
    /// Device-nGnRE, read and write.
    Device,
    /// Device-nGnRnE, read and write: for registers that need every write acknowledged by the end point.
    DeviceStrict,
}

impl Kind {
    fn attributes(self) -> El23Attributes {
        type A = El23Attributes;
        let common = A::VALID | A::ACCESSED | A::USER_RES1;
        let normal = common | A::ATTRIBUTE_INDEX_1 | A::INNER_SHAREABLE;
        match self {
            Self::Code => normal | A::READ_ONLY,
            Self::ReadOnly => normal | A::READ_ONLY | A::XN,
            Self::Data => normal | A::XN,
            Self::Device => common | A::ATTRIBUTE_INDEX_0 | A::XN,
            Self::DeviceStrict => common | A::ATTRIBUTE_INDEX_2 | A::XN,
        }
    }
}

/// Why a change of the hypervisor's own map was refused. Nothing has changed, except as
/// [`Stage1Error::Paging`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage1Error {
    /// The range is empty, inverted, not of whole pages, or beyond 48 bits.
    BadRange(PhysRange),
    /// The pool may not have the table pages that this needs in the worst case.
    OutOfTables,
    /// Something else is mapped at this address.
    Overlap(PhysAddr),
    /// The block or page at this address reaches beyond the range; it is not split while in use.
    Straddles(PhysAddr),
    /// `aarch64-paging` refused for a reason that was not foreseen here.
    Paging(MapError),
}

impl fmt::Display for Stage1Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange(range) => write!(f, "{range} is not a range of whole pages"),
            Self::OutOfTables => f.write_str("not enough pages for stage-1 tables"),
            Self::Overlap(at) => write!(f, "{at} is mapped as something else"),
            Self::Straddles(at) => write!(f, "the block at {at} reaches beyond the range"),
            Self::Paging(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for Stage1Error {}

/// Table pages, at most 128.
struct TablePool {
    base: NonNull<TablePage>,
    count: usize,
    /// Bit `n` stands for page `n`.
    used: u128,
}

// SAFETY: the pool is made from an exclusive reference that lasts forever and that it never gives out
// again, so its pages belong to whichever core owns the pool.
unsafe impl Send for TablePool {}

impl TablePool {
    fn new(pages: &'static mut [TablePage]) -> Self {
        let count = pages.len().min(128);
        Self { base: NonNull::from(pages).cast(), count, used: 0 }
    }

    fn free_pages(&self) -> usize {
        // At most 128.
        self.count - self.used.count_ones() as usize
    }

    /// Address of page `index`, which is below `count`.
    fn address(&self, index: usize) -> NonZeroUsize {
        // The pool does not wrap around the address space, so the sum is neither 0 nor too large.
        self.base.addr().saturating_add(index * size_of::<TablePage>())
    }

    /// Index of the page at `address`; `count` or more if it is none of the pool's.
    fn index(&self, address: usize) -> usize {
        address.wrapping_sub(self.base.addr().get()) / size_of::<TablePage>()
    }
}

impl Translation<El23Attributes> for TablePool {
    /// Panics when the pool is empty, which [`Stage1`] rules out before it changes anything.
    fn allocate_table(&mut self) -> (NonNull<TablePage>, PhysicalAddress) {
        let index = self.used.trailing_ones() as usize;
        assert!(index < self.count, "stage-1 table pages were counted wrongly");
        self.used |= 1 << index;
        let address = self.address(index);
        (self.base.with_addr(address), PhysicalAddress(address.get()))
    }

    unsafe fn deallocate_table(&mut self, page: NonNull<TablePage>) {
        // SAFETY: `page` came from `allocate_table`, so it points to a page of the pool, and the caller
        // promises that nothing refers to it any more.
        unsafe { page.write(TablePage::EMPTY) };
        self.used &= !(1 << self.index(page.addr().get()));
    }

    /// Panics for an address outside the pool, which only corrupt tables can hold.
    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<TablePage> {
        let index = self.index(pa.0);
        assert!(index < self.count, "a stage-1 descriptor points outside the table pages");
        self.base.with_addr(self.address(index))
    }
}

/// The hypervisor's own tables. They are for good: dropping this leaves them as they are, since a core
/// may be using them.
pub struct Stage1 {
    map: ManuallyDrop<Mapping<TablePool, El2>>,
}

impl fmt::Debug for Stage1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage1")
            .field("root", &self.root())
            .field("free_table_pages", &self.free_table_pages())
            .finish_non_exhaustive()
    }
}

impl Stage1 {
    /// Makes tables that map nothing. Of `pages`, which are zeroed, at most 128 are used. They lie in
    /// memory that is mapped at its physical address.
    ///
    /// # Errors
    ///
    /// [`Stage1Error::OutOfTables`] if there is no page at all.
    pub fn new(pages: &'static mut [TablePage]) -> Result<Self, Stage1Error> {
        if pages.is_empty() {
            return Err(Stage1Error::OutOfTables);
        }
        let map = Mapping::new(TablePool::new(pages), 0, El2);
        Ok(Self { map: ManuallyDrop::new(map) })
    }

    /// Maps a range of whole pages to itself, in the largest blocks that fit. Parts that are mapped
    /// so already stay. May be called while the tables are in use.
    ///
    /// # Errors
    ///
    /// See [`Stage1Error`]; nothing is mapped then.
    pub fn map(&mut self, range: PhysRange, kind: Kind) -> Result<(), Stage1Error> {
        self.map_with(range, kind, Constraints::NO_CONTIGUOUS_HINT)
    }

    /// Maps as [`Self::map`] does, but in single pages, each of which can be unmapped later.
    ///
    /// # Errors
    ///
    /// See [`Stage1Error`]; nothing is mapped then.
    pub fn map_pages(&mut self, range: PhysRange, kind: Kind) -> Result<(), Stage1Error> {
        self.map_with(range, kind, Constraints::NO_CONTIGUOUS_HINT | Constraints::NO_BLOCK_MAPPINGS)
    }

    /// Unmaps a range of whole pages; holes are allowed. While the tables are in use, all cores forget
    /// the range before this returns. Table pages that become empty are kept for the next mapping
    /// there.
    ///
    /// # Errors
    ///
    /// [`Stage1Error::Straddles`] when a block lies only partly inside, [`Stage1Error::BadRange`];
    /// nothing is unmapped then.
    pub fn unmap(&mut self, range: PhysRange) -> Result<(), Stage1Error> {
        check(range)?;
        self.for_each_entry(range, |leaf, attributes| {
            let straddles = leaf.start < range.start || leaf.end > range.end;
            if attributes.is_some() && straddles {
                return Err(Stage1Error::Straddles(leaf.start));
            }
            Ok(())
        })?;
        let mut at = range.start.get();
        while at < range.end.get() {
            let (leaf, attributes) = self.entry(at)?;
            if attributes.is_some() {
                let nothing = El23Attributes::empty();
                self.write(leaf, nothing, Constraints::NO_CONTIGUOUS_HINT)?;
            }
            at = leaf.end.get();
        }
        Ok(())
    }

    /// What is mapped at an address: the attributes of `kind`, if all of `range` is mapped as that.
    #[must_use]
    pub fn is_mapped(&self, range: PhysRange, kind: Kind) -> bool {
        let wanted = Some(kind.attributes());
        self.for_each_entry(range, |leaf, found| {
            if found == wanted { Ok(()) } else { Err(Stage1Error::Overlap(leaf.start)) }
        })
        .is_ok()
    }

    /// Physical address of the root table, for `TTBR0_EL2`.
    #[must_use]
    pub fn root(&self) -> PhysAddr {
        PhysAddr::new(self.map.root_address().0 as u64)
    }

    /// Says that the tables are in use, or are about to be, by cores from now on: what would need
    /// break-before-make is refused, and unmapping invalidates the TLBs.
    pub fn mark_live(&mut self) {
        self.map.mark_active();
    }

    /// Table pages that are left.
    #[must_use]
    pub fn free_table_pages(&self) -> usize {
        self.map.translation().free_pages()
    }

    fn map_with(
        &mut self,
        range: PhysRange,
        kind: Kind,
        constraints: Constraints,
    ) -> Result<(), Stage1Error> {
        check(range)?;
        let attributes = kind.attributes();
        self.for_each_entry(range, |leaf, found| match found {
            Some(found) if found != attributes => {
                Err(Stage1Error::Overlap(leaf.start.max(range.start)))
            }
            _ => Ok(()),
        })?;
        let in_pages = constraints.contains(Constraints::NO_BLOCK_MAPPINGS);
        if tables_at_most(range, in_pages) > self.free_table_pages() as u64 {
            return Err(Stage1Error::OutOfTables);
        }
        self.write(range, attributes, constraints)
    }

    fn write(
        &mut self,
        range: PhysRange,
        attributes: El23Attributes,
        constraints: Constraints,
    ) -> Result<(), Stage1Error> {
        let (start, end) = (address(range.start.get()), address(range.end.get()));
        self.map
            .map_range(
                &MemoryRegion::new(start, end),
                PhysicalAddress(start),
                attributes,
                constraints,
            )
            .map_err(Stage1Error::Paging)
    }

    /// The entry that decides about `at`: what it covers, and its attributes if it maps something.
    fn entry(&self, at: u64) -> Result<(PhysRange, Option<El23Attributes>), Stage1Error> {
        let start = PhysAddr::new(at);
        let page = PhysRange::new(start, PhysAddr::new(at.saturating_add(PAGE_SIZE)));
        let mut found = None;
        self.for_each_entry(page, |leaf, attributes| {
            found = Some((leaf, attributes));
            Ok(())
        })?;
        found.ok_or(Stage1Error::BadRange(page))
    }

    /// Calls `visit` for the entries that decide about `range`, in ascending order and up to the first
    /// error, with what each covers, and its attributes if it maps something. One walk for the whole
    /// range: a walk for each page costs several times as much.
    fn for_each_entry(
        &self,
        range: PhysRange,
        mut visit: impl FnMut(PhysRange, Option<El23Attributes>) -> Result<(), Stage1Error>,
    ) -> Result<(), Stage1Error> {
        let region = MemoryRegion::new(address(range.start.get()), address(range.end.get()));
        let mut refused = None;
        let walked = self.map.walk_range(&region, &mut |part, descriptor, level| {
            let bytes = ENTRY_BYTES.get(level).copied().unwrap_or(PAGE_SIZE);
            let first = PhysAddr::new(part.start().0 as u64).align_down(bytes);
            let end = PhysAddr::new(first.get().saturating_add(bytes));
            let attributes = descriptor.flags() - El23Attributes::TABLE_OR_PAGE;
            let attributes = descriptor.is_valid().then_some(attributes);
            visit(PhysRange::new(first, end), attributes).map_err(|error| refused = Some(error))
        });
        match refused {
            Some(error) => Err(error),
            None => walked.map_err(Stage1Error::Paging),
        }
    }
}

/// A checked address; below 48 bits, so that it fits.
fn address(at: u64) -> usize {
    at as usize
}

fn check(range: PhysRange) -> Result<(), Stage1Error> {
    let pages = range.start.is_aligned(PAGE_SIZE) && range.end.is_aligned(PAGE_SIZE);
    if pages && range.start < range.end && range.end.get() <= INPUT_END {
        Ok(())
    } else {
        Err(Stage1Error::BadRange(range))
    }
}

/// Most table pages that mapping `range` can take: one for each entry that is covered in part, or that
/// can or shall have no block. Tables that exist already are counted as well.
fn tables_at_most(range: PhysRange, in_pages: bool) -> u64 {
    let (start, end) = (range.start.get(), range.end.get());
    ENTRY_BYTES
        .iter()
        .enumerate()
        .map(|(level, &bytes)| {
            let touched = end.div_ceil(bytes) - start / bytes;
            let whole = (end / bytes).saturating_sub(start.div_ceil(bytes));
            if level == 0 || in_pages { touched } else { touched - whole }
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn tables(pages: usize) -> Stage1 {
        let pages: Vec<TablePage> = (0..pages).map(|_| TablePage::EMPTY).collect();
        Stage1::new(Box::leak(pages.into_boxed_slice())).unwrap()
    }

    fn range(start: u64, bytes: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), PhysAddr::new(start + bytes))
    }

    fn raw(map: &Stage1, at: u64) -> u64 {
        let page = MemoryRegion::new(at as usize, at as usize + 4096);
        let mut bits = 0;
        map.map
            .walk_range(&page, &mut |_, descriptor, _| {
                bits = descriptor.flags().bits() as u64 | descriptor.output_address().0 as u64;
                Ok(())
            })
            .unwrap();
        bits
    }

    #[test]
    fn descriptors_are_what_the_architecture_wants() {
        let mut map = tables(16);
        // Bits: page 0b11, AttrIndx 4:2, AP[1] RES1 bit 6, AP[2] bit 7, SH 9:8, AF bit 10, XN bit 54.
        for (at, kind, bits) in [
            (0x1000, Kind::Code, 0x7c7),
            (0x2000, Kind::ReadOnly, 1 << 54 | 0x7c7),
            (0x3000, Kind::Data, 1 << 54 | 0x747),
            (0x4000, Kind::Device, 1 << 54 | 0x443),
            (0x5000, Kind::DeviceStrict, 1 << 54 | 0x44b),
        ] {
            map.map(range(at, 4096), kind).unwrap();
            assert_eq!(raw(&map, at), bits | at, "{kind:?}");
            assert!(bits & (1 << 54 | 1 << 7) != 0, "writable and executable");
        }
        map.map(range(GIB, GIB), Kind::Data).unwrap();
        assert_eq!(raw(&map, GIB), 1 << 54 | 0x745 | GIB, "one 1 GiB block");
    }

    #[test]
    fn largest_blocks_and_few_tables() {
        let mut map = tables(8);
        map.map(range(GIB - 2 * MIB, 2 * GIB + 4 * MIB), Kind::Data).unwrap();
        // Root, level 1, and a level 2 table at either end.
        assert_eq!(map.free_table_pages(), 8 - 4);
        assert!(map.is_mapped(range(GIB - 2 * MIB, 2 * GIB + 4 * MIB), Kind::Data));
        assert!(!map.is_mapped(range(GIB - 4 * MIB, 4 * MIB), Kind::Data));
    }

    #[test]
    fn overlap_is_refused_and_repetition_is_not() {
        let mut map = tables(16);
        map.map(range(MIB, MIB), Kind::Code).unwrap();
        map.mark_live();
        assert_eq!(
            map.map(range(0, 2 * MIB), Kind::Data),
            Err(Stage1Error::Overlap(PhysAddr::new(MIB)))
        );
        assert!(!map.is_mapped(range(0, 4096), Kind::Data), "nothing was mapped");
        map.map(range(0, 2 * MIB), Kind::Code).unwrap();
        assert!(map.is_mapped(range(0, 2 * MIB), Kind::Code));
        // Entries of several levels in one range, and a block that begins before it.
        map.map(range(4 * MIB, 2 * MIB), Kind::Device).unwrap();
        assert_eq!(
            map.map(range(2 * MIB, 3 * MIB), Kind::Data),
            Err(Stage1Error::Overlap(PhysAddr::new(4 * MIB)))
        );
        assert_eq!(
            map.map(range(5 * MIB, 3 * MIB), Kind::Data),
            Err(Stage1Error::Overlap(PhysAddr::new(5 * MIB)))
        );
        assert!(!map.is_mapped(range(2 * MIB, 4096), Kind::Data), "nothing was mapped");
    }

    #[test]
    fn running_out_of_tables_is_an_error_before_any_change() {
        for pages in 1..8 {
            let mut map = tables(pages);
            map.mark_live();
            let wanted = range(GIB - 4096, 8192);
            let free = map.free_table_pages();
            match map.map(wanted, Kind::Data) {
                // Level 1, and levels 2 and 3 at either side.
                Ok(()) => assert!(free >= 5),
                Err(error) => {
                    assert_eq!(error, Stage1Error::OutOfTables);
                    assert!(free < 5);
                    assert_eq!(map.free_table_pages(), free);
                }
            }
        }
    }

    #[test]
    fn pages_and_whole_blocks_can_be_unmapped_live() {
        let mut map = tables(16);
        map.map(range(0, 8 * MIB), Kind::Data).unwrap();
        map.map_pages(range(8 * MIB, 2 * MIB), Kind::Data).unwrap();
        map.mark_live();
        map.unmap(range(2 * MIB, 2 * MIB)).unwrap();
        map.unmap(range(8 * MIB + 4096, 4096)).unwrap();
        assert!(map.is_mapped(range(0, 2 * MIB), Kind::Data));
        assert!(!map.is_mapped(range(2 * MIB, 4096), Kind::Data));
        assert!(map.is_mapped(range(4 * MIB, 4 * MIB + 4096), Kind::Data));
        assert!(!map.is_mapped(range(8 * MIB + 4096, 4096), Kind::Data));
        assert_eq!(map.unmap(range(4096, 4 * MIB)), Err(Stage1Error::Straddles(PhysAddr::new(0))));
        assert_eq!(
            map.unmap(range(2 * MIB, 3 * MIB)),
            Err(Stage1Error::Straddles(PhysAddr::new(4 * MIB)))
        );
        assert!(map.is_mapped(range(0, 2 * MIB), Kind::Data), "nothing was unmapped");
        map.map(range(2 * MIB, 2 * MIB), Kind::Device).unwrap();
        assert!(map.is_mapped(range(2 * MIB, 2 * MIB), Kind::Device));
    }

    #[test]
    fn bad_ranges_are_refused() {
        let mut map = tables(4);
        for bad in [range(1, 4096), range(0, 4095), range(4096, 0), range(INPUT_END, 4096)] {
            assert_eq!(map.map(bad, Kind::Data), Err(Stage1Error::BadRange(bad)));
            assert_eq!(map.unmap(bad), Err(Stage1Error::BadRange(bad)));
        }
    }
}
