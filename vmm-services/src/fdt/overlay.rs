//! Overlays: what a user adds to the tree of a guest.
//!
//! An overlay is the blob that `dtc` makes of a source with `/plugin/`, restricted to what needs no
//! references resolved: children `fragment@N` of the root, each with a `target-path` and a node
//! `__overlay__`. The properties and children of the latter become those of the target, which is a
//! node that the hypervisor generates. They only add: what the tree has already stays as it is. What
//! would add memory or CPUs that the VM does not have, or hide memory, is refused; whether other
//! additions describe something that is there is for the user to know.

use super::{Fdt, FdtError, FdtWriter, Node, WriteError};
use crate::loader::FDT_MAX;
use arrayvec::ArrayString;
use core::fmt;

/// Most fragments of an overlay.
pub const MAX_FRAGMENTS: usize = 32;
/// Deepest nesting of an overlay's nodes below their target.
pub const MAX_DEPTH: usize = 8;
/// Longest path of a generated node in bytes.
const PATH_MAX: usize = 96;

const FRAGMENT: &str = "fragment@";
const TARGET_PATH: &str = "target-path";
const CONTENT: &str = "__overlay__";
/// Nodes by which `dtc` tells of references between trees.
const REFERENCES: [&str; 3] = ["__symbols__", "__fixups__", "__local_fixups__"];
/// Names without unit address by which guests find memory and CPUs, and values of `device_type` that
/// say the same.
const MEMORY_AND_CPUS: [&str; 3] = ["memory", "cpus", "cpu"];
/// Properties by which guests take less or other memory than there is.
const USABLE_MEMORY: [&str; 2] = ["linux,usable-memory", "linux,usable-memory-range"];
/// Properties that give a node a handle.
const HANDLES: [&str; 2] = ["phandle", "linux,phandle"];

/// A name or path of an overlay as an error shows it: its first bytes.
pub type Excerpt = ArrayString<31>;

/// What is wrong with an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayError {
    /// The fragment that is to blame; empty for the overlay as a whole.
    pub fragment: ArrayString<15>,
    /// What is wrong.
    pub fault: OverlayFault,
}

/// What is wrong with a fragment, or an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverlayFault {
    /// Not a device tree.
    Malformed(FdtError),
    /// Longer than [`FDT_MAX`].
    TooLong,
    /// No fragment, or more than [`MAX_FRAGMENTS`].
    FragmentCount,
    /// A node or property that has no meaning where it is.
    Unexpected(Excerpt),
    /// The node tells of references between the trees.
    References(Excerpt),
    /// The fragment gives its target as `target`, a handle.
    TargetByHandle,
    /// There is no `target-path`, or it is no string that begins with a slash.
    NoTargetPath,
    /// There is no `__overlay__`.
    NoContent,
    /// A node gives itself a handle, which a generated node may have.
    Handle,
    /// It adds memory or CPUs, or hides memory.
    MemoryOrCpus(Excerpt),
    /// Nodes are nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// The overlay adds a node or property twice.
    Duplicate(Excerpt),
    /// The guest has no such node.
    NoSuchTarget(Excerpt),
    /// The target has the property already.
    PropertyExists(Excerpt),
    /// The target has a child of this name, or with its unit address, already.
    NodeExists(Excerpt),
}

impl OverlayError {
    fn new(fragment: &str, fault: OverlayFault) -> Self {
        Self { fragment: excerpt(fragment), fault }
    }
}

/// As much of `text` as fits.
fn excerpt<const N: usize>(text: &str) -> ArrayString<N> {
    let mut short = ArrayString::new();
    // What does not fit is not shown.
    let _ = text.chars().try_for_each(|c| short.try_push(c));
    short
}

impl fmt::Display for OverlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fragment.as_str() {
            "" => write!(f, "overlay: {}", self.fault),
            fragment => write!(f, "overlay, {fragment}: {}", self.fault),
        }
    }
}

impl fmt::Display for OverlayFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::TooLong => write!(f, "longer than {FDT_MAX} bytes"),
            Self::FragmentCount => write!(f, "must have 1 to {MAX_FRAGMENTS} fragments"),
            Self::Unexpected(name) => write!(f, "{name} is not known here"),
            Self::References(name) => {
                write!(f, "{name}: references between the trees are not resolved")
            }
            Self::TargetByHandle => f.write_str("target by handle, only target-path is known"),
            Self::NoTargetPath => f.write_str("target-path is missing or no absolute path"),
            Self::NoContent => write!(f, "{CONTENT} is missing"),
            Self::Handle => f.write_str("gives a node a phandle"),
            Self::MemoryOrCpus(name) => {
                write!(f, "{name}: memory and CPUs are what the scenario gives the guest")
            }
            Self::TooDeep => write!(f, "nested deeper than {MAX_DEPTH}"),
            Self::Duplicate(name) => write!(f, "adds {name} twice"),
            Self::NoSuchTarget(path) => write!(f, "the guest has no node /{path}"),
            Self::PropertyExists(name) => write!(f, "the target has a property {name} already"),
            Self::NodeExists(name) => {
                write!(f, "the target has a node {name}, or one at its address, already")
            }
        }
    }
}

/// An overlay that has been checked to be one; whether it suits a guest shows when they are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay<'a> {
    tree: Fdt<'a>,
}

/// A fragment of a checked overlay.
#[derive(Clone, Copy)]
struct Fragment<'a> {
    name: &'a str,
    /// Path of the node to add to, without its first slash.
    target: &'a str,
    content: Node<'a>,
}

impl<'a> Overlay<'a> {
    /// Checks the overlay at the start of `bytes`.
    ///
    /// # Errors
    /// [`OverlayError`] when it is malformed or has more than fragments with additions.
    pub fn new(bytes: &'a [u8]) -> Result<Self, OverlayError> {
        let whole = |fault| OverlayError::new("", fault);
        if bytes.len() > FDT_MAX {
            return Err(whole(OverlayFault::TooLong));
        }
        let tree = Fdt::new(bytes).map_err(|e| whole(OverlayFault::Malformed(e)))?;
        if tree.reservations().next().is_some() {
            return Err(whole(OverlayFault::Unexpected(excerpt("/memreserve/"))));
        }
        if let Some(property) = tree.root().properties().next() {
            return Err(whole(OverlayFault::Unexpected(excerpt(property.name))));
        }
        let mut count = 0;
        for node in tree.root().children() {
            let fragment = Fragment::read(&node)?;
            check_additions(&fragment.content, 0)
                .map_err(|fault| OverlayError::new(fragment.name, fault))?;
            count += 1;
        }
        if !(1..=MAX_FRAGMENTS).contains(&count) {
            return Err(whole(OverlayFault::FragmentCount));
        }
        let overlay = Self { tree };
        overlay.check_fragments_against_each_other()?;
        Ok(overlay)
    }

    fn fragments(self) -> impl Iterator<Item = Fragment<'a>> + use<'a> {
        self.tree.root().children().filter_map(|node| Fragment::read(&node).ok())
    }

    /// Two fragments may have one target, but not add the same to it.
    fn check_fragments_against_each_other(self) -> Result<(), OverlayError> {
        for (index, fragment) in self.fragments().enumerate() {
            let Fragment { target, content, .. } = fragment;
            for other in self.fragments().take(index).filter(|other| other.target == target) {
                let mut properties = content.properties().map(|p| p.name);
                let mut nodes = content.children().map(|node| node.name());
                let twice = properties
                    .find(|name| other.content.property(name).is_some())
                    .or_else(|| nodes.find(|name| other.has_clash(name)));
                if let Some(name) = twice {
                    let fault = OverlayFault::Duplicate(excerpt(name));
                    return Err(OverlayError::new(fragment.name, fault));
                }
            }
        }
        Ok(())
    }
}

/// Checks a node `depth` levels below a target, and all below it.
fn check_additions(node: &Node<'_>, depth: usize) -> Result<(), OverlayFault> {
    if depth > MAX_DEPTH {
        return Err(OverlayFault::TooDeep);
    }
    for (index, property) in node.properties().enumerate() {
        if HANDLES.contains(&property.name) {
            return Err(OverlayFault::Handle);
        }
        // Guests compare up to the first zero.
        let text = property.value.split(|byte| *byte == 0).next().unwrap_or_default();
        let describes = property.name == "device_type"
            && MEMORY_AND_CPUS.iter().any(|kind| kind.as_bytes() == text);
        if describes || USABLE_MEMORY.contains(&property.name) {
            return Err(OverlayFault::MemoryOrCpus(excerpt(property.name)));
        }
        if node.properties().take(index).any(|other| other.name == property.name) {
            return Err(OverlayFault::Duplicate(excerpt(property.name)));
        }
    }
    for (index, child) in node.children().enumerate() {
        if node.children().take(index).any(|other| other.name() == child.name()) {
            return Err(OverlayFault::Duplicate(excerpt(child.name())));
        }
        let base = child.name().split('@').next().unwrap_or_default();
        if MEMORY_AND_CPUS.contains(&base) {
            return Err(OverlayFault::MemoryOrCpus(excerpt(child.name())));
        }
        check_additions(&child, depth + 1)?;
    }
    Ok(())
}

impl<'a> Fragment<'a> {
    fn read(node: &Node<'a>) -> Result<Self, OverlayError> {
        let name = node.name();
        if REFERENCES.contains(&name) {
            return Err(OverlayError::new("", OverlayFault::References(excerpt(name))));
        }
        if !name.starts_with(FRAGMENT) {
            return Err(OverlayError::new("", OverlayFault::Unexpected(excerpt(name))));
        }
        let fault = |fault| OverlayError::new(name, fault);
        let mut target = None;
        for property in node.properties() {
            match property.name {
                TARGET_PATH if target.is_none() => target = Some(property),
                "target" => return Err(fault(OverlayFault::TargetByHandle)),
                other => return Err(fault(OverlayFault::Unexpected(excerpt(other)))),
            }
        }
        let target = target.and_then(|p| p.str()?.strip_prefix('/'));
        let target = target.ok_or(fault(OverlayFault::NoTargetPath))?;
        let mut content = None;
        for child in node.children() {
            if child.name() != CONTENT || content.is_some() {
                return Err(fault(OverlayFault::Unexpected(excerpt(child.name()))));
            }
            content = Some(child);
        }
        let content = content.ok_or(fault(OverlayFault::NoContent))?;
        Ok(Self { name, target, content })
    }

    /// Whether it adds a node of this name or with its unit address.
    fn has_clash(&self, name: &str) -> bool {
        let unit = |name: &'_ str| -> Option<u64> {
            let (_, unit) = name.split_once('@')?;
            u64::from_str_radix(unit, 16).ok()
        };
        let address = unit(name);
        self.content
            .children()
            .any(|node| node.name() == name || address.is_some() && unit(node.name()) == address)
    }
}

/// An overlay on its way into the tree that a writer is writing.
pub(super) struct Merge<'a> {
    overlay: Overlay<'a>,
    /// Path of the node that is being written, without its first slash.
    path: ArrayString<PATH_MAX>,
    /// A bit for each fragment whose target has been written.
    met: u32,
}

impl<'a> Merge<'a> {
    /// A merge into a tree whose root has just begun.
    pub(super) fn new(overlay: Overlay<'a>) -> Self {
        Self { overlay, path: ArrayString::new(), met: 0 }
    }

    /// The fragments whose target is the current node.
    fn here(&self) -> impl Iterator<Item = Fragment<'a>> {
        self.overlay.fragments().filter(|fragment| fragment.target == self.path.as_str())
    }

    /// Goes down to the generated node `name`.
    pub(super) fn enter(&mut self, name: &str) -> Result<(), WriteError> {
        if let Some(fragment) = self.here().find(|fragment| fragment.has_clash(name)) {
            let fault = OverlayFault::NodeExists(excerpt(name));
            return Err(WriteError::Overlay(OverlayError::new(fragment.name, fault)));
        }
        let separator = if self.path.is_empty() { "" } else { "/" };
        let pushed = self.path.try_push_str(separator).and_then(|()| self.path.try_push_str(name));
        pushed.map_err(|_| WriteError::NameTooLong)
    }

    /// Goes up to the parent.
    pub(super) fn leave(&mut self) {
        self.path.truncate(self.path.rfind('/').unwrap_or(0));
    }

    /// Checks that no fragment has the property `name`, which the current node has.
    pub(super) fn check_property(&self, name: &str) -> Result<(), WriteError> {
        match self.here().find(|fragment| fragment.content.property(name).is_some()) {
            None => Ok(()),
            Some(fragment) => {
                let fault = OverlayFault::PropertyExists(excerpt(name));
                Err(WriteError::Overlay(OverlayError::new(fragment.name, fault)))
            }
        }
    }

    /// Adds to the current node's properties, which end here.
    pub(super) fn add_properties(&mut self, w: &mut FdtWriter<'_>) {
        for fragment in self.here() {
            fragment.content.properties().for_each(|p| w.property(p.name, p.value));
        }
        for (index, fragment) in self.overlay.fragments().take(MAX_FRAGMENTS).enumerate() {
            self.met |= u32::from(fragment.target == self.path.as_str()) << index;
        }
    }

    /// Adds to the current node's children, which end here.
    pub(super) fn add_nodes(&self, w: &mut FdtWriter<'_>) {
        for fragment in self.here() {
            fragment.content.children().for_each(|node| copy(w, &node));
        }
    }

    /// Checks, when the tree is complete, that each fragment had its target.
    pub(super) fn check_targets(&self) -> Result<(), WriteError> {
        let mut fragments = self.overlay.fragments().enumerate();
        match fragments.find(|(index, _)| self.met & 1 << index == 0) {
            None => Ok(()),
            Some((_, fragment)) => {
                let fault = OverlayFault::NoSuchTarget(excerpt(fragment.target));
                Err(WriteError::Overlay(OverlayError::new(fragment.name, fault)))
            }
        }
    }
}

/// Copies a node and all below it, [`MAX_DEPTH`] levels at most.
fn copy(w: &mut FdtWriter<'_>, node: &Node<'_>) {
    w.begin_node(node.name());
    node.properties().for_each(|p| w.property(p.name, p.value));
    node.children().for_each(|child| copy(w, &child));
    w.end_node();
}
