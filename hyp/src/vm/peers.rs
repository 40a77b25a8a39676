//! What a VM does to others through its devices.

use super::{Vm, channel, net};
use crate::run;
use core::cell::Cell;
use vmm_services::channel::Endpoint;
use vmm_services::exit::{Access, Width};
use vmm_services::{NicId, Peers};

/// The other VMs, as `vm` reaches them while its services handle an exit.
///
/// Neither the services nor the memory of another VM are touched from here: it is told that there is
/// something for it, and one of its own vCPUs sees to that.
pub struct VmPeers<'a> {
    vm: &'static Vm,
    pick_anew: &'a Cell<bool>,
}

impl<'a> VmPeers<'a> {
    /// Those of `vm`. `pick_anew` is set when this core has to pick anew, since it woke a vCPU that is to
    /// run here first.
    #[must_use]
    pub const fn new(vm: &'static Vm, pick_anew: &'a Cell<bool>) -> Self {
        Self { vm, pick_anew }
    }
}

impl Peers for VmPeers<'_> {
    fn send(&mut self, nic: NicId, frame: &[u8]) {
        self.pick_anew.set(self.pick_anew.get() | net::send(self.vm, nic, frame));
    }

    fn has_frame(&mut self, nic: NicId) -> bool {
        net::has_frame(self.vm, nic)
    }

    fn receive(&mut self, nic: NicId, into: &mut [u8]) -> Option<usize> {
        net::receive(self.vm, nic, into)
    }

    fn discard(&mut self, nic: NicId) {
        net::discard(self.vm, nic);
    }

    fn channel_access(
        &mut self,
        endpoint: &Endpoint,
        offset: u64,
        width: Width,
        access: Access,
    ) -> u32 {
        let outcome = channel::access(endpoint, offset, width, access);
        if outcome.peer_rung
            && let Some(peer) = channel::peer(self.vm, endpoint)
        {
            self.pick_anew.set(self.pick_anew.get() | run::call_on(peer));
        }
        outcome.value
    }

    fn channel_line(&mut self, endpoint: &Endpoint) -> bool {
        channel::line(endpoint)
    }
}
