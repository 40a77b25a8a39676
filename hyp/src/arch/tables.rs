//! Stage-2 tables in memory of the ledger.

use crate::memory::ledger;
use core::sync::atomic::{AtomicU64, Ordering};
use mm::PhysAddr;
use mm::ledger::{Owner, Use};
use mm::stage2::{OutOfTables, TableMemory};

/// Gives and takes the table pages of one VM.
#[derive(Debug)]
pub struct TablePages {
    owner: Owner,
}

impl TablePages {
    /// Table pages that are accounted to `owner`.
    #[must_use]
    pub const fn new(owner: Owner) -> Self {
        Self { owner }
    }
}

/// The descriptor at `entry`, which lies in a page that [`TablePages`] gave out.
fn descriptor(entry: PhysAddr) -> &'static AtomicU64 {
    let pointer: *const AtomicU64 = core::ptr::with_exposed_provenance(entry.get() as usize);
    // SAFETY: `mm::stage2` passes only addresses of descriptors, 8-byte aligned, inside pages it got
    // from `alloc` and has not freed: RAM that EL2 maps, initialised to zero, and accessed by
    // atomics and table walks alone. The reference does not outlive the caller's statement.
    unsafe { &*pointer }
}

impl TableMemory for TablePages {
    fn alloc(&mut self, order: u32) -> Result<PhysAddr, OutOfTables> {
        let order = u8::try_from(order).map_err(|_| OutOfTables)?;
        let mut frames =
            crate::memory::alloc(order, Use::Stage2, self.owner).map_err(|_| OutOfTables)?;
        super::bulk::zero(super::phys::bytes_mut(&mut frames));
        // Freed again by address: the ledger keeps use and owner.
        Ok(frames.base())
    }

    fn free(&mut self, table: PhysAddr, order: u32) {
        if let Err(error) = ledger().free_untracked(table, 1 << order, Use::Stage2, self.owner) {
            log::error!("stage-2 table at {table} cannot be freed: {error}");
        }
    }

    fn read(&self, entry: PhysAddr) -> u64 {
        descriptor(entry).load(Ordering::Relaxed)
    }

    fn write(&mut self, entry: PhysAddr, value: u64) {
        descriptor(entry).store(value, Ordering::Relaxed);
    }
}
