//! Reading a machine's flattened device tree.
//!
//! Only what the hypervisor itself drives is read: memory, cores, interrupt controller, timer
//! interrupts, PSCI, the console and `/chosen`. A tree is input like any other: what is missing or
//! malformed is an error that names the node.

use crate::{Board, select};
use arrayvec::ArrayVec;
use core::fmt;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard, Status};
use dtoolkit::{Node, Property};
use mm::PhysAddr;

/// Most cores that are read from the tree; further ones stay off.
pub const MAX_CPUS: usize = 8;
const MAX_MEMORY: usize = 16;
const MAX_RESERVED: usize = 32;
const MAX_REDISTRIBUTOR_REGIONS: usize = 4;

/// `compatible` of the one UART that there is a driver for.
pub const CONSOLE_COMPATIBLE: &str = "arm,pl011";

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
}

impl Range {
    /// A range of `bytes` bytes from `start`, or `None` if it has no end below 2^64.
    #[must_use]
    pub fn new(start: u64, bytes: u64) -> Option<Self> {
        start.checked_add(bytes)?;
        Some(Self { start: PhysAddr::new(start), bytes })
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(&self) -> PhysAddr {
        PhysAddr::new(self.start.get() + self.bytes)
    }

    /// Whether the two ranges have a byte in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.bytes != 0 && other.bytes != 0 && self.start < other.end() && other.start < self.end()
    }

    /// Whether `addr` lies in the range.
    #[must_use]
    pub fn contains(&self, addr: PhysAddr) -> bool {
        self.start <= addr && addr < self.end()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

/// Memory that firmware keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where.
    pub range: Range,
    /// Whether it must not even be mapped (`no-map`), so that not even speculation touches it.
    pub no_map: bool,
}

/// A core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of its `MPIDR_EL1`.
    pub mpidr: u64,
    /// Whether PSCI starts it.
    pub psci: bool,
}

/// The interrupt controller: a GICv3 or later with its affinity routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// Distributor registers.
    pub distributor: Range,
    /// Regions of redistributor frames.
    pub redistributors: ArrayVec<Range, MAX_REDISTRIBUTOR_REGIONS>,
}

/// Interrupt IDs (16 to 31) of per-core interrupts.
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

impl Default for PpiIds {
    /// The assignments of the Base System Architecture.
    fn default() -> Self {
        Self { maintenance: 25, hyp_timer: 26, virtual_timer: 27, physical_timer: 30 }
    }
}

/// How firmware wants to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC: firmware at EL3, or an emulator that plays it.
    Smc,
    /// HVC: firmware at EL2, which leaves no room for a hypervisor.
    Hvc,
}

/// What a device tree says about the machine.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// The board module that goes with it.
    pub board: &'static Board,
    /// First string of the root node's `compatible`.
    pub compatible: &'a str,
    /// RAM that the normal world may use, apart from [`Self::reserved`].
    pub memory: ArrayVec<Range, MAX_MEMORY>,
    /// Reservations, inside RAM or not.
    pub reserved: ArrayVec<Reserved, MAX_RESERVED>,
    /// Cores that are not disabled, in the order of the tree; at most [`MAX_CPUS`].
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// Cores of the tree beyond [`MAX_CPUS`].
    pub cpus_left_out: usize,
    /// The interrupt controller.
    pub gic: Gic,
    /// Per-core interrupts.
    pub ppis: PpiIds,
    /// PSCI, if there is any.
    pub psci: Option<Conduit>,
    /// The console, if it is a PL011: from `/chosen/stdout-path` or from the board.
    pub console: Option<PhysAddr>,
    /// The initial RAM disk of `/chosen`, which carries the bundle.
    pub initrd: Option<Range>,
    /// The command line of `/chosen`.
    pub bootargs: &'a str,
}

/// Why a device tree is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// A node or property that must be there is not.
    Missing(&'static str),
    /// A property does not have the form that its specification gives it.
    Malformed(&'static str),
    /// There is more of something than there is room for.
    TooMany(&'static str),
    /// The interrupt controller is not a GICv3 or later.
    NoGicV3,
    /// PSCI is to be called by HVC.
    PsciByHvc,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "device tree lacks {what}"),
            Self::Malformed(what) => write!(f, "device tree has a malformed {what}"),
            Self::TooMany(what) => write!(f, "device tree has too many {what}"),
            Self::NoGicV3 => f.write_str("the interrupt controller is not a GICv3 or later"),
            Self::PsciByHvc => f.write_str("PSCI is reached by HVC: firmware occupies EL2"),
        }
    }
}

impl core::error::Error for MachineError {}

impl<'a> Machine<'a> {
    /// Reads the machine from its tree.
    ///
    /// # Errors
    ///
    /// What is missing or malformed.
    pub fn read(fdt: &Fdt<'a>) -> Result<Self, MachineError> {
        let root = fdt.root();
        let board = select(strings(&root));
        let psci = psci(&root)?;
        let (cpus, cpus_left_out) = cpus(&root)?;
        let chosen = root.child("chosen");
        Ok(Self {
            board,
            compatible: strings(&root).next().unwrap_or("unknown"),
            memory: memory(&root)?,
            reserved: reserved(fdt, &root, board)?,
            cpus,
            cpus_left_out,
            gic: gic(&root)?,
            ppis: ppis(&root),
            psci,
            console: stdout(fdt, chosen.as_ref()).or(board.console),
            initrd: initrd(chosen.as_ref())?,
            bootargs: chosen
                .and_then(|node| node.property("bootargs"))
                .and_then(|property| property.value_as().ok())
                .unwrap_or(""),
        })
    }
}

/// The strings of a node's `compatible`.
fn strings<'a>(node: &FdtNode<'a>) -> impl Iterator<Item = &'a str> + 'a {
    node.compatible().into_iter().flatten()
}

fn is_enabled(node: &FdtNode<'_>) -> bool {
    matches!(node.status(), Ok(Status::Okay))
}

/// The ranges of a node's `reg`.
fn regs<'a>(
    node: &FdtNode<'a>,
    what: &'static str,
) -> Result<impl Iterator<Item = Result<Range, MachineError>> + 'a, MachineError> {
    let regs = node.reg().map_err(|_| MachineError::Malformed(what))?;
    Ok(regs.into_iter().flatten().map(move |reg| {
        let start = reg.address::<u64>().map_err(|_| MachineError::Malformed(what))?;
        let bytes = reg.size::<u64>().map_err(|_| MachineError::Malformed(what))?;
        Range::new(start, bytes).ok_or(MachineError::Malformed(what))
    }))
}

fn memory(root: &FdtNode<'_>) -> Result<ArrayVec<Range, MAX_MEMORY>, MachineError> {
    let mut memory = ArrayVec::new();
    for node in root.children() {
        let is_memory = node
            .property("device_type")
            .and_then(|property| property.value_as::<&str>().ok())
            .is_some_and(|device_type| device_type == "memory");
        // Secure memory is in the tree too, with `status` disabled and `secure-status` okay.
        if !is_memory || !is_enabled(&node) {
            continue;
        }
        for range in regs(&node, "memory reg")? {
            let range = range?;
            if range.bytes != 0 {
                memory.try_push(range).map_err(|_| MachineError::TooMany("memory ranges"))?;
            }
        }
    }
    if memory.is_empty() {
        return Err(MachineError::Missing("memory"));
    }
    memory.sort_unstable_by_key(|range| range.start);
    Ok(memory)
}

fn reserved(
    fdt: &Fdt<'_>,
    root: &FdtNode<'_>,
    board: &Board,
) -> Result<ArrayVec<Reserved, MAX_RESERVED>, MachineError> {
    let too_many = |_| MachineError::TooMany("reservations");
    let mut reserved = ArrayVec::new();
    for &range in board.secure_memory {
        reserved.try_push(Reserved { range, no_map: true }).map_err(too_many)?;
    }
    for entry in fdt.memory_reservations() {
        let range = Range::new(entry.address(), entry.size())
            .ok_or(MachineError::Malformed("memory reservation block"))?;
        reserved.try_push(Reserved { range, no_map: false }).map_err(too_many)?;
    }
    let Some(parent) = root.child("reserved-memory") else { return Ok(reserved) };
    for node in parent.children().filter(is_enabled) {
        // A node with `size` and no `reg` asks the OS to choose a place: nothing is there yet.
        let no_map = node.property("no-map").is_some();
        for range in regs(&node, "reserved-memory reg")? {
            reserved.try_push(Reserved { range: range?, no_map }).map_err(too_many)?;
        }
    }
    Ok(reserved)
}

fn cpus(root: &FdtNode<'_>) -> Result<(ArrayVec<Cpu, MAX_CPUS>, usize), MachineError> {
    let parent = root.child("cpus").ok_or(MachineError::Missing("/cpus"))?;
    let mut cpus = ArrayVec::new();
    let mut left_out = 0;
    for node in parent.children() {
        // `status` of a core that is off until PSCI starts it is okay or disabled; with an
        // enable-method, disabled means exactly that (Devicetree Specification, 3.8.1).
        let psci = node
            .property("enable-method")
            .and_then(|property| property.value_as::<&str>().ok())
            .is_some_and(|method| method == "psci");
        if node.name_without_address() != "cpu" || !(is_enabled(&node) || psci) {
            continue;
        }
        // `#size-cells` of /cpus is 0, so `reg` is the affinity alone.
        let mpidr =
            regs(&node, "cpu reg")?.next().ok_or(MachineError::Missing("cpu reg"))??.start.get();
        if cpus.try_push(Cpu { mpidr, psci }).is_err() {
            left_out += 1;
        }
    }
    if cpus.is_empty() {
        return Err(MachineError::Missing("cpu nodes"));
    }
    Ok((cpus, left_out))
}

/// Finds the first enabled node with one of `names` in its `compatible`, at the top level or on a
/// bus below it.
fn find_compatible<'a>(node: &FdtNode<'a>, names: &[&str], depth: usize) -> Option<FdtNode<'a>> {
    for child in node.children() {
        if is_enabled(&child) && strings(&child).any(|name| names.contains(&name)) {
            return Some(child);
        }
        if depth > 0
            && let Some(found) = find_compatible(&child, names, depth - 1)
        {
            return Some(found);
        }
    }
    None
}

fn gic_node<'a>(root: &FdtNode<'a>) -> Option<FdtNode<'a>> {
    find_compatible(root, &["arm,gic-v3"], 2)
}

fn gic(root: &FdtNode<'_>) -> Result<Gic, MachineError> {
    let node = gic_node(root).ok_or(MachineError::NoGicV3)?;
    let regions = match node.property("#redistributor-regions") {
        Some(property) => property
            .value_as::<u32>()
            .map_err(|_| MachineError::Malformed("#redistributor-regions"))?,
        None => 1,
    };
    let mut regs = regs(&node, "interrupt controller reg")?;
    let distributor = regs.next().ok_or(MachineError::Missing("distributor reg"))??;
    let mut redistributors = ArrayVec::new();
    for _ in 0..regions {
        let region = regs.next().ok_or(MachineError::Missing("redistributor reg"))??;
        redistributors
            .try_push(region)
            .map_err(|_| MachineError::TooMany("redistributor regions"))?;
    }
    Ok(Gic { distributor, redistributors })
}

/// The interrupt ID of entry `index` of a node's `interrupts`, if it is a PPI of a GIC.
fn ppi(node: &FdtNode<'_>, index: usize, cells: usize) -> Option<u32> {
    let property = node.property("interrupts")?;
    let entry = property.value().chunks_exact(cells.checked_mul(4)?).nth(index)?;
    let cell = |n: usize| {
        let bytes = entry.get(n * 4..n * 4 + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    // First cell: 1 for a PPI; second cell: its number from 0.
    match (cell(0)?, cell(1)?) {
        (1, number @ 0..=15) => Some(16 + number),
        _ => None,
    }
}

fn ppis(root: &FdtNode<'_>) -> PpiIds {
    let mut ids = PpiIds::default();
    let Some(gic) = gic_node(root) else { return ids };
    let cells = gic
        .property("#interrupt-cells")
        .and_then(|property| property.value_as::<u32>().ok())
        .map_or(3, |cells| cells as usize);
    if cells < 3 {
        return ids;
    }
    if let Some(id) = ppi(&gic, 0, cells) {
        ids.maintenance = id;
    }
    if let Some(timer) = find_compatible(root, &["arm,armv8-timer"], 1) {
        // Order of the binding: secure, non-secure, virtual, hypervisor.
        for (index, id) in
            [(1, &mut ids.physical_timer), (2, &mut ids.virtual_timer), (3, &mut ids.hyp_timer)]
        {
            if let Some(read) = ppi(&timer, index, cells) {
                *id = read;
            }
        }
    }
    ids
}

fn psci(root: &FdtNode<'_>) -> Result<Option<Conduit>, MachineError> {
    let Some(node) = find_compatible(root, &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"], 1) else {
        return Ok(None);
    };
    match node.property("method").and_then(|property| property.value_as::<&str>().ok()) {
        Some("smc") => Ok(Some(Conduit::Smc)),
        Some("hvc") => Err(MachineError::PsciByHvc),
        _ => Err(MachineError::Malformed("psci method")),
    }
}

/// The PL011 that `/chosen/stdout-path` names, directly or by an alias.
fn stdout(fdt: &Fdt<'_>, chosen: Option<&FdtNode<'_>>) -> Option<PhysAddr> {
    let property = chosen?.property("stdout-path")?;
    let path = property.value_as::<&str>().ok()?;
    // Options such as `:115200n8` may follow the path.
    let path = path.split(':').next()?;
    let node = if path.starts_with('/') {
        fdt.find_node(path)?
    } else {
        let alias = fdt.find_node("/aliases")?.property(path)?;
        fdt.find_node(alias.value_as::<&str>().ok()?)?
    };
    if !is_enabled(&node) || !strings(&node).any(|name| name == CONSOLE_COMPATIBLE) {
        return None;
    }
    let range = regs(&node, "console reg").ok()?.next()?.ok()?;
    Some(range.start)
}

fn initrd(chosen: Option<&FdtNode<'_>>) -> Result<Option<Range>, MachineError> {
    const WHAT: MachineError = MachineError::Malformed("linux,initrd-start or -end");
    let address = |name| {
        let Some(property) = chosen.and_then(|node| node.property(name)) else {
            return Ok(None);
        };
        match *property.value() {
            [a, b, c, d] => Ok(Some(u64::from(u32::from_be_bytes([a, b, c, d])))),
            [a, b, c, d, e, f, g, h] => Ok(Some(u64::from_be_bytes([a, b, c, d, e, f, g, h]))),
            _ => Err(WHAT),
        }
    };
    let (Some(start), Some(end)) = (address("linux,initrd-start")?, address("linux,initrd-end")?)
    else {
        return Ok(None);
    };
    let bytes = end.checked_sub(start).ok_or(WHAT)?;
    Range::new(start, bytes).map(Some).ok_or(WHAT)
}
