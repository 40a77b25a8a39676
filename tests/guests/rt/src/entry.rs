//! Entry, stacks and exceptions.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use crate::{MAX_CPUS, console, gic};

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

/// Names the two functions of the binary that the runtime calls.
///
/// `guest!(primary, secondary)`: `primary` is a `fn(u64) -> !` and gets the IPA of the device tree;
/// `secondary` is a `fn(u64) -> !`, runs on a vCPU that PSCI CPU_ON started, and gets the
/// context id. Both start with the MMU off and interrupts masked.
#[macro_export]
macro_rules! guest {
    ($primary:path, $secondary:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn rt_primary(device_tree: u64) -> ! {
            $primary(device_tree)
        }

        #[unsafe(no_mangle)]
        extern "C" fn rt_secondary(context_id: u64) -> ! {
            $secondary(context_id)
        }
    };
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

/// Any exception but an IRQ: a fault of the guest or of what runs it. The panic handler of the
/// binary reports it in the binary's own way.
#[unsafe(no_mangle)]
extern "C" fn rt_unexpected(kind: u64, esr: u64, elr: u64, far: u64) -> ! {
    // The fault may have hit while this vCPU held the console.
    console::force_unlock();
    panic!("exception vector {kind}: esr {esr:#x} elr {elr:#x} far {far:#x}");
}
