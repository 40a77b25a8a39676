//! What can be wrong with a bundle.

use core::fmt;

/// A refused bundle: where, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestError<'a> {
    /// Name of the node: a VM, `/` for the root, or empty when the tree itself is broken.
    pub node: &'a str,
    /// Child node and property, e.g. `kernel/offset`, as far as it is known.
    pub property: Property,
    /// What is wrong.
    pub fault: Fault,
}

/// Name of a property, with the image or device node it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property {
    /// Child node inside the VM's node; empty for the VM's node itself.
    pub child: &'static str,
    /// Property; empty when the node itself is meant.
    pub name: &'static str,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Too short for the header of a device tree.
    Truncated,
    /// Does not begin with a device tree.
    NotATree,
    /// The device tree is malformed.
    BadTree,
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
    /// A word that is not among those allowed.
    BadValue,
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
    /// Two VMs have the same name.
    DuplicateName,
    /// Names a VM that does not exist or is of the wrong kind.
    NoSuchVm,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated => f.write_str("too short for a device tree header"),
            Self::NotATree => f.write_str("does not begin with a device tree"),
            Self::BadTree => f.write_str("malformed device tree"),
            Self::TreeTooLong => f.write_str("device tree too long"),
            Self::NotABundle => f.write_str("a device tree, but not of a bundle"),
            Self::Version(v) => write!(f, "format version {v} is not supported"),
            Self::Missing => f.write_str("missing"),
            Self::Unknown => f.write_str("not known here"),
            Self::BadType => f.write_str("value is of the wrong type"),
            Self::BadValue => f.write_str("value is not one of those allowed"),
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
            Self::DuplicateName => f.write_str("name is used twice"),
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
