//! RECs: created, entered, answered, destroyed.

mod run;

use core::fmt;
use core::mem::offset_of;

use arrayvec::ArrayVec;
use mm::ledger::{Delegated, Frames, Owner, RmmUse, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};

pub use self::run::{EnterError, Entry, GicImage, Resume};
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{BadAnswer, Error, Invalid};
use crate::exit::{PsciRequest, RipasChange};
use crate::geometry::Geometry;
use crate::layout::{RecAux, RecParams};
use crate::realm::RecConfig;
use crate::rmm::{Returned, Rmm};
use crate::status::Status;

/// Most auxiliary granules of a REC in RMI 1.0.
pub(crate) const MAX_AUX: usize = 16;

/// MPIDR of the REC with this number: 16 RECs per Aff1, 256 per higher level.
#[must_use]
pub const fn rec_mpidr(index: usize) -> u64 {
    let index = index as u64;
    (index & 0xf)
        | (index >> 4 & 0xff) << 8
        | (index >> 12 & 0xff) << 16
        | (index >> 20 & 0xff) << 32
}

/// Names a REC, for the answer to a PSCI request of another REC of its realm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecId {
    addr: PhysAddr,
    mpidr: u64,
}

impl RecId {
    /// MPIDR of the REC.
    #[must_use]
    pub const fn mpidr(&self) -> u64 {
        self.mpidr
    }
}

/// What a REC waits for after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// Nothing.
    None,
    /// The value of a load from a device, or that it cannot be had.
    MmioRead,
    /// That a store to a device is done, or cannot be done.
    MmioWrite,
    /// Memory at an unprotected address, or that there is none.
    Unprotected,
    /// The value of a system register.
    SysRegRead {
        /// The general register of the instruction, where known.
        rt: u8,
    },
    /// Results of a host call.
    HostCall,
    /// An answer to a PSCI request.
    Psci(PsciRequest),
    /// A RIPAS change, to be made or refused.
    Ripas(RipasChange),
}

/// Answer to a PSCI request that concerns another REC (PSCI return codes).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PsciStatus {
    /// SUCCESS, 0.
    Success,
    /// DENIED, -3.
    Denied,
}

impl PsciStatus {
    const fn code(self) -> u64 {
        match self {
            Self::Success => 0,
            Self::Denied => -3i64 as u64,
        }
    }
}

/// A REC: a virtual CPU of a realm. Owned by the core that runs it.
///
/// Dropping it destroys it as far as the RMM allows; [`Rec::destroy`] says how that went. It must not be
/// dropped while the realm runs on, unless the realm is to go on without it.
#[must_use = "dropping a REC destroys it"]
pub struct Rec<'l, H: Host> {
    rmm: &'l Rmm<'l, H>,
    owner: Owner,
    id: RecId,
    index: usize,
    geometry: Geometry,
    /// `None` only once the REC is destroyed.
    run: Option<Frames<Undelegated>>,
    aux: ArrayVec<PhysAddr, MAX_AUX>,
    pending: Pending,
}

/// A REC that the RMM refused to destroy, usually because it is running. Try again later.
pub struct RecDestroyFailure<'l, H: Host> {
    /// The REC.
    pub rec: Rec<'l, H>,
    /// Why.
    pub error: Error,
}

impl<H: Host> fmt::Debug for RecDestroyFailure<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecDestroyFailure({})", self.error)
    }
}

impl<H: Host> fmt::Debug for Rec<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rec({} of {}, at {})", self.index, self.owner, self.id.addr)
    }
}

/// Delegated granules for a REC that does not exist yet.
struct Parts {
    rec: Frames<Delegated>,
    aux: ArrayVec<Frames<Delegated>, MAX_AUX>,
}

impl Parts {
    /// Gives everything back.
    fn give_back<H: Host>(self, rmm: &Rmm<'_, H>) {
        rmm.retire(self.rec);
        for frames in self.aux {
            rmm.retire(frames);
        }
    }
}

impl<'l, H: Host> Rec<'l, H> {
    /// Creates REC number `index` of the realm at `rd`.
    pub(crate) fn create(
        rmm: &'l Rmm<'l, H>,
        owner: Owner,
        rd: PhysAddr,
        geometry: Geometry,
        index: usize,
        config: &RecConfig,
    ) -> Result<Self, Error> {
        let run = rmm.alloc_interface(owner)?;
        let outcome = Self::create_object(rmm, owner, rd, index, config);
        match outcome {
            Ok((addr, aux)) => Ok(Self {
                rmm,
                owner,
                id: RecId { addr, mpidr: rec_mpidr(index) },
                index,
                geometry,
                run: Some(run),
                aux,
                pending: Pending::None,
            }),
            Err(error) => {
                rmm.ledger.free(run);
                Err(error)
            }
        }
    }

    /// Collects the granules and makes the call.
    fn create_object(
        rmm: &Rmm<'_, H>,
        owner: Owner,
        rd: PhysAddr,
        index: usize,
        config: &RecConfig,
    ) -> Result<(PhysAddr, ArrayVec<PhysAddr, MAX_AUX>), Error> {
        let count = if rmm.is_v2() { 0 } else { Self::aux_count(rmm, rd)? };
        let mut parts = Parts { rec: rmm.alloc_delegated(0, owner)?, aux: ArrayVec::new() };
        let outcome = collect_aux(rmm, owner, count, &mut parts.aux)
            .and_then(|()| call_create(rmm, owner, rd, index, config, &parts));
        if let Err(error) = outcome {
            parts.give_back(rmm);
            return Err(error);
        }
        let addr = parts.rec.base();
        rmm.ledger.hand_over(parts.rec, RmmUse::Rec);
        let aux = aux_addresses(&parts.aux).collect();
        for frames in parts.aux {
            rmm.ledger.hand_over(frames, RmmUse::Aux);
        }
        Ok((addr, aux))
    }

    /// Number of auxiliary granules that a REC needs (REC_AUX_COUNT, 1.0).
    fn aux_count(rmm: &Rmm<'_, H>, rd: PhysAddr) -> Result<usize, Error> {
        let command = Command::RecAuxCount;
        let count = rmm.demand(command, [rd.get()])?.x[1];
        match usize::try_from(count) {
            Ok(count) if count <= MAX_AUX => Ok(count),
            _ => Err(Error::Misbehaved { command, answer: BadAnswer::Amount(count) }),
        }
    }

    /// The name of this REC.
    #[must_use]
    pub const fn id(&self) -> RecId {
        self.id
    }

    /// Number of this REC, in order of creation.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// What the REC waits for.
    #[must_use]
    pub const fn pending(&self) -> Pending {
        self.pending
    }

    pub(crate) const fn addr(&self) -> PhysAddr {
        self.id.addr
    }

    /// The RIPAS change that waits for the host.
    pub(crate) const fn pending_ripas(&self) -> Option<RipasChange> {
        match self.pending {
            Pending::Ripas(change) => Some(change),
            _ => None,
        }
    }

    /// Records how far the pending RIPAS change was made.
    pub(crate) const fn ripas_changed(&mut self, upto: Ipa) {
        if let Pending::Ripas(change) = &mut self.pending {
            change.base = upto;
        }
    }

    /// Answers the PSCI request of the last exit (PSCI_COMPLETE). `target` is the REC with the MPIDR that
    /// the request names. The REC can be entered again then, and after [`PsciStatus::Success`] to CPU_ON the
    /// target can run.
    ///
    /// A target that is on already cannot be denied: then the driver answers success, and the RMM tells the
    /// caller ALREADY_ON.
    ///
    /// # Errors
    /// No such request is pending, `target` is another REC, or the RMM refuses.
    pub fn complete_psci(&mut self, target: RecId, status: PsciStatus) -> Result<(), Error> {
        let command = Command::PsciComplete;
        let mpidr = match self.pending {
            Pending::Psci(request) => request.target(),
            _ => None,
        };
        if mpidr.is_none_or(|mpidr| !same_affinity(mpidr, target.mpidr)) {
            return Err(Error::Invalid(Invalid::NothingPending));
        }
        let mut reply = self.call_psci_complete(target, status);
        if reply == Status::Input && status == PsciStatus::Denied {
            reply = self.call_psci_complete(target, PsciStatus::Success);
        }
        match reply {
            Status::Success => {
                self.pending = Pending::None;
                Ok(())
            }
            status => Err(Error::Refused { command, status }),
        }
    }

    /// Makes the call in the form of the RMM's draft. No 2.0 RMM says which form it has: where the one with
    /// the target is refused, the other one is tried, whose arguments the former kind of RMM refuses.
    fn call_psci_complete(&self, target: RecId, status: PsciStatus) -> Status {
        let command = Command::PsciComplete;
        let (caller, target, code) = (self.id.addr.get(), target.addr.get(), status.code());
        if self.rmm.psci_names_target() {
            let reply = self.rmm.call(command, [caller, target, code]).status;
            if reply != Status::Input || !self.rmm.is_v2() {
                return reply;
            }
        }
        self.rmm.call(command, [caller, code]).status
    }

    /// Destroys the REC and gives its memory back (REC_DESTROY).
    ///
    /// # Errors
    /// The RMM refuses, because the REC is running; it comes back with the error.
    #[expect(clippy::result_large_err, reason = "the REC itself comes back")]
    pub fn destroy(mut self) -> Result<Returned, RecDestroyFailure<'l, H>> {
        match self.release() {
            Ok(returned) => Ok(returned),
            Err(error) => Err(RecDestroyFailure { rec: self, error }),
        }
    }

    /// Destroys the REC unless that is done.
    fn release(&mut self) -> Result<Returned, Error> {
        let command = Command::RecDestroy;
        let mut returned = Returned::default();
        let Some(run) = self.run.take() else { return Ok(returned) };
        let args = [self.id.addr.get()];
        // A refusal for another reason than that the REC is in use may not last.
        let outcome = match self.rmm.operate(command, args, self.owner) {
            Ok(reply) if reply.status == Status::Input => {
                self.rmm.operate(command, args, self.owner)
            }
            outcome => outcome,
        };
        let status = outcome.map(|reply| reply.status);
        if status != Ok(Status::Success) {
            self.run = Some(run);
            return Err(
                status.map_or_else(|error| error, |status| Error::Refused { command, status })
            );
        }
        self.rmm.ledger.free(run);
        let rec = (self.id.addr, RmmUse::Rec);
        let aux = self.aux.drain(..).map(|addr| (addr, RmmUse::Aux));
        for (addr, used_for) in aux.chain([rec]) {
            match self.rmm.take_back(command, addr.get(), 1, used_for, self.owner) {
                Ok(frames) => returned += self.rmm.retire(frames),
                Err(error) => log::error!("granule {addr} of a destroyed REC: {error}"),
            }
        }
        Ok(returned)
    }
}

impl<H: Host> Drop for Rec<'_, H> {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::error!("REC {} of {} could not be destroyed: {error}", self.index, self.owner);
        }
    }
}

/// Collects delegated granules for a REC: from the pool as far as it goes, the others contiguous if possible.
fn collect_aux<H: Host>(
    rmm: &Rmm<'_, H>,
    owner: Owner,
    count: usize,
    aux: &mut ArrayVec<Frames<Delegated>, MAX_AUX>,
) -> Result<(), Error> {
    while aux.len() < count
        && let Some(granule) = rmm.take_pooled(owner)
    {
        aux.push(granule);
    }
    let missing = (count - aux.len()) as u64;
    if missing > 1 {
        let order = missing.next_power_of_two().trailing_zeros() as u8;
        if let Ok(block) = rmm.ledger.alloc(order, Use::Realm, owner) {
            let (wanted, rest) = block.split_at(missing);
            rmm.ledger.free(rest);
            aux.push(rmm.delegate(wanted)?);
            return Ok(());
        }
    }
    for _ in 0..missing {
        aux.push(rmm.alloc_delegated(0, owner)?);
    }
    Ok(())
}

/// Addresses of the granules of some runs.
fn aux_addresses(aux: &[Frames<Delegated>]) -> impl Iterator<Item = PhysAddr> {
    aux.iter().flat_map(|frames| {
        (0..frames.count()).map(|index| PhysAddr::new(frames.base().get() + index * PAGE_SIZE))
    })
}

/// Writes the parameters and makes the call.
fn call_create<H: Host>(
    rmm: &Rmm<'_, H>,
    owner: Owner,
    rd: PhysAddr,
    index: usize,
    config: &RecConfig,
    parts: &Parts,
) -> Result<(), Error> {
    let command = Command::RecCreate;
    let page = rmm.alloc_interface(owner)?;
    let mut aux = RecAux { num_aux: 0, aux: [0; MAX_AUX] };
    for (slot, addr) in aux.aux.iter_mut().zip(aux_addresses(&parts.aux)) {
        *slot = addr.get();
        aux.num_aux += 1;
    }
    let write = || {
        rmm.host.store(page.base(), offset_of!(RecParams, flags), &config.flags())?;
        rmm.host.store(page.base(), offset_of!(RecParams, mpidr), &rec_mpidr(index))?;
        rmm.host.store(page.base(), offset_of!(RecParams, pc), &config.pc)?;
        rmm.host.store(page.base(), offset_of!(RecParams, gprs), &config.gprs)?;
        rmm.host.store(page.base(), offset_of!(RecParams, aux), &aux)
    };
    let outcome = write().map_err(Error::from).and_then(|()| {
        let args = [rd.get(), parts.rec.base().get(), page.base().get()];
        let reply = rmm.operate(command, args, owner)?;
        match reply.status {
            Status::Success => Ok(()),
            status => Err(Error::Refused { command, status }),
        }
    });
    rmm.ledger.free(page);
    outcome
}

/// Whether two MPIDRs name the same PE: the affinity fields agree.
const fn same_affinity(a: u64, b: u64) -> bool {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    (a ^ b) & AFFINITY == 0
}
