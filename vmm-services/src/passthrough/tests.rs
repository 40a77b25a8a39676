use super::{Passthrough, Refusal, Trigger, check};
use crate::fdt::FdtWriter;
use crate::machine::{MachineTree, Region, Untranslated};
use std::vec;
use std::vec::Vec;

fn node(w: &mut FdtWriter<'_>, name: &str, base: u64, size: u64, compatible: &str, spi: &[u32]) {
    w.begin_node_at(name, base);
    w.property_str("compatible", compatible);
    w.property_u64s("reg", &[base, size]);
    w.property_cells("interrupts", spi);
    w.end_node();
}

/// A machine with a GIC, 1 GiB of RAM, a console, a real-time clock at `0x901_0000`, and devices that
/// have this or that against being given away.
fn machine() -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    let mut w = FdtWriter::new(&mut buffer);
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.begin_node_at("memory", 0x4000_0000);
    w.property_str("device_type", "memory");
    w.property_u64s("reg", &[0x4000_0000, 1 << 30]);
    w.end_node();
    w.begin_node("reserved-memory");
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.begin_node_at("firmware", 0x3000_0000);
    w.property_u64s("reg", &[0x3000_0000, 0x1000]);
    w.end_node();
    w.end_node();
    w.begin_node_at("intc", 0x800_0000);
    w.property_str("compatible", "arm,gic-v3");
    w.property_u32("#interrupt-cells", 3);
    w.property_u64s("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000]);
    w.end_node();
    node(&mut w, "pl011", 0x900_0000, 0x1000, "arm,pl011", &[0, 1, 4]);
    node(&mut w, "rtc", 0x901_0000, 0x1000, "arm,pl031", &[0, 2, 4]);
    node(&mut w, "timer", 0x902_0000, 0x1000, "vendor,timer", &[0, 3, 1, 0, 4, 4]);
    node(&mut w, "low", 0x904_0000, 0x100, "vendor,low", &[0, 5, 4]);
    node(&mut w, "high", 0x904_0800, 0x100, "vendor,high", &[0, 6, 4]);
    node(&mut w, "virtio", 0xa00_0000, 0x1000, "virtio,mmio", &[0, 16, 1]);
    w.begin_node_at("dma", 0x905_0000);
    w.property_u64s("reg", &[0x905_0000, 0x1000]);
    w.property_empty("dma-coherent");
    w.end_node();
    w.begin_node_at("secure", 0x906_0000);
    w.property_u64s("reg", &[0x906_0000, 0x1000]);
    w.property_str("status", "disabled");
    w.property_str("secure-status", "okay");
    w.end_node();
    w.begin_node("soc");
    w.property_str("compatible", "simple-bus");
    w.property_u32("#address-cells", 1);
    w.property_u32("#size-cells", 1);
    w.property_cells("ranges", &[0x2000_0000, 0, 0x900_0000, 0x10_0000]);
    // Buses may say which addresses are behind them.
    w.property_u64s("reg", &[0x907_0000, 0x1_0000]);
    w.begin_node("gpio@20070000");
    w.property_cells("reg", &[0x2007_0000, 0x1000]);
    w.end_node();
    w.end_node();
    w.begin_node("bus");
    w.property_str("compatible", "simple-bus");
    w.property_u32("#address-cells", 1);
    w.property_u32("#size-cells", 1);
    w.begin_node("key@9080000");
    w.property_cells("reg", &[0x908_0000, 0x1000]);
    w.end_node();
    // Where it lies is not known, so it is in nobody's way.
    w.begin_node("other@9010000");
    w.property_cells("reg", &[0x901_0000, 0x1000]);
    w.end_node();
    w.end_node();
    let length = w.finish().unwrap();
    buffer.truncate(length);
    buffer
}

#[track_caller]
fn checked(base: u64, size: u64, intid: Option<u32>) -> Result<Option<Trigger>, &'static str> {
    let bytes = machine();
    let tree = MachineTree::parse(&bytes).unwrap();
    let device = Passthrough { base, size, intid, compatible: b"vendor,device\0" };
    let console = Region { base: 0x900_0000, size: 0x1000 };
    check(&tree, console, &device).map_err(|refusal| match refusal {
        Refusal::Range => "range",
        Refusal::Memory => "memory",
        Refusal::InterruptController => "gic",
        Refusal::Console => "console",
        Refusal::NotInTree => "tree",
        Refusal::Untranslated("key@9080000", Untranslated { bus: "bus" }) => "bus",
        Refusal::Disabled("secure@9060000") => "disabled",
        Refusal::Shared("low@9040000" | "high@9040800") => "shared",
        Refusal::Dma(_) => "dma",
        Refusal::Interrupt(_) => "interrupt",
        Refusal::Disabled(_) | Refusal::Shared(_) | Refusal::Untranslated(..) => "another node",
    })
}

#[test]
fn devices_without_access_to_memory_are_given_away() {
    assert_eq!(checked(0x901_0000, 0x1000, Some(34)), Ok(Some(Trigger::Level)));
    assert_eq!(checked(0x901_0000, 0x1000, None), Ok(None));
    assert_eq!(checked(0x902_0000, 0x1000, Some(35)), Ok(Some(Trigger::Edge)));
    assert_eq!(checked(0x902_0000, 0x1000, Some(36)), Ok(Some(Trigger::Level)));
    assert_eq!(checked(0x907_0000, 0x1000, None), Ok(None), "on a bus that translates");
}

#[test]
fn what_would_break_isolation_is_refused() {
    for (base, size) in [(0x901_0100, 0x1000), (0x901_0000, 0), (0xffff_ffff_ffff_f000, 0x2000)] {
        assert_eq!(checked(base, size, None), Err("range"), "{base:#x}");
    }
    for (base, size) in [(0x4000_0000, 0x1000), (0x3fff_f000, 0x2000), (0x3000_0000, 0x1000)] {
        assert_eq!(checked(base, size, None), Err("memory"), "{base:#x}");
    }
    for base in [0x800_0000, 0x80a_0000, 0x8ff_f000] {
        assert_eq!(checked(base, 0x1000, None), Err("gic"), "{base:#x}");
    }
    assert_eq!(checked(0x900_0000, 0x1000, Some(33)), Err("console"));
    assert_eq!(checked(0x8ff_f000 + 0x1000, 0x2000, None), Err("console"));
    assert_eq!(checked(0x903_0000, 0x1000, None), Err("tree"));
    assert_eq!(checked(0x2007_0000, 0x1000, None), Err("tree"), "an address of the bus");
    assert_eq!(checked(0x908_0000, 0x1000, None), Err("bus"));
    assert_eq!(checked(0x906_0000, 0x1000, None), Err("disabled"));
    assert_eq!(checked(0x904_0000, 0x100, None), Err("shared"), "two devices in a page");
    assert_eq!(checked(0x905_0000, 0x1000, None), Err("dma"));
    assert_eq!(checked(0xa00_0000, 0x1000, None), Err("dma"));
    assert_eq!(checked(0x901_0000, 0x1000, Some(35)), Err("interrupt"), "another's");
    assert_eq!(checked(0x901_0000, 0x1000, Some(27)), Err("interrupt"), "not a shared one");
    assert_eq!(checked(0x901_0000, 0x2000, None), Err("another node"), "larger than it is");
}
