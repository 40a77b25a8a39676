//! From the first Rust instruction of the boot core to the run loop on every core.
//!
//! Each stage says one numbered line on the console, so that a machine that falls silent says
//! where it was.

use crate::arch::{cpu, crc, firmware, layout, mitigation, probe, psci, timer};
use crate::machine::{self, Machine};
use crate::{console, cores, entropy, irq, memory, panic, println, vm};
use boards::BOARDS;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use mm::PhysAddr;
use mm::ledger::PhysRange;
use vmm_services::machine::{Conduit, MachineTree, tree_size};
use vmm_services::manifest;

/// Bytes of a device tree that tell its size.
const TREE_HEADER_BYTES: usize = 40;

/// Number of the last stage.
static STAGE: AtomicU32 = AtomicU32::new(0);

/// Prints the line of the next boot stage.
pub fn print_stage(text: fmt::Arguments<'_>) {
    let number = STAGE.fetch_add(1, Ordering::Relaxed) + 1;
    println!("[stage {number:02}] {text}");
}

/// Prints the line of the next boot stage, with the next number.
#[macro_export]
macro_rules! stage {
    ($($arg:tt)*) => { $crate::boot::print_stage(format_args!($($arg)*)) };
}

/// Where the boot core enters Rust: early tables, MMU and caches on, its stack, `.bss` zero.
pub(crate) extern "C" fn primary(x0: u64) -> ! {
    match boot(x0) {
        Ok(()) => crate::run::enter(),
        Err(error) => {
            match error {
                BootError::Bundle(_) => println!("bundle refused: {error}"),
                _ => println!("boot failed: {error}"),
            }
            println!("scenario: failed (boot)");
            panic::power_off()
        }
    }
}

/// Where the other cores enter Rust, with the final tables.
pub(crate) extern "C" fn secondary(_index: u64) -> ! {
    timer::init_core();
    mitigation::init_core();
    if !cores::suffices() {
        leave_out(&"it lacks features of the boot core");
    }
    match irq::init_core() {
        Ok(()) => {
            cores::join();
            cores::wait_for_release();
            crate::run::enter()
        }
        Err(error) => leave_out(&error),
    }
}

/// Goes on without this core.
fn leave_out(reason: &dyn fmt::Display) -> ! {
    log::error!("this core is left out: {reason}");
    let error = psci::cpu_off();
    log::error!("it cannot be turned off: {error}");
    cpu::park()
}

/// Why boot ends early.
#[derive(Debug)]
enum BootError {
    ClassicEl2,
    Tree,
    Console,
    Machine(machine::MachineError),
    Map(memory::MapFailed),
    Ledger(memory::LedgerError),
    Timer(timer::NoFrequency),
    Irq(irq::IrqError),
    Bundle(BundleError),
    Stage2(crate::vm::Reason),
}

/// Why there is no bundle to hand on.
#[derive(Debug)]
enum BundleError {
    Nowhere,
    OutsideRam(PhysRange),
    Overlap(PhysRange),
    Truncated { bundle: PhysRange, initrd: PhysRange },
    Tree(PhysAddr),
    Manifest(manifest::ManifestError<'static>),
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("/chosen names no initrd and the board no address"),
            Self::OutsideRam(range) => write!(f, "{range} is not all in RAM"),
            Self::Overlap(range) => write!(f, "{range} overlaps memory in use"),
            Self::Truncated { bundle, initrd } => {
                write!(f, "its tree says {bundle}, and the boot loader loaded {initrd}")
            }
            Self::Tree(at) => write!(f, "no device tree at {at}"),
            Self::Manifest(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClassicEl2 => f.write_str("this core has EL2 only with VHE (no FEAT_E2H0)"),
            Self::Tree => f.write_str("no device tree in x0, nor where a board expects one"),
            Self::Console => f.write_str("no console that there is a driver for"),
            Self::Machine(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Ledger(error) => error.fmt(f),
            Self::Timer(error) => error.fmt(f),
            Self::Irq(error) => error.fmt(f),
            Self::Bundle(error) => error.fmt(f),
            Self::Stage2(reason) => reason.fmt(f),
        }
    }
}

macro_rules! from {
    ($($variant:ident($error:ty)),* $(,)?) => {
        $(impl From<$error> for BootError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from!(
    Machine(machine::MachineError),
    Map(memory::MapFailed),
    Ledger(memory::LedgerError),
    Timer(timer::NoFrequency),
    Irq(irq::IrqError),
    Bundle(BundleError),
    Stage2(crate::vm::Reason),
);

/// A range of memory and its bytes.
struct Blob {
    bytes: &'static [u8],
    pages: PhysRange,
}

fn boot(x0: u64) -> Result<(), BootError> {
    memory::switch_to_final_tables()?;
    let tree = find_device_tree(x0).ok_or(BootError::Tree)?;
    let parsed = MachineTree::parse(tree.bytes).map_err(|_| BootError::Tree)?;
    psci::init(parsed.psci() == Some(Conduit::Smc));
    let console = machine::console(&parsed).ok_or(BootError::Console)?;
    start_console(&console)?;
    vm::passthrough::init(parsed, console.pages());
    println!("Suzerain {}", env!("CARGO_PKG_VERSION"));
    if let Some((path, why)) = console.passed_over {
        log::warn!("console on {}, since stdout-path is {path}: {why}", console.said_by);
    }
    let machine = Machine::read(&parsed)?;
    console::set_level(machine.bootargs);
    let image = layout::image();
    let image = PhysRange::new(image.start, image.end);
    stage!("console on {} ({})", machine.board.name, machine.compatible);
    if !cpu::has_classic_el2() {
        return Err(BootError::ClassicEl2);
    }
    stage!("image at {image}, entered with x0 {x0:#x}, device tree at {}", tree.pages);

    let hz = timer::init()?;
    timer::init_core();
    stage!("system counter runs at {hz} Hz");

    memory::map_ram(&machine, &[image, tree.pages])?;
    let ram: u64 = machine.memory.iter().map(PhysRange::bytes).sum();
    stage!("RAM mapped: {} MiB, {} reservations", ram >> 20, machine.reserved.len());

    let bundle = find_bundle(&machine, &[image, tree.pages]);
    let bundle_pages = bundle.as_ref().ok().map(|bundle| bundle.pages);
    let ledger = memory::start_ledger(&machine, image, tree.pages, bundle_pages)?;
    stage!("ledger: {}", ledger.census());

    memory::map_device(machine::pages_of(&machine.gic.distributor))?;
    for region in &machine.gic.redistributors {
        memory::map_device(machine::pages_of(region))?;
    }
    // SAFETY: the tree describes the machine's GIC, whose registers were just mapped.
    unsafe { irq::init(&machine.gic, machine.ppis) }?;
    irq::init_core()?;
    stage!("interrupt controller at {:#x}", machine.gic.distributor.base);

    // Without firmware to take it, the call itself would be an undefined instruction.
    match psci::is_present().then(psci::version) {
        Some(Ok(version)) => {
            stage!("PSCI {}.{}", version.major, version.minor);
            firmware::init();
        }
        Some(Err(error)) => stage!("PSCI does not answer: {error}"),
        None => stage!("no PSCI: one core only"),
    }
    mitigation::init_core();
    stage!("random numbers: {}", entropy::init());
    cores::start_all(&machine);
    stage!("{} of {} cores up", cores::online_count(), machine.cpus.len());

    let rme = cpu::has_rme();
    stage!("RME: {}", if rme { "yes" } else { "no" });
    let bundle = bundle?;
    vm::init();
    let parsed = vm::take_bundle(bundle.bytes, crc::best()).map_err(BundleError::Manifest)?;
    stage!("bundle at {}: scenario {}, {} VMs", bundle.pages, parsed.scenario, parsed.vms.len());
    vm::build::init_stage2()?;
    vm::realm::init(rme, &machine.memory);
    stage!("realms: {}", vm::realm::Availability);
    start_console_input(&console);
    crate::run::expect_cores(cores::online_mask());
    vm::build::start_all();
    cores::release();
    Ok(())
}

/// Maps and returns the device tree at `x0` or, if there is none, at one of the places where
/// boards expect it.
fn find_device_tree(x0: u64) -> Option<Blob> {
    let fallbacks = BOARDS.iter().filter_map(|board| board.device_tree);
    [PhysAddr::new(x0)].into_iter().chain(fallbacks).find_map(device_tree_at)
}

fn device_tree_at(start: PhysAddr) -> Option<Blob> {
    if start.get() == 0 || !start.is_aligned(8) || start.get() >> cpu::physical_address_bits() != 0
    {
        return None;
    }
    let header_pages = machine::pages(start.get(), TREE_HEADER_BYTES as u64);
    memory::map_read_only(header_pages).ok()?;
    // Nothing need be there at all.
    let Some(bytes) = tree_bytes_at(start) else {
        memory::unmap(header_pages).ok()?;
        return None;
    };
    let pages = machine::pages(start.get(), bytes as u64);
    if header_pages.end < pages.end {
        memory::map_read_only(PhysRange::new(header_pages.end, pages.end)).ok()?;
    }
    // SAFETY: the pages were just mapped, hold what firmware handed over for good, are reserved in
    // the ledger, and nothing writes them.
    let bytes = unsafe { memory::shared(start, bytes) };
    Some(Blob { bytes, pages })
}

/// Size of the device tree whose header is at `start`, in mapped memory, or `None` if none is.
fn tree_bytes_at(start: PhysAddr) -> Option<usize> {
    let mut header = [0; TREE_HEADER_BYTES];
    probe::copy_from(start, &mut header).ok()?;
    tree_size(&header).ok().filter(|&bytes| bytes >= TREE_HEADER_BYTES)
}

/// Finds the bundle: the initrd of `/chosen`, or where the board says. It must lie in RAM, outside
/// `used` and what firmware reserves.
fn find_bundle(machine: &Machine<'_>, used: &[PhysRange]) -> Result<Blob, BundleError> {
    let initrd = machine.initrd.map(|range| range.start);
    let start = initrd.or(machine.board.bundle).ok_or(BundleError::Nowhere)?;
    let header = machine::pages(start.get(), TREE_HEADER_BYTES as u64);
    check_free(machine, used, header)?;
    let tree_bytes = tree_bytes_at(start).ok_or(BundleError::Tree(start))?;
    let tree = machine::pages(start.get(), tree_bytes as u64);
    check_free(machine, used, tree)?;
    // SAFETY: the pages are mapped RAM that nothing else uses, and become reserved in the ledger
    // before anything is allocated.
    let tree = unsafe { memory::shared(start, tree_bytes) };
    let total = manifest::peek_total_size(tree).map_err(BundleError::Manifest)?;
    let pages = machine::pages(start.get(), total);
    // By pages: some boot loaders pass the last byte as the end. Checksums see to the rest.
    if let Some(initrd) = machine.initrd
        && pages.end > machine::pages(initrd.start.get(), initrd.bytes()).end
    {
        return Err(BundleError::Truncated { bundle: pages, initrd });
    }
    check_free(machine, used, pages)?;
    let total = usize::try_from(total).map_err(|_| BundleError::OutsideRam(pages))?;
    // SAFETY: as above.
    Ok(Blob { bytes: unsafe { memory::shared(start, total) }, pages })
}

fn check_free(
    machine: &Machine<'_>,
    used: &[PhysRange],
    range: PhysRange,
) -> Result<(), BundleError> {
    if !memory::is_ram(machine, range) {
        return Err(BundleError::OutsideRam(range));
    }
    // Boot loaders reserve the initrd that they pass: that one is no obstacle.
    let is_initrd = |reserved: PhysRange| {
        machine.initrd.is_some_and(|initrd| {
            let pages = machine::pages(initrd.start.get(), initrd.bytes());
            pages.start <= reserved.start && reserved.end <= pages.end
        })
    };
    let reserved =
        machine.reserved.iter().filter(|reserved| reserved.no_map || !is_initrd(reserved.range));
    let reserved = reserved.map(|reserved| reserved.range);
    let overlaps = |other: PhysRange| range.start < other.end && other.start < range.end;
    if used.iter().copied().chain(reserved).any(overlaps) {
        return Err(BundleError::Overlap(range));
    }
    Ok(())
}

fn start_console(console: &machine::Console<'_>) -> Result<(), BootError> {
    memory::map_device(console.pages())?;
    // SAFETY: the tree or the board says that this UART is there; it was just mapped, and nothing
    // else drives it.
    unsafe { console::init(console.place) };
    Ok(())
}

fn start_console_input(console: &machine::Console<'_>) {
    match console.intid.map(console::enable_input) {
        Some(Ok(())) => stage!("operator console: Ctrl-T ? for help"),
        Some(Err(error)) => stage!("operator console: no input, {error}"),
        None => stage!("operator console: no input, the device tree names no interrupt of the GIC"),
    }
}
