//! The arm64 `Image` of Linux (Documentation/arch/arm64/booting.rst).

use super::{BLOCK, Kernel, LoadError, Placer, Source};
use crate::layout;

const HEADER_BYTES: usize = 64;
const MAGIC: &[u8] = b"ARM\x64";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
/// Header flag: the kernel is big-endian.
const FLAG_BIG_ENDIAN: u64 = 1;

/// What the header says.
struct Header {
    /// Offset in bytes of the image from a 2 MiB boundary.
    text_offset: u64,
    /// Memory the kernel uses from its first byte, its bss included.
    image_size: u64,
}

fn header(bytes: &[u8]) -> Result<Header, LoadError> {
    if bytes.starts_with(GZIP_MAGIC) {
        return Err(LoadError::Compressed);
    }
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(LoadError::Truncated)?;
    if header.get(56..60) != Some(MAGIC) {
        return Err(LoadError::BadMagic);
    }
    let field = |at: usize| {
        let bytes = header.get(at..).and_then(|tail| tail.first_chunk());
        bytes.map_or(0, |b| u64::from_le_bytes(*b))
    };
    if field(24) & FLAG_BIG_ENDIAN != 0 {
        return Err(LoadError::WrongMachine);
    }
    let header = Header { text_offset: field(8), image_size: field(16) };
    // Linux before 3.17 leaves the size zero and means 0x80000 by any offset. None is left.
    if header.image_size == 0 {
        return Err(LoadError::BadHeader("image_size is zero"));
    }
    if header.text_offset >= BLOCK {
        return Err(LoadError::BadHeader("text_offset is 2 MiB or more"));
    }
    Ok(header)
}

/// Places the kernel `bytes`, which is at `offset` of the bundle.
pub(super) fn place(placer: &Placer, bytes: &[u8], offset: u64) -> Result<Kernel, LoadError> {
    let Header { text_offset, image_size } = header(bytes)?;
    let start = layout::RAM.get() + text_offset;
    let length = bytes.len() as u64;
    let end = placer.fit("kernel", start, image_size.max(length))?;
    let segment = placer.segment("kernel", start, Source::Bundle { offset }, length)?;
    Ok(Kernel {
        entry: start,
        end: end.max(segment.end()),
        segments: [segment].into_iter().collect(),
    })
}
