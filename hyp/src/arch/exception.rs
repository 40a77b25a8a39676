//! Exceptions from EL2 itself: faults of probing accesses become error values, everything else is
//! reported in full and stops this core.

use super::vectors::{Frame, Slot};
use crate::println;

/// An entry of `.extable`: offsets of an instruction that may fault and of its fix-up, relative to
/// the respective field.
#[repr(C)]
struct FixUp {
    instruction: i32,
    fixup: i32,
}

impl FixUp {
    fn target(field: &i32) -> u64 {
        (&raw const *field as u64).wrapping_add_signed(i64::from(*field))
    }
}

fn fixups() -> &'static [FixUp] {
    unsafe extern "C" {
        static __extable_start: FixUp;
        static __extable_end: FixUp;
    }
    let start = &raw const __extable_start;
    let bytes = (&raw const __extable_end).addr() - start.addr();
    // SAFETY: the linker script places the two symbols around `.extable`, which holds only pairs
    // of 32-bit words from `probe.rs`, and which nothing writes.
    unsafe { core::slice::from_raw_parts(start, bytes / size_of::<FixUp>()) }
}

/// Where the vectors go with an exception from EL2 itself; called from assembly.
///
/// Returns only if `frame` was redirected to the fix-up of the faulting instruction, which gets
/// the syndrome in `x0` and the faulting address in `x1`.
pub(super) extern "C" fn from_el2(slot: u64, frame: &mut Frame) {
    let slot = Slot::from_number(slot);
    if slot == Slot::Sync
        && let Some(entry) =
            fixups().iter().find(|entry| FixUp::target(&entry.instruction) == frame.elr)
    {
        frame.elr = FixUp::target(&entry.fixup);
        frame.x[0] = frame.esr;
        frame.x[1] = frame.far;
        return;
    }
    crate::panic::begin_fatal_report();
    report(slot, frame);
    crate::panic::stop("unexpected exception at EL2")
}

/// Takes an exception that nothing is prepared for: a read where EL2 maps nothing. For the self test.
pub fn provoke() {
    /// The last page of the address space, far above all memory of a machine.
    const NOWHERE: u64 = 0x0000_ffff_ffff_f000;
    // SAFETY: the read faults; should it not, it changes nothing.
    unsafe {
        core::arch::asm!("ldr xzr, [{0}]", in(reg) NOWHERE, options(nostack, readonly));
    }
}

fn report(slot: Slot, frame: &Frame) {
    let core = super::percpu::core_index();
    println!("EL2 exception on core {core}: {slot:?}, {}", class_name(frame.esr));
    println!("  ESR  {:#018x}  FAR  {:#018x}", frame.esr, frame.far);
    println!("  ELR  {:#018x}  SPSR {:#018x}  SP {:#018x}", frame.elr, frame.spsr, frame.sp);
    if let Some(status) = abort_status(frame.esr) {
        // WnR of a data abort; an instruction abort is always a fetch.
        let access = match (frame.esr >> 26 & 0x3f, frame.esr >> 6 & 1) {
            (0x21, _) => "fetch",
            (_, 1) => "write",
            _ => "read",
        };
        println!("  abort: {status} on {access}");
    }
    let image = super::layout::image();
    if (image.start.get()..image.end.get()).contains(&frame.elr) {
        println!("  image offset of ELR: {:#x}", frame.elr - image.start.get());
    }
    for (index, pair) in frame.x.chunks(2).enumerate() {
        match *pair {
            [even, odd] => {
                println!("  x{:<2}  {even:#018x}  x{:<2}  {odd:#018x}", index * 2, index * 2 + 1);
            }
            [last] => println!("  x{:<2}  {last:#018x}", index * 2),
            _ => {}
        }
    }
}

/// Name of the exception class in an `ESR_EL2` value.
fn class_name(esr: u64) -> &'static str {
    match esr >> 26 & 0x3f {
        0x00 => "unknown or undefined instruction",
        0x01 => "trapped WFI or WFE",
        0x07 => "trapped FP or SIMD",
        0x0d => "branch target",
        0x0e => "illegal execution state",
        0x15 | 0x16 => "HVC",
        0x17 => "SMC",
        0x18 => "trapped system register",
        0x19 => "trapped SVE",
        0x1c => "pointer authentication",
        0x20 => "instruction abort from a guest",
        0x21 => "instruction abort",
        0x22 => "PC alignment",
        0x24 => "data abort from a guest",
        0x25 => "data abort",
        0x26 => "SP alignment",
        0x2f => "SError",
        0x30..=0x35 => "debug",
        0x3c => "BRK instruction",
        _ => "other class",
    }
}

/// Meaning of the fault status code if `esr` is an abort at EL2.
fn abort_status(esr: u64) -> Option<&'static str> {
    if !matches!(esr >> 26 & 0x3f, 0x21 | 0x25) {
        return None;
    }
    Some(match esr & 0x3f {
        0x00..=0x03 => "address size fault",
        0x04..=0x07 => "translation fault",
        0x08..=0x0b => "access flag fault",
        0x0c..=0x0f => "permission fault",
        0x10 => "synchronous external abort",
        0x13..=0x17 => "external abort on a table walk",
        0x23..=0x27 => "granule protection fault on a table walk",
        0x28 => "granule protection fault",
        0x21 => "alignment fault",
        0x30 => "TLB conflict",
        _ => "other fault",
    })
}
