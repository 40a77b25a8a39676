//! Entry, stacks and exceptions.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ops::Range;

use crate::boot::{BootInfo, Ending};
use crate::failure::{self, Failure};
use crate::{MAX_CPUS, boot, console, gic, mmu, psci, rsi, uart};

/// Bytes of one vCPU's stack.
const STACK_SIZE: usize = 32 * 1024;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; MAX_CPUS]>);

// SAFETY: Rust code never touches the contents through this static; only the stack pointers that
// the entry code hands out do, one stack per vCPU.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; MAX_CPUS]));

global_asm!(
    include_str!("entry.S"),
    max_cpus = const MAX_CPUS,
    stack_size = const STACK_SIZE,
    stacks = sym STACKS,
);

/// What a binary is made of: see [`guest!`](crate::guest).
#[derive(Debug)]
pub struct Guest {
    /// What its last line begins with.
    pub name: &'static str,
    /// The first vCPU's work.
    pub run: fn(&BootInfo) -> Result<(), Failure>,
    /// What a vCPU does that PSCI CPU_ON has started with a context id.
    pub secondary: fn(u64) -> Result<(), Failure>,
}

/// Names the parts of the binary: `guest!("name", run, secondary)`, see [`Guest`](crate::entry::Guest).
///
/// The functions run with the MMU on and interrupts masked; lines go to the UART. When `run` comes back
/// with `Ok`, the guest says `name: all checks passed` and ends as its command line says (`reset`, `hang`,
/// else it powers off); the vCPU of a `secondary` goes off. An `Err` or a panic on any vCPU ends the guest
/// with the line `name: FAILED` and the reason, and its VM as failed.
#[macro_export]
macro_rules! guest {
    ($name:literal, $run:path, $secondary:path) => {
        #[unsafe(no_mangle)]
        static RT_GUEST: $crate::entry::Guest =
            $crate::entry::Guest { name: $name, run: $run, secondary: $secondary };
    };
}

unsafe extern "Rust" {
    static RT_GUEST: Guest;
}

/// The binary.
pub(crate) fn guest() -> &'static Guest {
    // SAFETY: `guest!` defines the static with this type, and nothing changes it.
    unsafe { &RT_GUEST }
}

/// The first vCPU, with the MMU off and the IPA of the device tree in x0.
#[unsafe(no_mangle)]
extern "C" fn rt_primary(device_tree: u64) -> ! {
    // SAFETY: the boot protocol puts the address of the device tree into x0.
    let info = unsafe { boot::parse(device_tree) };
    // Without a tree there is the memory that the image lies in, to report from.
    let ram = info.as_ref().map_or(mmu::LEAST_RAM, |info| info.ram.clone());
    mmu::enable(&ram);
    // Before anything that may fail: the report depends on it.
    rsi::detect();
    match info.map_err(Failure::from).and_then(|info| run(info, &ram)) {
        Ok(ending) => {
            crate::println!("{}: all checks passed", guest().name);
            psci::end(ending)
        }
        Err(Failure { code, what }) => failure::fail(code, format_args!("{what}")),
    }
}

fn run(mut info: BootInfo, ram: &Range<u64>) -> Result<Ending, Failure> {
    if rsi::is_realm() {
        info.realm = Some(rsi::realm_config().map_err(|_| "RSI_REALM_CONFIG was refused")?);
    }
    mmu::map_window(ram, info.alias());
    uart::init();
    console::set_sink(uart::write);
    if info.psci_by_smc != rsi::is_realm() {
        return Err("the conduit of /psci is not that of this kind of VM".into());
    }
    (guest().run)(&info)?;
    Ok(info.ending())
}

/// A vCPU that PSCI CPU_ON started, with the MMU off and the context id in x0.
#[unsafe(no_mangle)]
extern "C" fn rt_secondary(context_id: u64) -> ! {
    mmu::enable_secondary();
    match (guest().secondary)(context_id) {
        Ok(()) => psci::cpu_off(),
        Err(Failure { code, what }) => failure::fail(code, format_args!("{what}")),
    }
}

/// Runs one instruction that may be undefined or trap, with `$input` in `x0`: `Ok` has `x0`
/// afterwards, `Err` the syndrome (`ESR_EL1`) of the exception that it took.
///
/// To be used in an `unsafe` block: the instruction must not access memory or change registers that
/// the compiler relies on, other than `x0`.
#[macro_export]
macro_rules! attempt {
    ($instruction:literal, $input:expr) => {{
        let input: u64 = $input;
        let (value, syndrome): (u64, u64);
        core::arch::asm!(
            "msr tpidr_el1, {one}", "isb", $instruction, "isb",
            "mrs {syndrome}, tpidr_el1", "msr tpidr_el1, xzr",
            one = in(reg) 1_u64, syndrome = out(reg) syndrome, inout("x0") input => value,
            options(nostack));
        if syndrome == 1 { Ok(value) } else { Err(syndrome) }
    }};
}

unsafe extern "C" {
    /// First instruction of a vCPU that PSCI CPU_ON starts. Not to be called.
    fn secondary_entry();
}

/// IPA to give to PSCI CPU_ON. Valid because a guest maps its RAM one to one.
#[must_use]
pub fn secondary_entry_ipa() -> u64 {
    secondary_entry as *const () as u64
}

#[unsafe(no_mangle)]
extern "C" fn rt_irq() {
    gic::handle_irq();
}

/// Any exception but an IRQ: a fault of the guest or of what runs it.
#[unsafe(no_mangle)]
extern "C" fn rt_unexpected(kind: u64, esr: u64, elr: u64, far: u64) -> ! {
    panic!("exception vector {kind}: esr {esr:#x} elr {elr:#x} far {far:#x}");
}
