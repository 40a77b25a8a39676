//! Disks of a VM, in RAM.

use super::extents::{Extents, ExtentsError};
use super::{Reason, Vm};
use arrayvec::ArrayVec;
use mm::ledger::{Owner, Use};
use vmm_services::manifest::{BlockSpec, Bundle, ImageRef, VirtioDevice, VmSpec};
use vmm_services::{DiskError, layout};

/// Most runs of contiguous granules that one disk is put together from.
const MAX_EXTENTS: usize = 16;

/// Most that is zeroed and copied at once.
const PIECE: u64 = 2 << 20;

/// The disks of a VM that is built.
pub type DiskList = ArrayVec<Disk, { layout::MAX_VIRTIO }>;

/// One disk.
pub struct Disk {
    memory: Extents<MAX_EXTENTS>,
    /// Bytes; the last page may have more.
    size: u64,
    /// Its first bytes.
    image: Option<ImageRef>,
    /// Bytes that are zeroed and copied.
    ready: u64,
}

impl Disk {
    fn new(owner: Owner, spec: &BlockSpec) -> Result<Self, ExtentsError> {
        let memory = Extents::take(Use::Disk, owner, 0, spec.size)?;
        Ok(Self { memory, size: spec.size, image: spec.image, ready: 0 })
    }

    /// Zeroes and copies the next piece; `false` when all of them are there.
    fn step(&mut self, bundle: &Bundle<'_>) -> bool {
        let Some(piece) = self.memory.piece(self.ready, PIECE) else { return false };
        let image = self.image.map_or(&[][..], |image| bundle.image(&image));
        let rest = image.get(piece.start as usize..).unwrap_or(&[]);
        let part = rest.get(..piece.bytes as usize).unwrap_or(rest);
        if (part.len() as u64) < piece.bytes {
            self.memory.zero(piece);
        }
        // Fits: a part is no larger than its piece.
        let _ = self.memory.fill(piece.start, part);
        self.ready = piece.end();
        true
    }

    fn check(&self, offset: u64, length: usize) -> Result<(), DiskError> {
        let end = offset.checked_add(length as u64);
        if end.is_some_and(|end| end <= self.size) { Ok(()) } else { Err(DiskError) }
    }
}

/// Sets memory apart for the disks of `vm`, which [`step`] fills.
///
/// # Errors
///
/// Why not. Those made so far are in their place, to be given back by [`free`].
pub fn begin(vm: &Vm, spec: &VmSpec<'_>) -> Result<(), Reason> {
    let mut disks = vm.disks.lock();
    for device in &spec.devices.virtio {
        let VirtioDevice::Block(block) = device else { continue };
        let disk = Disk::new(vm.owner(), block)
            .map_err(|error| Reason::new(format_args!("disk {}: {error}", disks.len())))?;
        disks.push(disk);
    }
    Ok(())
}

/// Makes a part of the disks of `vm`, each with a fresh copy of its image; `false` when nothing is left to
/// do.
pub fn step(vm: &Vm, bundle: &Bundle<'_>) -> bool {
    vm.disks.lock().iter_mut().any(|disk| disk.step(bundle))
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
