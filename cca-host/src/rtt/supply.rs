//! Protected memory on its way in: taken from the ledger, delegated, and mapped with or without contents.
//!
//! The work goes on over several calls of the driver if it has to: between two of them, the memory that is
//! delegated but not mapped yet waits in the [`Supply`] of the realm.

use mm::ledger::{Delegated, Frames, RmmUse, Undelegated, Use};
use mm::{Ipa, PhysAddr};

use super::Tables;
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::geometry::{LAST_LEVEL, TOP_BLOCK_LEVEL};
use crate::rmm::Delegation;
use crate::status::Status;
use crate::v2::Step;

/// Bit 0 of the flags of DATA_CREATE and RTT_DATA_MAP_INIT: measure the contents.
const MEASURE: u64 = 1;

/// A run of granules for consecutive addresses of a realm.
pub(crate) struct Supply {
    /// Address that the first granule is for.
    at: u64,
    /// Granules at the start of the run that are delegated.
    delegated: Option<Frames<Delegated>>,
    /// The others.
    rest: Option<Frames<Undelegated>>,
    /// The level-2 block that the run backs alone although it is mapped by granules: folded at its end.
    block: Option<u64>,
}

impl Supply {
    pub(crate) const EMPTY: Self = Self { at: 0, delegated: None, rest: None, block: None };

    fn is_empty(&self) -> bool {
        self.delegated.is_none() && self.rest.is_none()
    }

    /// Whether the next granule is for this address.
    fn is_for(&self, at: u64) -> bool {
        !self.is_empty() && self.at == at
    }

    /// Whether some granule is for an address of the range.
    fn overlaps(&self, base: u64, top: u64) -> bool {
        let delegated = self.delegated.as_ref().map_or(0, Frames::bytes);
        let rest = self.rest.as_ref().map_or(0, Frames::bytes);
        !self.is_empty() && self.at < top && base < self.at + delegated + rest
    }

    /// Address of the first granule, if it is delegated, and bytes delegated from there.
    fn ready(&self) -> Option<(PhysAddr, u64)> {
        self.delegated.as_ref().map(|frames| (frames.base(), frames.bytes()))
    }

    /// Takes delegated granules from the front.
    fn take(&mut self, granules: u64) -> Option<Frames<Delegated>> {
        let (first, rest) = self.delegated.take()?.split_at(granules);
        self.at += first.bytes();
        self.delegated = some(rest);
        Some(first)
    }

    /// Takes the parts out, to be given back.
    fn dissolve(&mut self) -> (Option<Frames<Delegated>>, Option<Frames<Undelegated>>) {
        self.block = None;
        (self.delegated.take(), self.rest.take())
    }
}

/// `None` for an empty run.
fn some<S: mm::ledger::World>(frames: Frames<S>) -> Option<Frames<S>> {
    (!frames.is_empty()).then_some(frames)
}

/// How far mapping got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapped {
    /// First address not seen to.
    pub(crate) upto: u64,
    /// Granules that were mapped; the others had memory already.
    pub(crate) granules: u64,
}

/// What a page is mapped with.
#[derive(Clone, Copy)]
enum Contents {
    /// Zeroes.
    Nothing,
    /// A copy of the granule at this address, measured or not.
    Copy(PhysAddr, bool),
}

impl<H: Host> Tables<'_, '_, H> {
    /// Maps the page at `ipa` with the contents of the granule `source` in the normal world, before activation.
    /// `measure` extends the RIM with the contents. Memory is taken for the addresses up to `room`, for whoever
    /// maps the pages that follow; a level-2 block that is backed as a whole is folded when its last page is
    /// mapped.
    ///
    /// Returns whether that is done; if not, the budget is spent.
    pub(crate) fn populate(
        &mut self,
        ipa: u64,
        source: PhysAddr,
        measure: bool,
        room: u64,
    ) -> Result<bool, Error> {
        let top = ipa + self.geometry.granule();
        if !self.stock(ipa, top, room)? || !self.delegate_next(1)? {
            return Ok(false);
        }
        let Some(frames) = self.book.supply.take(1) else { return Ok(false) };
        if !self.map_granule(ipa, frames, Contents::Copy(source, measure))? {
            let status = Status::Rtt { level: LAST_LEVEL };
            return Err(Error::Refused { command: Command::DataCreate, status });
        }
        self.fold_full_block()?;
        Ok(true)
    }

    /// Maps memory without contents wherever `base..top` has none, until the budget is spent. The RIPAS stays as
    /// it is. Memory is taken as [`Self::populate`] does.
    ///
    /// Granules that were mapped before are left alone.
    pub(crate) fn map(&mut self, base: u64, top: u64, room: u64) -> Result<Mapped, Error> {
        let mut mapped = Mapped { upto: base, granules: 0 };
        while mapped.upto < top && !self.budget.is_spent() {
            if !self.stock(mapped.upto, top, room)? {
                break;
            }
            // A block can only be mapped when all of it is delegated.
            let all = if self.maps_blocks() { u64::MAX } else { 1 };
            if !self.delegate_next(all)? {
                break;
            }
            let some = if self.maps_blocks() {
                self.map_run(mapped.upto, top)?
            } else {
                self.map_next_granule(mapped.upto)?
            };
            mapped.upto = some.upto;
            mapped.granules += some.granules;
            self.fold_full_block()?;
        }
        Ok(mapped)
    }

    /// Maps one granule without contents, not from the supply; returns whether there was none before.
    pub(crate) fn map_one(&mut self, at: u64) -> Result<bool, Error> {
        let frames = self.rmm.alloc_delegated(0, self.owner)?;
        self.budget.spend(1);
        self.map_granule(at, frames, Contents::Nothing)
    }

    /// Whether the ledger has a run for the whole level-2 block at `base`, which is then in the supply.
    pub(crate) fn stock_block(&mut self, base: u64) -> bool {
        if self.book.supply.is_empty() {
            let order = self.geometry.entries().trailing_zeros() as u8;
            let Ok(frames) = self.rmm.ledger.alloc(order, Use::Realm, self.owner) else {
                return false;
            };
            let block = (!self.maps_blocks()).then_some(base);
            self.book.supply = Supply { at: base, delegated: None, rest: Some(frames), block };
        }
        true
    }

    /// Address of the supply's next granule, if there is any.
    pub(crate) fn supplied(&self) -> Option<u64> {
        (!self.book.supply.is_empty()).then_some(self.book.supply.at)
    }

    /// Gives the supply back if it is for addresses of the range; `false` if the budget is spent before.
    pub(crate) fn withdraw(&mut self, base: u64, top: u64) -> bool {
        if !self.book.supply.overlaps(base, top) {
            return true;
        }
        let (delegated, rest) = self.book.supply.dissolve();
        if let Some(frames) = rest {
            self.rmm.ledger.free(frames);
        }
        let Some(frames) = delegated else { return true };
        let back = self.rmm.undelegate_some(frames, self.budget.left().max(1));
        self.budget.spend(back.calls);
        // What is still delegated stays in the supply.
        self.book.supply.delegated = some(back.rest);
        self.book.supply.is_empty()
    }

    /// Sees to it that the supply is for `at`; `false` if the budget is spent before. Takes memory for the
    /// addresses up to the end of the level-2 block that holds the last one before `top`, but not beyond `room`.
    fn stock(&mut self, at: u64, top: u64, room: u64) -> Result<bool, Error> {
        if self.book.supply.is_for(at) {
            return Ok(true);
        }
        if !self.withdraw(0, u64::MAX) {
            return Ok(false);
        }
        let block = self.geometry.entry_bytes(LAST_LEVEL - 1);
        let limit = top.checked_next_multiple_of(block).unwrap_or(room).min(room.max(top));
        let bytes = self.chunk(at, limit);
        if bytes < block
            && let Some(granule) = self.rmm.take_pooled(self.owner)
        {
            self.book.supply = Supply { at, delegated: Some(granule), rest: None, block: None };
            return Ok(true);
        }
        let frames = self.backing(bytes)?;
        let by_granules = !self.maps_blocks() || top < at + block;
        let whole = frames.bytes() == block && at.is_multiple_of(block);
        let block = (whole && by_granules).then_some(at);
        self.book.supply = Supply { at, delegated: None, rest: Some(frames), block };
        Ok(true)
    }

    /// Bytes to take next, a power of two to which `at` is aligned, so that blocks can be mapped: a level-2 block at
    /// most where granules are mapped one by one, a block of the top level where the RMM maps whole ones.
    fn chunk(&self, at: u64, top: u64) -> u64 {
        let level = if self.maps_blocks() { TOP_BLOCK_LEVEL } else { LAST_LEVEL - 1 };
        let by_alignment = if at == 0 { u64::MAX } else { 1 << at.trailing_zeros() };
        let by_length = 1 << (top - at).ilog2();
        by_alignment.min(by_length).min(self.geometry.entry_bytes(level))
    }

    /// Naturally aligned memory of `bytes`, a power of two; less if there is no such block.
    fn backing(&self, bytes: u64) -> Result<Frames<Undelegated>, Error> {
        let mut order = (bytes / self.geometry.granule()).trailing_zeros() as u8;
        while order > 0 {
            if let Ok(frames) = self.rmm.ledger.alloc(order, Use::Realm, self.owner) {
                return Ok(frames);
            }
            order -= 1;
        }
        self.rmm.alloc(0, Use::Realm, self.owner)
    }

    /// Delegates granules of the supply until `wanted` are; `false` if the budget is spent before.
    ///
    /// A call delegates as many as the RMM likes, but none more than are in the supply.
    fn delegate_next(&mut self, wanted: u64) -> Result<bool, Error> {
        let ready = self.book.supply.delegated.as_ref().map_or(0, Frames::count);
        if ready >= wanted {
            return Ok(true);
        }
        let Some(rest) = self.book.supply.rest.take() else { return Ok(true) };
        let calls = if wanted == 1 { 1 } else { self.budget.left() };
        let Delegation { done, rest, calls, error } = self.rmm.delegate_some(rest, calls);
        self.budget.spend(calls);
        self.book.supply.rest = some(rest);
        let joined = match self.book.supply.delegated.take() {
            None => Ok(done),
            Some(before) => before.join(done),
        };
        match joined {
            Ok(frames) => self.book.supply.delegated = some(frames),
            // They are parts of one run, so that this does not happen.
            Err((before, stranger)) => {
                self.book.supply.delegated = some(before);
                self.rmm.undelegate(stranger);
            }
        }
        match error {
            Some(error) => Err(error),
            None => Ok(wanted == 1 || self.book.supply.rest.is_none()),
        }
    }

    /// Maps the next granule of the supply at `at`, without contents.
    fn map_next_granule(&mut self, at: u64) -> Result<Mapped, Error> {
        let Some(frames) = self.book.supply.take(1) else {
            return Ok(Mapped { upto: at, granules: 0 });
        };
        let mapped = self.map_granule(at, frames, Contents::Nothing)?;
        Ok(Mapped { upto: at + self.geometry.granule(), granules: u64::from(mapped) })
    }

    /// Maps one granule; it goes back if there is memory already or the RMM refuses it. Returns whether it was
    /// mapped.
    fn map_granule(
        &mut self,
        at: u64,
        frames: Frames<Delegated>,
        contents: Contents,
    ) -> Result<bool, Error> {
        let granule = self.geometry.granule();
        let data = frames.base().get();
        let (command, answer) = match contents {
            Contents::Copy(source, measure) => {
                let flags = if measure { MEASURE } else { 0 };
                let args = [self.rd.get(), data, at, source.get(), flags];
                let command = Command::DataCreate;
                (command, self.with_tables(command, args, Ipa::new(at), LAST_LEVEL))
            }
            Contents::Nothing if self.rmm.is_v2() => {
                (Command::RttDataMap, self.call_data_map_page(at, data))
            }
            Contents::Nothing => {
                let command = Command::DataCreateUnknown;
                let args = [self.rd.get(), data, at];
                (command, self.with_tables(command, args, Ipa::new(at), LAST_LEVEL))
            }
        };
        let outcome = answer.and_then(|reply| match reply.status {
            Status::Success if command == Command::RttDataMap => {
                self.progress(command, at, at + granule, reply.x[1]).map(|_| true)
            }
            Status::Success => Ok(true),
            Status::Rtt { level: LAST_LEVEL } => Ok(false),
            status => Err(Error::Refused { command, status }),
        });
        if outcome == Ok(true) {
            self.book.data.add(at, granule, 1);
            self.rmm.ledger.hand_over(frames, RmmUse::Data);
        } else {
            self.book.supply.block = None;
            self.rmm.retire(frames);
            self.budget.spend(1);
        }
        outcome
    }

    /// Maps delegated granules of the supply from `at` with the largest entries that fit, as many as one call can.
    fn map_run(&mut self, at: u64, top: u64) -> Result<Mapped, Error> {
        let Some((pa, bytes)) = self.book.supply.ready() else {
            return Ok(Mapped { upto: at, granules: 0 });
        };
        let granule = self.geometry.granule();
        let bytes = bytes.min(top - at);
        let mut floor = TOP_BLOCK_LEVEL;
        while floor <= LAST_LEVEL {
            let upto = match self.map_data_blocks(at, pa.get(), bytes, floor)? {
                Step::Upto(upto) => upto,
                Step::Conflict(level) => {
                    floor = level + 1;
                    continue;
                }
            };
            let granules = (upto - at) / granule;
            if let Some(frames) = self.book.supply.take(granules) {
                self.book.data.add(at, upto - at, granules);
                self.hand_over_data(frames);
            }
            return Ok(Mapped { upto, granules });
        }
        // There is memory already: this granule is not needed.
        if let Some(unused) = self.book.supply.take(1) {
            self.book.supply.block = None;
            self.rmm.retire(unused);
            self.budget.spend(1);
        }
        Ok(Mapped { upto: at + granule, granules: 0 })
    }

    /// Records that the RMM has the run; a large one in parts, so that the ledger is not locked for long.
    fn hand_over_data(&self, frames: Frames<Delegated>) {
        let mut rest = frames;
        while !rest.is_empty() {
            let (part, remainder) = rest.split_at(self.rmm.take_back_limit());
            self.rmm.ledger.hand_over(part, RmmUse::Data);
            rest = remainder;
        }
    }

    /// Folds the block that the supply has just filled granule by granule.
    fn fold_full_block(&mut self) -> Result<(), Error> {
        if self.book.supply.is_empty()
            && let Some(block) = self.book.supply.block.take()
        {
            self.fold(Ipa::new(block), LAST_LEVEL)?;
        }
        Ok(())
    }
}
