//! Test guest that does, round after round, what the instruction counter is to count.
//!
//! With one vCPU: calls, device accesses and timer interrupts. With two: interrupts from one to the
//! other. Words of the command line: `rounds=N`; `one-core` if all vCPUs share a core, so that none should
//! spin while it waits for another; `touch` if it is first touches of RAM that are to be counted.
#![no_std]
#![no_main]

use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_cpu::registers::{ID_AA64PFR0_EL1, Readable};
use guest_rt::boot::BootInfo;
use guest_rt::failure::Failure;
use guest_rt::{gic, mark, mmu, psci, timer, uart};
use smccc::Hvc;

/// Rounds when the command line does not say.
const DEFAULT_ROUNDS: u64 = 100;
/// Milliseconds until a timer interrupt comes: long enough to fall asleep before.
const TIMER_MS: u64 = 1;
/// IPA of the PL011's flag register.
const UART_FLAGS: u64 = uart::UART_IPA + 0x18;
/// IPA of the distributor's type register.
const GICD_TYPER: u64 = gic::GICD_IPA + 4;
/// A function of the range for hypervisors that no hypervisor defines.
const UNKNOWN_CALL: u32 = 0xc600_ffff;
/// What an unknown function answers.
const NOT_SUPPORTED: u64 = u64::MAX;

/// Whether vCPU 1 is to sleep between interrupts.
static SLEEPS: AtomicBool = AtomicBool::new(true);
/// Whether vCPU 1 is to go off at its next interrupt.
static DONE: AtomicBool = AtomicBool::new(false);

guest_rt::guest!("bench", run, secondary);

fn run(info: &BootInfo) -> Result<(), Failure> {
    let rounds = info.number("rounds").unwrap_or(DEFAULT_ROUNDS);
    gic::init_distributor();
    gic::init_cpu()?;
    Ok(match info.cpus {
        _ if info.flag("touch") => touch(&info.ram, rounds),
        1 => alone(rounds),
        _ => together(info, rounds),
    }?)
}

/// Touches RAM that nobody has touched, from its end on: each access finds a block of stage-2 missing.
fn touch(ram: &Range<u64>, rounds: u64) -> Result<(), &'static str> {
    const BLOCK: u64 = 2 << 20;
    // The image, its stack and its tables lie at the start.
    if ram.end - ram.start < (rounds + 2) * BLOCK {
        return Err("not enough RAM for so many rounds");
    }
    let mut at = ram.end;
    let mut zero = true;
    mark::each::<9>("first touch of 2 MiB: a stage-2 fault that maps a block", rounds, || {
        at -= BLOCK;
        let word: *mut u64 = core::ptr::with_exposed_provenance_mut(at as usize);
        // SAFETY: `at` is RAM that holds no object of this image, mapped by the runtime.
        zero &= unsafe { word.read_volatile() } == 0;
        // SAFETY: as above.
        unsafe { word.write_volatile(at) };
    });
    if zero { Ok(()) } else { Err("RAM was not zero") }
}

/// What one vCPU does alone.
fn alone(rounds: u64) -> Result<(), &'static str> {
    let mut answers_right = true;
    mark::each::<1>("null hypercall (HVC, unknown function)", rounds, || {
        answers_right &= smccc::hvc64(UNKNOWN_CALL, [0; 17])[0] == NOT_SUPPORTED;
    });
    if !answers_right {
        return Err("an unknown call was not refused");
    }
    mark::each::<2>("PSCI_VERSION", rounds, || {
        let _ = smccc::psci::version::<Hvc>();
    });
    mark::each::<3>("read of a trapped ID register", rounds, || {
        let _ = ID_AA64PFR0_EL1.get();
    });
    let read = |register| {
        let _ = mmu::read_register(register);
    };
    mark::each::<4>("read of a UART register", rounds, || read(UART_FLAGS));
    mark::each::<5>("read of a distributor register", rounds, || read(GICD_TYPER));
    mark::each::<6>("timer interrupt of a running vCPU", rounds, || {
        let ticks = timer::ticks();
        timer::start(TIMER_MS);
        while timer::ticks() == ticks {
            core::hint::spin_loop();
        }
        timer::stop();
    });
    mark::each::<7>("WFI until a timer interrupt", rounds, sleep);
    // SAFETY: CPACR_EL1 only says what traps: FP and SIMD do not.
    unsafe { asm!("msr cpacr_el1, {0}", "isb", in(reg) 3_u64 << 20, options(nostack)) }
    mark::each::<8>("the same, and a use of FP registers", rounds, || {
        sleep();
        // SAFETY: compiled code keeps nothing in FP registers.
        unsafe {
            asm!(".arch_extension fp", "fmov d0, xzr", ".arch_extension nofp", options(nostack))
        }
    });
    Ok(())
}

/// Sleeps until a timer interrupt.
fn sleep() {
    let ticks = timer::ticks();
    timer::start(TIMER_MS);
    timer::wait_for_tick(ticks + 1);
    timer::stop();
}

/// Rings vCPU 1 and is rung back: first while both run, if there is a core for each, then while
/// both sleep in between.
fn together(info: &BootInfo, rounds: u64) -> Result<(), &'static str> {
    let one_core = info.flag("one-core");
    psci::cpu_on(1, 0).map_err(|_| "CPU_ON was refused")?;
    let mut answers = 1;
    gic::wait_for_rings(answers, true);
    let mut ring = |sleeps| {
        gic::ring(1);
        answers += 1;
        gic::wait_for_rings(answers, sleeps);
    };
    if !one_core {
        mark::announce::<16>("SGI to a running vCPU");
    }
    mark::announce::<17>("SGI to a vCPU in WFI");
    for sleeps in [false, true] {
        if one_core && !sleeps {
            continue;
        }
        SLEEPS.store(sleeps, Ordering::Release);
        // vCPU 1 sees the change when it has answered.
        ring(true);
        for _ in 0..rounds {
            begin(sleeps);
            ring(sleeps);
        }
    }
    DONE.store(true, Ordering::Release);
    gic::ring(1);
    while psci::is_on(1).map_err(|_| "AFFINITY_INFO was refused")? {
        core::hint::spin_loop();
    }
    Ok(())
}

fn begin(sleeps: bool) {
    if sleeps { mark::begin::<17>() } else { mark::begin::<16>() }
}

fn end(sleeps: bool) {
    if sleeps { mark::end::<17>() } else { mark::end::<16>() }
}

fn secondary(_context_id: u64) -> Result<(), Failure> {
    gic::init_cpu()?;
    gic::ring(0);
    for ring in 1.. {
        let sleeps = SLEEPS.load(Ordering::Acquire);
        gic::wait_for_rings(ring, sleeps);
        end(sleeps);
        if DONE.load(Ordering::Acquire) {
            break;
        }
        gic::ring(0);
    }
    Ok(())
}
