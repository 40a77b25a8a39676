//! The granule table: state, reference count and lock of each granule of RAM.
//!
//! Lock order. A command first locks the granules that the host names, in ascending address order
//! (`GranuleTable::lock_pair`). The lock of a realm descriptor also guards all translation tables
//! of the realm, so tables and data granules are locked only for the moment of a state change,
//! last and one at a time. A running REC is not locked but *claimed*: it may then take any lock.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::addr::{GRANULE_SIZE, Pa};
use crate::monitor::{BootError, RamRange};
use crate::platform::Platform;

const LOCKED: u32 = 1 << 0;
const CLAIMED: u32 = 1 << 1;
const STATE_SHIFT: u32 = 4;
const STATE_MASK: u32 = 0xf << STATE_SHIFT;
const REFCOUNT_SHIFT: u32 = 16;
/// Log2 of one more than the highest reference count, which bounds the RECs of a realm.
pub(crate) const REFCOUNT_BITS: u32 = 10;
/// Highest reference count.
pub(crate) const REFCOUNT_MAX: u32 = (1 << REFCOUNT_BITS) - 1;
/// Most ranges of RAM that the table keeps.
const MAX_RANGES: usize = 4;

/// Bookkeeping of one granule of RAM. A platform provides one per granule of the RAM that the
/// monitor manages, all fresh at the start.
#[derive(Debug)]
pub struct GranuleSlot(AtomicU32);

impl GranuleSlot {
    /// A granule that has never been delegated.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl Default for GranuleSlot {
    fn default() -> Self {
        Self::new()
    }
}

/// What a granule is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GranuleState {
    /// Not delegated: the host's.
    Undelegated = 0,
    /// Delegated and unused.
    Delegated = 1,
    /// Realm descriptor.
    Rd = 2,
    /// Realm execution context.
    Rec = 3,
    /// Auxiliary memory of a REC.
    RecAux = 4,
    /// Realm translation table.
    Rtt = 5,
    /// Realm data.
    Data = 6,
    /// A REC that is being created or destroyed by a stateful operation (2.0).
    Partial = 7,
}

impl GranuleState {
    fn of(word: u32) -> Self {
        match (word & STATE_MASK) >> STATE_SHIFT {
            0 => Self::Undelegated,
            1 => Self::Delegated,
            2 => Self::Rd,
            3 => Self::Rec,
            4 => Self::RecAux,
            5 => Self::Rtt,
            6 => Self::Data,
            _ => Self::Partial,
        }
    }
}

/// All granules of RAM. The slots themselves are the platform's.
#[derive(Debug)]
pub(crate) struct GranuleTable {
    /// Range, and index of its first slot.
    ranges: [(RamRange, usize); MAX_RANGES],
}

impl GranuleTable {
    /// A table over `ram`, for which the platform has `slots` slots.
    pub(crate) fn new(ram: &[RamRange], slots: usize) -> Result<Self, BootError> {
        if ram.len() > MAX_RANGES {
            return Err(BootError::TooManyRanges);
        }
        let mut ranges = [(RamRange { base: Pa(0), size: 0 }, 0); MAX_RANGES];
        let mut end = 0;
        let mut first = 0;
        for (entry, range) in ranges.iter_mut().zip(ram) {
            let top = range.base.0.checked_add(range.size).ok_or(BootError::BadRange)?;
            let aligned = (range.base.0 | range.size).is_multiple_of(GRANULE_SIZE);
            if !aligned || range.size == 0 || range.base.0 < end {
                return Err(BootError::BadRange);
            }
            *entry = (*range, first);
            end = top;
            first += usize::try_from(range.size / GRANULE_SIZE).map_err(|_| BootError::BadRange)?;
        }
        if slots < first {
            return Err(BootError::TooFewSlots);
        }
        Ok(Self { ranges })
    }

    /// The slot of the granule that starts at `pa`; none if `pa` is misaligned or not RAM.
    fn slot<'p>(&self, platform: &'p impl Platform, pa: Pa) -> Option<&'p AtomicU32> {
        if !pa.is_aligned(GRANULE_SIZE) {
            return None;
        }
        let (range, first) = self
            .ranges
            .iter()
            .find(|(range, _)| pa >= range.base && pa.0 - range.base.0 < range.size)?;
        let index = usize::try_from((pa.0 - range.base.0) / GRANULE_SIZE).ok()?;
        platform.granule_slots().get(first + index).map(|slot| &slot.0)
    }

    /// The state of the granule at `pa` at this moment, without its lock.
    pub(crate) fn peek(&self, platform: &impl Platform, pa: Pa) -> Option<GranuleState> {
        self.slot(platform, pa).map(|slot| GranuleState::of(slot.load(Ordering::Acquire)))
    }

    /// Locks the granule at `pa` if it is RAM and in `state`.
    pub(crate) fn lock<'p>(
        &self,
        platform: &'p impl Platform,
        pa: Pa,
        state: GranuleState,
    ) -> Option<Locked<'p>> {
        let slot = self.slot(platform, pa)?;
        while slot.fetch_or(LOCKED, Ordering::Acquire) & LOCKED != 0 {
            platform.relax();
        }
        let locked = Locked { slot, pa };
        (locked.state() == state).then_some(locked)
    }

    /// Locks two different granules in ascending address order, each if it is in its state.
    pub(crate) fn lock_pair<'p>(
        &self,
        platform: &'p impl Platform,
        (a, a_state): (Pa, GranuleState),
        (b, b_state): (Pa, GranuleState),
    ) -> Option<(Locked<'p>, Locked<'p>)> {
        if a == b {
            return None;
        }
        if a < b {
            let first = self.lock(platform, a, a_state)?;
            Some((first, self.lock(platform, b, b_state)?))
        } else {
            let second = self.lock(platform, b, b_state)?;
            Some((self.lock(platform, a, a_state)?, second))
        }
    }
}

/// A granule whose lock is held.
#[derive(Debug)]
pub(crate) struct Locked<'m> {
    slot: &'m AtomicU32,
    pa: Pa,
}

impl<'m> Locked<'m> {
    /// Address of the granule.
    pub(crate) fn pa(&self) -> Pa {
        self.pa
    }

    pub(crate) fn state(&self) -> GranuleState {
        GranuleState::of(self.slot.load(Ordering::Relaxed))
    }

    /// Changes the state. References must be gone by then.
    pub(crate) fn set_state(&self, state: GranuleState) {
        debug_assert_eq!(self.refcount(), 0, "a referenced granule changes state");
        // One atomic step, since `peek` looks without the lock.
        let flip = (self.state() as u32 ^ state as u32) << STATE_SHIFT;
        self.slot.fetch_xor(flip, Ordering::Release);
    }

    pub(crate) fn refcount(&self) -> u32 {
        self.slot.load(Ordering::Acquire) >> REFCOUNT_SHIFT
    }

    /// Takes `count` references.
    pub(crate) fn get(&self, count: u32) {
        self.slot.fetch_add(count << REFCOUNT_SHIFT, Ordering::Relaxed);
    }

    /// Drops `count` references.
    pub(crate) fn put(&self, count: u32) {
        self.slot.fetch_sub(count << REFCOUNT_SHIFT, Ordering::Relaxed);
    }

    /// True while a CPU runs this REC.
    pub(crate) fn is_claimed(&self) -> bool {
        self.slot.load(Ordering::Acquire) & CLAIMED != 0
    }

    /// Turns the lock into a claim, which keeps everyone else off the contents without making
    /// them wait. None (and unlocked) if the granule is claimed already.
    pub(crate) fn claim(self) -> Option<Claimed<'m>> {
        let before = self.slot.fetch_or(CLAIMED, Ordering::Relaxed);
        // Made only if it holds, since dropping it would end the other CPU's claim.
        (before & CLAIMED == 0).then(|| Claimed { slot: self.slot, pa: self.pa })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.slot.fetch_and(!LOCKED, Ordering::Release);
    }
}

/// A REC granule that this CPU runs.
#[derive(Debug)]
pub(crate) struct Claimed<'m> {
    slot: &'m AtomicU32,
    pa: Pa,
}

impl Claimed<'_> {
    /// Address of the granule.
    pub(crate) fn pa(&self) -> Pa {
        self.pa
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.slot.fetch_and(!CLAIMED, Ordering::Release);
    }
}
