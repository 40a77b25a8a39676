//! Names of cores and entities.

use core::fmt;

/// A core of the machine, numbered from 0 in the order of the hypervisor's core table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u8);

impl CoreId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Something that can be scheduled: one vCPU, whether ordinary or a REC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(pub u16);

impl EntityId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A set of cores, out of at most 32.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct CoreSet(u32);

impl CoreSet {
    /// No core.
    pub const EMPTY: Self = Self(0);
    /// All cores.
    pub const ALL: Self = Self(u32::MAX);

    /// The set with bit `n` for core `n`.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Bit `n` for core `n`.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of one core; empty when its number is above 31.
    #[must_use]
    pub const fn one(core: CoreId) -> Self {
        match 1u32.checked_shl(core.0 as u32) {
            Some(bit) => Self(bit),
            None => Self::EMPTY,
        }
    }

    /// The cores 0 to `count - 1`.
    #[must_use]
    pub const fn first(count: usize) -> Self {
        if count >= 32 { Self::ALL } else { Self((1 << count) - 1) }
    }

    /// Whether `core` is in the set.
    #[must_use]
    pub const fn contains(self, core: CoreId) -> bool {
        self.0 & Self::one(core).0 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The cores in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The cores in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without `core`.
    #[must_use]
    pub const fn without(self, core: CoreId) -> Self {
        Self(self.0 & !Self::one(core).0)
    }

    /// Adds `core`.
    pub const fn insert(&mut self, core: CoreId) {
        self.0 |= Self::one(core).0;
    }

    /// Takes `core` out.
    pub const fn remove(&mut self, core: CoreId) {
        self.0 &= !Self::one(core).0;
    }

    /// The cores, lowest first.
    pub fn iter(self) -> impl Iterator<Item = CoreId> {
        let Self(mut left) = self;
        core::iter::from_fn(move || {
            let core = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (core < u32::BITS).then_some(CoreId(core as u8))
        })
    }
}

impl fmt::Debug for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CoreSet({:#b})", self.0)
    }
}
