//! What the driver needs from the machine: a way to call the RMM and a way to reach pages that it
//! shares with the RMM.

use core::fmt;

use mm::PhysAddr;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Carries RMI calls to the RMM.
///
/// In a hypervisor this is the SMC instruction, in tests a reference RMM or a wrapper that records or
/// refuses calls.
pub trait Conduit {
    /// Calls function `fid` (x0) with `args` in x1 to x7 and returns x0 to x7.
    ///
    /// RMI 1.0 defines x0 to x4 of the result; the driver reads no more than the called command
    /// defines. For REC_ENTER the caller of the driver has masked interrupts, so that one that
    /// arrives makes the REC exit and is taken after the call.
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8];
}

/// Access to granules in the normal world that the RMM also reads or writes: parameter pages, run
/// pages, address lists, and the sources of measured pages.
///
/// The driver touches only granules that it has allocated with [`mm::ledger::Use::Interface`], and reads
/// population sources. No access crosses a 4 KiB page. Since the RMM changes these pages behind the
/// compiler's back, an implementation copies through volatile or inline-assembly accesses.
pub trait HostMemory {
    /// Copies from memory.
    ///
    /// # Errors
    /// The memory cannot be read, for example because the granule is delegated.
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault>;

    /// Copies to memory.
    ///
    /// # Errors
    /// The memory cannot be written, for example because the granule is delegated.
    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault>;
}

/// Both sides of the machine that the driver needs, on one type.
pub trait Host: Conduit + HostMemory {}

impl<T: Conduit + HostMemory> Host for T {}

/// An access of the hypervisor to its own memory faulted: a granule that it believes to have is not in
/// the normal world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessFault {
    /// Address of the access.
    pub addr: PhysAddr,
}

impl fmt::Display for AccessFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "access to {} faulted", self.addr)
    }
}

/// Typed access on top of [`HostMemory`].
pub(crate) trait HostMemoryExt: HostMemory {
    /// Writes one value at `offset` of a page.
    fn store<T: IntoBytes + Immutable>(
        &self,
        page: PhysAddr,
        offset: usize,
        value: &T,
    ) -> Result<(), AccessFault> {
        self.write(PhysAddr::new(page.get() + offset as u64), value.as_bytes())
    }

    /// Reads one value at `offset` of a page.
    fn load<T: FromBytes + IntoBytes>(
        &self,
        page: PhysAddr,
        offset: usize,
    ) -> Result<T, AccessFault> {
        let mut value = T::new_zeroed();
        self.read(PhysAddr::new(page.get() + offset as u64), value.as_mut_bytes())?;
        Ok(value)
    }

    /// Fills a 4 KiB page with zeros, as the RMM wants fields that nobody names to be.
    fn zero_page(&self, page: PhysAddr) -> Result<(), AccessFault> {
        const CHUNK: usize = 256;
        for offset in (0..mm::PAGE_SIZE).step_by(CHUNK) {
            self.write(PhysAddr::new(page.get() + offset), &[0; CHUNK])?;
        }
        Ok(())
    }
}

impl<T: HostMemory + ?Sized> HostMemoryExt for T {}
