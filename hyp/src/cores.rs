//! Bringing up the other cores, and who is up.

use crate::arch::cpu::Features;
use crate::arch::layout::MAX_CORES;
use crate::arch::{cpu, entry, psci, timer};
use crate::machine::Machine;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use spin::Once;
use vmm_services::machine::Enable;

/// How long a core may take from CPU_ON to its report, in nanoseconds.
const START_TIMEOUT_NS: u64 = 1_000_000_000;

/// Bit per core that is up and works, by index.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// Whether the boot core has let the others go into the run loop.
static RELEASED: AtomicBool = AtomicBool::new(false);

/// Features of the boot core, on which what was decided for all cores rests.
static BOOT_CORE: Once<Features> = Once::new();

const _: () = assert!(MAX_CORES <= u32::BITS as usize);

/// Starts all cores of the tree except this one and waits for each to report.
///
/// Cores are numbered in the order of the tree, the boot core being 0. A core that does not come
/// up is left out with a warning; its number stays unused.
pub fn start_all(machine: &Machine<'_>) {
    BOOT_CORE.call_once(Features::here);
    let this = cpu::affinity();
    let others = machine.cpus.iter().filter(|core| core.mpidr != this);
    let left_out = machine.cpus.len().saturating_sub(MAX_CORES);
    if left_out != 0 {
        log::warn!("{left_out} cores are more than this image drives and stay off");
    }
    for (core, index) in others.zip(1..MAX_CORES) {
        if !psci::is_present() || core.enable != Enable::Psci {
            log::warn!("core {index} ({:#x}) has no PSCI enable method, left off", core.mpidr);
            continue;
        }
        if let Err(error) = psci::cpu_on(core.mpidr, entry::secondary_start(), index as u64) {
            log::warn!("core {index} ({:#x}) does not start: {error}", core.mpidr);
            continue;
        }
        let deadline = timer::now_ns() + START_TIMEOUT_NS;
        while !is_online(index) && timer::now_ns() < deadline {
            core::hint::spin_loop();
        }
        if !is_online(index) {
            log::warn!("core {index} ({:#x}) was started and stays silent", core.mpidr);
        }
    }
}

/// Whether this core can do what was decided on the boot core.
#[must_use]
pub fn suffices() -> bool {
    BOOT_CORE.get().is_some_and(|boot_core| Features::here().suffice_for(*boot_core))
}

/// Reports this core as up.
pub fn join() {
    ONLINE.fetch_or(1 << crate::arch::percpu::core_index(), Ordering::AcqRel);
}

/// Takes this core out of the set of working cores; returns how many remain that run guests.
pub fn leave() -> u32 {
    let bit = 1 << crate::arch::percpu::core_index();
    let rest = ONLINE.fetch_and(!bit, Ordering::AcqRel) & !bit;
    // Before the release only the boot core does anything.
    if RELEASED.load(Ordering::Acquire) { rest.count_ones() } else { 0 }
}

/// Whether core `index` is up and works.
#[must_use]
pub fn is_online(index: usize) -> bool {
    online_mask() >> index & 1 != 0
}

/// Whether this core is to see to what core `index` has planned: it is that core, or that one has
/// stopped.
#[must_use]
pub fn is_for_this(index: usize) -> bool {
    index == crate::arch::percpu::core_index() || !is_online(index)
}

/// Cores that are up and work: one bit per index.
#[must_use]
pub fn online_mask() -> u32 {
    ONLINE.load(Ordering::Acquire)
}

/// Number of cores that are up and work.
#[must_use]
pub fn online_count() -> usize {
    online_mask().count_ones() as usize
}

/// Lets the other cores leave [`wait_for_release`].
pub fn release() {
    RELEASED.store(true, Ordering::Release);
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    aarch64_cpu::asm::sev();
}

/// Waits until the boot core has created the VMs.
pub fn wait_for_release() {
    while !RELEASED.load(Ordering::Acquire) {
        aarch64_cpu::asm::wfe();
    }
}
