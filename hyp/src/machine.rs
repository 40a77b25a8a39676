//! What the machine is: its device tree and its board module put together.

use crate::uart::Place;
use arrayvec::ArrayVec;
use boards::Board;
use core::fmt;
use mm::ledger::PhysRange;
use mm::{PAGE_SIZE, PhysAddr};
use vmm_services::machine::{
    Conduit, Cpu, GicV3, MAX_CPUS, MAX_MEMORY, MAX_RESERVED, MachineTree, Region, TreeConsole,
    TreeError, Unusable,
};

/// INTIDs (16 to 31) of the per-core interrupts that the hypervisor uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PpiIds {
    /// GIC maintenance interrupt.
    pub maintenance: u32,
    /// EL2 physical timer.
    pub hyp_timer: u32,
    /// EL1 virtual timer.
    pub virtual_timer: u32,
    /// EL1 physical timer, non-secure.
    pub physical_timer: u32,
}

/// Assignments of the Base System Architecture, for what the tree does not say.
pub const BSA_PPIS: PpiIds =
    PpiIds { maintenance: 25, hyp_timer: 26, virtual_timer: 27, physical_timer: 30 };

/// Memory that firmware keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where, in whole pages.
    pub range: PhysRange,
    /// Whether it must not even be mapped, so that not even speculation touches it.
    pub no_map: bool,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// The board module that goes with it.
    pub board: &'static Board,
    /// First string of the root node's `compatible`.
    pub compatible: &'a str,
    /// RAM of the normal world in whole pages, ascending and disjoint.
    pub memory: ArrayVec<PhysRange, MAX_MEMORY>,
    /// Reservations, inside RAM or not.
    pub reserved: ArrayVec<Reserved, MAX_RESERVED>,
    /// Cores in the order of the tree.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// The interrupt controller.
    pub gic: GicV3,
    /// Per-core interrupts.
    pub ppis: PpiIds,
    /// Where the boot loader put an initial RAM disk, which is the bundle.
    pub initrd: Option<PhysRange>,
    /// The command line.
    pub bootargs: &'a str,
}

/// Why the machine is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// The tree lacks something, or it is malformed.
    Tree(TreeError),
    /// Two ranges of RAM overlap.
    Overlap(PhysRange),
    /// PSCI is to be called by HVC: firmware occupies EL2.
    PsciByHvc,
    /// The tree or the board has more reservations than there is room for.
    TooManyReservations,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => error.fmt(f),
            Self::Overlap(range) => write!(f, "RAM at {range} is in the device tree twice"),
            Self::PsciByHvc => f.write_str("PSCI is reached by HVC: firmware occupies EL2"),
            Self::TooManyReservations => f.write_str("too many memory reservations"),
        }
    }
}

impl core::error::Error for MachineError {}

impl From<TreeError> for MachineError {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

/// The whole pages that `bytes` bytes from `start` touch; the end saturates.
#[must_use]
pub fn pages(start: u64, bytes: u64) -> PhysRange {
    let last = PhysAddr::new(u64::MAX).align_down(PAGE_SIZE);
    let end = PhysAddr::new(start.saturating_add(bytes)).align_up(PAGE_SIZE).unwrap_or(last);
    PhysRange::new(PhysAddr::new(start).align_down(PAGE_SIZE), end)
}

/// The whole pages that a region of the device tree touches.
#[must_use]
pub fn pages_of(region: &Region) -> PhysRange {
    pages(region.base, region.size)
}

/// The board module that goes with a tree.
fn board(tree: &MachineTree<'_>) -> &'static Board {
    let names = tree.fdt().root().property("compatible");
    boards::select(names.into_iter().flat_map(|names| names.strings()))
}

/// Where the console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Console<'a> {
    /// The UART.
    pub place: Place,
    /// INTID of its interrupt, if the tree says it; without, there is no input.
    pub intid: Option<u32>,
    /// What says so: the name of its node, or the board.
    pub said_by: &'a str,
    /// What the tree's `stdout-path` says, if it is not that UART, and why not.
    pub passed_over: Option<(&'a str, Unusable<'a>)>,
}

impl Console<'_> {
    /// The whole pages that its registers lie in.
    #[must_use]
    pub fn pages(&self) -> PhysRange {
        pages(self.place.registers.get(), self.place.model.bytes())
    }
}

/// The console: from the tree, else from the board. Needed first of all, so that what is wrong with
/// the rest of the tree can be said.
#[must_use]
pub fn console<'a>(tree: &MachineTree<'a>) -> Option<Console<'a>> {
    let board = board(tree);
    let TreeConsole { uart, passed_over } = tree.console();
    let (registers, model) = match &uart {
        Some(uart) => (PhysAddr::new(uart.region.base), uart.model),
        None => board.console?,
    };
    let place = Place { registers, model, clock_hz: board.console_clock_hz };
    let intid = uart.and_then(|uart| uart.intid);
    Some(Console { place, intid, said_by: uart.map_or(board.name, |uart| uart.name), passed_over })
}

impl<'a> Machine<'a> {
    /// Reads the machine from its tree.
    ///
    /// # Errors
    ///
    /// What is missing, malformed or not supported.
    pub fn read(tree: &MachineTree<'a>) -> Result<Self, MachineError> {
        let board = board(tree);
        let names = tree.fdt().root().property("compatible");
        let compatible = names.and_then(|names| names.strings().next()).unwrap_or("unknown");
        if tree.psci() == Some(Conduit::Hvc) {
            return Err(MachineError::PsciByHvc);
        }
        let gic = tree.gicv3()?;
        Ok(Self {
            board,
            compatible,
            memory: memory(tree)?,
            reserved: reserved(tree, board)?,
            cpus: tree.cpus()?,
            ppis: ppis(tree, gic.maintenance),
            gic,
            initrd: tree.initrd()?.map(|region| {
                PhysRange::new(PhysAddr::new(region.base), PhysAddr::new(region.end()))
            }),
            bootargs: tree.bootargs().unwrap_or(""),
        })
    }
}

fn memory(tree: &MachineTree<'_>) -> Result<ArrayVec<PhysRange, MAX_MEMORY>, MachineError> {
    let mut memory: ArrayVec<PhysRange, MAX_MEMORY> = ArrayVec::new();
    for region in tree.memory()? {
        // Whole pages inside, not those touched.
        let end = PhysAddr::new(region.end()).align_down(PAGE_SIZE);
        let Some(start) = PhysAddr::new(region.base).align_up(PAGE_SIZE) else { continue };
        if start < end {
            // As many as the tree gave, which is no more than there is room for.
            memory.push(PhysRange::new(start, end));
        }
    }
    memory.sort_unstable_by_key(|range| range.start);
    for (low, high) in memory.iter().zip(memory.iter().skip(1)) {
        if high.start < low.end {
            return Err(MachineError::Overlap(*high));
        }
    }
    Ok(memory)
}

fn reserved(
    tree: &MachineTree<'_>,
    board: &Board,
) -> Result<ArrayVec<Reserved, MAX_RESERVED>, MachineError> {
    let tree = tree.reserved()?;
    let tree = tree.iter().map(|r| Reserved { range: pages_of(&r.region), no_map: r.no_map });
    let board = board.secure_memory.iter().map(|&range| Reserved { range, no_map: true });
    let mut reserved = ArrayVec::new();
    for entry in tree.chain(board) {
        reserved.try_push(entry).map_err(|_| MachineError::TooManyReservations)?;
    }
    Ok(reserved)
}

fn ppis(tree: &MachineTree<'_>, maintenance: Option<u32>) -> PpiIds {
    let ppi = |intid: Option<u32>, otherwise| match intid {
        Some(intid @ 16..=31) => intid,
        _ => otherwise,
    };
    let timers = tree.timers();
    PpiIds {
        maintenance: ppi(maintenance, BSA_PPIS.maintenance),
        hyp_timer: ppi(timers.and_then(|t| t.hypervisor), BSA_PPIS.hyp_timer),
        virtual_timer: ppi(timers.and_then(|t| t.virt), BSA_PPIS.virtual_timer),
        physical_timer: ppi(timers.and_then(|t| t.physical), BSA_PPIS.physical_timer),
    }
}
