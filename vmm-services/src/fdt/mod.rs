//! Flattened device trees: a reader for trees of any origin, a writer, the guest's own tree, and
//! overlays that add to it.
//!
//! The format is that of the Devicetree Specification v0.4, chapter 5, versions 16 and 17. One
//! reader serves the machine's tree and the bundle's. It is our own because the trees of real
//! boards carry node and property names longer than the specification's 31 characters, which
//! stricter parsers refuse, and because a broken bundle must be an error and never a panic.

mod guest;
mod overlay;
mod reader;
mod seeds;
mod writer;

pub use guest::{GuestTree, generate};
pub use overlay::{Excerpt, MAX_DEPTH, MAX_FRAGMENTS, Overlay, OverlayError, OverlayFault};
pub use reader::{Fdt, FdtError, MAX_PATH, Node, Path, Property, Ranges, total_size};
pub use seeds::Seeds;
pub use writer::{FdtWriter, WriteError};

const MAGIC: u32 = 0xd00d_feed;
const HEADER_BYTES: usize = 40;
/// Version of the format that is written, and the one it can be read as.
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

#[cfg(test)]
mod overlay_tests;
#[cfg(test)]
mod tests;
