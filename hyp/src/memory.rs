//! Physical memory as EL2 sees it: the identity map, and the ledger of RAM.

use crate::arch::{entry, layout};
use crate::machine::Machine;
use crate::sync::Lock;
use arrayvec::ArrayVec;
use core::fmt;
use mm::PhysAddr;
use mm::ledger::{
    Frames, LayoutError, Ledger, NotOurs, OutOfMemory, Owner, PhysRange, Undelegated, Use,
};
use mm::stage1::{Kind, Stage1, Stage1Error, TablePage};
use spin::Once;

/// Pages for stage-1 tables. QEMU's machines take 9; each further place where permissions change
/// away from a block boundary takes up to two. Boot fails with a message if a machine needs more.
const TABLE_PAGES: usize = 32;
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
    pub reason: Stage1Error,
}

impl fmt::Display for MapFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot map {}: {}", self.range, self.reason)
    }
}

impl core::error::Error for MapFailed {}

/// Builds the final tables with the image in them, one permission per section and nothing on the
/// guard pages, and switches this core to them.
///
/// # Errors
///
/// If the tables do not hold it.
pub fn switch_to_final_tables() -> Result<(), MapFailed> {
    let image = layout::image();
    let pool: &'static mut [TablePage] = TABLES.leak();
    let mut map = Stage1::new(pool)
        .map_err(|reason| MapFailed { range: PhysRange::new(image.start, image.end), reason })?;
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
    use mm::ledger::PhysRange;

    /// Zeroed words at the start of `range`.
    ///
    /// # Safety
    ///
    /// `range` must be mapped, writable RAM of at least `count` words that nothing else uses, for
    /// good.
    pub(super) unsafe fn words(range: PhysRange, count: usize) -> &'static mut [u32] {
        let first = core::ptr::with_exposed_provenance_mut::<u32>(range.start.get() as usize);
        // SAFETY: the caller gives the range to this function alone; it is page aligned.
        unsafe { first.write_bytes(0, count) };
        // SAFETY: as before, and the words were just initialised.
        unsafe { core::slice::from_raw_parts_mut(first, count) }
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
pub fn map_device(range: PhysRange) -> Result<(), MapFailed> {
    extend(range, Kind::Device)
}

/// Maps pages that the hypervisor only reads: the device tree of firmware.
///
/// # Errors
///
/// As for [`map_device`].
pub fn map_read_only(range: PhysRange) -> Result<(), MapFailed> {
    extend(range, Kind::ReadOnly)
}

/// Takes away what [`map_read_only`] mapped, where nothing of use was found.
///
/// # Errors
///
/// If the range is part of a larger block.
pub fn unmap(range: PhysRange) -> Result<(), MapFailed> {
    match MAP.lock().as_mut() {
        Some(map) => map.unmap(range).map_err(|reason| MapFailed { range, reason }),
        None => Ok(()),
    }
}

/// Maps all RAM of the machine, never executable, except what firmware forbids (`no-map`) and the
/// parts in `mapped`, which are mapped already, each a number of whole pages.
///
/// # Errors
///
/// As for [`map_device`].
pub fn map_ram(machine: &Machine<'_>, mapped: &[PhysRange]) -> Result<(), MapFailed> {
    let forbidden = machine.reserved.iter().filter(|r| r.no_map).map(|r| r.range);
    let holes = sorted(mapped.iter().copied().chain(forbidden));
    for &ram in &machine.memory {
        for part in subtract(ram, &holes) {
            extend(part, Kind::Data)?;
        }
    }
    Ok(())
}

/// Ranges by their start.
fn sorted(ranges: impl Iterator<Item = PhysRange>) -> ArrayVec<PhysRange, MAX_HOLES> {
    let mut sorted: ArrayVec<_, MAX_HOLES> = ranges.take(MAX_HOLES).collect();
    sorted.sort_unstable_by_key(|range| range.start);
    sorted
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

/// Bytes of physical memory that everybody may read.
///
/// # Safety
///
/// The bytes must be mapped at EL2, initialised, and never written from now on.
#[must_use]
pub unsafe fn shared(start: PhysAddr, bytes: usize) -> &'static [u8] {
    let first = core::ptr::with_exposed_provenance(start.get() as usize);
    // SAFETY: the caller vouches for the bytes.
    unsafe { core::slice::from_raw_parts(first, bytes) }
}

/// Whether all of `range` is RAM of the machine.
#[must_use]
pub fn is_ram(machine: &Machine<'_>, range: PhysRange) -> bool {
    machine.memory.iter().any(|ram| ram.start <= range.start && range.end <= ram.end)
}

/// RAM that the hypervisor itself has: never written through an address from elsewhere.
struct Own {
    ranges: ArrayVec<PhysRange, 4>,
}

static LEDGER: Once<Ledger<'static>> = Once::new();
static OWN: Once<Own> = Once::new();

/// Why there is no ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerError {
    /// The machine's RAM has a shape that the ledger cannot hold.
    Layout(LayoutError),
    /// No RAM is free and contiguous enough for the metadata.
    NoRoom {
        /// Bytes of metadata.
        bytes: u64,
    },
    /// A reservation failed, which cannot be before the first allocation.
    Reserve(NotOurs),
    /// It exists already.
    Twice,
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(error) => error.fmt(f),
            Self::NoRoom { bytes } => write!(f, "no room for {bytes} bytes of ledger metadata"),
            Self::Reserve(error) => error.fmt(f),
            Self::Twice => f.write_str("the ledger exists already"),
        }
    }
}

impl core::error::Error for LedgerError {}

/// Counts all RAM into the ledger, less firmware's reservations and the hypervisor's own parts:
/// image, device tree, bundle, and the ledger's metadata, which this carves out of RAM.
///
/// RAM must be mapped. To be called once.
///
/// # Errors
///
/// See [`LedgerError`].
pub fn start_ledger(
    machine: &Machine<'_>,
    image: PhysRange,
    tree: PhysRange,
    bundle: Option<PhysRange>,
) -> Result<&'static Ledger<'static>, LedgerError> {
    if LEDGER.is_completed() {
        return Err(LedgerError::Twice);
    }
    let limit = machine.board.delegable_limit.unwrap_or(PhysAddr::new(u64::MAX));
    let words = Ledger::metadata_words(&machine.memory, limit).map_err(LedgerError::Layout)?;
    let bytes = (words * size_of::<u32>()) as u64;
    let bundle = bundle.unwrap_or(PhysRange::new(image.end, image.end));
    let reserved = machine.reserved.iter().map(|r| r.range);
    let holes = sorted(reserved.chain([image, tree, bundle]));
    let metadata =
        place_metadata(machine, &holes, image.end, bytes).ok_or(LedgerError::NoRoom { bytes })?;
    // SAFETY: the range is mapped RAM that is neither part of the image nor reserved, and the
    // ledger does not exist yet, so nobody else has been given it.
    let words = unsafe { alloc::words(metadata, words) };
    let ledger = Ledger::new(&machine.memory, limit, words).map_err(LedgerError::Layout)?;
    let parts = [
        (image, Use::Image),
        (tree, Use::DeviceTree),
        (bundle, Use::Bundle),
        (metadata, Use::Metadata),
    ];
    let firmware = machine.reserved.iter().map(|r| (r.range, Use::Firmware));
    for (range, used_for) in parts.into_iter().chain(firmware) {
        ledger.reserve(range, used_for).map_err(LedgerError::Reserve)?;
    }
    OWN.call_once(|| Own { ranges: parts.map(|(range, _)| range).into_iter().collect() });
    Ok(LEDGER.call_once(|| ledger))
}

/// Whole pages for the metadata: behind the image if possible, so as not to break up large blocks.
fn place_metadata(
    machine: &Machine<'_>,
    holes: &[PhysRange],
    image_end: PhysAddr,
    bytes: u64,
) -> Option<PhysRange> {
    let fits = |part: PhysRange| {
        let end = part.start.checked_add(bytes)?.align_up(mm::PAGE_SIZE)?;
        (end <= part.end).then_some(PhysRange::new(part.start, end))
    };
    let parts = || machine.memory.iter().flat_map(|&ram| subtract(ram, holes));
    parts().filter(|part| part.start >= image_end).find_map(fits).or_else(|| parts().find_map(fits))
}

/// The ledger.
///
/// # Panics
///
/// Before boot has made it.
pub fn ledger() -> &'static Ledger<'static> {
    LEDGER.get().expect("the ledger exists from boot on")
}

/// Takes memory from the ledger. If there is none, the granules that are kept delegated for the next
/// realm are given back first.
///
/// # Errors
///
/// There is no memory even so.
pub fn alloc(order: u8, used_for: Use, owner: Owner) -> Result<Frames<Undelegated>, OutOfMemory> {
    let alloc = || ledger().alloc(order, used_for, owner);
    alloc().or_else(|error| match crate::vm::realm::rmm() {
        Ok(rmm) => rmm.with_pool_as_reserve(alloc),
        Err(_) => Err(error),
    })
}

/// Whether the hypervisor keeps something of its own in this range: image, ledger, device tree or
/// bundle. Before the ledger exists, everything is its own.
#[must_use]
pub fn is_own(start: PhysAddr, bytes: u64) -> bool {
    let end = start.get().saturating_add(bytes);
    OWN.get().is_none_or(|own| {
        own.ranges.iter().any(|range| start < range.end && range.start.get() < end)
    })
}
