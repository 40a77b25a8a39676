//! The writer of bundles: a device tree that names the VMs, then their images.
//!
//! `vmm_services::manifest` fixes the format and reads it back in the hypervisor.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use flate2::read::GzDecoder;
use vmm_services::fdt::Seeds;
use vmm_services::loader::{self, LoadError};
use vmm_services::manifest::{Bundle, names};
use vmm_services::{Entropy, EntropyError};

use crate::scenario::{
    Channel, Device, Disk, ImageRef, ImageType, Kind, Net, PassthroughDevice, Refusal, Refused,
    Scenario, VirtioDevice, Vm,
};
use crate::{elf, overlay};

/// Bytes of a disk's sector.
const SECTOR: u64 = 512;
/// First bytes of a gzip file.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Where an image lies in the bundle.
#[derive(Clone, Copy, Debug)]
struct Placed {
    offset: u64,
    size: u64,
    crc32: u32,
}

/// Images in the order in which they are placed; one that several VMs use is there once.
#[derive(Debug, Default)]
struct Images {
    contents: BTreeMap<PathBuf, Vec<u8>>,
}

/// Makes the bundle of a scenario.
///
/// # Errors
///
/// [`Refused`] when an image is missing, empty, or larger than its VM's memory, or an overlay does not suit
/// its VM's device tree.
pub(crate) fn write(scenario: &Scenario) -> Result<Vec<u8>> {
    let images = Images::read(scenario)?;
    // The tree has the same size whatever the offsets in it are.
    let tree_size = tree(scenario, &images, 0, 0).len() as u64;
    let total = images.place(tree_size).values().map(|p| p.offset + p.size).max();
    let total = total.unwrap_or(tree_size).next_multiple_of(names::IMAGE_ALIGN);
    let mut bundle = tree(scenario, &images, tree_size, total);
    for (path, placed) in images.place(tree_size) {
        bundle.resize(usize::try_from(placed.offset)?, 0);
        bundle.extend(&images.contents[&path]);
    }
    bundle.resize(usize::try_from(total)?, 0);
    check(scenario, &bundle)?;
    Ok(bundle)
}

/// Stands in for the machine's random numbers where only their room in a tree counts.
struct AnyBytes;

impl Entropy for AnyBytes {
    fn has_source(&self) -> bool {
        true
    }

    fn fill(&self, _: &mut [u8]) -> Result<(), EntropyError> {
        Ok(())
    }
}

/// Reads the bundle as the hypervisor will, and places each VM's images as it will.
fn check(scenario: &Scenario, bundle: &[u8]) -> Result<()> {
    let parsed = Bundle::parse(bundle).map_err(|e| anyhow!("the hypervisor refuses it: {e}"))?;
    let mut fdt = vec![0; loader::FDT_MAX];
    let seeds = Seeds::draw(&AnyBytes)?;
    let mut refusals = Vec::new();
    for (vm, spec) in scenario.vms.iter().zip(&parsed.vms) {
        if let Err(error) = loader::plan(spec, &parsed, Some(&seeds), &mut fdt) {
            let file = scenario.file.clone();
            let blamed = match (&error, &vm.overlay) {
                (LoadError::Overlay(_), Some(overlay)) => overlay,
                _ => &vm.kernel,
            };
            refusals.push(Refusal { file, line: blamed.line, reason: error.to_string() });
        }
    }
    if refusals.is_empty() { Ok(()) } else { Err(Refused(refusals).into()) }
}

impl Images {
    fn read(scenario: &Scenario) -> Result<Self, Refused> {
        let mut images = Self::default();
        let mut refusals = Vec::new();
        for vm in &scenario.vms {
            let mut together = 0;
            let initramfs = vm.initramfs.as_ref().map(|image| (image, false));
            for (image, unpack) in [(&vm.kernel, true)].into_iter().chain(initramfs) {
                match images.add(image, unpack) {
                    Ok(size) => together += size,
                    Err(reason) => refusals.push((image.line, reason)),
                }
                if together > vm.memory.0 {
                    let reason = format!(
                        "the images of {} have {together} bytes, its memory is {}",
                        vm.name, vm.memory
                    );
                    refusals.push((image.line, reason));
                }
            }
            if let Some(overlay) = &vm.overlay
                && let Err(reason) = images.add_overlay(overlay)
            {
                refusals.push((overlay.line, reason));
            }
            refusals.extend(images.add_disks(vm));
        }
        if refusals.is_empty() {
            return Ok(images);
        }
        let refusal = |(line, reason)| Refusal { file: scenario.file.clone(), line, reason };
        Err(Refused(refusals.into_iter().map(refusal).collect()))
    }

    /// Reads the images of a VM's disks; returns what is wrong with them.
    fn add_disks(&mut self, vm: &Vm) -> Vec<(usize, String)> {
        let mut refusals = Vec::new();
        for device in &vm.virtio {
            let VirtioDevice::Block(disk) = device else { continue };
            let Some(image) = &disk.image else { continue };
            match (self.add(image, false), disk.size) {
                (Err(reason), _) => refusals.push((image.line, reason)),
                (Ok(bytes), Some(size)) if bytes > size.0 => {
                    let reason = format!("the image has {bytes} bytes, its disk {size}");
                    refusals.push((disk.line, reason));
                }
                _ => {}
            }
        }
        refusals
    }

    /// Reads an image unless it was read; returns its size in bytes. `unpack` says that a gzip file
    /// is to be unpacked: the hypervisor takes kernels as they are to lie in memory.
    fn add(&mut self, image: &ImageRef, unpack: bool) -> Result<u64, String> {
        if !self.contents.contains_key(&image.path) {
            let shown = image.path.display();
            let mut bytes = fs::read(&image.path).map_err(|e| format!("image {shown}: {e}"))?;
            if unpack && bytes.starts_with(&GZIP_MAGIC) {
                let mut unpacked = Vec::new();
                let mut decoder = GzDecoder::new(bytes.as_slice());
                decoder.read_to_end(&mut unpacked).map_err(|e| format!("image {shown}: {e}"))?;
                bytes = unpacked;
            }
            if bytes.is_empty() {
                return Err(format!("image {shown} is empty"));
            }
            self.contents.insert(image.path.clone(), bytes);
        }
        Ok(self.contents[&image.path].len() as u64)
    }

    /// Reads an overlay unless it was read.
    fn add_overlay(&mut self, image: &ImageRef) -> Result<(), String> {
        if !self.contents.contains_key(&image.path) {
            let bytes =
                overlay::read(&image.path).map_err(|e| format!("{}: {e}", image.path.display()))?;
            self.contents.insert(image.path.clone(), bytes);
        }
        Ok(())
    }

    /// Places the images behind a tree of that size.
    fn place(&self, tree_size: u64) -> BTreeMap<PathBuf, Placed> {
        let mut end = tree_size;
        let place = |(path, bytes): (&PathBuf, &Vec<u8>)| {
            let offset = end.next_multiple_of(names::IMAGE_ALIGN);
            let size = bytes.len() as u64;
            end = offset + size;
            (path.clone(), Placed { offset, size, crc32: crc32fast::hash(bytes) })
        };
        self.contents.iter().map(place).collect()
    }

    /// The layout of a payload: what the scenario says, else what its first bytes say.
    fn kernel_type(&self, vm: &Vm) -> ImageType {
        let bytes = &self.contents[&vm.kernel.path];
        vm.kernel_type.unwrap_or_else(|| match () {
            () if elf::is_arm64_image(bytes) => ImageType::Image,
            () if elf::is_elf(bytes) => ImageType::Elf,
            () => ImageType::Raw,
        })
    }
}

/// The tree of a bundle of `total` bytes, with its checksum filled in.
fn tree(scenario: &Scenario, images: &Images, tree_size: u64, total: u64) -> Vec<u8> {
    let placed = images.place(tree_size);
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    set(root, "compatible", names::COMPATIBLE);
    set(root, names::VERSION, names::FORMAT_VERSION);
    set(root, names::TOTAL_SIZE, total);
    set(root, names::CRC32, 0_u32);
    set(root, names::SCENARIO, scenario.name.as_str());
    if let Some(test) = scenario.self_test {
        set(root, names::SELF_TEST, test.name());
    }
    if let Some(pool) = scenario.machine.pool {
        set(root, names::POOL, pool);
    }
    if !scenario.switches.is_empty() {
        let switches: Vec<&str> = scenario.switches.iter().map(String::as_str).collect();
        set(root, names::SWITCHES, switches);
    }
    let mut vms = DeviceTreeNode::new_unchecked(names::VMS);
    for vm in &scenario.vms {
        let mut node = vm_node(vm, &placed, &scenario.switches);
        let mut kernel = image_node(names::KERNEL, placed[&vm.kernel.path]);
        set(&mut kernel, names::TYPE, images.kernel_type(vm).name());
        node.add_child(kernel);
        if let Some(initramfs) = &vm.initramfs {
            node.add_child(image_node(names::INITRAMFS, placed[&initramfs.path]));
        }
        if let Some(overlay) = &vm.overlay {
            node.add_child(image_node(names::OVERLAY, placed[&overlay.path]));
        }
        vms.add_child(node);
    }
    root.add_child(vms);
    if !scenario.channels.is_empty() {
        root.add_child(channels_node(&scenario.channels));
    }
    // The checksum is that of the tree with a checksum of zero.
    let checksum = crc32fast::hash(&tree.to_dtb());
    set(&mut tree.root, names::CRC32, checksum);
    tree.to_dtb()
}

fn vm_node(vm: &Vm, placed: &BTreeMap<PathBuf, Placed>, switches: &[String]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(vm.name.as_str());
    set(&mut node, names::KIND, vm.kind.name());
    set(&mut node, names::VCPUS, vm.vcpus);
    set(&mut node, names::MEMORY, vm.memory.0);
    set(&mut node, names::PRIORITY, vm.priority);
    if let Some((budget, period)) = vm.budget {
        set(&mut node, names::BUDGET_US, budget);
        set(&mut node, names::PERIOD_US, period);
    }
    if let Some(mask) = vm.affinity {
        set(&mut node, names::AFFINITY, mask);
    }
    if let Some(cmdline) = &vm.cmdline {
        set(&mut node, names::CMDLINE, cmdline.as_str());
    }
    if let Some(repeat) = vm.repeat {
        set(&mut node, names::REPEAT, repeat);
    }
    if let Some(resets) = vm.max_resets {
        set(&mut node, names::MAX_RESETS, resets);
    }
    if let Some(ms) = vm.watchdog_ms {
        set(&mut node, names::WATCHDOG_MS, ms);
    }
    set(&mut node, names::EXPECT, vm.expect.name());
    if let Some(reason) = &vm.expect_reason {
        set(&mut node, names::EXPECT_REASON, reason.as_str());
    }
    if let Some(realm) = &vm.stray_granule_of {
        set(&mut node, names::STRAY_GRANULE_OF, realm.as_str());
    }
    set(&mut node, names::POPULATE, vm.populate.name());
    if vm.kind == Kind::Realm {
        set(&mut node, names::HASH, vm.hash.name());
        set(&mut node, names::IPA_BITS, vm.ipa_bits);
        set(&mut node, names::FAULT, vm.fault.name());
        set(&mut node, names::CONVERSIONS, vm.conversions.name());
        if let Some(value) = &vm.personalization {
            set(&mut node, names::RPV, *value);
        }
    }
    if !(vm.devices.is_empty() && vm.virtio.is_empty() && vm.passthrough.is_empty()) {
        let mut devices = devices_node(&vm.devices);
        if !vm.passthrough.is_empty() {
            devices.add_child(passthrough_node(&vm.passthrough));
        }
        if !vm.virtio.is_empty() {
            devices.add_child(virtio_node(&vm.virtio, placed, switches));
        }
        node.add_child(devices);
    }
    node
}

/// A device in the place that the guest memory map gives it is a property, one elsewhere a node.
fn devices_node(devices: &[Device]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(names::DEVICES);
    for device in devices {
        if device.is_in_its_place() {
            set(&mut node, device.kind.name(), [0_u8; 0]);
            continue;
        }
        let mut child = DeviceTreeNode::new_unchecked(device.kind.name());
        let [address, size] = [device.address, device.size].map(u64::to_be_bytes);
        set(&mut child, names::REG, [address, size].concat());
        set(&mut child, names::INTERRUPTS, device.interrupt);
        node.add_child(child);
    }
    node
}

fn passthrough_node(devices: &[PassthroughDevice]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(names::PASSTHROUGH);
    for device in devices {
        let name = format!("device@{:x}", device.address);
        let mut child = DeviceTreeNode::new_unchecked(name);
        let [address, size] = [device.address, device.size].map(u64::to_be_bytes);
        set(&mut child, names::REG, [address, size].concat());
        if let Some(intid) = device.interrupt {
            set(&mut child, names::INTERRUPTS, intid);
        }
        let compatible: Vec<&str> = device.compatible.iter().map(String::as_str).collect();
        set(&mut child, names::COMPATIBLE_WITH, compatible);
        // A scenario that does not say so was refused.
        set(&mut child, names::DMA, names::DMA_NONE);
        node.add_child(child);
    }
    node
}

/// One child per slot, in their order.
fn virtio_node(
    devices: &[VirtioDevice],
    placed: &BTreeMap<PathBuf, Placed>,
    switches: &[String],
) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(names::VIRTIO);
    for (slot, device) in devices.iter().enumerate() {
        let child = |kind| DeviceTreeNode::new_unchecked(format!("{kind}@{slot}"));
        node.add_child(match device {
            VirtioDevice::Console => child(names::CONSOLE),
            VirtioDevice::Entropy => child(names::ENTROPY),
            VirtioDevice::Block(disk) => disk_node(child(names::BLOCK), disk, placed),
            VirtioDevice::Net(net) => net_node(child(names::NET), net, switches),
        });
    }
    node
}

fn disk_node(
    mut node: DeviceTreeNode,
    disk: &Disk,
    placed: &BTreeMap<PathBuf, Placed>,
) -> DeviceTreeNode {
    let image = disk.image.as_ref().map(|image| placed[&image.path]);
    let of_image = image.map_or(0, |image| image.size.next_multiple_of(SECTOR));
    set(&mut node, names::SIZE, disk.size.map_or(of_image, |size| size.0));
    if disk.read_only {
        set(&mut node, names::READ_ONLY, [0_u8; 0]);
    }
    if let Some(image) = image {
        node.add_child(image_node(names::IMAGE, image));
    }
    node
}

/// Fills in the node of a network device. Switches go by their numbers.
fn net_node(mut node: DeviceTreeNode, net: &Net, switches: &[String]) -> DeviceTreeNode {
    let switch = switches.iter().position(|name| *name == net.switch).unwrap_or_default();
    set(&mut node, names::SWITCH, switch as u32);
    set(&mut node, names::MAC, net.mac);
    if net.any_source {
        set(&mut node, names::SOURCE, names::SOURCE_ANY);
    }
    set(&mut node, names::QUEUE_BYTES, net.queue.0);
    set(&mut node, names::QUEUE_FRAMES, net.queue_frames);
    if let Some(rate) = net.rate_kbps {
        set(&mut node, names::RATE_KBPS, rate);
    }
    node
}

fn channels_node(channels: &[Channel]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(names::CHANNELS);
    for channel in channels {
        let mut child = DeviceTreeNode::new_unchecked(channel.name.as_str());
        set(&mut child, names::SIZE, channel.size.0);
        let vms: Vec<&str> = channel.vms.iter().map(String::as_str).collect();
        set(&mut child, names::VMS, vms);
        node.add_child(child);
    }
    node
}

fn image_node(name: &str, placed: Placed) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    set(&mut node, names::OFFSET, placed.offset);
    set(&mut node, names::SIZE, placed.size);
    set(&mut node, names::CRC32, placed.crc32);
    node
}

fn set<T: ToPropertyValue>(node: &mut DeviceTreeNode, name: &str, value: T) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
