//! Normal test guest: what a small RTOS would ask of the hypervisor.
//!
//! Prints over the PL011, takes timer interrupts, sleeps in WFI, starts every further vCPU by
//! PSCI, waits until they are off again, and powers off. Its last line is `vm: all checks passed`
//! or `vm: FAILED` with the reason.
#![no_std]
#![no_main]

mod rtc;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use guest_rt::boot::{self, BootInfo, Conduit};
use guest_rt::{console, cpu_index, gic, mmu, println, psci, timer, uart};

/// Distance of two timer ticks in milliseconds.
const TICK_MS: u64 = 50;
/// Ticks that a vCPU works for when the command line does not say.
const DEFAULT_TICKS: u64 = 20;

/// Context id of vCPU 0; that of vCPU `n` is `n` more.
const CONTEXT: u64 = 0x5eed_0000;

/// Last secondary vCPU that came on; they are started one after the other.
static STARTED: AtomicU64 = AtomicU64::new(0);
/// How many ticks a secondary vCPU works for; set before the first one starts.
static SECONDARY_TICKS: AtomicU64 = AtomicU64::new(0);
/// PSCI conduit for those who cannot be told: 0 unknown, 1 HVC, 2 SMC.
static CONDUIT: AtomicU8 = AtomicU8::new(0);

guest_rt::guest!(primary, secondary);

fn primary(device_tree: u64) -> ! {
    // SAFETY: the boot protocol puts the address of the device tree into x0.
    let info = match unsafe { boot::parse(device_tree) } {
        Ok(info) => info,
        // Without the tree there is no conduit to end by, but the UART is where it always is.
        Err(reason) => {
            mmu::enable(&(0x4000_0000..0x8000_0000), 0);
            start_console();
            panic!("{reason}");
        }
    };
    CONDUIT.store(if info.conduit == Conduit::Hvc { 1 } else { 2 }, Ordering::Release);
    mmu::enable(&info.ram, 0);
    start_console();
    match run(&info) {
        Ok(()) => println!("vm: all checks passed"),
        Err(reason) => println!("vm: FAILED {reason}"),
    }
    psci::end(info.conduit, info.ending)
}

fn secondary(context_id: u64) -> ! {
    mmu::enable_secondary();
    if let Err(reason) = gic::init_cpu() {
        panic!("{reason}");
    }
    let cpu = cpu_index() as u64;
    assert!(context_id == CONTEXT + cpu, "context id {context_id:#x} is not what CPU_ON was given");
    println!("vm: cpu {cpu} on");
    STARTED.store(cpu, Ordering::Release);
    work(SECONDARY_TICKS.load(Ordering::Acquire));
    println!("vm: cpu {} off", cpu_index());
    psci::cpu_off(if CONDUIT.load(Ordering::Acquire) == 1 { Conduit::Hvc } else { Conduit::Smc })
}

fn run(info: &BootInfo) -> Result<(), &'static str> {
    println!(
        "vm: RAM {:#x}..{:#x}, {} vCPUs, PSCI by {:?}",
        info.ram.start, info.ram.end, info.cpus, info.conduit
    );
    let version = psci::version(info.conduit).map_err(|_| "PSCI VERSION")?;
    if version >> 16 == 0 {
        return Err("PSCI is older than 1.0");
    }
    println!("vm: PSCI {}.{}", version >> 16, version & 0xffff);
    gic::init_distributor();
    gic::init_cpu()?;

    if info.stray {
        stray()?;
    }
    if info.rtc {
        rtc::check()?;
    }
    let ticks = info.ticks.unwrap_or(DEFAULT_TICKS);
    SECONDARY_TICKS.store((ticks / 2).max(1), Ordering::Release);
    let secondaries = 1..info.cpus.min(guest_rt::MAX_CPUS) as u64;
    for cpu in secondaries.clone() {
        psci::cpu_on(info.conduit, cpu, CONTEXT + cpu).map_err(|_| "CPU_ON was refused")?;
        wait_until(|| Ok(STARTED.load(Ordering::Acquire) >= cpu))?;
        if psci::cpu_on(info.conduit, cpu, 0).is_ok() {
            return Err("CPU_ON started a vCPU twice");
        }
    }
    work(ticks);
    for cpu in secondaries {
        wait_until(|| {
            psci::is_on(info.conduit, cpu).map(|on| !on).map_err(|_| "AFFINITY_INFO was refused")
        })?;
    }
    if info.rtc {
        rtc::leave_alarm_on();
    }
    Ok(())
}

/// Touches the granule of a realm that the hypervisor maps here on purpose in the scenario
/// `isolation`. Whoever comes back from this has seen what is not its own.
fn stray() -> Result<(), &'static str> {
    /// Where the hypervisor maps it (`vmm_services::layout::STRAY`).
    const STRAY: u64 = 0x3000_0000;
    println!("vm: straying to {STRAY:#x}");
    let granule = mmu::device::<u64>(STRAY);
    // SAFETY: the access is aligned and only reads; no object of this guest lies there. It is
    // expected to end this VM.
    let _ = unsafe { granule.read_volatile() };
    Err("nobody stopped the access to a granule of a realm")
}

/// Polls `done`, at most ten seconds long.
fn wait_until(mut done: impl FnMut() -> Result<bool, &'static str>) -> Result<(), &'static str> {
    let deadline = timer::now() + timer::steps(10_000);
    while !done()? {
        if timer::now() > deadline {
            return Err("another vCPU did not come on or go off in ten seconds");
        }
        core::hint::spin_loop();
    }
    Ok(())
}

/// Sleeps from tick to tick and reports a few of them.
fn work(ticks: u64) {
    let first = timer::ticks();
    let start = timer::now();
    timer::start(TICK_MS);
    for tick in 1..=ticks {
        timer::wait_for_tick(first + tick);
        if tick % 5 == 0 || tick == ticks {
            let ms = (timer::now() - start) / timer::steps(1).max(1);
            println!("vm: cpu {} tick {tick} of {ticks} after {ms} ms", cpu_index());
        }
    }
    timer::stop();
}

fn start_console() {
    uart::init();
    console::set_sink(uart::write);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("vm: FAILED cpu {} {}", cpu_index(), info.message());
    match CONDUIT.load(Ordering::Acquire) {
        1 => psci::system_off(Conduit::Hvc),
        2 => psci::system_off(Conduit::Smc),
        _ => loop {
            core::hint::spin_loop();
        },
    }
}
