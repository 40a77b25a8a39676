//! Unmapping ranges: RTT_DATA_UNMAP, RTT_UNPROT_UNMAP.

use crate::abi::{Refusal, Reply, Ripas};
use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::rtt::entry::Entry;
use crate::rtt::geometry::{ENTRIES, PAGE_LEVEL, Stage2, entry_size};
use crate::rtt::walk::Walk;
use crate::v2::map::{Half, address_type, address_type_of, list_count_of};
use crate::v2::operation::{Need, Operation, incomplete};
use crate::v2::range::{MAX_LIST, Range, RangeList, list_room};
use crate::v2::{Draft, Rmi2};

/// Operands of an unmap command after all checks that need no walk.
struct Unmapping {
    half: Half,
    base: Ipa,
    top: Ipa,
    kind: u64,
    list: Pa,
    /// Most ranges that can be told to the host.
    room: usize,
}

impl<P: Platform> Monitor<P> {
    /// RTT_DATA_UNMAP and RTT_UNPROT_UNMAP, by `half`.
    pub(crate) fn rtt_unmap(
        &self,
        rmi2: &Rmi2,
        half: Half,
        rd: Pa,
        range: (Ipa, Ipa),
        flags: u64,
        address: u64,
    ) -> Result<Reply, Refusal> {
        if rmi2.draft == Draft::V0_9 {
            return Ok(self.rtt_data_unmap_page(rd, range, flags));
        }
        let context = self.operations.reserve()?;
        let (_granule, rd) = self.lock_rd(rd)?;
        let stage2 = rd.stage2();
        let unmapping = self.check_unmapping(&stage2, half, range, flags, address)?;
        let (end, freed) = self.unmap_blocks(&stage2, &unmapping)?;
        let reply = self.tell_freed(&unmapping, end, &freed);
        if rmi2.yields && unmapping.kind != address_type::LIST && !freed.ranges().is_empty() {
            let handle = context.park(Operation::Deliver(reply));
            return Ok(incomplete(Need::Nothing, [handle, 0]));
        }
        Ok(reply)
    }

    fn check_unmapping(
        &self,
        stage2: &Stage2,
        half: Half,
        (base, top): (Ipa, Ipa),
        flags: u64,
        address: u64,
    ) -> Result<Unmapping, Refusal> {
        let pages = base.is_aligned(GRANULE_SIZE) && top.is_aligned(GRANULE_SIZE);
        if !pages || top <= base || !half.holds(stage2, base, top) {
            return Err(Refusal::INPUT);
        }
        let kind = address_type_of(flags);
        let count = list_count_of(flags);
        let list = Pa(address);
        let room = match kind {
            address_type::NONE | address_type::SINGLE if address != 0 || count != 0 => {
                return Err(Refusal::INPUT);
            }
            address_type::NONE => MAX_LIST,
            address_type::SINGLE => 1,
            address_type::LIST if count != 0 => {
                self.check_host(Pa(address & !(GRANULE_SIZE - 1)))?;
                list_room(list, count).ok_or(Refusal::INPUT)?
            }
            _ => return Err(Refusal::INPUT),
        };
        Ok(Unmapping { half, base, top, kind, list, room })
    }

    /// Unmaps entry after entry of one table, skipping holes; the end of what was done, and what
    /// came free. Obstacles count only at the first entry.
    fn unmap_blocks(
        &self,
        stage2: &Stage2,
        unmapping: &Unmapping,
    ) -> Result<(Ipa, RangeList), Refusal> {
        let walk = self.walk(stage2, unmapping.base, PAGE_LEVEL);
        let size = entry_size(walk.level);
        if !unmapping.base.is_aligned(size) {
            return Err(Refusal::rtt(walk.level));
        }
        let undelegated = unmapping.half == Half::Unprotected;
        let mut freed = RangeList::new(unmapping.room);
        let mut next = unmapping.base;
        for index in walk.index..ENTRIES {
            let end = next.offset(size);
            let entry = self.sibling(&walk, index);
            let blocked = end > unmapping.top || matches!(entry, Entry::Table(_));
            if blocked && index == walk.index {
                return Err(Refusal::rtt(walk.level));
            }
            let (pa, hole) = match entry {
                _ if blocked => break,
                Entry::Assigned(Ripas::Ram, pa) => (pa, Entry::Unassigned(Ripas::Destroyed)),
                Entry::Assigned(ripas, pa) => (pa, Entry::Unassigned(ripas)),
                Entry::AssignedNs(host) => (host.pa(), Entry::UnassignedNs),
                _ => {
                    next = end;
                    continue;
                }
            };
            if !freed.add(pa, walk.level, undelegated) {
                break;
            }
            let walk = Walk { index, entry, ..walk };
            self.free_block(stage2, &walk, (next, size), pa, hole);
            next = end;
        }
        Ok((next, freed))
    }

    fn free_block(
        &self,
        stage2: &Stage2,
        walk: &Walk,
        (ipa, size): (Ipa, u64),
        pa: Pa,
        hole: Entry,
    ) {
        if walk.entry.is_mapping() {
            self.replace_entry(stage2, walk, (ipa, size), hole);
        } else {
            self.set_entry(walk, walk.index, hole);
        }
        if walk.entry.is_counted() {
            self.put_table(walk.table, 1);
            self.return_data(pa, size / GRANULE_SIZE);
        }
    }

    /// The answer: x1 the end, x2 the range for SINGLE, x3 the number of ranges for LIST.
    fn tell_freed(&self, unmapping: &Unmapping, end: Ipa, freed: &RangeList) -> Reply {
        let ranges = freed.ranges();
        let (single, count) = match unmapping.kind {
            address_type::SINGLE => {
                // The state is implied by the command.
                let range =
                    |r: &Range| Range::new(r.base(), r.level(), r.count(), false).word(Draft::Head);
                (ranges.first().map_or(0, range), 0)
            }
            address_type::LIST => {
                // If the host delegates its list meanwhile it has lost the addresses.
                let written = self.write_list(unmapping.list, ranges).is_ok();
                (0, if written { ranges.len() as u64 } else { 0 })
            }
            _ => (0, 0),
        };
        Reply::with([end.0, single, count])
    }

    /// RTT_DATA_UNMAP of v0.9: one page, or a hole up to the next live entry.
    fn rtt_data_unmap_page(&self, rd: Pa, (base, top): (Ipa, Ipa), flags: u64) -> Reply {
        if flags != address_type::SINGLE || top.0.saturating_sub(base.0) < GRANULE_SIZE {
            return Refusal::INPUT.into();
        }
        match self.try_data_destroy(rd, base) {
            Ok((pa, next)) => Reply::with([
                next.min(top).0,
                Range::new(pa, PAGE_LEVEL, 1, false).word(Draft::V0_9),
                0,
            ]),
            Err((_, next)) if next > base => Reply::with([next.min(top).0, 0, 0]),
            Err((refusal, _)) => refusal.into(),
        }
    }
}
