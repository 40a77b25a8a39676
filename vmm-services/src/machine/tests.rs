use super::{
    Conduit, Cpu, Enable, MachineTree, Region, Reservation, TreeConsole, TreeError, Uart, UartModel,
};
use crate::fdt::FdtWriter;
use crate::testing::machine_tree as machine;

mod buses;

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
    let region = Region { base: 0x900_0000, size: 0x1000 };
    let name = "pl011@9000000";
    let uart = Uart { name, region, model: UartModel::Pl011, intid: Some(33) };
    assert_eq!(tree.console(), TreeConsole { uart: Some(uart), passed_over: None });
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
    assert_eq!((tree.psci(), tree.timers()), (None, None));
    assert_eq!(tree.console(), TreeConsole { uart: None, passed_over: None });
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
