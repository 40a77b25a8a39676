//! Stateful RMI operations: calls that go on over several calls and may ask the host for memory or give
//! some back.

use arrayvec::ArrayVec;
use mm::ledger::{Delegated, Frames, GranuleState, Owner, RmmUse, Undelegated, Use};
use mm::sync::Mutex;
use mm::{PAGE_SIZE, PhysAddr};

use super::{AddrRange, DESCRIPTOR_BYTES, MAX_BLOCKS, MAX_LIST};
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{BadAnswer, Error};
use crate::rmm::{Reply, Rmm};
use crate::status::{MemoryRequest, Status};

/// Rounds after which an operation is given up. It may pause after each block of the largest range that a call can
/// name, and get the largest donation in parts.
const MAX_ROUNDS: u64 = 2 * MAX_BLOCKS;

/// What an operation asks for (RmiOpMemDonateReq): block size in bits 1:0, count in bits 15:2, whether
/// contiguous in bit 16, state in bits 18:17.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DonateRequest {
    size: u8,
    blocks: u64,
    contiguous: bool,
    undelegated: bool,
}

impl DonateRequest {
    const fn decode(word: u64) -> Self {
        Self {
            size: (word & 3) as u8,
            blocks: word >> 2 & 0x3fff,
            contiguous: word >> 16 & 1 != 0,
            undelegated: word >> 17 & 3 == 1,
        }
    }

    /// log2 of the granules of a block.
    const fn block_order(&self) -> u8 {
        9 * self.size
    }
}

/// Most runs of a donation. What is missing then is asked for again.
const MAX_RUNS: usize = 16;

/// A donation ready to be handed over: runs of memory in either state.
enum Donation {
    Delegated(ArrayVec<Frames<Delegated>, MAX_RUNS>),
    Undelegated(ArrayVec<Frames<Undelegated>, MAX_RUNS>),
}

/// What an operation works on, which says where it gets memory from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Subject {
    /// Realms, RECs, tables, mappings, or the RMM itself.
    Object,
    /// So many granules, which it delegates or undelegates. Operations on objects, and the pool when it is drained,
    /// begin these on their way. They begin none themselves: they take what is free, and undelegate nothing.
    Granules(u64),
}

/// A stateful operation under way.
struct Operation<'r, 'l, H> {
    rmm: &'r Rmm<'l, H>,
    command: Command,
    subject: Subject,
    handle: u64,
    owner: Owner,
    /// Page for address lists.
    list: PhysAddr,
    rounds: u64,
    calls: u64,
    /// What kept the host from giving memory: the operation is being abandoned because of it.
    abandoned: Option<Error>,
}

/// How an operation ended.
pub(crate) struct Ending {
    /// The answer of the original command.
    pub(crate) reply: Reply,
    /// Why it was abandoned, if it was: the answer may be that of a command that has succeeded in part or not at all.
    pub(crate) abandoned: Option<Error>,
    /// Calls made since its first answer.
    pub(crate) calls: u64,
}

/// Pages for the address lists of operations for which there is no other page: an operation that has begun must be
/// carried to its end. One for each kind, since the one kind goes on within the other.
pub(crate) struct ListReserve {
    objects: Mutex<Option<Frames<Undelegated>>>,
    granules: Mutex<Option<Frames<Undelegated>>>,
}

impl ListReserve {
    /// No pages.
    pub(crate) fn new() -> Self {
        Self { objects: Mutex::new(None), granules: Mutex::new(None) }
    }

    /// Keeps two pages.
    pub(crate) fn fill(&self, objects: Frames<Undelegated>, granules: Frames<Undelegated>) {
        *self.objects.lock() = Some(objects);
        *self.granules.lock() = Some(granules);
    }

    /// Takes the pages out.
    pub(crate) fn empty(&self) -> impl Iterator<Item = Frames<Undelegated>> {
        [self.objects.lock().take(), self.granules.lock().take()].into_iter().flatten()
    }
}

impl<H: Host> Rmm<'_, H> {
    /// Carries an operation on an object to its end after its first INCOMPLETE. Returns the answer of the original
    /// command.
    ///
    /// Memory that the operation takes is accounted to `owner` as auxiliary.
    pub(crate) fn carry_on(
        &self,
        command: Command,
        first: Reply,
        owner: Owner,
    ) -> Result<Reply, Error> {
        let ending = self.finish(command, first, owner, Subject::Object)?;
        ending.abandoned.map_or(Ok(ending.reply), Err)
    }

    /// Carries the delegation or undelegation of `granules` granules to its end after its first INCOMPLETE.
    ///
    /// What it takes (tables of the RMM) outlives the owner of the granules: it is accounted to the hypervisor.
    ///
    /// # Errors
    /// The operation could not be brought to its end: in which state the granules are is not known.
    pub(crate) fn carry_on_granules(
        &self,
        command: Command,
        first: Reply,
        granules: u64,
    ) -> Result<Ending, Error> {
        self.finish(command, first, Owner::HYPERVISOR, Subject::Granules(granules))
    }

    fn finish(
        &self,
        command: Command,
        first: Reply,
        owner: Owner,
        subject: Subject,
    ) -> Result<Ending, Error> {
        let (handle, list) = (first.x[1], PhysAddr::new(0));
        let (rounds, calls, abandoned) = (0, 0, None);
        let mut operation = Operation {
            rmm: self,
            command,
            subject,
            handle,
            owner,
            list,
            rounds,
            calls,
            abandoned,
        };
        let reply = operation.go_on(first)?;
        let reply = if matches!(reply.status, Status::Incomplete { .. }) {
            self.with_list(owner, subject, |list| {
                operation.list = list;
                operation.run(reply)
            })?
        } else {
            reply
        };
        Ok(Ending { reply, abandoned: operation.abandoned, calls: operation.calls })
    }

    /// Calls `work` with a page for address lists.
    fn with_list<R>(
        &self,
        owner: Owner,
        subject: Subject,
        work: impl FnOnce(PhysAddr) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let (page, reserve) = match subject {
            Subject::Object => (self.alloc_interface(owner), &self.list_reserve.objects),
            Subject::Granules(_) => {
                let page = self.ledger.alloc(0, Use::Interface, owner).map_err(Error::from);
                (page, &self.list_reserve.granules)
            }
        };
        match page {
            Ok(page) => {
                let outcome = work(page.base());
                self.ledger.free(page);
                outcome
            }
            Err(error) => {
                let reserve = reserve.lock();
                work(reserve.as_ref().ok_or(error)?.base())
            }
        }
    }
}

impl<H: Host> Operation<'_, '_, H> {
    fn run(&mut self, first: Reply) -> Result<Reply, Error> {
        let mut reply = self.go_on(first)?;
        while let Status::Incomplete { request, cancellable } = reply.status {
            self.count_round(reply.status)?;
            reply = match request {
                MemoryRequest::Donate => {
                    let wanted = DonateRequest::decode(reply.x[2]);
                    match self.prepare(wanted) {
                        Ok(donation) => self.donate(wanted, donation)?,
                        Err(error) => {
                            self.abandoned = Some(error);
                            self.abandon(wanted, cancellable)?
                        }
                    }
                }
                MemoryRequest::Reclaim => self.reclaim()?,
                MemoryRequest::None | MemoryRequest::Reserved => {
                    return Err(self.protocol(reply.status));
                }
            };
            reply = self.go_on(reply)?;
        }
        Ok(reply)
    }

    /// Goes on as long as the operation asks for nothing else (OP_CONTINUE).
    fn go_on(&mut self, mut reply: Reply) -> Result<Reply, Error> {
        while let Status::Incomplete { request: MemoryRequest::None, .. } = reply.status {
            self.count_round(reply.status)?;
            self.calls += 1;
            reply = self.rmm.call(Command::OpContinue, [self.handle, 0]);
            if matches!(reply.status, Status::Busy | Status::Blocked) {
                // That is no answer of the original command: the operation is still there.
                return Err(self.protocol(reply.status));
            }
        }
        Ok(reply)
    }

    /// Counts a round; an error if there have been too many.
    fn count_round(&mut self, status: Status) -> Result<(), Error> {
        let limit = match self.subject {
            Subject::Object => MAX_ROUNDS,
            Subject::Granules(granules) => granules.saturating_add(MAX_ROUNDS),
        };
        if self.rounds > limit {
            return Err(self.protocol(status));
        }
        self.rounds += 1;
        Ok(())
    }

    const fn protocol(&self, status: Status) -> Error {
        Error::Misbehaved { command: self.command, answer: BadAnswer::Protocol(status) }
    }

    /// Gets memory for a request, all of it or a part. Single granules come from the pool as far as it goes.
    fn prepare(&self, wanted: DonateRequest) -> Result<Donation, Error> {
        let mut blocks = wanted.blocks.min(MAX_BLOCKS);
        if blocks == 0 {
            let answer = BadAnswer::Amount(0);
            return Err(Error::Misbehaved { command: self.command, answer });
        }
        if wanted.undelegated {
            let frames = self.allocate(wanted, blocks)?;
            return Ok(Donation::Undelegated([frames].into_iter().collect()));
        }
        if self.subject != Subject::Object {
            // An RMM that needs delegated memory to delegate memory could never begin.
            let answer = BadAnswer::Donation;
            return Err(Error::Misbehaved { command: self.command, answer });
        }
        let mut runs = ArrayVec::new();
        let pooled = wanted.size == 0 && (!wanted.contiguous || blocks == 1);
        // One place is left for a run that is not from the pool.
        while pooled
            && blocks > 0
            && runs.len() < MAX_RUNS - usize::from(blocks > 1)
            && let Some(granule) = self.rmm.take_pooled(self.owner)
        {
            runs.push(granule);
            blocks -= 1;
        }
        if blocks > 0 {
            let rest = self.allocate(wanted, blocks).and_then(|frames| self.rmm.delegate(frames));
            match rest {
                Ok(frames) => runs.push(frames),
                // The part that there is may be all that is missing at the next request.
                Err(_) if !runs.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Donation::Delegated(runs))
    }

    /// Takes contiguous memory of `blocks` blocks from the ledger, or of fewer where the request allows that.
    fn allocate(&self, wanted: DonateRequest, blocks: u64) -> Result<Frames<Undelegated>, Error> {
        let mut order = wanted.block_order() + blocks.next_power_of_two().trailing_zeros() as u8;
        loop {
            let frames = match self.subject {
                Subject::Object => self.rmm.alloc(order, Use::Realm, self.owner),
                Subject::Granules(_) => {
                    self.rmm.ledger.alloc(order, Use::Realm, self.owner).map_err(Error::from)
                }
            };
            match frames {
                Ok(frames) => {
                    let (frames, rest) = frames.split_at(blocks << wanted.block_order());
                    self.rmm.ledger.free(rest);
                    return Ok(frames);
                }
                Err(error) if wanted.contiguous || order <= wanted.block_order() => {
                    return Err(error);
                }
                Err(_) => order -= 1,
            }
        }
    }

    /// Gives memory to the operation. What it does not take goes back.
    fn donate(&mut self, wanted: DonateRequest, donation: Donation) -> Result<Reply, Error> {
        let range = |base: PhysAddr, granules: u64| AddrRange {
            base: base.get(),
            size: wanted.size,
            blocks: granules >> wanted.block_order(),
            undelegated: wanted.undelegated,
        };
        let ranges: ArrayVec<AddrRange, MAX_RUNS> = match &donation {
            Donation::Delegated(runs) => {
                runs.iter().map(|frames| range(frames.base(), frames.count())).collect()
            }
            Donation::Undelegated(runs) => {
                runs.iter().map(|frames| range(frames.base(), frames.count())).collect()
            }
        };
        let stored = ranges.iter().enumerate().try_for_each(|(entry, range)| {
            let word = range.encode(self.rmm.is_late_draft());
            self.rmm.host.store(self.list, entry * DESCRIPTOR_BYTES as usize, &word)
        });
        let entries = ranges.len() as u64;
        let reply = match stored {
            Ok(()) => self.insist(Command::OpMemDonate, [self.handle, self.list.get(), entries, 0]),
            Err(_) => Reply::failed(),
        };
        let count: u64 = ranges.iter().map(AddrRange::granules).sum();
        let taken = match reply.status {
            // It does not want this memory and gives back what it got before: x1 counts that.
            Status::Incomplete { request: MemoryRequest::Reclaim, .. } => 0,
            Status::Incomplete { .. } => reply.x[1].min(count),
            // An answer that ends the operation has the outputs of the original command instead.
            Status::Success => count,
            _ => 0,
        };
        self.settle(donation, taken);
        stored?;
        Ok(reply)
    }

    /// Records that the first `taken` granules of a donation are the operation's; the others go back.
    fn settle(&self, donation: Donation, taken: u64) {
        let ledger = self.rmm.ledger;
        let mut left = taken;
        match donation {
            Donation::Delegated(runs) => {
                for frames in runs {
                    let (taken, rest) = frames.split_at(left);
                    left -= taken.count();
                    ledger.hand_over(taken, RmmUse::Aux);
                    self.rmm.retire(rest);
                }
            }
            Donation::Undelegated(runs) => {
                for frames in runs {
                    let (taken, rest) = frames.split_at(left);
                    left -= taken.count();
                    ledger.hand_over(ledger.delegated(taken), RmmUse::Aux);
                    ledger.free(rest);
                }
            }
        }
    }

    /// Makes a call that moves memory; once more if it is refused. A refusal leaves the operation as it was,
    /// and only [`Command::OpContinue`] tells its result, so that the handle is still ours.
    fn insist<const N: usize>(&mut self, command: Command, args: [u64; N]) -> Reply {
        self.calls += 1;
        let reply = self.rmm.call(command, args);
        match reply.status {
            Status::Success | Status::Incomplete { .. } => reply,
            _ => {
                self.calls += 1;
                self.rmm.call(command, args)
            }
        }
    }

    /// Ends an operation for which there is no memory: cancels it, or where that is not allowed or refused donates
    /// memory that the RMM must refuse, after which it gives everything back and fails.
    fn abandon(&mut self, wanted: DonateRequest, cancellable: bool) -> Result<Reply, Error> {
        if cancellable {
            let reply = self.insist(Command::OpCancel, [self.handle]);
            if matches!(reply.status, Status::Success | Status::Incomplete { .. }) {
                return Ok(reply);
            }
        }
        let blocks = if wanted.contiguous { wanted.blocks } else { 1 };
        let base = self.wrong_memory(wanted, blocks);
        let range = AddrRange { base, size: wanted.size, blocks, undelegated: wanted.undelegated };
        self.rmm.host.store(self.list, 0, &range.encode(self.rmm.is_late_draft()))?;
        Ok(self.insist(Command::OpMemDonate, [self.handle, self.list.get(), 1, 0]))
    }

    /// A suitably aligned address whose granule is not in the state that a request wants: the page of the list,
    /// which is not delegated, the realm's RD, which is, or no memory at all.
    fn wrong_memory(&self, wanted: DonateRequest, blocks: u64) -> u64 {
        let align = PAGE_SIZE << wanted.block_order();
        let align = if wanted.contiguous { align * blocks.next_power_of_two() } else { align };
        let ledger = self.rmm.ledger;
        let rd = GranuleState::Rmm { used_for: RmmUse::Rd, owner: self.owner };
        let rd = ledger.find(rd, PhysAddr::new(0)).map(|range| range.start);
        let is_wrong = |addr: &PhysAddr| match ledger.state(*addr) {
            None => true,
            Some(GranuleState::Rmm { .. }) => true,
            Some(GranuleState::Delegated { .. }) => wanted.undelegated,
            Some(_) => !wanted.undelegated,
        };
        let candidates = [Some(self.list), rd, Some(PhysAddr::new(0))].into_iter().flatten();
        let wrong = candidates.map(|addr| addr.align_down(align)).find(is_wrong);
        wrong.unwrap_or(self.list).get()
    }

    /// Takes memory back from the operation.
    fn reclaim(&mut self) -> Result<Reply, Error> {
        let command = Command::OpMemReclaim;
        let reply = self.insist(command, [self.handle, self.list.get(), MAX_LIST]);
        let entries = match reply.status {
            Status::Incomplete { .. } | Status::Success => reply.x[1],
            _ => 0,
        };
        if entries > MAX_LIST {
            return Err(Error::Misbehaved { command, answer: BadAnswer::Amount(entries) });
        }
        for entry in 0..entries {
            let offset = (entry * DESCRIPTOR_BYTES) as usize;
            let word = self.rmm.host.load(self.list, offset)?;
            let range = AddrRange::decode(word, self.rmm.is_late_draft());
            let frames = self.rmm.take_back(
                command,
                range.base,
                range.granules(),
                RmmUse::Aux,
                self.owner,
            )?;
            if range.undelegated {
                self.rmm.ledger.free(self.rmm.ledger.undelegated(frames));
            } else if self.subject == Subject::Object {
                self.rmm.retire(frames);
            } else {
                self.rmm.put_aside(frames);
            }
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn donate_requests_are_decoded() {
        let request = DonateRequest::decode(16 << 2 | 1 << 16);
        assert_eq!(
            request,
            DonateRequest { size: 0, blocks: 16, contiguous: true, undelegated: false }
        );
        assert!(DonateRequest::decode(1 << 17).undelegated);
        assert!(!DonateRequest::decode(2 << 17).undelegated);
    }
}
