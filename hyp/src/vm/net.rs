//! Switches between VMs: who is plugged in, and the memory of their queues.
//!
//! The frames that wait for a VM lie in granules that are accounted to it, so a VM that does not
//! receive fills its own memory and no other's.

use super::{Reason, Vm};
use crate::arch::late::LateArray;
use crate::arch::{phys, timer};
use crate::memory::ledger;
use crate::run;
use crate::sync::Lock;
use arrayvec::ArrayVec;
use mm::PAGE_SIZE;
use mm::ledger::{Frames, Undelegated, Use};
use vmm_services::NicId;
use vmm_services::manifest::{MAX_SWITCHES, NetSpec};
use vmm_services::switch::{MAX_PORTS, Port, PortSet, Switch};

static SWITCHES: LateArray<Lock<Hub>, MAX_SWITCHES> = LateArray::new();

/// Makes the switches, once at boot.
pub fn init() {
    SWITCHES.init(|_| Lock::new(Hub::new()));
}

/// Memory of a port's queue. No guest maps it.
struct QueueMemory(Frames<Undelegated>);

impl AsMut<[u8]> for QueueMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        phys::bytes_mut(&mut self.0)
    }
}

/// A network device in its port.
struct Plug {
    vm: &'static Vm,
    number: u8,
    port: Port,
}

/// One switch with the devices in its ports. Its lock is taken after that of a VM's services, and
/// before the scheduler's.
struct Hub {
    switch: Switch<QueueMemory>,
    plugs: ArrayVec<Plug, MAX_PORTS>,
}

impl Hub {
    const fn new() -> Self {
        Self { switch: Switch::new(), plugs: ArrayVec::new_const() }
    }

    /// The switch, and the port of a device.
    fn port(&mut self, vm: &Vm, nic: NicId) -> Option<(&mut Switch<QueueMemory>, &Port)> {
        let is_it = |plug: &&Plug| plug.vm.owner() == vm.owner() && plug.number == nic.number;
        let plug = self.plugs.iter().find(is_it)?;
        Some((&mut self.switch, &plug.port))
    }

    fn plug_in(&mut self, vm: &'static Vm, spec: &NetSpec) -> Result<(), Reason> {
        let failed = |what: &dyn core::fmt::Display| Reason::new(format_args!("net: {what}"));
        // A power of two, by the bundle's format.
        let order = (u64::from(spec.queue_bytes) / PAGE_SIZE).ilog2() as u8;
        let frames =
            ledger().alloc(order, Use::Hypervisor, vm.owner()).map_err(|error| failed(&error))?;
        let attached = self.switch.attach(spec.port, QueueMemory(frames), timer::now_ns());
        let port = attached.map_err(|(error, QueueMemory(frames))| {
            ledger().free(frames);
            failed(&error)
        })?;
        // As many as the switch has ports.
        self.plugs.push(Plug { vm, number: spec.nic.number, port });
        Ok(())
    }

    fn unplug(&mut self, vm: &Vm) {
        while let Some(index) = self.plugs.iter().position(|plug| plug.vm.owner() == vm.owner()) {
            let plug = self.plugs.swap_remove(index);
            let stats = self.switch.stats(&plug.port);
            log::info!(
                "vm {}: net {}: {} frames sent, {} received, {} dropped",
                vm.name(),
                plug.number,
                stats.sent,
                stats.received,
                stats.dropped()
            );
            if let Some(QueueMemory(frames)) = self.switch.detach(plug.port) {
                ledger().free(frames);
            }
        }
    }

    /// VMs that have a device in one of these ports.
    fn owners(&self, ports: PortSet) -> ArrayVec<&'static Vm, MAX_PORTS> {
        let named = self.plugs.iter().filter(|plug| ports.contains(plug.port.index()));
        named.map(|plug| plug.vm).collect()
    }
}

fn hub(nic: NicId) -> Option<&'static Lock<Hub>> {
    SWITCHES.get(usize::from(nic.switch))
}

/// Plugs the network devices of a VM in.
///
/// # Errors
///
/// The machine has no memory for a queue, or the switch refuses. What is plugged in then is taken out
/// by [`unplug`].
pub fn plug_in(vm: &'static Vm) -> Result<(), Reason> {
    let Some(spec) = vm.spec() else { return Ok(()) };
    spec.devices.nets().try_for_each(|net| match hub(net.nic) {
        Some(hub) => hub.lock().plug_in(vm, net),
        None => Err(Reason::new(format_args!("net: there is no switch {}", net.nic.switch))),
    })
}

/// Takes the network devices of a VM out of their ports and gives the memory of their queues back.
pub fn unplug(vm: &Vm) {
    SWITCHES.iter().for_each(|hub| hub.lock().unplug(vm));
}

/// Sends a frame; tells the VMs that it is for. `true` if this core has to pick anew.
pub fn send(vm: &Vm, nic: NicId, frame: &[u8]) -> bool {
    let Some(hub) = hub(nic) else { return false };
    let mut hub = hub.lock();
    let Some((switch, port)) = hub.port(vm, nic) else { return false };
    // What is dropped has been counted.
    let woken = switch.send(port, frame, timer::now_ns()).unwrap_or_default();
    let owners = hub.owners(woken);
    drop(hub);
    owners.into_iter().fold(false, |pick_anew, owner| pick_anew | run::call_on(owner))
}

/// Whether a frame waits for a device.
pub fn has_frame(vm: &Vm, nic: NicId) -> bool {
    let Some(hub) = hub(nic) else { return false };
    hub.lock().port(vm, nic).is_some_and(|(switch, port)| switch.has_frame(port))
}

/// Takes the oldest frame that waits for a device.
pub fn receive(vm: &Vm, nic: NicId, into: &mut [u8]) -> Option<usize> {
    let mut hub = hub(nic)?.lock();
    let (switch, port) = hub.port(vm, nic)?;
    switch.receive(port, into)
}

/// Drops the frames that wait for a device.
pub fn discard(vm: &Vm, nic: NicId) {
    let Some(hub) = hub(nic) else { return };
    if let Some((switch, port)) = hub.lock().port(vm, nic) {
        switch.discard(port);
    }
}
