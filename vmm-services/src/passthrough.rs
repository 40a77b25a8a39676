//! Devices of the machine that a VM gets as they are: what may be given away.
//!
//! Stage-2 gives a VM whole pages of registers, at the addresses that they have on the machine. So a device is
//! given away only if the machine's device tree knows it and nothing else lies in its pages, and
//! only if it cannot reach memory by itself: there is no driver for an SMMU.

use crate::machine::{Device, MachineTree, Region, Untranslated};
use core::fmt;
use mm::PAGE_SIZE;

/// Most devices of the machine that one VM can have.
pub const MAX_PASSTHROUGH: usize = 4;

/// A device of the machine, as a bundle asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passthrough<'a> {
    /// First byte of its registers, at the beginning of a page.
    pub base: u64,
    /// Bytes of registers.
    pub size: u64,
    /// Its interrupt, a shared one, if the VM is to have it. The VM sees it under the same number.
    pub intid: Option<u32>,
    /// `compatible` in the VM's device tree: strings that end in NUL each.
    pub compatible: &'a [u8],
}

impl Passthrough<'_> {
    /// Whether it is one of Arm's PrimeCells, whose drivers ask for a clock.
    #[must_use]
    pub fn is_primecell(&self) -> bool {
        self.compatible.split(|&byte| byte == 0).any(|name| name == b"arm,primecell")
    }

    /// The whole pages that its registers lie in.
    #[must_use]
    pub fn pages(&self) -> Region {
        let size = self.size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX - self.base);
        Region { base: self.base, size }
    }
}

/// How the device's interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By a level.
    Level,
    /// By an edge.
    Edge,
}

/// Why a device is not given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// The range begins or ends inside a page, or leaves the address space.
    Range,
    /// It is, or reaches into, memory: RAM, or what firmware reserves.
    Memory,
    /// It is, or reaches into, the interrupt controller.
    InterruptController,
    /// It is, or reaches into, the hypervisor's console.
    Console,
    /// No node of the device tree has registers there.
    NotInTree,
    /// A node with these numbers is there, but on a bus of which it is not known where it lies.
    Untranslated(&'a str, Untranslated<'a>),
    /// The node, or a bus above it, is disabled: it does not exist, or belongs to the secure world.
    Disabled(&'a str),
    /// The registers of another node lie in the same pages.
    Shared(&'a str),
    /// The node says that the device accesses memory.
    Dma(&'a str),
    /// The interrupt is not one of the node's.
    Interrupt(u32),
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range => f.write_str("its registers are not whole pages"),
            Self::Memory => f.write_str("it overlaps memory"),
            Self::InterruptController => f.write_str("it overlaps the interrupt controller"),
            Self::Console => f.write_str("it overlaps the hypervisor's console"),
            Self::NotInTree => f.write_str("the machine's device tree has no device there"),
            Self::Untranslated(node, error) => write!(f, "{node} cannot be found: {error}"),
            Self::Disabled(node) => write!(f, "{node} is disabled in the machine's device tree"),
            Self::Shared(node) => write!(f, "{node} has registers in the same pages"),
            Self::Dma(node) => write!(f, "{node} accesses memory, and there is no SMMU driver"),
            Self::Interrupt(intid) => write!(f, "interrupt {intid} is not one of the device's"),
        }
    }
}

impl core::error::Error for Refusal<'_> {}

/// Properties that only devices with access to memory have.
const DMA_PROPERTIES: [&str; 6] =
    ["dma-coherent", "dma-ranges", "dmas", "iommus", "iommu-map", "memory-region"];
/// Devices that access memory although their nodes need not say so.
const DMA_DEVICES: [&str; 3] = ["virtio,mmio", "pci-host-ecam-generic", "qemu,fw-cfg-mmio"];

fn overlaps(a: Region, b: Region) -> bool {
    a.base < b.end() && b.base < a.end()
}

/// Checks whether `device` may be given to a VM; how its interrupt is signalled. `console` is the
/// pages of the UART that the hypervisor uses.
///
/// Whether another VM has it already is for the caller to know, and whether the guest's address
/// space has room there ([`crate::layout::is_free`]) was checked with the bundle.
///
/// # Errors
/// [`Refusal`].
pub fn check<'a>(
    tree: &MachineTree<'a>,
    console: Region,
    device: &Passthrough<'_>,
) -> Result<Option<Trigger>, Refusal<'a>> {
    let pages = device.pages();
    let whole = device.base.is_multiple_of(PAGE_SIZE)
        && device.size > 0
        && device.base.checked_add(pages.size).is_some();
    if !whole {
        return Err(Refusal::Range);
    }
    let hits = |region: &Region| overlaps(*region, pages);
    let memory = tree.memory().map_err(|_| Refusal::Memory)?;
    let reserved = tree.reserved().map_err(|_| Refusal::Memory)?;
    if memory.iter().any(hits) || reserved.iter().any(|r| hits(&r.region)) {
        return Err(Refusal::Memory);
    }
    let gic = tree.gicv3().map_err(|_| Refusal::InterruptController)?;
    if hits(&gic.distributor) || gic.redistributors.iter().any(hits) {
        return Err(Refusal::InterruptController);
    }
    if hits(&console) {
        return Err(Refusal::Console);
    }
    let own = own_node(tree, device)?;
    let node = own.node();
    if !own.is_enabled() {
        return Err(Refusal::Disabled(node.name()));
    }
    let says_so = |name: &&str| node.property(name).is_some();
    let is_known = |name: &&str| node.is_compatible(name);
    if DMA_PROPERTIES.iter().any(says_so) || DMA_DEVICES.iter().any(is_known) {
        return Err(Refusal::Dma(node.name()));
    }
    let Some(intid) = device.intid else { return Ok(None) };
    let mut interrupts = (0..).map_while(|index| tree.interrupt(&own, index));
    let flags = interrupts.find(|(number, _)| *number == intid).map(|(_, flags)| flags);
    // Interrupt specifier flags 1 and 2: edges.
    match flags {
        Some(flags) if flags & 0b11 != 0 => Ok(Some(Trigger::Edge)),
        Some(_) => Ok(Some(Trigger::Level)),
        None => Err(Refusal::Interrupt(intid)),
    }
}

/// The node whose registers `device` asks for; no other may have registers in its pages, except for
/// the buses above it: those say which addresses are behind them.
fn own_node<'a>(
    tree: &MachineTree<'a>,
    device: &Passthrough<'_>,
) -> Result<Device<'a>, Refusal<'a>> {
    let wanted = Region { base: device.base, size: device.size };
    let own = tree.devices().find(|other| other.regions().any(|region| region == Ok(wanted)));
    let own = own.ok_or_else(|| not_found(tree, device))?;
    for other in tree.devices() {
        let is_own = other.node() == own.node();
        if own.is_below(other.node()) && other.node().is_compatible("simple-bus") {
            continue;
        }
        // Where the registers of others cannot be found, no processor can reach them either.
        for region in other.regions().flatten() {
            if overlaps(region, device.pages()) && !(is_own && region == wanted) {
                return Err(Refusal::Shared(other.node().name()));
            }
        }
    }
    Ok(own)
}

/// Why no node has the registers that `device` asks for.
fn not_found<'a>(tree: &MachineTree<'a>, device: &Passthrough<'_>) -> Refusal<'a> {
    let untranslated = tree.devices().find_map(|other| {
        let at = other.node().reg().position(|reg| reg == (device.base, device.size))?;
        let error = other.regions().nth(at)?.err()?;
        Some(Refusal::Untranslated(other.node().name(), error))
    });
    let in_the_way = tree.devices().find(|other| {
        let mut regions = other.regions().flatten();
        regions.any(|region| overlaps(region, device.pages()))
    });
    let shared = in_the_way.map(|other| Refusal::Shared(other.node().name()));
    untranslated.or(shared).unwrap_or(Refusal::NotInTree)
}

#[cfg(test)]
mod tests;
