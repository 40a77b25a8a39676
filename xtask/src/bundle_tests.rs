use std::io::Write;
use std::num::NonZeroU32;

use flate2::Compression;
use flate2::write::GzEncoder;
use vmm_services::fdt::Fdt;
use vmm_services::manifest::{
    BlockSpec, Budget, ChannelSpec, HashAlgorithm, KernelFormat, Placement, SelfTest, VirtioDevice,
};
use vmm_services::switch::{MacAddr, PortConfig, SourcePolicy};

use super::*;
use crate::rim::Measurements;
use crate::scenario::parse_for_test;

/// A scenario file and its images in a folder of their own, which goes away with this.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("disk"), b"contents").unwrap();
        Self(path)
    }

    fn image(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    fn scenario(&self, text: &str) -> Scenario {
        parse_for_test(&self.0, text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The smallest kernel with an arm64 `Image` header: `image_size` is 64 KiB.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[16..24].copy_from_slice(&0x1_0000_u64.to_le_bytes());
    bytes[24] = 0xa; // little endian, 4 KiB pages, anywhere
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}

const TEXT: &str = r#"
name = "pair"
self-test = "granule-protection"
[machine]
cpus = 2
memory = "3G"
[[vm]]
name = "one"
kind = "vm"
vcpus = 2
memory = "64M"
kernel = "kernel"
initramfs = "initramfs"
cmdline = "console=ttyAMA0"
priority = 3
budget-us = 100
period-us = 1000
affinity = [1]
repeat = 7
expect = "stopped"
expect-reason = "granule"
stray-granule-of = "two"
[[vm.device]]
kind = "uart"
address = 0x0900_1000
interrupt = 34
[[vm.device]]
kind = "block"
image = "disk"
size = "8K"
read-only = true
[[vm.device]]
kind = "block"
image = "disk"
[[vm.device]]
kind = "entropy"
[[vm.device]]
kind = "console"
[[vm]]
name = "two"
kind = "realm"
memory = "32M"
kernel = "kernel"
hash = "sha512"
ipa-bits = 36
personalization = "ab"
[[vm.device]]
kind = "uart"
[[vm.device]]
kind = "net"
switch = "lan"
[[vm.device]]
kind = "net"
switch = "dmz"
mac = "02:00:00:00:00:0A"
source = "any"
queue = "64K"
queue-frames = 7
rate-kbps = 1000
[[channel]]
name = "pipe"
vms = ["two", "one"]
memory = "64K"
"#;

#[test]
fn the_hypervisors_parser_reads_what_was_written() {
    let folder = Folder::new("whole");
    folder.image("kernel", &kernel());
    folder.image("initramfs", b"not a multiple of the alignment");
    let bytes = write(&folder.scenario(TEXT)).unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.scenario, "pair");
    assert_eq!(bundle.self_test, Some(SelfTest::GranuleProtection));
    let [one, two] = bundle.vms.as_slice() else { panic!("two VMs") };
    assert_eq!((one.name, one.vcpus, one.memory, one.priority), ("one", 2, 64 << 20, 3));
    assert_eq!(one.budget, Some(Budget { budget_us: 100, period_us: 1000 }));
    assert_eq!((one.affinity, one.repeat), (Some(0b10), 7));
    assert_eq!((one.kernel_format, one.cmdline), (KernelFormat::Image, "console=ttyAMA0"));
    assert_eq!(one.devices.uart, Some(Placement { base: 0x900_1000, intid: 34 }));
    let [first, second, VirtioDevice::Entropy, VirtioDevice::Console] = &one.devices.virtio[..]
    else {
        panic!("four virtio devices")
    };
    let VirtioDevice::Block(BlockSpec { image: Some(image), .. }) = first else { panic!("a disk") };
    assert_eq!(bundle.image(image), b"contents");
    let disk =
        |size, read_only| VirtioDevice::Block(BlockSpec { image: Some(*image), size, read_only });
    assert_eq!((first, second), (&disk(8192, true), &disk(512, false)));
    assert_eq!(one.expect, vmm_services::manifest::Expect::Stopped);
    assert_eq!((one.expect_reason, one.stray_granule_of), (Some("granule"), Some("two")));
    let initramfs = bundle.image(one.initramfs.as_ref().unwrap());
    assert_eq!(initramfs, b"not a multiple of the alignment");
    assert!(one.realm().is_none());
    let realm = two.realm().unwrap();
    assert_eq!((realm.hash, realm.ipa_bits), (HashAlgorithm::Sha512, 36));
    assert_eq!(realm.rpv[..2], [0xab, 0]);
    assert_eq!(two.devices.uart, Some(Placement { base: 0x900_0000, intid: 33 }));
    let pipe = ChannelSpec { name: "pipe", size: 64 << 10, ends: ["two", "one"] };
    assert_eq!(bundle.channels.as_slice(), [pipe]);
    assert_eq!(bundle.switches.as_slice(), ["lan", "dmz"]);
    let [lan, dmz] = two.devices.nets().collect::<Vec<_>>()[..] else { panic!("two nets") };
    assert_eq!((lan.nic.switch, lan.nic.number, lan.queue_bytes), (0, 0, 128 << 10));
    assert_eq!(lan.port.mac.to_string(), "02:53:5a:00:01:00");
    assert_eq!((lan.port.source, lan.port.queue_frames), (SourcePolicy::Own, 256));
    assert_eq!((dmz.nic.switch, dmz.nic.number, dmz.queue_bytes), (1, 1, 64 << 10));
    let port = PortConfig {
        mac: MacAddr([2, 0, 0, 0, 0, 10]),
        source: SourcePolicy::Any,
        queue_frames: 7,
        rate_kbps: NonZeroU32::new(1000),
    };
    assert_eq!(dmz.port, port);
    // Both VMs use one copy.
    assert_eq!(one.kernel, two.kernel);
    assert_eq!(bundle.image(&two.kernel), kernel());
}

#[test]
fn the_same_scenario_gives_the_same_bytes() {
    let folder = Folder::new("same");
    folder.image("kernel", &kernel());
    folder.image("initramfs", b"x");
    let scenario = folder.scenario(TEXT);
    assert_eq!(write(&scenario).unwrap(), write(&scenario).unwrap());
}

#[test]
fn a_compressed_kernel_is_unpacked() {
    let folder = Folder::new("gzip");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&kernel()).unwrap();
    folder.image("kernel", &gzip.finish().unwrap());
    folder.image("initramfs", b"x");
    let bytes = write(&folder.scenario(TEXT)).unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.image(&bundle.vms[0].kernel), kernel());
}

/// The faults of a scenario that names these images.
fn faults(folder: &Folder) -> Vec<(usize, String)> {
    let error = write(&folder.scenario(TEXT)).unwrap_err();
    let Refused(refusals) = error.downcast_ref::<Refused>().expect("refused with a line");
    refusals.iter().map(|r| (r.line, r.reason.clone())).collect()
}

#[test]
fn images_that_do_not_serve() {
    let folder = Folder::new("bad");
    folder.image("kernel", &kernel());
    folder.image("initramfs", b"");
    assert!(matches!(&faults(&folder)[..], [(13, reason)] if reason.contains("is empty")));
    folder.image("initramfs", &vec![0; 65 << 20]);
    assert!(matches!(&faults(&folder)[..], [(13, reason)] if reason.contains("its memory is 64")));
    folder.image("initramfs", &vec![0; 63 << 20]);
    assert!(matches!(&faults(&folder)[..], [(12, reason)] if reason.contains("does not fit")));
}

#[test]
fn a_disk_image_that_does_not_fit() {
    let folder = Folder::new("disk");
    folder.image("kernel", &kernel());
    folder.image("initramfs", b"x");
    folder.image("disk", &[1; 8193]);
    let expected = "the image has 8193 bytes, its disk 8 KiB";
    assert_eq!(faults(&folder), [(27, expected.to_owned())]);
}

#[test]
fn the_kernels_first_bytes_tell_its_type() {
    let folder = Folder::new("type");
    folder.image("initramfs", b"x");
    folder.image("kernel", &[0x42; 4096]);
    let bytes = write(&folder.scenario(TEXT)).unwrap();
    assert_eq!(Bundle::parse(&bytes).unwrap().vms[0].kernel_format, KernelFormat::Raw);
}

#[test]
fn devices_of_the_machine_reach_the_hypervisor() {
    let folder = Folder::new("passthrough");
    folder.image("kernel", &kernel());
    let scenario = folder.scenario(
        r#"
[machine]
cpus = 1
memory = "1G"
[[vm]]
name = "one"
kind = "vm"
memory = "64M"
kernel = "kernel"
[[vm.device]]
kind = "passthrough"
address = 0x0901_0000
size = 0x1000
interrupt = 34
compatible = ["arm,pl031", "arm,primecell"]
dma = "none"
[[vm.device]]
kind = "passthrough"
address = 0x0902_0000
size = 0x18
compatible = ["vendor,device"]
dma = "none"
"#,
    );
    let bytes = write(&scenario).unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    let devices = bundle.vms[0].passthrough.as_slice();
    let found: Vec<_> = devices.iter().map(|d| (d.base, d.size, d.intid, d.compatible)).collect();
    let [clock, other]: [&[u8]; 2] = [b"arm,pl031\0arm,primecell\0", b"vendor,device\0"];
    assert_eq!(found, [(0x901_0000, 0x1000, Some(34), clock), (0x902_0000, 0x18, None, other)]);
    assert!(bundle.vms[0].devices.uart.is_none(), "only what was asked for");
}

const WITH_OVERLAY: &str = r#"
[machine]
cpus = 1
memory = "1G"
[[vm]]
name = "one"
kind = "realm"
memory = "64M"
kernel = "kernel"
overlay = "extra.dtso"
"#;

/// A source that adds `text` to the node at `path`.
fn addition(path: &str, text: &str) -> String {
    format!("/dts-v1/;\n/plugin/;\n&{{{path}}} {{ {text} }};\n")
}

#[test]
fn an_overlay_is_compiled_and_reaches_the_guests_tree() {
    let folder = Folder::new("overlay");
    folder.image("kernel", &kernel());
    folder.image("extra.dtso", addition("/", "rig { label = \"bench\"; };").as_bytes());
    let bytes = write(&folder.scenario(WITH_OVERLAY)).unwrap();
    let bundle = Bundle::parse(&bytes).unwrap();
    let realm = &bundle.vms[0];
    let compiled = bundle.image(&realm.overlay.unwrap());
    let mut fdt = vec![0; loader::FDT_MAX];
    loader::plan(realm, &bundle, None, &mut fdt).unwrap();
    let label = Fdt::new(&fdt).unwrap().find("/rig").unwrap().property("label").unwrap();
    assert_eq!(label.str(), Some("bench"));
    let rim = |bytes: &[u8]| {
        let measurements = Measurements::of_bundle(bytes, None, false).unwrap();
        measurements.realm("one").unwrap().rim.clone()
    };
    let with = rim(&bytes);

    // A compiled one is taken as it is.
    folder.image("extra.dtbo", compiled);
    let text = WITH_OVERLAY.replace("dtso", "dtbo");
    assert_eq!(rim(&write(&folder.scenario(&text)).unwrap()), with);
    let text = WITH_OVERLAY.replace("overlay = \"extra.dtso\"", "");
    assert_ne!(rim(&write(&folder.scenario(&text)).unwrap()), with, "it is measured");
}

#[test]
fn overlays_that_do_not_serve() {
    let folder = Folder::new("bad-overlay");
    folder.image("kernel", &kernel());
    let refused = |source: &str| {
        folder.image("extra.dtso", source.as_bytes());
        let error = write(&folder.scenario(WITH_OVERLAY)).unwrap_err();
        let Refused(refusals) = error.downcast_ref::<Refused>().expect("refused with a line");
        let [Refusal { line: 10, reason, .. }] = &refusals[..] else { panic!("{refusals:?}") };
        reason.clone()
    };
    let exists = refused(&addition("/psci", "method = \"smc\";"));
    assert_eq!(exists, "overlay, fragment@0: the target has a property method already");
    let no_target = refused(&addition("/soc", "a;"));
    assert_eq!(no_target, "overlay, fragment@0: the guest has no node /soc");
    assert!(refused("/dts-v1/;\n/ { a; };").contains("a is not known here"));
    assert!(refused("/dts-v1/;\n/ {").contains("syntax error"));
}
