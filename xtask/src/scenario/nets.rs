//! Network devices, and the switches that they name.

use toml::Spanned;
use vmm_services::manifest::MAX_SWITCHES;
use vmm_services::switch::{MAX_PORTS, MIN_QUEUE_BYTES, MacAddr};

use super::check::check_name;
use super::format::{self, DeviceKind, SourceAddress};
use super::refusal::Source;
use super::size::Size;
use super::{Net, VirtioDevice, Vm};

/// Bytes of frames that wait for a device, unless given.
const QUEUE: Size = Size(128 << 10);
/// Most bytes of frames that wait for a device.
const MAX_QUEUE: Size = Size(1 << 20);
/// Most frames that wait for a device, unless given.
const QUEUE_FRAMES: u32 = 256;
/// Most frames that may be allowed to wait for a device.
const MAX_QUEUE_FRAMES: u32 = 4096;

/// Refuses the keys of network devices in a device of another kind.
pub(super) fn refuse_keys(source: &mut Source<'_>, item: &Spanned<format::Device>) {
    let device = item.get_ref();
    let keys = [
        device.switch.as_ref().map(|key| ("switch", key.span())),
        device.mac.as_ref().map(|key| ("mac", key.span())),
        device.source.map(|_| ("source", item.span())),
        device.queue.as_ref().map(|key| ("queue", key.span())),
        device.queue_frames.as_ref().map(|key| ("queue-frames", key.span())),
        device.rate_kbps.as_ref().map(|key| ("rate-kbps", key.span())),
    ];
    for (key, span) in keys.into_iter().flatten() {
        source.refuse(&span, format!("{key} is for a net only"));
    }
}

/// Checks a network device by itself.
pub(super) fn check(source: &mut Source<'_>, item: &Spanned<format::Device>) -> Net {
    let device = item.get_ref();
    match &device.switch {
        Some(switch) => check_name(source, switch.get_ref(), &switch.span()),
        None => source.refuse(&item.span(), "a net names its switch"),
    }
    let queue = device.queue.as_ref().map_or(QUEUE, |queue| *queue.get_ref());
    let least = Size(MIN_QUEUE_BYTES as u64);
    if let Some(span) = device.queue.as_ref().map(Spanned::span)
        && (!queue.0.is_power_of_two() || !(least..=MAX_QUEUE).contains(&queue))
    {
        let reason = format!("the queue of a net is a power of two from {least} to {MAX_QUEUE}");
        source.refuse(&span, reason);
    }
    let frames = device.queue_frames.as_ref();
    if let Some(frames) = frames.filter(|n| !(1..=MAX_QUEUE_FRAMES).contains(n.get_ref())) {
        source.refuse(&frames.span(), format!("queue-frames is 1 to {MAX_QUEUE_FRAMES}"));
    }
    if let Some(rate) = device.rate_kbps.as_ref().filter(|rate| *rate.get_ref() == 0) {
        source.refuse(&rate.span(), "a net may send something");
    }
    let mac = device.mac.as_ref().map(|text| {
        let mac = parse(text.get_ref()).filter(|mac| mac.is_station());
        mac.unwrap_or_else(|| {
            source.refuse(&text.span(), "a mac is six bytes like 02:00:00:00:00:01, no group");
            MacAddr([0; 6])
        })
    });
    Net {
        switch: device.switch.as_ref().map_or_else(String::new, |name| name.get_ref().clone()),
        mac: mac.map_or([0; 6], |mac| mac.0),
        any_source: device.source == Some(SourceAddress::Any),
        queue,
        queue_frames: frames.map_or(QUEUE_FRAMES, |n| *n.get_ref()),
        rate_kbps: device.rate_kbps.as_ref().map(|rate| *rate.get_ref()),
    }
}

fn parse(text: &str) -> Option<MacAddr> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()?;
    bytes.try_into().ok().map(MacAddr)
}

/// Gives addresses to the devices without one and checks what they have in common. Returns the names of
/// the switches. `vms` are what became of `entries`.
pub(super) fn connect(
    source: &mut Source<'_>,
    entries: &[Spanned<format::Vm>],
    vms: &mut [Vm],
) -> Vec<String> {
    let mut switches: Vec<String> = Vec::new();
    let mut ports: Vec<(String, [u8; 6])> = Vec::new();
    for (index, (entry, vm)) in entries.iter().zip(vms).enumerate() {
        let items = entry.get_ref().device.iter().flatten();
        let items = items.filter(|item| item.get_ref().kind == DeviceKind::Net);
        for (number, (item, net)) in items.zip(nets(vm)).enumerate() {
            let span = item.span();
            if net.mac == [0; 6] {
                net.mac = local_address(index, number);
            }
            if !switches.contains(&net.switch) {
                switches.push(net.switch.clone());
            }
            if switches.len() > MAX_SWITCHES {
                source.refuse(&span, format!("more than {MAX_SWITCHES} switches"));
                return switches;
            }
            let port = (net.switch.clone(), net.mac);
            if ports.contains(&port) {
                let mac = MacAddr(net.mac);
                source.refuse(&span, format!("another net on {} has {mac} too", net.switch));
            }
            ports.push(port);
            if ports.iter().filter(|(switch, _)| *switch == net.switch).count() > MAX_PORTS {
                source.refuse(&span, format!("a switch has at most {MAX_PORTS} ports"));
            }
        }
    }
    switches
}

fn nets(vm: &mut Vm) -> impl Iterator<Item = &mut Net> {
    vm.virtio.iter_mut().filter_map(|device| match device {
        VirtioDevice::Net(net) => Some(net),
        _ => None,
    })
}

/// A locally administered address for network device `number` of VM `vm`.
fn local_address(vm: usize, number: usize) -> [u8; 6] {
    [0x02, b'S', b'Z', 0, vm as u8, number as u8]
}
