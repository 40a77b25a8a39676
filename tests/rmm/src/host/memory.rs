//! Simulated RAM and its granule protection table.

use std::boxed::Box;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use crate::addr::{GRANULE_BYTES, GRANULE_SIZE, Pa};
use crate::monitor::RamRange;

/// Physical address space of a granule, as the granule protection table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The host's.
    NonSecure,
    /// Delegated.
    Realm,
    /// The secure world's: delegation fails.
    Secure,
}

/// An access that the memory system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessFault {
    /// The granule at this address is in another physical address space.
    GranuleProtection(Pa),
    /// There is no RAM at this address.
    NoMemory(Pa),
}

#[derive(Debug)]
struct Granule {
    space: Space,
    /// None while it is all zero.
    bytes: Option<Box<[u8; GRANULE_BYTES]>>,
}

/// RAM in one range; each granule has its own lock.
#[derive(Debug)]
pub(crate) struct Memory {
    range: RamRange,
    granules: Vec<Mutex<Granule>>,
}

impl Memory {
    pub(crate) fn new(range: RamRange) -> Self {
        let count = range.size / GRANULE_SIZE;
        let granule = || Mutex::new(Granule { space: Space::NonSecure, bytes: None });
        Self { range, granules: (0..count).map(|_| granule()).collect() }
    }

    fn granule(&self, pa: Pa) -> Result<MutexGuard<'_, Granule>, AccessFault> {
        let offset = pa.0.checked_sub(self.range.base.0).ok_or(AccessFault::NoMemory(pa))?;
        let index = usize::try_from(offset / GRANULE_SIZE).ok();
        let granule = index.and_then(|index| self.granules.get(index));
        let granule = granule.ok_or(AccessFault::NoMemory(pa))?;
        // A test that panicked elsewhere leaves no granule half written.
        Ok(granule.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn space(&self, pa: Pa) -> Result<Space, AccessFault> {
        Ok(self.granule(pa)?.space)
    }

    /// Copies a granule, whatever space it is in.
    pub(crate) fn contents(&self, pa: Pa) -> Result<[u8; GRANULE_BYTES], AccessFault> {
        Ok(self.granule(pa)?.bytes.as_deref().copied().unwrap_or([0; GRANULE_BYTES]))
    }

    /// Moves a granule from one space to another; false if it is not in the first.
    pub(crate) fn transition(&self, pa: Pa, from: Space, to: Space) -> bool {
        match self.granule(pa) {
            Ok(mut granule) if granule.space == from => {
                granule.space = to;
                true
            }
            _ => false,
        }
    }

    /// Calls `access` with each piece of the range that lies in one granule.
    fn pieces<B>(
        &self,
        pa: Pa,
        space: Space,
        buf: B,
        mut access: impl FnMut(&mut Granule, usize, core::ops::Range<usize>, &mut B),
        length: usize,
    ) -> Result<(), AccessFault> {
        let mut buf = buf;
        let mut done = 0;
        while done < length {
            let at = pa.offset(done as u64);
            let mut granule = self.granule(at)?;
            if granule.space != space {
                return Err(AccessFault::GranuleProtection(at));
            }
            let offset = (at.0 % GRANULE_SIZE) as usize;
            let piece = (length - done).min(GRANULE_BYTES - offset);
            access(&mut granule, offset, done..done + piece, &mut buf);
            done += piece;
        }
        Ok(())
    }

    pub(crate) fn read(&self, pa: Pa, space: Space, buf: &mut [u8]) -> Result<(), AccessFault> {
        let length = buf.len();
        let copy = |granule: &mut Granule,
                    offset: usize,
                    piece: core::ops::Range<usize>,
                    buf: &mut &mut [u8]| {
            let to = &mut buf[piece];
            match &granule.bytes {
                Some(bytes) => to.copy_from_slice(&bytes[offset..offset + to.len()]),
                None => to.fill(0),
            }
        };
        self.pieces(pa, space, buf, copy, length)
    }

    pub(crate) fn write(&self, pa: Pa, space: Space, bytes: &[u8]) -> Result<(), AccessFault> {
        let copy = |granule: &mut Granule,
                    offset: usize,
                    piece: core::ops::Range<usize>,
                    from: &mut &[u8]| {
            let from = &from[piece];
            let bytes = granule.bytes.get_or_insert_with(|| Box::new([0; GRANULE_BYTES]));
            bytes[offset..offset + from.len()].copy_from_slice(from);
        };
        self.pieces(pa, space, bytes, copy, bytes.len())
    }

    pub(crate) fn zero(&self, pa: Pa, space: Space) -> Result<(), AccessFault> {
        let mut granule = self.granule(pa)?;
        if granule.space != space {
            return Err(AccessFault::GranuleProtection(pa));
        }
        granule.bytes = None;
        Ok(())
    }
}
