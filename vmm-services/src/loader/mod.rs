//! Where a guest's images go in its memory.
//!
//! Placement depends on the VM's description and its images alone, so whoever builds a realm and
//! whoever computes its measurement beforehand arrive at the same pages:
//!
//! | kernel | placed at | entry | initial RAM disk | device tree |
//! |---|---|---|---|---|
//! | arm64 `Image` | RAM + `text_offset` | its first byte | next 2 MiB behind the kernel's `image_size` | next 64 KiB behind |
//! | ELF64 | physical addresses of its segments | `e_entry` | next 2 MiB behind the last segment | next 64 KiB behind |
//! | raw | RAM + 2 MiB | its first byte | next 2 MiB, 2 MiB or more behind | RAM |
//!
//! The raw row is what U-Boot for QEMU's `virt` expects. All other RAM is zero, the bytes of
//! `image_size` and `p_memsz` that no file provides included.

mod elf;
mod image;

use crate::fdt::{self, GuestTree, Overlay, OverlayError, Seeds, WriteError};
use crate::layout;
use crate::manifest::{Bundle, KernelFormat, VmKind, VmSpec};
use arrayvec::ArrayVec;
use core::fmt;
use mm::{Ipa, PAGE_SIZE};

/// Room that a guest's device tree has, in bytes.
pub const FDT_MAX: usize = 0x1_0000;
/// Most segments of a plan.
pub const MAX_SEGMENTS: usize = 12;

/// Alignment of kernel and initial RAM disk: the block size of the guest's own page tables.
const BLOCK: u64 = 2 << 20;

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The bundle, from `offset` on.
    Bundle {
        /// Offset from the start of the bundle in bytes.
        offset: u64,
    },
    /// The generated device tree.
    Fdt,
}

/// Memory of the guest that is filled before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address, page aligned.
    pub ipa: Ipa,
    /// Bytes of the segment, a multiple of the page size.
    pub size: u64,
    /// Where the first `length` bytes come from; the rest is zero.
    pub source: Source,
    /// Bytes from the source, at most `size`.
    pub length: u64,
}

impl Segment {
    /// First address behind the segment.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.ipa.get().saturating_add(self.size)
    }
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Segments in order of address, without overlap, all in RAM. A realm is populated and measured
    /// in this order, page by page.
    pub segments: ArrayVec<Segment, MAX_SEGMENTS>,
    /// First instruction of the boot vCPU.
    pub entry: Ipa,
    /// Address of the device tree, for x0.
    pub fdt: Ipa,
}

/// Why a VM cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// The kernel is compressed with gzip; it has to be unpacked when the bundle is made.
    Compressed,
    /// The kernel is shorter than its header, or than its header says.
    Truncated,
    /// The kernel does not have the magic number of its format.
    BadMagic,
    /// The kernel is for another byte order, word size or architecture.
    WrongMachine,
    /// An address or size in the kernel's header makes no sense.
    BadHeader(&'static str),
    /// The kernel has more segments than a plan holds.
    TooManySegments,
    /// An address is not a multiple of the page size.
    Unaligned {
        /// What is to be placed.
        what: &'static str,
        /// The address.
        address: u64,
    },
    /// Something does not fit the guest's RAM.
    DoesNotFit {
        /// What is to be placed.
        what: &'static str,
        /// First address.
        start: u64,
        /// End address.
        end: u64,
        /// End of RAM.
        ram_end: u64,
    },
    /// Two segments overlap at this address.
    Overlap {
        /// First address of the second one.
        address: u64,
    },
    /// The device tree could not be written.
    Fdt(WriteError),
    /// The overlay is none that can be merged.
    Overlay(OverlayError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Compressed => f.write_str("kernel is compressed with gzip: unpack it first"),
            Self::Truncated => f.write_str("kernel is cut short"),
            Self::BadMagic => f.write_str("kernel does not have the magic number of its format"),
            Self::WrongMachine => f.write_str("kernel is not for 64-bit little-endian Arm"),
            Self::BadHeader(what) => write!(f, "kernel has a bad header: {what}"),
            Self::TooManySegments => f.write_str("kernel has too many segments"),
            Self::Unaligned { what, address } => {
                write!(f, "{what} at {address:#x} does not begin on a page")
            }
            Self::DoesNotFit { what, start, end, ram_end } => write!(
                f,
                "{what} at {start:#x}..{end:#x} does not fit RAM at {}..{ram_end:#x}",
                layout::RAM
            ),
            Self::Overlap { address } => write!(f, "two parts overlap at {address:#x}"),
            Self::Fdt(error) => error.fmt(f),
            Self::Overlay(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

/// A kernel in place.
struct Kernel {
    segments: ArrayVec<Segment, MAX_SEGMENTS>,
    entry: u64,
    /// First address behind everything the kernel says it uses.
    end: u64,
}

/// Rounds up; `None` on overflow.
fn align_up(address: u64, align: u64) -> Option<u64> {
    address.checked_next_multiple_of(align)
}

/// Places things one after the other into RAM.
struct Placer {
    ram_end: u64,
}

impl Placer {
    /// Checks that `[start, start + size)` lies in RAM; returns its end.
    fn fit(&self, what: &'static str, start: u64, size: u64) -> Result<u64, LoadError> {
        let end = start.saturating_add(size);
        if start >= layout::RAM.get() && end <= self.ram_end {
            Ok(end)
        } else {
            Err(LoadError::DoesNotFit { what, start, end, ram_end: self.ram_end })
        }
    }

    /// A segment of `length` bytes at `start`.
    fn segment(
        &self,
        what: &'static str,
        start: u64,
        source: Source,
        length: u64,
    ) -> Result<Segment, LoadError> {
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(LoadError::Unaligned { what, address: start });
        }
        let size = align_up(length, PAGE_SIZE).unwrap_or(u64::MAX);
        self.fit(what, start, size)?;
        Ok(Segment { ipa: Ipa::new(start), size, source, length })
    }

    /// The next multiple of `align` from `address`.
    fn next(&self, what: &'static str, address: u64, align: u64) -> Result<u64, LoadError> {
        align_up(address, align).ok_or(LoadError::DoesNotFit {
            what,
            start: address,
            end: u64::MAX,
            ram_end: self.ram_end,
        })
    }

    fn raw(&self, offset: u64, length: u64) -> Result<Kernel, LoadError> {
        let start = layout::RAM.get() + BLOCK;
        let segment = self.segment("kernel", start, Source::Bundle { offset }, length)?;
        Ok(Kernel {
            entry: start,
            // Room for what a payload without a header keeps behind itself.
            end: segment.end().saturating_add(BLOCK),
            segments: [segment].into_iter().collect(),
        })
    }
}

/// Places the images of `vm` and writes its device tree to `fdt_buffer`, of which it uses at most
/// [`FDT_MAX`] bytes. The tree has the `seeds`, unless it is that of a realm, which depends on the
/// description and the images alone.
///
/// # Errors
/// [`LoadError`] when an image is malformed or something does not fit.
pub fn plan(
    vm: &VmSpec<'_>,
    bundle: &Bundle<'_>,
    seeds: Option<&Seeds>,
    fdt_buffer: &mut [u8],
) -> Result<LoadPlan, LoadError> {
    let placer = Placer { ram_end: layout::RAM.get().saturating_add(vm.memory) };
    let bytes = bundle.image(&vm.kernel);
    let offset = vm.kernel.offset;
    let kernel = match vm.kernel_format {
        KernelFormat::Image => image::place(&placer, bytes, offset)?,
        KernelFormat::Elf => elf::place(&placer, bytes, offset)?,
        KernelFormat::Raw => placer.raw(offset, bytes.len() as u64)?,
    };
    let Kernel { mut segments, entry, mut end } = kernel;

    let mut initrd = None;
    if let Some(image) = vm.initramfs {
        let start = placer.next("initramfs", end, BLOCK)?;
        let source = Source::Bundle { offset: image.offset };
        let segment = placer.segment("initramfs", start, source, image.size)?;
        initrd = Some((start, start + image.size));
        end = segment.end();
        push(&mut segments, segment)?;
    }

    let fdt = match vm.kernel_format {
        KernelFormat::Raw => layout::RAM.get(),
        KernelFormat::Image | KernelFormat::Elf => {
            placer.next("device tree", end, FDT_MAX as u64)?
        }
    };
    let room = fdt_buffer.len().min(FDT_MAX);
    let channels: ArrayVec<_, { layout::MAX_VM_CHANNELS }> = bundle.channels_of(vm.name).collect();
    let overlay = vm.overlay.map(|image| Overlay::new(bundle.image(&image)));
    let tree = GuestTree {
        vcpus: vm.vcpus,
        memory: vm.memory,
        psci_by_smc: matches!(vm.kind, VmKind::Realm(_)),
        cmdline: vm.cmdline,
        seeds: seeds.filter(|_| vm.realm().is_none()),
        initrd,
        uart: vm.devices.uart,
        watchdog: vm.watchdog_ms.is_some(),
        virtio: vm.devices.virtio.len(),
        passthrough: &vm.passthrough,
        channels: &channels,
        overlay: overlay.transpose().map_err(LoadError::Overlay)?,
    };
    let buffer = fdt_buffer.get_mut(..room).unwrap_or_default();
    let length = fdt::generate(&tree, buffer).map_err(|error| match error {
        WriteError::Overlay(error) => LoadError::Overlay(error),
        error => LoadError::Fdt(error),
    })? as u64;
    push(&mut segments, placer.segment("device tree", fdt, Source::Fdt, length)?)?;

    segments.sort_unstable_by_key(|s| s.ipa);
    for pair in segments.windows(2) {
        if let [low, high] = pair
            && low.end() > high.ipa.get()
        {
            return Err(LoadError::Overlap { address: high.ipa.get() });
        }
    }
    Ok(LoadPlan { segments, entry: Ipa::new(entry), fdt: Ipa::new(fdt) })
}

fn push(segments: &mut ArrayVec<Segment, MAX_SEGMENTS>, segment: Segment) -> Result<(), LoadError> {
    segments.try_push(segment).map_err(|_| LoadError::TooManySegments)
}

impl LoadPlan {
    /// Fills `page` with what belongs at the page `ipa`; `false` when no segment covers it.
    ///
    /// `bundle` and `fdt` are the bytes that the plan was made from.
    pub fn page(
        &self,
        ipa: Ipa,
        bundle: &[u8],
        fdt: &[u8],
        page: &mut [u8; PAGE_SIZE as usize],
    ) -> bool {
        let covers = |s: &&Segment| s.ipa <= ipa && ipa.get() < s.end();
        let Some(segment) = self.segments.iter().find(covers) else { return false };
        page.fill(0);
        let skip = ipa.get() - segment.ipa.get();
        let (from, base) = match segment.source {
            Source::Bundle { offset } => (bundle, offset),
            Source::Fdt => (fdt, 0),
        };
        let length = segment.length.saturating_sub(skip).min(PAGE_SIZE) as usize;
        let start = usize::try_from(base.saturating_add(skip)).unwrap_or(usize::MAX);
        let bytes = from.get(start..).and_then(|tail| tail.get(..length)).unwrap_or_default();
        if let Some(head) = page.get_mut(..bytes.len()) {
            head.copy_from_slice(bytes);
        }
        true
    }
}

#[cfg(test)]
mod tests;
