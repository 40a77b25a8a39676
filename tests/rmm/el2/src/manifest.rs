//! Boot manifest 0.x: what EL3 says about the machine, in the page that it shares with the RMM.

use crate::el3::BootError;

/// Size in bytes of the shared page.
pub(crate) const PAGE_SIZE: usize = 4096;
/// Most banks of Non-secure DRAM that are looked at.
pub(crate) const MAX_BANKS: usize = 2;

const VERSION: usize = 0;
const DRAM: usize = 16;
const CONSOLES: usize = 40;

/// A bank of Non-secure DRAM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bank {
    /// First byte.
    pub(crate) base: u64,
    /// Size in bytes.
    pub(crate) size: u64,
}

/// The facts of the manifest that are used here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manifest {
    /// DRAM banks; unused ones have size 0.
    pub(crate) banks: [Bank; MAX_BANKS],
    /// Base address of the first console, which is a PL011 where EL3 names one.
    pub(crate) console: Option<u64>,
}

impl Manifest {
    /// Reads the manifest in `page`, a copy of the shared page at `page_address`.
    ///
    /// The checksum of the DRAM description must be right. That of the console list is not
    /// looked at: TF-A up to at least 2.12.1 sums the list without the name words.
    ///
    /// # Errors
    /// The version is not 0.2 or a later 0.x, or the contents contradict themselves.
    pub(crate) fn parse(page: &[u8; PAGE_SIZE], page_address: u64) -> Result<Self, BootError> {
        let version = word(page, VERSION)? as u32;
        if version >> 16 != 0 || version & 0xffff < 2 {
            return Err(BootError::ManifestVersion);
        }
        Ok(Self {
            banks: Self::parse_banks(page, page_address)?,
            console: Self::parse_console(page, page_address, version)?,
        })
    }

    fn parse_banks(page: &[u8; PAGE_SIZE], address: u64) -> Result<[Bank; MAX_BANKS], BootError> {
        let count = word(page, DRAM)?;
        let array = word(page, DRAM + 8)?;
        let mut sum = count.wrapping_add(array).wrapping_add(word(page, DRAM + 16)?);
        let mut banks = [Bank::default(); MAX_BANKS];
        if count == 0 || count > MAX_BANKS as u64 {
            return Err(BootError::ManifestData);
        }
        for (index, bank) in banks.iter_mut().take(count as usize).enumerate() {
            let offset = offset_of(array, address)? + 16 * index;
            *bank = Bank { base: word(page, offset)?, size: word(page, offset + 8)? };
            sum = sum.wrapping_add(bank.base).wrapping_add(bank.size);
        }
        if sum == 0 { Ok(banks) } else { Err(BootError::ManifestData) }
    }

    fn parse_console(
        page: &[u8; PAGE_SIZE],
        address: u64,
        version: u32,
    ) -> Result<Option<u64>, BootError> {
        const FIRST_WITH_CONSOLES: u32 = 3;
        if version < FIRST_WITH_CONSOLES || word(page, CONSOLES)? == 0 {
            return Ok(None);
        }
        let list = word(page, CONSOLES + 8)?;
        Ok(Some(word(page, offset_of(list, address)?)?))
    }
}

/// Offset in the page of what EL3 points to by its address.
fn offset_of(pointer: u64, page_address: u64) -> Result<usize, BootError> {
    match pointer.checked_sub(page_address) {
        Some(offset) if offset < PAGE_SIZE as u64 => Ok(offset as usize),
        _ => Err(BootError::ManifestData),
    }
}

fn word(page: &[u8; PAGE_SIZE], offset: usize) -> Result<u64, BootError> {
    let bytes = page.get(offset..).and_then(|rest| rest.first_chunk());
    bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(BootError::ManifestData)
}
