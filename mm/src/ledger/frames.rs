//! Tokens: values that stand for granules.

use core::fmt;
use core::marker::PhantomData;

use super::Owner;
use crate::{PAGE_SIZE, PhysAddr};

mod sealed {
    /// Keeps the states to the two of this module.
    pub trait Sealed {}
}

/// Where the granules of a token are: in the normal world or delegated.
pub trait World: sealed::Sealed {
    /// Name for messages.
    const NAME: &'static str;
}

/// Granules in the normal world: usable by the hypervisor and by normal VMs.
pub enum Undelegated {}
/// Granules delegated to the realm world, not in use by the RMM. They must not be touched.
pub enum Delegated {}

impl sealed::Sealed for Undelegated {}
impl sealed::Sealed for Delegated {}
impl World for Undelegated {
    const NAME: &'static str = "undelegated";
}
impl World for Delegated {
    const NAME: &'static str = "delegated";
}

/// Ownership of a run of contiguous granules, made only by the ledger.
///
/// A token that is dropped is not freed: the ledger goes on to account its granules to the owner,
/// where a census shows them.
#[must_use = "dropping a token leaks its granules"]
pub struct Frames<S: World> {
    base: PhysAddr,
    count: u64,
    owner: Owner,
    world: PhantomData<fn() -> S>,
}

impl<S: World> Frames<S> {
    /// Only the ledger mints tokens, after it has recorded the state.
    pub(super) const fn mint(base: PhysAddr, count: u64, owner: Owner) -> Self {
        Self { base, count, owner, world: PhantomData }
    }

    /// Address of the first granule.
    #[must_use]
    pub const fn base(&self) -> PhysAddr {
        self.base
    }

    /// Number of granules; 0 only for an empty half of a split.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count * PAGE_SIZE
    }

    /// First address after the run.
    #[must_use]
    pub const fn end(&self) -> PhysAddr {
        PhysAddr::new(self.base.get() + self.bytes())
    }

    /// The account.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Whether the run has no granules.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Splits into the first `granules` granules (at most all of them) and the rest.
    pub fn split_at(self, granules: u64) -> (Self, Self) {
        let first = if granules < self.count { granules } else { self.count };
        let middle = PhysAddr::new(self.base.get() + first * PAGE_SIZE);
        (
            Self::mint(self.base, first, self.owner),
            Self::mint(middle, self.count - first, self.owner),
        )
    }

    /// Joins a run to the one right before it, of the same owner.
    ///
    /// # Errors
    /// They are not side by side, or belong to different owners; both come back.
    pub fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        if self.end() != next.base || self.owner != next.owner {
            return Err((self, next));
        }
        Ok(Self::mint(self.base, self.count + next.count, self.owner))
    }
}

impl<S: World> fmt::Debug for Frames<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} granules at {} of {} ({})", self.count, self.base, self.owner, S::NAME)
    }
}
