//! Stateful operations: the pool of contexts, and the commands that continue, feed and drain an
//! operation.

use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;

use crate::abi::{Refusal, Reply, Status};
use crate::addr::{GRANULE_SIZE, Pa};
use crate::granule::GranuleState;
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::rec::MAX_REC_AUX;
use crate::rtt::geometry::PAGE_LEVEL;
use crate::v2::Donation;
use crate::v2::granules::RangeChange;
use crate::v2::range::{RangeList, list_room};

/// Most contexts of the pool.
pub const MAX_CONTEXTS: usize = 16;

/// What the operation needs of the host next: bits \[9:8\] of an INCOMPLETE result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// OP_CONTINUE.
    Nothing = 0,
    /// OP_MEM_DONATE.
    Donation = 1,
    /// OP_MEM_RECLAIM.
    Reclaim = 2,
}

/// The answer of an operation that is not at its end and cannot be cancelled.
pub(crate) fn incomplete(need: Need, outputs: [u64; 2]) -> Reply {
    let refusal = Refusal { status: Status::Incomplete, index: need as u8 };
    Reply::refused_with(refusal, outputs)
}

/// The answer of an operation that waits for `missing` granules: bit 10 says that it can be
/// cancelled, x2 is the request (RmiOpMemDonateReq).
pub(crate) fn wants_memory(donation: Donation, x1: u64, missing: u64) -> Reply {
    let cancellable = if donation.cancellable { 1 << 2 } else { 0 };
    let index = Need::Donation as u8 | cancellable;
    let contiguous = u64::from(donation.contiguous) << 16;
    let undelegated = u64::from(donation.undelegated) << 17;
    let request = donation.request(missing) << 2 | contiguous | undelegated;
    Reply::refused_with(Refusal { status: Status::Incomplete, index }, [x1, request])
}

/// Granules on their way between host and object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granules {
    pas: [Pa; MAX_REC_AUX],
    count: usize,
}

impl Granules {
    pub(crate) const NONE: Self = Self { pas: [Pa(0); MAX_REC_AUX], count: 0 };

    pub(crate) fn all(pas: [Pa; MAX_REC_AUX]) -> Self {
        Self { pas, count: MAX_REC_AUX }
    }

    pub(crate) fn as_slice(&self) -> &[Pa] {
        &self.pas[..self.count]
    }

    fn push(&mut self, pa: Pa) {
        self.pas[self.count] = pa;
        self.count += 1;
    }

    /// Drops the first `count`.
    fn remove_first(&mut self, count: usize) {
        self.pas.copy_within(count..self.count, 0);
        self.count -= count;
    }

    /// How many are missing to `wanted`.
    fn missing(&self, wanted: usize) -> u64 {
        (wanted - self.count) as u64
    }
}

/// An operation between two calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// REC_CREATE collects auxiliary granules, then continues.
    CreateRec {
        /// Realm descriptor as the host named it.
        rd: Pa,
        /// Granule of the REC to be, in the state Partial.
        rec: Pa,
        /// Parameter page as the host named it.
        params: Pa,
        /// How memory is to be donated.
        donation: Donation,
        /// Donated so far.
        aux: Granules,
    },
    /// GRANULE_RANGE_DELEGATE or GRANULE_RANGE_UNDELEGATE.
    Range {
        /// What is to be done.
        range: RangeChange,
        /// How memory is to be donated, if it is.
        donation: Option<Donation>,
        /// The granule for the time of the operation, once it is donated.
        scratch: Granules,
    },
    /// Auxiliary granules of an object or operation go back; then it is gone.
    Reclaim {
        /// Granule of the object, in the state Partial.
        object: Option<Pa>,
        /// Still to give back.
        aux: Granules,
        /// Whether they go back undelegated.
        undelegated: bool,
        /// The host has been told that there is nothing more.
        drained: bool,
        /// Final answer.
        outcome: Reply,
    },
    /// Done; the host only has to fetch the answer.
    Deliver(Reply),
}

impl Operation {
    /// How many granules are still to be donated.
    fn missing(&self) -> u64 {
        match self {
            Self::CreateRec { aux, .. } => aux.missing(MAX_REC_AUX),
            Self::Range { donation: Some(_), scratch, .. } => scratch.missing(1),
            Self::Range { .. } | Self::Reclaim { .. } | Self::Deliver(_) => 0,
        }
    }

    /// How memory is donated to the operation, and what it has.
    fn donated(&mut self) -> Option<(Donation, &mut Granules)> {
        match self {
            Self::CreateRec { donation, aux, .. } => Some((*donation, aux)),
            Self::Range { donation, scratch, .. } => donation.map(|donation| (donation, scratch)),
            Self::Reclaim { .. } | Self::Deliver(_) => None,
        }
    }

    /// The end of an operation to which memory is donated: that goes back.
    fn unwound(self, outcome: Reply) -> Self {
        match self {
            Self::CreateRec { rec, donation, aux, .. } => {
                reclaim(Some(rec), aux, donation.undelegated, outcome)
            }
            Self::Range { donation, scratch, .. } => {
                let undelegated = donation.is_some_and(|donation| donation.undelegated);
                reclaim(None, scratch, undelegated, outcome)
            }
            Self::Reclaim { .. } | Self::Deliver(_) => self,
        }
    }

    /// The call that is due.
    fn need(&self) -> Need {
        match self {
            _ if self.missing() > 0 => Need::Donation,
            Self::Reclaim { drained: false, .. } => Need::Reclaim,
            _ => Need::Nothing,
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is no heap")]
enum Slot {
    Free,
    /// A CPU works on it.
    Reserved,
    Parked(Operation),
}

/// Contexts of all operations.
#[derive(Debug)]
pub(crate) struct OperationPool {
    slots: Mutex<[Slot; MAX_CONTEXTS]>,
    limit: usize,
    turns: AtomicUsize,
}

impl OperationPool {
    pub(crate) fn new(limit: usize) -> Self {
        let slots = Mutex::new([Slot::Free; MAX_CONTEXTS]);
        Self { slots, limit: limit.min(MAX_CONTEXTS), turns: AtomicUsize::new(0) }
    }

    /// Number of this operation that asks for memory, counted from 0.
    pub(crate) fn turn(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// A context for a new operation: BLOCKED if operations of the host hold all, BUSY if some
    /// are about to come free.
    pub(crate) fn reserve(&self) -> Result<Reservation<'_>, Refusal> {
        let mut slots = self.slots.lock();
        let slots = &mut slots[..self.limit];
        if let Some(index) = slots.iter().position(|slot| matches!(slot, Slot::Free)) {
            slots[index] = Slot::Reserved;
            return Ok(Reservation { pool: self, index });
        }
        let blocked = slots.iter().all(|slot| matches!(slot, Slot::Parked(_)));
        Err(if blocked { Refusal::BLOCKED } else { Refusal::BUSY })
    }

    /// Takes up the parked operation `handle` if its next call is the one for `need`.
    fn resume(&self, handle: u64, need: Need) -> Result<(Reservation<'_>, Operation), Refusal> {
        let mut slots = self.slots.lock();
        let index = usize::try_from(handle).map_err(|_| Refusal::INPUT)?;
        match slots.get(index) {
            Some(Slot::Parked(operation)) if operation.need() == need => {
                let operation = *operation;
                slots[index] = Slot::Reserved;
                Ok((Reservation { pool: self, index }, operation))
            }
            _ => Err(Refusal::INPUT),
        }
    }
}

/// A context that this CPU works on; free when dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'p> {
    pool: &'p OperationPool,
    index: usize,
}

impl Reservation<'_> {
    /// Parks the operation until the host's next call; its handle.
    pub(crate) fn park(self, operation: Operation) -> u64 {
        let index = self.index;
        self.pool.slots.lock()[index] = Slot::Parked(operation);
        core::mem::forget(self);
        index as u64
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.pool.slots.lock()[self.index] = Slot::Free;
    }
}

impl<P: Platform> Monitor<P> {
    /// OP_CONTINUE. Flags have no meaning for operations that wait for nothing but this call.
    pub(crate) fn op_continue(&self, handle: u64) -> Result<Reply, Refusal> {
        let (context, operation) = self.operations.resume(handle, Need::Nothing)?;
        match operation {
            Operation::Deliver(reply) => Ok(reply),
            Operation::Reclaim { object, outcome, .. } => {
                self.release_partial(object);
                Ok(outcome)
            }
            Operation::Range { mut range, donation, scratch } => {
                let Some(outcome) = self.go_on_with(&mut range) else {
                    context.park(Operation::Range { range, donation, scratch });
                    return Ok(incomplete(Need::Nothing, [0, 0]));
                };
                if scratch.as_slice().is_empty() {
                    return Ok(outcome);
                }
                context.park(Operation::Range { range, donation, scratch }.unwound(outcome));
                Ok(incomplete(Need::Reclaim, [0, 0]))
            }
            Operation::CreateRec { rd, rec, params, donation, aux } => {
                let undelegated = donation.undelegated;
                match self.finish_rec(rd, rec, params, undelegated, aux.as_slice()) {
                    Ok(reply) => Ok(reply),
                    Err(refusal) => {
                        context.park(operation.unwound(refusal.into()));
                        Ok(incomplete(Need::Reclaim, [0, 0]))
                    }
                }
            }
        }
    }

    /// Makes the granule of an object that is gone a delegated one.
    fn release_partial(&self, object: Option<Pa>) {
        if let Some(object) = object {
            self.release(&self.lock_own(object, GranuleState::Partial));
        }
    }

    /// OP_MEM_DONATE: granules for the operation; x1 counts those that were taken.
    pub(crate) fn op_mem_donate(
        &self,
        handle: u64,
        list: Pa,
        count: u64,
    ) -> Result<Reply, Refusal> {
        let (context, mut operation) = self.operations.resume(handle, Need::Donation)?;
        let missing = operation.missing();
        let Some((donation, memory)) = operation.donated() else {
            return Err(Refusal::INPUT);
        };
        let ranges = match self.check_donation(donation, list, count, donation.request(missing)) {
            Ok(ranges) => ranges,
            Err(refusal) => {
                // The operation stays as it was: the host may try again.
                context.park(operation);
                return Err(refusal);
            }
        };
        let mut taken = 0;
        for (pa, _) in ranges.blocks() {
            match self.take_donated(donation, pa) {
                Ok(()) => {}
                Err(refusal) if taken == 0 => {
                    // x1 counts what goes back.
                    let before = memory.as_slice().len() as u64;
                    context.park(operation.unwound(refusal.into()));
                    return Ok(incomplete(Need::Reclaim, [before, 0]));
                }
                Err(_) => break,
            }
            memory.push(pa);
            taken += 1;
        }
        let missing = operation.missing();
        context.park(operation);
        Ok(if missing > 0 {
            wants_memory(donation, taken, missing)
        } else {
            incomplete(Need::Nothing, [taken, 0])
        })
    }

    /// Makes a donated granule an auxiliary one.
    fn take_donated(&self, donation: Donation, pa: Pa) -> Result<(), Refusal> {
        let granule = if donation.undelegated {
            let granule = self.lock(pa, GranuleState::Undelegated)?;
            self.platform.gpt_delegate(pa).map_err(|_| Refusal::INPUT)?;
            self.platform.zero_granule(pa);
            granule
        } else {
            self.lock(pa, GranuleState::Delegated)?
        };
        granule.set_state(GranuleState::RecAux);
        Ok(())
    }

    /// Wipes auxiliary granules and gives them back in the state in which they were donated.
    fn give_back(&self, aux: &[Pa], undelegated: bool) {
        for pa in aux {
            let granule = self.lock_own(*pa, GranuleState::RecAux);
            self.platform.zero_granule(*pa);
            let moved = undelegated && self.platform.gpt_undelegate(*pa).is_ok();
            let state = if moved { GranuleState::Undelegated } else { GranuleState::Delegated };
            granule.set_state(state);
        }
    }

    /// Copies and checks a donation: pages, at most `requested`; where they have to be contiguous, all that
    /// are requested or none.
    fn check_donation(
        &self,
        donation: Donation,
        list: Pa,
        count: u64,
        requested: u64,
    ) -> Result<RangeList, Refusal> {
        let ranges = self.read_list(list, count)?;
        let used = ranges.ranges().iter().filter(|range| range.count() > 0);
        let pages = used.clone().all(|range| range.level() == PAGE_LEVEL);
        let state = used.clone().all(|range| range.is_undelegated() == donation.undelegated);
        let total: u64 = used.clone().map(|range| range.count()).sum();
        let size = requested.next_power_of_two() * GRANULE_SIZE;
        let whole = total == 0
            || total == requested
                && used.clone().count() == 1
                && used.clone().all(|range| range.base().is_aligned(size));
        if pages && state && total <= requested && (whole || !donation.contiguous) {
            Ok(ranges)
        } else {
            Err(Refusal::INPUT)
        }
    }

    /// OP_MEM_RECLAIM: gives granules back; x1 counts the descriptors in the list.
    pub(crate) fn op_mem_reclaim(
        &self,
        handle: u64,
        list: Pa,
        count: u64,
    ) -> Result<Reply, Refusal> {
        let (context, operation) = self.operations.resume(handle, Need::Reclaim)?;
        let Operation::Reclaim { object, mut aux, undelegated, outcome, .. } = operation else {
            return Err(Refusal::INPUT);
        };
        let room = match list_room(list, count) {
            Some(room) => room,
            None => {
                context.park(operation);
                return Err(Refusal::INPUT);
            }
        };
        let mut ranges = RangeList::new(room);
        let all = aux.as_slice();
        let given = all.iter().take_while(|pa| ranges.add(**pa, PAGE_LEVEL, undelegated)).count();
        // The host's list is written first: if it cannot be, nothing has happened.
        if room > 0
            && let Err(refusal) = self.write_list(list, ranges.ranges())
        {
            context.park(operation);
            return Err(refusal);
        }
        self.give_back(&aux.as_slice()[..given], undelegated);
        aux.remove_first(given);
        let drained = room > 0 && aux.as_slice().is_empty();
        context.park(Operation::Reclaim { object, aux, undelegated, drained, outcome });
        let need = if drained { Need::Nothing } else { Need::Reclaim };
        Ok(incomplete(need, [ranges.ranges().len() as u64, 0]))
    }

    /// OP_CANCEL: the end of an operation that waits for memory, once what it has got is back.
    pub(crate) fn op_cancel(&self, handle: u64) -> Result<Reply, Refusal> {
        let (context, mut operation) = self.operations.resume(handle, Need::Donation)?;
        let Some((donation, memory)) = operation.donated() else {
            return Err(Refusal::INPUT);
        };
        if !donation.cancellable {
            context.park(operation);
            return Err(Refusal::INPUT);
        }
        let nothing = memory.as_slice().is_empty();
        let unwound = operation.unwound(Reply::SUCCESS);
        match unwound {
            Operation::Reclaim { object, .. } if nothing => {
                self.release_partial(object);
                Ok(Reply::SUCCESS)
            }
            _ => {
                context.park(unwound);
                Ok(incomplete(Need::Reclaim, [0, 0]))
            }
        }
    }
}

/// An operation that gives `aux` back and then ends with `outcome`.
pub(crate) fn reclaim(
    object: Option<Pa>,
    aux: Granules,
    undelegated: bool,
    outcome: Reply,
) -> Operation {
    Operation::Reclaim { object, aux, undelegated, drained: false, outcome }
}

const _: () = assert!(GRANULE_SIZE == 4096, "donation requests are for 4 KiB granules");
