//! Physical memory as EL2 sees it: the identity map, and access to RAM by address.

use crate::arch::{entry, layout};
use crate::stage1::{Kind, Stage1, TablePage};
use crate::sync::Lock;
use arrayvec::ArrayVec;
use boards::{Machine, Range};
use core::fmt;
use mm::ledger::PhysRange;
use mm::{PAGE_SIZE, PhysAddr};

/// Pages for stage-1 tables: root, and two per place where permissions change away from a block
/// boundary. Boot fails with a message if a machine needs more.
const TABLE_PAGES: usize = 48;
/// Most ranges that are left out when RAM is mapped.
const MAX_HOLES: usize = 40;

static TABLES: Lock<[TablePage; TABLE_PAGES]> = Lock::new([TablePage::EMPTY; TABLE_PAGES]);
static MAP: Lock<Option<Stage1>> = Lock::new(None);

/// The identity map cannot be extended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFailed {
    /// What was to be mapped.
    pub range: PhysRange,
    /// Why not.
    pub reason: aarch64_paging::MapError,
}

impl fmt::Display for MapFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot map {}: {}", self.range, self.reason)
    }
}

impl core::error::Error for MapFailed {}

/// The whole pages that a range touches.
#[must_use]
pub fn pages_of(range: &Range) -> PhysRange {
    let end = range.end().align_up(PAGE_SIZE).unwrap_or(range.end());
    PhysRange::new(range.start.align_down(PAGE_SIZE), end)
}

/// Builds the final tables with the image in them, one permission per section and nothing on the
/// guard pages, and switches this core to them.
///
/// # Errors
///
/// If the tables do not hold it.
pub fn switch_to_final_tables() -> Result<(), MapFailed> {
    let pool: &'static mut [TablePage] = alloc::tables();
    let mut map = Stage1::new(pool);
    let sections = [
        (layout::text(), Kind::Code),
        (layout::rodata(), Kind::ReadOnly),
        (layout::data(), Kind::Data),
    ];
    let stacks = (0..layout::MAX_CORES).map(|core| (layout::stack(core), Kind::Data));
    for (section, kind) in sections.into_iter().chain(stacks) {
        add(&mut map, PhysRange::new(section.start, section.end), kind)?;
    }
    let root = map.root();
    map.mark_live();
    *MAP.lock() = Some(map);
    // SAFETY: the tables map code, constants, variables and all stacks with the permissions that
    // the image was linked for; nothing else is referenced yet. They live in a static.
    unsafe { entry::switch_tables(root) };
    entry::publish_to_secondaries(root);
    Ok(())
}

mod alloc {
    use super::{TABLE_PAGES, TABLES, TablePage};

    /// The pool of table pages, for the one caller at boot.
    pub(super) fn tables() -> &'static mut [TablePage] {
        let mut guard = TABLES.lock();
        let first = guard.as_mut_ptr();
        // Nobody can take the lock again: the pages belong to the one map from now on.
        core::mem::forget(guard);
        // SAFETY: the lock is never released, so that this is the only reference to the static.
        unsafe { core::slice::from_raw_parts_mut(first, TABLE_PAGES) }
    }
}

fn add(map: &mut Stage1, range: PhysRange, kind: Kind) -> Result<(), MapFailed> {
    map.map(range, kind).map_err(|reason| MapFailed { range, reason })
}

fn extend(range: PhysRange, kind: Kind) -> Result<(), MapFailed> {
    match MAP.lock().as_mut() {
        Some(map) => add(map, range, kind),
        None => Ok(()),
    }
}

/// Maps the pages of a device's registers: Device-nGnRE, never executable.
///
/// # Errors
///
/// If there is no room in the tables, or the range is mapped as something else.
pub fn map_device(range: &Range) -> Result<(), MapFailed> {
    extend(pages_of(range), Kind::Device)
}

/// Maps pages that the hypervisor only reads: the device tree of firmware.
///
/// # Errors
///
/// As for [`map_device`].
pub fn map_read_only(range: PhysRange) -> Result<(), MapFailed> {
    extend(range, Kind::ReadOnly)
}

/// Maps all RAM of the machine, never executable, except what firmware forbids (`no-map`) and the
/// parts in `mapped`, which are mapped already, each a number of whole pages.
///
/// # Errors
///
/// As for [`map_device`].
pub fn map_ram(machine: &Machine<'_>, mapped: &[PhysRange]) -> Result<(), MapFailed> {
    let mut holes = ArrayVec::<PhysRange, MAX_HOLES>::new();
    let forbidden = machine.reserved.iter().filter(|r| r.no_map).map(|r| pages_of(&r.range));
    holes.extend(mapped.iter().copied().chain(forbidden).take(MAX_HOLES));
    holes.sort_unstable_by_key(|hole| hole.start);
    for ram in &machine.memory {
        for part in subtract(pages_of(ram), &holes) {
            extend(part, Kind::Data)?;
        }
    }
    Ok(())
}

/// The parts of `range` outside `holes`, which are sorted by their start and may overlap.
fn subtract(range: PhysRange, holes: &[PhysRange]) -> impl Iterator<Item = PhysRange> {
    let mut next = range.start;
    let end = PhysRange::new(range.end, range.end);
    holes.iter().copied().chain([end]).filter_map(move |hole| {
        let part = PhysRange::new(next, hole.start.min(range.end));
        next = next.max(hole.end);
        (part.start < part.end).then_some(part)
    })
}
