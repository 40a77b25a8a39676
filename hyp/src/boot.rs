//! From the first Rust instruction of the boot core to the run loop on every core.
//!
//! Each stage says one numbered line on the console, so that a machine that falls silent says
//! where it was.

use crate::arch::{cpu, layout, percpu, probe, psci, timer};
use crate::{console, cores, irq, memory, panic, println, stage};
use boards::{BOARDS, Machine, Range};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use dtoolkit::fdt::Fdt;
use mm::PhysAddr;
use mm::ledger::PhysRange;

/// Magic number at the start of a flattened device tree, as a little-endian load sees it.
const FDT_MAGIC: u32 = 0xd00d_feed_u32.swap_bytes();
/// Largest device tree that the arm64 boot protocol allows.
const FDT_MAX_BYTES: u64 = 2 << 20;

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
            println!("boot failed: {error}");
            println!("scenario: failed (boot)");
            panic::power_off()
        }
    }
}

/// Where the other cores enter Rust, with the final tables.
pub(crate) extern "C" fn secondary(_index: u64) -> ! {
    timer::init_core();
    match irq::init_core() {
        Ok(()) => {
            cores::join();
            cores::wait_for_release();
            crate::run::enter()
        }
        Err(error) => {
            log::error!("this core is left out: {error}");
            psci::cpu_off();
            cpu::park()
        }
    }
}

/// Why boot ends early.
#[derive(Debug)]
enum BootError {
    ClassicEl2,
    DeviceTree,
    Console,
    Machine(boards::MachineError),
    Map(memory::MapFailed),
    Timer(timer::NoFrequency),
    Irq(irq::IrqError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClassicEl2 => f.write_str("this core has no EL2 without FEAT_VHE (HCR_EL2.E2H)"),
            Self::DeviceTree => f.write_str("no device tree in x0, nor where a board expects one"),
            Self::Console => f.write_str("no console"),
            Self::Machine(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Timer(error) => error.fmt(f),
            Self::Irq(error) => error.fmt(f),
        }
    }
}

impl From<memory::MapFailed> for BootError {
    fn from(error: memory::MapFailed) -> Self {
        Self::Map(error)
    }
}

fn boot(x0: u64) -> Result<(), BootError> {
    memory::switch_to_final_tables()?;
    let tree = find_device_tree(x0).ok_or(BootError::DeviceTree)?;
    let fdt = Fdt::new(tree).map_err(|_| BootError::DeviceTree)?;
    let machine = Machine::read(&fdt).map_err(BootError::Machine)?;
    start_console(&machine)?;
    println!("Suzerain {}", env!("CARGO_PKG_VERSION"));
    let image = layout::image();
    stage!(
        "{} ({}), image {}..{}, device tree at {:#x}",
        machine.board.name,
        machine.compatible,
        image.start,
        image.end,
        tree.as_ptr().addr()
    );
    if !cpu::has_classic_el2() {
        return Err(BootError::ClassicEl2);
    }
    let hz = timer::init().map_err(BootError::Timer)?;
    timer::init_core();
    stage!("counter runs at {hz} Hz");

    let image = PhysRange::new(image.start, image.end);
    let tree_start = PhysAddr::new(tree.as_ptr().addr() as u64);
    let tree_range = Range { start: tree_start, bytes: tree.len() as u64 };
    memory::map_ram(&machine, &[image, memory::pages_of(&tree_range)])?;
    let ram: u64 = machine.memory.iter().map(|range| range.bytes).sum();
    stage!("RAM: {} MiB in {} ranges", ram >> 20, machine.memory.len());

    memory::map_device(&machine.gic.distributor)?;
    for region in &machine.gic.redistributors {
        memory::map_device(region)?;
    }
    // SAFETY: the tree describes the machine's GIC, whose registers were just mapped.
    unsafe { irq::init(&machine.gic, machine.ppis) }.map_err(BootError::Irq)?;
    irq::init_core().map_err(BootError::Irq)?;
    stage!("GICv3 at {}", machine.gic.distributor.start);

    if let Ok(version) = psci::version() {
        stage!("PSCI {}.{}", version.major, version.minor);
    }
    cores::start_all(&machine);
    stage!("{} of {} cores up", cores::online_count(), machine.cpus.len());
    cores::release();
    Ok(())
}

/// Maps and returns the flattened device tree at `x0` or, if there is none, at one of the places
/// where boards expect it.
fn find_device_tree(x0: u64) -> Option<&'static [u8]> {
    let fallbacks = BOARDS.iter().filter_map(|board| board.device_tree);
    [PhysAddr::new(x0)].into_iter().chain(fallbacks).find_map(device_tree_at)
}

fn device_tree_at(start: PhysAddr) -> Option<&'static [u8]> {
    if start.get() == 0 || !start.is_aligned(8) || start.get() >> cpu::physical_address_bits() != 0
    {
        return None;
    }
    let first_page = Range { start, bytes: 8 };
    memory::map_read_only(memory::pages_of(&first_page)).ok()?;
    // Nothing need be there at all.
    let header = probe::read(start).ok()?;
    if header as u32 != FDT_MAGIC {
        return None;
    }
    let bytes = u64::from(((header >> 32) as u32).swap_bytes());
    if !(8..=FDT_MAX_BYTES).contains(&bytes) {
        return None;
    }
    let range = memory::pages_of(&Range { start, bytes });
    let second_page = memory::pages_of(&first_page).end;
    if second_page < range.end {
        memory::map_read_only(PhysRange::new(second_page, range.end)).ok()?;
    }
    // SAFETY: the range was mapped just now, holds initialised memory that firmware handed over
    // for good, and is reserved in the ledger: nothing writes it.
    Some(unsafe { core::slice::from_raw_parts(start.get() as *const u8, bytes as usize) })
}

fn start_console(machine: &Machine<'_>) -> Result<(), BootError> {
    let base = machine.console.ok_or(BootError::Console)?;
    memory::map_device(&Range { start: base, bytes: mm::PAGE_SIZE })?;
    // SAFETY: the tree or the board says that a PL011 is there; it was just mapped, and nothing
    // else drives it.
    unsafe { console::init(base, machine.board.console_clock_hz) };
    Ok(())
}
