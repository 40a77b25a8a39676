//! The order in which a realm is built, written once: the [`Builder`] of realms and [`BuildPlan::rim`], which
//! computes the RIM beforehand, follow the same list of steps, so that they cannot diverge.
//!
//! All RAM gets its RIPAS first, so that entries are as large as the ranges allow and the RIM of 1.0 depends
//! on the ranges alone; then come the segments with their contents, and between them, if the plan says so, memory
//! for all other RAM, which is not measured; then the RECs.

mod builder;

use core::fmt;

use mm::{Ipa, PAGE_SIZE, PhysAddr};

pub use self::builder::{Builder, Built};
use crate::error::Error;
use crate::measurement::Digest;
use crate::realm::{RealmConfig, RecConfig};
use crate::rim::RimBuilder;

/// Most RECs of a realm that is built from a plan.
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
    /// Whether all RAM gets memory before the realm is activated; if not, what no segment fills comes by faults.
    /// Needs segments in ascending order.
    pub eager: bool,
    /// RECs, in the order of their MPIDRs.
    pub recs: &'p [RecConfig],
}

/// A step of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Creating the realm.
    Create,
    /// Making RAM range number `.0` RAM.
    Ram(usize),
    /// Mapping memory for the RAM between segments number `.0 - 1` and `.0`.
    Fill(usize),
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
            Self::Fill(index) => write!(f, "mapping memory before segment {index}"),
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

impl Segment {
    /// First address after the segment.
    const fn end(&self) -> u64 {
        self.ipa.get().saturating_add(self.pages.saturating_mul(PAGE_SIZE))
    }
}

impl<E: fmt::Display> fmt::Display for BuildError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.error)
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for BuildError<E> {}

impl<'p> BuildPlan<'p> {
    /// Step number `position` between creation and activation; `None` after the last one.
    fn step(&self, position: usize) -> Option<Step> {
        if position < self.ram.len() {
            return Some(Step::Ram(position));
        }
        let position = position - self.ram.len();
        // One more gap than there are segments.
        let filling = self.segments.len() + if self.eager { self.segments.len() + 1 } else { 0 };
        if position < filling {
            return Some(match self.eager {
                false => Step::Segment(position),
                true if position.is_multiple_of(2) => Step::Fill(position / 2),
                true => Step::Segment(position / 2),
            });
        }
        let rec = position - filling;
        (rec < self.recs.len()).then_some(Step::Rec(rec))
    }

    /// The steps between creation and activation, in order.
    fn steps(&self) -> impl Iterator<Item = Step> + use<'_, 'p> {
        (0..).map_while(|position| self.step(position))
    }

    /// The first RAM at or after `at` in the gap before segment number `index`.
    fn gap(&self, index: usize, at: u64) -> Option<(u64, u64)> {
        let before = index.checked_sub(1).and_then(|before| self.segments.get(before));
        let low = before.map_or(0, Segment::end).max(at);
        let high = self.segments.get(index).map_or(u64::MAX, |segment| segment.ipa.get());
        let parts = self.ram.iter().map(|r| (r.base.get().max(low), r.top.get().min(high)));
        parts.into_iter().find(|(base, top)| base < top)
    }

    /// End of the RAM range that holds `at`.
    fn ram_end(&self, at: u64) -> Option<u64> {
        let mut ranges = self.ram.iter().map(|range| (range.base.get(), range.top.get()));
        ranges.find(|(base, top)| (*base..*top).contains(&at)).map(|(_, top)| top)
    }

    /// Refuses segments that are not in ascending order where that matters.
    fn check(&self) -> Result<(), Error> {
        let mut end = 0;
        for segment in self.segments.iter().filter(|_| self.eager) {
            if segment.ipa.get() < end {
                return Err(Error::range(segment.ipa, Ipa::new(segment.end())));
            }
            end = segment.end();
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
        mut page: impl FnMut(usize, u64, &mut [u8; PAGE_SIZE as usize]) -> Result<(), E>,
    ) -> Result<Digest, BuildError<E>> {
        let geometry = self
            .config
            .geometry(PAGE_SIZE.trailing_zeros() as u8)
            .map_err(|error| BuildError { step: Step::Create, error: error.into() })?;
        let mut rim = RimBuilder::new(&self.config, geometry, ripas_measured);
        for step in self.steps() {
            match step {
                Step::Ram(index) => {
                    if let Some(range) = self.ram.get(index) {
                        rim.init_ripas(range.base.get(), range.top.get());
                    }
                }
                Step::Segment(index) => {
                    let Some(segment) = self.segments.get(index) else { continue };
                    measure_segment(&mut rim, segment, |number, buffer| {
                        page(index, number, buffer)
                    })
                    .map_err(|error| BuildError { step, error })?;
                }
                Step::Rec(index) => {
                    if let Some(rec) = self.recs.get(index) {
                        rim.rec(rec);
                    }
                }
                Step::Create | Step::Fill(_) | Step::Activate => {}
            }
        }
        Ok(rim.rim())
    }
}

/// Extends a RIM by the pages of a segment.
fn measure_segment<E>(
    rim: &mut RimBuilder,
    segment: &Segment,
    mut page: impl FnMut(u64, &mut [u8; PAGE_SIZE as usize]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = [0; PAGE_SIZE as usize];
    for number in 0..segment.pages {
        let contents = if segment.measured {
            page(number, &mut buffer)?;
            let mut hasher = rim.page_hasher();
            hasher.update(&buffer);
            Some(hasher)
        } else {
            None
        };
        rim.data(segment.ipa.get() + number * PAGE_SIZE, contents);
    }
    Ok(())
}

/// Where the contents of a plan are in the normal world.
pub trait PageSource {
    /// The granule with the contents of page `page` of segment number `segment`. It must stay in the normal
    /// world, unchanged, until the realm is built.
    fn page(&self, segment: usize, page: u64) -> PhysAddr;
}
