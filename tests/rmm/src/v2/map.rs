//! Mapping ranges: RTT_DATA_MAP, RTT_UNPROT_MAP.

use crate::abi::{Refusal, Reply};
use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::realm::{Rd, RealmState};
use crate::rtt::entry::{Entry, HostDescriptor};
use crate::rtt::geometry::{ENTRIES, MIN_BLOCK_LEVEL, PAGE_LEVEL, Stage2, entry_size};
use crate::rtt::walk::Walk;
use crate::v2::operation::{Need, Operation, incomplete};
use crate::v2::range::RangeList;
use crate::v2::{Draft, Rmi2};

/// Kinds of output address operands.
pub(crate) mod address_type {
    pub(crate) const NONE: u64 = 0;
    pub(crate) const SINGLE: u64 = 1;
    pub(crate) const LIST: u64 = 2;
}

/// Type of the output address operand, in flags of all range commands.
pub(crate) fn address_type_of(flags: u64) -> u64 {
    flags & 0b11
}

/// Number of descriptors of a list, in flags of all range commands.
pub(crate) fn list_count_of(flags: u64) -> u64 {
    flags >> 2 & 0x3fff
}

/// Half of the IPA space that a command works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Protected,
    Unprotected,
}

impl Half {
    /// True if all of `base` to `top` is in this half; `top` is above `base`.
    pub(crate) fn holds(self, stage2: &Stage2, base: Ipa, top: Ipa) -> bool {
        let middle = stage2.ipa_size() / 2;
        match self {
            Self::Protected => top.0 <= middle,
            Self::Unprotected => base.0 >= middle && top.0 <= stage2.ipa_size(),
        }
    }
}

/// What to map where, checked as far as it can be without walking.
struct Mapping {
    base: Ipa,
    top: Ipa,
    blocks: RangeList,
    level: i64,
}

impl<P: Platform> Monitor<P> {
    /// Checks the operands of the map commands.
    fn check_mapping(
        &self,
        rd: &Rd,
        half: Half,
        (base, top): (Ipa, Ipa),
        flags: u64,
        address: u64,
    ) -> Result<Mapping, Refusal> {
        if !matches!(rd.state(), RealmState::New | RealmState::Active) {
            return Err(Refusal::REALM);
        }
        if top <= base {
            return Err(Refusal::INPUT);
        }
        let blocks = match address_type_of(flags) {
            address_type::SINGLE => RangeList::single(self.range_of(address)?),
            address_type::LIST => self.read_list(Pa(address), list_count_of(flags))?,
            _ => return Err(Refusal::INPUT),
        };
        let first = *blocks.ranges().first().ok_or(Refusal::INPUT)?;
        let level = first.level();
        let stage2 = rd.stage2();
        // Only late drafts have a state that has to be given here.
        let state_fits = match half {
            Half::Protected => !first.is_undelegated(),
            Half::Unprotected => self.draft() != Draft::Late || first.is_undelegated(),
        };
        let aligned = base.is_aligned(entry_size(level)) && top.is_aligned(GRANULE_SIZE);
        let levels = MIN_BLOCK_LEVEL.max(stage2.start_level)..=PAGE_LEVEL;
        if !state_fits || !aligned || !levels.contains(&level) || !half.holds(&stage2, base, top) {
            return Err(Refusal::INPUT);
        }
        if top.0 - base.0 < entry_size(level) {
            return Err(Refusal::rtt(level));
        }
        Ok(Mapping { base, top, blocks, level })
    }

    /// Maps block after block into one table by `map_one`; the end of what was done. A failure
    /// counts only if it is the first block's.
    fn map_blocks(
        &self,
        stage2: &Stage2,
        mapping: &Mapping,
        half: Half,
        map_one: impl Fn(&Walk, u64, Pa) -> Result<(), Refusal>,
    ) -> Result<Ipa, Refusal> {
        let walk = self.walk(stage2, mapping.base, mapping.level);
        if walk.level != mapping.level {
            return Err(Refusal::rtt(walk.level));
        }
        let size = entry_size(mapping.level);
        let mut next = mapping.base;
        let mut blocks = mapping.blocks.blocks();
        for index in walk.index..ENTRIES {
            let step = blocks.next().ok_or(Refusal::INPUT).and_then(|(pa, range)| {
                let wrong_state = half == Half::Protected && range.is_undelegated();
                if range.level() != mapping.level || next.offset(size) > mapping.top {
                    return Err(Refusal::rtt(mapping.level));
                }
                if wrong_state || !pa.is_aligned(size) {
                    return Err(Refusal::INPUT);
                }
                map_one(&walk, index, pa)
            });
            match step {
                Ok(()) => next = next.offset(size),
                Err(refusal) if next == mapping.base => return Err(refusal),
                Err(_) => break,
            }
        }
        Ok(next)
    }

    /// RTT_DATA_MAP.
    pub(crate) fn rtt_data_map(
        &self,
        rmi2: &Rmi2,
        rd: Pa,
        range: (Ipa, Ipa),
        flags: u64,
        address: u64,
    ) -> Result<Reply, Refusal> {
        if rmi2.draft == Draft::V0_9 {
            return self.rtt_data_map_page(rd, range, flags, address);
        }
        let context = self.operations.reserve()?;
        let (_granule, rd) = self.lock_rd(rd)?;
        let mapping = self.check_mapping(&rd, Half::Protected, range, flags, address)?;
        let stage2 = rd.stage2();
        let map_one = |walk: &Walk, index, pa| self.map_data(walk, index, pa);
        let end = self.map_blocks(&stage2, &mapping, Half::Protected, map_one)?;
        let reply = Reply::with([end.0]);
        if rmi2.yields {
            let handle = context.park(Operation::Deliver(reply));
            return Ok(incomplete(Need::Nothing, [handle, 0]));
        }
        Ok(reply)
    }

    /// Maps one block of fresh zeroes; the same block again is no change.
    fn map_data(&self, walk: &Walk, index: u64, pa: Pa) -> Result<(), Refusal> {
        match self.sibling(walk, index) {
            Entry::Assigned(_, mapped) if mapped == pa => Ok(()),
            Entry::Unassigned(ripas) => {
                self.take_data(pa, entry_size(walk.level) / GRANULE_SIZE)?;
                self.get_table(walk.table, 1);
                self.set_entry(walk, index, Entry::Assigned(ripas, pa));
                Ok(())
            }
            _ => Err(Refusal::rtt(walk.level)),
        }
    }

    /// RTT_DATA_MAP of v0.9: one page, whatever the range.
    fn rtt_data_map_page(
        &self,
        rd: Pa,
        (base, top): (Ipa, Ipa),
        flags: u64,
        address: u64,
    ) -> Result<Reply, Refusal> {
        if flags != address_type::SINGLE || top.0.saturating_sub(base.0) < GRANULE_SIZE {
            return Err(Refusal::INPUT);
        }
        self.data_create_unknown(rd, self.range_of(address)?.base(), base)?;
        Ok(Reply::with([base.0 + GRANULE_SIZE]))
    }

    /// RTT_UNPROT_MAP.
    pub(crate) fn rtt_unprot_map(
        &self,
        rd: Pa,
        range: (Ipa, Ipa),
        flags: u64,
        address: u64,
    ) -> Result<Reply, Refusal> {
        let (_granule, rd) = self.lock_rd(rd)?;
        let mapping = self.check_mapping(&rd, Half::Unprotected, range, flags, address)?;
        let stage2 = rd.stage2();
        let attributes = unprotected_attributes(flags)?;
        let map_one = |walk: &Walk, index, pa: Pa| {
            let host = HostDescriptor::new(pa.0 | attributes, walk.level);
            let wanted = Entry::AssignedNs(host.ok_or(Refusal::INPUT)?);
            match self.sibling(walk, index) {
                Entry::UnassignedNs => {
                    self.set_entry(walk, index, wanted);
                    Ok(())
                }
                mapped if mapped == wanted => Ok(()),
                _ => Err(Refusal::rtt(walk.level)),
            }
        };
        let end = self.map_blocks(&stage2, &mapping, Half::Unprotected, map_one)?;
        Ok(Reply::with([end.0]))
    }
}

/// Memory attribute and direct permissions of RTT_UNPROT_MAP, in descriptor position.
fn unprotected_attributes(flags: u64) -> Result<u64, Refusal> {
    const READ: u64 = 1 << 1;
    const WRITE: u64 = 1 << 0;
    let mem_attr = flags >> 16 & 0b111;
    let s2ap = flags >> 19 & 0b1111;
    if s2ap & !(READ | WRITE) != 0 {
        return Err(Refusal::INPUT);
    }
    let readable = if s2ap & READ != 0 { 1 << 6 } else { 0 };
    let writable = if s2ap & WRITE != 0 { 1 << 7 } else { 0 };
    Ok(mem_attr << 2 | readable | writable)
}
