//! Memory of a normal VM: its granules, and the stage-2 tables that map them.

use super::extents::{Extents, ExtentsError, Piece};
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
use vmm_services::{MemoryFault, layout};

/// Most runs of contiguous granules that the RAM of one VM is put together from.
const MAX_EXTENTS: usize = 64;

/// Most that is zeroed, or mapped on demand, at once: a block of stage-2 level 2.
const BLOCK: u64 = 2 << 20;

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
///
/// Its granules are its own from the start. What is in them is not the VM's before they are zeroed, so
/// they are mapped after that, and the hypervisor reads none before: all at once, or each block when it
/// is touched, by the guest or for it.
pub struct VmMemory {
    stage2: Stage2<TablePages, Stage2Tlb>,
    ram: Extents<MAX_EXTENTS>,
    /// Whether RAM that is not mapped is zeroed and mapped when it is touched.
    on_demand: bool,
}

impl VmMemory {
    /// Sets `bytes` of RAM apart for the VM, and maps nothing. If there is not enough, the granules that
    /// are kept delegated for the next realm are given back first.
    ///
    /// # Errors
    ///
    /// See [`MemoryError`]; everything taken so far has been given back.
    pub fn new(owner: Owner, bytes: u64, geometry: Geometry) -> Result<Self, MemoryError> {
        let ram = Extents::take(Use::VmMemory, owner, layout::RAM.get(), bytes)
            .map_err(MemoryError::Ram)?;
        match Stage2::new(geometry, TablePages::new(owner), Stage2Tlb) {
            Ok(stage2) => Ok(Self { stage2, ram, on_demand: false }),
            Err(_) => {
                ram.free();
                Err(MemoryError::Stage2(MapError::OutOfTables))
            }
        }
    }

    /// From now on, zeroes and maps RAM when it is touched.
    pub fn populate_on_demand(&mut self) {
        self.on_demand = true;
    }

    /// Zeroes the block of RAM around `ipa`, which is not mapped, and returns where the next one
    /// begins; `None` if there is no RAM.
    #[must_use]
    pub fn zero(&mut self, ipa: Ipa) -> Option<Ipa> {
        let piece = self.ram.piece(ipa.get(), BLOCK)?;
        self.zero_piece(piece);
        Some(Ipa::new(piece.end()))
    }

    fn zero_piece(&mut self, piece: Piece) {
        self.ram.zero(piece);
        self.clean(piece.base, piece.bytes);
    }

    /// Maps all RAM, which has been zeroed.
    ///
    /// # Errors
    ///
    /// Stage-2 refused.
    pub fn map_all(&mut self, slot: &VmidSlot) -> Result<(), MapError> {
        for extent in self.ram.iter() {
            let (base, size) = (extent.frames.base(), extent.frames.bytes());
            let attributes = Attributes::normal(Permissions::RWX);
            self.stage2.map(slot, Ipa::new(extent.start), base, size, attributes)?;
        }
        Ok(())
    }

    /// Zeroes and maps the block of RAM around `ipa`, unless that has been done, and returns where the
    /// next one begins; `None` if there is no RAM.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfTables`]; nothing has changed.
    pub fn populate(&mut self, slot: &VmidSlot, ipa: Ipa) -> Result<Option<Ipa>, MapError> {
        let Some(piece) = self.ram.piece(ipa.get(), BLOCK) else { return Ok(None) };
        if self.stage2.translate(ipa).is_none() {
            self.zero_piece(piece);
            cache::forget_instructions();
            let mut map = || {
                let attributes = Attributes::normal(Permissions::RWX);
                self.stage2.map(slot, Ipa::new(piece.start), piece.base, piece.bytes, attributes)
            };
            if map() == Err(MapError::OutOfTables) {
                super::realm::drain_pool();
                map()?;
            }
        }
        Ok(Some(Ipa::new(piece.end())))
    }

    /// Does [`Self::populate`] for `bytes` bytes, if RAM is populated on demand. What is not RAM is left
    /// for others to find.
    ///
    /// # Errors
    ///
    /// As for [`Self::populate`].
    pub fn populate_range(
        &mut self,
        slot: &VmidSlot,
        ipa: Ipa,
        bytes: u64,
    ) -> Result<(), MapError> {
        let end = Ipa::new(ipa.get().saturating_add(bytes));
        let mut at = ipa;
        while self.on_demand && at < end {
            let Some(next) = self.populate(slot, at)? else { break };
            at = next;
        }
        Ok(())
    }

    /// Copies `data` to `ipa`, zeroed RAM, before the VM starts. `false` if it is not all RAM of the VM.
    #[must_use]
    pub fn fill(&mut self, ipa: Ipa, data: &[u8]) -> bool {
        let filled = self.ram.fill(ipa.get(), data);
        let (mut at, end) = (ipa.get(), ipa.get().saturating_add(data.len() as u64));
        while let Some(piece) = self.ram.piece(at, BLOCK).filter(|_| at < end) {
            let base = PhysAddr::new(piece.base.get() + (at - piece.start));
            self.clean(base, end.min(piece.end()) - at);
            at = piece.end();
        }
        filled
    }

    /// Makes what was written to RAM visible to a guest that runs with its caches off, and to its
    /// instruction fetches, as far as data caches are concerned.
    fn clean(&self, base: PhysAddr, bytes: u64) {
        // Where stage 2 forces write-back, the guest's accesses go through the caches from the
        // first on, and find what is in them.
        if !self.stage2.geometry().forces_write_back() {
            // Invalidated, too: it would find old lines once its caches are on.
            cache::clean_invalidate(base, bytes);
        } else if cache::fetches_bypass_data_caches() {
            cache::clean_for_fetches(base, bytes);
        }
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

    /// Settles a stage-2 fault at `ipa` if RAM is there.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfTables`] if it should be mapped now, and cannot.
    pub fn resolve_fault(
        &mut self,
        slot: &VmidSlot,
        ipa: Ipa,
        access: Access,
    ) -> Result<FaultOutcome, MapError> {
        match self.stage2.resolve_fault(slot, ipa, access) {
            FaultOutcome::NotMapped if self.on_demand && self.populate(slot, ipa)?.is_some() => {
                Ok(FaultOutcome::Retry)
            }
            outcome => Ok(outcome),
        }
    }

    /// Copies RAM at `ipa` for the VM's devices.
    ///
    /// # Errors
    ///
    /// The first address that is not there; `buf` is unspecified then.
    pub fn read(&mut self, slot: &VmidSlot, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        if self.on_demand {
            self.touch(slot, ipa, buf.len())?;
        }
        self.ram.read(ipa.get(), buf).map_err(|at| MemoryFault { ipa: Ipa::new(at) })
    }

    /// Copies `data` to RAM at `ipa` for the VM's devices.
    ///
    /// # Errors
    ///
    /// The first address that is not there; what lies before may be written.
    pub fn write(&mut self, slot: &VmidSlot, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        if self.on_demand {
            self.touch(slot, ipa, data.len())?;
        }
        self.ram.write(ipa.get(), data).map_err(|at| MemoryFault { ipa: Ipa::new(at) })
    }

    /// Populates what a device is about to access, which may be touched for the first time.
    fn touch(&mut self, slot: &VmidSlot, ipa: Ipa, bytes: usize) -> Result<(), MemoryFault> {
        self.populate_range(slot, ipa, bytes as u64).map_err(|error| {
            log::error!("memory for a device's access at IPA {ipa}: {error}");
            MemoryFault { ipa }
        })
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
