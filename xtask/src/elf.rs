//! From a linked ELF file to the flat image that a loader puts into memory.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

/// Offset of the magic number in the header of an arm64 Linux `Image`, and its value.
const IMAGE_MAGIC: (usize, &[u8]) = (56, b"ARM\x64");

/// Offset of `image_size` in that header.
const IMAGE_SIZE_OFFSET: usize = 16;

/// A flat image and what was learnt while making it.
#[derive(Debug)]
pub(crate) struct Flat {
    /// What is loaded.
    pub(crate) bytes: Vec<u8>,
    /// Bytes of code, of constants, and of data that is in the file.
    pub(crate) code: u64,
    pub(crate) constants: u64,
    pub(crate) data: u64,
    /// Bytes of memory that the program occupies, with what is zero at the start.
    pub(crate) memory: u64,
}

impl fmt::Display for Flat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: u64| bytes.div_ceil(1024);
        write!(
            f,
            "{} KiB file (code {}, constants {}, data {}), {} KiB in memory",
            kib(self.bytes.len() as u64),
            kib(self.code),
            kib(self.constants),
            kib(self.data),
            kib(self.memory),
        )
    }
}

/// True when these bytes begin with the arm64 Linux `Image` header.
pub(crate) fn is_arm64_image(bytes: &[u8]) -> bool {
    let (offset, magic) = IMAGE_MAGIC;
    bytes.get(offset..offset + magic.len()) == Some(magic)
}

/// True when these bytes begin with the magic number of ELF.
pub(crate) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Lays out the load segments of a file.
pub(crate) fn flatten_file(path: &Path) -> Result<Flat> {
    let elf = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    flatten(&elf).with_context(|| path.display().to_string())
}

/// Lays out the load segments at their addresses, relative to the lowest.
///
/// # Errors
///
/// A segment that is writable and executable, an entry point that is not the first byte, and
/// whatever is malformed.
pub(crate) fn flatten(elf: &[u8]) -> Result<Flat> {
    let header = FileHeader64::<Endianness>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    ensure!(endian == Endianness::Little, "not a little-endian ELF file");
    let mut segments: Vec<_> = header
        .program_headers(endian, elf)?
        .iter()
        .filter(|s| s.p_type(endian) == PT_LOAD && s.p_memsz(endian) > 0)
        .collect();
    segments.sort_by_key(|s| s.p_paddr(endian));
    let base = segments.first().context("no load segment")?.p_paddr(endian);
    let entry = header.e_entry(endian);
    ensure!(entry == base, "the entry point {entry:#x} is not the first byte at {base:#x}");
    let mut flat = Flat { bytes: Vec::new(), code: 0, constants: 0, data: 0, memory: 0 };
    for segment in segments {
        let flags = segment.p_flags(endian);
        let executable = flags & PF_X == PF_X;
        let writable = flags & PF_W == PF_W;
        let start = segment.p_paddr(endian) - base;
        if writable && executable {
            bail!("the segment at {start:#x} is both writable and executable");
        }
        ensure!(start >= flat.memory, "the segment at {start:#x} overlaps the one before");
        let content = segment.data(endian, elf).ok().context("a segment outside of the file")?;
        if !content.is_empty() {
            flat.bytes.resize(usize::try_from(start)?, 0);
            flat.bytes.extend(content);
        }
        let size = content.len() as u64;
        match (executable, writable) {
            (true, _) => flat.code += size,
            (_, true) => flat.data += size,
            _ => flat.constants += size,
        }
        flat.memory = start + segment.p_memsz(endian);
    }
    if let Some(size) = image_size(&flat.bytes) {
        ensure!(
            size >= flat.memory,
            "the Image header claims {size:#x} bytes, the program takes {:#x}",
            flat.memory
        );
    }
    Ok(flat)
}

/// `image_size` of an arm64 `Image` header, if there is one.
fn image_size(bytes: &[u8]) -> Option<u64> {
    let field = bytes.get(IMAGE_SIZE_OFFSET..IMAGE_SIZE_OFFSET + 8)?;
    is_arm64_image(bytes).then(|| u64::from_le_bytes(field.try_into().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RX: u32 = 5;
    const RW: u32 = 6;

    /// An ELF file of these segments: flags, address, bytes of the file, bytes of memory.
    fn elf(entry: u64, segments: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        header.extend([2, 0, 183, 0, 1, 0, 0, 0]); // executable, AArch64, version 1
        header.extend(entry.to_le_bytes());
        header.extend(64_u64.to_le_bytes()); // program headers
        header.extend([0; 12]); // no sections, no flags
        header.extend([64, 0, 56, 0]);
        header.extend(u16::try_from(segments.len()).unwrap().to_le_bytes());
        header.extend([64, 0, 0, 0, 0, 0]);
        let mut contents: Vec<u8> = Vec::new();
        let contents_offset = 64 + 56 * segments.len() as u64;
        for (flags, address, bytes, memory) in segments {
            header.extend(1_u32.to_le_bytes()); // PT_LOAD
            header.extend(flags.to_le_bytes());
            header.extend((contents_offset + contents.len() as u64).to_le_bytes());
            header.extend(address.to_le_bytes());
            header.extend(address.to_le_bytes());
            header.extend((bytes.len() as u64).to_le_bytes());
            header.extend(memory.to_le_bytes());
            header.extend(4096_u64.to_le_bytes());
            contents.extend(*bytes);
        }
        header.extend(contents);
        header
    }

    #[test]
    fn segments_are_laid_out_from_the_lowest() {
        let file = elf(0x1000, &[(RX, 0x1000, b"code", 4), (RW, 0x1010, b"data", 0x100)]);
        let flat = flatten(&file).unwrap();
        assert_eq!(flat.bytes, b"code\0\0\0\0\0\0\0\0\0\0\0\0data");
        assert_eq!((flat.code, flat.constants, flat.data, flat.memory), (4, 0, 4, 0x110));
    }

    #[test]
    fn what_is_refused() {
        let reason = |file: &[u8]| flatten(file).unwrap_err().to_string();
        assert!(reason(&elf(0, &[(7, 0, b"code", 4)])).contains("writable and executable"));
        assert!(reason(&elf(4, &[(RX, 0, b"code", 4)])).contains("entry point"));
        assert!(reason(&elf(0, &[])).contains("no load segment"));
        let overlap = elf(0, &[(RX, 0, b"code", 0x20), (RW, 0x10, b"data", 4)]);
        assert!(reason(&overlap).contains("overlaps"));
        assert!(flatten(b"junk").is_err());
        let mut cut = elf(0, &[(RX, 0, b"code", 4)]);
        cut.pop();
        assert!(flatten(&cut).is_err());
    }

    #[test]
    fn an_image_header_that_claims_too_little() {
        let mut code = vec![0; 64];
        code[56..60].copy_from_slice(b"ARM\x64");
        code[16] = 64;
        assert!(is_arm64_image(&code));
        assert!(flatten(&elf(0, &[(RX, 0, &code, 64)])).is_ok());
        assert!(flatten(&elf(0, &[(RX, 0, &code, 65)])).is_err());
    }
}
