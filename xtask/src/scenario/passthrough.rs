//! Devices of the machine that a VM gets as they are, as far as a scenario can be wrong about them. Whether the
//! machine has them and can give them away is found out by the hypervisor.

use toml::Spanned;
use vmm_services::layout;

use super::PassthroughDevice;
use super::format::{self, Kind};
use super::refusal::Source;

/// Pages, which stage-2 gives away as a whole.
const PAGE: u64 = 4096;

/// Refuses what only a device of the machine has; `size` is that of a disk as well.
pub(super) fn refuse_keys(source: &mut Source<'_>, device: &format::Device) {
    let keys = [
        ("compatible", device.compatible.as_ref().map(Spanned::span)),
        ("dma", device.dma.as_ref().map(Spanned::span)),
    ];
    for (key, span) in keys {
        if let Some(span) = span {
            source.refuse(&span, format!("{key} is for devices of the machine only"));
        }
    }
}

/// A device of the machine; `None` if it was refused.
pub(super) fn check(
    source: &mut Source<'_>,
    vm: &format::Vm,
    item: &Spanned<format::Device>,
    taken: &[(u64, u64, String)],
) -> Option<PassthroughDevice> {
    let device = item.get_ref();
    let span = item.span();
    if vm.kind == Kind::Realm {
        source.refuse(&span, "a realm gets no device of the machine: it could not trust it");
        return None;
    }
    if device.dma.is_none() {
        let reason = "dma = \"none\" is missing: a device that accesses memory is not given away, \
                      since nothing would confine it";
        source.refuse(&span, reason);
    }
    let (Some(address), Some(size), Some(compatible)) =
        (&device.address, &device.size, &device.compatible)
    else {
        source.refuse(&span, "a device of the machine has an address, a size and a compatible");
        return None;
    };
    let names = compatible.get_ref();
    if names.is_empty() || names.iter().any(|name| name.is_empty() || name.contains('\0')) {
        source.refuse(&compatible.span(), "compatible is a list of names");
    }
    let [address, size] = [*address.get_ref(), size.get_ref().0];
    let end = address.saturating_add(size.max(1)).next_multiple_of(PAGE);
    let ram_end = layout::RAM.get().saturating_add(vm.memory.get_ref().0);
    if !address.is_multiple_of(PAGE) || size == 0 || end > ram_end {
        source.refuse(
            &span,
            format!("the device at {address:#x} is not at a page below the end of RAM"),
        );
        return None;
    }
    let overlapped =
        taken.iter().find(|(start, size, _)| address < start.saturating_add(*size) && *start < end);
    if let Some((_, _, other)) = overlapped {
        source.refuse(&span, format!("the device at {address:#x} overlaps {other}"));
        return None;
    }
    Some(PassthroughDevice {
        address,
        size,
        interrupt: device.interrupt.as_ref().map(|interrupt| *interrupt.get_ref()),
        compatible: names.clone(),
    })
}
