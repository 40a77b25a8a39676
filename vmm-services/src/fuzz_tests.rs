//! Files and device trees with random changes: the parsers refuse them or make sense of them, and never
//! panic. What they accept is checked for what the hypervisor relies on.
//!
//! The crate `fuzz` says how to run these for longer.

use crate::fdt::{Fdt, Node};
use crate::layout;
use crate::loader::{self, FDT_MAX, LoadPlan, Source};
use crate::machine::MachineTree;
use crate::manifest::names::{self, CRC32};
use crate::manifest::{Bundle, ImageRef, MAX_NAME, VmSpec};
use crate::testing::{Vm, bundle, cell, elf, image, machine_tree, overlay, text, wide};
use fuzz::Input;
use mm::{Ipa, PAGE_SIZE};
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// Walks a whole tree and reads each property in each way; returns the number of nodes.
fn walk(node: Node<'_>, depth: usize) -> usize {
    assert!(depth < 64, "the reader limits the depth");
    let _ = (node.name(), node.base_name(), node.is_enabled(), node.is_compatible("arm,pl011"));
    let _ = node.reg().count();
    for property in node.properties() {
        let _ = (property.u32(), property.u64(), property.number(), property.str());
        assert!(property.strings().count() <= property.value.len() + 1);
        assert_eq!(property.cells().count(), property.value.len() / 4);
        assert!(node.property(property.name).is_some());
    }
    let below: usize = node.children().map(|child| walk(child, depth + 1)).sum();
    below + 1
}

fn read_tree(bytes: &[u8]) {
    match Fdt::new(bytes) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(tree) => {
            assert!(walk(tree.root(), 0) <= bytes.len() / 4);
            assert!(tree.reservations().count() <= bytes.len() / 16);
            let _ = tree.find("/cpus/cpu@1");
        }
    }
    let Ok(tree) = MachineTree::parse(bytes) else { return };
    if let Ok(memory) = tree.memory() {
        assert!(memory.iter().all(|region| region.size > 0 && region.end() > region.base));
    }
    let _ = (tree.reserved(), tree.initrd(), tree.bootargs(), tree.cpus(), tree.psci());
    let _ = (tree.gicv3(), tree.console(), tree.timers());
    for device in tree.devices() {
        let regions = device.regions().flatten();
        assert!(regions.into_iter().all(|region| region.base.checked_add(region.size).is_some()));
    }
}

#[test]
fn fuzz_device_tree() {
    let seed = machine_tree();
    fuzz::run("device trees", |input| {
        let mut bytes = seed.clone();
        input.mutate(&mut bytes, 8);
        read_tree(&bytes);
    });
}

/// What holds for each plan: segments in order inside the VM's memory, filled from inside the bundle.
fn check_plan(vm: &VmSpec<'_>, bundle: &Bundle<'_>, plan: &LoadPlan, fdt: &[u8]) {
    let ram_end = layout::RAM.get() + vm.memory;
    let mut end = layout::RAM.get();
    let mut page = [0; PAGE_SIZE as usize];
    for segment in &plan.segments {
        assert!(segment.ipa.get() >= end && segment.ipa.is_aligned(PAGE_SIZE));
        assert!(segment.size > 0 && segment.size.is_multiple_of(PAGE_SIZE));
        assert!(segment.length <= segment.size);
        end = segment.end();
        let source = match segment.source {
            Source::Bundle { offset } => bundle.bytes().get(offset as usize..),
            Source::Fdt => Some(fdt),
        };
        assert!(source.is_some_and(|bytes| bytes.len() as u64 >= segment.length));
        for at in [segment.ipa.get(), end - PAGE_SIZE] {
            assert!(plan.page(Ipa::new(at), bundle.bytes(), fdt, &mut page));
        }
    }
    assert!(end <= ram_end);
    assert!(!plan.page(Ipa::new(ram_end), bundle.bytes(), fdt, &mut page));
    assert!((layout::RAM.get()..ram_end).contains(&plan.fdt.get()));
}

/// Plans each VM of a bundle.
fn plan_all(bundle: &Bundle<'_>) {
    let mut fdt = vec![0; FDT_MAX];
    for vm in &bundle.vms {
        match loader::plan(vm, bundle, None, &mut fdt) {
            Ok(plan) => check_plan(vm, bundle, &plan, &fdt),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// Calls `visit` with the place in `tree` of each property's value.
fn values(tree: &[u8], visit: &mut impl FnMut(&str, usize, usize)) {
    fn below(node: Node<'_>, start: usize, visit: &mut impl FnMut(&str, usize, usize)) {
        for property in node.properties() {
            visit(property.name, property.value.as_ptr().addr() - start, property.value.len());
        }
        node.children().for_each(|child| below(child, start, visit));
    }
    below(Fdt::new(tree).unwrap().root(), tree.as_ptr().addr(), visit);
}

/// A bundle of three VMs with all kinds of nodes, whose checksums are zero: [`no_checksum`] accepts it.
fn seed_bundle() -> Vec<u8> {
    let mut first = Vm::ordinary("first").with(text(names::CMDLINE, "console=ttyAMA0"));
    first.initramfs = Some(vec![7; 6000]);
    first.overlay = Some(overlay());
    let mut second = Vm::realm("second").with(cell(names::VCPUS, 4));
    second.kernel = elf(0x4010_0000, &[(0x4010_0000, 0, 300, 5000), (0x4020_0000, 0, 64, 64)]);
    second.kernel_type = Some(names::TYPE_ELF);
    let mut third = Vm::ordinary("third")
        .with(cell(names::BUDGET_US, 500))
        .with(cell(names::PERIOD_US, 1000))
        .with(cell(names::AFFINITY, 3))
        .with(wide(names::MEMORY, 4 << 20));
    third.uart = Some(Some((0x0900_0000, 0x1000, 40)));
    let mut bytes = bundle(&[first, second, third]);
    let mut places = Vec::new();
    values(&bytes, &mut |name, at, length| {
        if name == CRC32 {
            places.push(at..at + length);
        }
    });
    places.into_iter().for_each(|place| bytes[place].fill(0));
    bytes
}

/// A checksum that leaves finding faults to the parser.
fn no_checksum(_: u32, _: &[u8]) -> u32 {
    0
}

fn check_image(bundle: &Bundle<'_>, image: &ImageRef) {
    assert_eq!(bundle.image(image).len() as u64, image.size);
}

/// What the hypervisor relies on in a bundle that was accepted.
fn check_bundle(bundle: &Bundle<'_>) {
    assert!(!bundle.vms.is_empty());
    for (index, vm) in bundle.vms.iter().enumerate() {
        assert!(!vm.name.is_empty() && vm.name.len() <= MAX_NAME);
        assert!(bundle.vms.iter().skip(index + 1).all(|other| other.name != vm.name));
        assert!((1..=crate::MAX_VCPUS).contains(&vm.vcpus));
        assert!(vm.memory > 0 && vm.memory.is_multiple_of(2 << 20));
        assert!(layout::RAM.checked_add(vm.memory).is_some());
        if let Some(realm) = vm.realm() {
            assert!(layout::RAM.get() + vm.memory <= 1 << (realm.ipa_bits - 1));
        }
        if let Some(budget) = vm.budget {
            assert!(budget.budget_us > 0 && budget.budget_us <= budget.period_us);
        }
        assert!(vm.affinity.is_none_or(|cores| cores != 0) && vm.repeat > 0);
        check_image(bundle, &vm.kernel);
        vm.initramfs.iter().chain(&vm.overlay).for_each(|image| check_image(bundle, image));
    }
}

#[test]
fn fuzz_bundle() {
    let seed = seed_bundle();
    let mut places = Vec::new();
    values(&seed, &mut |_, at, length| places.push((at, length)));
    let tree = crate::fdt::total_size(&seed).unwrap();
    assert!(Bundle::parse_with(&seed, no_checksum).is_ok());
    fuzz::run("bundles", |input| {
        let mut bytes = seed.clone();
        for _ in 0..=input.below(4) {
            if input.one_in(4) {
                let mut whole = bytes[..tree.min(bytes.len())].to_vec();
                input.mutate(&mut whole, 2);
                bytes.splice(..tree.min(bytes.len()), whole);
                continue;
            }
            // The value of one property, which keeps its length.
            let (at, length) = input.pick(&places);
            let Some(place) = bytes.get_mut(at..at + length) else { continue };
            let mut value = place.to_vec();
            input.mutate(&mut value, 2);
            place.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        }
        match Bundle::parse_with(&bytes, no_checksum) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(bundle) => {
                check_bundle(&bundle);
                plan_all(&bundle);
            }
        }
    });
}

/// A kernel in one of the three formats with changes in its headers, or any bytes.
fn kernel(input: &Input) -> Vec<u8> {
    let address = || 0x4000_0000 + (input.below(64) << 16);
    let mut bytes = match input.below(4) {
        0 => input.bytes(input.index(300) + 1),
        1 => image(input.below(512) << 12, 64 + input.index(5000), input.number()),
        _ => {
            let load = |_| {
                let size = input.index(3000);
                (address(), address(), size, size as u64 + input.below(0x3000))
            };
            let loads: Vec<_> = (0..input.below(5)).map(load).collect();
            elf(address(), &loads)
        }
    };
    let headers = bytes.len().min(64 + 5 * 56);
    for _ in 0..input.below(4) {
        let mut header = bytes[..headers.min(bytes.len())].to_vec();
        input.mutate(&mut header, 1);
        bytes.splice(..headers.min(bytes.len()), header);
    }
    // Images in a bundle are not empty.
    if bytes.is_empty() {
        bytes.push(0);
    }
    bytes
}

#[test]
fn fuzz_kernel() {
    fuzz::run("kernels", |input| {
        let mut vm = Vm::ordinary("a").with(wide(names::MEMORY, (1 + input.below(40)) << 21));
        vm.kernel = kernel(input);
        vm.kernel_type = Some(input.pick(&[
            names::TYPE_IMAGE,
            names::TYPE_ELF,
            names::TYPE_ELF,
            names::TYPE_RAW,
        ]));
        vm.initramfs = input.one_in(3).then(|| vec![1; input.index(9000) + 1]);
        let bytes = bundle(&[vm]);
        plan_all(&Bundle::parse(&bytes).unwrap());
    });
}
