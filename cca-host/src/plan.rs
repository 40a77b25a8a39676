//! The order in which a realm is built, written once: [`BuildPlan::execute`] drives the realm builder and
//! the computation of the RIM alike, so that they cannot diverge.
//!
//! All RAM gets its RIPAS first, so that entries are as large as the ranges allow and the RIM of 1.0 depends
//! on the ranges alone; then come the segments with their contents, then the RECs.

use core::fmt;

use arrayvec::ArrayVec;
use mm::ledger::Owner;
use mm::{Ipa, PAGE_SIZE, PhysAddr};

use crate::conduit::Host;
use crate::error::{Error, Invalid};
use crate::measurement::Digest;
use crate::realm::{Active, New, Realm, RealmConfig, RecConfig};
use crate::rec::Rec;
use crate::rim::RimBuilder;
use crate::rmm::Rmm;

/// Most RECs that [`Realm::build`] creates.
pub const MAX_RECS: usize = 16;

/// A range of protected addresses, granule aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpaRange {
    /// First address.
    pub base: Ipa,
    /// First address after the range.
    pub top: Ipa,
}

/// Contents that a realm starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where the realm sees it; granule aligned.
    pub ipa: Ipa,
    /// Number of 4 KiB pages.
    pub pages: u64,
    /// Whether the contents are part of the RIM. The addresses always are.
    pub measured: bool,
}

/// Everything that a realm is built from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BuildPlan<'p> {
    /// Parameters.
    pub config: RealmConfig,
    /// RAM, in ascending order.
    pub ram: &'p [IpaRange],
    /// Contents, in the order in which they are measured.
    pub segments: &'p [Segment],
    /// RECs, in the order of their MPIDRs.
    pub recs: &'p [RecConfig],
}

/// Something that a plan can be executed on.
pub trait BuildTarget {
    /// What can go wrong.
    type Error;

    /// Makes a range RAM.
    ///
    /// # Errors
    /// As the target says.
    fn init_ripas(&mut self, range: IpaRange) -> Result<(), Self::Error>;

    /// Adds the contents of `segment`, which is number `index` of the plan.
    ///
    /// # Errors
    /// As the target says.
    fn populate(&mut self, index: usize, segment: &Segment) -> Result<(), Self::Error>;

    /// Adds a REC.
    ///
    /// # Errors
    /// As the target says.
    fn create_rec(&mut self, rec: &RecConfig) -> Result<(), Self::Error>;
}

/// A step of a plan, for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Creating the realm.
    Create,
    /// Making RAM range number `.0` RAM.
    Ram(usize),
    /// Populating segment number `.0`.
    Segment(usize),
    /// Creating REC number `.0`.
    Rec(usize),
    /// Activating the realm.
    Activate,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create => f.write_str("creating the realm"),
            Self::Ram(index) => write!(f, "preparing RAM range {index}"),
            Self::Segment(index) => write!(f, "populating segment {index}"),
            Self::Rec(index) => write!(f, "creating REC {index}"),
            Self::Activate => f.write_str("activating the realm"),
        }
    }
}

/// A step and why it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BuildError<E = Error> {
    /// The step.
    pub step: Step,
    /// The reason.
    pub error: E,
}

impl<E: fmt::Display> fmt::Display for BuildError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for BuildError<E> {}

impl BuildPlan<'_> {
    /// Executes the plan between creation and activation.
    ///
    /// # Errors
    /// The first error of the target, with the step.
    pub fn execute<T: BuildTarget>(&self, target: &mut T) -> Result<(), BuildError<T::Error>> {
        for (index, range) in self.ram.iter().enumerate() {
            let step = Step::Ram(index);
            target.init_ripas(*range).map_err(|error| BuildError { step, error })?;
        }
        for (index, segment) in self.segments.iter().enumerate() {
            let step = Step::Segment(index);
            target.populate(index, segment).map_err(|error| BuildError { step, error })?;
        }
        for (index, rec) in self.recs.iter().enumerate() {
            let step = Step::Rec(index);
            target.create_rec(rec).map_err(|error| BuildError { step, error })?;
        }
        Ok(())
    }

    /// The RIM that a realm built from this plan will have.
    ///
    /// `ripas_measured` is true for RMI 1.x. `page(segment, page, buffer)` supplies the contents of pages of
    /// measured segments.
    ///
    /// # Errors
    /// The geometry is impossible, or an error of `page`.
    pub fn rim<E: From<Error>>(
        &self,
        ripas_measured: bool,
        page: impl FnMut(usize, u64, &mut [u8; PAGE_SIZE as usize]) -> Result<(), E>,
    ) -> Result<Digest, BuildError<E>> {
        let geometry = self
            .config
            .geometry(PAGE_SIZE.trailing_zeros() as u8)
            .map_err(|error| BuildError { step: Step::Create, error: error.into() })?;
        let rim = RimBuilder::new(&self.config, geometry, ripas_measured);
        let mut target = RimTarget { rim, page };
        self.execute(&mut target)?;
        Ok(target.rim.rim())
    }
}

/// Computes the RIM instead of building.
struct RimTarget<P> {
    rim: RimBuilder,
    page: P,
}

impl<E, P> BuildTarget for RimTarget<P>
where
    P: FnMut(usize, u64, &mut [u8; PAGE_SIZE as usize]) -> Result<(), E>,
{
    type Error = E;

    fn init_ripas(&mut self, range: IpaRange) -> Result<(), E> {
        self.rim.init_ripas(range.base.get(), range.top.get());
        Ok(())
    }

    fn populate(&mut self, index: usize, segment: &Segment) -> Result<(), E> {
        let mut buffer = [0; PAGE_SIZE as usize];
        for page in 0..segment.pages {
            let contents = if segment.measured {
                (self.page)(index, page, &mut buffer)?;
                let mut hasher = self.rim.page_hasher();
                hasher.update(&buffer);
                Some(hasher)
            } else {
                None
            };
            self.rim.data(segment.ipa.get() + page * PAGE_SIZE, contents);
        }
        Ok(())
    }

    fn create_rec(&mut self, rec: &RecConfig) -> Result<(), E> {
        self.rim.rec(rec);
        Ok(())
    }
}

/// Where the contents of a plan are in the normal world.
pub trait PageSource {
    /// The granule with the contents of page `page` of segment number `segment`. It must stay in the normal
    /// world, unchanged, until the realm is built.
    fn page(&self, segment: usize, page: u64) -> PhysAddr;
}

/// Builds a realm.
struct RealmTarget<'b, 'l, H: Host, P> {
    realm: &'b mut Realm<'l, H, New>,
    recs: &'b mut ArrayVec<Rec<'l, H>, MAX_RECS>,
    pages: &'b P,
}

impl<H: Host, P: PageSource> BuildTarget for RealmTarget<'_, '_, H, P> {
    type Error = Error;

    fn init_ripas(&mut self, range: IpaRange) -> Result<(), Error> {
        self.realm.init_ripas(range.base, range.top)
    }

    fn populate(&mut self, index: usize, segment: &Segment) -> Result<(), Error> {
        let source = |page| self.pages.page(index, page);
        self.realm.populate(segment.ipa, segment.pages, segment.measured, source)
    }

    fn create_rec(&mut self, rec: &RecConfig) -> Result<(), Error> {
        if self.recs.is_full() {
            return Err(Error::Invalid(Invalid::TooManyRecs));
        }
        self.recs.push(self.realm.create_rec(rec)?);
        Ok(())
    }
}

/// A realm ready to run, with its RECs.
pub type Built<'l, H> = (Realm<'l, H, Active>, ArrayVec<Rec<'l, H>, MAX_RECS>);

impl<'l, H: Host> Realm<'l, H, Active> {
    /// Builds and activates a realm as planned.
    ///
    /// # Errors
    /// The step that failed, and why. Whatever had been built has been destroyed again.
    pub fn build(
        rmm: &'l Rmm<'l, H>,
        owner: Owner,
        plan: &BuildPlan<'_>,
        pages: &impl PageSource,
    ) -> Result<Built<'l, H>, BuildError> {
        let mut realm = Realm::create(rmm, owner, &plan.config)
            .map_err(|error| BuildError { step: Step::Create, error })?;
        // Declared after the realm, so that an error drops the RECs before it.
        let mut recs = ArrayVec::new();
        plan.execute(&mut RealmTarget { realm: &mut realm, recs: &mut recs, pages })?;
        match realm.activate() {
            Ok(realm) => Ok((realm, recs)),
            Err(failure) => {
                recs.clear();
                Err(BuildError { step: Step::Activate, error: failure.error })
            }
        }
    }
}
