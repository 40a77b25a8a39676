//! Trees with buses and UARTs as those of boards have them.

use crate::fdt::FdtWriter;
use crate::machine::{
    MachineTree, Ns16550Layout, Region, TreeError, UartModel, Untranslated, Unusable,
};
use std::vec;
use std::vec::Vec;

fn tree(content: impl FnOnce(&mut FdtWriter<'_>)) -> Vec<u8> {
    let mut buffer = vec![0; 0x2000];
    let mut w = FdtWriter::new(&mut buffer);
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 1);
    content(&mut w);
    let length = w.finish().unwrap();
    buffer.truncate(length);
    buffer
}

/// A bus whose children have one cell of address and one of size.
fn bus(w: &mut FdtWriter<'_>, name: &str, ranges: Option<&[u32]>) {
    w.begin_node(name);
    w.property_strs("compatible", &["vendor,bus", "simple-bus"]);
    w.property_u32("#address-cells", 1);
    w.property_u32("#size-cells", 1);
    if let Some(ranges) = ranges {
        w.property_cells("ranges", ranges);
    }
}

fn device(w: &mut FdtWriter<'_>, name: &str, compatible: &[&str], reg: [u32; 2], spi: u32) {
    w.begin_node(name);
    w.property_strs("compatible", compatible);
    w.property_cells("reg", &reg);
    w.property_cells("interrupts", &[0, spi, 4]);
    w.end_node();
}

fn chosen(w: &mut FdtWriter<'_>, stdout: &str) {
    w.begin_node("chosen");
    w.property_str("stdout-path", stdout);
    w.end_node();
}

/// As a Raspberry Pi 4 has it: VideoCore's addresses on the bus, and a serial port with a name of
/// its own before that of the PL011.
fn raspberry_pi_4(w: &mut FdtWriter<'_>, pl011: &[&str]) {
    w.begin_node("aliases");
    w.property_str("serial0", "/soc/serial@7e201000");
    w.end_node();
    chosen(w, "serial0:115200n8");
    let ranges = [
        0x7e00_0000,
        0,
        0xfe00_0000,
        0x180_0000,
        0x7c00_0000,
        0,
        0xfc00_0000,
        0x200_0000,
        0x4000_0000,
        0,
        0xff80_0000,
        0x80_0000,
    ];
    bus(w, "soc", Some(&ranges));
    device(w, "serial@7e201000", pl011, [0x7e20_1000, 0x200], 121);
    device(w, "serial@7e201400", &["arm,pl011", "arm,primecell"], [0x7e20_1400, 0x1000], 121);
    device(w, "outside@50000000", &["vendor,device"], [0x5000_0000, 0x1000], 1);
    device(w, "across@7fffff00", &["vendor,device"], [0x7f7f_ff00, 0x200], 1);
    w.end_node();
}

fn regions(tree: &MachineTree<'_>, name: &str) -> Result<Region, &'static str> {
    let device = tree.devices().find(|device| device.node().name() == name).unwrap();
    device.regions().next().unwrap().map_err(|Untranslated { bus }| match bus {
        "soc" => "soc",
        "i2c@30a20000" => "i2c",
        _ => "another",
    })
}

#[test]
fn addresses_are_translated() {
    let bytes = tree(|w| raspberry_pi_4(w, &["brcm,bcm2835-pl011", "arm,pl011"]));
    let tree = MachineTree::parse(&bytes).unwrap();
    let region = Region { base: 0xfe20_1000, size: 0x200 };
    assert_eq!(regions(&tree, "serial@7e201000"), Ok(region));
    assert_eq!(regions(&tree, "outside@50000000"), Err("soc"));
    assert_eq!(regions(&tree, "across@7fffff00"), Err("soc"), "half of it");
}

#[test]
fn a_less_specific_name_is_enough() {
    let bytes = tree(|w| raspberry_pi_4(w, &["brcm,bcm2835-pl011", "arm,pl011"]));
    let console = MachineTree::parse(&bytes).unwrap().console();
    let uart = console.uart.unwrap();
    assert_eq!((uart.region.base, uart.model), (0xfe20_1000, UartModel::Pl011));
    assert_eq!((uart.intid, console.passed_over), (Some(153), None));
}

#[test]
fn what_cannot_be_driven_gives_way_to_what_can() {
    let bytes = tree(|w| raspberry_pi_4(w, &["vendor,uart"]));
    let console = MachineTree::parse(&bytes).unwrap().console();
    assert_eq!(console.uart.unwrap().region.base, 0xfe20_1400);
    assert_eq!(console.passed_over, Some(("serial0", Unusable::NoDriver("vendor,uart"))));
}

#[test]
fn nested_buses_as_on_an_imx8m() {
    let bytes = tree(|w| {
        bus(w, "soc@0", Some(&[0, 0, 0, 0x3e00_0000]));
        bus(w, "bus@30800000", Some(&[0x3080_0000, 0x3080_0000, 0x40_0000]));
        bus(w, "spba-bus@30800000", Some(&[]));
        device(w, "serial@30860000", &["fsl,imx8mm-uart"], [0x3086_0000, 0x1_0000], 26);
        w.end_node();
        w.begin_node("i2c@30a20000");
        w.property_cells("reg", &[0x30a2_0000, 0x1_0000]);
        w.property_u32("#address-cells", 1);
        w.property_u32("#size-cells", 0);
        w.begin_node("pmic@25");
        w.property_u32("reg", 0x25);
        w.end_node();
        w.end_node();
        w.end_node();
        w.begin_node("interrupt-controller@38800000");
        w.property_str("compatible", "arm,gic-v3");
        w.property_cells("reg", &[0x3880_0000, 0x1_0000, 0x3888_0000, 0xc_0000]);
        w.end_node();
        w.end_node();
        chosen(w, "/soc@0/bus@30800000/spba-bus@30800000/serial@30860000");
    });
    let tree = MachineTree::parse(&bytes).unwrap();
    let region = Region { base: 0x3086_0000, size: 0x1_0000 };
    assert_eq!(regions(&tree, "serial@30860000"), Ok(region));
    assert_eq!(regions(&tree, "i2c@30a20000").map(|r| r.base), Ok(0x30a2_0000));
    assert_eq!(regions(&tree, "pmic@25"), Err("i2c"), "no address of the processors");
    let gic = tree.gicv3().unwrap();
    assert_eq!((gic.distributor.base, gic.redistributors[0].base), (0x3880_0000, 0x3888_0000));
    let console = tree.console();
    assert_eq!(console.uart, None);
    assert!(matches!(console.passed_over, Some((_, Unusable::NoDriver("fsl,imx8mm-uart")))));
}

#[test]
fn a_bus_without_ranges_says_no_addresses() {
    let bytes = tree(|w| {
        bus(w, "soc", None);
        device(w, "serial@9000000", &["arm,pl011"], [0x900_0000, 0x1000], 1);
        w.begin_node("gic@8000000");
        w.property_str("compatible", "arm,gic-v3");
        w.property_cells("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0x10_0000]);
        w.end_node();
        w.end_node();
        chosen(w, "/soc/serial@9000000");
    });
    let tree = MachineTree::parse(&bytes).unwrap();
    let console = tree.console();
    assert_eq!(console.uart, None);
    let untranslated = Unusable::Untranslated(Untranslated { bus: "soc" });
    assert_eq!(console.passed_over, Some(("/soc/serial@9000000", untranslated)));
    assert_eq!(tree.gicv3(), Err(TreeError::Untranslated("arm,gic-v3")));
}

/// A DesignWare UART as on many boards, after one that is disabled; `properties` are its own.
fn designware(properties: &[(&str, u32)], intc: u32) -> Vec<u8> {
    tree(|w| {
        w.property_u32("interrupt-parent", 1);
        w.begin_node("gic@8000000");
        w.property_str("compatible", "arm,gic-v3");
        w.property_u32("phandle", 1);
        w.property_u32("#interrupt-cells", 3);
        w.end_node();
        bus(w, "soc", Some(&[]));
        w.property_u32("interrupt-parent", intc);
        w.begin_node("serial@2800000");
        w.property_str("compatible", "arm,pl011");
        w.property_cells("reg", &[0x280_0000, 0x1000]);
        w.property_str("status", "disabled");
        w.end_node();
        w.begin_node("serial@2890000");
        w.property_strs("compatible", &["vendor,uart", "snps,dw-apb-uart"]);
        w.property_cells("reg", &[0x289_0000, 0x100]);
        w.property_cells("interrupts", &[0, 84, 4]);
        for (name, value) in properties {
            w.property_u32(name, *value);
        }
        w.end_node();
        w.end_node();
    })
}

#[test]
fn uarts_of_the_16550_type() {
    let bytes = designware(&[("reg-shift", 2), ("reg-io-width", 4)], 1);
    let uart = MachineTree::parse(&bytes).unwrap().console().uart.unwrap();
    let layout = Ns16550Layout::new(2, 4, true).unwrap();
    assert_eq!((uart.region.base, uart.model), (0x289_0000, UartModel::Ns16550(layout)));
    assert_eq!(uart.intid, Some(116));
    for odd in [&[("reg-shift", 1), ("reg-io-width", 4)][..], &[("reg-shift", 4)]] {
        let bytes = designware(odd, 1);
        assert_eq!(MachineTree::parse(&bytes).unwrap().console().uart, None, "{odd:?}");
    }
    let bytes = designware(&[("reg-offset", 0x40)], 1);
    let uart = MachineTree::parse(&bytes).unwrap().console().uart.unwrap();
    assert_eq!(uart.region, Region { base: 0x289_0040, size: 0xc0 });
}

#[test]
fn an_interrupt_of_another_controller_is_none_of_the_gic() {
    let bytes = designware(&[("reg-shift", 2)], 2);
    assert_eq!(MachineTree::parse(&bytes).unwrap().console().uart.unwrap().intid, None);
}
