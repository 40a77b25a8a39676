//! Cores that run vCPUs by the protocol of the hypervisor's run loop.
//!
//! The scheduler, the life cycle and the status of vCPUs are the real ones. What is modelled is around them:
//! guests, which do what a script says; interrupt lines; and the steps of the run loop, in the order of
//! `hyp/src/run.rs`, `hyp/src/vm/lifecycle.rs` and `hyp/src/vm/vcpu.rs`.

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use sched::lifecycle::{Lifecycle, Phase, VcpuStatus};
use sched::{CoreId, CoreSet, EntityId, Next, Params, Scheduler, Stop};

/// Cores of the machine.
pub const CORES: usize = 2;
/// Entities that the scheduler can tell apart.
pub const ENTITIES: usize = 3;
/// Most vCPUs of a VM.
pub const VCPUS: usize = 2;
/// Time at which everything happens: what is due is due.
const NOW: u64 = 1;

/// What a guest does from one entry to the next exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// PSCI SYSTEM_OFF.
    SystemOff,
    /// Executes WFI until an interrupt has been taken.
    Wait,
    /// WFI with a timer that is due as soon as the core that watches it looks.
    Sleep,
    /// Sends an interrupt to this vCPU.
    Interrupt(usize),
    /// PSCI CPU_ON of this vCPU, tried until it is off.
    CpuOn(usize),
    /// PSCI CPU_OFF.
    CpuOff,
}

/// A vCPU: it is in its slot, or with the core that takes its VM apart.
#[derive(Debug)]
struct Vcpu {
    vm: usize,
    id: usize,
    /// What is left of the script; at its end the guest computes until an interrupt comes.
    script: VecDeque<Act>,
}

/// Place of a vCPU, by the number of its entity.
struct Slot {
    state: Mutex<Option<Vcpu>>,
    status: VcpuStatus,
}

/// What the device models of a VM know.
#[derive(Debug, Default)]
struct Services {
    on: [bool; VCPUS],
    pending: [usize; VCPUS],
    /// Interrupts that the guest has taken.
    taken: [usize; VCPUS],
}

/// A VM.
struct Vm {
    life: Lifecycle<VCPUS>,
    services: Mutex<Services>,
    /// The guests of each time that it is built, the next one last.
    rounds: Mutex<Vec<Vec<Vec<Act>>>>,
    /// Stops that were the first of a round.
    stops: AtomicUsize,
    built: AtomicUsize,
    reaped: AtomicUsize,
    /// Held by the core that takes a step of taking the VM apart or building it.
    work: Mutex<()>,
    /// vCPUs inside the guest.
    inside: AtomicUsize,
}

/// An interrupt line of a core: it stays pending until it is taken.
struct Line {
    pending: Mutex<bool>,
    raised: Condvar,
}

/// Cores, scheduler and VMs.
pub struct Machine {
    scheduler: Mutex<Scheduler<CORES, ENTITIES>>,
    slots: [Slot; ENTITIES],
    lines: [Line; CORES],
    vms: Vec<Vm>,
    alive: AtomicUsize,
    done: AtomicBool,
}

impl Machine {
    /// A machine with VMs that are not built yet. For each VM and each time that it is to be built: what its
    /// vCPUs do.
    #[must_use]
    pub fn new(vms: &[&[&[&[Act]]]]) -> Self {
        let vm = |rounds: &&[&[&[Act]]]| {
            let round = |vcpus: &&[&[Act]]| vcpus.iter().map(|script| script.to_vec()).collect();
            Vm {
                life: Lifecycle::new(),
                services: Mutex::new(Services::default()),
                rounds: Mutex::new(rounds.iter().rev().map(round).collect()),
                stops: AtomicUsize::new(0),
                built: AtomicUsize::new(0),
                reaped: AtomicUsize::new(0),
                work: Mutex::new(()),
                inside: AtomicUsize::new(0),
            }
        };
        Self {
            scheduler: Mutex::new(Scheduler::new()),
            slots: core::array::from_fn(|_| Slot {
                state: Mutex::new(None),
                status: VcpuStatus::new(),
            }),
            lines: core::array::from_fn(|_| Line {
                pending: Mutex::new(false),
                raised: Condvar::new(),
            }),
            alive: AtomicUsize::new(vms.len()),
            vms: vms.iter().map(vm).collect(),
            done: AtomicBool::new(false),
        }
    }

    /// Builds and starts a VM, as `build::build` and `build::start` do.
    pub fn build(&self, vm: usize) {
        let this = &self.vms[vm];
        let round = this.rounds.lock().unwrap().pop().expect("a round");
        *this.services.lock().unwrap() = Services::default();
        this.built.fetch_add(1, Ordering::Relaxed);
        for (id, script) in round.into_iter().enumerate() {
            let params =
                Params { priority: 1, slice_ns: 1_000_000, budget: None, affinity: CoreSet::ALL };
            let entity = self.scheduler.lock().unwrap().add(params, NOW).expect("a number");
            this.life.enrol(id, entity);
            let vcpu = Vcpu { vm, id, script: script.into() };
            let before = self.slots[entity.index()].state.lock().unwrap().replace(vcpu);
            assert!(before.is_none(), "the slot of {before:?} is overwritten");
        }
        this.services.lock().unwrap().on[0] = true;
        self.slot(vm, 0).expect("a boot vCPU").status.set_on(true);
        this.life.ready();
        // None: somebody has stopped it in between.
        let kicks = this.life.start(&mut self.scheduler.lock().unwrap(), 0, NOW);
        self.kick(kicks.unwrap_or_default());
    }

    /// Stops a VM from anywhere, as `lifecycle::stop` does.
    pub fn stop(&self, vm: usize) {
        let kicks = self.vms[vm].life.stop(&mut self.scheduler.lock().unwrap());
        let Some(kicks) = kicks else { return };
        self.vms[vm].stops.fetch_add(1, Ordering::Relaxed);
        self.kick(kicks);
    }

    /// Suspends a VM and lets it go on, as an operator does.
    pub fn pause_and_resume(&self, vm: usize) {
        let life = &self.vms[vm].life;
        let kicks = life.pause(&mut self.scheduler.lock().unwrap());
        self.kick(kicks.unwrap_or_default());
        let kicks = life.resume(&mut self.scheduler.lock().unwrap(), NOW);
        self.kick(kicks.unwrap_or_default());
    }

    /// Posts an interrupt to a vCPU from outside its VM.
    pub fn interrupt(&self, vm: usize, vcpu: usize) {
        self.vms[vm].services.lock().unwrap().pending[vcpu] += 1;
        self.wake_if_on(vm, vcpu);
    }

    /// The run loop of a core, as `run::enter`, until all VMs have ended.
    pub fn run_core(&self, core: usize) {
        loop {
            self.lines[core].take();
            let more_work = self.work();
            if self.done.load(Ordering::Acquire) {
                return;
            }
            self.wake_due(core);
            let pick = self.scheduler.lock().unwrap().pick(CoreId(core as u8), NOW);
            self.kick(pick.kicks);
            match pick.next {
                Next::Run { entity, .. } => {
                    let why = self.run(core, entity);
                    self.scheduler.lock().unwrap().stop(CoreId(core as u8), NOW, why);
                }
                // A wake-up that this core watches is due at once: its timer fires.
                Next::Idle { .. } if self.watches(core) => {}
                Next::Idle { .. } if more_work => loom::thread::yield_now(),
                Next::Idle { .. } => self.lines[core].wait(),
            }
        }
    }

    /// What must hold when all cores have left their run loops.
    pub fn settle(&self) {
        let scheduler = self.scheduler.lock().unwrap();
        for vm in &self.vms {
            assert_eq!(vm.life.phase(), Phase::Ended);
            let built = vm.built.load(Ordering::Relaxed);
            assert_eq!(vm.reaped.load(Ordering::Relaxed), built, "taken apart once per building");
            assert_eq!(vm.stops.load(Ordering::Relaxed), built, "stopped once per building");
            assert!((0..VCPUS).all(|vcpu| vm.life.entity(vcpu).is_none()));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            assert!(slot.state.lock().unwrap().is_none(), "a vCPU is left over");
            assert_eq!(scheduler.state(EntityId(index as u16)), None, "an entity is left over");
        }
    }

    /// Interrupts that the guest has taken on `vcpu`.
    pub fn taken(&self, vm: usize, vcpu: usize) -> usize {
        self.vms[vm].services.lock().unwrap().taken[vcpu]
    }

    fn slot(&self, vm: usize, vcpu: usize) -> Option<&Slot> {
        self.slots.get(self.vms[vm].life.entity(vcpu)?.index())
    }

    fn kick(&self, cores: CoreSet) {
        for core in cores.iter() {
            self.lines[core.index()].raise();
        }
    }

    fn wake(&self, vm: usize, vcpu: usize) {
        let kicks = self.vms[vm].life.wake(&mut self.scheduler.lock().unwrap(), vcpu, NOW);
        self.kick(kicks);
    }

    fn wake_if_on(&self, vm: usize, vcpu: usize) {
        if self.slot(vm, vcpu).is_some_and(|slot| slot.status.is_on()) {
            self.wake(vm, vcpu);
        }
    }

    fn watches(&self, core: usize) -> bool {
        self.slots.iter().any(|slot| slot.status.wake_at(CoreId(core as u8)).is_some())
    }

    /// As `vcpu::wake_due`.
    fn wake_due(&self, core: usize) {
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.status.wake_at(CoreId(core as u8)).is_none() {
                continue;
            }
            let mut scheduler = self.scheduler.lock().unwrap();
            if slot.status.take_due(CoreId(core as u8), NOW) {
                let kicks = scheduler.wake(EntityId(index as u16), NOW);
                drop(scheduler);
                self.kick(kicks);
            }
        }
    }

    /// As `lifecycle::work`: one step for one VM, and whether there is more to do.
    fn work(&self) -> bool {
        let mut more = false;
        for (index, vm) in self.vms.iter().enumerate() {
            if !matches!(vm.life.phase(), Phase::Stopping | Phase::Reaping) {
                continue;
            }
            let Ok(_guard) = vm.work.try_lock() else {
                more = true;
                continue;
            };
            match vm.life.phase() {
                Phase::Stopping if vm.life.claim(&self.scheduler.lock().unwrap()) => {
                    self.take_apart(index);
                }
                Phase::Reaping => self.finish(index),
                _ => continue,
            }
            return true;
        }
        more
    }

    /// As `lifecycle::take_apart`.
    fn take_apart(&self, vm: usize) {
        let this = &self.vms[vm];
        assert_eq!(this.inside.load(Ordering::Acquire), 0, "a vCPU is inside");
        for id in 0..VCPUS {
            let Some(slot) = self.slot(vm, id) else { continue };
            let mut state = slot.state.lock().unwrap();
            slot.status.set_on(false);
            slot.status.cancel_wake();
            let vcpu = state.take();
            drop(state);
            let owner = vcpu.map(|vcpu| (vcpu.vm, vcpu.id));
            assert_eq!(owner, Some((vm, id)), "a vCPU of somebody else is destroyed");
            this.life.dismiss(&mut self.scheduler.lock().unwrap(), id);
        }
        this.reaped.fetch_add(1, Ordering::Relaxed);
    }

    /// The last step, as in `lifecycle::step`: the VM is built again, or it has ended.
    fn finish(&self, vm: usize) {
        let this = &self.vms[vm];
        let again = !this.rounds.lock().unwrap().is_empty();
        if again {
            return self.build(vm);
        }
        this.life.end();
        if self.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The machine powers off.
            self.done.store(true, Ordering::Release);
            self.kick(CoreSet::first(CORES));
        }
    }

    /// As `run::run`.
    fn run(&self, core: usize, entity: EntityId) -> Stop {
        let slot = &self.slots[entity.index()];
        let mut state = slot.state.lock().unwrap();
        let Some(vcpu) = state.as_mut() else { return Stop::Exited };
        if !slot.status.is_on() {
            return Stop::Blocked;
        }
        slot.status.cancel_wake();
        loop {
            if self.vms[vcpu.vm].life.phase() != Phase::Running {
                return Stop::Exited;
            }
            if let Some(stop) = self.step(core, vcpu, slot) {
                return stop;
            }
        }
    }

    /// One entry, exit and answer, as `run::step`; `None` to enter again.
    fn step(&self, core: usize, vcpu: &mut Vcpu, slot: &Slot) -> Option<Stop> {
        let vm = &self.vms[vcpu.vm];
        {
            let mut services = vm.services.lock().unwrap();
            assert!(services.on[vcpu.id], "a vCPU that is off has run");
            services.taken[vcpu.id] += core::mem::take(&mut services.pending[vcpu.id]);
        }
        vm.inside.fetch_add(1, Ordering::AcqRel);
        let act = vcpu.script.pop_front();
        if act.is_none() {
            self.lines[core].wait();
        }
        vm.inside.fetch_sub(1, Ordering::AcqRel);
        match act {
            // An interrupt, and the only one that there is: a kick.
            None => {
                self.lines[core].take();
                Some(Stop::Preempted)
            }
            Some(Act::SystemOff) => {
                self.stop(vcpu.vm);
                Some(Stop::Exited)
            }
            Some(wait @ (Act::Wait | Act::Sleep)) => {
                let services = vm.services.lock().unwrap();
                if wait == Act::Wait {
                    if services.taken[vcpu.id] > 0 {
                        return None;
                    }
                    vcpu.script.push_front(wait);
                }
                if services.pending[vcpu.id] > 0 {
                    return None;
                }
                drop(services);
                let deadline = (wait == Act::Sleep).then_some(NOW);
                slot.status.plan_wake(CoreId(core as u8), deadline);
                Some(Stop::Blocked)
            }
            Some(Act::Interrupt(target)) => {
                self.interrupt(vcpu.vm, target);
                None
            }
            Some(Act::CpuOff) => {
                vm.services.lock().unwrap().on[vcpu.id] = false;
                slot.status.set_on(false);
                Some(Stop::Blocked)
            }
            Some(Act::CpuOn(target)) => {
                let mut services = vm.services.lock().unwrap();
                let was_on = core::mem::replace(&mut services.on[target], true);
                drop(services);
                if was_on {
                    // ALREADY_ON: the guest tries again.
                    vcpu.script.push_front(Act::CpuOn(target));
                    loom::thread::yield_now();
                    return None;
                }
                let sibling = self.slot(vcpu.vm, target).expect("a sibling");
                let state = sibling.state.lock().unwrap();
                sibling.status.set_on(true);
                drop(state);
                self.wake(vcpu.vm, target);
                None
            }
        }
    }
}

impl Line {
    fn raise(&self) {
        *self.pending.lock().unwrap() = true;
        self.raised.notify_one();
    }

    /// Acknowledges the interrupt, if there is one.
    fn take(&self) {
        *self.pending.lock().unwrap() = false;
    }

    /// WFI, or a guest that computes: until an interrupt is pending.
    fn wait(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.raised.wait(pending).unwrap();
        }
    }
}
