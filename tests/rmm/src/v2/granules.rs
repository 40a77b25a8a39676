//! Delegation and undelegation of ranges: GRANULE_RANGE_DELEGATE, GRANULE_RANGE_UNDELEGATE.

use crate::abi::{Refusal, Reply};
use crate::addr::{GRANULE_SIZE, Pa};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::v2::Rmi2;
use crate::v2::operation::{Granules, Need, Operation, incomplete, wants_memory};

/// What is done to each granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Delegate,
    Undelegate,
}

/// A range of granules under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RangeChange {
    change: Change,
    base: Pa,
    /// First granule that is not done.
    next: Pa,
    /// The work pauses here.
    pause: Pa,
    end: Pa,
}

impl RangeChange {
    /// The answer to a failure: x1 is the end of what was done.
    fn refused(&self, refusal: Refusal) -> Reply {
        Reply::refused_with(refusal, [self.base.0])
    }
}

impl<P: Platform> Monitor<P> {
    /// GRANULE_RANGE_DELEGATE and GRANULE_RANGE_UNDELEGATE.
    pub(crate) fn granule_range(
        &self,
        rmi2: &Rmi2,
        (base, top): (Pa, Pa),
        change: Change,
    ) -> Result<Reply, Refusal> {
        let aligned = base.is_aligned(GRANULE_SIZE) && top.is_aligned(GRANULE_SIZE);
        if !aligned || top <= base {
            return Ok(Reply::refused_with(Refusal::INPUT, [base.0]));
        }
        let end = if rmi2.whole_ranges { top } else { base.offset(GRANULE_SIZE) };
        let count = (end.0 - base.0) / GRANULE_SIZE;
        let pause = if rmi2.yields { base.offset(count / 2 * GRANULE_SIZE) } else { base };
        let mut range = RangeChange { change, base, next: base, pause, end };
        if count == 1 {
            return Ok(self.change_granules(&mut range, end));
        }
        let context = self.operations.reserve()?;
        let (donation, scratch) = (rmi2.scratch, Granules::NONE);
        if let Some(wanted) = donation {
            let handle = context.park(Operation::Range { range, donation, scratch });
            return Ok(wants_memory(wanted, handle, 1));
        }
        if let Some(reply) = self.go_on_with(&mut range) {
            return Ok(reply);
        }
        let handle = context.park(Operation::Range { range, donation, scratch });
        Ok(incomplete(Need::Nothing, [handle, 0]))
    }

    /// Goes on with a range; the final answer, or none if it pauses.
    pub(crate) fn go_on_with(&self, range: &mut RangeChange) -> Option<Reply> {
        let pause = core::mem::replace(&mut range.pause, range.base);
        if pause <= range.next {
            return Some(self.change_granules(range, range.end));
        }
        let reply = self.change_granules(range, pause);
        (range.next < pause).then_some(reply)
    }

    /// Changes granule after granule up to `end`. A failure counts only if it is the first one's.
    fn change_granules(&self, range: &mut RangeChange, end: Pa) -> Reply {
        while range.next < end {
            let changed = match range.change {
                Change::Delegate => self.granule_delegate(range.next),
                Change::Undelegate => self.granule_undelegate(range.next),
            };
            match changed {
                Ok(_) => range.next = range.next.offset(GRANULE_SIZE),
                Err(refusal) if range.next == range.base => return range.refused(refusal),
                Err(_) => break,
            }
        }
        Reply::with([range.next.0])
    }
}
