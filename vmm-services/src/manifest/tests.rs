use super::names::*;
use super::{
    BlockSpec, Budget, Bundle, Conversions, Expect, Fault, FaultSize, KernelFormat, NetSpec,
    Placement, Populate, SelfTest, VirtioDevice, peek_total_size,
};
use crate::channel::{End, Endpoint, Window};
use crate::fdt::FdtError;
use crate::switch::{MacAddr, PortConfig, SourcePolicy};
use crate::testing::{self, Prop, Vm, bundle, bundle_with, cell, seal, text, wide};
use crate::traits::NicId;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

/// Node, property and fault of the refusal.
fn refusal(bytes: &[u8]) -> (String, String, Fault) {
    let error = Bundle::parse(bytes).expect_err("must be refused");
    let name = [error.property.child, error.property.name].join("/");
    (error.node.to_string(), name.trim_start_matches('/').to_string(), error.fault)
}

fn refused_vm(vm: Vm) -> (String, Fault) {
    let (node, property, fault) = refusal(&bundle(&[vm]));
    assert_eq!(node, "a");
    (property, fault)
}

#[test]
fn a_full_bundle_is_read() {
    let mut linux = Vm::ordinary("linux-1")
        .with(cell(BUDGET_US, 2000))
        .with(cell(PERIOD_US, 10_000))
        .with(cell(AFFINITY, 0b10))
        .with(text(CMDLINE, "console=ttyAMA0 quiet"))
        .with(cell(REPEAT, 50))
        .with(text(POPULATE, POPULATE_LAZY))
        .with(text(STRAY_GRANULE_OF, "secret"))
        .with(text(EXPECT, EXPECT_STOPPED))
        .with(text(EXPECT_REASON, "granule"));
    linux.initramfs = Some(vec![7; 9000]);
    let mut realm = Vm::realm("secret")
        .with(Prop(RPV, vec![3; 64]))
        .with(text(POPULATE, POPULATE_EAGER))
        .with(text(FAULT, FAULT_BLOCK))
        .with(text(CONVERSIONS, CONVERSIONS_NONE));
    realm.kernel_type = Some(TYPE_RAW);
    realm.uart = Some(Some((0x0b00_0000, 0x1000, 40)));
    let bytes = bundle_with(&[text(SELF_TEST, GRANULE_PROTECTION), cell(POOL, 7)], &[linux, realm]);

    assert_eq!(peek_total_size(&bytes), Ok(bytes.len() as u64));
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.scenario, "test");
    assert_eq!(bundle.self_test, Some(SelfTest::GranuleProtection));
    let [linux, realm] = bundle.vms.as_slice() else { panic!("two VMs") };
    assert_eq!((linux.name, linux.vcpus, linux.memory), ("linux-1", 1, 64 << 20));
    assert_eq!(linux.budget, Some(Budget { budget_us: 2000, period_us: 10_000 }));
    assert_eq!((linux.affinity, linux.repeat), (Some(2), 50));
    assert_eq!(linux.cmdline, "console=ttyAMA0 quiet");
    assert_eq!(linux.kernel_format, KernelFormat::Image);
    assert_eq!((linux.expect, linux.expect_reason), (Expect::Stopped, Some("granule")));
    assert_eq!(linux.stray_granule_of, Some("secret"));
    assert_eq!(bundle.image(&linux.initramfs.unwrap()), [7; 9000]);
    assert_eq!(linux.devices.uart, Some(Placement { base: 0x0900_0000, intid: 33 }));
    assert!(linux.devices.flash && !realm.devices.flash);
    let spec = realm.realm().unwrap();
    assert_eq!((spec.rpv, spec.ipa_bits), ([3; 64], 40));
    assert_eq!((linux.populate, realm.populate), (Populate::Lazy, Populate::Eager));
    assert_eq!(spec.fault, FaultSize::Block);
    assert_eq!((spec.conversions, bundle.pool), (Conversions::None, Some(7)));
    assert_eq!(realm.kernel_format, KernelFormat::Raw);
    assert_eq!(realm.devices.uart, Some(Placement { base: 0x0b00_0000, intid: 40 }));
    assert!(linux.realm().is_none());
}

#[test]
fn bytes_behind_the_bundle_are_ignored_and_missing_ones_are_not() {
    let mut bytes = bundle(&[Vm::ordinary("a")]);
    let whole = bytes.len();
    bytes.extend([0xff; 100]);
    assert_eq!(Bundle::parse(&bytes).unwrap().bytes().len(), whole);
    let short = &bytes[..whole - 1];
    let expected = Fault::SizeMismatch { expected: whole as u64, present: whole as u64 - 1 };
    assert_eq!(refusal(short), ("/".into(), TOTAL_SIZE.into(), expected));
    assert_eq!(refusal(&[]).2, Fault::BadTree(FdtError::Truncated));
    assert_eq!(refusal(&[0; 64]).2, Fault::BadTree(FdtError::BadMagic));
}

#[test]
fn every_flipped_bit_of_tree_and_images_is_noticed() {
    let bytes = bundle(&[Vm::ordinary("a")]);
    let tree = crate::fdt::total_size(&bytes).unwrap();
    let kernel = 0x4000..0x4000 + 5000;
    for at in (0..tree).chain(kernel.step_by(97)) {
        let mut broken = bytes.clone();
        broken[at] ^= 0x10;
        assert!(Bundle::parse(&broken).is_err(), "byte {at:#x}");
    }
}

#[test]
fn checksum_faults_name_the_image() {
    let mut bytes = bundle(&[Vm::ordinary("a")]);
    *bytes.get_mut(0x4100).unwrap() ^= 1;
    let (node, property, fault) = refusal(&bytes);
    assert_eq!((node.as_str(), property.as_str()), ("a", "kernel/crc32"));
    assert!(matches!(fault, Fault::Checksum { .. }));
    let error = Bundle::parse(&bytes).unwrap_err().to_string();
    assert!(error.starts_with("bundle, node a, kernel/crc32: checksum is 0x"), "{error}");
}

#[test]
fn faults_of_a_vm_are_named() {
    let vm = || Vm::ordinary("a");
    let range = |value, min, max| Fault::OutOfRange { value, min, max };
    let cases = [
        (vm().without(VCPUS), VCPUS, Fault::Missing),
        (vm().with(cell(VCPUS, 0)), VCPUS, range(0, 1, 16)),
        (vm().with(cell(VCPUS, 17)), VCPUS, range(17, 1, 16)),
        (vm().with(text(VCPUS, "three")), VCPUS, Fault::BadType),
        (vm().with(wide(MEMORY, 0)), MEMORY, range(0, 2 << 20, 256 << 30)),
        (
            vm().with(wide(MEMORY, (2 << 20) + 4096)),
            MEMORY,
            Fault::Unaligned { value: (2 << 20) + 4096, align: 2 << 20 },
        ),
        (vm().with(wide(MEMORY, u64::MAX)), MEMORY, range(u64::MAX, 2 << 20, 256 << 30)),
        (vm().with(cell(PRIORITY, 16)), PRIORITY, range(16, 0, 15)),
        (vm().with(cell(BUDGET_US, 5)), BUDGET_US, Fault::Conflict(PERIOD_US)),
        (vm().with(cell(PERIOD_US, 5)), PERIOD_US, Fault::Conflict(BUDGET_US)),
        (vm().with(cell(PERIOD_US, 50)).with(cell(BUDGET_US, 60)), BUDGET_US, range(60, 10, 50)),
        (vm().with(cell(PERIOD_US, 50)).with(cell(BUDGET_US, 9)), BUDGET_US, range(9, 10, 50)),
        (
            vm().with(cell(PERIOD_US, 9)).with(cell(BUDGET_US, 9)),
            PERIOD_US,
            range(9, 10, 10_000_000),
        ),
        (vm().with(cell(AFFINITY, 0)), AFFINITY, range(0, 1, u64::from(u32::MAX))),
        (vm().with(cell(REPEAT, 0)), REPEAT, range(0, 1, 1_000_000)),
        (vm().with(text(EXPECT, "maybe")), EXPECT, Fault::BadValue),
        (vm().with(text(KIND, "container")), KIND, Fault::BadValue),
        (vm().with(cell("colour", 1)), "colour", Fault::Unknown),
        (vm().with(text(HASH, SHA256)), HASH, Fault::Unknown),
        (vm().with(text(STRAY_GRANULE_OF, "b")), STRAY_GRANULE_OF, Fault::NoSuchVm),
        (vm().with(text(STRAY_GRANULE_OF, "a")), STRAY_GRANULE_OF, Fault::NoSuchVm),
        (Vm::realm("a").without(HASH), HASH, Fault::Missing),
        (Vm::realm("a").with(text(HASH, "md5")), HASH, Fault::BadValue),
        (Vm::realm("a").with(text(POPULATE, "never")), POPULATE, Fault::BadValue),
        (Vm::realm("a").with(text(FAULT, "page ")), FAULT, Fault::BadValue),
        (Vm::realm("a").with(text(CONVERSIONS, "")), CONVERSIONS, Fault::BadValue),
        (Vm::ordinary("a").with(text(POPULATE, "never")), POPULATE, Fault::BadValue),
        (Vm::ordinary("a").with(text(FAULT, FAULT_BLOCK)), FAULT, Fault::Unknown),
        (Vm::realm("a").with(cell(IPA_BITS, 53)), IPA_BITS, range(53, 32, 52)),
        (Vm::realm("a").with(Prop(RPV, vec![1; 63])), RPV, Fault::BadType),
        (Vm::realm("a").with(text(STRAY_GRANULE_OF, "a")), STRAY_GRANULE_OF, Fault::Unknown),
        // A realm's RAM must end below the shared half of its address space.
        (
            Vm::realm("a").with(cell(IPA_BITS, 32)).with(wide(MEMORY, 2 << 30)),
            MEMORY,
            range(2 << 30, 2 << 20, 1 << 30),
        ),
    ];
    for (vm, property, fault) in cases {
        assert_eq!(refused_vm(vm), (property.to_string(), fault));
    }
}

#[test]
fn misplaced_devices_are_refused() {
    let place = |base, size, intid| {
        let mut vm = Vm::ordinary("a");
        vm.uart = Some(Some((base, size, intid)));
        refused_vm(vm)
    };
    let reg = || "uart/reg".to_string();
    assert_eq!(place(0x0800_0000, 0x1000, 40), (reg(), Fault::Overlap { address: 0x0800_0000 }));
    assert_eq!(place(0x4000_1000, 0x1000, 40), (reg(), Fault::Overlap { address: 0x4000_1000 }));
    assert_eq!(place(u64::MAX - 0xfff, 0x1000, 40).1, Fault::Overlap { address: u64::MAX - 0xfff });
    assert!(matches!(place(0x0900_0800, 0x1000, 40).1, Fault::Unaligned { .. }));
    assert!(matches!(place(0x0900_0000, 0x2000, 40).1, Fault::OutOfRange { .. }));
    assert!(matches!(place(0x0900_0000, 0x1000, 31).1, Fault::OutOfRange { .. }));
    assert!(matches!(place(0x0900_0000, 0x1000, 128).1, Fault::OutOfRange { .. }));
    assert_eq!(place(0x0900_0000, 0x1000, 50).1, Fault::InterruptTaken(50));
}

/// A VM with these virtio devices.
fn with_virtio(devices: &[(&'static str, &[Prop], bool)]) -> Vm {
    let mut vm = Vm::ordinary("a");
    vm.virtio = devices.iter().map(|&(name, props, image)| (name, props.to_vec(), image)).collect();
    vm
}

#[test]
fn virtio_devices_are_read_in_the_order_of_their_slots() {
    let read_only = Prop(READ_ONLY, vec![]);
    let bytes = bundle(&[with_virtio(&[
        ("block@0", &[wide(SIZE, 8192)], true),
        ("console@1", &[], false),
        ("block@2", &[wide(SIZE, 512), read_only], false),
        ("entropy@3", &[], false),
    ])]);
    let bundle = Bundle::parse(&bytes).unwrap();
    let vm = &bundle.vms[0];
    let image = Some(vm.kernel);
    let expected = [
        VirtioDevice::Block(BlockSpec { image, size: 8192, read_only: false }),
        VirtioDevice::Console,
        VirtioDevice::Block(BlockSpec { image: None, size: 512, read_only: true }),
        VirtioDevice::Entropy,
    ];
    assert_eq!(vm.devices.virtio.as_slice(), expected);
}

#[test]
fn virtio_faults_are_named() {
    let with = |devices: &[(&'static str, &[Prop], bool)]| refused_vm(with_virtio(devices));
    let range = |value, min| Fault::OutOfRange { value, min, max: 256 << 30 };
    assert_eq!(with(&[("tape@0", &[], false)]), ("tape@0/".into(), Fault::Unknown));
    assert_eq!(with(&[("entropy@0", &[wide(SIZE, 1)], false)]).1, Fault::Unknown);
    assert_eq!(with(&[("block@0", &[], false)]), ("block@0/size".into(), Fault::Missing));
    assert_eq!(with(&[("block@0", &[wide(SIZE, 0)], false)]).1, range(0, 512));
    assert_eq!(with(&[("block@0", &[wide(SIZE, 4608)], true)]).1, range(4608, 5000));
    let unaligned = Fault::Unaligned { value: 1000, align: 512 };
    assert_eq!(with(&[("block@0", &[wide(SIZE, 1000)], false)]).1, unaligned);
    let props = [wide(SIZE, 512), cell(READ_ONLY, 1)];
    assert_eq!(with(&[("block@0", &props, false)]), ("block@0/read-only".into(), Fault::BadType));
    let many = [("console@0", &[][..], false); 9];
    assert_eq!(with(&many), ("virtio/".into(), Fault::TooMany(8)));
}

#[test]
fn names_must_be_good_and_unique() {
    for name in ["1st", "-a", "a.b", "a@1", &"n".repeat(32)] {
        let (node, _, fault) = refusal(&bundle(&[Vm::ordinary(name)]));
        assert_eq!((node.as_str(), fault), (name, Fault::BadValue));
    }
    let twice = bundle(&[Vm::ordinary("a"), Vm::realm("a")]);
    assert_eq!(refusal(&twice), ("a".into(), String::new(), Fault::DuplicateName));
    assert_eq!(refusal(&bundle(&[])).2, Fault::VmCount);
    let many: Vec<Vm> = (0..17).map(|i| Vm::ordinary(&["v", &i.to_string()].concat())).collect();
    assert_eq!(refusal(&bundle(&many)), ("/".into(), VMS.into(), Fault::VmCount));
    let vcpus = |name| {
        let mut vm = Vm::ordinary(name);
        vm.props.retain(|prop| prop.0 != VCPUS);
        vm.with(cell(VCPUS, 16))
    };
    let many = bundle(&[vcpus("a"), vcpus("b"), Vm::ordinary("c")]);
    assert_eq!(refusal(&many), ("c".into(), VCPUS.into(), Fault::VcpuCount));
    assert!(Bundle::parse(&bundle(&[vcpus("a"), vcpus("b")])).is_ok());
}

#[test]
fn root_faults_are_named() {
    let with = |prop| refusal(&bundle_with(&[prop], &[Vm::ordinary("a")]));
    assert_eq!(with(cell("mood", 1)), ("/".into(), "mood".into(), Fault::Unknown));
    assert_eq!(with(text(SELF_TEST, "all")), ("/".into(), SELF_TEST.into(), Fault::BadValue));
    let replace = |from: &[u8], to: &[u8]| {
        let mut bytes = bundle(&[Vm::ordinary("a")]);
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        seal(&mut bytes);
        refusal(&bytes)
    };
    assert_eq!(replace(b"suzerain,bundle", b"suzerain,barrel").2, Fault::NotABundle);
    assert_eq!(replace(b"version", b"vorsion"), ("/".into(), VERSION.into(), Fault::Missing));
}

/// Changes that keep the checksum right reach the checks behind it.
fn resealed(changes: &[(prop::sample::Index, u8)]) -> Option<Vec<u8>> {
    let disk = with_virtio(&[("block@0", &[wide(SIZE, 8192)], true), ("console@1", &[], false)]);
    let mut bytes = bundle(&[disk, Vm::realm("b")]);
    let tree = crate::fdt::total_size(&bytes).ok()?;
    for (index, value) in changes {
        bytes[index.index(tree)] = *value;
    }
    let size = crate::fdt::total_size(&bytes).ok()?;
    let root = crate::fdt::Fdt::new(bytes.get(..size)?).ok()?.root();
    root.property(CRC32).filter(|p| p.value.len() == 4)?;
    testing::seal(&mut bytes);
    Some(bytes)
}

proptest! {
    #[test]
    fn random_changes_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        if let Some(bytes) = resealed(&changes) {
            let _ = peek_total_size(&bytes);
            if let Ok(bundle) = Bundle::parse(&bytes) {
                for vm in &bundle.vms {
                    let mut fdt = vec![0; crate::loader::FDT_MAX];
                    let _ = crate::loader::plan(vm, &bundle, None, &mut fdt);
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Bundle::parse(&bytes).is_err());
    }
}

fn channel(size: u64, vms: &[&str]) -> Vec<Prop> {
    let names = vms.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect();
    vec![wide(SIZE, size), Prop(VMS, names)]
}

#[test]
fn channels_are_found_by_both_their_vms() {
    let vms = ["a", "b", "c"].map(Vm::ordinary);
    let channels =
        [("one", channel(0x1000, &["a", "b"])), ("two", channel(0x100_0000, &["c", "a"]))];
    let bytes = testing::bundle_with_channels(&[], &vms, &channels);
    let bundle = Bundle::parse(&bytes).unwrap();
    let of = |name: &str| -> Vec<_> { bundle.channels_of(name).collect() };
    let small = Window { base: 0x2000_0000, size: 0x1000 };
    let large = Window { base: 0x2100_0000, size: 0x100_0000 };
    let first = Placement { base: 0x0c00_0000, intid: 56 };
    let second = Placement { base: 0x0c00_1000, intid: 57 };
    let one = Endpoint { channel: 0, end: End::First, registers: first, window: small };
    let two = Endpoint { channel: 1, end: End::Second, registers: second, window: large };
    assert_eq!(of("a"), [("one", one), ("two", two)]);
    assert_eq!(of("b"), [("one", Endpoint { end: End::Second, ..one })]);
    let window = Window { base: 0x2000_0000, ..large };
    let two = Endpoint { end: End::First, registers: first, window, ..two };
    assert_eq!(of("c"), [("two", two)]);
    assert_eq!(of("d"), []);
}

#[test]
fn broken_channels_are_refused() {
    let refused = |channels: &[testing::Channel<'_>]| {
        let vms = ["a", "b"].map(Vm::ordinary);
        let (node, property, fault) = refusal(&testing::bundle_with_channels(&[], &vms, channels));
        assert_eq!(node, "/");
        (property, fault)
    };
    let one = |size, vms: &[&str]| refused(&[("x", channel(size, vms))]);
    let range = |value| Fault::OutOfRange { value, min: 0x1000, max: 16 << 20 };
    assert_eq!(one(0x800, &["a", "b"]), ("x/size".into(), range(0x800)));
    assert_eq!(one(32 << 20, &["a", "b"]), ("x/size".into(), range(32 << 20)));
    assert_eq!(one(0x3000, &["a", "b"]), ("x/size".into(), Fault::BadValue));
    assert_eq!(one(0x1000, &["a"]), ("x/vms".into(), Fault::BadType));
    assert_eq!(one(0x1000, &["a", "b", "a"]), ("x/vms".into(), Fault::BadType));
    assert_eq!(one(0x1000, &["a", "a"]), ("x/vms".into(), Fault::DuplicateName));
    assert_eq!(one(0x1000, &["a", "z"]), ("x/vms".into(), Fault::NoSuchVm));
    let mut extra = channel(0x1000, &["a", "b"]);
    extra.push(cell("color", 1));
    assert_eq!(refused(&[("x", extra)]), ("x/color".into(), Fault::Unknown));
    let good = || channel(0x1000, &["a", "b"]);
    assert_eq!(refused(&[("x", good()), ("x", good())]), ("x/".into(), Fault::DuplicateName));
    let many: Vec<_> = ["p", "q", "r", "s", "t"].map(|name| (name, good())).into();
    assert_eq!(refused(&many), ("t/vms".into(), Fault::TooMany(4)));
}

fn net(switch: u32, mac: u8) -> Vec<Prop> {
    let mac = Prop(MAC, vec![2, 0, 0, 0, 0, mac]);
    vec![cell(SWITCH, switch), mac, wide(QUEUE_BYTES, 0x2000), cell(QUEUE_FRAMES, 9)]
}

/// A bundle with two switches and a VM with these network devices.
fn with_nets(devices: &[Vec<Prop>]) -> Vec<u8> {
    let devices: Vec<_> = devices.iter().map(|props| ("net@x", &props[..], false)).collect();
    let names = Prop(SWITCHES, b"lan\0dmz\0".to_vec());
    bundle_with(&[names], &[with_virtio(&devices)])
}

#[test]
fn network_devices_are_numbered_and_plugged_in() {
    let mut second = net(1, 1);
    second.push(text(SOURCE, SOURCE_ANY));
    second.push(cell(RATE_KBPS, 100));
    let bytes = with_nets(&[net(1, 2), second]);
    let bundle = Bundle::parse(&bytes).unwrap();
    assert_eq!(bundle.switches.as_slice(), ["lan", "dmz"]);
    let port = PortConfig {
        mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SourcePolicy::Own,
        queue_frames: 9,
        rate_kbps: None,
    };
    let first = NetSpec { nic: NicId { switch: 1, number: 0 }, port, queue_bytes: 0x2000 };
    let port = PortConfig {
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        source: SourcePolicy::Any,
        rate_kbps: core::num::NonZeroU32::new(100),
        ..port
    };
    let second = NetSpec { nic: NicId { switch: 1, number: 1 }, port, ..first };
    assert_eq!(bundle.vms[0].devices.nets().collect::<Vec<_>>(), [&first, &second]);
}

#[test]
fn broken_network_devices_are_refused() {
    let refused = |devices: &[Vec<Prop>]| {
        let (node, property, fault) = refusal(&with_nets(devices));
        assert_eq!(node, "a");
        (property, fault)
    };
    let with = |prop: Prop| {
        let mut props = net(0, 1);
        props.retain(|other| other.0 != prop.0);
        props.push(prop);
        refused(&[props])
    };
    let without = |name: &str| {
        let mut props = net(0, 1);
        props.retain(|other| other.0 != name);
        refused(&[props])
    };
    for name in [SWITCH, MAC, QUEUE_BYTES, QUEUE_FRAMES] {
        assert_eq!(without(name), (["net@x/", name].concat(), Fault::Missing));
    }
    let range = |value, min, max| Fault::OutOfRange { value, min, max };
    assert_eq!(with(cell(SWITCH, 4)), ("net@x/switch".into(), range(4, 0, 3)));
    assert_eq!(with(cell(SWITCH, 2)), ("net/switch".into(), range(2, 0, 1)), "there are two");
    assert_eq!(with(Prop(MAC, vec![2; 5])), ("net@x/mac-address".into(), Fault::BadType));
    assert_eq!(with(Prop(MAC, vec![3; 6])), ("net@x/mac-address".into(), Fault::BadValue));
    assert_eq!(with(Prop(MAC, vec![0; 6])), ("net@x/mac-address".into(), Fault::BadValue));
    assert_eq!(with(text(SOURCE, "all")), ("net@x/source".into(), Fault::BadValue));
    let queue = |bytes| with(wide(QUEUE_BYTES, bytes));
    assert_eq!(queue(2048), ("net@x/queue-bytes".into(), range(2048, 4096, 1 << 20)));
    assert_eq!(queue(0x3000), ("net@x/queue-bytes".into(), Fault::BadValue));
    assert_eq!(with(cell(QUEUE_FRAMES, 0)), ("net@x/queue-frames".into(), range(0, 1, 4096)));
    let rate = range(0, 1, u64::from(u32::MAX));
    assert_eq!(with(cell(RATE_KBPS, 0)), ("net@x/rate-kbps".into(), rate));
    assert_eq!(with(cell("mtu", 9000)), ("net@x/mtu".into(), Fault::Unknown));
    let twice = refused(&[net(0, 1), net(1, 1), net(0, 1)]);
    assert_eq!(twice, ("net/mac-address".into(), Fault::DuplicateAddress));
}
