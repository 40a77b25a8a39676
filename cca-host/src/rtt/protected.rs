//! Protected memory: mapping with and without contents, and unmapping.

use mm::ledger::{Delegated, Frames, RmmUse, Use};
use mm::{Ipa, PhysAddr};

use super::Tables;
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::geometry::{LAST_LEVEL, TOP_BLOCK_LEVEL};
use crate::status::Status;

/// Bit 0 of the flags of DATA_CREATE and RTT_DATA_MAP_INIT: measure the contents.
const MEASURE: u64 = 1;

impl<H: Host> Tables<'_, '_, H> {
    /// Maps pages with contents at `ipa`, before activation: page `n` gets the contents of the granule
    /// `source(n)` in the normal world. `measure` extends the RIM with the contents.
    ///
    /// Whole blocks are backed by contiguous memory and folded.
    pub(crate) fn populate(
        &self,
        ipa: Ipa,
        pages: u64,
        measure: bool,
        source: impl Fn(u64) -> PhysAddr,
    ) -> Result<(), Error> {
        let granule = self.geometry.granule();
        let top = ipa.get() + pages * granule;
        let flags = if measure { MEASURE } else { 0 };
        let mut at = ipa.get();
        while at < top {
            let level = self.geometry.largest_level(at, top, LAST_LEVEL - 1);
            let frames = self.backing(self.geometry.entry_bytes(level))?;
            let (base, bytes) = (at, frames.bytes());
            self.map_each(at, frames, |data, at| {
                let from = source((at - ipa.get()) / granule);
                let command = Command::DataCreate;
                let args = [self.rd.get(), data, at, from.get(), flags];
                match self.with_tables(command, args, Ipa::new(at), LAST_LEVEL)?.status {
                    Status::Success => Ok(true),
                    status => Err(Error::Refused { command, status }),
                }
            })?;
            at += bytes;
            if bytes == self.geometry.entry_bytes(LAST_LEVEL - 1) {
                self.fold(Ipa::new(base), LAST_LEVEL)?;
            }
        }
        Ok(())
    }

    /// Maps memory without contents wherever `base..top` has none. The RIPAS stays as it is.
    ///
    /// Returns the number of granules mapped; those that were mapped before are left alone.
    pub(crate) fn map(&self, base: Ipa, top: Ipa) -> Result<u64, Error> {
        let mut at = base.get();
        let mut mapped = 0;
        while at < top.get() {
            let frames = self.backing(self.chunk(at, top.get()))?;
            let bytes = frames.bytes();
            mapped += self.map_frames(at, frames)?;
            at += bytes;
        }
        Ok(mapped)
    }

    /// Bytes to map next, a power of two to which `at` is aligned: a call maps a granule, and 512 of them
    /// fold into a block; or it maps any number of blocks of one table.
    fn chunk(&self, at: u64, top: u64) -> u64 {
        if !self.maps_blocks() {
            let level = self.geometry.largest_level(at, top, LAST_LEVEL - 1);
            return self.geometry.entry_bytes(level);
        }
        let by_alignment = if at == 0 { u64::MAX } else { 1 << at.trailing_zeros() };
        let by_length = 1 << (top - at).ilog2();
        by_alignment.min(by_length).min(self.geometry.entry_bytes(TOP_BLOCK_LEVEL))
    }

    /// Delegated, naturally aligned memory of `bytes`, a power of two; less if there is no such block.
    fn backing(&self, bytes: u64) -> Result<Frames<Delegated>, Error> {
        let mut order = (bytes / self.geometry.granule()).trailing_zeros() as u8;
        loop {
            if order == 0 {
                return self.rmm.alloc_delegated(0, self.owner);
            }
            match self.rmm.alloc(order, Use::Realm, self.owner) {
                Ok(frames) => return self.rmm.delegate(frames),
                Err(Error::OutOfMemory(_)) => order -= 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Maps a run of delegated granules at `at`. Granules that turn out not to be needed, and all that are
    /// not mapped after an error, go back.
    fn map_frames(&self, at: u64, frames: Frames<Delegated>) -> Result<u64, Error> {
        let bytes = frames.bytes();
        let mapped = if self.rmm.is_v2() {
            self.map_range_v2(at, frames)?
        } else {
            self.map_each(at, frames, |data, at| {
                let command = Command::DataCreateUnknown;
                let args = [self.rd.get(), data, at];
                match self.with_tables(command, args, Ipa::new(at), LAST_LEVEL)?.status {
                    Status::Success => Ok(true),
                    Status::Rtt { level: LAST_LEVEL } => Ok(false),
                    status => Err(Error::Refused { command, status }),
                }
            })?
        };
        let block = self.geometry.entry_bytes(LAST_LEVEL - 1);
        if bytes == block && mapped == self.geometry.entries() && !self.maps_blocks() {
            self.fold(Ipa::new(at), LAST_LEVEL)?;
        }
        Ok(mapped)
    }

    /// Maps a run granule by granule. `map` returns whether the RMM has taken the granule; if not, it
    /// goes back, as do all after an error.
    fn map_each(
        &self,
        base: u64,
        frames: Frames<Delegated>,
        mut map: impl FnMut(u64, u64) -> Result<bool, Error>,
    ) -> Result<u64, Error> {
        let granule = self.geometry.granule();
        let (data, count) = (frames.base().get(), frames.count());
        let mut rest = frames;
        // Granules at the start of `rest` that the RMM has taken.
        let mut taken = 0;
        let mut total = 0;
        for index in 0..count {
            match map(data + index * granule, base + index * granule) {
                Ok(true) => {
                    taken += 1;
                    total += 1;
                }
                Ok(false) => {
                    let (mapped, unmapped) = rest.split_at(taken);
                    self.rmm.ledger.hand_over(mapped, RmmUse::Data);
                    let (refused, unmapped) = unmapped.split_at(1);
                    self.rmm.retire(refused);
                    rest = unmapped;
                    taken = 0;
                }
                Err(error) => {
                    let (mapped, unmapped) = rest.split_at(taken);
                    self.rmm.ledger.hand_over(mapped, RmmUse::Data);
                    self.rmm.undelegate(unmapped);
                    return Err(error);
                }
            }
        }
        self.rmm.ledger.hand_over(rest, RmmUse::Data);
        Ok(total)
    }
}
