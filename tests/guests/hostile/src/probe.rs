//! Instructions made at run time and run under the guest's own exception handler, which steps over
//! whatever they provoke.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_rt::{MAX_CPUS, cpu_index};

/// Words of one stub, its RET included.
pub(crate) const STUB_WORDS: usize = 16;
/// Stubs that a vCPU has at a time.
pub(crate) const STUBS: usize = 128;
const RET: u32 = 0xd65f_03c0;

/// What a vCPU needs to come back from a probe, laid out for `probe.S`.
#[repr(C, align(256))]
struct Slot {
    /// `x19` to `x30`, SP, DAIF, `TTBR0_EL1`, and whether a probe runs.
    saved: [AtomicU64; 16],
    /// `x0` to `x7`, both ways.
    registers: [AtomicU64; 8],
    /// `ESR_EL1` and `FAR_EL1` of the exception that ended the probe.
    esr: AtomicU64,
    far: AtomicU64,
    /// Not zero if a register that the code did not name changed.
    corrupted: AtomicU64,
}

const _: () = assert!(size_of::<Slot>() == 256);

impl Slot {
    const fn new() -> Self {
        Self {
            saved: [const { AtomicU64::new(0) }; 16],
            registers: [const { AtomicU64::new(0) }; 8],
            esr: AtomicU64::new(0),
            far: AtomicU64::new(0),
            corrupted: AtomicU64::new(0),
        }
    }
}

static SLOTS: [Slot; MAX_CPUS] = [const { Slot::new() }; MAX_CPUS];

#[repr(C, align(4096))]
struct Code([[AtomicU32; STUB_WORDS]; STUBS]);

static CODE: [Code; MAX_CPUS] =
    [const { Code([const { [const { AtomicU32::new(RET) }; STUB_WORDS] }; STUBS]) }; MAX_CPUS];

global_asm!(include_str!("probe.S"), slots = sym SLOTS);

unsafe extern "C" {
    fn hostile_probe(slot: *const Slot, code: u64) -> u64;
    fn hostile_vectors();
}

/// Any fault outside a probe is the guest's own.
#[unsafe(no_mangle)]
extern "C" fn hostile_unexpected(esr: u64, elr: u64, far: u64) -> ! {
    panic!("unexpected exception: esr {esr:#x} elr {elr:#x} far {far:#x}");
}

/// What became of a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// `x0` to `x7` afterwards.
    pub(crate) registers: [u64; 8],
    /// Whether an exception ended it.
    pub(crate) faulted: bool,
}

/// Takes the exception vectors over. Every vCPU, once, after it has come on.
pub(crate) fn init_vectors() {
    let vectors = hostile_vectors as *const () as u64;
    // SAFETY: the vectors keep all registers for interrupts, end a probe for exceptions that it
    // raised, and panic for all others.
    unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) vectors, options(nostack)) }
}

/// Makes stub `index` of this vCPU out of `words`, which must keep off `x16` to `x30` and SP.
pub(crate) fn write(index: usize, words: &[u32]) {
    let Some(stub) = CODE[cpu_index()].0.get(index) else { return };
    let words = words.iter().take(STUB_WORDS - 1).copied().chain([RET]);
    stub.iter().zip(words).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
}

/// Makes the stubs that were written visible to instruction fetch.
pub(crate) fn synchronize() {
    let code = &CODE[cpu_index()];
    let start = (&raw const *code).addr();
    for line in (start..start + size_of::<Code>()).step_by(16) {
        // SAFETY: cleaning to the point of unification keeps memory contents. 16 bytes is the
        // smallest line that the architecture allows.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack)) }
    }
    // SAFETY: dropping cached instructions only makes them be fetched again.
    unsafe { asm!("dsb ish", "ic iallu", "dsb ish", "isb", options(nostack)) }
}

/// Runs stub `index` with `registers` in `x0` to `x7`.
///
/// # Panics
///
/// When a register is not what it was that the code did not name: the hypervisor's doing.
pub(crate) fn run(index: usize, registers: [u64; 8]) -> Outcome {
    let cpu = cpu_index();
    let code = (&raw const CODE[cpu].0[index % STUBS]).expose_provenance() as u64;
    let slot = &SLOTS[cpu];
    slot.registers.iter().zip(registers).for_each(|(to, value)| to.store(value, Ordering::Relaxed));
    // SAFETY: the slot is this vCPU's own, and everything in it may change at any time. The stub
    // ends in RET and names no register that the callee has to keep; the vectors come back from any
    // exception. What it does to memory is bounded by the arguments that the callers choose:
    // scratch memory, devices, or nothing at all.
    let faulted = unsafe { hostile_probe(slot, code) } != 0;
    let corrupted = slot.corrupted.load(Ordering::Relaxed);
    if corrupted != 0 {
        let [esr, far] = [&slot.esr, &slot.far].map(|value| value.load(Ordering::Relaxed));
        panic!("registers changed by {corrupted:#x} (faulted: {faulted}, {esr:#x}, {far:#x})");
    }
    Outcome { registers: slot.registers.each_ref().map(|r| r.load(Ordering::Relaxed)), faulted }
}
