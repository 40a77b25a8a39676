use super::overlay::{OverlayError, OverlayFault};
use super::tests::{example, guest};
use super::{Fdt, FdtError, FdtWriter, GuestTree, MAX_DEPTH, MAX_FRAGMENTS, Node, Overlay};
use super::{WriteError, generate};
use crate::loader::FDT_MAX;
use crate::testing;
use proptest::prelude::*;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

/// All nodes and properties, each on a line with its path.
fn lines(node: &Node<'_>, path: &str, out: &mut Vec<String>) {
    for p in node.properties() {
        out.push(format!("{path}/ {}={:?}", p.name, p.value));
    }
    for child in node.children() {
        let path = format!("{path}/{}", child.name());
        out.push(path.clone());
        lines(&child, &path, out);
    }
}

fn all_lines(bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    lines(&Fdt::new(bytes).unwrap().root(), "", &mut out);
    out
}

fn merged(overlay: &[u8]) -> Result<Vec<u8>, WriteError> {
    let overlay = Overlay::new(overlay).map_err(WriteError::Overlay)?;
    let mut buffer = vec![0; FDT_MAX];
    let length = generate(&GuestTree { overlay: Some(overlay), ..example() }, &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// A tree of whatever `write` makes.
fn tree(write: impl FnOnce(&mut FdtWriter<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 2 * FDT_MAX];
    let mut w = FdtWriter::new(&mut buffer);
    write(&mut w);
    let length = w.finish().unwrap();
    buffer.truncate(length);
    buffer
}

fn fragment(
    w: &mut FdtWriter<'_>,
    number: usize,
    target: &str,
    write: impl FnOnce(&mut FdtWriter<'_>),
) {
    w.begin_node(&format!("fragment@{number}"));
    w.property_str("target-path", target);
    w.begin_node("__overlay__");
    write(w);
    w.end_node();
    w.end_node();
}

/// An overlay of one fragment.
fn one(target: &str, write: impl FnOnce(&mut FdtWriter<'_>)) -> Vec<u8> {
    tree(|w| fragment(w, 0, target, write))
}

fn node(w: &mut FdtWriter<'_>, name: &str) {
    w.begin_node(name);
    w.end_node();
}

/// Fragment and fault of the refusal.
fn refusal(overlay: &[u8]) -> (String, OverlayFault) {
    match merged(overlay).expect_err("must be refused") {
        WriteError::Overlay(OverlayError { fragment, fault }) => (fragment.to_string(), fault),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn assert_refused(overlay: &[u8], fragment: &str, text: &str) {
    let error = merged(overlay).expect_err("must be refused").to_string();
    let start = if fragment.is_empty() { String::new() } else { format!(", {fragment}") };
    assert_eq!(error, format!("overlay{start}: {text}"));
}

#[test]
fn an_overlay_adds_to_the_tree_and_changes_nothing_else() {
    let bytes = merged(&testing::overlay()).unwrap();
    let tree = Fdt::new(&bytes).unwrap();
    let text = |path, name| tree.find(path)?.property(name)?.str();
    assert_eq!(text("/chosen", "owner"), Some("me"));
    assert_eq!(text("/", "serial-number"), Some("17"));
    assert_eq!(text("/rig", "label"), Some("bench"));
    assert!(tree.find("/rig/slot").unwrap().property("used").unwrap().value.is_empty());
    let module = tree.find("/chosen/module@48000000").unwrap();
    assert_eq!(module.property("reg").unwrap().value.len(), 16);
    let cpu = tree.find("/cpus/cpu@0").unwrap();
    assert_eq!(cpu.property("capacity-dmips-mhz").unwrap().u32(), Some(1024));
    assert!(tree.find("/cpus/cpu@1").unwrap().property("capacity-dmips-mhz").is_none());

    // Without the overlay's lines it is the tree without overlay, in the same order.
    let (with, without) = (all_lines(&bytes), all_lines(&guest(&example())));
    let kept: Vec<_> = with.iter().filter(|line| without.contains(line)).collect();
    assert_eq!(kept, without.iter().collect::<Vec<_>>());
    assert_eq!(with.len() - without.len(), 9);
}

#[test]
fn fragments_may_share_a_target() {
    let bytes = tree(|w| {
        fragment(w, 0, "/chosen", |w| w.property_u32("a", 1));
        fragment(w, 1, "/chosen", |w| {
            w.property_u32("b", 2);
            node(w, "c");
        });
    });
    let merged = merged(&bytes).unwrap();
    let chosen = Fdt::new(&merged).unwrap().find("/chosen").unwrap();
    assert_eq!(["a", "b"].map(|p| chosen.property(p).unwrap().u32()), [Some(1), Some(2)]);
    assert!(chosen.child("c").is_some());
}

#[test]
fn what_the_tree_has_already_cannot_be_changed() {
    let property = |target, name: &str| one(target, |w| w.property_u32(name, 1));
    let has = "the target has a property";
    assert_refused(
        &property("/chosen", "bootargs"),
        "fragment@0",
        &format!("{has} bootargs already"),
    );
    assert_refused(&property("/psci", "method"), "fragment@0", &format!("{has} method already"));
    assert_refused(
        &property("/", "compatible"),
        "fragment@0",
        &format!("{has} compatible already"),
    );
    for (target, child, shown) in [
        ("/", "chosen", "chosen"),
        ("/", "psci", "psci"),
        // Another device in the place of one that is there.
        ("/", "serial@9000000", "pl011@9000000"),
        ("/", "serial@09000000", "pl011@9000000"),
    ] {
        let text = format!("the target has a node {shown}, or one at its address, already");
        assert_refused(&one(target, |w| node(w, child)), "fragment@0", &text);
    }
}

#[test]
fn targets_are_nodes_that_are_generated() {
    for path in ["/none", "/memory", "/chosen/", "//chosen", "/cpus/cpu@9", "/chosen/bootargs"] {
        let text = format!("the guest has no node {path}");
        assert_refused(&one(path, |w| w.property_u32("a", 1)), "fragment@0", &text);
    }
    let below_another = tree(|w| {
        fragment(w, 0, "/", |w| node(w, "new"));
        fragment(w, 1, "/new", |w| node(w, "below"));
    });
    assert_refused(&below_another, "fragment@1", "the guest has no node /new");
    for path in ["", "serial0", "chosen"] {
        let overlay = one(path, |w| node(w, "a"));
        assert_refused(&overlay, "fragment@0", "target-path is missing or no absolute path");
    }
}

#[test]
fn other_forms_are_refused() {
    let extra = |name: &str| {
        tree(|w| {
            fragment(w, 0, "/", |w| node(w, "a"));
            node(w, name);
        })
    };
    for name in ["__symbols__", "__fixups__", "__local_fixups__"] {
        let text = format!("{name}: references between the trees are not resolved");
        assert_refused(&extra(name), "", &text);
    }
    assert_refused(&extra("chosen"), "", "chosen is not known here");
    assert_refused(
        &tree(|w| w.property_str("compatible", "x")),
        "",
        "compatible is not known here",
    );
    assert_refused(&tree(|_| ()), "", "must have 1 to 32 fragments");

    let by_handle = tree(|w| {
        w.begin_node("fragment@7");
        w.property_u32("target", 1);
        w.begin_node("__overlay__");
        w.end_node();
        w.end_node();
    });
    assert_refused(&by_handle, "fragment@7", "target by handle, only target-path is known");
    let inside = |name: &str, write: fn(&mut FdtWriter<'_>)| {
        tree(|w| {
            w.begin_node(name);
            w.property_str("target-path", "/");
            write(w);
            w.end_node();
        })
    };
    assert_refused(&inside("fragment@0", |_| ()), "fragment@0", "__overlay__ is missing");
    let unknown = inside("fragment@0", |w| w.property_u32("status", 1));
    assert_refused(&unknown, "fragment@0", "status is not known here");
    let unknown = inside("fragment@0", |w| node(w, "overlay"));
    assert_refused(&unknown, "fragment@0", "overlay is not known here");
    assert_refused(&inside("fragment", |_| ()), "", "fragment is not known here");
    let handle = one("/", |w| {
        w.begin_node("a");
        w.property_u32("phandle", 1);
        w.end_node();
    });
    assert_refused(&handle, "fragment@0", "gives a node a phandle");
}

#[test]
fn nothing_is_added_twice() {
    let twice = |write: fn(&mut FdtWriter<'_>)| {
        let split = tree(|w| (0..2).for_each(|number| fragment(w, number, "/chosen", write)));
        let together = one("/chosen", |w| {
            w.begin_node("b");
            write(w);
            write(w);
            w.end_node();
        });
        [split, together].map(|bytes| refusal(&bytes))
    };
    for [split, _] in [twice(|w| w.property_u32("a", 1)), twice(|w| node(w, "a@1"))] {
        assert_eq!(split.0, "fragment@1");
        assert!(matches!(split.1, OverlayFault::Duplicate(_)));
    }
    let [_, together] = twice(|w| node(w, "a"));
    assert!(matches!(together.1, OverlayFault::Duplicate(name) if name.as_str() == "a"));
}

#[test]
fn memory_and_cpus_cannot_be_added_or_hidden() {
    let why = "memory and CPUs are what the scenario gives the guest";
    for name in ["memory@80000000", "memory", "cpus", "cpu@7"] {
        let refused = format!("{name}: {why}");
        assert_refused(&one("/", |w| node(w, name)), "fragment@0", &refused);
        let nested = |w: &mut FdtWriter<'_>| {
            w.begin_node("bank");
            node(w, name);
            w.end_node();
        };
        assert_refused(&one("/", nested), "fragment@0", &refused);
    }
    let refused = format!("device_type: {why}");
    for kind in ["memory\0", "cpu\0", "memory", "memory\0x\0"] {
        let typed = |w: &mut FdtWriter<'_>| {
            w.begin_node("bank@80000000");
            w.property("device_type", kind.as_bytes());
            w.end_node();
        };
        assert_refused(&one("/", typed), "fragment@0", &refused);
    }
    let hide = one("/chosen", |w| w.property("linux,usable-memory-range", &[0; 16]));
    assert_refused(&hide, "fragment@0", &format!("linux,usable-memory-range: {why}"));
    let others = one("/", |w| {
        w.begin_node("memory-monitor");
        w.property_str("device_type", "pci");
        w.end_node();
    });
    assert!(merged(&others).is_ok());
}

#[test]
fn sizes_are_limited() {
    let many = |count| tree(|w| (0..count).for_each(|n| fragment(w, n, "/", |_| ())));
    assert!(merged(&many(MAX_FRAGMENTS)).is_ok());
    assert_eq!(refusal(&many(MAX_FRAGMENTS + 1)).1, OverlayFault::FragmentCount);

    let nested = |levels| {
        one("/cpus/cpu@0", |w| {
            (0..levels).for_each(|_| w.begin_node("n"));
            (0..levels).for_each(|_| w.end_node());
        })
    };
    assert!(Fdt::new(&merged(&nested(MAX_DEPTH)).unwrap()).is_ok());
    assert_eq!(refusal(&nested(MAX_DEPTH + 1)).1, OverlayFault::TooDeep);
    assert_eq!(refusal(&nested(40)).1, OverlayFault::Malformed(FdtError::TooDeep));

    let large = |bytes: usize| one("/", |w| w.property("a", &vec![0; bytes]));
    assert!(merged(&large(FDT_MAX / 2)).is_ok());
    assert_eq!(merged(&large(FDT_MAX - 1000)), Err(WriteError::BufferFull));
    assert_eq!(refusal(&large(FDT_MAX)).1, OverlayFault::TooLong);
    let names = one("/", |w| (0..18).for_each(|n| w.property_empty(&format!("{n:050}"))));
    assert_eq!(merged(&names), Err(WriteError::StringsFull));
}

#[test]
fn a_shortened_overlay_is_refused() {
    let whole = testing::overlay();
    for length in 0..whole.len() {
        let (fragment, fault) = refusal(&whole[..length]);
        assert_eq!((fragment.as_str(), fault), ("", OverlayFault::Malformed(FdtError::Truncated)));
    }
}

proptest! {
    /// Whatever an overlay has become: it is refused, or only adds.
    #[test]
    fn mutated_overlays_only_add(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = testing::overlay();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(merged) = merged(&bytes) {
            let (with, without) = (all_lines(&merged), all_lines(&guest(&example())));
            let mut with = with.iter();
            prop_assert!(without.iter().all(|line| with.any(|other| other == line)));
        }
    }
}
