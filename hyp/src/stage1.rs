//! EL2 stage-1 tables: identity map on `aarch64-paging`.

use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use aarch64_paging::{MapError, Mapping};
use core::ptr::NonNull;
use mm::PhysAddr;
use mm::ledger::PhysRange;

/// A page for a table.
pub type TablePage = PageTable<El23Attributes>;

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read and execute.
    Code,
    /// Read.
    ReadOnly,
    /// Read and write.
    Data,
    /// Device-nGnRE.
    Device,
}

struct Pool {
    free: &'static mut [TablePage],
}

impl Translation<El23Attributes> for Pool {
    fn allocate_table(&mut self) -> (NonNull<TablePage>, PhysicalAddress) {
        let Some((page, rest)) = core::mem::take(&mut self.free).split_first_mut() else {
            panic!("out of pages for stage-1 tables");
        };
        self.free = rest;
        let page = NonNull::from(page);
        (page, PhysicalAddress(page.addr().get()))
    }

    unsafe fn deallocate_table(&mut self, _page: NonNull<TablePage>) {}

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<TablePage> {
        NonNull::new(pa.0 as *mut TablePage).expect("no table lies at address 0")
    }
}

/// The tables.
pub struct Stage1 {
    map: Mapping<Pool, El2>,
}

impl Stage1 {
    /// Empty tables.
    pub fn new(free: &'static mut [TablePage]) -> Self {
        Self { map: Mapping::new(Pool { free }, 0, El2) }
    }

    /// Maps a range of whole pages.
    ///
    /// # Errors
    ///
    /// As `aarch64-paging` says.
    pub fn map(&mut self, range: PhysRange, kind: Kind) -> Result<(), MapError> {
        let common = El23Attributes::VALID | El23Attributes::ACCESSED | El23Attributes::USER_RES1;
        let normal = common | El23Attributes::ATTRIBUTE_INDEX_1 | El23Attributes::INNER_SHAREABLE;
        let flags = match kind {
            Kind::Code => normal | El23Attributes::READ_ONLY,
            Kind::ReadOnly => normal | El23Attributes::READ_ONLY | El23Attributes::XN,
            Kind::Data => normal | El23Attributes::XN,
            Kind::Device => common | El23Attributes::ATTRIBUTE_INDEX_0 | El23Attributes::XN,
        };
        let start = range.start.get() as usize;
        self.map.map_range(
            &MemoryRegion::new(start, range.end.get() as usize),
            PhysicalAddress(start),
            flags,
            Constraints::empty(),
        )
    }

    /// Root table.
    pub fn root(&self) -> PhysAddr {
        PhysAddr::new(self.map.root_address().0 as u64)
    }

    /// The tables are in use from now on.
    pub fn mark_live(&mut self) {
        self.map.mark_active();
    }
}
