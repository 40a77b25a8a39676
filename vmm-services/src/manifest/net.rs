//! Network devices of a bundle, and the switches that they are plugged into.

use super::at::{At, Result};
use super::names::{
    MAC, QUEUE_BYTES, QUEUE_FRAMES, RATE_KBPS, SOURCE, SOURCE_ANY, SWITCH, SWITCHES,
};
use super::{Bundle, Fault, MAX_SWITCHES, ManifestError, Property, VirtioDevice};
use crate::switch::{MAX_PORTS, MIN_QUEUE_BYTES, MacAddr, PortConfig, SourcePolicy};
use crate::traits::NicId;
use arrayvec::ArrayVec;
use core::num::NonZeroU32;

/// Most bytes of frames that wait for a device.
const QUEUE_BYTES_MAX: u64 = 1 << 20;
/// Most frames that wait for a device.
const QUEUE_FRAMES_MAX: u64 = 4096;

/// A network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Which one of the VM it is, and where it is plugged in.
    pub nic: NicId,
    /// What it is and may do there.
    pub port: PortConfig,
    /// Most bytes of frames that wait for it: a power of two.
    pub queue_bytes: u32,
}

/// Reads a network device, number `number` of its VM.
pub(super) fn device<'a>(at: &At<'a>, number: u8) -> Result<'a, NetSpec> {
    at.only(&[SWITCH, MAC, SOURCE, QUEUE_BYTES, QUEUE_FRAMES, RATE_KBPS], &[])?;
    let switch = at.number_within(SWITCH, 0, MAX_SWITCHES as u64 - 1)? as u8;
    let mac = at.property(MAC)?.value.try_into().map_err(|_| at.fault(MAC, Fault::BadType))?;
    let mac = MacAddr(mac);
    if !mac.is_station() {
        return Err(at.fault(MAC, Fault::BadValue));
    }
    let source = match at.optional_str(SOURCE)? {
        None => SourcePolicy::Own,
        Some(SOURCE_ANY) => SourcePolicy::Any,
        Some(_) => return Err(at.fault(SOURCE, Fault::BadValue)),
    };
    let queue_bytes =
        at.number_within(QUEUE_BYTES, MIN_QUEUE_BYTES as u64, QUEUE_BYTES_MAX)? as u32;
    if !queue_bytes.is_power_of_two() {
        return Err(at.fault(QUEUE_BYTES, Fault::BadValue));
    }
    let rate_kbps = match at.node.property(RATE_KBPS) {
        None => None,
        Some(_) => NonZeroU32::new(at.number_within(RATE_KBPS, 1, u64::from(u32::MAX))? as u32),
    };
    let queue_frames = at.number_within(QUEUE_FRAMES, 1, QUEUE_FRAMES_MAX)? as u16;
    let port = PortConfig { mac, source, queue_frames, rate_kbps };
    Ok(NetSpec { nic: NicId { switch, number }, port, queue_bytes })
}

/// Reads the names of the switches, if there are any.
pub(super) fn switches<'a>(root: &At<'a>) -> Result<'a, ArrayVec<&'a str, MAX_SWITCHES>> {
    let mut switches = ArrayVec::new();
    let Some(list) = root.node.property(SWITCHES) else { return Ok(switches) };
    for name in list.strings() {
        let fault = root.fault(SWITCHES, Fault::TooMany(MAX_SWITCHES));
        switches.try_push(name).map_err(|_| fault)?;
    }
    Ok(switches)
}

/// Checks that each network device is plugged into a switch that exists and has a port for it, and
/// that no other one there has its address.
pub(super) fn check_ports<'a>(bundle: &Bundle<'a>) -> Result<'a, ()> {
    let mut ports = [0; MAX_SWITCHES];
    let mut taken = ArrayVec::<_, { MAX_SWITCHES * MAX_PORTS }>::new();
    for vm in &bundle.vms {
        for NetSpec { nic, port, .. } in vm.devices.nets() {
            let refuse = |name, fault| {
                Err(ManifestError {
                    node: vm.name,
                    property: Property { child: "net", name },
                    fault,
                })
            };
            let Some(used) = ports
                .get_mut(usize::from(nic.switch))
                .filter(|_| usize::from(nic.switch) < bundle.switches.len())
            else {
                let max = bundle.switches.len().saturating_sub(1) as u64;
                let fault = Fault::OutOfRange { value: nic.switch.into(), min: 0, max };
                return refuse(SWITCH, fault);
            };
            *used += 1;
            if *used > MAX_PORTS || taken.is_full() {
                return refuse(SWITCH, Fault::TooMany(MAX_PORTS));
            }
            if taken.contains(&(nic.switch, port.mac)) {
                return refuse(MAC, Fault::DuplicateAddress);
            }
            taken.push((nic.switch, port.mac));
        }
    }
    Ok(())
}

impl super::Devices {
    /// The network devices, in the order of their numbers.
    pub fn nets(&self) -> impl Iterator<Item = &NetSpec> {
        self.virtio.iter().filter_map(|device| match device {
            VirtioDevice::Net(spec) => Some(spec),
            _ => None,
        })
    }
}
