//! Channels between VMs: who has joined them, and their memory.
//!
//! The memory of a channel is nobody's alone, so it is accounted to the hypervisor: the first VM
//! that is built takes it from the ledger, and the last one that is taken apart gives it back,
//! whichever of the two that is. What one guest has written is still there for the other when the
//! first is gone, and for its next life.

use super::{Reason, Space, Vm};
use crate::arch::{bulk, phys};
use crate::memory::ledger;
use crate::sync::Lock;
use mm::ledger::{Frames, OutOfMemory, Owner, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use vmm_services::channel::{End, Endpoint, Link, Outcome};
use vmm_services::exit::{Access, Width};
use vmm_services::manifest::MAX_CHANNELS;

static CHANNELS: [Lock<Channel>; MAX_CHANNELS] =
    [const { Lock::new(Channel::new()) }; MAX_CHANNELS];

/// One channel. Its lock is taken after that of a VM's services and before that of its memory.
struct Channel {
    link: Link,
    /// Ends whose VM maps the memory, or is about to.
    users: [bool; 2],
    memory: Option<Frames<Undelegated>>,
}

impl Channel {
    const fn new() -> Self {
        Self { link: Link::new(), users: [false; 2], memory: None }
    }

    /// Notes a user of the memory, which is taken from the ledger and zeroed for the first one.
    fn enter(&mut self, endpoint: &Endpoint) -> Result<PhysAddr, OutOfMemory> {
        let base = match &self.memory {
            Some(memory) => memory.base(),
            None => {
                // A power of two, by the bundle's format.
                let order = (endpoint.window.size / PAGE_SIZE).ilog2() as u8;
                let mut memory = ledger().alloc(order, Use::Shared, Owner::HYPERVISOR)?;
                bulk::zero(phys::bytes_mut(&mut memory));
                self.memory.insert(memory).base()
            }
        };
        self.users[endpoint.end as usize] = true;
        Ok(base)
    }

    /// Forgets a user of the memory, which goes back to the ledger after the last one. Returns
    /// whether the peer is to look at its interrupt line.
    fn exit(&mut self, end: End) -> bool {
        let told = self.link.is_present(end) && self.link.leave(end);
        self.users[end as usize] = false;
        if self.users == [false; 2]
            && let Some(memory) = self.memory.take()
        {
            ledger().free(memory);
        }
        told
    }
}

/// The ends of channels that `vm` has.
pub fn endpoints(vm: &Vm) -> impl Iterator<Item = Endpoint> + use<> {
    let ends = super::bundle().map(|bundle| bundle.channels_of(vm.name()));
    ends.into_iter().flatten().map(|(_, endpoint)| endpoint)
}

fn channel(endpoint: &Endpoint) -> Option<&'static Lock<Channel>> {
    CHANNELS.get(endpoint.channel)
}

/// Connects a VM, whose address space has just been built, with its channels.
///
/// # Errors
///
/// The memory cannot be had or mapped. What has been done is undone by [`leave`].
pub fn join(vm: &'static Vm) -> Result<(), Reason> {
    for endpoint in endpoints(vm) {
        let Some(channel) = channel(&endpoint) else { continue };
        let entered = channel.lock().enter(&endpoint);
        let pa = entered.map_err(|error| Reason::new(format_args!("channel: {error}")))?;
        let (ipa, bytes) = (Ipa::new(endpoint.window.base), endpoint.window.size);
        match &mut *vm.space.lock() {
            Space::Normal(memory) => memory
                .map_channel(&vm.vmid, ipa, pa, bytes)
                .map_err(|error| Reason::new(format_args!("channel: {error}")))?,
            Space::Realm(realm) => realm.map_channel(vm, ipa, pa, bytes)?,
            _ => return Err(Reason::new(format_args!("channel: it has no memory"))),
        }
        if channel.lock().link.join(endpoint.end) {
            tell_peer(vm, &endpoint);
        }
    }
    Ok(())
}

/// Disconnects a VM from its channels. Nothing of its address space is left.
pub fn leave(vm: &'static Vm) {
    for endpoint in endpoints(vm) {
        if channel(&endpoint).is_some_and(|channel| channel.lock().exit(endpoint.end)) {
            tell_peer(vm, &endpoint);
        }
    }
}

/// Accesses a register of a channel.
pub fn access(endpoint: &Endpoint, offset: u64, width: Width, access: Access) -> Outcome {
    channel(endpoint).map_or_else(Outcome::default, |channel| {
        channel.lock().link.access(endpoint.end, endpoint.window, offset, width, access)
    })
}

/// Whether the interrupt line of an end is high.
pub fn line(endpoint: &Endpoint) -> bool {
    channel(endpoint).is_some_and(|channel| channel.lock().link.line(endpoint.end))
}

/// The VM at the other end.
pub fn peer(vm: &Vm, endpoint: &Endpoint) -> Option<&'static Vm> {
    let ends = super::bundle()?.channels.get(endpoint.channel)?.ends;
    let name = ends.into_iter().find(|name| *name != vm.name())?;
    super::all().iter().find(|other| other.name() == name)
}

fn tell_peer(vm: &Vm, endpoint: &Endpoint) {
    if let Some(peer) = peer(vm, endpoint) {
        // Between two vCPUs: this core picks anew in any case.
        let _ = crate::run::call_on(peer);
    }
}
