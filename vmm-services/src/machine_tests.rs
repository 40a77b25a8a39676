use super::{Conduit, Cpu, Enable, MachineTree, Region, Reservation, TreeError};
use crate::fdt::FdtWriter;
use std::vec;
use std::vec::Vec;

/// A tree like the one that TF-A hands over on QEMU's `virt`: secure memory, secure UART and a
/// reservation for the RMM are in it.
fn machine() -> Vec<u8> {
    let mut buffer = vec![0; 0x4000];
    let mut w = FdtWriter::new(&mut buffer);
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.begin_node("psci");
    w.property_strs("compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    w.property_str("method", "smc");
    w.end_node();
    w.begin_node("memory@40000000");
    w.property_str("device_type", "memory");
    w.property_u64s("reg", &[0x4000_0000, 0xc000_0000]);
    w.end_node();
    w.begin_node("secram@e000000");
    w.property_str("device_type", "memory");
    w.property_u64s("reg", &[0x0e00_0000, 0x100_0000]);
    w.property_str("status", "disabled");
    w.property_str("secure-status", "okay");
    w.end_node();
    w.begin_node("reserved-memory");
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.property_empty("ranges");
    w.begin_node("rmm@40100000");
    w.property_u64s("reg", &[0x4010_0000, 0x180_0000]);
    w.property_empty("no-map");
    w.end_node();
    w.begin_node("pool");
    w.property_u64("size", 0x1000);
    w.end_node();
    w.end_node();
    w.begin_node("cpus");
    w.property_u32("#address-cells", 1);
    w.property_u32("#size-cells", 0);
    for (name, reg, method) in [("cpu@0", 0, "psci"), ("cpu@1", 1, "spin-table"), ("cpu@2", 2, "")]
    {
        w.begin_node(name);
        w.property_str("device_type", "cpu");
        w.property_u32("reg", reg);
        w.property_str("enable-method", method);
        w.property_u64("cpu-release-addr", 0xe0);
        w.end_node();
    }
    w.begin_node("cpu-map");
    w.end_node();
    w.end_node();
    w.begin_node("pl011@9040000");
    w.property_strs("compatible", &["arm,pl011", "arm,primecell"]);
    w.property_u64s("reg", &[0x904_0000, 0x1000]);
    w.property_str("status", "disabled");
    w.end_node();
    w.begin_node("pl011@9000000");
    w.property_strs("compatible", &["arm,pl011", "arm,primecell"]);
    w.property_u64s("reg", &[0x900_0000, 0x1000]);
    w.property_cells("interrupts", &[0, 1, 4]);
    w.end_node();
    w.begin_node("intc@8000000");
    w.property_str("compatible", "arm,gic-v3");
    w.property_u32("#interrupt-cells", 3);
    w.property_u32("#redistributor-regions", 1);
    w.property_u64s("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000]);
    w.property_cells("interrupts", &[1, 9, 4]);
    w.end_node();
    w.begin_node("timer");
    w.property_strs("compatible", &["arm,armv8-timer", "arm,armv7-timer"]);
    w.property_cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
    w.end_node();
    w.begin_node("chosen");
    w.property_str("stdout-path", "/pl011@9000000:115200n8");
    w.property_str("bootargs", "loglevel=7");
    w.property_u32("linux,initrd-start", 0x4800_0000);
    w.property_u64("linux,initrd-end", 0x4900_0000);
    w.end_node();
    let length = w.finish().unwrap();
    buffer.truncate(length);
    buffer
}

#[test]
fn everything_is_found() {
    let bytes = machine();
    let tree = MachineTree::parse(&bytes).unwrap();
    let ram = Region { base: 0x4000_0000, size: 0xc000_0000 };
    assert_eq!(tree.memory().unwrap().as_slice(), [ram]);
    let rmm = Region { base: 0x4010_0000, size: 0x180_0000 };
    let reserved = tree.reserved().unwrap();
    assert_eq!(reserved.as_slice(), [Reservation { region: rmm, no_map: true }]);
    assert_eq!(tree.initrd(), Ok(Some(Region { base: 0x4800_0000, size: 0x100_0000 })));
    assert_eq!(tree.bootargs(), Some("loglevel=7"));
    let cpus = [
        Cpu { mpidr: 0, enable: Enable::Psci },
        Cpu { mpidr: 1, enable: Enable::SpinTable { release: 0xe0 } },
        Cpu { mpidr: 2, enable: Enable::None },
    ];
    assert_eq!(tree.cpus().unwrap().as_slice(), cpus);
    assert_eq!(tree.psci(), Some(Conduit::Smc));
    let gic = tree.gicv3().unwrap();
    assert_eq!(gic.distributor.base, 0x800_0000);
    assert_eq!(gic.redistributors.as_slice(), [Region { base: 0x80a_0000, size: 0xf6_0000 }]);
    assert_eq!(gic.maintenance, Some(25));
    let uart = tree.uart().unwrap();
    assert_eq!(
        (uart.region.base, uart.compatible, uart.intid),
        (0x900_0000, "arm,pl011", Some(33))
    );
    let timers = tree.timers().unwrap();
    assert_eq!(
        [timers.secure, timers.physical, timers.virt, timers.hypervisor],
        [Some(29), Some(30), Some(27), Some(26)]
    );
}

#[test]
fn an_empty_tree_lacks_everything() {
    let mut buffer = [0; 256];
    FdtWriter::new(&mut buffer).finish().unwrap();
    let tree = MachineTree::parse(&buffer).unwrap();
    assert_eq!(tree.memory(), Err(TreeError::Missing("memory")));
    assert_eq!(tree.cpus(), Err(TreeError::Missing("/cpus")));
    assert!(tree.gicv3().is_err());
    assert_eq!(tree.initrd(), Ok(None));
    assert_eq!((tree.psci(), tree.uart(), tree.timers()), (None, None, None));
}

#[test]
fn half_an_initrd_is_an_error() {
    let mut buffer = [0; 512];
    let mut w = FdtWriter::new(&mut buffer);
    w.begin_node("chosen");
    w.property_u64("linux,initrd-start", 0x4800_0000);
    w.end_node();
    w.finish().unwrap();
    assert!(MachineTree::parse(&buffer).unwrap().initrd().is_err());
}
