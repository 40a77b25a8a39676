//! The granule ledger: one record of who has each 4 KiB granule of the machine's RAM, the
//! allocator over the free ones, and the tokens that stand for the others.
//!
//! A granule moves `Free -> Ns -> Delegated -> Rmm -> Delegated -> Ns -> Free`. Each move consumes a
//! token and mints the next ([`Frames`]), so that code which has no token cannot free a granule twice or
//! delegate what it does not have. Granules in use by the RMM have no token: the RMM names them when
//! it returns them, and [`Ledger::take_back`] mints a token only if the record says that this granule was
//! given to the RMM for that use and owner.
//!
//! Granules that the RMM refuses to undelegate become `Lost` and are never allocated again.
//!
//! State is kept per naturally aligned block, not per granule: allocating 1 GiB writes one word.

mod bits;
mod census;
mod frames;
mod region;
mod state;
#[cfg(test)]
mod tests;

use core::fmt;

use arrayvec::ArrayVec;

pub use self::census::Census;
pub use self::frames::{Delegated, Frames, Undelegated, World};
pub use self::region::MAX_ORDER;
use self::region::{Region, RegionView, pfn_of};
pub use self::state::{GranuleState, Owner, RmmUse, Use};
use crate::sync::Mutex;
use crate::{PAGE_SIZE, PhysAddr};

/// Most separate parts of RAM, counting a part that the delegable limit cuts as two.
pub const MAX_REGIONS: usize = 16;

/// A half-open range of physical addresses, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysRange {
    /// First byte.
    pub start: PhysAddr,
    /// First byte after the range.
    pub end: PhysAddr,
}

impl PhysRange {
    /// The range from `start` to `end`.
    #[must_use]
    pub const fn new(start: PhysAddr, end: PhysAddr) -> Self {
        Self { start, end }
    }

    /// Size in bytes; 0 for an inverted range.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end.get().saturating_sub(self.start.get())
    }

    /// First granule and number of whole granules inside.
    fn granules_inside(&self) -> (u64, u64) {
        let first = self.start.get().div_ceil(PAGE_SIZE);
        let end = self.end.get() / PAGE_SIZE;
        (first, end.saturating_sub(first))
    }

    /// First granule and number of granules touched.
    fn granules_touched(&self) -> (u64, u64) {
        let first = self.start.get() / PAGE_SIZE;
        let end = self.end.get().div_ceil(PAGE_SIZE);
        (first, end.saturating_sub(first))
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Why a ledger cannot be built from what the machine says about its RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// More than [`MAX_REGIONS`] parts.
    TooManyRegions,
    /// Two ranges overlap or are not in ascending order.
    Overlap(PhysRange),
    /// Fewer metadata words than [`Ledger::metadata_words`] asked for.
    Metadata {
        /// Words needed.
        needed: usize,
        /// Words given.
        given: usize,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRegions => write!(f, "RAM has more than {MAX_REGIONS} parts"),
            Self::Overlap(range) => write!(f, "RAM range {range} overlaps or precedes another"),
            Self::Metadata { needed, given } => {
                write!(f, "ledger needs {needed} words of metadata and got {given}")
            }
        }
    }
}

/// No free block of the size that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory {
    /// log2 of the number of granules wanted.
    pub order: u8,
    /// What for.
    pub used_for: Use,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = (PAGE_SIZE / 1024) << self.order.min(MAX_ORDER);
        write!(f, "out of memory: no free block of {kib} KiB for {}", self.used_for)
    }
}

/// A granule is not in the state that an operation needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotOurs {
    /// The first granule that differs.
    pub addr: PhysAddr,
    /// Its state; `None` outside RAM.
    pub found: Option<GranuleState>,
}

impl fmt::Display for NotOurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            Some(state) => write!(f, "granule {} is not ours to take: {state}", self.addr),
            None => write!(f, "granule {} is not RAM", self.addr),
        }
    }
}

/// The record of all RAM. Shared by all cores.
///
/// One ticket lock guards it; no operation holds the lock for longer than its logarithmic work, except
/// [`Ledger::census`], which visits each block once. Where an interrupt handler uses the ledger too,
/// callers on the same core must mask interrupts around each call.
pub struct Ledger<'m> {
    inner: Mutex<Inner<'m>>,
}

struct Inner<'m> {
    regions: ArrayVec<Region, MAX_REGIONS>,
    metadata: &'m mut [u32],
}

/// Splits RAM ranges at the delegable limit and lays their metadata out.
fn layout(
    ram: &[PhysRange],
    delegable_limit: PhysAddr,
) -> Result<(ArrayVec<Region, MAX_REGIONS>, usize), LayoutError> {
    let limit = pfn_of(delegable_limit);
    let mut regions = ArrayVec::new();
    let mut offset = 0;
    let mut previous_end = 0;
    for range in ram {
        let (first, count) = range.granules_inside();
        if range.start.get() < previous_end || range.end < range.start {
            return Err(LayoutError::Overlap(*range));
        }
        previous_end = range.end.get();
        let below = limit.clamp(first, first + count) - first;
        for (first, count, delegable) in
            [(first, below, true), (first + below, count - below, false)]
        {
            if count == 0 {
                continue;
            }
            regions
                .try_push(Region { first, count, delegable, offset })
                .map_err(|_| LayoutError::TooManyRegions)?;
            offset += Region::words(first, count);
        }
    }
    Ok((regions, offset))
}

impl<'m> Ledger<'m> {
    /// Number of 32-bit metadata words for this RAM: about 4.3 bytes per granule.
    ///
    /// # Errors
    /// The ranges overlap, are out of order, or are too many.
    pub fn metadata_words(
        ram: &[PhysRange],
        delegable_limit: PhysAddr,
    ) -> Result<usize, LayoutError> {
        layout(ram, delegable_limit).map(|(_, words)| words)
    }

    /// A ledger in which all of `ram` is free.
    ///
    /// `ram` is ascending and disjoint; partial granules at the edges are left out. Addresses from
    /// `delegable_limit` on are never used where the RMM is involved. `metadata` must be zero and may
    /// lie inside `ram`, if the caller then reserves it. Costs a few words per range, whatever its size.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(
        ram: &[PhysRange],
        delegable_limit: PhysAddr,
        metadata: &'m mut [u32],
    ) -> Result<Self, LayoutError> {
        let (regions, needed) = layout(ram, delegable_limit)?;
        if metadata.len() < needed {
            return Err(LayoutError::Metadata { needed, given: metadata.len() });
        }
        let mut inner = Inner { regions, metadata };
        for index in 0..inner.regions.len() {
            if let Some(mut view) = inner.view(index) {
                view.fill_free();
            }
        }
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Whether some core is in the middle of a call, or was when it stopped for good.
    #[cfg(not(loom))]
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }

    /// Takes free granules out of the allocator at boot. Parts of `range` outside RAM are ignored;
    /// granules already reserved keep their first reason. Returns the number newly reserved.
    ///
    /// # Errors
    /// A granule in the range is allocated; the granules before it are reserved.
    pub fn reserve(&self, range: PhysRange, used_for: Use) -> Result<u64, NotOurs> {
        let (first, count) = range.granules_touched();
        let mut inner = self.inner.lock();
        let mut reserved = 0;
        for index in 0..inner.regions.len() {
            let Some(mut view) = inner.view(index) else { continue };
            let (mut at, end) = view.overlap(first, count);
            while at < end {
                let Some(block) = view.block_of(at) else { break };
                let piece = block.end().min(end) - at;
                match block.state {
                    GranuleState::Free => {
                        view.set(at, piece, GranuleState::Reserved(used_for));
                        reserved += piece;
                    }
                    GranuleState::Reserved(_) => {}
                    found => return Err(not_ours(at, Some(found))),
                }
                at += piece;
            }
        }
        Ok(reserved)
    }

    /// Keeps `range`, which the RMM cannot take granules from, out of what needs the RMM: a part of RAM
    /// that lies in it as a whole serves normal VMs alone from now on, and what is free in it of another
    /// part is reserved. Returns the number of granules reserved.
    ///
    /// What is in use there stays so, and serves anybody when it is free again.
    pub fn forbid_delegation(&self, range: PhysRange) -> u64 {
        let (first, count) = range.granules_touched();
        let mut inner = self.inner.lock();
        let mut reserved = 0;
        for index in 0..inner.regions.len() {
            if let Some(region) = inner.regions.get_mut(index)
                && first <= region.first
                && region.first + region.count <= first + count
            {
                region.delegable = false;
                continue;
            }
            if inner.regions.get(index).is_none_or(|region| !region.delegable) {
                continue;
            }
            let Some(mut view) = inner.view(index) else { continue };
            let (mut at, end) = view.overlap(first, count);
            while at < end {
                let Some(block) = view.block_of(at) else { break };
                let piece = block.end().min(end) - at;
                if block.state == GranuleState::Free {
                    view.set(at, piece, GranuleState::Reserved(Use::Firmware));
                    reserved += piece;
                }
                at += piece;
            }
        }
        reserved
    }

    /// Gives whole granules that were reserved for `used_for` to the allocator.
    ///
    /// # Errors
    /// A granule in the range is not reserved for that; nothing has changed.
    pub fn release(&self, range: PhysRange, used_for: Use) -> Result<(), NotOurs> {
        let (first, count) = range.granules_inside();
        self.transition(first, count, GranuleState::Reserved(used_for), GranuleState::Free)
    }

    /// Allocates `2^order` granules, aligned to their size, from the lowest address that serves.
    ///
    /// Memory that the RMM need not know comes from above the delegable limit where there is any.
    /// The contents are whatever they were.
    ///
    /// # Errors
    /// No free block is large enough, or `order` exceeds [`MAX_ORDER`].
    pub fn alloc(
        &self,
        order: u8,
        used_for: Use,
        owner: Owner,
    ) -> Result<Frames<Undelegated>, OutOfMemory> {
        let error = OutOfMemory { order, used_for };
        if order > MAX_ORDER {
            return Err(error);
        }
        let zones: &[bool] = if used_for.needs_rmm() { &[true] } else { &[false, true] };
        let mut inner = self.inner.lock();
        for &delegable in zones {
            for index in 0..inner.regions.len() {
                if inner.regions.get(index).is_none_or(|region| region.delegable != delegable) {
                    continue;
                }
                let Some(mut view) = inner.view(index) else { continue };
                if let Some(pfn) = view.take(order) {
                    view.set(pfn, 1 << order, GranuleState::Ns { used_for, owner });
                    return Ok(Frames::mint(addr_of(pfn), 1 << order, owner));
                }
            }
        }
        Err(error)
    }

    /// Puts granules back into the allocator.
    pub fn free(&self, frames: Frames<Undelegated>) {
        self.retire(frames, GranuleState::Free);
    }

    /// Puts granules in the normal world back into the allocator whose token was not kept, for example
    /// a stage-2 table found again in its parent.
    ///
    /// # Errors
    /// A granule is not recorded with that use and owner. Nothing has changed then.
    pub fn free_untracked(
        &self,
        base: PhysAddr,
        count: u64,
        used_for: Use,
        owner: Owner,
    ) -> Result<(), NotOurs> {
        let state = GranuleState::Ns { used_for, owner };
        self.transition(pfn_of(base), count, state, GranuleState::Free)
    }

    /// Records that the RMM has accepted the delegation of all granules of the token.
    pub fn delegated(&self, frames: Frames<Undelegated>) -> Frames<Delegated> {
        let (base, count, owner) = (frames.base(), frames.count(), frames.owner());
        self.retire(frames, GranuleState::Delegated { owner });
        Frames::mint(base, count, owner)
    }

    /// Records that the RMM has undelegated all granules of the token. They are allocated with use
    /// [`Use::Realm`] until freed or delegated again.
    pub fn undelegated(&self, frames: Frames<Delegated>) -> Frames<Undelegated> {
        let (base, count, owner) = (frames.base(), frames.count(), frames.owner());
        self.retire(frames, GranuleState::Ns { used_for: Use::Realm, owner });
        Frames::mint(base, count, owner)
    }

    /// Records that the RMM refused to undelegate the granules: they are gone until the next boot.
    pub fn lose(&self, frames: Frames<Delegated>) {
        let owner = frames.owner();
        self.retire(frames, GranuleState::Lost { owner });
    }

    /// Moves delegated granules to another account.
    pub fn reassign(&self, frames: Frames<Delegated>, owner: Owner) -> Frames<Delegated> {
        let (base, count) = (frames.base(), frames.count());
        self.retire(frames, GranuleState::Delegated { owner });
        Frames::mint(base, count, owner)
    }

    /// Records that the RMM has put delegated granules to a use.
    pub fn hand_over(&self, frames: Frames<Delegated>, used_for: RmmUse) {
        let owner = frames.owner();
        self.retire(frames, GranuleState::Rmm { used_for, owner });
    }

    /// A token for granules that the RMM says it no longer uses.
    ///
    /// # Errors
    /// The record disagrees: a granule was not given to the RMM for that use by that owner. Nothing has
    /// changed then.
    pub fn take_back(
        &self,
        base: PhysAddr,
        count: u64,
        used_for: RmmUse,
        owner: Owner,
    ) -> Result<Frames<Delegated>, NotOurs> {
        let from = GranuleState::Rmm { used_for, owner };
        if !base.is_aligned(PAGE_SIZE) {
            return Err(NotOurs { addr: base, found: self.state(base) });
        }
        self.transition(pfn_of(base), count, from, GranuleState::Delegated { owner })?;
        Ok(Frames::mint(base, count, owner))
    }

    /// State of the granule that holds `addr`; `None` outside RAM.
    #[must_use]
    pub fn state(&self, addr: PhysAddr) -> Option<GranuleState> {
        let pfn = pfn_of(addr);
        let mut inner = self.inner.lock();
        let view = inner.view_of(pfn)?;
        view.block_of(pfn).map(|block| block.state)
    }

    /// The first run of granules at or after `from` in exactly `state`.
    #[must_use]
    pub fn find(&self, state: GranuleState, from: PhysAddr) -> Option<PhysRange> {
        let mut inner = self.inner.lock();
        for index in 0..inner.regions.len() {
            let Some(view) = inner.view(index) else { continue };
            let found = view.blocks_from(pfn_of(from)).find(|block| block.state == state);
            if let Some(block) = found {
                let start = block.pfn.max(pfn_of(from));
                return Some(PhysRange::new(addr_of(start), addr_of(block.end())));
            }
        }
        None
    }

    /// Granules by state, of the whole machine.
    #[must_use]
    pub fn census(&self) -> Census {
        self.count(|_| true)
    }

    /// Granules by state, of one owner.
    #[must_use]
    pub fn census_of(&self, owner: Owner) -> Census {
        self.count(|state| state.owner() == Some(owner))
    }

    fn count(&self, wanted: impl Fn(GranuleState) -> bool) -> Census {
        let mut census = Census::EMPTY;
        let mut inner = self.inner.lock();
        for index in 0..inner.regions.len() {
            let Some(view) = inner.view(index) else { continue };
            for block in view.blocks_from(0).filter(|block| wanted(block.state)) {
                census.add(block.state, 1 << block.order);
            }
        }
        census
    }

    /// Records a new state for the granules of a token. The token is proof of the old one.
    fn retire<S: World>(&self, frames: Frames<S>, state: GranuleState) {
        let mut inner = self.inner.lock();
        if let Some(mut view) = inner.view_of(pfn_of(frames.base())) {
            view.set(pfn_of(frames.base()), frames.count(), state);
        }
    }

    /// Moves a run from one state to another, or changes nothing.
    fn transition(
        &self,
        pfn: u64,
        count: u64,
        from: GranuleState,
        to: GranuleState,
    ) -> Result<(), NotOurs> {
        let mut inner = self.inner.lock();
        let Some(mut view) = inner.view_of(pfn) else { return Err(not_ours(pfn, None)) };
        view.expect(pfn, count, from)
            .map_err(|at| not_ours(at, view.block_of(at).map(|block| block.state)))?;
        if from != to {
            view.set(pfn, count, to);
        }
        Ok(())
    }
}

impl Inner<'_> {
    fn view(&mut self, index: usize) -> Option<RegionView<'_>> {
        self.regions.get(index)?.view(self.metadata)
    }

    fn view_of(&mut self, pfn: u64) -> Option<RegionView<'_>> {
        let index = self.regions.iter().position(|region| region.contains(pfn))?;
        self.view(index)
    }
}

impl fmt::Debug for Ledger<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({})", self.census())
    }
}

const fn addr_of(pfn: u64) -> PhysAddr {
    PhysAddr::new(pfn * PAGE_SIZE)
}

const fn not_ours(pfn: u64, found: Option<GranuleState>) -> NotOurs {
    NotOurs { addr: addr_of(pfn), found }
}
