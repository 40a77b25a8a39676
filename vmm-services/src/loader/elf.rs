//! ELF64 executables, by their PT_LOAD segments.

use super::{Kernel, LoadError, Placer, Source, push};
use arrayvec::ArrayVec;

const IDENT: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_AARCH64: u16 = 183;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;

/// Little-endian fields of a byte string; absent ones are an error of the file.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], LoadError> {
        let tail = self.0.get(at..).ok_or(LoadError::Truncated)?;
        tail.first_chunk().copied().ok_or(LoadError::Truncated)
    }

    fn u16(&self, at: usize) -> Result<u16, LoadError> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, LoadError> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, LoadError> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

/// A PT_LOAD program header.
struct Load {
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

impl Load {
    fn read(header: &Fields<'_>, file_length: u64) -> Result<Self, LoadError> {
        let load = Self {
            offset: header.u64(8)?,
            vaddr: header.u64(16)?,
            paddr: header.u64(24)?,
            filesz: header.u64(32)?,
            memsz: header.u64(40)?,
        };
        if load.offset.checked_add(load.filesz).is_none_or(|end| end > file_length) {
            return Err(LoadError::Truncated);
        }
        if load.filesz > load.memsz {
            return Err(LoadError::BadHeader("p_filesz is above p_memsz"));
        }
        Ok(load)
    }

    /// Physical address of the virtual address `entry`, if it is in this segment.
    fn entry(&self, entry: u64) -> Option<u64> {
        let offset = entry.checked_sub(self.vaddr).filter(|&offset| offset < self.memsz)?;
        self.paddr.checked_add(offset)
    }
}

/// Places the executable `bytes`, which is at `bundle_offset` of the bundle.
pub(super) fn place(
    placer: &Placer,
    bytes: &[u8],
    bundle_offset: u64,
) -> Result<Kernel, LoadError> {
    if !bytes.starts_with(IDENT) {
        return Err(LoadError::BadMagic);
    }
    let file = Fields(bytes);
    let [class, data] = file.bytes(4)?;
    if class != CLASS_64 || data != LITTLE_ENDIAN || file.u16(18)? != MACHINE_AARCH64 {
        return Err(LoadError::WrongMachine);
    }
    let entry = file.u64(24)?;
    let table = usize::try_from(file.u64(32)?).map_err(|_| LoadError::Truncated)?;
    if usize::from(file.u16(54)?) != PROGRAM_HEADER_BYTES {
        return Err(LoadError::BadHeader("e_phentsize"));
    }
    let headers = bytes.get(table..).ok_or(LoadError::Truncated)?;
    let count = usize::from(file.u16(56)?);
    let headers = headers.get(..count * PROGRAM_HEADER_BYTES).ok_or(LoadError::Truncated)?;

    let mut segments = ArrayVec::new();
    let mut physical_entry = None;
    let mut end = 0;
    for header in headers.chunks_exact(PROGRAM_HEADER_BYTES).map(Fields) {
        if header.u32(0)? != PT_LOAD {
            continue;
        }
        let load = Load::read(&header, bytes.len() as u64)?;
        end = end.max(placer.fit("kernel segment", load.paddr, load.memsz)?);
        physical_entry = physical_entry.or(load.entry(entry));
        if load.filesz > 0 {
            let source = Source::Bundle { offset: bundle_offset.saturating_add(load.offset) };
            let segment = placer.segment("kernel segment", load.paddr, source, load.filesz)?;
            end = end.max(segment.end());
            push(&mut segments, segment)?;
        }
    }
    let entry = physical_entry.ok_or(LoadError::BadHeader("e_entry is in no segment"))?;
    Ok(Kernel { segments, entry, end })
}
