//! The devices of a VM, checked: those with a place in the guest memory map, and virtio devices, whose
//! place follows from their order.

use std::ops::Range;

use toml::Spanned;
use vmm_services::layout;

use super::check::Images;
use super::format::{self, DeviceKind};
use super::refusal::Source;
use super::{Device, Disk, VirtioDevice, nets};

/// Granules and pages.
const PAGE: u64 = 4096;
/// Bytes of a disk's sector.
const SECTOR: u64 = 512;
/// Shared peripheral interrupts.
const SPI: Range<u32> = 32..1020;

/// Checks the devices of a VM; one UART if it names none.
pub(super) fn check(
    source: &mut Source<'_>,
    images: &Images,
    vm: &format::Vm,
) -> (Vec<Device>, Vec<VirtioDevice>) {
    let mut devices = Vec::new();
    let mut virtio = Vec::new();
    let Some(list) = &vm.device else { return (vec![Device::new(DeviceKind::Uart)], virtio) };
    let mut taken = taken(vm);
    for item in list {
        let kind = item.get_ref().kind;
        if kind != DeviceKind::Block {
            refuse_disk_keys(source, item.get_ref());
        }
        if kind != DeviceKind::Net {
            nets::refuse_keys(source, item);
        }
        if kind.is_virtio() {
            virtio.extend(check_virtio(source, images, item));
        } else if let Some((device, name)) = check_placed(source, vm, item, &taken) {
            if devices.iter().any(|other: &Device| other.kind == kind) {
                source.refuse(&item.span(), format!("a VM has at most one {}", kind.name()));
            }
            taken.push((device.address, device.size, name));
            devices.push(device);
        }
        if virtio.len() > layout::MAX_VIRTIO {
            let most = layout::MAX_VIRTIO;
            source.refuse(&item.span(), format!("a VM has at most {most} virtio devices"));
            break;
        }
    }
    (devices, virtio)
}

/// What has a place in a guest's address space whatever its devices: start, size, name.
fn taken(vm: &format::Vm) -> Vec<(u64, u64, String)> {
    let redistributors = u64::from(*vm.vcpus.get_ref()) * layout::GICR_STRIDE;
    let virtio = layout::MAX_VIRTIO as u64 * layout::VIRTIO_STRIDE;
    [
        (layout::GICD, layout::GICD_SIZE, "the GIC distributor"),
        (layout::GICR, redistributors, "the GIC redistributors"),
        (layout::VIRTIO, virtio, "the virtio devices"),
        (layout::RAM, vm.memory.get_ref().0, "the VM's memory"),
    ]
    .map(|(start, size, name)| (start.get(), size, name.to_owned()))
    .into()
}

/// A device in its place: not on top of another, of the interrupt controller, or of RAM. Returns it
/// with its name; `None` if it was refused.
fn check_placed(
    source: &mut Source<'_>,
    vm: &format::Vm,
    item: &Spanned<format::Device>,
    taken: &[(u64, u64, String)],
) -> Option<(Device, String)> {
    let span = item.span();
    let mut device = Device::new(item.get_ref().kind);
    if let Some(address) = &item.get_ref().address {
        device.address = *address.get_ref();
    }
    if let Some(interrupt) = &item.get_ref().interrupt {
        device.interrupt = *interrupt.get_ref();
    }
    if device.kind == DeviceKind::Flash && !device.is_in_its_place() {
        source.refuse(&span, "the flash cannot be moved and has no interrupt");
    }
    let name = format!("the {} at {:#x}", device.kind.name(), device.address);
    let end = device.address.saturating_add(device.size);
    let ram_end = layout::RAM.get().saturating_add(vm.memory.get_ref().0);
    if !device.address.is_multiple_of(PAGE) || end > ram_end {
        source.refuse(&span, format!("{name} is not at a page below the end of RAM"));
    }
    let overlapped = taken
        .iter()
        .find(|(start, size, _)| device.address < start.saturating_add(*size) && *start < end);
    if let Some((_, _, other)) = overlapped {
        source.refuse(&span, format!("{name} overlaps {other}"));
        return None;
    }
    if device.kind != DeviceKind::Flash && !SPI.contains(&device.interrupt) {
        let (first, last) = (SPI.start, SPI.end - 1);
        let reason = format!("interrupt {} is none of {first} to {last}", device.interrupt);
        source.refuse(&span, reason);
    }
    Some((device, name))
}

/// A virtio device; `None` if it was refused.
fn check_virtio(
    source: &mut Source<'_>,
    images: &Images,
    item: &Spanned<format::Device>,
) -> Option<VirtioDevice> {
    let device = item.get_ref();
    let places =
        [device.address.as_ref().map(Spanned::span), device.interrupt.as_ref().map(Spanned::span)];
    for span in places.into_iter().flatten() {
        source.refuse(&span, "the place of a virtio device follows from its order");
    }
    match device.kind {
        DeviceKind::Console => Some(VirtioDevice::Console),
        DeviceKind::Entropy => Some(VirtioDevice::Entropy),
        DeviceKind::Block => Some(VirtioDevice::Block(check_disk(source, images, item))),
        DeviceKind::Net => Some(VirtioDevice::Net(nets::check(source, item))),
        DeviceKind::Uart | DeviceKind::Flash => None,
    }
}

fn check_disk(source: &mut Source<'_>, images: &Images, item: &Spanned<format::Device>) -> Disk {
    let device = item.get_ref();
    match &device.size {
        None if device.image.is_none() => {
            source.refuse(&item.span(), "a disk has an image, a size, or both");
        }
        Some(size) if size.get_ref().0 == 0 || !size.get_ref().0.is_multiple_of(SECTOR) => {
            source.refuse(&size.span(), format!("the size of a disk is a multiple of {SECTOR}"));
        }
        _ => {}
    }
    Disk {
        image: device.image.as_ref().map(|name| images.find(source, name)),
        size: device.size.as_ref().map(|size| *size.get_ref()),
        read_only: device.read_only.as_ref().is_some_and(|value| *value.get_ref()),
        line: source.line(&item.span()),
    }
}

fn refuse_disk_keys(source: &mut Source<'_>, device: &format::Device) {
    let keys = [
        ("image", device.image.as_ref().map(Spanned::span)),
        ("size", device.size.as_ref().map(Spanned::span)),
        ("read-only", device.read_only.as_ref().map(Spanned::span)),
    ];
    for (key, span) in keys {
        if let Some(span) = span {
            source.refuse(&span, format!("{key} is for disks only"));
        }
    }
}

impl DeviceKind {
    /// Whether it is a virtio device.
    fn is_virtio(self) -> bool {
        match self {
            Self::Console | Self::Entropy | Self::Block | Self::Net => true,
            Self::Uart | Self::Flash => false,
        }
    }
}

impl Device {
    /// A device in the place that the guest memory map gives it.
    fn new(kind: DeviceKind) -> Self {
        let (address, size, interrupt) = match kind {
            DeviceKind::Uart => (layout::UART, layout::UART_SIZE, layout::UART_INTID),
            _ => (layout::FLASH, layout::FLASH_SIZE, 0),
        };
        Self { kind, address: address.get(), size, interrupt }
    }

    /// True when the guest memory map puts it here.
    pub(crate) fn is_in_its_place(&self) -> bool {
        let usual = Self::new(self.kind);
        (self.address, self.interrupt) == (usual.address, usual.interrupt)
    }
}
