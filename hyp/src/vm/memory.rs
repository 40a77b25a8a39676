//! Memory of a normal VM: its granules, and the stage-2 tables that map them.

use crate::arch::tables::TablePages;
use crate::arch::tlb::Stage2Tlb;
use crate::arch::{bulk, cache, phys};
use crate::memory::ledger;
use arrayvec::ArrayVec;
use core::fmt;
use mm::ledger::{Frames, GranuleState, OutOfMemory, Owner, Undelegated, Use};
use mm::stage2::{
    Access, Attributes, FaultOutcome, Geometry, MapError, Mapping, Permissions, Stage2, Vmid,
    VmidSlot,
};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use vmm_services::{GuestMemory, MemoryFault, layout};

/// Most runs of contiguous granules that the RAM of one VM is put together from.
const MAX_CHUNKS: usize = 64;

/// Why a normal VM cannot have its memory. The VM is refused; nothing is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// The machine has not enough free RAM.
    OutOfMemory(OutOfMemory),
    /// Free RAM is in more pieces than a VM can be put together from.
    Fragmented,
    /// Stage-2 refused a mapping.
    Stage2(MapError),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(error) => fmt::Display::fmt(error, f),
            Self::Fragmented => write!(f, "free memory is in more than {MAX_CHUNKS} pieces"),
            Self::Stage2(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for MemoryError {}

/// A run of granules at consecutive IPAs.
struct Chunk {
    ipa: Ipa,
    frames: Frames<Undelegated>,
}

/// RAM and stage-2 tables of one normal VM.
pub struct VmMemory {
    stage2: Stage2<TablePages, Stage2Tlb>,
    chunks: ArrayVec<Chunk, MAX_CHUNKS>,
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
        match Self::try_new(owner, bytes, geometry, slot) {
            Err(MemoryError::OutOfMemory(_) | MemoryError::Fragmented)
                if super::realm::drain_pool() > 0 =>
            {
                Self::try_new(owner, bytes, geometry, slot)
            }
            outcome => outcome,
        }
    }

    fn try_new(
        owner: Owner,
        bytes: u64,
        geometry: Geometry,
        slot: &VmidSlot,
    ) -> Result<Self, MemoryError> {
        let stage2 = Stage2::new(geometry, TablePages::new(owner), Stage2Tlb)
            .map_err(|_| MemoryError::Stage2(MapError::OutOfTables))?;
        let mut memory = Self { stage2, chunks: ArrayVec::new() };
        match memory.populate(owner, bytes, slot) {
            Ok(()) => Ok(memory),
            Err(error) => {
                memory.release(slot);
                Err(error)
            }
        }
    }

    /// Takes the largest blocks that are free, so that stage-2 needs few entries.
    fn populate(&mut self, owner: Owner, bytes: u64, slot: &VmidSlot) -> Result<(), MemoryError> {
        let mut left = bytes / PAGE_SIZE;
        let mut ipa = layout::RAM;
        let mut limit = mm::ledger::MAX_ORDER;
        while left > 0 {
            if self.chunks.is_full() {
                return Err(MemoryError::Fragmented);
            }
            // No larger than what is left, nor than the alignment of the IPA, so that a block of
            // granules can be a block of stage-2.
            let fits = left.ilog2().min((ipa.get() / PAGE_SIZE).trailing_zeros()) as u8;
            let order = fits.min(limit);
            let mut frames = match ledger().alloc(order, Use::VmMemory, owner) {
                Ok(frames) => frames,
                Err(_) if order > 0 => {
                    limit = order - 1;
                    continue;
                }
                Err(error) => return Err(MemoryError::OutOfMemory(error)),
            };
            bulk::zero(phys::bytes_mut(&mut frames));
            let (base, size) = (frames.base(), frames.bytes());
            self.chunks.push(Chunk { ipa, frames });
            self.stage2
                .map(slot, ipa, base, size, Attributes::normal(Permissions::RWX))
                .map_err(MemoryError::Stage2)?;
            left -= size / PAGE_SIZE;
            ipa = Ipa::new(ipa.get() + size);
        }
        Ok(())
    }

    /// Copies `data` to `ipa` before the VM starts. `false` if it is not all RAM of the VM.
    #[must_use]
    pub fn fill(&mut self, ipa: Ipa, data: &[u8]) -> bool {
        let mut at = ipa.get();
        let mut rest = data;
        for chunk in &mut self.chunks {
            let start = chunk.ipa.get();
            if at < start || at - start >= chunk.frames.bytes() {
                continue;
            }
            let Some(target) = phys::bytes_mut(&mut chunk.frames).get_mut((at - start) as usize..)
            else {
                return false;
            };
            let copied = bulk::copy(target, rest);
            rest = rest.get(copied..).unwrap_or(&[]);
            at += copied as u64;
            if rest.is_empty() {
                break;
            }
        }
        rest.is_empty()
    }

    /// Makes the zeros and what [`Self::fill`] wrote visible to a guest that starts with its caches
    /// off, and to its instruction fetches.
    pub fn publish(&self) {
        for chunk in &self.chunks {
            let (base, bytes) = (chunk.frames.base(), chunk.frames.bytes());
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
        for chunk in self.chunks {
            ledger().free(chunk.frames);
        }
    }
}

impl GuestMemory for VmMemory {
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let mut done = 0;
        while done < buf.len() {
            let (chunk, offset, length) = self.locate(ipa, done, buf.len())?;
            let piece = buf.get_mut(done..done + length).ok_or(MemoryFault { ipa })?;
            if !phys::read(&chunk.frames, offset, piece) {
                return Err(MemoryFault { ipa });
            }
            done += length;
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        let mut done = 0;
        while done < data.len() {
            let (chunk, offset, length) = self.locate(ipa, done, data.len())?;
            let piece = data.get(done..done + length).ok_or(MemoryFault { ipa })?;
            if !phys::write(&chunk.frames, offset, piece) {
                return Err(MemoryFault { ipa });
            }
            done += length;
        }
        Ok(())
    }
}

impl VmMemory {
    /// The chunk that has the byte `done` bytes after `ipa`, the offset in it, and how many of the
    /// remaining bytes up to `total` it holds.
    fn locate(
        &self,
        ipa: Ipa,
        done: usize,
        total: usize,
    ) -> Result<(&Chunk, u64, usize), MemoryFault> {
        let at = ipa.checked_add(done as u64).ok_or(MemoryFault { ipa })?;
        for chunk in &self.chunks {
            let Some(offset) = at.get().checked_sub(chunk.ipa.get()) else { continue };
            if offset < chunk.frames.bytes() {
                let room = usize::try_from(chunk.frames.bytes() - offset).unwrap_or(usize::MAX);
                return Ok((chunk, offset, room.min(total - done)));
            }
        }
        Err(MemoryFault { ipa: at })
    }
}
