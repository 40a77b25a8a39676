//! The devices of a VM, checked: those with a place in the guest memory map, virtio devices, whose
//! place follows from their order, and devices of the machine, which stay where they are.

use toml::Spanned;
use vmm_services::layout;
use vmm_services::passthrough::MAX_PASSTHROUGH;
use vmm_services::vgic::MAX_INTID;

use super::check::Images;
use super::format::{self, DeviceKind};
use super::refusal::Source;
use super::{Device, Disk, PassthroughDevice, VirtioDevice, nets, passthrough};

/// Granules and pages.
const PAGE: u64 = 4096;
/// Bytes of a disk's sector.
const SECTOR: u64 = 512;
/// The first shared peripheral interrupt.
const FIRST_SPI: u32 = 32;

/// The devices of a VM.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) placed: Vec<Device>,
    pub(super) virtio: Vec<VirtioDevice>,
    pub(super) passthrough: Vec<PassthroughDevice>,
}

/// Checks the devices of a VM; one UART if it names none.
pub(super) fn check(source: &mut Source<'_>, images: &Images, vm: &format::Vm) -> Devices {
    let mut found = Devices::default();
    let Devices { placed: devices, virtio, passthrough: given } = &mut found;
    let Some(list) = &vm.device else {
        devices.push(Device::new(DeviceKind::Uart));
        return found;
    };
    let mut taken = taken(vm);
    let mut interrupts: Vec<(u32, String)> = Vec::new();
    for item in list {
        let kind = item.get_ref().kind;
        if kind != DeviceKind::Block {
            refuse_disk_keys(source, item.get_ref());
        }
        if kind != DeviceKind::Net {
            nets::refuse_keys(source, item);
        }
        if kind != DeviceKind::Passthrough {
            passthrough::refuse_keys(source, item.get_ref());
        }
        if kind == DeviceKind::Passthrough {
            let Some(device) = passthrough::check(source, vm, item, &taken) else { continue };
            let name = format!("the device at {:#x}", device.address);
            if let Some(intid) = device.interrupt {
                check_interrupt(source, item, intid, &interrupts);
                interrupts.push((intid, name.clone()));
            }
            taken.push((device.address, device.size, name));
            given.push(device);
            if given.len() > MAX_PASSTHROUGH {
                let reason = format!("a VM has at most {MAX_PASSTHROUGH} devices of the machine");
                source.refuse(&item.span(), reason);
            }
        } else if kind.is_virtio() {
            virtio.extend(check_virtio(source, images, item));
        } else if let Some((device, name)) = check_placed(source, vm, item, &taken) {
            if devices.iter().any(|other: &Device| other.kind == kind) {
                source.refuse(&item.span(), format!("a VM has at most one {}", kind.name()));
            }
            if kind != DeviceKind::Flash {
                check_interrupt(source, item, device.interrupt, &interrupts);
                interrupts.push((device.interrupt, name.clone()));
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
    found
}

/// An interrupt that the VM's interrupt controller has, that belongs to no place of the memory map, and
/// that no other device has.
fn check_interrupt(
    source: &mut Source<'_>,
    item: &Spanned<format::Device>,
    intid: u32,
    others: &[(u32, String)],
) {
    let span = item.get_ref().interrupt.as_ref().map_or_else(|| item.span(), Spanned::span);
    if !(FIRST_SPI..=MAX_INTID).contains(&intid) {
        let reason = format!(
            "interrupt {intid} is none of {FIRST_SPI} to {MAX_INTID}, which a VM's GIC has"
        );
        source.refuse(&span, reason);
    } else if layout::is_reserved_interrupt(intid) {
        source.refuse(&span, format!("interrupt {intid} is kept for virtio devices and channels"));
    } else if let Some((_, other)) = others.iter().find(|(other, _)| *other == intid) {
        source.refuse(&span, format!("interrupt {intid} is that of {other}"));
    }
}

/// What has a place in a guest's address space whatever its devices: start, size, name.
fn taken(vm: &format::Vm) -> Vec<(u64, u64, String)> {
    let redistributors = u64::from(*vm.vcpus.get_ref()) * layout::GICR_STRIDE;
    let virtio = layout::MAX_VIRTIO as u64 * layout::VIRTIO_STRIDE;
    let channels = layout::MAX_VM_CHANNELS as u64 * PAGE;
    let channel_memory = layout::MAX_VM_CHANNELS as u64 * layout::CHANNEL_MEMORY_STRIDE;
    [
        (layout::GICD, layout::GICD_SIZE, "the GIC distributor"),
        (layout::GICR, redistributors, "the GIC redistributors"),
        (layout::VIRTIO, virtio, "the virtio devices"),
        (layout::CHANNEL, channels, "the channels' registers"),
        (layout::CHANNEL_MEMORY, channel_memory, "the channels' memory"),
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
        DeviceKind::Uart | DeviceKind::Flash | DeviceKind::Passthrough => None,
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
    let is_given = device.kind == DeviceKind::Passthrough;
    let keys = [
        ("image", device.image.as_ref().map(Spanned::span)),
        ("size", device.size.as_ref().filter(|_| !is_given).map(Spanned::span)),
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
            Self::Uart | Self::Flash | Self::Passthrough => false,
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
