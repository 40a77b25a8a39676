//! Channels between VMs: each names two of them and the size of their common memory.

use toml::Spanned;
use vmm_services::layout::{CHANNEL_MEMORY_STRIDE, MAX_VM_CHANNELS};
use vmm_services::manifest::MAX_CHANNELS;

use super::Channel;
use super::check::check_name;
use super::format;
use super::refusal::Source;
use super::size::Size;

/// Least memory of a channel in bytes: a page.
const LEAST: u64 = 4096;

/// Checks the channels of a file whose VMs are `vms`.
pub(super) fn check(
    source: &mut Source<'_>,
    channels: &[Spanned<format::Channel>],
    vms: &[Spanned<format::Vm>],
) -> Vec<Channel> {
    if let Some(extra) = channels.get(MAX_CHANNELS) {
        source.refuse(&extra.span(), format!("more than {MAX_CHANNELS} channels"));
    }
    let mut checked: Vec<Channel> = Vec::new();
    for entry in channels {
        let channel = entry.get_ref();
        let name = channel.name.get_ref();
        check_name(source, name, &channel.name.span());
        if checked.iter().any(|other| other.name == *name) {
            source.refuse(&channel.name.span(), format!("there is a channel \"{name}\" already"));
        }
        let size = *channel.memory.get_ref();
        if !size.0.is_power_of_two() || !(LEAST..=CHANNEL_MEMORY_STRIDE).contains(&size.0) {
            let most = Size(CHANNEL_MEMORY_STRIDE);
            source.refuse(
                &channel.memory.span(),
                format!("the memory of a channel is a power of two from {} to {most}", Size(LEAST)),
            );
        }
        let span = channel.vms.span();
        for end in channel.vms.get_ref() {
            if !vms.iter().any(|vm| vm.get_ref().name.get_ref() == end) {
                source.refuse(&span, format!("there is no VM \"{end}\""));
            }
            let more = checked.iter().filter(|other| other.vms.contains(end)).count();
            if more == MAX_VM_CHANNELS {
                source.refuse(&span, format!("{end} has more than {MAX_VM_CHANNELS} channels"));
            }
        }
        let [first, second] = channel.vms.get_ref();
        if first == second {
            source.refuse(&span, "a channel connects two different VMs");
        }
        checked.push(Channel { name: name.clone(), vms: channel.vms.get_ref().clone(), size });
    }
    checked
}
