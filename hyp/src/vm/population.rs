//! RAM of a normal VM on its way to the start, a bounded part at a time.

use super::Reason;
use super::memory::VmMemory;
use super::realm::Image;
use crate::arch::cache;
use core::fmt;
use mm::Ipa;
use mm::stage2::VmidSlot;
use vmm_services::layout;
use vmm_services::loader::{LoadPlan, Segment, Source};
use vmm_services::manifest::{Bundle, Populate};

/// Bytes of images that are copied at once.
const SLICE: u64 = 2 << 20;

/// RAM of a VM that is being zeroed and filled.
pub struct Population {
    memory: VmMemory,
    populate: Populate,
    stage: Stage,
}

#[expect(clippy::large_enum_variant, reason = "it lies in a static, and there is no heap")]
enum Stage {
    /// RAM before `next` is zero, and none is mapped.
    Zeroing { next: Ipa },
    /// It has to be known where the images go.
    Planning,
    /// The segments before number `segment`, and `copied` bytes of that one, are there.
    Copying { plan: LoadPlan, segment: usize, copied: u64 },
}

/// What [`Population::step`] has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to do.
    Underway,
    /// What the VM is made from has to be worked out, for [`Population::plan`] or a realm's next step.
    NeedsImage,
    /// All is there.
    Complete,
}

impl Population {
    /// Begins with `memory`, of which nothing is zeroed or mapped.
    #[must_use]
    pub fn new(mut memory: VmMemory, populate: Populate) -> Self {
        let stage = match populate {
            Populate::Eager => Stage::Zeroing { next: layout::RAM },
            Populate::Image | Populate::Lazy => {
                memory.populate_on_demand();
                Stage::Planning
            }
        };
        Self { memory, populate, stage }
    }

    /// Zeroes the next block and maps them all at the end, or copies the next part of the images.
    ///
    /// # Errors
    ///
    /// An image does not fit, or there is no memory for tables.
    pub fn step(&mut self, slot: &VmidSlot, bundle: &Bundle<'_>) -> Result<Progress, Reason> {
        let (segment, from) = match &mut self.stage {
            Stage::Zeroing { next } => {
                match self.memory.zero(*next) {
                    Some(at) => *next = at,
                    None => {
                        self.memory.map_all(slot).map_err(|error| reason(&error))?;
                        self.stage = Stage::Planning;
                    }
                }
                return Ok(Progress::Underway);
            }
            Stage::Planning => return Ok(Progress::NeedsImage),
            Stage::Copying { plan, segment, copied } => match plan.segments.get(*segment) {
                None => {
                    cache::forget_instructions();
                    return Ok(Progress::Complete);
                }
                Some(found) => (*found, *copied),
            },
        };
        let end = match segment.source {
            // It was copied with the plan.
            Source::Fdt => segment.size,
            Source::Bundle { offset } => {
                let bytes = offset.checked_add(segment.length).and_then(|end| {
                    bundle.bytes().get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
                });
                self.copy(slot, &segment, from, bytes.ok_or_else(outside)?)?
            }
        };
        let done = end >= self.wanted(&segment);
        if let Stage::Copying { segment: number, copied, .. } = &mut self.stage {
            (*number, *copied) = if done { (*number + 1, 0) } else { (*number, end) };
        }
        Ok(Progress::Underway)
    }

    /// Notes where the images go, and copies the device tree, whose buffer all VMs share.
    ///
    /// # Errors
    ///
    /// As for [`Self::step`].
    pub fn plan(&mut self, slot: &VmidSlot, image: &Image<'_>) -> Result<(), Reason> {
        for segment in image.plan.segments.iter().filter(|segment| segment.source == Source::Fdt) {
            let bytes = image.fdt.0.get(..segment.length as usize).ok_or_else(outside)?;
            let mut copied = 0;
            while copied < self.wanted(segment) {
                copied = self.copy(slot, segment, copied, bytes)?;
            }
        }
        self.stage = Stage::Copying { plan: image.plan.clone(), segment: 0, copied: 0 };
        Ok(())
    }

    /// Bytes of a segment that are to be there at the start. All zeros are there already, or else wait for
    /// a touch.
    fn wanted(&self, segment: &Segment) -> u64 {
        match self.populate {
            Populate::Image => segment.size,
            Populate::Eager | Populate::Lazy => segment.length,
        }
    }

    /// Copies a part of a segment, whose contents are `bytes` and zeros behind, from its byte `from` on;
    /// returns how far.
    fn copy(
        &mut self,
        slot: &VmidSlot,
        segment: &Segment,
        from: u64,
        bytes: &[u8],
    ) -> Result<u64, Reason> {
        let end = self.wanted(segment).min(from.saturating_add(SLICE));
        let at = segment.ipa.checked_add(from).ok_or_else(outside)?;
        self.memory
            .populate_range(slot, at, end.saturating_sub(from))
            .map_err(|error| reason(&error))?;
        let part = from.min(segment.length) as usize..end.min(segment.length) as usize;
        if !self.memory.fill(at, bytes.get(part).ok_or_else(outside)?) {
            return Err(outside());
        }
        Ok(end)
    }

    /// The RAM, and where the VM's first vCPU and its device tree are in it, if it is complete.
    #[inline(never)]
    #[must_use]
    pub fn finish(self) -> (VmMemory, Option<(Ipa, Ipa)>) {
        match self.stage {
            Stage::Copying { plan, .. } => (self.memory, Some((plan.entry, plan.fdt))),
            _ => (self.memory, None),
        }
    }
}

fn outside() -> Reason {
    Reason::new(format_args!("an image lies outside the VM's memory"))
}

fn reason(error: &dyn fmt::Display) -> Reason {
    Reason::new(format_args!("{error}"))
}
