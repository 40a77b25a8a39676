//! The scenario file as TOML, before its values are checked against each other.

use serde::Deserialize;
use toml::Spanned;

use super::size::Size;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    /// What the console's last line calls it; the file's name unless given.
    pub(super) name: Option<Spanned<String>>,
    /// A deliberate fault that the hypervisor tries on itself.
    pub(super) self_test: Option<SelfTest>,
    pub(super) machine: Machine,
    #[serde(default)]
    pub(super) vm: Vec<Spanned<Vm>>,
    /// Memory with doorbells between two of them.
    #[serde(default)]
    pub(super) channel: Vec<Spanned<Channel>>,
}

/// The machine that the hypervisor runs on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub(super) cpus: Spanned<u32>,
    pub(super) memory: Spanned<Size>,
    /// Granules that stay delegated between realms.
    pub(super) pool: Option<Spanned<u32>>,
}

/// One VM or realm.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Vm {
    pub(super) name: Spanned<String>,
    pub(super) kind: Kind,
    #[serde(default = "one")]
    pub(super) vcpus: Spanned<u32>,
    pub(super) memory: Spanned<Size>,
    /// `setup:NAME`, `guest:NAME`, or a path beside the scenario file.
    pub(super) kernel: Spanned<String>,
    pub(super) kernel_type: Option<ImageType>,
    pub(super) initramfs: Option<Spanned<String>>,
    /// Additions to its device tree: a compiled overlay, or the source of one.
    pub(super) overlay: Option<Spanned<String>>,
    pub(super) cmdline: Option<Spanned<String>>,
    /// From 0, the least urgent, to 15.
    pub(super) priority: Option<Spanned<u32>>,
    /// At most so many microseconds of core time in each period, per vCPU.
    pub(super) budget_us: Option<Spanned<u32>>,
    pub(super) period_us: Option<Spanned<u32>>,
    /// Cores that its vCPUs may run on.
    pub(super) affinity: Option<Spanned<Vec<u32>>>,
    /// Emulated devices; one UART unless given.
    pub(super) device: Option<Vec<Spanned<Device>>>,
    /// It is created, run and destroyed so many times.
    pub(super) repeat: Option<Spanned<u32>>,
    /// What a reset, its own or its watchdog's, leads to.
    pub(super) on_reset: Option<Spanned<OnReset>>,
    /// How often a reset starts it again; one more stops it.
    pub(super) max_resets: Option<Spanned<u32>>,
    /// Normal VMs: milliseconds that it may leave its watchdog alone; no watchdog unless given.
    pub(super) watchdog_ms: Option<Spanned<u32>>,
    /// The end state without which the scenario fails.
    #[serde(default)]
    pub(super) expect: Expect,
    /// Text that the reason of that end state has to contain.
    pub(super) expect_reason: Option<Spanned<String>>,
    /// Realms: hash of the measurements.
    pub(super) hash: Option<Spanned<Hash>>,
    /// Realms: width of the intermediate physical address.
    pub(super) ipa_bits: Option<Spanned<u32>>,
    /// Realms: personalisation value, up to 64 bytes in hexadecimal.
    pub(super) personalization: Option<Spanned<String>>,
    /// Realms: when RAM gets memory.
    pub(super) populate: Option<Populate>,
    /// Realms: how much memory a fault brings in.
    pub(super) fault: Option<Spanned<Fault>>,
    /// Realms: conversions of its memory that the owner allows.
    pub(super) conversions: Option<Spanned<Conversions>>,
    /// Normal VMs: its stage-2 maps, on purpose, a granule of that realm.
    pub(super) stray_granule_of: Option<Spanned<String>>,
}

/// A channel between two VMs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Channel {
    pub(super) name: Spanned<String>,
    pub(super) vms: Spanned<[String; 2]>,
    pub(super) memory: Spanned<Size>,
}

/// An emulated device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Device {
    pub(super) kind: DeviceKind,
    /// Intermediate physical address; the guest memory map's place unless given.
    pub(super) address: Option<Spanned<u64>>,
    /// GIC interrupt number.
    pub(super) interrupt: Option<Spanned<u32>>,
    /// Block: its first bytes, as `kernel` names images.
    pub(super) image: Option<Spanned<String>>,
    /// Block: size, that of the image unless given. Passthrough: bytes of registers.
    pub(super) size: Option<Spanned<Size>>,
    /// Block: writes are refused.
    pub(super) read_only: Option<Spanned<bool>>,
    /// Net: name of the switch that it is plugged into.
    pub(super) switch: Option<Spanned<String>>,
    /// Net: its address.
    pub(super) mac: Option<Spanned<String>>,
    /// Net: which addresses it may send from.
    pub(super) source: Option<SourceAddress>,
    /// Net: bytes of frames that may wait for it.
    pub(super) queue: Option<Spanned<Size>>,
    /// Net: frames that may wait for it.
    pub(super) queue_frames: Option<Spanned<u32>>,
    /// Net: thousand bits per second that it may send in the long run.
    pub(super) rate_kbps: Option<Spanned<u32>>,
    /// Passthrough: what the VM's device tree says.
    pub(super) compatible: Option<Spanned<Vec<String>>>,
    /// Passthrough: what memory the device accesses by itself.
    pub(super) dma: Option<Spanned<Dma>>,
}

/// Which addresses a network device may send from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SourceAddress {
    /// Its own.
    Own,
    /// Any that is not of another device on the switch.
    Any,
}

/// Memory that a device accesses by itself.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Dma {
    None,
}

/// What a VM is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// An ordinary VM.
    Vm,
    /// A CCA realm.
    Realm,
}

/// How a payload is laid out.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ImageType {
    /// With the arm64 Linux header.
    Image,
    /// Entered at its first byte.
    Raw,
    /// An ELF file with load segments.
    Elf,
}

/// What a reset leads to.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnReset {
    /// The VM starts again.
    #[default]
    Restart,
    /// The VM is stopped for it.
    Stop,
}

/// End states.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expect {
    /// The guest powered itself off.
    #[default]
    Off,
    /// The hypervisor stopped it for a fault of its own.
    Stopped,
    /// It was never run.
    Refused,
}

/// Hash algorithms of realm measurements.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hash {
    #[default]
    Sha256,
    Sha384,
    Sha512,
}

/// When the RAM of a VM gets memory.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Populate {
    /// Before it starts.
    Eager,
    /// The images before it starts, the rest when it is touched.
    Image,
    /// Pages with contents before it starts, the rest when it is touched.
    Lazy,
}

/// How much memory a fault of a realm brings in.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    #[default]
    Page,
    /// 2 MiB.
    Block,
}

/// Conversions of a realm's memory that its owner allows.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Conversions {
    #[default]
    Any,
    ToPrivate,
    None,
}

/// Kinds of emulated devices.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeviceKind {
    /// Arm PL011.
    Uart,
    /// Erased flash, which U-Boot wants to see. It has no interrupt and cannot be moved.
    Flash,
    /// Virtio console.
    Console,
    /// Virtio entropy device.
    Entropy,
    /// Virtio block device.
    Block,
    /// Virtio network device.
    Net,
    /// A device of the machine.
    Passthrough,
}

/// Deliberate faults that the hypervisor can try on itself.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SelfTest {
    /// Touches granules of a running realm; each access has to fault.
    GranuleProtection,
    /// Takes an exception at EL2 on behalf of the first VM.
    El2Fault,
}

fn one() -> Spanned<u32> {
    Spanned::new(0..0, 1)
}

/// Text of the enumerations as the bundle carries them.
macro_rules! names {
    ($($type:ident { $($variant:ident => $name:literal),+ $(,)? })+) => {$(
        impl $type {
            /// The name in files and on the console.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    )+};
}

names! {
    Kind { Vm => "vm", Realm => "realm" }
    ImageType { Image => "image", Raw => "raw", Elf => "elf" }
    Expect { Off => "off", Stopped => "stopped", Refused => "refused" }
    Hash { Sha256 => "sha256", Sha384 => "sha384", Sha512 => "sha512" }
    Populate { Eager => "eager", Image => "image", Lazy => "lazy" }
    Fault { Page => "page", Block => "block" }
    Conversions { Any => "any", ToPrivate => "to-private", None => "none" }
    DeviceKind {
        Uart => "uart", Flash => "flash", Console => "console", Entropy => "entropy",
        Block => "block", Net => "net", Passthrough => "passthrough",
    }
    SelfTest { GranuleProtection => "granule-protection", El2Fault => "el2-fault" }
}
