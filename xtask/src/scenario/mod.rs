//! Scenarios: which VMs and realms to run on which machine.
//!
//! A scenario is a TOML file; `scenarios/mixed.toml` explains the keys. What is wrong in it is
//! refused with file, line and reason before anything runs.

mod channels;
mod check;
mod devices;
mod format;
mod nets;
mod passthrough;
mod refusal;
mod size;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use format::{
    Conversions, DeviceKind, Expect, Fault, Hash, ImageType, Kind, Populate, SelfTest,
};
pub(crate) use refusal::{Refusal, Refused};
pub(crate) use size::Size;

use crate::project::Project;

/// A scenario whose every value was checked.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Where it was read from.
    pub(crate) file: PathBuf,
    pub(crate) name: String,
    pub(crate) self_test: Option<SelfTest>,
    pub(crate) machine: Machine,
    pub(crate) vms: Vec<Vm>,
    /// Names of the switches that network devices are plugged into.
    pub(crate) switches: Vec<String>,
    pub(crate) channels: Vec<Channel>,
}

/// The machine that the hypervisor runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) memory: Size,
    pub(crate) pool: Option<u32>,
}

/// One VM or realm.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) vcpus: u32,
    pub(crate) memory: Size,
    pub(crate) kernel: ImageRef,
    pub(crate) kernel_type: Option<ImageType>,
    pub(crate) initramfs: Option<ImageRef>,
    pub(crate) overlay: Option<ImageRef>,
    pub(crate) cmdline: Option<String>,
    pub(crate) priority: u32,
    /// Budget and period in microseconds.
    pub(crate) budget: Option<(u32, u32)>,
    /// One bit per core.
    pub(crate) affinity: Option<u32>,
    pub(crate) devices: Vec<Device>,
    /// By slot.
    pub(crate) virtio: Vec<VirtioDevice>,
    pub(crate) passthrough: Vec<PassthroughDevice>,
    pub(crate) repeat: Option<u32>,
    /// How often it may reset itself.
    pub(crate) max_resets: Option<u32>,
    pub(crate) watchdog_ms: Option<u32>,
    pub(crate) expect: Expect,
    pub(crate) expect_reason: Option<String>,
    pub(crate) hash: Hash,
    pub(crate) ipa_bits: u32,
    pub(crate) personalization: Option<[u8; 64]>,
    pub(crate) populate: Populate,
    pub(crate) fault: Fault,
    pub(crate) conversions: Conversions,
    pub(crate) stray_granule_of: Option<String>,
}

/// A channel between two VMs.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    pub(crate) name: String,
    pub(crate) vms: [String; 2],
    /// Memory that both map.
    pub(crate) size: Size,
}

/// An image and the line that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageRef {
    pub(crate) path: PathBuf,
    pub(crate) line: usize,
}

/// An emulated device in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) kind: DeviceKind,
    /// Intermediate physical address.
    pub(crate) address: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// GIC interrupt number.
    pub(crate) interrupt: u32,
}

/// A device of the machine that a VM gets as it is.
#[derive(Clone, Debug)]
pub(crate) struct PassthroughDevice {
    /// Address on the machine and in the VM.
    pub(crate) address: u64,
    /// Bytes of registers.
    pub(crate) size: u64,
    /// GIC interrupt number, on the machine and in the VM.
    pub(crate) interrupt: Option<u32>,
    pub(crate) compatible: Vec<String>,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VirtioDevice {
    Console,
    Entropy,
    Block(Disk),
    Net(Net),
}

/// A disk in RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its first bytes.
    pub(crate) image: Option<ImageRef>,
    /// Without one it is as large as its image.
    pub(crate) size: Option<Size>,
    pub(crate) read_only: bool,
    /// Line of the device.
    pub(crate) line: usize,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Net {
    pub(crate) switch: String,
    pub(crate) mac: [u8; 6],
    pub(crate) any_source: bool,
    /// Bytes of frames that may wait for it.
    pub(crate) queue: Size,
    pub(crate) queue_frames: u32,
    pub(crate) rate_kbps: Option<u32>,
}

/// Values of the command line that take the place of the file's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) cpus: Option<u32>,
    pub(crate) memory: Option<Size>,
}

impl Scenario {
    /// Reads and checks a scenario.
    ///
    /// # Errors
    ///
    /// [`Refused`] with all faults found, or a file that cannot be read.
    pub(crate) fn load(project: &Project, file: &Path, overrides: Overrides) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the scenario {}", file.display()))?;
        let file = file.strip_prefix(&project.root).unwrap_or(file);
        Ok(check::check(&check::Images::of(project, file), file, &text, overrides)?)
    }

    /// The file that the command line means by `name`: a path, or a name in `scenarios/`.
    pub(crate) fn find(project: &Project, name: &str) -> PathBuf {
        let path = PathBuf::from(name);
        if path.is_file() || name.contains('/') || name.contains('.') {
            return path;
        }
        project.root.join("scenarios").join(name).with_extension("toml")
    }
}

/// A scenario whose images lie in `folder`.
#[cfg(test)]
#[track_caller]
pub(crate) fn parse_for_test(folder: &Path, text: &str) -> Scenario {
    let images = check::Images::beside(folder);
    check::check(&images, &folder.join("test.toml"), text, Overrides::default()).unwrap()
}
