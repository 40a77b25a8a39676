//! What the hypervisor wants to know from the machine's device tree.

use crate::fdt::{Fdt, FdtError, Node};
use arrayvec::ArrayVec;
use core::fmt;

mod device;
mod uart;

pub use device::{Device, Untranslated};
pub use ns16550::Layout as Ns16550Layout;
pub use uart::{TreeConsole, Uart, UartModel, Unusable};

/// Largest tree that is looked at, in bytes: the limit of the arm64 boot protocol.
pub const MAX_TREE: usize = 2 << 20;
/// Most memory ranges.
pub const MAX_MEMORY: usize = 16;
/// Most reserved ranges.
pub const MAX_RESERVED: usize = 32;
/// Most processors.
pub const MAX_CPUS: usize = 64;
/// Most redistributor regions of a GIC.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 8;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Length in bytes; the end does not overflow.
    pub size: u64,
}

impl Region {
    fn new((base, size): (u64, u64)) -> Option<Self> {
        base.checked_add(size)?;
        Some(Self { base, size })
    }

    /// First byte behind the range.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// A range of memory that somebody else owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The range.
    pub region: Region,
    /// Whether it must not even be mapped.
    pub no_map: bool,
}

/// How a processor is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enable {
    /// PSCI CPU_ON.
    Psci,
    /// It polls this physical address for an entry point.
    SpinTable {
        /// Address of the 64-bit entry point.
        release: u64,
    },
    /// In no way that is known here.
    None,
}

/// One processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Affinity fields of its MPIDR_EL1.
    pub mpidr: u64,
    /// How it is started.
    pub enable: Enable,
}

/// The instruction that calls firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC.
    Smc,
    /// HVC.
    Hvc,
}

/// A GICv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// Distributor.
    pub distributor: Region,
    /// Redistributor regions, each with one or more redistributors.
    pub redistributors: ArrayVec<Region, MAX_REDISTRIBUTOR_REGIONS>,
    /// Maintenance interrupt of the virtual CPU interface, as INTID.
    pub maintenance: Option<u32>,
}

/// Interrupts of the generic timer, as INTIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Secure EL1 physical timer.
    pub secure: Option<u32>,
    /// Non-secure EL1 physical timer.
    pub physical: Option<u32>,
    /// Virtual timer.
    pub virt: Option<u32>,
    /// Non-secure EL2 physical timer.
    pub hypervisor: Option<u32>,
}

/// Why the machine's tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// Not a well-formed tree.
    Format(FdtError),
    /// Longer than [`MAX_TREE`].
    TooLong,
    /// A node or property that is needed is missing or malformed.
    Missing(&'static str),
    /// This device lies below a bus whose `ranges` do not say where.
    Untranslated(&'static str),
    /// There are more of these than fit.
    TooMany(&'static str),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::TooLong => write!(f, "device tree is longer than {MAX_TREE} bytes"),
            Self::Missing(what) => write!(f, "device tree has no usable {what}"),
            Self::Untranslated(what) => {
                write!(f, "device tree has {what} below a bus whose ranges do not say where")
            }
            Self::TooMany(what) => write!(f, "device tree has too many entries of {what}"),
        }
    }
}

impl core::error::Error for TreeError {}

impl From<FdtError> for TreeError {
    fn from(error: FdtError) -> Self {
        Self::Format(error)
    }
}

/// Size in bytes of the tree whose first 40 bytes are in `header`.
///
/// # Errors
/// [`TreeError`] when it is no tree, or one that is too long.
pub fn tree_size(header: &[u8]) -> Result<usize, TreeError> {
    let size = crate::fdt::total_size(header)?;
    if size > MAX_TREE { Err(TreeError::TooLong) } else { Ok(size) }
}

/// The machine's device tree.
#[derive(Clone, Copy)]
pub struct MachineTree<'a> {
    fdt: Fdt<'a>,
    /// Cells of an interrupt specifier: as the node of the GIC says, otherwise three.
    specifier_cells: usize,
    /// `phandle` of the GIC, if it has one.
    gic: Option<u32>,
}

impl<'a> MachineTree<'a> {
    /// Checks the tree at the start of `bytes`.
    ///
    /// # Errors
    /// [`TreeError::Format`] when it is malformed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TreeError> {
        let mut tree = Self { fdt: Fdt::new(bytes)?, specifier_cells: 3, gic: None };
        let gics = ["arm,gic-v3", "arm,gic-400", "arm,cortex-a15-gic"];
        let gic = gics.iter().find_map(|name| tree.find_compatible(name));
        let number = |name| gic.as_ref()?.node().property(name)?.u32();
        if let Some(width) = number("#interrupt-cells") {
            tree.specifier_cells = width.clamp(3, 4) as usize;
        }
        tree.gic = number("phandle");
        Ok(tree)
    }

    /// The tree itself, for what boards need beyond this module.
    #[must_use]
    pub fn fdt(&self) -> Fdt<'a> {
        self.fdt
    }

    /// RAM that the normal world may use, before reservations.
    ///
    /// # Errors
    /// [`TreeError`] when there is none, or too much to count.
    pub fn memory(&self) -> Result<ArrayVec<Region, MAX_MEMORY>, TreeError> {
        let is_memory = |n: &Node<'_>| {
            n.property("device_type").and_then(|p| p.str()) == Some("memory") && n.is_enabled()
        };
        let mut found = ArrayVec::new();
        let ranges = self.fdt.root().children().filter(is_memory).flat_map(|n| n.reg());
        for region in ranges.filter_map(Region::new).filter(|r| r.size > 0) {
            found.try_push(region).map_err(|_| TreeError::TooMany("memory"))?;
        }
        if found.is_empty() { Err(TreeError::Missing("memory")) } else { Ok(found) }
    }

    /// Ranges that firmware or others keep: the reservation block and `/reserved-memory`.
    ///
    /// Nodes without a fixed address, which ask for an allocation, are left out.
    ///
    /// # Errors
    /// [`TreeError::TooMany`].
    pub fn reserved(&self) -> Result<ArrayVec<Reservation, MAX_RESERVED>, TreeError> {
        let block = self.fdt.reservations().map(|range| (range, false));
        let nodes = self.fdt.find("/reserved-memory").into_iter().flat_map(|n| n.children());
        let fixed = nodes.filter(Node::is_enabled).flat_map(|n| {
            let no_map = n.property("no-map").is_some();
            n.reg().map(move |range| (range, no_map))
        });
        let mut found = ArrayVec::new();
        for (range, no_map) in block.chain(fixed) {
            let Some(region) = Region::new(range).filter(|r| r.size > 0) else { continue };
            found
                .try_push(Reservation { region, no_map })
                .map_err(|_| TreeError::TooMany("reserved-memory"))?;
        }
        Ok(found)
    }

    /// The initial RAM disk, which for us is the bundle.
    ///
    /// # Errors
    /// [`TreeError::Missing`] when the properties are there but make no range.
    pub fn initrd(&self) -> Result<Option<Region>, TreeError> {
        let Some(chosen) = self.fdt.find("/chosen") else { return Ok(None) };
        let bound = |name| chosen.property(name).map(|p| p.number());
        match (bound("linux,initrd-start"), bound("linux,initrd-end")) {
            (None, None) => Ok(None),
            (Some(Some(start)), Some(Some(end))) if start < end => {
                Ok(Some(Region { base: start, size: end - start }))
            }
            _ => Err(TreeError::Missing("/chosen linux,initrd-start and linux,initrd-end")),
        }
    }

    /// The command line.
    #[must_use]
    pub fn bootargs(&self) -> Option<&'a str> {
        self.fdt.find("/chosen")?.property("bootargs")?.str()
    }

    /// The processors.
    ///
    /// # Errors
    /// [`TreeError`] when there are none, or too many.
    pub fn cpus(&self) -> Result<ArrayVec<Cpu, MAX_CPUS>, TreeError> {
        let node = self.fdt.find("/cpus").ok_or(TreeError::Missing("/cpus"))?;
        let mut found = ArrayVec::new();
        // `status = "disabled"` means: not running yet, and to be started by `enable-method`.
        for cpu in node.children().filter(|n| n.base_name() == "cpu") {
            let Some((mpidr, _)) = cpu.reg().next() else { continue };
            let enable = enable_method(&cpu);
            found.try_push(Cpu { mpidr, enable }).map_err(|_| TreeError::TooMany("/cpus"))?;
        }
        if found.is_empty() { Err(TreeError::Missing("/cpus/cpu")) } else { Ok(found) }
    }

    /// How firmware's PSCI is called, if there is PSCI 0.2 or later.
    #[must_use]
    pub fn psci(&self) -> Option<Conduit> {
        let node = self
            .fdt
            .find("/psci")
            .filter(Node::is_enabled)
            .or_else(|| self.find_compatible("arm,psci-1.0").map(|device| *device.node()))?;
        let versions = ["arm,psci-1.0", "arm,psci-0.2"];
        if !versions.iter().any(|v| node.is_compatible(v)) {
            return None;
        }
        match node.property("method")?.str()? {
            "smc" => Some(Conduit::Smc),
            "hvc" => Some(Conduit::Hvc),
            _ => None,
        }
    }

    /// The interrupt controller, a GICv3 or later.
    ///
    /// # Errors
    /// [`TreeError`] when there is none or its node is malformed.
    pub fn gicv3(&self) -> Result<GicV3, TreeError> {
        const WHAT: &str = "arm,gic-v3";
        let device = self.find_compatible(WHAT).ok_or(TreeError::Missing(WHAT))?;
        let mut regions = device.regions();
        let distributor = regions.next().ok_or(TreeError::Missing("distributor"))?;
        let distributor = distributor.map_err(|_| TreeError::Untranslated(WHAT))?;
        let count = device.node().property("#redistributor-regions").and_then(|p| p.u32());
        let mut redistributors = ArrayVec::new();
        for region in regions.take(count.unwrap_or(1) as usize) {
            let region = region.map_err(|_| TreeError::Untranslated(WHAT))?;
            redistributors
                .try_push(region)
                .map_err(|_| TreeError::TooMany("redistributor regions"))?;
        }
        if redistributors.is_empty() {
            return Err(TreeError::Missing("redistributor region"));
        }
        Ok(GicV3 { distributor, redistributors, maintenance: self.intid(&device, 0) })
    }

    /// Interrupts of the generic timer.
    #[must_use]
    pub fn timers(&self) -> Option<Timers> {
        let node = &self.find_compatible("arm,armv8-timer")?;
        Some(Timers {
            secure: self.intid(node, 0),
            physical: self.intid(node, 1),
            virt: self.intid(node, 2),
            hypervisor: self.intid(node, 3),
        })
    }

    /// Interrupt number `index` of `device`, as INTID, with the flags of its specifier.
    #[must_use]
    pub fn interrupt(&self, device: &Device<'a>, index: usize) -> Option<(u32, u32)> {
        let at = self.specifier_cells * index;
        let flags = device.node().property("interrupts")?.cells().nth(at + 2)?;
        Some((self.intid(device, index)?, flags))
    }

    /// All nodes, enabled or not, with the buses above them.
    pub fn devices(&self) -> impl Iterator<Item = Device<'a>> + use<'a> {
        self.fdt.nodes().filter_map(Device::new)
    }

    /// INTID of interrupt number `index` of `device`; `None` too if it goes to another interrupt
    /// controller than the GIC.
    fn intid(&self, device: &Device<'a>, index: usize) -> Option<u32> {
        if let (Some(parent), Some(gic)) = (device.interrupt_parent(), self.gic)
            && parent != gic
        {
            return None;
        }
        intid(device.node(), self.specifier_cells, index)
    }

    /// The first enabled node compatible with `wanted`.
    fn find_compatible(&self, wanted: &str) -> Option<Device<'a>> {
        self.devices().find(|device| device.node().is_compatible(wanted) && device.is_enabled())
    }
}

fn enable_method(cpu: &Node<'_>) -> Enable {
    match cpu.property("enable-method").and_then(|p| p.str()) {
        Some("psci") => Enable::Psci,
        Some("spin-table") => match cpu.property("cpu-release-addr").and_then(|p| p.number()) {
            Some(release) => Enable::SpinTable { release },
            None => Enable::None,
        },
        _ => Enable::None,
    }
}

/// INTID of the node's interrupt number `index`, for a GIC whose specifiers have `width` cells.
fn intid(node: &Node<'_>, width: usize, index: usize) -> Option<u32> {
    let mut specifier = node.property("interrupts")?.cells().skip(width * index);
    match (specifier.next()?, specifier.next()?) {
        (0, n) => n.checked_add(32),
        (1, n) => n.checked_add(16),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
