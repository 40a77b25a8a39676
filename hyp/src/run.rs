//! The run loop of a core: pick a vCPU, run it, see to what its exits ask for.
//!
//! There is one loop for both kinds of vCPU. What differs is behind [`Vcpu`].

use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use crate::arch::smc::{self, rmi_calls};
use crate::arch::{cpu, el1, timer, tlb, traps, vgic_hw};
use crate::console;
use crate::entropy::MachineEntropy;
use crate::irq::{self, Completion, Source};
use crate::monitor;
use crate::sync::{Lock, VmLockGuard};
use crate::vm::disks::VmDisks;
use crate::vm::output::{self, VmConsole};
use crate::vm::peers::VmPeers;
use crate::vm::stats::Life;
use crate::vm::vcpu::{self, Kind, MAX_ENTITIES, Vcpu, VcpuSlot};
use crate::vm::watchdog::{self, VmWatchdog};
use crate::vm::{Reason, Vm, audit, lifecycle, passthrough, selftest};
use core::cell::Cell;
use core::sync::atomic::Ordering;
use mm::Ipa;
use mm::stage2::{VmidAllocator, VmidBits};
use sched::lifecycle::Phase;
use sched::{CoreId, CoreSet, EntityId, Next, Scheduler, Stop};
use spin::Once;
use vmm_services::vm::Context;
use vmm_services::{Exit, GuestMemory, MemoryFault, Resume, VcpuId, VcpuSet, VmServices, layout};

/// Who runs next, on all cores.
pub static SCHEDULER: Lock<Scheduler<MAX_CORES, MAX_ENTITIES>> = Lock::new(Scheduler::new());

static VMIDS: Once<Lock<VmidAllocator<MAX_CORES>>> = Once::new();

/// Prepares what the run loops of all cores share.
pub fn init(bits: VmidBits) {
    VMIDS.call_once(|| Lock::new(VmidAllocator::new(bits)));
}

/// What to do after an exit has been dealt with.
enum Flow {
    /// Enter the guest again.
    Again,
    /// Give the core up.
    Leave(Stop),
}

/// Tells the scheduler which cores are going to enter the run loop, before VMs are started.
pub fn expect_cores(mask: u32) {
    let mut scheduler = SCHEDULER.lock();
    CoreSet::from_bits(mask).iter().for_each(|core| scheduler.bring_up(core));
}

/// Enters the run loop of this core.
pub fn enter() -> ! {
    let core = CoreId(core_index() as u8);
    // Before stage 2 is on, and nothing of what EL1 of this core has been before is in the TLB.
    tlb::unload();
    vgic_hw::clear();
    crate::vm::build::load_translation_control();
    el1::reset_translation();
    traps::configure();
    cpu::isb();
    tlb::invalidate_guests_here();
    smc::begin_counting();
    audit::begin_core();
    loop {
        irq::poll(|source| take_host_interrupt(source).1);
        monitor::work();
        // Before the life cycle, which goes on with what these two stop.
        watchdog::work();
        let more_work = lifecycle::work();
        audit::check_core();
        selftest::work();
        output::work();
        kick(vcpu::wake_due(timer::now_ns()));
        smc::scheduling_point();
        let pick = SCHEDULER.lock().pick(core, timer::now_ns());
        kick(pick.kicks);
        match pick.next {
            Next::Run { entity, deadline } => {
                let back = more_work.then(|| timer::now_ns() + lifecycle::WORK_PERIOD_NS);
                arm([deadline, back].into_iter().flatten().min());
                let why = run(entity);
                SCHEDULER.lock().stop(core, timer::now_ns(), why);
            }
            Next::Idle { .. } if more_work => {}
            Next::Idle { deadline } => {
                arm(deadline);
                cpu::wait_for_interrupt();
            }
        }
    }
}

/// Arms this core's timer for the scheduler's deadline or the next thing that is planned.
fn arm(deadline: Option<u64>) {
    match [deadline, vcpu::next_wake(), output::next_check(), watchdog::next_check()]
        .into_iter()
        .flatten()
        .min()
    {
        Some(at) => timer::arm(at),
        None => timer::disarm(),
    }
}

/// Kicks the given cores; `true` if this core is one of them, which then has to pick anew.
pub fn kick(cores: CoreSet) -> bool {
    let this = CoreId(core_index() as u8);
    for core in cores.without(this).iter() {
        irq::kick(core.index());
    }
    cores.contains(this)
}

/// Makes a vCPU runnable; `true` if this core has to pick anew.
fn wake(vm: &Vm, vcpu: VcpuId) -> bool {
    let cores = vm.life.wake(&mut SCHEDULER.lock(), vcpu.index(), timer::now_ns());
    kick(cores)
}

/// Wakes the vCPUs in `set` that are on; `true` if this core has to pick anew.
#[inline]
pub fn wake_set(vm: &Vm, set: VcpuSet) -> bool {
    !set.is_empty() && wake_each(vm, set)
}

fn wake_each(vm: &Vm, set: VcpuSet) -> bool {
    let mut pick_anew = false;
    for vcpu in set.iter() {
        let slot = vm.entity(vcpu).and_then(vcpu::slot);
        if slot.is_some_and(|slot| slot.status.is_on()) {
            pick_anew |= wake(vm, vcpu);
        }
    }
    pick_anew
}

/// Tells `vm` that another VM has something for its devices, and wakes a vCPU of it to see to that;
/// `true` if this core has to pick anew.
pub fn call_on(vm: &Vm) -> bool {
    vm.set_called();
    let is_on = |vcpu: &VcpuId| {
        vm.entity(*vcpu).and_then(vcpu::slot).is_some_and(|slot| slot.status.is_on())
    };
    // Without one that is on, the first that comes on sees the note.
    vm.vcpus().find(is_on).is_some_and(|vcpu| wake(vm, vcpu))
}

/// `VTTBR_EL2` for `vm` on this core, with a VMID that is valid now.
#[must_use]
pub fn vttbr(vm: &Vm) -> u64 {
    let Some(vmids) = VMIDS.get() else { return tlb::no_tables() };
    let mut vmids = vmids.lock();
    let entry = vmids.enter(core_index(), &vm.vmid);
    if entry.flush {
        tlb::invalidate_all_guests();
    }
    drop(vmids);
    match &*vm.space.lock() {
        crate::vm::Space::Normal(memory) => memory.vttbr(entry.vmid),
        _ => tlb::no_tables(),
    }
}

/// Runs a vCPU until it has to give up the core.
fn run(entity: EntityId) -> Stop {
    let Some(slot) = vcpu::slot(entity) else { return Stop::Exited };
    let mut state = slot.state.lock();
    let Some(vcpu) = state.as_mut() else { return Stop::Exited };
    if !slot.status.is_on() {
        return Stop::Blocked;
    }
    slot.status.cancel_wake();
    let (start, calls) = (timer::now_ticks(), rmi_calls());
    let guest_before = vcpu.vm.stats.guest_ticks_of(vcpu.id);
    vcpu.load();
    let stop = run_loaded(vcpu, slot);
    vcpu.unload();
    let total = timer::now_ticks().wrapping_sub(start);
    let stats = &vcpu.vm.stats;
    stats.count_rmi_calls(Life::Run, calls);
    let guest = stats.guest_ticks_of(vcpu.id).wrapping_sub(guest_before);
    stats.host_ticks.fetch_add(total.saturating_sub(guest), Ordering::Relaxed);
    stop
}

fn run_loaded(vcpu: &mut Vcpu, slot: &VcpuSlot) -> Stop {
    let vm = vcpu.vm;
    let pick_anew = Cell::new(false);
    let outside = &mut Outside {
        context: Context {
            memory: &VmView(vm),
            console: &mut VmConsole(vm),
            entropy: &MachineEntropy,
            disks: &VmDisks(vm),
            peers: &mut VmPeers::new(vm, &pick_anew),
            countdown: &VmWatchdog(vm),
        },
        pick_anew: &pick_anew,
    };
    loop {
        if vm.phase() != Phase::Running {
            return Stop::Exited;
        }
        if let Flow::Leave(stop) = step(vcpu, slot, outside) {
            return stop;
        }
    }
}

/// What the services of a VM reach outside of themselves while a vCPU of it runs.
struct Outside<'a> {
    context: Context<'a>,
    /// Whether something that they did there wants this core to pick anew.
    pick_anew: &'a Cell<bool>,
}

/// One entry, exit, and answer.
#[inline(always)]
fn step(vcpu: &mut Vcpu, slot: &VcpuSlot, outside: &mut Outside<'_>) -> Flow {
    let vm = vcpu.vm;
    let id = vcpu.id;
    if !vcpu.is_ready()
        && let Some(flow) = prepare(vcpu, outside)
    {
        return flow;
    }
    let exit = vcpu.enter();
    let Some(exit) = &exit else { return Flow::Again };
    let mut services = vm.services.lock();
    let Some(services_of_vm) = services.as_mut() else { return Flow::Leave(Stop::Exited) };
    let mut woken = services_of_vm.vgic_mut().sync(id, vcpu.image());
    vcpu.report_timers(services_of_vm.vgic_mut());
    if matches!(exit, Exit::Interrupt) {
        let pick_anew = take_interrupts(id, services_of_vm);
        return go_on(vcpu, services, woken, pick_anew);
    }
    let response = services_of_vm.handle(id, exit, vcpu.registers(), &mut outside.context);
    let pick_anew = outside.pick_anew.take();
    woken.extend(response.kick);
    vcpu.resume(&response.resume);
    if response.resume.goes_on() {
        return go_on(vcpu, services, woken, pick_anew);
    }
    drop(services);
    let pick_anew = pick_anew | wake_set(vm, woken);
    match answer(vcpu, slot, &response.resume) {
        Flow::Again if pick_anew => Flow::Leave(Stop::Preempted),
        flow => flow,
    }
}

/// The end of a step after which the vCPU enters its guest again, unless this core has to pick anew.
/// While the services are at hand, what the entry needs of them is done, if there is not more to do.
#[inline(always)]
fn go_on(
    vcpu: &mut Vcpu,
    mut services: VmLockGuard<'_, Option<VmServices>>,
    woken: VcpuSet,
    pick_anew: bool,
) -> Flow {
    let vm = vcpu.vm;
    if !pick_anew
        && let Some(services) = services.as_mut()
        && !vm.is_called()
        && !services.has_work()
    {
        vcpu.make_ready(services.vgic_mut());
    }
    drop(services);
    if pick_anew | wake_set(vm, woken) { Flow::Leave(Stop::Preempted) } else { Flow::Again }
}

/// Prepares an entry for which not everything is ready: goes on with a RIPAS change, looks at what other
/// VMs have done to the devices of this one, lets a device that has work do a part of it, or else fills the
/// list registers. `Some` if the vCPU is not to enter its guest now: there may be more to do, and the core
/// looks after itself in between.
#[inline(never)]
fn prepare(vcpu: &mut Vcpu, outside: &mut Outside<'_>) -> Option<Flow> {
    let vm = vcpu.vm;
    let id = vcpu.id;
    if matches!(&vcpu.kind, Kind::Rec(rec) if rec.is_changing_ripas())
        && let Flow::Leave(stop) = change_ripas(vcpu)
    {
        return Some(Flow::Leave(stop));
    }
    let mut services = vm.services.lock();
    let Some(services_of_vm) = services.as_mut() else { return Some(Flow::Leave(Stop::Exited)) };
    let mut woken = VcpuSet::EMPTY;
    if vm.take_called() {
        woken = services_of_vm.peers_called(outside.context.peers);
        woken.extend(passthrough::deliver(vm, services_of_vm));
    }
    if !services_of_vm.has_work() {
        vcpu.make_ready(services_of_vm.vgic_mut());
        drop(services);
        woken.remove(id);
        return wake_set(vm, woken).then_some(Flow::Leave(Stop::Preempted));
    }
    woken.extend(services_of_vm.work(&mut outside.context));
    woken.remove(id);
    let mut pick_anew = outside.pick_anew.take() | take_interrupts(id, services_of_vm);
    drop(services);
    pick_anew |= wake_set(vm, woken);
    Some(if pick_anew { Flow::Leave(Stop::Preempted) } else { Flow::Again })
}

/// Takes the physical interrupts that made the guest exit; `true` if the core has to pick anew.
fn take_interrupts(id: VcpuId, services: &mut VmServices) -> bool {
    let mut pick_anew = false;
    irq::poll(|source| {
        let timer = match source {
            Source::VirtualTimer => layout::VTIMER_INTID,
            Source::PhysicalTimer => layout::PTIMER_INTID,
            Source::Kick | Source::HypTimer => {
                pick_anew = true;
                return Completion::Deactivate;
            }
            source => {
                let (pick, completion) = take_host_interrupt(source);
                pick_anew |= pick;
                return completion;
            }
        };
        if !services.vgic().is_tied(timer) {
            // The timers of a REC are the RMM's, which has put ours back: nobody would deactivate this.
            timer::stop_guest_timers();
            return Completion::Deactivate;
        }
        // Stays active until the guest deactivates it through its list register.
        let _ = services.vgic_mut().raise_hardware(id, timer);
        Completion::LeaveActive
    });
    pick_anew
}

/// Deals with an interrupt that does not concern the guest that runs here in particular: the hypervisor's
/// own, or that of a device that a VM has. `true` if there is work for the head of the run loop.
fn take_host_interrupt(source: Source) -> (bool, Completion) {
    match source {
        Source::Spi(intid) => match passthrough::take_interrupt(intid) {
            Some(pick_anew) => (pick_anew, Completion::LeaveActive),
            None if console::take_interrupt(intid) => (true, Completion::Deactivate),
            None => {
                // Its line may stay high.
                let disabled = irq::enable_spi(intid, false);
                log::warn!("interrupt {intid} is nobody's, turned off: {disabled:?}");
                (false, Completion::Deactivate)
            }
        },
        _ => (false, Completion::Deactivate),
    }
}

/// Carries out what the services decided, as far as it concerns more than the registers of the vCPU.
#[inline(never)]
fn answer(vcpu: &mut Vcpu, slot: &VcpuSlot, resume: &Resume) -> Flow {
    let vm = vcpu.vm;
    match *resume {
        Resume::Block { deadline } => block(vcpu, slot, deadline),
        Resume::Suspend => block(vcpu, slot, None),
        Resume::PowerDown { entry, context } => {
            if let Kind::Normal(vcpu) = &mut vcpu.kind {
                vcpu.power_down(entry.get(), context);
            }
            block(vcpu, slot, None)
        }
        Resume::Yield => Flow::Leave(Stop::Yield),
        Resume::CpuOn { target, entry, context } => {
            vcpu.turn_on(target, entry, context);
            selftest::fault(vm);
            if wake(vm, target) { Flow::Leave(Stop::Preempted) } else { Flow::Again }
        }
        Resume::CpuOff => {
            slot.status.set_on(false);
            // Another VM may have counted on this vCPU.
            if vm.is_called() {
                let _ = call_on(vm);
            }
            Flow::Leave(Stop::Blocked)
        }
        Resume::PsciComplete { target, verdict, cpu_on } => {
            let Kind::Rec(rec) = &mut vcpu.kind else { return Flow::Again };
            match rec.complete_psci(vm, target, verdict) {
                // Only now: before this the RMM would refuse to enter the target.
                Ok(()) if cpu_on && cpu_on_completed(vm, target) => {
                    vcpu.turn_on(target, Ipa::new(0), 0);
                    if wake(vm, target) { Flow::Leave(Stop::Preempted) } else { Flow::Again }
                }
                Ok(()) => Flow::Again,
                Err(error) => fail(vm, Reason::new(format_args!("{error}"))),
            }
        }
        Resume::SystemOff => end_unless_failed(vm, lifecycle::turn_off),
        Resume::SystemReset => {
            end_unless_failed(vm, |vm| lifecycle::reset(vm, "the guest asked for a reset"))
        }
        Resume::Stop(ref reason) => fail(vm, lifecycle::explain(vm, reason)),
        Resume::RipasAccept => change_ripas(vcpu),
        _ => Flow::Again,
    }
}

/// Goes on with the RIPAS change that a REC has asked for. Until that is done, the core is given up
/// after each part.
fn change_ripas(vcpu: &mut Vcpu) -> Flow {
    let vm = vcpu.vm;
    let Kind::Rec(rec) = &mut vcpu.kind else { return Flow::Again };
    match rec.change_ripas(vm) {
        Ok(true) => Flow::Again,
        Ok(false) => Flow::Leave(Stop::Preempted),
        Err(error) => fail(vm, Reason::new(format_args!("{error}"))),
    }
}

/// Does what the guest has asked for, which ends this life of it, unless it has reported a failure before:
/// then its VM ends as failed.
fn end_unless_failed(vm: &'static Vm, end: impl FnOnce(&'static Vm)) -> Flow {
    let failure = vm.services.lock().as_ref().and_then(VmServices::reported_failure);
    if let Some(code) = failure {
        return fail(vm, Reason::new(format_args!("the guest reported failure {code}")));
    }
    end(vm);
    Flow::Leave(Stop::Exited)
}

fn fail(vm: &'static Vm, reason: Reason) -> Flow {
    lifecycle::fail(vm, reason);
    Flow::Leave(Stop::Exited)
}

/// Whether REC `target`, for which the RMM has carried out a CPU_ON, is to be started.
fn cpu_on_completed(vm: &Vm, target: VcpuId) -> bool {
    vm.services.lock().as_mut().is_some_and(|services| services.cpu_on_completed(target))
}

/// The vCPU waits for an interrupt, its timer, or `deadline` (virtual count).
fn block(vcpu: &Vcpu, slot: &VcpuSlot, deadline: Option<u64>) -> Flow {
    let (pending, active) = {
        let services = vcpu.vm.services.lock();
        let Some(services) = services.as_ref() else { return Flow::Leave(Stop::Exited) };
        let vgic = services.vgic();
        (vgic.has_pending(vcpu.id) || services.has_work(), vgic.hardware_active(vcpu.id))
    };
    let deadline = deadline.map(|count| vcpu.virtual_time(count));
    let wake_at = [deadline, vcpu.timer_deadline(active)].into_iter().flatten().min();
    if pending || wake_at.is_some_and(|at| at <= timer::now_ns()) {
        return Flow::Again;
    }
    slot.status.plan_wake(CoreId(core_index() as u8), wake_at);
    Flow::Leave(Stop::Blocked)
}

/// The memory of a VM as its services see it. Takes the lock only when it is used.
struct VmView(&'static Vm);

impl GuestMemory for VmView {
    fn read(&self, ipa: mm::Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        match &mut *self.0.space.lock() {
            crate::vm::Space::Normal(memory) => memory.read(&self.0.vmid, ipa, buf),
            crate::vm::Space::Realm(realm) => realm.read(ipa, buf),
            _ => Err(MemoryFault { ipa }),
        }
    }

    fn write(&self, ipa: mm::Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        match &mut *self.0.space.lock() {
            crate::vm::Space::Normal(memory) => memory.write(&self.0.vmid, ipa, data),
            crate::vm::Space::Realm(realm) => realm.write(ipa, data),
            _ => Err(MemoryFault { ipa }),
        }
    }
}
