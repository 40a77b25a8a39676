//! Where a guest's images go in its memory.

use crate::manifest::{Bundle, VmSpec};
use arrayvec::ArrayVec;
use core::fmt;
use mm::Ipa;

/// Size of the buffer for the guest's device tree in bytes.
pub const FDT_MAX: usize = 0x1_0000;
/// Most segments of a plan.
pub const MAX_SEGMENTS: usize = 12;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The bundle, from `offset` in bytes.
    Bundle {
        /// Offset from the start of the bundle in bytes.
        offset: u64,
    },
    /// The generated device tree.
    Fdt,
}

/// Memory of the guest that is filled before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address, page aligned.
    pub ipa: Ipa,
    /// Bytes of the segment, a multiple of the page size.
    pub size: u64,
    /// Where the first `length` bytes come from; the rest is zero.
    pub source: Source,
    /// Bytes from the source, at most `size`.
    pub length: u64,
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Segments in order of address, without overlap. This is also the order of measurement.
    pub segments: ArrayVec<Segment, MAX_SEGMENTS>,
    /// First instruction of the boot vCPU.
    pub entry: Ipa,
    /// Address of the device tree, for x0.
    pub fdt: Ipa,
}

/// Why a VM cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// Not yet distinguished.
    Invalid,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid image")
    }
}

impl core::error::Error for LoadError {}

/// Places the images of `vm` and generates its device tree into `fdt`.
///
/// # Errors
/// [`LoadError`] when an image is malformed or does not fit.
pub fn plan(vm: &VmSpec<'_>, bundle: &Bundle<'_>, fdt: &mut [u8]) -> Result<LoadPlan, LoadError> {
    let _ = (vm, bundle, fdt);
    todo!()
}

impl LoadPlan {
    /// Fills `page` with what belongs at `ipa` (page aligned); `false` when no segment has it.
    pub fn page(&self, ipa: Ipa, bundle: &[u8], fdt: &[u8], page: &mut [u8; 4096]) -> bool {
        let _ = (ipa, bundle, fdt, page);
        todo!()
    }
}
