//! Mapping and unmapping by ranges.

use mm::{Ipa, PhysAddr};

use super::{AddrRange, MAX_BLOCKS, MAX_LIST};
use crate::command::Command;
use crate::conduit::Host;
use crate::error::{Error, Invalid};
use crate::features::{Abi, Dialect};
use crate::geometry::{LAST_LEVEL, TOP_BLOCK_LEVEL};
use crate::rmm::Reply;
use crate::rtt::{SharedAttrs, Tables};
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
pub(crate) enum Step {
    /// Mapped up to this address.
    Upto(u64),
    /// Something is in the way at this level.
    Conflict(i8),
}

impl<H: Host> Tables<'_, '_, H> {
    /// Maps delegated memory at `pa` to `at` with the largest entries at `floor` or below that fit, as much of `bytes`
    /// as one call can (RTT_DATA_MAP).
    pub(crate) fn map_data_blocks(
        &mut self,
        at: u64,
        pa: u64,
        bytes: u64,
        floor: i8,
    ) -> Result<Step, Error> {
        self.map_step(Command::RttDataMap, SINGLE, at, pa, bytes, floor)
    }

    /// Maps one delegated granule at `pa` to `at` (RTT_DATA_MAP).
    pub(crate) fn call_data_map_page(&mut self, at: u64, pa: u64) -> Result<Reply, Error> {
        let range = AddrRange::at_level(pa, LAST_LEVEL, 1).encode(self.rmm.is_late_draft());
        let args = [self.rd.get(), at, at + self.geometry.granule(), SINGLE, range];
        self.with_tables(Command::RttDataMap, args, Ipa::new(at), LAST_LEVEL)
    }

    /// Maps as much of `bytes` at `pa` to `at` as one call can, with entries at `floor` or below.
    fn map_step(
        &mut self,
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
        let args = [self.rd.get(), at, top, flags, range.encode(self.rmm.is_late_draft())];
        let reply = self.with_tables(command, args, Ipa::new(at), level)?;
        match reply.status {
            Status::Success => self.progress(command, at, top, reply.x[1]).map(Step::Upto),
            Status::Rtt { level: reached } if reached >= level => Ok(Step::Conflict(level)),
            status => Err(Error::Refused { command, status }),
        }
    }

    /// Arguments of RTT_DATA_UNMAP for protected memory from `at` on, but not beyond `top`; what comes back is told in
    /// the page `list`, or without one in a register.
    pub(crate) const fn unmap_args(&self, at: u64, top: u64, list: Option<u64>) -> [u64; 5] {
        let (flags, list) = match list {
            Some(page) => (LIST | MAX_LIST << 2, page),
            None => (SINGLE, 0),
        };
        [self.rd.get(), at, top, flags, list]
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
        &mut self,
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
    pub(crate) fn unmap_shared_v2(&mut self, base: Ipa, top: Ipa) -> Result<u64, Error> {
        let command = Command::RttUnprotUnmap;
        let mut at = base.get();
        let mut split = i8::MIN;
        let mut calls = 0;
        while at < top.get() {
            let args = [self.rd.get(), at, top.get(), 0, 0];
            let reply = self.operate(command, args)?;
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
