//! How many RMI calls an operation of the driver may make before it has to let others have the core.

/// A number of calls. Work that goes on after the budget is spent is left for the next time; what has been begun,
/// such as the creation of missing tables for one entry, is finished first, so that a budget may be exceeded by a
/// few calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    limit: u64,
    spent: u64,
}

impl Budget {
    /// As many calls as it takes.
    pub(crate) const UNLIMITED: Self = Self::new(u64::MAX);

    pub(crate) const fn new(limit: u64) -> Self {
        Self { limit, spent: 0 }
    }

    pub(crate) fn spend(&mut self, calls: u64) {
        self.spent = self.spent.saturating_add(calls);
    }

    pub(crate) const fn spent(&self) -> u64 {
        self.spent
    }

    pub(crate) const fn left(&self) -> u64 {
        self.limit.saturating_sub(self.spent)
    }

    pub(crate) const fn is_spent(&self) -> bool {
        self.left() == 0
    }
}
