//! Unprotected (shared) memory: pages of the normal world in the upper half of the IPA space.

use mm::{Ipa, PhysAddr};

use super::{Tables, level_arg};
use crate::command::Command;
use crate::conduit::Host;
use crate::error::{BadAnswer, Error, Invalid};
use crate::geometry::{LAST_LEVEL, TOP_BLOCK_LEVEL};
use crate::status::Status;

/// Memory type of a shared mapping: the stage-2 MemAttr value with FEAT_S2FWB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryType {
    /// Device-nGnRE.
    Device,
    /// Normal, non-cacheable.
    NonCacheable,
    /// Normal, write-back.
    WriteBack,
}

impl MemoryType {
    /// MemAttr field.
    pub(crate) const fn code(self) -> u64 {
        match self {
            Self::Device => 1,
            Self::NonCacheable => 5,
            Self::WriteBack => 6,
        }
    }
}

/// Attributes of a shared mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedAttrs {
    /// Memory type.
    pub memory: MemoryType,
    /// Whether the realm may write.
    pub writable: bool,
}

impl SharedAttrs {
    /// Normal memory that the realm reads and writes.
    pub const NORMAL_RW: Self = Self { memory: MemoryType::WriteBack, writable: true };

    /// S2AP: bit 0 read, bit 1 write as in stage-2 descriptors.
    const fn s2ap(self) -> u64 {
        if self.writable { 0b11 } else { 0b01 }
    }

    /// Descriptor of RTT_MAP_UNPROTECTED without the address: MemAttr in bits 4:2, S2AP in bits 7:6.
    const fn descriptor(self) -> u64 {
        self.memory.code() << 2 | self.s2ap() << 6
    }
}

impl<H: Host> Tables<'_, '_, H> {
    /// Maps `bytes` of normal memory at `pa` to the unprotected address `ipa`.
    ///
    /// Returns the number of entries written. Entries are as large as alignment allows and existing tables
    /// permit. After an error the part before it stays mapped.
    pub(crate) fn map_shared(
        &mut self,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
        attrs: SharedAttrs,
    ) -> Result<u64, Error> {
        if self.uses_ranges_for_shared() {
            return self.map_shared_v2(ipa, pa, bytes, attrs);
        }
        let command = Command::RttMapUnprotected;
        let top = ipa.get() + bytes;
        let mut at = ipa.get();
        let mut floor = TOP_BLOCK_LEVEL;
        let mut entries = 0;
        while at < top {
            let output = pa.get() + (at - ipa.get());
            // The address decides at IPA and PA alike: both have to be aligned to the block.
            let level = self
                .geometry
                .largest_level(at, top, floor)
                .max(self.geometry.largest_level(output, output + (top - at), floor));
            let descriptor = output | attrs.descriptor();
            let args = [self.rd.get(), at, level_arg(level), descriptor];
            let reply = self.with_tables(command, args, Ipa::new(at), level)?;
            match reply.status {
                Status::Success => {
                    at += self.geometry.entry_bytes(level);
                    floor = TOP_BLOCK_LEVEL;
                    entries += 1;
                }
                // A table or a mapping is there already: try smaller entries.
                Status::Rtt { level: reached } if reached == level && level < LAST_LEVEL => {
                    floor = level + 1;
                }
                Status::Rtt { level: LAST_LEVEL } => {
                    return Err(Error::Invalid(Invalid::Mapped(Ipa::new(at))));
                }
                status => return Err(Error::Refused { command, status }),
            }
        }
        Ok(entries)
    }

    /// Unmaps whatever of the unprotected range `base..top` is mapped. Blocks that reach beyond it are
    /// split first.
    ///
    /// Returns the number of entries removed.
    pub(crate) fn unmap_shared(&mut self, base: Ipa, top: Ipa) -> Result<u64, Error> {
        if self.uses_ranges_for_shared() {
            return self.unmap_shared_v2(base, top);
        }
        let command = Command::RttUnmapUnprotected;
        let mut at = base.get();
        let mut floor = TOP_BLOCK_LEVEL;
        let mut entries = 0;
        // Level of the last block split at this address.
        let mut split = i8::MIN;
        while at < top.get() {
            let level = self.geometry.largest_level(at, top.get(), floor);
            let args = [self.rd.get(), at, level_arg(level)];
            let reply = self.operate(command, args)?;
            let next = reply.x[1];
            let skips = next > at && next & (self.geometry.granule() - 1) == 0;
            match reply.status {
                Status::Success => {
                    at = self.after(at, level);
                    if skips && next > at {
                        at = next;
                    }
                    floor = TOP_BLOCK_LEVEL;
                    entries += 1;
                }
                // Nothing is mapped up to `next`.
                Status::Rtt { .. } if skips => {
                    at = next;
                    floor = TOP_BLOCK_LEVEL;
                }
                // A block that reaches beyond the range.
                Status::Rtt { level: reached } if reached < level => {
                    if reached < self.geometry.start_level() || reached <= split {
                        return Err(Error::Misbehaved {
                            command,
                            answer: BadAnswer::Level(reached),
                        });
                    }
                    self.create_tables(Ipa::new(at), reached, level)?;
                    split = reached;
                    continue;
                }
                // A table, or nothing at the last level.
                Status::Rtt { .. } if level < LAST_LEVEL => floor = level + 1,
                Status::Rtt { .. } => {
                    at = self.after(at, LAST_LEVEL);
                    floor = TOP_BLOCK_LEVEL;
                }
                status => return Err(Error::Refused { command, status }),
            }
            split = i8::MIN;
        }
        Ok(entries)
    }
}
