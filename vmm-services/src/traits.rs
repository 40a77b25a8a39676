//! What services may reach outside themselves.

use crate::channel::Endpoint;
use crate::exit::{Access, Width};
use core::fmt;
use mm::Ipa;

/// An access that a guest's memory does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault {
    /// First address that could not be accessed.
    pub ipa: Ipa,
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no shared guest memory at {}", self.ipa)
    }
}

impl core::error::Error for MemoryFault {}

/// Memory of one guest, as far as the host may touch it.
///
/// For an ordinary VM that is all of its RAM; for a realm only what the realm has shared. The guest
/// runs meanwhile and changes the bytes at will: whoever reads a value checks and uses that copy,
/// and never reads it a second time. An access of 2, 4 or 8 bytes at an address that is a multiple of
/// their number is one access: it sees and leaves no half-written value.
pub trait GuestMemory {
    /// Copies guest memory at `ipa` into `buf`.
    ///
    /// # Errors
    /// [`MemoryFault`] when any byte is not accessible; `buf` is unspecified then.
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault>;

    /// Copies `data` into guest memory at `ipa`.
    ///
    /// # Errors
    /// [`MemoryFault`] when any byte is not accessible; a prefix may have been written then.
    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault>;
}

/// Memory of a realm by the addresses that the realm uses for it, with or without the bit that
/// marks them as shared.
pub(crate) struct SharedAlias<'a> {
    memory: &'a dyn GuestMemory,
    bit: u64,
}

impl<'a> SharedAlias<'a> {
    /// The memory of a guest: a realm with addresses of `realm_ipa_bits` bits, of which the highest
    /// is the one, or an ordinary VM.
    pub(crate) fn new(memory: &'a dyn GuestMemory, realm_ipa_bits: Option<u32>) -> Self {
        let bit = realm_ipa_bits.and_then(|bits| 1_u64.checked_shl(bits.wrapping_sub(1)));
        Self { memory, bit: bit.unwrap_or(0) }
    }

    fn strip(&self, ipa: Ipa) -> Ipa {
        Ipa::new(ipa.get() & !self.bit)
    }
}

impl GuestMemory for SharedAlias<'_> {
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.memory.read(self.strip(ipa), buf)
    }

    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        self.memory.write(self.strip(ipa), data)
    }
}

/// Interrupt lines of a VM as a device sees them.
pub trait VirtualIrq {
    /// Drives the line of the shared peripheral interrupt `intid` (32 or above) high or low.
    ///
    /// A line that does not exist is ignored. An edge-triggered interrupt becomes pending when its
    /// line rises.
    fn set_level(&mut self, intid: u32, high: bool);
}

/// The time that a VM's watchdog has left.
pub trait Countdown {
    /// Begins anew: in `ms` milliseconds the VM is restarted, unless this is called again.
    fn restart(&self, ms: u32);

    /// Milliseconds that are left.
    fn remaining_ms(&self) -> u32;
}

/// Where the console output of a VM goes.
///
/// Usually output comes one line at a time, without line end, in printable bytes: control characters
/// of the guest arrive in caret notation, so a guest cannot forge the lines of another VM. While an
/// operator's terminal is attached to the VM, its bytes come as they are.
pub trait ConsoleSink {
    /// Takes one line. A line that ends because it grew too long, or because the VM stopped or fell
    /// silent in the middle of it, has `complete == false`.
    fn line(&mut self, text: &[u8], complete: bool);

    /// A line has begun. When the VM falls silent before it ends,
    /// [`VmServices::flush_console`](crate::VmServices::flush_console) brings what there is of it.
    fn begun(&mut self) {}

    /// Whether output is to go to [`Self::raw`].
    fn is_attached(&self) -> bool {
        false
    }

    /// Takes a byte of a VM whose console has a terminal to itself.
    fn raw(&mut self, _byte: u8) {}
}

/// A disk does not have the bytes that were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskError;

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such bytes on the disk")
    }
}

impl core::error::Error for DiskError {}

/// The disks of one VM, by number: those of its block devices in the order of their slots.
pub trait Disks {
    /// Copies bytes from `offset` on into `buf`.
    ///
    /// # Errors
    /// [`DiskError`] when the disk does not have them all.
    fn read(&self, disk: u8, offset: u64, buf: &mut [u8]) -> Result<(), DiskError>;

    /// Copies `data` to the disk at `offset`.
    ///
    /// # Errors
    /// [`DiskError`] when the disk does not have all the bytes; a prefix may be written then.
    fn write(&self, disk: u8, offset: u64, data: &[u8]) -> Result<(), DiskError>;
}

/// Why there are no random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntropyError {
    /// The machine has no source of them, now or later.
    NoSource,
    /// The source has run dry for the moment: ask again later.
    Exhausted,
}

impl fmt::Display for EntropyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSource => "the machine has no source of random numbers",
            Self::Exhausted => "the source of random numbers has run dry for now",
        })
    }
}

impl core::error::Error for EntropyError {}

/// The machine's random numbers: conditioned, and fit for keys.
pub trait Entropy {
    /// Whether the machine has a source at all; does not change while it runs.
    fn has_source(&self) -> bool;

    /// Fills `buf` with random bytes. Does not wait: callers keep requests to a few hundred bytes.
    ///
    /// # Errors
    /// See [`EntropyError`]; `buf` is unspecified then, and must not be used.
    fn fill(&self, buf: &mut [u8]) -> Result<(), EntropyError>;
}

/// A network device of a VM, and where it is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicId {
    /// Number of the switch in the bundle.
    pub switch: u8,
    /// Number of the device among the VM's network devices.
    pub number: u8,
}

/// Other VMs, as far as a VM is connected with them.
///
/// What a VM does here may concern another one. That one is told, and looks at its own side in its
/// own time ([`crate::VmServices::peers_called`]).
pub trait Peers {
    /// Sends an Ethernet frame. What becomes of it is the switch's to decide and to count.
    fn send(&mut self, nic: NicId, frame: &[u8]);

    /// Whether a frame waits for a device.
    fn has_frame(&mut self, nic: NicId) -> bool;

    /// Takes the oldest frame that waits for a device; returns its length, at most
    /// [`crate::switch::MAX_FRAME`] and that of `into`.
    fn receive(&mut self, nic: NicId, into: &mut [u8]) -> Option<usize>;

    /// Drops the frames that wait for a device.
    fn discard(&mut self, nic: NicId);

    /// Accesses the register at `offset` of a channel; returns the value of a read.
    fn channel_access(
        &mut self,
        endpoint: &Endpoint,
        offset: u64,
        width: Width,
        access: Access,
    ) -> u32;

    /// Whether the interrupt line of a channel is high.
    fn channel_line(&mut self, endpoint: &Endpoint) -> bool;
}
