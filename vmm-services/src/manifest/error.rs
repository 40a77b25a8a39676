//! What can be wrong with a bundle.

use crate::fdt::{FdtError, OverlayError};
use core::fmt;

/// A refused bundle: where, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestError<'a> {
    /// Name of the node: a VM, `/` for the root, or empty when the tree itself is broken.
    pub node: &'a str,
    /// Child node and property, e.g. `kernel/offset`, as far as it is known.
    pub property: Property<'a>,
    /// What is wrong.
    pub fault: Fault,
}

/// Name of a property, with the image or device node it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    /// Child node inside the node; empty for the node itself.
    pub child: &'a str,
    /// Property; empty when the node itself is meant.
    pub name: &'a str,
}

impl Property<'_> {
    /// The node as a whole.
    pub(super) const NONE: Self = Self { child: "", name: "" };
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The device tree is malformed.
    BadTree(FdtError),
    /// Not an overlay that can be merged into a guest's tree.
    BadOverlay(OverlayError),
    /// The device tree is longer than [`super::MAX_TREE`].
    TreeTooLong,
    /// Not a bundle: `compatible` is another.
    NotABundle,
    /// Written for another version of the format.
    Version(u32),
    /// Missing.
    Missing,
    /// Present, but not known here, or not allowed for this kind of VM.
    Unknown,
    /// Not of the type that it must be.
    BadType,
    /// A word that is not among those allowed, or a name that breaks the rules for names.
    BadValue,
    /// Excludes, or must go together with, another property.
    Conflict(&'static str),
    /// Lies where something else of the guest's address space is.
    Overlap {
        /// First byte of what is misplaced.
        address: u64,
    },
    /// An interrupt that another device has.
    InterruptTaken(u32),
    /// A number outside its range.
    OutOfRange {
        /// The number.
        value: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// Not a multiple of what it must be one of.
    Unaligned {
        /// The number.
        value: u64,
        /// Wanted alignment.
        align: u64,
    },
    /// A span that reaches past the end of the bundle, or into the tree.
    OutOfBundle {
        /// First byte.
        offset: u64,
        /// Length.
        size: u64,
    },
    /// The bytes present are fewer than the bundle says.
    SizeMismatch {
        /// Size that the tree gives.
        expected: u64,
        /// Bytes that there are.
        present: u64,
    },
    /// A checksum is wrong: the bytes have changed since the bundle was made.
    Checksum {
        /// CRC-32 that the tree gives.
        expected: u32,
        /// CRC-32 of the bytes.
        found: u32,
    },
    /// More VMs than [`super::MAX_VMS`], or none.
    VmCount,
    /// More vCPUs in all than [`super::MAX_VCPUS_IN_ALL`] up to this VM.
    VcpuCount,
    /// More than so many.
    TooMany(usize),
    /// Two VMs have the same name.
    DuplicateName,
    /// Another device on the same switch has the address.
    DuplicateAddress,
    /// Names a VM that does not exist or is of the wrong kind.
    NoSuchVm,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadTree(error) => error.fmt(f),
            Self::BadOverlay(error) => error.fmt(f),
            Self::TreeTooLong => f.write_str("device tree too long"),
            Self::NotABundle => f.write_str("a device tree, but not of a bundle"),
            Self::Version(v) => write!(f, "format version {v} is not supported"),
            Self::Missing => f.write_str("missing"),
            Self::Unknown => f.write_str("not known here"),
            Self::BadType => f.write_str("value is of the wrong type"),
            Self::BadValue => f.write_str("value is not one of those allowed"),
            Self::Conflict(other) => write!(f, "does not go with {other} as it is"),
            Self::Overlap { address } => {
                write!(f, "{address:#x} is taken in the guest's address space")
            }
            Self::InterruptTaken(intid) => write!(f, "interrupt {intid} is taken"),
            Self::OutOfRange { value, min, max } => {
                write!(f, "{value} is not between {min} and {max}")
            }
            Self::Unaligned { value, align } => {
                write!(f, "{value:#x} is not a multiple of {align:#x}")
            }
            Self::OutOfBundle { offset, size } => {
                write!(f, "{size} bytes at {offset:#x} do not lie among the bundle's images")
            }
            Self::SizeMismatch { expected, present } => {
                write!(f, "{expected} bytes expected, {present} present")
            }
            Self::Checksum { expected, found } => {
                write!(f, "checksum is {found:#010x}, expected {expected:#010x}")
            }
            Self::VmCount => write!(f, "must have 1 to {} VMs", super::MAX_VMS),
            Self::VcpuCount => {
                write!(f, "more than {} vCPUs in all VMs", super::MAX_VCPUS_IN_ALL)
            }
            Self::TooMany(most) => write!(f, "more than {most}"),
            Self::DuplicateName => f.write_str("name is used twice"),
            Self::DuplicateAddress => f.write_str("another device on the switch has it"),
            Self::NoSuchVm => f.write_str("names no VM of the right kind"),
        }
    }
}

impl fmt::Display for ManifestError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bundle")?;
        if !self.node.is_empty() {
            write!(f, ", node {}", self.node)?;
        }
        let Property { child, name } = self.property;
        match (child.is_empty(), name.is_empty()) {
            (true, true) => {}
            (true, false) => write!(f, ", {name}")?,
            (false, true) => write!(f, ", {child}")?,
            (false, false) => write!(f, ", {child}/{name}")?,
        }
        write!(f, ": {}", self.fault)
    }
}

impl core::error::Error for ManifestError<'_> {}
