//! The bundle: what VMs to run, and their images, in one file.
//!
//! A bundle starts with a flattened device tree and goes on with images, each aligned to 4 KiB from
//! the start of the bundle. The tree names the VMs; [`names`] has every node and property. The
//! parser trusts nothing: every offset, size and checksum is checked, and every refusal says which
//! node and property is to blame.

mod at;
mod channels;
mod error;
pub mod names;
mod net;
mod parse;

pub use channels::ChannelSpec;
pub use error::{Fault, ManifestError, Property};
pub use net::NetSpec;
pub use parse::peek_total_size;

use crate::crc32;
use crate::passthrough::{MAX_PASSTHROUGH, Passthrough};
use arrayvec::ArrayVec;

/// Most VMs of a bundle.
pub const MAX_VMS: usize = 16;
/// Most channels of a bundle.
pub const MAX_CHANNELS: usize = 16;
/// Most switches of a bundle.
pub const MAX_SWITCHES: usize = 4;
/// Longest name of a VM in bytes.
pub const MAX_NAME: usize = 31;
/// Longest command line in bytes.
pub const MAX_CMDLINE: usize = 2048;
/// How often a VM is started again after resets unless its bundle says otherwise.
pub const DEFAULT_RESETS: u32 = 8;
/// Most vCPUs of all VMs of a bundle together.
pub const MAX_VCPUS_IN_ALL: usize = 32;
/// Smallest budget in microseconds: less would go into switching.
pub const MIN_BUDGET_US: u32 = 10;
/// Priorities are below this.
pub const PRIORITIES: u32 = 16;
/// Most granules that stay delegated between realms.
pub const MAX_POOL: u32 = 128;
/// Largest device tree of a bundle in bytes.
pub const MAX_TREE: usize = 1 << 20;

/// A checked bundle, borrowed from its bytes.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    bytes: &'a [u8],
    /// Name of the scenario.
    pub scenario: &'a str,
    /// Self test of the hypervisor to run beside the VMs.
    pub self_test: Option<SelfTest>,
    /// Granules that stay delegated between realms, if the bundle says how many.
    pub pool: Option<u32>,
    /// The VMs, in the order of the tree.
    pub vms: ArrayVec<VmSpec<'a>, MAX_VMS>,
    /// Names of the switches between them.
    pub switches: ArrayVec<&'a str, MAX_SWITCHES>,
    /// Channels between them.
    pub channels: ArrayVec<ChannelSpec<'a>, MAX_CHANNELS>,
}

/// A self test that the hypervisor runs on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Touch granules of a running realm and survive the granule protection faults.
    GranuleProtection,
    /// Take an exception at EL2 while the first VM turns on its second vCPU: it ends that VM, and the
    /// core that took it.
    El2Fault,
}

/// What a VM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmKind {
    /// An ordinary VM.
    Vm,
    /// A realm.
    Realm(RealmSpec),
}

/// Hash algorithm of a realm's measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384, which RMI 1.0 does not have.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// What only realms have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmSpec {
    /// Realm personalization value, measured.
    pub rpv: [u8; 64],
    /// Measurement algorithm.
    pub hash: HashAlgorithm,
    /// Width of the realm's IPA space in bits; its upper half is shared.
    pub ipa_bits: u32,
    /// How much memory a fault brings in.
    pub fault: FaultSize,
    /// Which conversions of its memory the owner allows.
    pub conversions: Conversions,
}

/// When the RAM of a VM gets memory. That of a normal VM is set apart before it starts in any case;
/// what waits is that it is zeroed and mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populate {
    /// All of it before the VM starts: what a normal VM does unless told otherwise.
    Eager,
    /// The images before the VM starts, zero-filled ends included; the rest when it is touched: what
    /// a realm does unless told otherwise.
    Image,
    /// Only what files provide contents for; the rest, zero-filled ends of images included, when it is
    /// touched. The measurement of a realm has fewer pages then.
    Lazy,
}

/// How much memory a fault of a realm brings in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultSize {
    /// The page that was touched.
    #[default]
    Page,
    /// The 2 MiB around it, if nothing of that is there yet and such a block is free.
    Block,
}

/// Conversions between private and shared that the owner of a realm allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conversions {
    /// All.
    #[default]
    Any,
    /// To private memory only: nothing is shared.
    ToPrivate,
    /// None.
    None,
}

impl Conversions {
    /// Whether memory may become private, or else shared with the host.
    #[must_use]
    pub const fn allow(self, to_private: bool) -> bool {
        match self {
            Self::Any => true,
            Self::ToPrivate => to_private,
            Self::None => false,
        }
    }
}

/// Processor time of each vCPU, enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Time per period in microseconds.
    pub budget_us: u32,
    /// Period in microseconds.
    pub period_us: u32,
}

/// A span of the bundle that has been checked to lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// Offset from the start of the bundle in bytes, a multiple of 4 KiB.
    pub offset: u64,
    /// Length in bytes, not zero.
    pub size: u64,
    /// CRC-32 (IEEE 802.3) of the bytes.
    pub crc32: u32,
}

/// Format of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// Linux arm64 `Image`.
    Image,
    /// Bytes without a header.
    Raw,
    /// ELF64 with PT_LOAD segments at physical addresses.
    Elf,
}

/// The end that the scenario expects of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The guest turns itself off.
    Off,
    /// The hypervisor stops it.
    Stopped,
    /// The hypervisor or the RMM refuses to build it.
    Refused,
}

/// Where a device of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First byte of its registers.
    pub base: u64,
    /// Its interrupt, a shared one.
    pub intid: u32,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtioDevice {
    /// Console with one port.
    Console,
    /// The machine's random numbers.
    Entropy,
    /// Disk in RAM.
    Block(BlockSpec),
    /// Port of a switch.
    Net(NetSpec),
}

/// A disk in RAM. What a VM writes to it lasts until the VM ends: when the VM runs again it finds
/// the image again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpec {
    /// Its first bytes; the rest is zero.
    pub image: Option<ImageRef>,
    /// Size in bytes, a multiple of 512, at least that of the image.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Devices of a VM beside GIC and timer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// PL011 UART.
    pub uart: Option<Placement>,
    /// Flash at [`crate::layout::FLASH`] that is erased and cannot be written.
    pub flash: bool,
    /// Virtio devices; the first one is in slot 0 ([`crate::layout::VIRTIO`]).
    pub virtio: ArrayVec<VirtioDevice, { crate::layout::MAX_VIRTIO }>,
}

/// One VM of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec<'a> {
    /// Name, unique in the bundle: letters, digits, `-`, `_`; at most [`MAX_NAME`] bytes, beginning
    /// with a letter.
    pub name: &'a str,
    /// Ordinary VM or realm.
    pub kind: VmKind,
    /// Number of vCPUs, 1 to [`crate::MAX_VCPUS`].
    pub vcpus: usize,
    /// RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// When its RAM gets memory.
    pub populate: Populate,
    /// Scheduling priority.
    pub priority: u32,
    /// Processor time, if limited.
    pub budget: Option<Budget>,
    /// Cores that the vCPUs may run on, bit per core; `None` for all.
    pub affinity: Option<u32>,
    /// Format of `kernel`.
    pub kernel_format: KernelFormat,
    /// What to boot.
    pub kernel: ImageRef,
    /// Initial RAM disk.
    pub initramfs: Option<ImageRef>,
    /// Overlay to its device tree: well-formed, which does not say that it suits the tree.
    pub overlay: Option<ImageRef>,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Devices.
    pub devices: Devices,
    /// Devices of the machine that it gets as they are. A realm has none.
    pub passthrough: ArrayVec<Passthrough<'a>, MAX_PASSTHROUGH>,
    /// How many times to create, run and destroy it.
    pub repeat: u32,
    /// How often it is started again after a reset, its own or its watchdog's; one more stops it.
    pub max_resets: u32,
    /// Milliseconds that it may leave its watchdog alone, if it has one; at least 1000.
    pub watchdog_ms: Option<u32>,
    /// Expected end.
    pub expect: Expect,
    /// Text that the reason of the end must contain.
    pub expect_reason: Option<&'a str>,
    /// Name of the realm one of whose granules this VM maps on purpose at [`crate::layout::STRAY`].
    pub stray_granule_of: Option<&'a str>,
}

impl VmSpec<'_> {
    /// What is particular to a realm, if it is one.
    #[must_use]
    pub fn realm(&self) -> Option<&RealmSpec> {
        match &self.kind {
            VmKind::Vm => None,
            VmKind::Realm(realm) => Some(realm),
        }
    }
}

impl<'a> Bundle<'a> {
    /// Parses and checks a whole bundle, images and checksums included.
    ///
    /// # Errors
    /// [`ManifestError`] with node, property and fault for the first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ManifestError<'a>> {
        parse::bundle(bytes, crc32::update)
    }

    /// Like [`Bundle::parse`], with another implementation of CRC-32.
    ///
    /// # Errors
    /// As for [`Bundle::parse`].
    pub fn parse_with(bytes: &'a [u8], crc: crc32::Update) -> Result<Self, ManifestError<'a>> {
        parse::bundle(bytes, crc)
    }

    /// Bytes of an image.
    #[must_use]
    pub fn image(&self, image: &ImageRef) -> &'a [u8] {
        let end = image.offset.saturating_add(image.size);
        let span = usize::try_from(image.offset).ok().zip(usize::try_from(end).ok());
        span.and_then(|(start, end)| self.bytes.get(start..end)).unwrap_or(&[])
    }

    /// All bytes of the bundle.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests;
