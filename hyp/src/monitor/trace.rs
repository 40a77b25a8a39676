//! The last exits of each core.
//!
//! Always on: when something goes wrong, what led there has been written down already. Only a core
//! itself writes its ring; others read it at any time, and may see one record half old, half new.

use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use crate::vm::stats::Cause;
use crate::vm::{self, Vm};
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vmm_services::VcpuId;

/// Exits that are remembered per core. A power of two, so that the position may wrap around.
const DEPTH: usize = 32;

const _: () = assert!(DEPTH.is_power_of_two());

struct Ring {
    /// Number of exits so far.
    count: AtomicU32,
    records: [Slot; DEPTH],
}

struct Slot {
    time: AtomicU64,
    /// VM, vCPU and cause; see [`Record::pack`].
    who: AtomicU64,
    detail: AtomicU64,
}

static RINGS: [Ring; MAX_CORES] = [const {
    Ring {
        count: AtomicU32::new(0),
        records: [const {
            Slot { time: AtomicU64::new(0), who: AtomicU64::new(0), detail: AtomicU64::new(0) }
        }; DEPTH],
    }
}; MAX_CORES];

/// One exit.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Ticks of the system counter.
    time: u64,
    vm: u8,
    vcpu: u8,
    cause: u8,
    detail: u64,
}

/// Remembers that `vcpu` of `vm` left its guest for `cause` at `time` (in ticks); `detail` as of
/// [`Cause::of`].
#[inline]
pub fn record(vm: &Vm, vcpu: VcpuId, time: u64, (cause, detail): (Cause, u64)) {
    let Some(ring) = RINGS.get(core_index()) else { return };
    let count = ring.count.load(Ordering::Relaxed);
    if let Some(slot) = ring.records.get(count as usize % DEPTH) {
        let who = (vm.index() as u64) << 16 | (vcpu.index() as u64) << 8 | cause as u64;
        slot.time.store(time, Ordering::Relaxed);
        slot.who.store(who, Ordering::Relaxed);
        slot.detail.store(detail, Ordering::Relaxed);
    }
    ring.count.store(count.wrapping_add(1), Ordering::Release);
}

/// The last exit of core `index`, if there was one.
#[must_use]
pub fn last_of_core(index: usize) -> Option<Record> {
    of_core(index).last()
}

/// The exits that are remembered of core `index`, oldest first.
pub fn of_core(index: usize) -> impl Iterator<Item = Record> {
    let ring = RINGS.get(index);
    let count = ring.map_or(0, |ring| ring.count.load(Ordering::Acquire));
    let first = count.saturating_sub(DEPTH as u32);
    (first..count).filter_map(move |number| {
        let slot = ring?.records.get(number as usize % DEPTH)?;
        let who = slot.who.load(Ordering::Relaxed);
        Some(Record {
            time: slot.time.load(Ordering::Relaxed),
            vm: (who >> 16) as u8,
            vcpu: (who >> 8) as u8,
            cause: who as u8,
            detail: slot.detail.load(Ordering::Relaxed),
        })
    })
}

/// Whose exit a record is of.
#[derive(Clone, Copy, Debug)]
pub struct Whose(Record);

impl Record {
    /// Whose exit it was, for reports.
    #[must_use]
    pub const fn whose(self) -> Whose {
        Whose(self)
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = vm::all().get(usize::from(self.0.vm)).map_or("?", Vm::name);
        write!(f, "{name} vcpu {}", self.0.vcpu)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = crate::arch::timer::ticks_to_ns(self.time) / 1000;
        let cause = Cause::ALL.get(usize::from(self.cause)).map_or("?", |cause| cause.name());
        write!(
            f,
            "{:>6}.{:06} {} {cause:<6} {:#x}",
            micros / 1_000_000,
            micros % 1_000_000,
            self.whose(),
            self.detail
        )
    }
}
