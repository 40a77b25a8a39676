//! R-EL2 image of the reference RMM: what EL3 loads, and what really runs realms.
//!
//! EL3 enters every CPU once at `rmm_entry` (`entry.S`); from then on it comes back with one call of
//! the host at a time. All of the interface to the host and to realms is in the core, the crate
//! `rmm`; this image gives it memory, a console and the CPU.
//!
//! EL3 decides which version of RMI the image speaks: 1.0 with RMM-EL3 interface 0.3 and later 0.x
//! versions, as TF-A 2.12 has it, and 2.0 with interface 2.x, with which the virtual CPU interface
//! is not switched between the worlds. A host can be served in one way only.
//!
//! The image is laid out for TF-A's QEMU port (`rmm.ld`, `tables.S`). Interrupts stay masked in it. It never
//! touches vector registers except to switch them, so it must be built for a target without them.
#![no_std]
#![no_main]

mod console;
mod el3;
mod machine;
mod manifest;
mod memory;
mod sysreg;
mod vector_state;
mod vgic;

use core::arch::global_asm;
use core::mem::offset_of;
use core::panic::PanicInfo;

use rmm::{Abi, Monitor, Pa, RamRange, RecContext, Rmi2};
use spin::Once;

use el3::BootError;
use machine::Machine;
use manifest::{MAX_BANKS, Manifest, PAGE_SIZE};

/// CPUs that have a stack.
const MAX_CPUS: usize = 32;
/// Log2 of the distance of two stacks; the lowest page of each is a guard.
const STACK_SHIFT: usize = 16;
/// What TF-A's QEMU port gives to the RMM, with the page that it shares with EL3.
const IMAGE_BASE: u64 = 0x4010_0000;
const IMAGE_END: u64 = 0x4190_0000;
static MONITOR: Once<Monitor<Machine>> = Once::new();

global_asm!(
    include_str!("entry.S"),
    max_cpus = const MAX_CPUS,
    stack_shift = const STACK_SHIFT,
    stacks = const 0x4020_0000,
    slots = sym machine::GRANULES,
    // Attribute 0: device nGnRE; attribute 1: normal write-back.
    mair = const 0xff04,
    // T0SZ 25; walks write-back, inner shareable; RES1 bits 31 and 23. PS is added at run time.
    tcr = const 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 31,
    // RES1 bits, I, SA, C, M and WXN.
    sctlr = const 0x30c5_0830 | 1 << 12 | 1 << 3 | 1 << 2 | 1 << 0 | 1 << 19,
    boot_complete = const el3::BOOT_COMPLETE,
    cpu_out_of_range = const BootError::CpusOutOfRange as i64,
);
global_asm!(include_str!("tables.S"));
global_asm!(
    include_str!("vectors.S"),
    pc = const offset_of!(RecContext, pc),
    stacks = const 0x4020_0000,
    stack_shift = const STACK_SHIFT,
);

const _: () = assert!(
    offset_of!(RecContext, gprs) == 0
        && offset_of!(RecContext, pstate) == offset_of!(RecContext, pc) + 8
);

/// Index of the CPU that runs this, below [`MAX_CPUS`].
fn cpu_index() -> usize {
    sysreg::read!("tpidr_el2") as usize % MAX_CPUS
}

/// First CPU: `cpu` is its index, `version` that of the interface, `cpus` the highest number of
/// CPUs, `shared` the address of the page shared with EL3.
#[unsafe(no_mangle)]
extern "C" fn rmm_cold_boot(cpu: u64, version: u64, cpus: u64, shared: u64) -> ! {
    let result = start(cpu, version, cpus, shared);
    serve(result)
}

/// Every further CPU, and one that was off for a while.
#[unsafe(no_mangle)]
extern "C" fn rmm_warm_boot() -> ! {
    let result = if MONITOR.get().is_some() {
        machine::init_cpu();
        Ok(())
    } else {
        Err(BootError::Unknown)
    };
    serve(result)
}

fn start(cpu: u64, version: u64, cpus: u64, shared: u64) -> Result<(), BootError> {
    const OLDEST_MINOR: u64 = 3;
    let abi = match (version >> 16, version & 0xffff) {
        (0, OLDEST_MINOR..) => Abi::V1_0,
        (2, _) => Abi::V2_0(Rmi2::EVERYTHING),
        _ => return Err(BootError::Version),
    };
    if cpus > MAX_CPUS as u64 {
        return Err(BootError::CpusOutOfRange);
    }
    if cpu >= cpus {
        return Err(BootError::CpuIdOutOfRange);
    }
    let last_page = IMAGE_END - PAGE_SIZE as u64;
    if !shared.is_multiple_of(PAGE_SIZE as u64) || !(IMAGE_BASE..=last_page).contains(&shared) {
        return Err(BootError::SharedBuffer);
    }
    let mut page = [0; PAGE_SIZE];
    memory::read_realm(Pa(shared), &mut page);
    let manifest = Manifest::parse(&page, shared)?;
    if let Some(base) = manifest.console {
        console::init(base);
    }
    machine::init_cpu();

    let (ranges, count) = usable_ram(&manifest)?;
    let ram = ranges.get(..count).ok_or(BootError::Unknown)?;
    let monitor = Monitor::with_abi(Machine, ram, abi).map_err(|_| BootError::ManifestData)?;
    MONITOR.call_once(|| monitor);
    let mib: u64 = ram.iter().map(|range| range.size >> 20).sum();
    let rmi = if abi == Abi::V1_0 { "1.0" } else { "2.0" };
    console::write_line(format_args!("reference RMM, RMI {rmi}, RAM {mib} MiB, up to {cpus} CPUs"));
    Ok(())
}

/// The RAM that can be delegated: what EL3 names, as far as the translation tables show it, less
/// this image. Ascending if EL3's banks are.
fn usable_ram(manifest: &Manifest) -> Result<([RamRange; 2 * MAX_BANKS], usize), BootError> {
    let mut ranges = [RamRange { base: Pa(0), size: 0 }; 2 * MAX_BANKS];
    let mut count = 0;
    for bank in &manifest.banks {
        let top = bank.base.checked_add(bank.size).ok_or(BootError::ManifestData)?;
        let below = (bank.base.max(memory::RAM_BASE), top.min(IMAGE_BASE));
        let above = (bank.base.max(IMAGE_END), top.min(memory::RAM_END));
        for (base, top) in [below, above] {
            if let (true, Some(range)) = (base < top, ranges.get_mut(count)) {
                *range = RamRange { base: Pa(base), size: top - base };
                count += 1;
            }
        }
    }
    Ok((ranges, count))
}

/// Ends the boot of this CPU and serves the host for ever.
fn serve(result: Result<(), BootError>) -> ! {
    let mut request = el3::boot_complete(result);
    loop {
        let results = match MONITOR.get() {
            Some(monitor) => monitor.handle(request.function, request.args),
            None => panic!("EL3 forwards a call although the boot failed"),
        };
        request = el3::request_complete(results);
    }
}

/// An exception in this image itself: its own fault, and the end of this CPU.
#[unsafe(no_mangle)]
extern "C" fn rmm_unexpected(vector: u64, esr: u64, elr: u64, far: u64) -> ! {
    console::write_last_line(format_args!(
        "CPU {} exception vector {vector}: esr {esr:#x} elr {elr:#x} far {far:#x}",
        cpu_index()
    ));
    park()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::write_last_line(format_args!("CPU {} {info}", cpu_index()));
    park()
}

fn park() -> ! {
    loop {
        // SAFETY: waiting changes nothing.
        unsafe { core::arch::asm!("wfi", options(nomem, nostack, preserves_flags)) }
    }
}
