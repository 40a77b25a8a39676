//! A realm's life cycle: created, filled, activated, changed, destroyed.

mod config;
mod destroy;
mod fault;

use core::fmt;
use core::marker::PhantomData;
use core::mem::offset_of;

use mm::ledger::{Owner, RmmUse};
use mm::{Ipa, PhysAddr};

pub use self::config::{Fill, RealmConfig, RecConfig};
pub use self::destroy::{DestroyFailure, DestroyReport, Dismantling};
pub use self::fault::FaultIn;
use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::{Error, Invalid};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::layout::{RealmParams, RealmTables};
use crate::measurement::Digest;
use crate::rec::Rec;
use crate::rim::RimBuilder;
use crate::rmm::{Returned, Rmm};
use crate::rtt::{Book, Budget, Entry, Mapped, SharedAttrs, Tables, Teardown};
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
pub(crate) struct Core<'l, H: Host> {
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
    /// Where there is anything.
    book: Book,
    phase: Phase,
    /// The destruction of the realm, once it has begun.
    teardown: Option<Teardown>,
    /// What has come back from it so far.
    returned: Returned,
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

/// How far a RIPAS change got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RipasProgress {
    /// The budget was spent before the end: call again before the REC is entered. Other RECs may run meanwhile.
    Underway,
    /// The REC can be entered.
    Done {
        /// First address not changed.
        upto: Ipa,
        /// Whether that is the whole request. Otherwise the realm sees how far it got and repeats it.
        complete: bool,
    },
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
            book: Book::new(),
            phase: Phase::Alive,
            teardown: None,
            returned: Returned::default(),
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
        let upto = self.init_ripas_some(base.get(), top.get(), &mut Budget::UNLIMITED.clone())?;
        debug_assert_eq!(upto, top.get());
        self.measure_ripas(base, top);
        Ok(())
    }

    pub(crate) fn check_protected(&self, base: Ipa, top: Ipa) -> Result<(), Error> {
        self.core.check_protected(base, top)
    }

    /// Makes a part of a protected range RAM; returns where to go on.
    pub(crate) fn init_ripas_some(
        &mut self,
        at: u64,
        top: u64,
        budget: &mut Budget,
    ) -> Result<u64, Error> {
        self.core.with_tables(budget, |tables| tables.init_ripas(at, top))
    }

    /// Extends the RIM by a range that has become RAM.
    pub(crate) fn measure_ripas(&mut self, base: Ipa, top: Ipa) {
        if let Some(rim) = &mut self.core.rim {
            rim.init_ripas(base.get(), top.get());
        }
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
        for page in 0..pages {
            let at = ipa.get() + page * granule;
            let mut budget = Budget::UNLIMITED;
            self.populate_page(at, source(page), measure, top.get(), &mut budget)?;
        }
        Ok(())
    }

    /// Maps one page with contents; `false` if the budget was spent before. Memory is taken for the addresses up to
    /// `room`.
    pub(crate) fn populate_page(
        &mut self,
        at: u64,
        source: PhysAddr,
        measure: bool,
        room: u64,
        budget: &mut Budget,
    ) -> Result<bool, Error> {
        let populate = |tables: &mut Tables<'_, 'l, H>| tables.populate(at, source, measure, room);
        if !self.core.with_tables(budget, populate)? {
            return Ok(false);
        }
        self.core.measure_page(at, measure.then_some(source))?;
        Ok(true)
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
        match self.call_activate() {
            Ok(()) => Ok(self.into_active()),
            Err(error) => Err(DestroyFailure { realm: self, error }),
        }
    }

    /// REALM_ACTIVATE.
    pub(crate) fn call_activate(&self) -> Result<(), Error> {
        self.core.rmm.demand(Command::RealmActivate, [self.core.rd.get()]).map(|_| ())
    }

    /// The realm, of which the RMM has said that it is active.
    pub(crate) fn into_active(self) -> Realm<'l, H, Active> {
        Realm { core: self.core, state: PhantomData }
    }
}

impl<'l, H: Host> Realm<'l, H, Active> {
    /// Makes the RIPAS change that a REC's last exit asks for (RTT_SET_RIPAS), with about `budget` calls
    /// at a time. When it is done, enter the REC with [`crate::Resume::RipasAccept`]: it sees how far the change got.
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
        // Nothing is left to change if only the taking away of what was changed is under way.
        if change.base != change.top {
            self.core.check_protected(change.base, change.top)?;
        }
        let (addr, at) = (rec.addr(), change.base.get());
        let changed = self
            .core
            .with_tables(&mut Budget::new(budget), |tables| tables.set_ripas(addr, &change, at))?;
        let upto = Ipa::new(changed.upto);
        rec.ripas_changed(upto);
        let complete = upto == change.top;
        if changed.settled && (complete || changed.stopped) {
            Ok(RipasProgress::Done { upto, complete })
        } else {
            Ok(RipasProgress::Underway)
        }
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

    /// Maps memory without contents wherever the protected range has none, with blocks where alignment
    /// allows. The RIPAS stays as it is.
    ///
    /// Returns the number of granules mapped.
    ///
    /// # Errors
    /// The range is not protected, memory is short, or the RMM refuses.
    pub fn map_private(&mut self, base: Ipa, top: Ipa) -> Result<u64, Error> {
        self.core.check_protected(base, top)?;
        let mut budget = Budget::UNLIMITED;
        self.map_private_some(base.get(), top.get(), top.get(), &mut budget)
            .map(|mapped| mapped.granules)
    }

    /// Maps memory without contents in a part of a protected range. Memory is taken for the addresses up to `room`.
    pub(crate) fn map_private_some(
        &mut self,
        at: u64,
        top: u64,
        room: u64,
        budget: &mut Budget,
    ) -> Result<Mapped, Error> {
        self.core.with_tables(budget, |tables| tables.map(at, top, room))
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
        let mut budget = Budget::UNLIMITED;
        let entries = self
            .core
            .with_tables(&mut budget, |tables| tables.map_shared(base, pa, bytes, attrs))?;
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
        let mut budget = Budget::UNLIMITED;
        self.core.with_tables(&mut budget, |tables| tables.unmap_shared(base, top))?;
        Ok(())
    }

    /// The stage-2 entry for `ipa` at the last level that has one (RTT_READ_ENTRY).
    ///
    /// # Errors
    /// The address is outside the IPA space, or the RMM refuses.
    pub fn read_entry(&mut self, ipa: Ipa) -> Result<Entry, Error> {
        if ipa >= self.core.geometry.end() {
            return Err(Error::range(ipa, ipa));
        }
        let mut budget = Budget::UNLIMITED;
        self.core.with_tables(&mut budget, |tables| tables.read_entry(ipa, LAST_LEVEL))
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
    /// Does something with the tables, within a budget.
    fn with_tables<R>(
        &mut self,
        budget: &mut Budget,
        work: impl FnOnce(&mut Tables<'_, 'l, H>) -> R,
    ) -> R {
        let mut tables = Tables {
            rmm: self.rmm,
            rd: self.rd,
            owner: self.owner,
            geometry: self.geometry,
            book: &mut self.book,
            budget: *budget,
        };
        let result = work(&mut tables);
        *budget = tables.budget;
        result
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
}
