//! Disks of a VM, in RAM.

use super::extents::{Extents, ExtentsError};
use super::{Reason, Vm};
use arrayvec::ArrayVec;
use mm::ledger::{Owner, Use};
use vmm_services::manifest::{BlockSpec, Bundle, VirtioDevice, VmSpec};
use vmm_services::{DiskError, layout};

/// Most runs of contiguous granules that one disk is put together from.
const MAX_EXTENTS: usize = 16;

/// The disks of a VM that is built.
pub type DiskList = ArrayVec<Disk, { layout::MAX_VIRTIO }>;

/// One disk.
pub struct Disk {
    memory: Extents<MAX_EXTENTS>,
    /// Bytes; the last page may have more.
    size: u64,
}

impl Disk {
    fn new(owner: Owner, spec: &BlockSpec, image: &[u8]) -> Result<Self, ExtentsError> {
        let mut memory = Extents::new(Use::Disk, owner, 0, spec.size)?;
        // Fits: the bundle was refused otherwise.
        let _ = memory.fill(0, image);
        Ok(Self { memory, size: spec.size })
    }

    fn check(&self, offset: u64, length: usize) -> Result<(), DiskError> {
        let end = offset.checked_add(length as u64);
        if end.is_some_and(|end| end <= self.size) { Ok(()) } else { Err(DiskError) }
    }
}

/// Makes the disks of `vm`, each with a fresh copy of its image.
///
/// # Errors
///
/// Why not. Those made so far are in their place, to be given back by [`free`].
pub fn build(vm: &Vm, spec: &VmSpec<'_>, bundle: &Bundle<'_>) -> Result<(), Reason> {
    let mut disks = vm.disks.lock();
    for device in &spec.devices.virtio {
        let VirtioDevice::Block(block) = device else { continue };
        let image = block.image.map_or(&[][..], |image| bundle.image(&image));
        let disk = Disk::new(vm.owner(), block, image)
            .map_err(|error| Reason::new(format_args!("disk {}: {error}", disks.len())))?;
        disks.push(disk);
    }
    Ok(())
}

/// Gives the memory of all disks back.
pub fn free(vm: &Vm) {
    for disk in vm.disks.lock().drain(..) {
        disk.memory.free();
    }
}

/// The disks of a VM as its services see them. Takes the lock only when it is used.
pub struct VmDisks(pub &'static Vm);

impl vmm_services::Disks for VmDisks {
    fn read(&self, disk: u8, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let disks = self.0.disks.lock();
        let disk = disks.get(usize::from(disk)).ok_or(DiskError)?;
        disk.check(offset, buf.len())?;
        disk.memory.read(offset, buf).map_err(|_| DiskError)
    }

    fn write(&self, disk: u8, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let disks = self.0.disks.lock();
        let disk = disks.get(usize::from(disk)).ok_or(DiskError)?;
        disk.check(offset, data.len())?;
        disk.memory.write(offset, data).map_err(|_| DiskError)
    }
}
