//! What tests have in common: bundles, images, trees, and the surroundings of services.

use crate::MemoryFault;
use crate::crc32;
use crate::fdt::{Fdt, FdtWriter};
use crate::manifest::names::*;
use std::cell::Cell;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

/// A property of any type, as the tests want to change it.
#[derive(Clone, Debug)]
pub(crate) struct Prop(pub(crate) &'static str, pub(crate) Vec<u8>);

pub(crate) fn text(name: &'static str, value: &str) -> Prop {
    Prop(name, [value.as_bytes(), &[0]].concat())
}

pub(crate) fn cell(name: &'static str, value: u32) -> Prop {
    Prop(name, value.to_be_bytes().to_vec())
}

pub(crate) fn wide(name: &'static str, value: u64) -> Prop {
    Prop(name, value.to_be_bytes().to_vec())
}

/// A VM to be written.
#[derive(Clone)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) props: Vec<Prop>,
    pub(crate) kernel: Vec<u8>,
    pub(crate) kernel_type: Option<&'static str>,
    pub(crate) initramfs: Option<Vec<u8>>,
    pub(crate) overlay: Option<Vec<u8>>,
    /// `devices { uart; }`, or the place of the UART.
    pub(crate) uart: Option<Option<(u64, u64, u32)>>,
    /// Virtio devices beside the UART: name, properties, and whether it has the kernel as image.
    pub(crate) virtio: Vec<(&'static str, Vec<Prop>, bool)>,
}

impl Vm {
    /// An ordinary VM with a small Linux-like kernel.
    pub(crate) fn ordinary(name: &str) -> Self {
        Self {
            name: name.to_string(),
            props: vec![
                text(KIND, KIND_VM),
                cell(VCPUS, 1),
                wide(MEMORY, 64 << 20),
                cell(PRIORITY, 8),
                text(EXPECT, EXPECT_OFF),
            ],
            kernel: image(0, 5000, 0x2_0000),
            kernel_type: None,
            initramfs: None,
            overlay: None,
            uart: Some(None),
            virtio: Vec::new(),
        }
    }

    /// A realm with the same kernel.
    pub(crate) fn realm(name: &str) -> Self {
        let mut vm = Self::ordinary(name);
        vm.set(text(KIND, KIND_REALM));
        vm.set(text(HASH, SHA256));
        vm.set(cell(IPA_BITS, 40));
        vm
    }

    /// Adds or replaces a property.
    pub(crate) fn set(&mut self, prop: Prop) {
        self.props.retain(|p| p.0 != prop.0);
        self.props.push(prop);
    }

    pub(crate) fn with(mut self, prop: Prop) -> Self {
        self.set(prop);
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.props.retain(|p| p.0 != name);
        self
    }
}

/// An arm64 `Image` of `length` bytes that claims `image_size` bytes of memory.
pub(crate) fn image(text_offset: u64, length: usize, image_size: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|i| i as u8 ^ 0x5a).collect();
    bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
    bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
    bytes[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

/// An ELF64 executable with these PT_LOAD segments: (p_paddr, p_vaddr, file bytes, p_memsz).
pub(crate) fn elf(entry: u64, loads: &[(u64, u64, usize, u64)]) -> Vec<u8> {
    let mut file = vec![0; 64 + 56 * loads.len()];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..20].copy_from_slice(&[2, 0, 183, 0]);
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..58].copy_from_slice(&[56, 0, loads.len() as u8, 0]);
    for (i, &(paddr, vaddr, filesz, memsz)) in loads.iter().enumerate() {
        let offset = file.len() as u64;
        let fields = [offset, vaddr, paddr, filesz as u64, memsz, 0x1000];
        let at = 64 + 56 * i;
        file[at..at + 4].copy_from_slice(&1_u32.to_le_bytes());
        for (j, field) in fields.iter().enumerate() {
            file[at + 8 * (j + 1)..at + 8 * (j + 2)].copy_from_slice(&field.to_le_bytes());
        }
        file.extend((0..filesz).map(|b| b as u8 | 1));
    }
    file
}

/// A tree like the one that TF-A hands over on QEMU's `virt`: secure memory, secure UART and a
/// reservation for the RMM are in it.
pub(crate) fn machine_tree() -> Vec<u8> {
    let mut buffer = vec![0; 0x4000];
    let mut w = FdtWriter::new(&mut buffer);
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.begin_node("psci");
    w.property_strs("compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    w.property_str("method", "smc");
    w.end_node();
    w.begin_node("memory@40000000");
    w.property_str("device_type", "memory");
    w.property_u64s("reg", &[0x4000_0000, 0xc000_0000]);
    w.end_node();
    w.begin_node("secram@e000000");
    w.property_str("device_type", "memory");
    w.property_u64s("reg", &[0x0e00_0000, 0x100_0000]);
    w.property_str("status", "disabled");
    w.property_str("secure-status", "okay");
    w.end_node();
    w.begin_node("reserved-memory");
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.property_empty("ranges");
    w.begin_node("rmm@40100000");
    w.property_u64s("reg", &[0x4010_0000, 0x180_0000]);
    w.property_empty("no-map");
    w.end_node();
    w.begin_node("pool");
    w.property_u64("size", 0x1000);
    w.end_node();
    w.end_node();
    w.begin_node("cpus");
    w.property_u32("#address-cells", 1);
    w.property_u32("#size-cells", 0);
    for (name, reg, method) in [("cpu@0", 0, "psci"), ("cpu@1", 1, "spin-table"), ("cpu@2", 2, "")]
    {
        w.begin_node(name);
        w.property_str("device_type", "cpu");
        w.property_u32("reg", reg);
        w.property_str("enable-method", method);
        w.property_u64("cpu-release-addr", 0xe0);
        w.end_node();
    }
    w.begin_node("cpu-map");
    w.end_node();
    w.end_node();
    w.begin_node("pl011@9040000");
    w.property_strs("compatible", &["arm,pl011", "arm,primecell"]);
    w.property_u64s("reg", &[0x904_0000, 0x1000]);
    w.property_str("status", "disabled");
    w.end_node();
    w.begin_node("pl011@9000000");
    w.property_strs("compatible", &["arm,pl011", "arm,primecell"]);
    w.property_u64s("reg", &[0x900_0000, 0x1000]);
    w.property_cells("interrupts", &[0, 1, 4]);
    w.end_node();
    w.begin_node("intc@8000000");
    w.property_str("compatible", "arm,gic-v3");
    w.property_u32("#interrupt-cells", 3);
    w.property_u32("#redistributor-regions", 1);
    w.property_u64s("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000]);
    w.property_cells("interrupts", &[1, 9, 4]);
    w.end_node();
    w.begin_node("timer");
    w.property_strs("compatible", &["arm,armv8-timer", "arm,armv7-timer"]);
    w.property_cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
    w.end_node();
    w.begin_node("chosen");
    w.property_str("stdout-path", "/pl011@9000000:115200n8");
    w.property_str("bootargs", "loglevel=7");
    w.property_u32("linux,initrd-start", 0x4800_0000);
    w.property_u64("linux,initrd-end", 0x4900_0000);
    w.end_node();
    let length = w.finish().unwrap();
    buffer.truncate(length);
    buffer
}

/// An overlay that adds to `/chosen`, to the first vCPU and to the root.
pub(crate) fn overlay() -> Vec<u8> {
    let mut buffer = vec![0; 0x1000];
    let mut w = FdtWriter::new(&mut buffer);
    w.begin_node("fragment@0");
    w.property_str("target-path", "/chosen");
    w.begin_node("__overlay__");
    w.property_str("owner", "me");
    w.begin_node("module@48000000");
    w.property_u64s("reg", &[0x4800_0000, 0x1000]);
    w.end_node();
    w.end_node();
    w.end_node();
    w.begin_node("fragment@1");
    w.property_str("target-path", "/cpus/cpu@0");
    w.begin_node("__overlay__");
    w.property_u32("capacity-dmips-mhz", 1024);
    w.end_node();
    w.end_node();
    w.begin_node("fragment@2");
    w.property_str("target-path", "/");
    w.begin_node("__overlay__");
    w.property_str("serial-number", "17");
    w.begin_node("rig");
    w.property_str("label", "bench");
    w.begin_node("slot");
    w.property_empty("used");
    w.end_node();
    w.end_node();
    w.end_node();
    w.end_node();
    let length = w.finish().unwrap();
    buffer.truncate(length);
    buffer
}

/// Writes a bundle with root properties `root` beside the usual ones.
pub(crate) fn bundle_with(root: &[Prop], vms: &[Vm]) -> Vec<u8> {
    bundle_with_channels(root, vms, &[])
}

/// A channel to be written: name and properties.
pub(crate) type Channel<'a> = (&'a str, Vec<Prop>);

/// Writes a bundle with root properties and channels.
pub(crate) fn bundle_with_channels(root: &[Prop], vms: &[Vm], channels: &[Channel<'_>]) -> Vec<u8> {
    const TREE_ROOM: usize = 0x4000;
    let mut images = Vec::new();
    let mut add = |bytes: &[u8]| {
        let offset = TREE_ROOM + images.len();
        images.extend_from_slice(bytes);
        images.resize(images.len().next_multiple_of(IMAGE_ALIGN as usize), 0);
        (offset as u64, bytes.len() as u64, crc32::update(0, bytes))
    };
    let placed: Vec<_> = vms
        .iter()
        .map(|vm| {
            let more = [(INITRAMFS, &vm.initramfs), (OVERLAY, &vm.overlay)];
            let more = more.map(|(name, bytes)| (name, bytes.as_deref().map(&mut add)));
            (add(&vm.kernel), more)
        })
        .collect();
    let total = TREE_ROOM + images.len();

    let mut bytes = vec![0; TREE_ROOM];
    let mut w = FdtWriter::new(&mut bytes);
    w.property_str("compatible", COMPATIBLE);
    w.property_u32(VERSION, FORMAT_VERSION);
    w.property_u64(TOTAL_SIZE, total as u64);
    w.property_u32(CRC32, 0);
    w.property_str(SCENARIO, "test");
    root.iter().for_each(|p| w.property(p.0, &p.1));
    w.begin_node(VMS);
    for (vm, (kernel, more)) in vms.iter().zip(placed) {
        w.begin_node(&vm.name);
        vm.props.iter().for_each(|p| w.property(p.0, &p.1));
        let node = |w: &mut FdtWriter<'_>, name, (offset, size, crc), kind: Option<&str>| {
            w.begin_node(name);
            w.property_u64(OFFSET, offset);
            w.property_u64(SIZE, size);
            w.property_u32(CRC32, crc);
            kind.into_iter().for_each(|kind| w.property_str(TYPE, kind));
            w.end_node();
        };
        node(&mut w, KERNEL, kernel, vm.kernel_type);
        for (name, image) in more {
            image.into_iter().for_each(|image| node(&mut w, name, image, None));
        }
        if let Some(uart) = vm.uart {
            w.begin_node(DEVICES);
            match uart {
                None => {
                    w.property_empty(UART);
                    w.property_empty(FLASH);
                }
                Some((base, size, intid)) => {
                    w.begin_node(UART);
                    w.property_u64s(REG, &[base, size]);
                    w.property_u32(INTERRUPTS, intid);
                    w.end_node();
                }
            }
            if !vm.virtio.is_empty() {
                w.begin_node(VIRTIO);
                for (name, props, image) in &vm.virtio {
                    w.begin_node(name);
                    props.iter().for_each(|p| w.property(p.0, &p.1));
                    if *image {
                        node(&mut w, IMAGE, kernel, None);
                    }
                    w.end_node();
                }
                w.end_node();
            }
            w.end_node();
        }
        w.end_node();
    }
    w.end_node();
    if !channels.is_empty() {
        w.begin_node(CHANNELS);
        for (name, props) in channels {
            w.begin_node(name);
            props.iter().for_each(|p| w.property(p.0, &p.1));
            w.end_node();
        }
        w.end_node();
    }
    w.finish().unwrap();
    bytes.extend(images);
    seal(&mut bytes);
    bytes
}

pub(crate) fn bundle(vms: &[Vm]) -> Vec<u8> {
    bundle_with(&[], vms)
}

/// Makes the checksum of the tree right again after a change.
pub(crate) fn seal(bytes: &mut [u8]) {
    let tree = crate::fdt::total_size(bytes).unwrap();
    let at = Fdt::new(&bytes[..tree])
        .unwrap()
        .root()
        .property(CRC32)
        .map(|p| p.value.as_ptr().addr() - bytes.as_ptr().addr());
    let at = at.unwrap();
    bytes[at..at + 4].fill(0);
    let crc = crc32::update(0, &bytes[..tree]);
    bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
}

/// A console that remembers its lines.
#[derive(Default)]
pub(crate) struct Lines(pub(crate) Vec<(Vec<u8>, bool)>);

impl crate::ConsoleSink for Lines {
    fn line(&mut self, text: &[u8], complete: bool) {
        self.0.push((text.to_vec(), complete));
    }
}

/// Guest memory at [`crate::layout::RAM`].
pub(crate) struct Ram(pub(crate) std::cell::RefCell<Vec<u8>>);

impl Ram {
    pub(crate) fn new(size: usize) -> Self {
        Self(std::cell::RefCell::new(vec![0; size]))
    }

    fn range(&self, ipa: mm::Ipa, length: usize) -> Result<core::ops::Range<usize>, MemoryFault> {
        let start = ipa.get().checked_sub(crate::layout::RAM.get());
        let start = start.and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.0.borrow().len() => Ok(start..end),
            _ => Err(MemoryFault { ipa }),
        }
    }
}

impl crate::GuestMemory for Ram {
    fn read(&self, ipa: mm::Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let range = self.range(ipa, buf.len())?;
        buf.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, ipa: mm::Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        let range = self.range(ipa, data.len())?;
        self.0.borrow_mut()[range].copy_from_slice(data);
        Ok(())
    }
}

/// A countdown that stands still.
#[derive(Debug, Default)]
pub(crate) struct Timer(pub(crate) Cell<u32>);

impl crate::Countdown for Timer {
    fn restart(&self, ms: u32) {
        self.0.set(ms);
    }

    fn remaining_ms(&self) -> u32 {
        self.0.get()
    }
}

/// Entropy whose bytes count up from 1, as many as are `left`.
pub(crate) struct Counting {
    pub(crate) next: core::cell::Cell<u8>,
    pub(crate) left: core::cell::Cell<usize>,
    pub(crate) has_source: bool,
}

impl Default for Counting {
    fn default() -> Self {
        let (next, left) = (core::cell::Cell::new(1), core::cell::Cell::new(usize::MAX));
        Self { next, left, has_source: true }
    }
}

impl crate::Entropy for Counting {
    fn has_source(&self) -> bool {
        self.has_source
    }

    fn fill(&self, buf: &mut [u8]) -> Result<(), crate::EntropyError> {
        if !self.has_source {
            return Err(crate::EntropyError::NoSource);
        }
        let left = self.left.get().checked_sub(buf.len()).ok_or(crate::EntropyError::Exhausted)?;
        self.left.set(left);
        for byte in buf {
            *byte = self.next.replace(self.next.get().wrapping_add(1));
        }
        // One is left out, so that requests of even length do not repeat themselves.
        self.next.set(self.next.get().wrapping_add(1));
        Ok(())
    }
}

/// A VM without connections to others.
pub(crate) struct Alone;

impl crate::Peers for Alone {
    fn send(&mut self, _: crate::NicId, _: &[u8]) {
        unreachable!("this VM has no network")
    }

    fn has_frame(&mut self, _: crate::NicId) -> bool {
        unreachable!("this VM has no network")
    }

    fn receive(&mut self, _: crate::NicId, _: &mut [u8]) -> Option<usize> {
        unreachable!("this VM has no network")
    }

    fn discard(&mut self, _: crate::NicId) {
        unreachable!("this VM has no network")
    }

    fn channel_access(
        &mut self,
        _: &crate::channel::Endpoint,
        _: u64,
        _: crate::exit::Width,
        _: crate::exit::Access,
    ) -> u32 {
        unreachable!("this VM has no channels")
    }

    fn channel_line(&mut self, _: &crate::channel::Endpoint) -> bool {
        unreachable!("this VM has no channels")
    }
}

/// Disks of a VM.
#[derive(Default)]
pub(crate) struct RamDisks(pub(crate) Vec<std::cell::RefCell<Vec<u8>>>);

impl RamDisks {
    fn with<R>(
        &self,
        disk: u8,
        offset: u64,
        length: usize,
        f: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, crate::DiskError> {
        let mut disk = self.0.get(usize::from(disk)).ok_or(crate::DiskError)?.borrow_mut();
        let bytes = disk.get_mut(offset as usize..).and_then(|tail| tail.get_mut(..length));
        bytes.map(f).ok_or(crate::DiskError)
    }
}

impl crate::Disks for RamDisks {
    fn read(&self, disk: u8, offset: u64, buf: &mut [u8]) -> Result<(), crate::DiskError> {
        self.with(disk, offset, buf.len(), |bytes| buf.copy_from_slice(bytes))
    }

    fn write(&self, disk: u8, offset: u64, data: &[u8]) -> Result<(), crate::DiskError> {
        self.with(disk, offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }
}
