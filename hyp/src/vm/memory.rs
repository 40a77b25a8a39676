//! Memory of a normal VM: its granules, and the stage-2 tables that map them.

use super::extents::{Extents, ExtentsError};
use crate::arch::cache;
use crate::arch::tables::TablePages;
use crate::arch::tlb::Stage2Tlb;
use crate::memory::ledger;
use core::fmt;
use mm::ledger::{GranuleState, Owner, Use};
use mm::stage2::{
    Access, Attributes, FaultOutcome, Geometry, MapError, Mapping, Permissions, Stage2, Vmid,
    VmidSlot,
};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use vmm_services::{GuestMemory, MemoryFault, layout};

/// Most runs of contiguous granules that the RAM of one VM is put together from.
const MAX_EXTENTS: usize = 64;

/// Why a normal VM cannot have its memory. The VM is refused; nothing is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// There is not enough free RAM, or it is in too many pieces.
    Ram(ExtentsError),
    /// Stage-2 refused a mapping.
    Stage2(MapError),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram(error) => fmt::Display::fmt(error, f),
            Self::Stage2(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for MemoryError {}

/// RAM and stage-2 tables of one normal VM.
pub struct VmMemory {
    stage2: Stage2<TablePages, Stage2Tlb>,
    ram: Extents<MAX_EXTENTS>,
}

impl VmMemory {
    /// Takes `bytes` of zeroed RAM for the VM and maps it at the start of guest RAM. If there is not
    /// enough, the granules that are kept delegated for the next realm are given back first.
    ///
    /// # Errors
    ///
    /// See [`MemoryError`]; everything taken so far has been given back.
    pub fn new(
        owner: Owner,
        bytes: u64,
        geometry: Geometry,
        slot: &VmidSlot,
    ) -> Result<Self, MemoryError> {
        let ram = Extents::new(Use::VmMemory, owner, layout::RAM.get(), bytes)
            .map_err(MemoryError::Ram)?;
        let stage2 = match Stage2::new(geometry, TablePages::new(owner), Stage2Tlb) {
            Ok(stage2) => stage2,
            Err(_) => {
                ram.free();
                return Err(MemoryError::Stage2(MapError::OutOfTables));
            }
        };
        let mut memory = Self { stage2, ram };
        match memory.map(slot) {
            Ok(()) => Ok(memory),
            Err(error) => {
                memory.release(slot);
                Err(error)
            }
        }
    }

    /// Maps all RAM at its addresses.
    fn map(&mut self, slot: &VmidSlot) -> Result<(), MemoryError> {
        for extent in self.ram.iter() {
            let (base, size) = (extent.frames.base(), extent.frames.bytes());
            self.stage2
                .map(slot, Ipa::new(extent.start), base, size, Attributes::normal(Permissions::RWX))
                .map_err(MemoryError::Stage2)?;
        }
        Ok(())
    }

    /// Copies `data` to `ipa` before the VM starts. `false` if it is not all RAM of the VM.
    #[must_use]
    pub fn fill(&mut self, ipa: Ipa, data: &[u8]) -> bool {
        self.ram.fill(ipa.get(), data)
    }

    /// Makes the zeros and what [`Self::fill`] wrote visible to a guest that starts with its caches
    /// off, and to its instruction fetches.
    pub fn publish(&self) {
        for extent in self.ram.iter() {
            let (base, bytes) = (extent.frames.base(), extent.frames.bytes());
            // Where stage 2 forces write-back, the guest's accesses go through the caches from the
            // first on, and find what is in them.
            if !self.stage2.geometry().forces_write_back() {
                cache::clean(base, bytes);
            } else if cache::fetches_bypass_data_caches() {
                cache::clean_for_fetches(base, bytes);
            }
        }
        cache::forget_instructions();
    }

    /// Cleans and invalidates the caches of the VM's RAM from `ipa` on, as much as fits into a moment;
    /// returns where to go on, `None` at the end. With FEAT_S2FWB there is nothing to do: the guest
    /// has no way to reach RAM past the caches.
    #[must_use]
    pub fn flush_caches(&self, ipa: Ipa) -> Option<Ipa> {
        const SLICE: u64 = 256 << 10;
        if self.stage2.geometry().forces_write_back() {
            return None;
        }
        let (start, rest) = self.ram.iter().find_map(|extent| {
            let offset = ipa.get().checked_sub(extent.start)?;
            let rest = extent.frames.bytes().checked_sub(offset).filter(|rest| *rest != 0)?;
            Some((PhysAddr::new(extent.frames.base().get() + offset), rest))
        })?;
        let bytes = rest.min(SLICE);
        cache::clean_invalidate(start, bytes);
        ipa.checked_add(bytes)
    }

    /// Maps one page of somebody else's memory at [`layout::STRAY`]: the isolation scenario does
    /// this on purpose with a granule of a realm.
    ///
    /// # Errors
    ///
    /// Stage-2 refused.
    pub fn map_stray(&mut self, slot: &VmidSlot, pa: PhysAddr) -> Result<(), MapError> {
        let attributes = Attributes::normal(Permissions::RW);
        self.stage2.map(slot, layout::STRAY, pa, PAGE_SIZE, attributes)
    }

    /// Maps the memory of a channel: data that the guest does not execute.
    ///
    /// # Errors
    ///
    /// Stage-2 refused.
    pub fn map_channel(
        &mut self,
        slot: &VmidSlot,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
    ) -> Result<(), MapError> {
        self.stage2.map(slot, ipa, pa, bytes, Attributes::normal(Permissions::RW))
    }

    /// Maps registers of a device of the machine: Device-nGnRE, never executable. They are unmapped
    /// when the VM's memory is released.
    ///
    /// # Errors
    ///
    /// Stage-2 refused.
    pub fn map_device(
        &mut self,
        slot: &VmidSlot,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
    ) -> Result<(), MapError> {
        self.stage2.map(slot, ipa, pa, bytes, Attributes::device(Permissions::RW))
    }

    /// `VTTBR_EL2` of this VM.
    #[must_use]
    pub fn vttbr(&self, vmid: Vmid) -> u64 {
        self.stage2.vttbr(vmid)
    }

    /// Whether a stage-2 fault at `ipa` is settled already.
    pub fn resolve_fault(&mut self, slot: &VmidSlot, ipa: Ipa, access: Access) -> FaultOutcome {
        self.stage2.resolve_fault(slot, ipa, access)
    }

    /// What stage-2 maps at `ipa`, with the state of the granule there, for reports.
    #[must_use]
    pub fn backing(&self, ipa: Ipa) -> Option<(Mapping, Option<GranuleState>)> {
        let mapping = self.stage2.translate(ipa)?;
        Some((mapping, ledger().state(mapping.pa)))
    }

    /// Gives all granules back. No core has the tables loaded.
    pub fn release(self, slot: &VmidSlot) {
        let _ = self.stage2.teardown(slot);
        self.ram.free();
    }
}

impl GuestMemory for VmMemory {
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.ram.read(ipa.get(), buf).map_err(|at| MemoryFault { ipa: Ipa::new(at) })
    }

    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        self.ram.write(ipa.get(), data).map_err(|at| MemoryFault { ipa: Ipa::new(at) })
    }
}
