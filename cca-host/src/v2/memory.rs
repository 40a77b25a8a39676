//! Mapping and unmapping by ranges.

use mm::ledger::{Delegated, Frames, RmmUse, Undelegated};
use mm::{Ipa, PhysAddr};

use super::{AddrRange, DESCRIPTOR_BYTES, MAX_BLOCKS, MAX_LIST};
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{BadAnswer, Error, Invalid};
use crate::features::{Abi, Dialect};
use crate::geometry::{LAST_LEVEL, TOP_BLOCK_LEVEL};
use crate::rtt::{SharedAttrs, Swept, Tables};
use crate::status::Status;

/// Flags: the range is in a register.
const SINGLE: u64 = 1;
/// Flags: the ranges are in a list; the number of entries is in bits 15:2.
const LIST: u64 = 2;
/// Flags of RTT_UNPROT_MAP: position of the memory attribute.
const MEMATTR_SHIFT: u32 = 16;
/// Flags of RTT_UNPROT_MAP: position of S2AP.
const S2AP_SHIFT: u32 = 19;
/// S2AP of RTT_UNPROT_MAP: bit 0 write, bit 1 read.
const WRITE: u64 = 1;
const READ: u64 = 2;

/// One step of mapping a range.
enum Step {
    /// Mapped up to this address.
    Upto(u64),
    /// Something is in the way at this level.
    Conflict(i8),
}

impl<H: Host> Tables<'_, '_, H> {
    /// Maps a delegated run at `at` with the largest entries that fit (RTT_DATA_MAP). Granules for
    /// addresses that have memory already go back, as does everything after an error.
    ///
    /// Returns the number of granules mapped.
    pub(crate) fn map_range_v2(&self, at: u64, frames: Frames<Delegated>) -> Result<u64, Error> {
        let granule = self.geometry.granule();
        let mut at = at;
        let mut rest = frames;
        let mut mapped = 0;
        let top_level = if self.maps_blocks() { TOP_BLOCK_LEVEL } else { LAST_LEVEL };
        let mut floor = top_level;
        while !rest.is_empty() {
            match self.map_step(
                Command::RttDataMap,
                SINGLE,
                at,
                rest.base().get(),
                rest.bytes(),
                floor,
            ) {
                Ok(Step::Upto(to)) => {
                    let (taken, remaining) = rest.split_at((to - at) / granule);
                    mapped += taken.count();
                    self.rmm.ledger.hand_over(taken, RmmUse::Data);
                    rest = remaining;
                    at = to;
                    floor = top_level;
                }
                Ok(Step::Conflict(level)) if level < LAST_LEVEL => floor = level + 1,
                Ok(Step::Conflict(_)) => {
                    let (unused, remaining) = rest.split_at(1);
                    self.rmm.retire(unused);
                    rest = remaining;
                    at += granule;
                    floor = top_level;
                }
                Err(error) => {
                    self.rmm.undelegate(rest);
                    return Err(error);
                }
            }
        }
        Ok(mapped)
    }

    /// Maps as much of `bytes` at `pa` to `at` as one call can, with entries at `floor` or below.
    fn map_step(
        &self,
        command: Command,
        flags: u64,
        at: u64,
        pa: u64,
        bytes: u64,
        floor: i8,
    ) -> Result<Step, Error> {
        let level = self
            .geometry
            .largest_level(at, at + bytes, floor)
            .max(self.geometry.largest_level(pa, pa + bytes, floor));
        let entry = self.geometry.entry_bytes(level);
        let blocks = (bytes / entry).min(MAX_BLOCKS);
        let mut range = AddrRange::at_level(pa, level, blocks);
        range.undelegated = command == Command::RttUnprotMap;
        let top = at + blocks * entry;
        let args = [self.rd.get(), at, top, flags, range.encode()];
        let reply = self.with_tables(command, args, Ipa::new(at), level)?;
        match reply.status {
            Status::Success => self.progress(command, at, top, reply.x[1]).map(Step::Upto),
            Status::Rtt { level: reached } if reached >= level => Ok(Step::Conflict(level)),
            status => Err(Error::Refused { command, status }),
        }
    }

    /// Unmaps the protected memory of `base..top` and gives it back (RTT_DATA_UNMAP).
    pub(crate) fn unmap_v2(&self, base: u64, top: u64, budget: u64, swept: &mut Swept) {
        // The first draft takes no list, and without a page for one it must do: each call then returns one
        // range in a register.
        let list =
            if self.maps_blocks() { self.rmm.alloc_interface(self.owner).ok() } else { None };
        let command = Command::RttDataUnmap;
        let (flags, list_at) = match &list {
            Some(page) => (LIST | MAX_LIST << 2, page.base().get()),
            None => (SINGLE, 0),
        };
        let limit = swept.calls.saturating_add(budget);
        let mut at = base;
        // Level of the last block split at this address.
        let mut split = i8::MIN;
        while at < top {
            if swept.calls >= limit {
                swept.note(Error::progress(command, base, at));
                break;
            }
            let args = [self.rd.get(), at, top, flags, list_at];
            let reply = self.insist(command, args, swept);
            match reply.status {
                Status::Success => {
                    let entries = if list.is_some() { reply.x[3] } else { 1 };
                    self.collect_ranges(command, list.as_ref(), reply.x[2], entries, swept);
                    match self.progress(command, at, top, reply.x[1]) {
                        Ok(next) => at = next,
                        Err(error) => {
                            swept.note(error);
                            break;
                        }
                    }
                    split = i8::MIN;
                }
                Status::Rtt { level } => match self.split(command, at, level, split) {
                    Ok(()) => split = level,
                    Err(error) if swept.refuse(error) => break,
                    Err(_) => {
                        at = self.after(at, level);
                        split = i8::MIN;
                    }
                },
                status => {
                    if swept.refuse(Error::Refused { command, status }) {
                        break;
                    }
                    at = self.after(at, LAST_LEVEL);
                }
            }
        }
        if let Some(page) = list {
            self.rmm.ledger.free(page);
        }
    }

    /// Takes back the ranges that an unmap call returned, in `list` or in `word`.
    fn collect_ranges(
        &self,
        command: Command,
        list: Option<&Frames<Undelegated>>,
        word: u64,
        entries: u64,
        swept: &mut Swept,
    ) {
        if entries > MAX_LIST {
            let answer = BadAnswer::Amount(entries);
            swept.note(Error::Misbehaved { command, answer });
            return;
        }
        for entry in 0..entries {
            let word = match list {
                None => word,
                Some(page) => {
                    let offset = (entry * DESCRIPTOR_BYTES) as usize;
                    match self.rmm.host.load(page.base(), offset) {
                        Ok(word) => word,
                        Err(error) => return swept.note(error.into()),
                    }
                }
            };
            let range = AddrRange::decode(word);
            if range.blocks > 0 {
                self.collect(command, range.base, range.granules(), RmmUse::Data, swept);
            }
        }
    }

    /// Whether the RMM maps and unmaps whole blocks and lists of ranges. RMI 1.0 and the first draft of 2.0
    /// take a page at a time; 512 of them can then be folded.
    pub(crate) const fn maps_blocks(&self) -> bool {
        matches!(self.rmm.capabilities().abi, Abi::V2(Dialect { terminate: true, .. }))
    }

    /// Whether shared memory is mapped by ranges.
    pub(crate) const fn uses_ranges_for_shared(&self) -> bool {
        match self.rmm.capabilities().abi {
            Abi::V1 => false,
            Abi::V2(dialect) => !dialect.per_entry_unprotected,
        }
    }

    /// Maps shared memory (RTT_UNPROT_MAP). Returns a bound on the number of entries written.
    pub(crate) fn map_shared_v2(
        &self,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
        attrs: SharedAttrs,
    ) -> Result<u64, Error> {
        let s2ap = if attrs.writable { READ | WRITE } else { READ };
        let flags = SINGLE | attrs.memory.code() << MEMATTR_SHIFT | s2ap << S2AP_SHIFT;
        let top = ipa.get() + bytes;
        let mut at = ipa.get();
        let mut floor = TOP_BLOCK_LEVEL;
        let mut entries = 0;
        while at < top {
            let output = pa.get() + (at - ipa.get());
            match self.map_step(Command::RttUnprotMap, flags, at, output, top - at, floor)? {
                Step::Upto(to) => {
                    entries += (to - at).div_ceil(self.geometry.entry_bytes(LAST_LEVEL - 1));
                    at = to;
                    floor = TOP_BLOCK_LEVEL;
                }
                Step::Conflict(level) if level < LAST_LEVEL => floor = level + 1,
                Step::Conflict(_) => return Err(Error::Invalid(Invalid::Mapped(Ipa::new(at)))),
            }
        }
        Ok(entries)
    }

    /// Unmaps shared memory (RTT_UNPROT_UNMAP).
    pub(crate) fn unmap_shared_v2(&self, base: Ipa, top: Ipa) -> Result<u64, Error> {
        let command = Command::RttUnprotUnmap;
        let mut at = base.get();
        let mut split = i8::MIN;
        let mut calls = 0;
        while at < top.get() {
            let args = [self.rd.get(), at, top.get(), 0, 0];
            let reply = self.rmm.operate(command, args, self.owner)?;
            calls += 1;
            match reply.status {
                Status::Success => {
                    at = self.progress(command, at, top.get(), reply.x[1])?;
                    split = i8::MIN;
                }
                Status::Rtt { level } => {
                    self.split(command, at, level, split)?;
                    split = level;
                }
                status => return Err(Error::Refused { command, status }),
            }
        }
        Ok(calls)
    }
}
