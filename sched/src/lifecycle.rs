//! How a VM starts, stops and is taken apart while its vCPUs run on several cores.
//!
//! # Protocol
//!
//! ```text
//! Idle -> Built -> Running -> Stopping -> Reaping -> Ended
//!          ^ |                 ^           | ^         |
//!          | +---- stop -------+           | +- revive +
//!          +------------- built again -----+
//! ```
//!
//! Every change of phase that concerns entities is made under the scheduler's lock, which is why the
//! methods take the [`Scheduler`]. The phase itself is atomic, since a core looks at it before each entry
//! into the guest without any lock.
//!
//! - A core runs a vCPU from [`Scheduler::pick`] to [`Scheduler::stop`], with the vCPU's own lock held in
//!   between. It looks at [`Lifecycle::phase`] before each entry, and leaves with
//!   [`Stop::Exited`](crate::Stop::Exited) if that is not [`Phase::Running`].
//! - [`Lifecycle::stop`] may be called on any core. Cores inside the guest are to be kicked: the kick stays
//!   pending until the core is inside, and makes it leave.
//! - [`Lifecycle::claim`] succeeds on one core, when no core runs a vCPU any more. That core takes the VM
//!   apart. A core whose `stop` of the scheduler or of the VM has come before calls it next, so that the last
//!   to leave, or who stopped a VM that was asleep, finds it.
//! - Numbers of entities are given back by [`Lifecycle::dismiss`], after the place of the vCPU was emptied:
//!   whoever builds another VM meanwhile may be given the same number, and with it the same place.
//!
//! `tests/models` checks the interleavings with a model checker.

use crate::sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use crate::{CoreId, CoreSet, EntityId, Scheduler, State};

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nobody uses this VM, or it is not built yet.
    Idle,
    /// All its parts are there, and it has not run.
    Built,
    /// Its vCPUs may run.
    Running,
    /// Its vCPUs must not enter the guest again; those inside are leaving.
    Stopping,
    /// It is taken apart, or built again.
    Reaping,
    /// It is gone, and what is left is its record.
    Ended,
}

impl Phase {
    const ALL: [Self; 6] =
        [Self::Idle, Self::Built, Self::Running, Self::Stopping, Self::Reaping, Self::Ended];
}

/// Phase and vCPUs of one VM of at most `VCPUS` vCPUs, as all cores see them.
#[derive(Debug)]
pub struct Lifecycle<const VCPUS: usize> {
    phase: AtomicU8,
    /// Whether an operator keeps its vCPUs from running. Changes under the scheduler's lock.
    paused: AtomicBool,
    /// Entity of each vCPU, plus one; 0 for none.
    entities: [AtomicU16; VCPUS],
}

#[cfg(not(loom))]
impl<const VCPUS: usize> Lifecycle<VCPUS> {
    /// A VM that does not exist yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            paused: AtomicBool::new(false),
            entities: [const { AtomicU16::new(0) }; VCPUS],
        }
    }
}

#[cfg(loom)]
impl<const VCPUS: usize> Lifecycle<VCPUS> {
    /// A VM that does not exist yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Idle as u8),
            paused: AtomicBool::new(false),
            entities: core::array::from_fn(|_| AtomicU16::new(0)),
        }
    }
}

impl<const VCPUS: usize> Default for Lifecycle<VCPUS> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const VCPUS: usize> Lifecycle<VCPUS> {
    /// What the VM is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let phase = usize::from(self.phase.load(Ordering::Acquire));
        Phase::ALL.get(phase).copied().unwrap_or(Phase::Ended)
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// The entity of vCPU `vcpu`.
    #[must_use]
    pub fn entity(&self, vcpu: usize) -> Option<EntityId> {
        let stored = self.entities.get(vcpu)?.load(Ordering::Acquire);
        stored.checked_sub(1).map(EntityId)
    }

    fn entities(&self) -> impl Iterator<Item = EntityId> {
        (0..VCPUS).filter_map(|vcpu| self.entity(vcpu))
    }

    /// Makes `entity` the one of vCPU `vcpu`, while the VM is built.
    pub fn enrol(&self, vcpu: usize, entity: EntityId) {
        if let Some(place) = self.entities.get(vcpu) {
            // The scheduler has fewer than 65535 entities.
            place.store(entity.0 + 1, Ordering::Release);
        }
    }

    /// Notes that all parts of the VM are there. Only for who builds it.
    pub fn ready(&self) {
        self.set_phase(Phase::Built);
    }

    /// Lets the VM run, from the vCPU `boot` on. Returns the cores to kick; `None` if it is not
    /// [`Phase::Built`], so that nothing was changed.
    #[must_use = "cores that are not kicked do not notice the vCPU"]
    pub fn start<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &mut Scheduler<CORES, ENTITIES>,
        boot: usize,
        now: u64,
    ) -> Option<CoreSet> {
        if self.phase() != Phase::Built {
            return None;
        }
        self.paused.store(false, Ordering::Relaxed);
        self.set_phase(Phase::Running);
        Some(self.wake(scheduler, boot, now))
    }

    /// Hands a VM of which nothing is there to the cores that take VMs apart and build them. `false` if it
    /// is something else, so that nothing was changed. The scheduler's lock keeps others from doing the same.
    #[must_use]
    pub fn revive<const CORES: usize, const ENTITIES: usize>(
        &self,
        _scheduler: &mut Scheduler<CORES, ENTITIES>,
    ) -> bool {
        if !matches!(self.phase(), Phase::Idle | Phase::Ended) {
            return false;
        }
        self.set_phase(Phase::Reaping);
        true
    }

    /// Whether the VM is suspended by [`Self::pause`].
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Suspends the VM: its vCPUs leave the guest and are not picked until [`Self::resume`]. What wakes
    /// them meanwhile is remembered. Returns the cores to kick; `None` if it does not run or is suspended,
    /// so that nothing was changed.
    #[must_use = "a core that is not kicked stays in the guest"]
    pub fn pause<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &mut Scheduler<CORES, ENTITIES>,
    ) -> Option<CoreSet> {
        if self.phase() != Phase::Running || self.is_paused() {
            return None;
        }
        self.paused.store(true, Ordering::Relaxed);
        let kicks = self.entities().map(|entity| scheduler.pause(entity));
        Some(kicks.fold(CoreSet::EMPTY, CoreSet::union))
    }

    /// Ends a [`Self::pause`]. Returns the cores to kick; `None` if the VM does not run or is not suspended,
    /// so that nothing was changed.
    #[must_use = "cores that are not kicked do not notice the vCPUs"]
    pub fn resume<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &mut Scheduler<CORES, ENTITIES>,
        now: u64,
    ) -> Option<CoreSet> {
        if self.phase() != Phase::Running || !self.is_paused() {
            return None;
        }
        self.paused.store(false, Ordering::Relaxed);
        let kicks = self.entities().map(|entity| scheduler.resume(entity, now));
        Some(kicks.fold(CoreSet::EMPTY, CoreSet::union))
    }

    /// Wakes vCPU `vcpu` if the VM runs. Returns the cores to kick.
    #[must_use = "cores that are not kicked do not notice the wake-up"]
    pub fn wake<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &mut Scheduler<CORES, ENTITIES>,
        vcpu: usize,
        now: u64,
    ) -> CoreSet {
        match self.entity(vcpu) {
            Some(entity) if self.phase() == Phase::Running => scheduler.wake(entity, now),
            _ => CoreSet::EMPTY,
        }
    }

    /// Stops the VM: no vCPU of it is picked any more, and none enters the guest again. Returns the cores
    /// to kick; `None` if it neither runs nor could, so that nothing was changed.
    #[must_use = "a core that is not kicked stays in the guest"]
    pub fn stop<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &mut Scheduler<CORES, ENTITIES>,
    ) -> Option<CoreSet> {
        if !matches!(self.phase(), Phase::Running | Phase::Built) {
            return None;
        }
        self.set_phase(Phase::Stopping);
        let kicks = self.entities().map(|entity| scheduler.pause(entity));
        Some(kicks.fold(CoreSet::EMPTY, CoreSet::union))
    }

    /// Whether the calling core is to take the VM apart: `true` once after a stop, when no core runs a
    /// vCPU of it.
    #[must_use = "nobody else takes the VM apart then"]
    pub fn claim<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &Scheduler<CORES, ENTITIES>,
    ) -> bool {
        let runs = |entity| matches!(scheduler.state(entity), Some(State::Running(_)));
        if self.phase() != Phase::Stopping || self.entities().any(runs) {
            return false;
        }
        self.set_phase(Phase::Reaping);
        true
    }

    /// Gives the entity of vCPU `vcpu` back, after everything that is found by its number was taken
    /// away. Only for who has claimed the VM, or is building it.
    pub fn dismiss<const CORES: usize, const ENTITIES: usize>(
        &self,
        scheduler: &mut Scheduler<CORES, ENTITIES>,
        vcpu: usize,
    ) {
        let Some(entity) = self.entity(vcpu) else { return };
        if let Some(place) = self.entities.get(vcpu) {
            place.store(0, Ordering::Release);
        }
        // It does not run: the VM is not started, or was claimed when none of its vCPUs ran.
        let _ = scheduler.remove(entity);
    }

    /// Ends the VM for good. Only for who has claimed it, or could not build it.
    pub fn end(&self) {
        self.set_phase(Phase::Ended);
    }
}

/// What cores need to know about a vCPU that another core may be running, without its lock.
#[derive(Debug)]
pub struct VcpuStatus {
    /// Whether its VM has it turned on.
    on: AtomicBool,
    /// When to wake it if nothing else does (nanoseconds), or [`Self::NEVER`].
    wake_at: AtomicU64,
    /// Number of the core that watches `wake_at`.
    watcher: AtomicU8,
}

impl Default for VcpuStatus {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(not(loom))]
impl VcpuStatus {
    /// Off, no wake-up planned.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            wake_at: AtomicU64::new(Self::NEVER),
            watcher: AtomicU8::new(0),
        }
    }
}

#[cfg(loom)]
impl VcpuStatus {
    /// Off, no wake-up planned.
    #[must_use]
    pub fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            wake_at: AtomicU64::new(Self::NEVER),
            watcher: AtomicU8::new(0),
        }
    }
}

impl VcpuStatus {
    const NEVER: u64 = u64::MAX;

    /// Whether its VM has it turned on. A core that is to run a vCPU which is off blocks it instead: a
    /// wake-up that was on its way when the vCPU turned itself off must not run it.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Turns it on or off, with the vCPU's lock held: a core that leaves a vCPU which turned itself off
    /// must not overrule who turns it on again. Who turns it on wakes it after.
    pub fn set_on(&self, on: bool) {
        self.on.store(on, Ordering::Release);
    }

    /// Plans a wake-up at `deadline` (nanoseconds), watched by `core`; none if `None`.
    pub fn plan_wake(&self, core: CoreId, deadline: Option<u64>) {
        self.watcher.store(core.0, Ordering::Relaxed);
        self.wake_at.store(deadline.unwrap_or(Self::NEVER), Ordering::Release);
    }

    /// Takes the planned wake-up back.
    pub fn cancel_wake(&self) {
        self.wake_at.store(Self::NEVER, Ordering::Release);
    }

    /// The wake-up that `core` has to see to, in nanoseconds.
    #[must_use]
    pub fn wake_at(&self, core: CoreId) -> Option<u64> {
        let at = self.wake_at.load(Ordering::Acquire);
        (at != Self::NEVER && self.watcher.load(Ordering::Relaxed) == core.0).then_some(at)
    }

    /// Takes the planned wake-up of `core` if its time has come; `true` for the one who is to wake the
    /// vCPU. To be called with the scheduler's lock held until the wake-up, so that the entity is still the
    /// one that planned it.
    #[must_use = "nobody else wakes the vCPU then"]
    pub fn take_due(&self, core: CoreId, now: u64) -> bool {
        let Some(at) = self.wake_at(core).filter(|&at| at <= now) else { return false };
        // Another core may have run the vCPU meanwhile, and planned anew.
        self.wake_at.compare_exchange(at, Self::NEVER, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}
