//! The device tree that a guest finds in x0.

use super::{FdtWriter, Overlay, Seeds, WriteError};
use crate::channel::{self, Endpoint};
use crate::ids::VcpuId;
use crate::layout;
use crate::manifest::Placement;
use crate::passthrough::Passthrough;

/// Handle of the interrupt controller.
const GIC_PHANDLE: u32 = 1;
/// Handle of the fixed clock.
const CLOCK_PHANDLE: u32 = 2;
/// Name of the UART's node, and its alias, which `stdout-path` gives.
const UART_NODE: &str = "pl011";
const UART_ALIAS: &str = "serial0";
/// Frequency that the UART's clock claims, in Hz; only baud rates that nobody measures follow.
const CLOCK_HZ: u32 = 24_000_000;

/// Interrupt specifier: a shared interrupt, numbered from 32.
const GIC_SPI: u32 = 0;
/// Interrupt specifier: a private interrupt, numbered from 16.
const GIC_PPI: u32 = 1;
/// Interrupt specifier: level triggered, active high.
const LEVEL_HIGH: u32 = 4;

/// What the tree tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTree<'a> {
    /// Number of vCPUs; those beyond [`crate::MAX_VCPUS`] are left out.
    pub vcpus: usize,
    /// Bytes of RAM from [`layout::RAM`].
    pub memory: u64,
    /// Whether PSCI is called by SMC (a realm, whose RMM answers) or by HVC.
    pub psci_by_smc: bool,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Random numbers for its start. None for a realm.
    pub seeds: Option<&'a Seeds>,
    /// Start and end address of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Where the PL011 is, if there is one.
    pub uart: Option<Placement>,
    /// Whether there is a watchdog ([`crate::watchdog`]).
    pub watchdog: bool,
    /// Number of virtio-mmio transports, from slot 0.
    pub virtio: usize,
    /// Devices of the machine that it has.
    pub passthrough: &'a [Passthrough<'a>],
    /// Names and places of its channels.
    pub channels: &'a [(&'a str, Endpoint)],
    /// What the user adds.
    pub overlay: Option<Overlay<'a>>,
}

fn shared(intid: u32) -> [u32; 3] {
    [GIC_SPI, intid - 32, LEVEL_HIGH]
}

fn private(intid: u32) -> [u32; 3] {
    [GIC_PPI, intid - 16, LEVEL_HIGH]
}

/// Writes the tree into `buffer`; returns its size in bytes.
///
/// The same input gives the same bytes. A realm's measurement covers them, so its tree has no seeds: they
/// would change the measurement with each start, and what the host has chosen is no secret of the realm's.
///
/// # Errors
/// [`WriteError`] when the buffer is too small, the command line contains a NUL, or the overlay does not
/// suit the tree.
pub fn generate(tree: &GuestTree<'_>, buffer: &mut [u8]) -> Result<usize, WriteError> {
    let mut w = FdtWriter::with_overlay(buffer, tree.overlay);
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.property_u32("interrupt-parent", GIC_PHANDLE);
    w.property_str("model", "Suzerain virtual machine");
    w.property_str("compatible", "linux,dummy-virt");

    if let Some(place) = tree.uart {
        w.begin_node("aliases");
        w.property_node_path(UART_ALIAS, UART_NODE, place.base);
        w.end_node();
    }
    chosen(&mut w, tree);

    w.begin_node_at("memory", layout::RAM.get());
    w.property_str("device_type", "memory");
    w.property_u64s("reg", &[layout::RAM.get(), tree.memory]);
    w.end_node();

    cpus(&mut w, tree.vcpus);

    w.begin_node("psci");
    w.property_strs("compatible", &["arm,psci-1.0", "arm,psci-0.2"]);
    w.property_str("method", if tree.psci_by_smc { "smc" } else { "hvc" });
    w.end_node();

    interrupts_and_time(&mut w, tree.vcpus);
    if tree.uart.is_some() || !tree.passthrough.is_empty() {
        clock(&mut w);
    }
    if let Some(place) = tree.uart {
        uart(&mut w, place);
    }
    for device in tree.passthrough {
        passthrough(&mut w, device);
    }
    if tree.watchdog {
        w.begin_node("watchdog");
        w.property_str("compatible", "arm,smc-wdt");
        w.property_u32("arm,smc-id", crate::watchdog::CALL);
        w.end_node();
    }
    for slot in 0..tree.virtio.min(layout::MAX_VIRTIO) {
        virtio(&mut w, slot);
    }
    for (name, endpoint) in tree.channels {
        channel(&mut w, name, endpoint);
    }
    w.finish()
}

fn chosen(w: &mut FdtWriter<'_>, tree: &GuestTree<'_>) {
    w.begin_node("chosen");
    if tree.uart.is_some() {
        w.property_str("stdout-path", UART_ALIAS);
    }
    w.property_str("bootargs", tree.cmdline);
    if let Some((start, end)) = tree.initrd {
        w.property_u64("linux,initrd-start", start);
        w.property_u64("linux,initrd-end", end);
    }
    if let Some(seeds) = tree.seeds {
        w.property("kaslr-seed", &seeds.kaslr);
        w.property("rng-seed", &seeds.rng);
    }
    w.end_node();
}

fn cpus(w: &mut FdtWriter<'_>, count: usize) {
    w.begin_node("cpus");
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 0);
    for vcpu in (0..count).map_while(VcpuId::new) {
        w.begin_node_at("cpu", vcpu.mpidr());
        w.property_str("device_type", "cpu");
        w.property_str("compatible", "arm,armv8");
        w.property_u64("reg", vcpu.mpidr());
        w.property_str("enable-method", "psci");
        w.end_node();
    }
    w.end_node();
}

fn interrupts_and_time(w: &mut FdtWriter<'_>, vcpus: usize) {
    w.begin_node_at("intc", layout::GICD.get());
    w.property_str("compatible", "arm,gic-v3");
    w.property_u32("#interrupt-cells", 3);
    w.property_u32("#address-cells", 2);
    w.property_u32("#size-cells", 2);
    w.property_empty("ranges");
    w.property_empty("interrupt-controller");
    let redistributors = vcpus as u64 * layout::GICR_STRIDE;
    w.property_u64s(
        "reg",
        &[layout::GICD.get(), layout::GICD_SIZE, layout::GICR.get(), redistributors],
    );
    w.property_u32("phandle", GIC_PHANDLE);
    w.end_node();

    // Secure and non-secure EL1 physical, virtual, EL2 physical timer, in the order of the binding.
    let timers = [29, layout::PTIMER_INTID, layout::VTIMER_INTID, 26].map(private);
    w.begin_node("timer");
    w.property_str("compatible", "arm,armv8-timer");
    w.property_empty("always-on");
    w.property_cells("interrupts", timers.as_flattened());
    w.end_node();
}

/// The bus clock that drivers of Arm's PrimeCells ask for; it never changes.
fn clock(w: &mut FdtWriter<'_>) {
    w.begin_node("apb-pclk");
    w.property_str("compatible", "fixed-clock");
    w.property_u32("#clock-cells", 0);
    w.property_u32("clock-frequency", CLOCK_HZ);
    w.property_str("clock-output-names", "clk24mhz");
    w.property_u32("phandle", CLOCK_PHANDLE);
    w.end_node();
}

fn uart(w: &mut FdtWriter<'_>, place: Placement) {
    w.begin_node_at(UART_NODE, place.base);
    w.property_strs("compatible", &["arm,pl011", "arm,primecell"]);
    w.property_u64s("reg", &[place.base, layout::UART_SIZE]);
    w.property_cells("interrupts", &shared(place.intid));
    w.property_cells("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE]);
    w.property_strs("clock-names", &["uartclk", "apb_pclk"]);
    w.end_node();
}

fn passthrough(w: &mut FdtWriter<'_>, device: &Passthrough<'_>) {
    w.begin_node_at("device", device.base);
    w.property("compatible", device.compatible);
    w.property_u64s("reg", &[device.base, device.size]);
    if let Some(intid) = device.intid {
        w.property_cells("interrupts", &shared(intid));
    }
    if device.is_primecell() {
        w.property_cells("clocks", &[CLOCK_PHANDLE]);
        w.property_str("clock-names", "apb_pclk");
    }
    w.end_node();
}

fn virtio(w: &mut FdtWriter<'_>, slot: usize) {
    let address = layout::VIRTIO.get() + slot as u64 * layout::VIRTIO_STRIDE;
    w.begin_node_at("virtio_mmio", address);
    w.property_str("compatible", "virtio,mmio");
    w.property_u64s("reg", &[address, layout::VIRTIO_STRIDE]);
    w.property_cells("interrupts", &shared(layout::VIRTIO_INTID + slot as u32));
    w.property_empty("dma-coherent");
    w.end_node();
}

fn channel(w: &mut FdtWriter<'_>, name: &str, endpoint: &Endpoint) {
    let Endpoint { registers, window: memory, .. } = *endpoint;
    w.begin_node_at("channel", registers.base);
    w.property_str("compatible", "suzerain,channel");
    w.property_str("label", name);
    w.property_u64s("reg", &[registers.base, channel::REGISTERS_SIZE, memory.base, memory.size]);
    w.property_strs("reg-names", &["registers", "memory"]);
    w.property_cells("interrupts", &shared(registers.intid));
    w.end_node();
}
