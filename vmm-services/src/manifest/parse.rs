//! The parser.

use super::at::{At, Result};
use super::channels;
use super::names::{self, *};
use super::net;
use super::{
    BlockSpec, Budget, Bundle, Conversions, DEFAULT_RESETS, Devices, Expect, Fault, FaultSize,
    HashAlgorithm, ImageRef, KernelFormat, MAX_CMDLINE, MAX_NAME, MAX_POOL, MAX_TREE,
    MAX_VCPUS_IN_ALL, MIN_BUDGET_US, ManifestError, PRIORITIES, Placement, Populate, Property,
    RealmSpec, SelfTest, VirtioDevice, VmKind, VmSpec,
};
use crate::crc32::Update;
use crate::fdt::{self, Fdt, Overlay};
use crate::ids::MAX_VCPUS;
use crate::layout;
use crate::passthrough::{MAX_PASSTHROUGH, Passthrough};
use crate::virtio::SECTOR;
use arrayvec::ArrayVec;

/// VM memory comes in blocks of this size, in bytes.
const MEMORY_ALIGN: u64 = 2 << 20;
/// Most memory of a VM in bytes.
const MEMORY_MAX: u64 = 256 << 30;
/// Most repetitions of a VM.
const REPEAT_MAX: u64 = 1_000_000;
/// Longest time for a watchdog in milliseconds: one hour.
const WATCHDOG_MAX_MS: u64 = 3_600_000;
/// Longest period of a budget in microseconds: ten seconds.
const PERIOD_MAX_US: u64 = 10_000_000;
/// Largest disk in bytes.
const DISK_MAX: u64 = MEMORY_MAX;
/// Widths of a realm's IPA space; above 48 the RMM needs LPA2.
const IPA_BITS: core::ops::RangeInclusive<u64> = 32..=52;

/// The tree at the start of `bytes`.
fn tree(bytes: &[u8]) -> Result<'_, (&[u8], Fdt<'_>)> {
    let whole = |fault| ManifestError { node: "", property: Property::NONE, fault };
    let size = fdt::total_size(bytes).map_err(|e| whole(Fault::BadTree(e)))?;
    if size > MAX_TREE {
        return Err(whole(Fault::TreeTooLong));
    }
    let bytes = bytes.get(..size).ok_or(whole(Fault::BadTree(fdt::FdtError::Truncated)))?;
    let tree = Fdt::new(bytes).map_err(|e| whole(Fault::BadTree(e)))?;
    let root = At::root(&tree);
    if !root.node.is_compatible(COMPATIBLE) {
        return Err(root.fault("compatible", Fault::NotABundle));
    }
    match root.u32(VERSION)? {
        FORMAT_VERSION => Ok((bytes, tree)),
        other => Err(root.fault(VERSION, Fault::Version(other))),
    }
}

/// Size in bytes of the whole bundle, from its tree alone.
///
/// `tree` must hold the device tree at the start of the bundle (`totalsize` of its header). Only
/// the tree's format has been checked when this returns, so the size is to be compared with the
/// memory there is.
///
/// # Errors
/// [`ManifestError`] when it is not the tree of a bundle.
pub fn peek_total_size(tree: &[u8]) -> Result<'_, u64> {
    let (bytes, tree) = self::tree(tree)?;
    At::root(&tree).number_within(TOTAL_SIZE, bytes.len() as u64, u64::MAX)
}

pub(super) fn bundle(bytes: &[u8], crc: Update) -> Result<'_, Bundle<'_>> {
    let (tree_bytes, tree) = tree(bytes)?;
    let root = At::root(&tree);
    let total = root.number_within(TOTAL_SIZE, tree_bytes.len() as u64, u64::MAX)?;
    let whole = usize::try_from(total).ok().and_then(|total| bytes.get(..total));
    let mismatch = Fault::SizeMismatch { expected: total, present: bytes.len() as u64 };
    let bytes = whole.ok_or(root.fault(TOTAL_SIZE, mismatch))?;
    check_tree_checksum(&root, tree_bytes, crc)?;
    root.only(
        &["compatible", VERSION, TOTAL_SIZE, CRC32, SCENARIO, SELF_TEST, POOL, SWITCHES],
        &[VMS, CHANNELS],
    )?;

    let images = Images { bytes, first: tree_bytes.len() as u64, crc };
    let mut bundle = Bundle {
        bytes,
        scenario: root.str(SCENARIO)?,
        self_test: match root.optional_str(SELF_TEST)? {
            None => None,
            Some(GRANULE_PROTECTION) => Some(SelfTest::GranuleProtection),
            Some(EL2_FAULT) => Some(SelfTest::El2Fault),
            Some(_) => return Err(root.fault(SELF_TEST, Fault::BadValue)),
        },
        pool: match root.node.property(POOL) {
            None => None,
            Some(_) => Some(root.number_within(POOL, 0, u64::from(MAX_POOL))? as u32),
        },
        vms: ArrayVec::new(),
        switches: net::switches(&root)?,
        channels: ArrayVec::new(),
    };
    let vms = root.node.child(VMS).ok_or(root.fault(VMS, Fault::Missing))?;
    if let Some(property) = vms.properties().next() {
        return Err(root.fault(property.name, Fault::Unknown));
    }
    for node in vms.children() {
        let at = At::vm(node);
        let vm = vm(&at, &images)?;
        if bundle.vms.iter().any(|other| other.name == vm.name) {
            return Err(at.fault("", Fault::DuplicateName));
        }
        let vcpus: usize = bundle.vms.iter().map(|other| other.vcpus).sum();
        if vcpus + vm.vcpus > MAX_VCPUS_IN_ALL {
            return Err(at.fault(VCPUS, Fault::VcpuCount));
        }
        bundle.vms.try_push(vm).map_err(|_| root.fault(VMS, Fault::VmCount))?;
    }
    if bundle.vms.is_empty() {
        return Err(root.fault(VMS, Fault::VmCount));
    }
    check_strays(&bundle)?;
    net::check_ports(&bundle)?;
    bundle.channels = channels::channels(&root, &bundle.vms)?;
    Ok(bundle)
}

/// Checks the tree's own checksum, which is taken with its four bytes zero.
fn check_tree_checksum<'a>(root: &At<'a>, tree: &'a [u8], crc: Update) -> Result<'a, ()> {
    let expected = root.u32(CRC32)?;
    let value = root.node.property(CRC32).map_or(&[][..], |p| p.value);
    // The value is a part of `tree`, so this is its offset.
    let offset = value.as_ptr().addr().wrapping_sub(tree.as_ptr().addr());
    let bad_type = root.fault(CRC32, Fault::BadType);
    let (before, rest) = tree.split_at_checked(offset).ok_or(bad_type)?;
    let after = rest.get(value.len()..).ok_or(bad_type)?;
    let found = crc(crc(crc(0, before), &[0; 4]), after);
    let fault = Fault::Checksum { expected, found };
    if expected == found { Ok(()) } else { Err(root.fault(CRC32, fault)) }
}

/// Checks that every VM that is to stray does so into a realm.
fn check_strays<'a>(bundle: &Bundle<'a>) -> Result<'a, ()> {
    for vm in &bundle.vms {
        let Some(target) = vm.stray_granule_of else { continue };
        if !bundle.vms.iter().any(|other| other.name == target && other.realm().is_some()) {
            let property = Property { child: "", name: STRAY_GRANULE_OF };
            return Err(ManifestError { node: vm.name, property, fault: Fault::NoSuchVm });
        }
    }
    Ok(())
}

/// Where the images are.
struct Images<'a> {
    bytes: &'a [u8],
    /// First byte that is not the tree's.
    first: u64,
    crc: Update,
}

impl Images<'_> {
    fn checked<'a>(&self, at: &At<'a>) -> Result<'a, ImageRef> {
        self.checked_bytes(at).map(|(image, _)| image)
    }

    fn overlay<'a>(&self, at: &At<'a>) -> Result<'a, ImageRef> {
        at.only(&[OFFSET, SIZE, CRC32], &[])?;
        let (image, bytes) = self.checked_bytes(at)?;
        Overlay::new(bytes).map_err(|error| at.fault("", Fault::BadOverlay(error)))?;
        Ok(image)
    }

    fn checked_bytes<'a>(&self, at: &At<'a>) -> Result<'a, (ImageRef, &[u8])> {
        let image =
            ImageRef { offset: at.u64(OFFSET)?, size: at.u64(SIZE)?, crc32: at.u32(CRC32)? };
        let ImageRef { offset, size, .. } = image;
        if !offset.is_multiple_of(IMAGE_ALIGN) {
            let fault = Fault::Unaligned { value: offset, align: IMAGE_ALIGN };
            return Err(at.fault(OFFSET, fault));
        }
        let start = usize::try_from(offset).ok().filter(|_| offset >= self.first);
        let length = usize::try_from(size).ok().filter(|&n| n > 0);
        let tail = start.and_then(|start| self.bytes.get(start..));
        let span = tail.zip(length).and_then(|(tail, length)| tail.get(..length));
        let span = span.ok_or(at.fault("", Fault::OutOfBundle { offset, size }))?;
        let found = (self.crc)(0, span);
        if found != image.crc32 {
            return Err(at.fault(CRC32, Fault::Checksum { expected: image.crc32, found }));
        }
        Ok((image, span))
    }
}

fn vm<'a>(at: &At<'a>, images: &Images<'a>) -> Result<'a, VmSpec<'a>> {
    let name = at.node.name();
    let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let first_is_letter = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    if name.len() > MAX_NAME || !first_is_letter || !name.bytes().all(letters) {
        return Err(at.fault("", Fault::BadValue));
    }
    let kind = kind(at)?;
    let memory = at.number_within(MEMORY, MEMORY_ALIGN, memory_limit(&kind))?;
    if !memory.is_multiple_of(MEMORY_ALIGN) {
        let fault = Fault::Unaligned { value: memory, align: MEMORY_ALIGN };
        return Err(at.fault(MEMORY, fault));
    }
    let kernel = at.child(KERNEL).ok_or(at.fault(KERNEL, Fault::Missing))?;
    kernel.only(&[OFFSET, SIZE, CRC32, TYPE], &[])?;
    let initramfs = at.child(INITRAMFS);
    if let Some(initramfs) = &initramfs {
        initramfs.only(&[OFFSET, SIZE, CRC32], &[])?;
    }
    let cmdline = at.optional_str(CMDLINE)?.unwrap_or("");
    if cmdline.len() > MAX_CMDLINE {
        let fault =
            Fault::OutOfRange { value: cmdline.len() as u64, min: 0, max: MAX_CMDLINE as u64 };
        return Err(at.fault(CMDLINE, fault));
    }
    let devices = devices(at, images, memory)?;
    Ok(VmSpec {
        name,
        vcpus: at.number_within(VCPUS, 1, MAX_VCPUS as u64)? as usize,
        memory,
        populate: populate(at, &kind)?,
        priority: at.number_within(PRIORITY, 0, u64::from(PRIORITIES - 1))? as u32,
        budget: budget(at)?,
        affinity: match at.node.property(AFFINITY) {
            None => None,
            Some(_) => Some(at.number_within(AFFINITY, 1, u64::from(u32::MAX))? as u32),
        },
        kernel_format: match kernel.optional_str(TYPE)? {
            None | Some(TYPE_IMAGE) => KernelFormat::Image,
            Some(TYPE_RAW) => KernelFormat::Raw,
            Some(TYPE_ELF) => KernelFormat::Elf,
            Some(_) => return Err(kernel.fault(TYPE, Fault::BadValue)),
        },
        kernel: images.checked(&kernel)?,
        initramfs: initramfs.map(|at| images.checked(&at)).transpose()?,
        overlay: at.child(OVERLAY).map(|at| images.overlay(&at)).transpose()?,
        cmdline,
        passthrough: passthrough(at, &kind, memory, devices.uart)?,
        devices,
        repeat: match at.node.property(REPEAT) {
            None => 1,
            Some(_) => at.number_within(REPEAT, 1, REPEAT_MAX)? as u32,
        },
        max_resets: match at.node.property(MAX_RESETS) {
            None => DEFAULT_RESETS,
            Some(_) => at.number_within(MAX_RESETS, 0, REPEAT_MAX)? as u32,
        },
        watchdog_ms: match at.node.property(WATCHDOG_MS) {
            None => None,
            Some(_) => Some(at.number_within(WATCHDOG_MS, 1000, WATCHDOG_MAX_MS)? as u32),
        },
        expect: match at.str(EXPECT)? {
            EXPECT_OFF => Expect::Off,
            EXPECT_STOPPED => Expect::Stopped,
            EXPECT_REFUSED => Expect::Refused,
            _ => return Err(at.fault(EXPECT, Fault::BadValue)),
        },
        expect_reason: at.optional_str(EXPECT_REASON)?,
        stray_granule_of: at.optional_str(STRAY_GRANULE_OF)?,
        kind,
    })
}

/// Reads the kind, and refuses properties that are not known for it.
fn kind<'a>(at: &At<'a>) -> Result<'a, VmKind> {
    const COMMON: [&str; 13] = [
        KIND,
        VCPUS,
        MEMORY,
        POPULATE,
        PRIORITY,
        BUDGET_US,
        PERIOD_US,
        AFFINITY,
        CMDLINE,
        REPEAT,
        MAX_RESETS,
        EXPECT,
        EXPECT_REASON,
    ];
    const CHILDREN: [&str; 4] = [KERNEL, INITRAMFS, OVERLAY, DEVICES];
    let known = |own: &[&str]| {
        let unknown = |name: &str| !COMMON.contains(&name) && !own.contains(&name);
        match at.node.properties().find(|p| unknown(p.name)) {
            Some(property) => Err(at.fault(property.name, Fault::Unknown)),
            None => at.only_children(&CHILDREN),
        }
    };
    match at.str(KIND)? {
        KIND_VM => {
            known(&[STRAY_GRANULE_OF, WATCHDOG_MS])?;
            Ok(VmKind::Vm)
        }
        KIND_REALM => {
            known(&[RPV, HASH, names::IPA_BITS, FAULT, CONVERSIONS])?;
            Ok(VmKind::Realm(RealmSpec {
                rpv: match at.node.property(RPV) {
                    None => [0; 64],
                    Some(p) => p.value.try_into().map_err(|_| at.fault(RPV, Fault::BadType))?,
                },
                hash: match at.str(HASH)? {
                    SHA256 => HashAlgorithm::Sha256,
                    SHA384 => HashAlgorithm::Sha384,
                    SHA512 => HashAlgorithm::Sha512,
                    _ => return Err(at.fault(HASH, Fault::BadValue)),
                },
                ipa_bits: at.number_within(names::IPA_BITS, *IPA_BITS.start(), *IPA_BITS.end())?
                    as u32,
                fault: match at.optional_str(FAULT)? {
                    None | Some(FAULT_PAGE) => FaultSize::Page,
                    Some(FAULT_BLOCK) => FaultSize::Block,
                    Some(_) => return Err(at.fault(FAULT, Fault::BadValue)),
                },
                conversions: match at.optional_str(CONVERSIONS)? {
                    None | Some(CONVERSIONS_ANY) => Conversions::Any,
                    Some(CONVERSIONS_TO_PRIVATE) => Conversions::ToPrivate,
                    Some(CONVERSIONS_NONE) => Conversions::None,
                    Some(_) => return Err(at.fault(CONVERSIONS, Fault::BadValue)),
                },
            }))
        }
        _ => Err(at.fault(KIND, Fault::BadValue)),
    }
}

/// When the RAM of a VM of this kind gets memory.
fn populate<'a>(at: &At<'a>, kind: &VmKind) -> Result<'a, Populate> {
    match (at.optional_str(POPULATE)?, kind) {
        (Some(POPULATE_EAGER), _) | (None, VmKind::Vm) => Ok(Populate::Eager),
        (Some(POPULATE_IMAGE), _) | (None, VmKind::Realm(_)) => Ok(Populate::Image),
        (Some(POPULATE_LAZY), _) => Ok(Populate::Lazy),
        (Some(_), _) => Err(at.fault(POPULATE, Fault::BadValue)),
    }
}

/// Most memory of a VM of this kind: a realm's has to end below the shared half.
fn memory_limit(kind: &VmKind) -> u64 {
    match kind {
        VmKind::Vm => MEMORY_MAX,
        VmKind::Realm(realm) => ((1 << (realm.ipa_bits - 1)) - layout::RAM.get()).min(MEMORY_MAX),
    }
}

fn budget<'a>(at: &At<'a>) -> Result<'a, Option<Budget>> {
    let present = |name| at.node.property(name).is_some();
    match (present(BUDGET_US), present(PERIOD_US)) {
        (false, false) => Ok(None),
        (true, false) => Err(at.fault(BUDGET_US, Fault::Conflict(PERIOD_US))),
        (false, true) => Err(at.fault(PERIOD_US, Fault::Conflict(BUDGET_US))),
        (true, true) => {
            let least = u64::from(MIN_BUDGET_US);
            let period = at.number_within(PERIOD_US, least, PERIOD_MAX_US)?;
            let budget = at.number_within(BUDGET_US, least, period)?;
            Ok(Some(Budget { budget_us: budget as u32, period_us: period as u32 }))
        }
    }
}

fn devices<'a>(at: &At<'a>, images: &Images<'a>, memory: u64) -> Result<'a, Devices> {
    let Some(node) = at.child(DEVICES) else { return Ok(Devices::default()) };
    node.only(&[UART, FLASH], &[UART, VIRTIO, PASSTHROUGH])?;
    let uart = match (node.node.property(UART), node.child(UART)) {
        (None, None) => None,
        (Some(_), Some(_)) => return Err(node.fault(UART, Fault::Conflict(UART))),
        (Some(property), None) if property.value.is_empty() => {
            Some(Placement { base: layout::UART.get(), intid: layout::UART_INTID })
        }
        (Some(_), None) => return Err(node.fault(UART, Fault::BadType)),
        (None, Some(uart)) => Some(placement(&uart, layout::UART_SIZE, memory)?),
    };
    Ok(Devices { uart, flash: node.flag(FLASH)?, virtio: virtio(&node, images)? })
}

/// Reads the virtio devices.
fn virtio<'a>(
    devices: &At<'a>,
    images: &Images<'a>,
) -> Result<'a, ArrayVec<VirtioDevice, { layout::MAX_VIRTIO }>> {
    let mut found = ArrayVec::new();
    let Some(list) = devices.child(VIRTIO) else { return Ok(found) };
    for at in list.children()? {
        let device = match at.node.base_name() {
            CONSOLE => {
                at.only(&[], &[])?;
                VirtioDevice::Console
            }
            ENTROPY => {
                at.only(&[], &[])?;
                VirtioDevice::Entropy
            }
            BLOCK => VirtioDevice::Block(block(&at, images)?),
            NET => {
                let is_net = |device: &&VirtioDevice| matches!(device, VirtioDevice::Net(_));
                VirtioDevice::Net(net::device(&at, found.iter().filter(is_net).count() as u8)?)
            }
            _ => return Err(at.fault("", Fault::Unknown)),
        };
        found.try_push(device).map_err(|_| list.fault("", Fault::TooMany(layout::MAX_VIRTIO)))?;
    }
    Ok(found)
}

fn block<'a>(at: &At<'a>, images: &Images<'a>) -> Result<'a, BlockSpec> {
    at.only(&[SIZE, READ_ONLY], &[IMAGE])?;
    let image = match at.child(IMAGE) {
        None => None,
        Some(image) => {
            image.only(&[OFFSET, SIZE, CRC32], &[])?;
            Some(images.checked(&image)?)
        }
    };
    let least = image.map_or(SECTOR, |image| image.size);
    let size = at.number_within(SIZE, least, DISK_MAX)?;
    if !size.is_multiple_of(SECTOR) {
        return Err(at.fault(SIZE, Fault::Unaligned { value: size, align: SECTOR }));
    }
    Ok(BlockSpec { image, size, read_only: at.flag(READ_ONLY)? })
}

/// Reads which devices of the machine the VM gets. Whether the machine has them and can give them away
/// is found out when the VM is built.
fn passthrough<'a>(
    at: &At<'a>,
    kind: &VmKind,
    memory: u64,
    uart: Option<Placement>,
) -> Result<'a, ArrayVec<Passthrough<'a>, MAX_PASSTHROUGH>> {
    let mut found: ArrayVec<Passthrough<'a>, MAX_PASSTHROUGH> = ArrayVec::new();
    let Some(devices) = at.child(DEVICES) else { return Ok(found) };
    let Some(list) = devices.child(PASSTHROUGH) else { return Ok(found) };
    // What the host gives to a realm, the realm cannot trust.
    if matches!(kind, VmKind::Realm(_)) {
        return Err(list.fault("", Fault::Unknown));
    }
    for at in list.children()? {
        at.only(&[REG, INTERRUPTS, COMPATIBLE_WITH, DMA], &[])?;
        if at.str(DMA)? != DMA_NONE {
            return Err(at.fault(DMA, Fault::BadValue));
        }
        let (base, size) = reg(&at)?;
        let device = Passthrough {
            base,
            size,
            intid: match at.node.property(INTERRUPTS) {
                None => None,
                Some(_) => Some(interrupt(&at)?),
            },
            compatible: compatible(&at)?,
        };
        let pages = device.pages();
        let taken = found.iter().map(|other| (other.pages().base, other.pages().end()));
        let taken = taken.chain(uart.map(|uart| (uart.base, uart.base + layout::UART_SIZE)));
        let overlaps = |(start, end)| pages.base < end && start < pages.end();
        if !layout::is_free(pages.base, pages.size, memory) || taken.into_iter().any(overlaps) {
            return Err(at.fault(REG, Fault::Overlap { address: base }));
        }
        let interrupts = found.iter().filter_map(|other| other.intid);
        let mut interrupts = interrupts.chain(uart.map(|uart| uart.intid));
        if let Some(intid) = device.intid.filter(|intid| interrupts.any(|other| other == *intid)) {
            return Err(at.fault(INTERRUPTS, Fault::InterruptTaken(intid)));
        }
        found.try_push(device).map_err(|_| list.fault("", Fault::TooMany(MAX_PASSTHROUGH)))?;
    }
    Ok(found)
}

/// A list of strings, none of them empty, as it stands.
fn compatible<'a>(at: &At<'a>) -> Result<'a, &'a [u8]> {
    let property = at.property(COMPATIBLE_WITH)?;
    let text = property.value.strip_suffix(&[0]).and_then(|text| core::str::from_utf8(text).ok());
    match text.is_some_and(|text| text.split('\0').all(|name| !name.is_empty())) {
        true => Ok(property.value),
        false => Err(at.fault(COMPATIBLE_WITH, Fault::BadType)),
    }
}

/// Address and size in `reg`.
fn reg<'a>(at: &At<'a>) -> Result<'a, (u64, u64)> {
    let reg = at.node.property(REG).ok_or(at.fault(REG, Fault::Missing))?;
    match reg.value.split_at_checked(8).map(|(b, s)| (b.try_into(), s.try_into())) {
        Some((Ok(base), Ok(size))) => Ok((u64::from_be_bytes(base), u64::from_be_bytes(size))),
        _ => Err(at.fault(REG, Fault::BadType)),
    }
}

/// A shared interrupt that no device has by its place.
fn interrupt<'a>(at: &At<'a>) -> Result<'a, u32> {
    let last = u64::from(crate::vgic::MAX_INTID);
    let intid = at.number_within(INTERRUPTS, 32, last)? as u32;
    if layout::is_reserved_interrupt(intid) {
        return Err(at.fault(INTERRUPTS, Fault::InterruptTaken(intid)));
    }
    Ok(intid)
}

/// Reads where a device is and checks that the place is free.
fn placement<'a>(at: &At<'a>, size: u64, memory: u64) -> Result<'a, Placement> {
    at.only(&[REG, INTERRUPTS], &[])?;
    let (base, reg_size) = reg(at)?;
    if reg_size != size {
        return Err(at.fault(REG, Fault::OutOfRange { value: reg_size, min: size, max: size }));
    }
    if !base.is_multiple_of(mm::PAGE_SIZE) {
        return Err(at.fault(REG, Fault::Unaligned { value: base, align: mm::PAGE_SIZE }));
    }
    if !layout::is_free(base, size, memory) {
        return Err(at.fault(REG, Fault::Overlap { address: base }));
    }
    Ok(Placement { base, intid: interrupt(at)? })
}
