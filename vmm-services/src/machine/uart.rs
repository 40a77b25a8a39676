//! Which UART is the hypervisor's console.

use super::{Device, MachineTree, Region};
use core::fmt;
use ns16550::Layout;

/// What is needed to drive a UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartModel {
    /// Arm PL011.
    Pl011,
    /// The part of a PL011 that the Server Base System Architecture demands: firmware sets the line.
    Sbsa,
    /// 16550 and what is compatible with it, with its registers so.
    Ns16550(Layout),
}

impl UartModel {
    /// Bytes from its first register to behind the last one that the driver uses.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        match self {
            // Up to UARTDMACR; some trees leave out the identification registers behind.
            Self::Pl011 | Self::Sbsa => 0x4c,
            Self::Ns16550(layout) => layout.bytes(),
        }
    }
}

/// A UART that there is a driver for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart<'a> {
    /// Name of its node.
    pub name: &'a str,
    /// Registers.
    pub region: Region,
    /// What it is.
    pub model: UartModel,
    /// Interrupt, as INTID.
    pub intid: Option<u32>,
}

/// Why a UART cannot be the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable<'a> {
    /// The tree has no such node.
    Missing,
    /// The node, or a bus above it, is disabled.
    Disabled,
    /// There is no driver; with the most specific string of `compatible`.
    NoDriver(&'a str),
    /// Its registers have no known address.
    Untranslated(super::Untranslated<'a>),
    /// The node has no registers, fewer than the driver uses, or lays them out in a way that is not
    /// supported.
    Registers,
}

impl fmt::Display for Unusable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no such node"),
            Self::Disabled => f.write_str("it is disabled"),
            Self::NoDriver(name) => write!(f, "there is no driver for {name}"),
            Self::Untranslated(error) => error.fmt(f),
            Self::Registers => f.write_str("its registers are not laid out as any driver expects"),
        }
    }
}

impl core::error::Error for Unusable<'_> {}

/// The console, as far as the tree says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeConsole<'a> {
    /// The UART to use.
    pub uart: Option<Uart<'a>>,
    /// What `stdout-path` says, and why that is not the UART.
    pub passed_over: Option<(&'a str, Unusable<'a>)>,
}

/// Names under which 16550-type UARTs go that differ in nothing that matters here.
const NS16550_COMPATIBLE: [&str; 4] = ["ns16550a", "ns16550", "ns16750", "ns16850"];
/// DesignWare's, which raises an interrupt of its own when it is written while busy.
const DW_COMPATIBLE: &str = "snps,dw-apb-uart";

impl<'a> MachineTree<'a> {
    /// The console: what `stdout-path` names if that can be driven, else the first enabled UART that
    /// can.
    #[must_use]
    pub fn console(&self) -> TreeConsole<'a> {
        let path = self.stdout_path();
        let stdout = path.map(|path| match self.node_of(path) {
            Some(device) => self.drivable(&device).map_err(|why| (path, why)),
            None => Err((path, Unusable::Missing)),
        });
        let first = || self.devices().find_map(|device| self.drivable(&device).ok());
        match stdout {
            Some(Ok(uart)) => TreeConsole { uart: Some(uart), passed_over: None },
            Some(Err(why)) => TreeConsole { uart: first(), passed_over: Some(why) },
            None => TreeConsole { uart: first(), passed_over: None },
        }
    }

    /// The UART that `device` is, if it can be driven.
    fn drivable(&self, device: &Device<'a>) -> Result<Uart<'a>, Unusable<'a>> {
        let model = model(device)?;
        if !device.is_enabled() {
            return Err(Unusable::Disabled);
        }
        let region = device.regions().next().ok_or(Unusable::Registers)?;
        let mut region = region.map_err(Unusable::Untranslated)?;
        if let UartModel::Ns16550(_) = model {
            let offset = device.node().property("reg-offset").and_then(|p| p.u32());
            let offset = u64::from(offset.unwrap_or(0));
            let size = region.size.checked_sub(offset).ok_or(Unusable::Registers)?;
            region = Region { base: region.base + offset, size };
        }
        // Accesses are up to four bytes wide.
        if region.size < model.bytes() || !region.base.is_multiple_of(4) {
            return Err(Unusable::Registers);
        }
        Ok(Uart { name: device.node().name(), region, model, intid: self.intid(device, 0) })
    }

    /// What `stdout-path` says, without the options behind a colon.
    fn stdout_path(&self) -> Option<&'a str> {
        self.fdt.find("/chosen")?.property("stdout-path")?.str()?.split(':').next()
    }

    /// The node of a path, or of an alias.
    fn node_of(&self, path: &str) -> Option<Device<'a>> {
        let path = match path.strip_prefix('/') {
            Some(_) => path,
            None => self.fdt.find("/aliases")?.property(path)?.str()?,
        };
        Device::new(self.fdt.find_path(path)?)
    }
}

/// Which driver is for `device`.
fn model<'a>(device: &Device<'a>) -> Result<UartModel, Unusable<'a>> {
    let node = device.node();
    if node.is_compatible("arm,pl011") {
        return Ok(UartModel::Pl011);
    }
    if node.is_compatible("arm,sbsa-uart") {
        return Ok(UartModel::Sbsa);
    }
    let designware = node.is_compatible(DW_COMPATIBLE);
    if !designware && !NS16550_COMPATIBLE.iter().any(|name| node.is_compatible(name)) {
        let names = node.property("compatible");
        return Err(Unusable::NoDriver(names.and_then(|p| p.strings().next()).unwrap_or("it")));
    }
    let number = |name, otherwise| match node.property(name) {
        Some(property) => property.u32().ok_or(Unusable::Registers),
        None => Ok(otherwise),
    };
    if node.property("big-endian").is_some() {
        return Err(Unusable::Registers);
    }
    let layout = Layout::new(number("reg-shift", 0)?, number("reg-io-width", 1)?, designware);
    layout.map(UartModel::Ns16550).ok_or(Unusable::Registers)
}
