//! A realm's life cycle: created, filled, activated, changed, destroyed.

mod config;

use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;

use mm::ledger::{Owner, RmmUse};
use mm::{Ipa, PhysAddr};

pub use self::config::{Fill, RealmConfig, RecConfig};
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{Error, Invalid};
use crate::exit::Ripas;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::layout::{RealmParams, RealmTables};
use crate::measurement::Digest;
use crate::rec::Rec;
use crate::rim::RimBuilder;
use crate::rmm::{Returned, Rmm};
use crate::rtt::{Entry, EntryState, SharedAttrs, Tables};
use crate::status::Status;

mod sealed {
    /// Keeps the states to the two of this module.
    pub trait Sealed {}
}

/// State of a realm in its life cycle.
pub trait RealmState: sealed::Sealed {}
/// Under construction: can be filled and measured, cannot run.
pub enum New {}
/// Activated: its RECs can run, its measurement is closed.
pub enum Active {}
impl sealed::Sealed for New {}
impl sealed::Sealed for Active {}
impl RealmState for New {}
impl RealmState for Active {}

/// A realm. Dropping it destroys it as far as the RMM allows; [`Realm::destroy`] says how that went.
///
/// Methods take `&mut self` where they change the tables: keep a realm under one lock. Running its RECs
/// needs no lock on the realm.
#[must_use = "dropping a realm destroys it"]
pub struct Realm<'l, H: Host, S: RealmState> {
    core: Core<'l, H>,
    state: PhantomData<fn() -> S>,
}

/// What a realm is in any state.
struct Core<'l, H: Host> {
    rmm: &'l Rmm<'l, H>,
    owner: Owner,
    rd: PhysAddr,
    roots: PhysAddr,
    geometry: Geometry,
    fill: Fill,
    rim: Option<RimBuilder>,
    recs: usize,
    /// Entries written for shared memory: bounds the search for tables at the end.
    shared_entries: u64,
    /// The last fault on memory that was there, and how often it was repeated.
    repeated: (Ipa, u32),
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The RMM has the realm.
    Alive,
    /// REALM_TERMINATE has succeeded (2.0).
    Terminated,
    /// REALM_DESTROY has succeeded: root tables and RD are ours again or lost.
    Gone,
}

/// What a fault on protected memory came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultIn {
    /// Memory was mapped: enter the REC again.
    Mapped {
        /// Granules mapped.
        granules: u64,
    },
    /// Memory was there already, another REC was faster: enter the REC again.
    AlreadyMapped,
    /// The memory was taken away before and the realm knows nothing of it: mapping would not help, the
    /// access would fault forever. Stop the realm or tell its owner.
    Destroyed,
    /// The address is not memory of the realm; the RMM should have told the realm by itself.
    NotRam(Ripas),
    /// The same access faults again and again although memory is there. Stop the realm.
    Livelock,
}

/// Faults in a row on the same mapped granule that are taken for races of other RECs.
const MAX_REPEATED_FAULTS: u32 = 64;

/// How far a RIPAS change got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RipasProgress {
    /// First address not changed.
    pub upto: Ipa,
    /// Whether that is the whole request. Otherwise the realm sees how far it got and repeats it.
    pub complete: bool,
}

/// What came back from a destroyed realm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DestroyReport {
    /// Granules that came back to the ledger, and those that the RMM refused to undelegate.
    pub returned: Returned,
    /// Granules that the RMM still holds according to the ledger although the realm is gone: the RMM has
    /// not named them when it should have.
    pub stranded: u64,
}

/// A realm that the RMM refused to destroy. It still owns its memory; try again later.
pub struct DestroyFailure<'l, H: Host, S: RealmState> {
    /// The realm.
    pub realm: Realm<'l, H, S>,
    /// Why.
    pub error: Error,
}

impl<H: Host, S: RealmState> fmt::Debug for DestroyFailure<'_, H, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DestroyFailure({})", self.error)
    }
}

impl<H: Host, S: RealmState> fmt::Debug for Realm<'_, H, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Realm({}, RD at {}, {:?})", self.core.owner, self.core.rd, self.core.phase)
    }
}

impl<'l, H: Host> Realm<'l, H, New> {
    /// Creates a realm whose granules are accounted to `owner` (REALM_CREATE).
    ///
    /// # Errors
    /// The configuration exceeds what the RMM supports, memory is short, or the RMM refuses. Everything
    /// has been given back then.
    pub fn create(rmm: &'l Rmm<'l, H>, owner: Owner, config: &RealmConfig) -> Result<Self, Error> {
        config.check(rmm)?;
        let geometry = config.geometry(rmm.capabilities().granule_shift)?;
        let rd = rmm.alloc_delegated(0, owner)?;
        let roots = match rmm.alloc_delegated(geometry.root_tables().trailing_zeros() as u8, owner)
        {
            Ok(roots) => roots,
            Err(error) => {
                rmm.retire(rd);
                return Err(error);
            }
        };
        let (rd_at, roots_at) = (rd.base(), roots.base());
        if let Err(error) = create_rd(rmm, owner, config, &geometry, rd_at, roots_at) {
            rmm.retire(rd);
            rmm.undelegate(roots);
            return Err(error);
        }
        rmm.ledger.hand_over(rd, RmmUse::Rd);
        rmm.ledger.hand_over(roots, RmmUse::Rtt);
        let rim = config.compute_rim.then(|| RimBuilder::new(config, geometry, !rmm.is_v2()));
        let core = Core {
            rmm,
            owner,
            rd: rd_at,
            roots: roots_at,
            geometry,
            fill: config.fill,
            rim,
            recs: 0,
            shared_entries: 0,
            repeated: (Ipa::new(0), 0),
            phase: Phase::Alive,
        };
        Ok(Self { core, state: PhantomData })
    }

    /// Makes a range of protected addresses RAM (RTT_INIT_RIPAS). Extends the RIM in 1.0.
    ///
    /// Call this for all RAM before [`Self::populate`]: then the entries, and with them the RIM, depend on
    /// the ranges alone.
    ///
    /// # Errors
    /// The range is not protected, or the RMM refuses.
    pub fn init_ripas(&mut self, base: Ipa, top: Ipa) -> Result<(), Error> {
        self.core.check_protected(base, top)?;
        self.core.tables().init_ripas(base, top)?;
        if let Some(rim) = &mut self.core.rim {
            rim.init_ripas(base.get(), top.get());
        }
        Ok(())
    }

    /// Maps pages with contents (DATA_CREATE, RTT_DATA_MAP_INIT): page `n` from `ipa` gets the contents of
    /// the granule `source(n)`, which stays in the normal world. Extends the RIM, with the contents if
    /// `measure`.
    ///
    /// # Errors
    /// The range is not protected or has something mapped, memory is short, or the RMM refuses. What was
    /// mapped before the error stays until the realm is destroyed.
    pub fn populate(
        &mut self,
        ipa: Ipa,
        pages: u64,
        measure: bool,
        source: impl Fn(u64) -> PhysAddr,
    ) -> Result<(), Error> {
        let granule = self.core.geometry.granule();
        let top = pages.checked_mul(granule).and_then(|bytes| ipa.checked_add(bytes));
        let top = top.ok_or(Error::range(ipa, ipa))?;
        self.core.check_protected(ipa, top)?;
        self.core.tables().populate(ipa, pages, measure, &source)?;
        if self.core.rim.is_some() {
            for page in 0..pages {
                let at = ipa.get() + page * granule;
                self.core.measure_page(at, measure.then(|| source(page)))?;
            }
        }
        Ok(())
    }

    /// Creates the next REC (REC_CREATE). RECs are numbered in order of creation. Extends the RIM if the
    /// REC is runnable.
    ///
    /// # Errors
    /// Too many RECs, memory is short, or the RMM refuses. Everything for this REC has been given back then.
    pub fn create_rec(&mut self, config: &RecConfig) -> Result<Rec<'l, H>, Error> {
        let core = &mut self.core;
        let limit = core.rmm.capabilities().features.max_recs;
        if core.recs as u64 >= u64::from(limit) {
            return Err(Error::Invalid(Invalid::TooManyRecs));
        }
        let rec = Rec::create(core.rmm, core.owner, core.rd, core.geometry, core.recs, config)?;
        core.recs += 1;
        if let Some(rim) = &mut core.rim {
            rim.rec(config);
        }
        Ok(rec)
    }

    /// Closes the measurement and lets the realm run (REALM_ACTIVATE).
    ///
    /// # Errors
    /// The RMM refuses; the realm comes back with the error.
    #[expect(clippy::result_large_err, reason = "the realm itself comes back")]
    pub fn activate(self) -> Result<Realm<'l, H, Active>, DestroyFailure<'l, H, New>> {
        match self.core.rmm.demand(Command::RealmActivate, [self.core.rd.get()]) {
            Ok(_) => Ok(Realm { core: self.core, state: PhantomData }),
            Err(error) => Err(DestroyFailure { realm: self, error }),
        }
    }
}

impl<'l, H: Host> Realm<'l, H, Active> {
    /// Makes the RIPAS change that a REC's last exit asks for (RTT_SET_RIPAS), with about `budget` calls
    /// at most. Then enter the REC with [`crate::Resume::RipasAccept`]: it sees how far the change got.
    ///
    /// A change to EMPTY takes the pages away and frees them. To refuse a change, do not call this and
    /// enter with [`crate::Resume::RipasReject`].
    ///
    /// # Errors
    /// No change is pending, or the RMM refuses for a reason that is not the state of an entry.
    pub fn change_ripas(
        &mut self,
        rec: &mut Rec<'_, H>,
        budget: u64,
    ) -> Result<RipasProgress, Error> {
        let change = rec.pending_ripas().ok_or(Error::Invalid(Invalid::NothingPending))?;
        self.core.check_protected(change.base, change.top)?;
        let upto = self.core.tables().set_ripas(rec.addr(), &change, budget)?;
        rec.ripas_changed(Ipa::new(upto));
        Ok(RipasProgress { upto: Ipa::new(upto), complete: upto == change.top.get() })
    }
}

impl<'l, H: Host, S: RealmState> Realm<'l, H, S> {
    /// Shape of the realm's tables.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.core.geometry
    }

    /// The account of the realm's granules.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        self.core.owner
    }

    /// The bit that marks an IPA as shared.
    #[must_use]
    pub const fn shared_bit(&self) -> u64 {
        self.core.geometry.shared_bit()
    }

    /// The RIM as computed along with the construction, if the configuration asked for it.
    #[must_use]
    pub fn rim(&self) -> Option<Digest> {
        self.core.rim.as_ref().map(RimBuilder::rim)
    }

    /// Answers a fault on a protected address ([`crate::SyncExit::ProtectedFault`]): looks at the entry first, and
    /// maps memory only where that can help.
    ///
    /// # Errors
    /// The address is not protected, memory is short, or the RMM refuses.
    pub fn fault_in(&mut self, ipa: Ipa) -> Result<FaultIn, Error> {
        let granule = self.core.geometry.granule();
        let page = ipa.align_down(granule);
        let top = page.checked_add(granule).ok_or(Error::range(page, page))?;
        self.core.check_protected(page, top)?;
        let entry = self.core.tables().read_entry(page, LAST_LEVEL)?;
        match (entry.state, entry.ripas) {
            (_, Ripas::Destroyed) => Ok(FaultIn::Destroyed),
            (EntryState::Assigned, Ripas::Ram) => Ok(self.core.count_repeated(page)),
            (EntryState::Unassigned, Ripas::Ram) => {
                let granules = self.core.fill(page, &entry)?;
                Ok(FaultIn::Mapped { granules })
            }
            (_, ripas) => Ok(FaultIn::NotRam(ripas)),
        }
    }

    /// Maps memory without contents wherever the protected range has none, with blocks where alignment
    /// allows. The RIPAS stays as it is.
    ///
    /// Returns the number of granules mapped.
    ///
    /// # Errors
    /// The range is not protected, memory is short, or the RMM refuses.
    pub fn map_private(&mut self, base: Ipa, top: Ipa) -> Result<u64, Error> {
        self.core.check_protected(base, top)?;
        self.core.tables().map(base, top)
    }

    /// Maps `bytes` of normal memory at `pa` as shared memory at `ipa`, given with or without the shared
    /// bit. The memory stays the caller's; unmap it before it is delegated.
    ///
    /// # Errors
    /// The range is misaligned, something is mapped there, memory for tables is short, or the RMM
    /// refuses.
    pub fn map_shared(
        &mut self,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
        attrs: SharedAttrs,
    ) -> Result<(), Error> {
        let (base, top) = self.core.shared_range(ipa, bytes)?;
        if !pa.is_aligned(self.core.geometry.granule()) || pa.checked_add(bytes).is_none() {
            return Err(Error::Invalid(Invalid::PhysAddr(pa)));
        }
        debug_assert!(base < top);
        let entries = self.core.tables().map_shared(base, pa, bytes, attrs)?;
        self.core.shared_entries += entries;
        Ok(())
    }

    /// Unmaps shared memory at `ipa`, given with or without the shared bit. What is not mapped is
    /// skipped.
    ///
    /// # Errors
    /// The range is misaligned, memory to split a block is short, or the RMM refuses.
    pub fn unmap_shared(&mut self, ipa: Ipa, bytes: u64) -> Result<(), Error> {
        let (base, top) = self.core.shared_range(ipa, bytes)?;
        self.core.tables().unmap_shared(base, top)?;
        Ok(())
    }

    /// The stage-2 entry for `ipa` at the last level that has one (RTT_READ_ENTRY).
    ///
    /// # Errors
    /// The address is outside the IPA space, or the RMM refuses.
    pub fn read_entry(&self, ipa: Ipa) -> Result<Entry, Error> {
        if ipa >= self.core.geometry.end() {
            return Err(Error::range(ipa, ipa));
        }
        self.core.tables().read_entry(ipa, LAST_LEVEL)
    }

    /// Destroys the realm and gives its memory back. All RECs must have been destroyed before: the RMM
    /// refuses to destroy a realm that has one.
    ///
    /// # Errors
    /// The RMM refuses; the realm comes back with the error, and its memory is still
    /// accounted to it. Trying again goes on where this stopped.
    #[expect(clippy::result_large_err, reason = "the realm itself comes back")]
    pub fn destroy(mut self) -> Result<DestroyReport, DestroyFailure<'l, H, S>> {
        match self.core.release() {
            Ok(report) => Ok(report),
            Err(error) => Err(DestroyFailure { realm: self, error }),
        }
    }
}

/// Writes the parameters and makes the call.
fn create_rd<H: Host>(
    rmm: &Rmm<'_, H>,
    owner: Owner,
    config: &RealmConfig,
    geometry: &Geometry,
    rd: PhysAddr,
    roots: PhysAddr,
) -> Result<(), Error> {
    let command = Command::RealmCreate;
    let page = rmm.alloc_interface(owner)?;
    let tables = RealmTables {
        vmid: if rmm.is_v2() { 0 } else { config.vmid.into() },
        rtt_base: roots.get(),
        rtt_level_start: geometry.start_level().into(),
        rtt_num_start: geometry.root_tables(),
        flags1: 0,
    };
    let write = || {
        let features = config.features();
        rmm.host.store(page.base(), offset_of!(RealmParams, features), &features)?;
        rmm.host.store(page.base(), offset_of!(RealmParams, rpv), &config.rpv)?;
        rmm.host.store(page.base(), offset_of!(RealmParams, tables), &tables)
    };
    let outcome = write().map_err(Error::from).and_then(|()| {
        let reply = rmm.operate(command, [rd.get(), page.base().get()], owner)?;
        match reply.status {
            Status::Success => Ok(()),
            status => Err(Error::Refused { command, status }),
        }
    });
    rmm.ledger.free(page);
    outcome
}

impl<'l, H: Host> Core<'l, H> {
    fn tables(&self) -> Tables<'_, 'l, H> {
        Tables { rmm: self.rmm, rd: self.rd, owner: self.owner, geometry: self.geometry }
    }

    fn check_protected(&self, base: Ipa, top: Ipa) -> Result<(), Error> {
        if self.geometry.is_protected_range(base, top) {
            Ok(())
        } else {
            Err(Error::range(base, top))
        }
    }

    /// The range in the shared half, wherever the caller put the bit.
    fn shared_range(&self, ipa: Ipa, bytes: u64) -> Result<(Ipa, Ipa), Error> {
        let base = Ipa::new(ipa.get() | self.geometry.shared_bit());
        let top = base.checked_add(bytes).ok_or(Error::range(base, base))?;
        if self.geometry.is_shared_range(base, top) {
            Ok((base, top))
        } else {
            Err(Error::range(base, top))
        }
    }

    /// Extends the RIM with one page.
    fn measure_page(&mut self, ipa: u64, source: Option<PhysAddr>) -> Result<(), Error> {
        const CHUNK: usize = 256;
        let Some(rim) = &mut self.rim else { return Ok(()) };
        let contents = match source {
            None => None,
            Some(page) => {
                let mut hasher = rim.page_hasher();
                let mut chunk = [0; CHUNK];
                for offset in (0..self.geometry.granule()).step_by(CHUNK) {
                    self.rmm.host.read(PhysAddr::new(page.get() + offset), &mut chunk)?;
                    hasher.update(&chunk);
                }
                Some(hasher)
            }
        };
        rim.data(ipa, contents);
        Ok(())
    }

    /// Maps memory for a fault at `page`, whose entry is unassigned RAM.
    fn fill(&mut self, page: Ipa, entry: &Entry) -> Result<u64, Error> {
        self.repeated = (page, 0);
        let tables = self.tables();
        let block_level = LAST_LEVEL - 1;
        let block = self.geometry.entry_bytes(block_level);
        if self.fill == Fill::Block && entry.level <= block_level {
            let base = page.align_down(block);
            if let Some(top) = base.checked_add(block)
                && let Ok(mapped) = tables.map(base, top)
                && mapped > 0
            {
                return Ok(mapped);
            }
        }
        tables.create_tables(page, entry.level, LAST_LEVEL)?;
        tables.map(page, Ipa::new(page.get() + self.geometry.granule()))
    }

    /// Counts faults in a row on the same mapped page.
    fn count_repeated(&mut self, page: Ipa) -> FaultIn {
        let (last, count) = self.repeated;
        let count = if last == page { count + 1 } else { 1 };
        self.repeated = (page, count.min(MAX_REPEATED_FAULTS));
        if count >= MAX_REPEATED_FAULTS { FaultIn::Livelock } else { FaultIn::AlreadyMapped }
    }

    /// Tears the realm down from whatever state it is in.
    fn release(&mut self) -> Result<DestroyReport, Error> {
        let mut report = DestroyReport::default();
        if self.phase == Phase::Gone {
            return Ok(report);
        }
        if self.phase == Phase::Alive {
            self.rmm.terminate(self.rd, self.owner)?;
            self.phase = Phase::Terminated;
        }
        let swept = self.tables().tear_down(self.shared_entries);
        let mut error = swept.outcome.error;
        report.returned += swept.outcome.returned;
        if error.is_some() {
            // A refusal on the way may have left something behind that a second sweep finds.
            let again = self.tables().tear_down(self.shared_entries);
            report.returned += again.outcome.returned;
            error = again.outcome.error;
        }
        let command = Command::RealmDestroy;
        let mut reply = self.rmm.operate(command, [self.rd.get()], self.owner)?;
        if reply.status != Status::Success {
            reply = self.rmm.operate(command, [self.rd.get()], self.owner)?;
        }
        if reply.status != Status::Success {
            let refused = Error::Refused { command, status: reply.status };
            return Err(error.unwrap_or(refused));
        }
        self.phase = Phase::Gone;
        let tables = self.geometry.root_tables();
        for (base, count, used_for) in [(self.roots, tables, RmmUse::Rtt), (self.rd, 1, RmmUse::Rd)]
        {
            let frames = self.rmm.take_back(command, base.get(), count, used_for, self.owner)?;
            report.returned += self.rmm.retire(frames);
        }
        report.stranded = self.rmm.ledger.census_of(self.owner).held_by_rmm();
        Ok(report)
    }
}

impl<H: Host> Drop for Core<'_, H> {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::error!("realm of {} could not be destroyed: {error}", self.owner);
        }
    }
}
