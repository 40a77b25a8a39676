//! The parser.

use super::{Bundle, ManifestError};

/// Size in bytes of the whole bundle, from its tree alone.
///
/// `tree` must hold the device tree at the start of the bundle (`totalsize` of its header).
///
/// # Errors
/// [`ManifestError`] when the tree is not that of an intact bundle.
pub fn peek_total_size(tree: &[u8]) -> Result<u64, ManifestError<'_>> {
    let _ = tree;
    todo!()
}

pub(super) fn bundle(bytes: &[u8]) -> Result<Bundle<'_>, ManifestError<'_>> {
    let _ = bytes;
    todo!()
}
