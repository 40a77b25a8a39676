//! Channels of a bundle: which two VMs each connects, and where each of them finds it.

use super::at::{At, Result};
use super::names::{CHANNELS, SIZE, VMS};
use super::{Bundle, Fault, MAX_CHANNELS, Placement, VmSpec};
use crate::channel::{End, Endpoint, REGISTERS_SIZE, Window};
use crate::layout;
use arrayvec::ArrayVec;
use mm::PAGE_SIZE;

/// A channel between two VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelSpec<'a> {
    /// Name, unique among channels.
    pub name: &'a str,
    /// Bytes of memory: a power of two, at least a page and at most
    /// [`layout::CHANNEL_MEMORY_STRIDE`].
    pub size: u64,
    /// Names of the two VMs, which are not the same.
    pub ends: [&'a str; 2],
}

impl<'a> Bundle<'a> {
    /// The ends of channels that the VM `name` has, with the channels' names, in the order of the
    /// bundle.
    pub fn channels_of(&self, name: &str) -> impl Iterator<Item = (&'a str, Endpoint)> {
        let ends = self.channels.iter().enumerate().flat_map(|(channel, spec)| {
            End::BOTH.into_iter().zip(spec.ends).map(move |(end, vm)| (channel, *spec, end, vm))
        });
        ends.filter(move |(.., vm)| *vm == name).zip(0..layout::MAX_VM_CHANNELS).map(
            |((channel, spec, end, _), slot)| (spec.name, endpoint(channel, end, spec.size, slot)),
        )
    }
}

/// An end that is the VM's channel number `slot`.
const fn endpoint(channel: usize, end: End, size: u64, slot: usize) -> Endpoint {
    let registers = Placement {
        base: layout::CHANNEL.get() + slot as u64 * REGISTERS_SIZE,
        intid: layout::CHANNEL_INTID + slot as u32,
    };
    let base = layout::CHANNEL_MEMORY.get() + slot as u64 * layout::CHANNEL_MEMORY_STRIDE;
    Endpoint { channel, end, registers, window: Window { base, size } }
}

/// Reads the channels, if there are any. `vms` are those of the bundle.
pub(super) fn channels<'a>(
    root: &At<'a>,
    vms: &[VmSpec<'a>],
) -> Result<'a, ArrayVec<ChannelSpec<'a>, MAX_CHANNELS>> {
    let mut channels = ArrayVec::<ChannelSpec<'a>, MAX_CHANNELS>::new();
    let Some(list) = root.child(CHANNELS) else { return Ok(channels) };
    for at in list.children()? {
        let channel = channel(&at, vms)?;
        if channels.iter().any(|other| other.name == channel.name) {
            return Err(at.fault("", Fault::DuplicateName));
        }
        channels.try_push(channel).map_err(|_| at.fault("", Fault::TooMany(MAX_CHANNELS)))?;
        for end in channel.ends {
            let uses = |other: &&ChannelSpec<'_>| other.ends.contains(&end);
            if channels.iter().filter(uses).count() > layout::MAX_VM_CHANNELS {
                return Err(at.fault(VMS, Fault::TooMany(layout::MAX_VM_CHANNELS)));
            }
        }
    }
    Ok(channels)
}

fn channel<'a>(at: &At<'a>, vms: &[VmSpec<'a>]) -> Result<'a, ChannelSpec<'a>> {
    at.only(&[SIZE, VMS], &[])?;
    let size = at.number_within(SIZE, PAGE_SIZE, layout::CHANNEL_MEMORY_STRIDE)?;
    if !size.is_power_of_two() {
        return Err(at.fault(SIZE, Fault::BadValue));
    }
    let mut names = at.property(VMS)?.strings();
    let ends = match (names.next(), names.next(), names.next()) {
        (Some(first), Some(second), None) => [first, second],
        _ => return Err(at.fault(VMS, Fault::BadType)),
    };
    if ends[0] == ends[1] {
        return Err(at.fault(VMS, Fault::DuplicateName));
    }
    if !ends.iter().all(|end| vms.iter().any(|vm| vm.name == *end)) {
        return Err(at.fault(VMS, Fault::NoSuchVm));
    }
    Ok(ChannelSpec { name: at.name(), size, ends })
}
