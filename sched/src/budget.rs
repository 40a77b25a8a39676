//! Budget and period: at most `budget_ns` of run time in every period, enforced.

/// Share of one core that an entity may use: `budget_ns` in each period of `period_ns`.
///
/// Periods follow each other from when the entity is added. Unused budget does not carry over; run
/// time beyond the budget (because a stop came late) is taken from the following periods, so that
/// the long-term share holds exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Run time per period in nanoseconds: at least [`MIN_NS`](crate::MIN_NS), at most `period_ns`.
    pub budget_ns: u64,
    /// Length of a period in nanoseconds.
    pub period_ns: u64,
}

/// A budget at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    budget: Budget,
    /// Run time charged to the current period.
    spent: u64,
    /// End of the current period.
    refill_at: u64,
}

impl Account {
    pub(crate) const fn new(budget: Budget, now: u64) -> Self {
        Self { budget, spent: 0, refill_at: now.saturating_add(budget.period_ns) }
    }

    /// Moves on to the period of `now`, without having run since the last call.
    pub(crate) fn rest(&mut self, now: u64) {
        let Some(late) = now.checked_sub(self.refill_at) else {
            return;
        };
        let periods = late / self.budget.period_ns + 1;
        self.spent = self.spent.saturating_sub(periods.saturating_mul(self.budget.budget_ns));
        self.advance(periods);
    }

    /// Charges having run from `since` to `now`, and moves on to the period of `now`.
    pub(crate) fn run(&mut self, since: u64, now: u64) {
        self.rest(since);
        let Some(late) = now.checked_sub(self.refill_at) else {
            self.spent = self.spent.saturating_add(now.saturating_sub(since));
            return;
        };
        // The rest of the period of `since`, then whole periods, then the beginning of this one.
        let first = self.spent.saturating_add(self.refill_at - since);
        self.spent = first.saturating_sub(self.budget.budget_ns);
        let whole = late / self.budget.period_ns;
        let excess = self.budget.period_ns - self.budget.budget_ns;
        self.spent = self.spent.saturating_add(whole.saturating_mul(excess));
        self.advance(whole + 1);
        self.spent = self.spent.saturating_add(late % self.budget.period_ns);
    }

    fn advance(&mut self, periods: u64) {
        let by = periods.saturating_mul(self.budget.period_ns);
        self.refill_at = self.refill_at.saturating_add(by);
    }

    /// When the entity may run again; `None` if it may now. Call after [`Self::rest`] or
    /// [`Self::run`].
    pub(crate) fn throttled_until(&self) -> Option<u64> {
        // Each refill takes one budget off what was spent.
        let refills = self.spent / self.budget.budget_ns;
        let more = refills.checked_sub(1)?.saturating_mul(self.budget.period_ns);
        Some(self.refill_at.saturating_add(more))
    }

    /// When the budget runs out if the entity runs from `now` on; `None` if it never does.
    pub(crate) fn depleted_at(&self, now: u64) -> Option<u64> {
        let left = self.budget.budget_ns.saturating_sub(self.spent);
        let at = now.saturating_add(left);
        if at < self.refill_at {
            return Some(at);
        }
        if self.budget.budget_ns == self.budget.period_ns {
            return None;
        }
        // It reaches the refill and then has a whole budget, less what it overdrew (nothing here).
        Some(self.refill_at.saturating_add(self.budget.budget_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { budget_ns: 20_000, period_ns: 100_000 };

    #[test]
    fn depletes_and_refills() {
        let mut account = Account::new(BUDGET, 1_000);
        assert_eq!(account.depleted_at(1_000), Some(21_000));
        account.run(1_000, 21_000);
        assert_eq!(account.throttled_until(), Some(101_000));
        account.rest(101_000);
        assert_eq!(account.throttled_until(), None);
    }

    #[test]
    fn overrun_is_paid_back() {
        let mut account = Account::new(BUDGET, 0);
        account.run(0, 50_000);
        // 50 spent: the refills at 100 and 200 leave 10, which is less than a budget.
        assert_eq!(account.throttled_until(), Some(200_000));
        account.rest(200_000);
        assert_eq!(account.throttled_until(), None);
        assert_eq!(account.depleted_at(200_000), Some(210_000));
    }

    #[test]
    fn running_across_refills_charges_each_period() {
        let mut one_go = Account::new(BUDGET, 0);
        one_go.run(90_000, 330_000);
        let mut stepwise = Account::new(BUDGET, 0);
        for at in (90_000..330_000).step_by(10_000) {
            stepwise.run(at, at + 10_000);
        }
        assert_eq!(one_go.spent, stepwise.spent);
        assert_eq!(one_go.refill_at, stepwise.refill_at);
    }

    #[test]
    fn a_full_budget_never_depletes() {
        let full = Budget { budget_ns: 100_000, period_ns: 100_000 };
        let mut account = Account::new(full, 0);
        account.run(0, 1_000_000);
        assert_eq!(account.throttled_until(), None);
        assert_eq!(account.depleted_at(1_000_000), None);
    }
}
