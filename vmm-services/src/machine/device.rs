//! Nodes of the machine's device tree with the buses above them: addresses as the processors see
//! them (Devicetree Specification v0.4, 2.3.6 and 2.3.8).

use super::Region;
use crate::fdt::{Node, Path};
use core::fmt;

/// A node, and what lies between it and the processors.
#[derive(Clone)]
pub struct Device<'a> {
    node: Node<'a>,
    /// Nodes above it, from the root on.
    above: Path<'a>,
}

/// The registers of a device have no known address: this bus has no `ranges`, or they do not cover
/// the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untranslated<'a> {
    /// Name of the bus's node.
    pub bus: &'a str,
}

impl fmt::Display for Untranslated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the ranges of {} do not say where its registers are", self.bus)
    }
}

impl core::error::Error for Untranslated<'_> {}

impl<'a> Device<'a> {
    /// The last node of `path`.
    pub(super) fn new(mut path: Path<'a>) -> Option<Self> {
        Some(Self { node: path.pop()?, above: path })
    }

    /// The node itself.
    #[must_use]
    pub fn node(&self) -> &Node<'a> {
        &self.node
    }

    /// Whether the node may be used, and with it all those above.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.node.is_enabled() && self.above.iter().all(Node::is_enabled)
    }

    /// Whether `node` is a bus above this device.
    #[must_use]
    pub fn is_below(&self, node: &Node<'a>) -> bool {
        self.above.contains(node)
    }

    /// The device's registers, as the processors address them.
    pub fn regions(&self) -> impl Iterator<Item = Result<Region, Untranslated<'a>>> {
        self.node.reg().map(|(base, size)| {
            // The root is no bus: its children have addresses of the processors.
            let buses = self.above.iter().skip(1).rev();
            let base = buses.into_iter().try_fold(base, |address, bus| {
                let untranslated = Untranslated { bus: bus.name() };
                bus.ranges().and_then(|r| r.translate(address, size)).ok_or(untranslated)
            })?;
            let bus = self.above.last().map_or("", Node::name);
            Region::new((base, size)).ok_or(Untranslated { bus })
        })
    }

    /// `phandle` of the node that the device's interrupts go to; `None` if no node says one.
    pub(super) fn interrupt_parent(&self) -> Option<u32> {
        let nodes = core::iter::once(&self.node).chain(self.above.iter().rev());
        nodes.into_iter().find_map(|node| node.property("interrupt-parent")?.u32())
    }
}
