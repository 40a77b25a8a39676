//! Names in a bundle's tree, shared by the parser and by whoever writes bundles.

/// `compatible` of the root.
pub const COMPATIBLE: &str = "suzerain,bundle";
/// Value of [`VERSION`] that this parser speaks.
pub const FORMAT_VERSION: u32 = 1;
/// Alignment in bytes of every image from the start of the bundle.
pub const IMAGE_ALIGN: u64 = 4096;

/// Root: u32, [`FORMAT_VERSION`].
pub const VERSION: &str = "version";
/// Root: u64, bytes of the whole bundle.
pub const TOTAL_SIZE: &str = "total-size";
/// Root: u32, CRC-32 of the tree with this property's value zeroed. Image nodes: u32, of the image.
pub const CRC32: &str = "crc32";
/// Root: string.
pub const SCENARIO: &str = "scenario";
/// Root, optional: string, [`GRANULE_PROTECTION`] or [`EL2_FAULT`].
pub const SELF_TEST: &str = "self-test";
/// Value of [`SELF_TEST`].
pub const GRANULE_PROTECTION: &str = "granule-protection";
/// Value of [`SELF_TEST`].
pub const EL2_FAULT: &str = "el2-fault";
/// Root, optional: u32, granules that stay delegated between realms.
pub const POOL: &str = "pool";
/// Node with one child per VM, whose node name is the VM's name. Channel: two strings.
pub const VMS: &str = "vms";
/// Root, optional: node with one child per channel, whose node name is the channel's name. Channel:
/// u64, [`SIZE`], and [`VMS`], the names of the two VMs.
pub const CHANNELS: &str = "channels";
/// Root, optional: names of the switches, strings.
pub const SWITCHES: &str = "switches";

/// VM: string, [`KIND_VM`] or [`KIND_REALM`].
pub const KIND: &str = "kind";
/// Value of [`KIND`].
pub const KIND_VM: &str = "vm";
/// Value of [`KIND`].
pub const KIND_REALM: &str = "realm";
/// VM: u32.
pub const VCPUS: &str = "vcpus";
/// VM: u64, bytes.
pub const MEMORY: &str = "memory";
/// VM: u32.
pub const PRIORITY: &str = "priority";
/// VM, optional, together with [`PERIOD_US`]: u32.
pub const BUDGET_US: &str = "budget-us";
/// VM, optional, together with [`BUDGET_US`]: u32.
pub const PERIOD_US: &str = "period-us";
/// VM, optional: string; when missing [`POPULATE_EAGER`] for an ordinary VM, [`POPULATE_IMAGE`] for a realm.
pub const POPULATE: &str = "populate";
/// Value of [`POPULATE`].
pub const POPULATE_EAGER: &str = "eager";
/// Value of [`POPULATE`].
pub const POPULATE_IMAGE: &str = "image";
/// Value of [`POPULATE`].
pub const POPULATE_LAZY: &str = "lazy";
/// VM, optional: u32, bit mask of cores.
pub const AFFINITY: &str = "affinity";
/// VM, optional: string.
pub const CMDLINE: &str = "cmdline";
/// VM, optional: u32, 1 when missing.
pub const REPEAT: &str = "repeat";
/// VM, optional: u32, how often it is started again after a reset of its own or its watchdog's;
/// [`crate::manifest::DEFAULT_RESETS`] when missing.
pub const MAX_RESETS: &str = "max-resets";
/// Ordinary VM, optional: u32, milliseconds that it may leave its watchdog alone.
pub const WATCHDOG_MS: &str = "watchdog-ms";
/// VM: string, [`EXPECT_OFF`], [`EXPECT_STOPPED`] or [`EXPECT_REFUSED`].
pub const EXPECT: &str = "expect";
/// Value of [`EXPECT`].
pub const EXPECT_OFF: &str = "off";
/// Value of [`EXPECT`].
pub const EXPECT_STOPPED: &str = "stopped";
/// Value of [`EXPECT`].
pub const EXPECT_REFUSED: &str = "refused";
/// VM, optional: string.
pub const EXPECT_REASON: &str = "expect-reason";
/// Ordinary VM, optional: string, name of a realm.
pub const STRAY_GRANULE_OF: &str = "stray-granule-of";
/// Realm, optional: 64 bytes, zero when missing.
pub const RPV: &str = "rpv";
/// Realm: string, [`SHA256`], [`SHA384`] or [`SHA512`].
pub const HASH: &str = "hash";
/// Value of [`HASH`].
pub const SHA256: &str = "sha256";
/// Value of [`HASH`].
pub const SHA384: &str = "sha384";
/// Value of [`HASH`].
pub const SHA512: &str = "sha512";
/// Realm: u32.
pub const IPA_BITS: &str = "ipa-bits";
/// Realm, optional: string, [`FAULT_PAGE`] when missing.
pub const FAULT: &str = "fault";
/// Value of [`FAULT`].
pub const FAULT_PAGE: &str = "page";
/// Value of [`FAULT`].
pub const FAULT_BLOCK: &str = "block";
/// Realm, optional: string, [`CONVERSIONS_ANY`] when missing.
pub const CONVERSIONS: &str = "conversions";
/// Value of [`CONVERSIONS`].
pub const CONVERSIONS_ANY: &str = "any";
/// Value of [`CONVERSIONS`].
pub const CONVERSIONS_TO_PRIVATE: &str = "to-private";
/// Value of [`CONVERSIONS`].
pub const CONVERSIONS_NONE: &str = "none";

/// Node in a VM: image to boot.
pub const KERNEL: &str = "kernel";
/// Node in a VM, optional: initial RAM disk.
pub const INITRAMFS: &str = "initramfs";
/// Node in a VM, optional: overlay to its device tree ([`crate::fdt::Overlay`]).
pub const OVERLAY: &str = "overlay";
/// Image nodes: u64, from the start of the bundle.
pub const OFFSET: &str = "offset";
/// Image nodes: u64, bytes. Channel: u64, bytes.
pub const SIZE: &str = "size";
/// Kernel node, optional: string, [`TYPE_IMAGE`] when missing.
pub const TYPE: &str = "type";
/// Value of [`TYPE`].
pub const TYPE_IMAGE: &str = "image";
/// Value of [`TYPE`].
pub const TYPE_RAW: &str = "raw";
/// Value of [`TYPE`].
pub const TYPE_ELF: &str = "elf";

/// Node in a VM, optional: devices, each an empty property or a child node.
pub const DEVICES: &str = "devices";
/// Devices: PL011 UART. An empty property puts it at [`crate::layout::UART`]; a child node with
/// [`REG`] and [`INTERRUPTS`] elsewhere.
pub const UART: &str = "uart";
/// Devices: empty property, erased flash at [`crate::layout::FLASH`].
pub const FLASH: &str = "flash";
/// Devices, optional: node with one child per virtio device, in the order of their slots. The name
/// of a child up to the `@` is the kind of device, what follows only tells it from the others.
pub const VIRTIO: &str = "virtio";
/// Kind of virtio device: console.
pub const CONSOLE: &str = "console";
/// Kind of virtio device: random numbers.
pub const ENTROPY: &str = "entropy";
/// Kind of virtio device: disk. It has [`SIZE`], and optionally [`READ_ONLY`] and a node [`IMAGE`].
pub const BLOCK: &str = "block";
/// Disk: empty property.
pub const READ_ONLY: &str = "read-only";
/// Node in a disk: its first bytes.
pub const IMAGE: &str = "image";
/// Kind of virtio device: network.
pub const NET: &str = "net";
/// Network: u32, index in [`SWITCHES`].
pub const SWITCH: &str = "switch";
/// Network: six bytes.
pub const MAC: &str = "mac-address";
/// Network, optional: string, [`SOURCE_ANY`]. Without, it sends from its own address only.
pub const SOURCE: &str = "source";
/// Value of [`SOURCE`].
pub const SOURCE_ANY: &str = "any";
/// Network: u64, most bytes of frames that wait for it, a power of two.
pub const QUEUE_BYTES: &str = "queue-bytes";
/// Network: u32, most frames that wait for it.
pub const QUEUE_FRAMES: &str = "queue-frames";
/// Network, optional: u32, thousand bits per second that it may send in the long run.
pub const RATE_KBPS: &str = "rate-kbps";
/// Devices of an ordinary VM: node with one child per device of the machine, with [`REG`],
/// [`COMPATIBLE_WITH`], [`DMA`] and, if the VM is to have its interrupt, [`INTERRUPTS`].
pub const PASSTHROUGH: &str = "passthrough";
/// Devices of the machine: strings, what the VM's device tree is to say.
pub const COMPATIBLE_WITH: &str = "compatible";
/// Devices of the machine: string, [`DMA_NONE`]: the user says that it cannot access memory.
pub const DMA: &str = "dma";
/// Value of [`DMA`].
pub const DMA_NONE: &str = "none";
/// Device nodes: two u64, address and size of the registers.
pub const REG: &str = "reg";
/// Device nodes: u32, INTID.
pub const INTERRUPTS: &str = "interrupts";
