use super::{FDT_MAX, LoadError, LoadPlan, Source, plan};
use crate::fdt::{Fdt, Seeds};
use crate::manifest::{Bundle, names};
use crate::testing::{Counting, Vm, bundle, cell, elf, image, text, wide};
use mm::Ipa;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

struct Loaded {
    bytes: Vec<u8>,
    fdt: Vec<u8>,
    plan: Result<LoadPlan, LoadError>,
}

fn load(vm: Vm) -> Loaded {
    let bytes = bundle(&[vm]);
    let mut fdt = vec![0xee; FDT_MAX];
    let parsed = Bundle::parse(&bytes).unwrap();
    let plan = plan(&parsed.vms[0], &parsed, None, &mut fdt);
    Loaded { bytes: bytes.clone(), fdt, plan }
}

/// Guest memory as the plan fills it.
fn page(loaded: &Loaded, ipa: u64) -> Option<[u8; 4096]> {
    let mut page = [0xcc; 4096];
    let plan = loaded.plan.as_ref().unwrap();
    plan.page(Ipa::new(ipa), &loaded.bytes, &loaded.fdt, &mut page).then_some(page)
}

fn segments(loaded: &Loaded) -> Vec<(u64, u64, u64)> {
    let plan = loaded.plan.as_ref().unwrap();
    plan.segments.iter().map(|s| (s.ipa.get(), s.size, s.length)).collect()
}

fn with_kernel(kernel: Vec<u8>, kind: &'static str) -> Vm {
    let mut vm = Vm::ordinary("a");
    vm.kernel = kernel;
    vm.kernel_type = Some(kind);
    vm
}

#[test]
fn seeds_are_for_vms_and_not_for_realms() {
    let seeds = Seeds::draw(&Counting::default()).unwrap();
    for (vm, has_seeds) in [(Vm::ordinary("a"), true), (Vm::realm("a"), false)] {
        let bytes = bundle(&[vm]);
        let parsed = Bundle::parse(&bytes).unwrap();
        let trees = [None, Some(&seeds)].map(|seeds| {
            let mut fdt = vec![0; FDT_MAX];
            plan(&parsed.vms[0], &parsed, seeds, &mut fdt).unwrap();
            fdt
        });
        let has = |tree: &[u8]| {
            let tree = Fdt::new(tree).unwrap();
            let chosen = tree.find("/chosen").unwrap();
            ["kaslr-seed", "rng-seed"].map(|name| chosen.property(name).is_some())
        };
        assert_eq!([has(&trees[0]), has(&trees[1])], [[false; 2], [has_seeds; 2]]);
        assert_eq!(trees[0] == trees[1], !has_seeds);
    }
}

#[test]
fn linux_image_with_initramfs() {
    let mut vm = Vm::ordinary("a").with(text(names::CMDLINE, "quiet"));
    vm.kernel = image(0, 5000, 0x28d_0000);
    vm.initramfs = Some(vec![9; 100]);
    let loaded = load(vm);
    let plan = loaded.plan.as_ref().unwrap();
    assert_eq!(plan.entry, Ipa::new(0x4000_0000));
    assert_eq!(plan.fdt, Ipa::new(0x42a1_0000));
    let fdt_length = plan.segments[2].length;
    assert_eq!(
        segments(&loaded),
        [
            (0x4000_0000, 0x2000, 5000),
            (0x42a0_0000, 0x1000, 100),
            (0x42a1_0000, 0x1000, fdt_length)
        ]
    );
    let tree = Fdt::new(&loaded.fdt).unwrap();
    let chosen = tree.find("/chosen").unwrap();
    assert_eq!(chosen.property("linux,initrd-start").unwrap().u64(), Some(0x42a0_0000));
    assert_eq!(chosen.property("linux,initrd-end").unwrap().u64(), Some(0x42a0_0064));

    let second = page(&loaded, 0x4000_1000).unwrap();
    assert_eq!(second[..904], image(0, 5000, 0x28d_0000)[4096..]);
    assert!(second[904..].iter().all(|&b| b == 0), "the tail of the last page is zero");
    let initramfs = page(&loaded, 0x42a0_0000).unwrap();
    assert_eq!((initramfs[99], initramfs[100]), (9, 0));
    assert_eq!(page(&loaded, 0x42a1_0000).unwrap()[..40], loaded.fdt[..40]);
    assert_eq!(page(&loaded, 0x4000_2000), None, "bss is not populated");
}

#[test]
fn image_faults() {
    let fault = |kernel| load(with_kernel(kernel, names::TYPE_IMAGE)).plan.unwrap_err();
    assert_eq!(fault(vec![0x1f, 0x8b, 8, 0]), LoadError::Compressed);
    assert_eq!(fault(vec![0; 63]), LoadError::Truncated);
    assert_eq!(fault(vec![0; 64]), LoadError::BadMagic);
    assert_eq!(fault(image(0, 100, 0)), LoadError::BadHeader("image_size is zero"));
    assert_eq!(
        fault(image(2 << 20, 100, 0x1000)),
        LoadError::BadHeader("text_offset is 2 MiB or more")
    );
    assert_eq!(
        fault(image(0x800, 100, 0x1000)),
        LoadError::Unaligned { what: "kernel", address: 0x4000_0800 }
    );
    let mut big_endian = image(0, 100, 0x1000);
    big_endian[24] |= 1;
    assert_eq!(fault(big_endian), LoadError::WrongMachine);
    for size in [65 << 20, u64::MAX] {
        assert!(matches!(
            fault(image(0, 100, size)),
            LoadError::DoesNotFit { what: "kernel", start: 0x4000_0000, ram_end: 0x4400_0000, .. }
        ));
    }
    assert!(matches!(
        fault(image(0, 100, 64 << 20)),
        LoadError::DoesNotFit { what: "device tree", .. }
    ));
}

#[test]
fn raw_payload_finds_the_tree_at_the_start_of_ram() {
    let loaded = load(with_kernel(vec![0x11; 4097], names::TYPE_RAW));
    let plan = loaded.plan.as_ref().unwrap();
    assert_eq!((plan.entry, plan.fdt), (Ipa::new(0x4020_0000), Ipa::new(0x4000_0000)));
    assert_eq!(plan.segments[0].source, Source::Fdt);
    assert_eq!(page(&loaded, 0x4020_1000).unwrap()[..2], [0x11, 0]);
}

#[test]
fn elf_goes_to_its_physical_addresses() {
    let kernel = elf(
        0xffff_0000_0010,
        &[(0x4010_0000, 0xffff_0000_0000, 0x1800, 0x1800), (0x4020_0000, 0, 0x10, 0x20_0001)],
    );
    let loaded = load(with_kernel(kernel.clone(), names::TYPE_ELF));
    let plan = loaded.plan.as_ref().unwrap();
    assert_eq!(plan.entry, Ipa::new(0x4010_0010));
    assert_eq!(plan.fdt, Ipa::new(0x4041_0000), "behind p_memsz");
    assert_eq!(page(&loaded, 0x4010_1000).unwrap()[..0x800], kernel[176 + 0x1000..176 + 0x1800]);
    assert_eq!(page(&loaded, 0x4020_0000).unwrap()[0x10], 0);
}

#[test]
fn elf_faults() {
    let fault = |kernel| load(with_kernel(kernel, names::TYPE_ELF)).plan.unwrap_err();
    assert_eq!(fault(image(0, 100, 100)), LoadError::BadMagic);
    let good = elf(0x4010_0000, &[(0x4010_0000, 0x4010_0000, 16, 16)]);
    for length in 4..good.len() {
        fault(good[..length].to_vec());
    }
    let mut other = good.clone();
    other[18] = 62;
    assert_eq!(fault(other), LoadError::WrongMachine);
    assert_eq!(
        fault(elf(0, &[(0x4010_0000, 0x4010_0000, 16, 16)])),
        LoadError::BadHeader("e_entry is in no segment")
    );
    assert_eq!(
        fault(elf(0x4010_0000, &[(0x4010_0000, 0x4010_0000, 16, 8)])),
        LoadError::BadHeader("p_filesz is above p_memsz")
    );
    assert!(matches!(fault(elf(0, &[(0, 0, 16, 16)])), LoadError::DoesNotFit { .. }));
    assert!(matches!(
        fault(elf(0, &[(u64::MAX - 4095, 0, 16, 8192)])),
        LoadError::DoesNotFit { .. }
    ));
    let load = (0x4010_0000, 0x4010_0000, 0x2000, 0x2000);
    assert_eq!(
        fault(elf(0x4010_0000, &[load, (0x4010_1000, 0, 16, 16)])),
        LoadError::Overlap { address: 0x4010_1000 }
    );
    let many: Vec<_> = (0..13).map(|i| (0x4010_0000 + i * 0x1000, 0, 16, 16)).collect();
    assert_eq!(fault(elf(0, &many)), LoadError::TooManySegments);
}

#[test]
fn realms_call_psci_by_smc() {
    let loaded = load(Vm::realm("a").with(cell(names::VCPUS, 2)));
    let tree = Fdt::new(&loaded.fdt).unwrap();
    assert_eq!(tree.find("/psci").unwrap().property("method").unwrap().str(), Some("smc"));
    assert_eq!(tree.find("/cpus").unwrap().children().count(), 2);
}

proptest! {
    #[test]
    fn plans_are_sound(
        length in 64usize..20_000,
        image_size in 1u64..0x300_0000,
        offset in 0u64..512,
        initramfs in proptest::option::of(1usize..20_000),
        memory in 1u64..40,
    ) {
        let mut vm = Vm::ordinary("a").with(wide(names::MEMORY, memory << 21));
        vm.kernel = image(offset << 12, length, image_size);
        vm.initramfs = initramfs.map(|n| vec![1; n]);
        let loaded = load(vm);
        let Ok(plan) = &loaded.plan else { return Ok(()) };
        let mut end = 0x4000_0000;
        for s in &plan.segments {
            prop_assert!(s.ipa.get() >= end && s.ipa.is_aligned(4096) && s.size.is_multiple_of(4096));
            prop_assert!(s.length <= s.size && s.size - s.length < 4096);
            end = s.end();
        }
        prop_assert!(end <= 0x4000_0000 + (memory << 21));
        // Nothing lies in what the kernel uses behind its file, and the tree is in one block.
        let kernel_end = plan.entry.get() + image_size;
        prop_assert!(plan.segments.iter().skip(1).all(|s| s.ipa.get() >= kernel_end));
        prop_assert_eq!(plan.fdt.get() >> 21, (plan.fdt.get() + FDT_MAX as u64 - 1) >> 21);
    }

    #[test]
    fn random_kernels_never_panic(
        kind in prop::sample::select(vec![names::TYPE_IMAGE, names::TYPE_ELF, names::TYPE_RAW]),
        changes in proptest::collection::vec((0usize..176, any::<u8>()), 0..10),
    ) {
        let mut kernel = if kind == names::TYPE_ELF {
            elf(0x4010_0000, &[(0x4010_0000, 0x4010_0000, 64, 64), (0x4020_0000, 0, 64, 64)])
        } else {
            image(0, 300, 0x1000)
        };
        changes.iter().for_each(|&(at, value)| kernel[at] = value);
        let loaded = load(with_kernel(kernel, kind));
        if let Ok(plan) = &loaded.plan {
            for s in &plan.segments {
                prop_assert!(page(&loaded, s.ipa.get()).is_some());
            }
        }
    }
}
