use super::{Fdt, FdtError, FdtWriter, GuestTree, Node, Seeds, WriteError, generate};
use crate::EntropyError;
use crate::channel::{End, Endpoint, Window};
use crate::manifest::Placement;
use dtoolkit::Node as _;
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

const UART: Option<Placement> = Some(Placement { base: 0x0900_0000, intid: 33 });

const CHANNELS: [(&str, Endpoint); 1] = [(
    "pipe",
    Endpoint {
        channel: 7,
        end: End::First,
        registers: Placement { base: 0x0c00_1000, intid: 57 },
        window: Window { base: 0x2100_0000, size: 0x4000 },
    },
)];

pub(super) fn guest(tree: &GuestTree<'_>) -> Vec<u8> {
    let mut buffer = vec![0xa5; 0x1_0000];
    let length = generate(tree, &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

pub(super) fn example() -> GuestTree<'static> {
    GuestTree {
        vcpus: 4,
        memory: 256 << 20,
        psci_by_smc: false,
        cmdline: "console=ttyAMA0",
        seeds: None,
        initrd: Some((0x4300_0000, 0x4310_0000)),
        uart: UART,
        watchdog: true,
        virtio: 2,
        passthrough: &[],
        channels: &CHANNELS,
        overlay: None,
    }
}

/// Touches everything that can be reached, so that a fault anywhere shows.
fn visit(node: &Node<'_>, depth: usize) -> usize {
    assert!(depth < 40);
    let mut seen = node.reg().count() + node.base_name().len();
    for property in node.properties() {
        seen += property.strings().count() + property.cells().count();
        let _ = (property.u32(), property.u64(), property.str(), property.number());
    }
    seen + node.children().map(|child| visit(&child, depth + 1)).sum::<usize>()
}

#[test]
fn guest_tree_reads_back() {
    let bytes = guest(&example());
    let tree = Fdt::new(&bytes).unwrap();
    let memory = tree.find("/memory").unwrap();
    assert_eq!(memory.reg().collect::<Vec<_>>(), [(0x4000_0000, 256 << 20)]);
    let chosen = tree.find("/chosen").unwrap();
    assert_eq!(chosen.property("bootargs").unwrap().str(), Some("console=ttyAMA0"));
    assert_eq!(chosen.property("linux,initrd-end").unwrap().u64(), Some(0x4310_0000));
    let cpus: Vec<u64> = tree
        .find("/cpus")
        .unwrap()
        .children()
        .filter_map(|c| c.reg().next())
        .map(|r| r.0)
        .collect();
    assert_eq!(cpus, [0, 1, 2, 3]);
    let gic = tree.find("/intc@8000000").unwrap();
    let regions: Vec<_> = gic.reg().collect();
    assert_eq!(regions, [(0x0800_0000, 0x1_0000), (0x080a_0000, 4 * 0x2_0000)]);
    assert_eq!(tree.find("/psci").unwrap().property("method").unwrap().str(), Some("hvc"));
    let timer = tree.find("/timer").unwrap().property("interrupts").unwrap();
    assert_eq!(timer.cells().collect::<Vec<_>>(), [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
    assert_eq!(tree.root().children().filter(|n| n.is_compatible("virtio,mmio")).count(), 2);
    let channel = tree.find("/channel@c001000").unwrap();
    assert_eq!(channel.reg().collect::<Vec<_>>(), [(0x0c00_1000, 0x1000), (0x2100_0000, 0x4000)]);
    assert_eq!(channel.property("label").unwrap().str(), Some("pipe"));
    let interrupts: Vec<_> = channel.property("interrupts").unwrap().cells().collect();
    assert_eq!(interrupts, [0, 57 - 32, 4]);
    let alias = tree.find("/aliases").unwrap().property("serial0").unwrap();
    assert_eq!(alias.str(), Some("/pl011@9000000"));
    assert!(tree.find(alias.str().unwrap()).is_some());
}

#[test]
fn guest_tree_is_the_same_every_time_and_full_buffers_are_an_error() {
    assert_eq!(guest(&example()), guest(&example()));
    let whole = guest(&example()).len();
    for length in 0..whole {
        let mut small = vec![0; length];
        assert_eq!(generate(&example(), &mut small), Err(WriteError::BufferFull), "{length}");
    }
    let bad = GuestTree { cmdline: "a\0b", ..example() };
    assert_eq!(generate(&bad, &mut [0; 0x4000]), Err(WriteError::EmbeddedNul));
}

#[test]
fn seeds_are_in_the_tree_and_differ_each_time() {
    let entropy = crate::testing::Counting::default();
    let seeds = [Seeds::draw(&entropy).unwrap(), Seeds::draw(&entropy).unwrap()];
    let found = seeds.each_ref().map(|seeds| {
        let bytes = guest(&GuestTree { seeds: Some(seeds), ..example() });
        let tree = Fdt::new(&bytes).unwrap();
        let chosen = tree.find("/chosen").unwrap();
        let value = |name| chosen.property(name).unwrap().value.to_vec();
        [value("kaslr-seed"), value("rng-seed")]
    });
    // The source counts from 1 and leaves a byte out behind each request.
    let bytes = |first: u8, count: u8| (first..first + count).collect::<Vec<_>>();
    assert_eq!(found[0], [bytes(1, 8), bytes(10, 64)]);
    assert_eq!(found[1], [bytes(75, 8), bytes(84, 64)]);
    // Nobody prints them by mistake.
    assert_eq!(format!("{:?}", seeds[0]), "Seeds { .. }");
    // Without a source, or when it runs dry half-way, there are none.
    let none = crate::testing::Counting { has_source: false, ..Default::default() };
    assert_eq!(Seeds::draw(&none), Err(EntropyError::NoSource));
    entropy.left.set(71);
    assert_eq!(Seeds::draw(&entropy), Err(EntropyError::Exhausted));
}

/// An independent parser, stricter than ours, accepts the tree and sees the same nodes.
#[test]
fn guest_tree_satisfies_another_parser() {
    fn dump<N: dtoolkit::Node>(node: &N, path: &str, out: &mut Vec<String>) {
        use dtoolkit::Property as _;
        for p in node.properties() {
            out.push(format!("{path}:{}={:?}", p.name(), p.value()));
        }
        for child in node.children() {
            dump(&child, &format!("{path}/{}", child.name().as_ref()), out);
        }
    }
    fn dump_ours(node: &Node<'_>, path: &str, out: &mut Vec<String>) {
        for p in node.properties() {
            out.push(format!("{path}:{}={:?}", p.name, p.value));
        }
        for child in node.children() {
            dump_ours(&child, &format!("{path}/{}", child.name()), out);
        }
    }
    let bytes = guest(&example());
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    dump(&dtoolkit::fdt::Fdt::new(&bytes).unwrap().root(), "", &mut theirs);
    dump_ours(&Fdt::new(&bytes).unwrap().root(), "", &mut ours);
    assert_eq!(theirs, ours);
    assert!(ours.len() > 60);
}

#[test]
fn writer_reports_misuse() {
    let mut buffer = [0; 512];
    let mut w = FdtWriter::new(&mut buffer);
    w.begin_node("a");
    w.end_node();
    w.property_u32("late", 1);
    assert_eq!(w.finish(), Err(WriteError::Unbalanced));

    let mut w = FdtWriter::new(&mut buffer);
    w.begin_node("a");
    assert_eq!(w.finish(), Err(WriteError::Unbalanced));

    let mut w = FdtWriter::new(&mut buffer);
    w.end_node();
    w.end_node();
    assert_eq!(w.finish(), Err(WriteError::Unbalanced));

    let mut w = FdtWriter::new(&mut buffer);
    w.begin_node_at(&"x".repeat(70), 1);
    assert_eq!(w.finish(), Err(WriteError::NameTooLong));
}

#[test]
fn header_faults_are_named() {
    let bytes = guest(&example());
    assert_eq!(Fdt::new(&bytes[..39]).err(), Some(FdtError::Truncated));
    assert_eq!(Fdt::new(&bytes[..bytes.len() - 1]).err(), Some(FdtError::Truncated));
    let with = |at: usize, value: u32| {
        let mut changed = bytes.clone();
        changed[at..at + 4].copy_from_slice(&value.to_be_bytes());
        Fdt::new(&changed).err()
    };
    assert_eq!(with(0, 1), Some(FdtError::BadMagic));
    assert_eq!(with(24, 18), Some(FdtError::BadVersion(18)));
    assert_eq!(with(20, 15), Some(FdtError::BadVersion(15)));
    assert_eq!(with(8, 0xffff_fff0), Some(FdtError::BadHeader));
    assert_eq!(with(12, 0xffff_fff0), Some(FdtError::BadHeader));
    assert!(matches!(with(36, 8), Some(FdtError::BadStructure(_))));
}

#[test]
fn nesting_is_limited() {
    let mut buffer = vec![0; 0x1000];
    let mut w = FdtWriter::new(&mut buffer);
    (0..40).for_each(|_| w.begin_node("n"));
    (0..40).for_each(|_| w.end_node());
    let length = w.finish().unwrap();
    assert_eq!(Fdt::new(&buffer[..length]).err(), Some(FdtError::TooDeep));
}

#[test]
fn odd_cell_counts_give_no_regions() {
    for (address, size) in [(0, 0), (3, 1), (1, 3), (u32::MAX, u32::MAX), (0, 1)] {
        let mut buffer = [0; 512];
        let mut w = FdtWriter::new(&mut buffer);
        w.property_u32("#address-cells", address);
        w.property_u32("#size-cells", size);
        w.begin_node("a");
        w.property("reg", &[0; 24]);
        w.end_node();
        w.finish().unwrap();
        assert_eq!(Fdt::new(&buffer).unwrap().find("/a").unwrap().reg().count(), 0);
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
        if magic && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&0xd00d_feed_u32.to_be_bytes());
            let length = bytes.len() as u32;
            bytes[4..8].copy_from_slice(&length.to_be_bytes());
        }
        if let Ok(tree) = Fdt::new(&bytes) {
            visit(&tree.root(), 0);
        }
    }

    #[test]
    fn mutated_trees_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = guest(&example());
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(tree) = Fdt::new(&bytes) {
            visit(&tree.root(), 0);
            let _ = tree.reservations().count();
        }
        // Helpers that go on from a tree that may be nonsense.
        if let Ok(machine) = crate::machine::MachineTree::parse(&bytes) {
            let _ = (machine.memory(), machine.reserved(), machine.initrd(), machine.cpus());
            let _ = (machine.gicv3(), machine.console(), machine.timers(), machine.psci());
        }
    }
}

/// Checks `node` and all below it against the rules of the Devicetree Specification v0.4 and of the bindings
/// that its `compatible` names; collects phandles and what refers to them.
fn check_node(node: &Node<'_>, cells: (u32, u32), handles: &mut Vec<u32>, users: &mut Vec<u32>) {
    let name = node.name();
    // Section 2.2.1: a node with `reg` has the first address as its unit address, others have none.
    let unit = name.split_once('@').map(|(_, unit)| u64::from_str_radix(unit, 16).unwrap());
    let reg = node.property("reg");
    assert_eq!(unit.is_some(), reg.is_some(), "{name}");
    if let Some(reg) = reg {
        let (address, size) = cells;
        assert_eq!(reg.cells().count() as u32 % (address + size), 0, "{name}: reg");
        let first = reg.cells().take(address as usize).fold(0, |n, c| n << 32 | u64::from(c));
        assert_eq!(unit, Some(first), "{name}");
    }
    if let Some(compatible) = node.property("compatible") {
        assert!(compatible.strings().all(|name| !name.is_empty()), "{name}");
        assert!(compatible.strings().next().is_some(), "{name}");
    }
    // The GIC binding: three cells, kind, number, flags.
    if let Some(interrupts) = node.property("interrupts") {
        let cells: Vec<u32> = interrupts.cells().collect();
        assert!(!cells.is_empty() && cells.len().is_multiple_of(3), "{name}: interrupts");
        for specifier in cells.chunks(3) {
            let private = specifier[0] == 1 && specifier[1] < 16;
            assert!(private || specifier[0] == 0 && specifier[1] < 96, "{name}: {specifier:?}");
            assert!([1, 4].contains(&specifier[2]), "{name}: {specifier:?}");
        }
    }
    if let Some(handle) = node.property("phandle") {
        let handle = handle.u32().unwrap();
        assert!(handle != 0 && !handles.contains(&handle), "{name}: phandle");
        handles.push(handle);
    }
    users.extend(node.property("interrupt-parent").map(|p| p.u32().unwrap()));
    users.extend(node.property("clocks").iter().flat_map(|p| p.cells()));
    if let Some(clocks) = node.property("clocks") {
        let names = node.property("clock-names").unwrap().strings().count();
        assert_eq!(clocks.cells().count(), names, "{name}: one name per clock");
    }
    let required: &[&str] = match node.property("compatible").and_then(|c| c.strings().next()) {
        Some("arm,gic-v3") => &["reg", "#interrupt-cells", "interrupt-controller", "phandle"],
        Some("arm,armv8-timer") => &["interrupts"],
        Some("arm,pl011") => &["reg", "interrupts", "clocks", "clock-names"],
        Some("fixed-clock") => &["#clock-cells", "clock-frequency", "phandle"],
        Some("virtio,mmio") => &["reg", "interrupts"],
        Some("arm,psci-1.0") => &["method"],
        Some("arm,armv8") => &["device_type", "reg", "enable-method"],
        _ => &[],
    };
    required.iter().for_each(|p| assert!(node.property(p).is_some(), "{name}: no {p}"));
    let own = |p, default| node.property(p).map_or(default, |p| p.u32().unwrap());
    let cells = (own("#address-cells", 2), own("#size-cells", 1));
    let names: Vec<&str> = node.children().map(|child| child.name()).collect();
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(unique.len(), names.len(), "{name}: two children of one name");
    node.children().for_each(|child| check_node(&child, cells, handles, users));
}

#[test]
fn guest_trees_follow_the_bindings() {
    let device = |intid, compatible| crate::passthrough::Passthrough {
        base: 0x901_0000,
        size: 0x1000,
        intid,
        compatible,
    };
    let clock = [device(Some(34), b"arm,pl031\0arm,primecell\0")];
    let other = [device(None, b"vendor,device\0")];
    let vm = GuestTree { passthrough: &clock, ..example() };
    let trees = [
        vm,
        GuestTree { vcpus: 1, uart: None, virtio: 0, initrd: None, passthrough: &other, ..vm },
        GuestTree { psci_by_smc: true, vcpus: 16, passthrough: &[], channels: &[], ..vm },
    ];
    for tree in trees {
        let bytes = guest(&tree);
        let parsed = Fdt::new(&bytes).unwrap();
        let root = parsed.root();
        for property in ["compatible", "model", "#address-cells", "#size-cells"] {
            assert!(root.property(property).is_some(), "the root has no {property}");
        }
        let (mut handles, mut users) = (Vec::new(), Vec::new());
        check_node(&root, (2, 1), &mut handles, &mut users);
        assert!(users.iter().all(|user| handles.contains(user)), "{users:?} in {handles:?}");
        // Memory is RAM as a whole, and nothing of it is anybody else's.
        let memory = parsed.find("/memory").unwrap();
        assert_eq!(memory.property("device_type").unwrap().str(), Some("memory"));
        assert_eq!(memory.reg().collect::<Vec<_>>(), [(0x4000_0000, tree.memory)]);
        assert!(parsed.find("/reserved-memory").is_none());
        assert_eq!(parsed.reservations().count(), 0);
        let method = parsed.find("/psci").unwrap().property("method").unwrap().str();
        assert_eq!(method, Some(if tree.psci_by_smc { "smc" } else { "hvc" }));
        let cpus = parsed.find("/cpus").unwrap().children().count();
        assert_eq!(cpus, tree.vcpus);
        let chosen = parsed.find("/chosen").unwrap();
        assert_eq!(chosen.property("bootargs").unwrap().str(), Some(tree.cmdline));
        let bound = |name| chosen.property(name).and_then(|p| p.number());
        let initrd = bound("linux,initrd-start").zip(bound("linux,initrd-end"));
        assert_eq!(initrd, tree.initrd);
        // `stdout-path` is an alias of a node that is there.
        let stdout = chosen.property("stdout-path").map(|p| p.str().unwrap());
        assert_eq!(stdout.is_some(), tree.uart.is_some());
        if let Some(alias) = stdout {
            let path = parsed.find("/aliases").unwrap().property(alias).unwrap().str().unwrap();
            assert!(parsed.find(path).unwrap().is_compatible("arm,pl011"));
        }
    }
}
