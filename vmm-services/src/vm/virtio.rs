//! The virtio devices of a VM among its services.

use super::{Context, IrqLines, Response, VmServices};
use crate::exit::{Access, MmioAccess, Resume};
use crate::ids::VcpuSet;
use crate::layout;
use crate::traits::{ConsoleSink, SharedAlias, VirtualIrq};
use crate::virtio::{Console, Transport};

impl VmServices {
    /// Whether devices have left something undone, for [`VmServices::work`].
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.virtio.iter().any(Transport::has_work)
    }

    /// Lets one device that has something to do go on with it, as far as one call may; returns whom
    /// to wake or kick.
    ///
    /// To be called until [`VmServices::has_work`] is false before a vCPU of the VM enters the
    /// guest, with a look at the core's interrupts between the calls. Since each call leaves the
    /// other devices as they are, and a device that is not done joins them again, none waits for
    /// another that has much to do.
    pub fn work(&mut self, context: &mut Context<'_>) -> VcpuSet {
        let memory = SharedAlias::new(context.memory, self.realm.map(|realm| realm.ipa_bits));
        let context = &mut context.with_memory(&memory);
        let slots = self.virtio.len();
        let order = (0..slots).map(|index| (self.next_slot + index) % slots);
        let due = |slot: &usize| self.virtio.get(*slot).is_some_and(Transport::has_work);
        let Some(slot) = order.into_iter().find(due) else { return VcpuSet::EMPTY };
        self.next_slot = slot + 1;
        if let Some(transport) = self.virtio.get_mut(slot) {
            transport.work(context);
        }
        self.drive_virtio_line(slot)
    }

    fn drive_virtio_line(&mut self, slot: usize) -> VcpuSet {
        let Some(transport) = self.virtio.get(slot) else { return VcpuSet::EMPTY };
        let mut irq = IrqLines { vgic: &mut self.vgic, kick: VcpuSet::EMPTY };
        irq.set_level(layout::VIRTIO_INTID + slot as u32, transport.line());
        irq.kick
    }

    /// Accesses a register of a virtio device, if there is one at the address. What a notification
    /// asks for is done before the guest goes on, by [`VmServices::work`].
    pub(super) fn virtio_access(&mut self, access: &MmioAccess) -> Option<Response> {
        let offset = access.ipa.get().checked_sub(layout::VIRTIO.get())?;
        let slot = usize::try_from(offset / layout::VIRTIO_STRIDE).ok()?;
        let offset = (offset % layout::VIRTIO_STRIDE) as u32;
        let value = self.virtio.get_mut(slot)?.access(offset, access.width, access.access);
        let resume = match access.access {
            Access::Read => Resume::Read(value),
            Access::Write(_) => Resume::Done,
        };
        Some(Response { resume, kick: self.drive_virtio_line(slot) })
    }

    /// Feeds typed bytes to the first virtio console; returns how many it took, and whom to wake.
    pub(super) fn virtio_console_input(&mut self, bytes: &[u8]) -> (usize, VcpuSet) {
        let found = self.virtio.iter_mut().find_map(|transport| {
            let taken = transport.model_mut().as_console()?.receive(bytes);
            transport.request_work();
            Some((taken, transport.has_work()))
        });
        match found {
            None => (0, VcpuSet::EMPTY),
            Some((taken, false)) => (taken, VcpuSet::EMPTY),
            Some((taken, true)) => (taken, self.worker()),
        }
    }

    /// A vCPU to be woken or kicked so that it does [`VmServices::work`].
    fn worker(&self) -> VcpuSet {
        let vcpus = VcpuSet::first(self.vgic.config().vcpus);
        vcpus.iter().find(|vcpu| self.is_on(*vcpu)).map_or(VcpuSet::EMPTY, VcpuSet::only)
    }

    /// Gives out lines that virtio consoles have begun.
    pub(super) fn flush_virtio_consoles(&mut self, console: &mut dyn ConsoleSink) {
        let models = self.virtio.iter_mut().map(Transport::model_mut);
        models
            .filter_map(|model| model.as_console())
            .for_each(|device: &mut Console| device.flush(console));
    }
}
