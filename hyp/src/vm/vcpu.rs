//! vCPUs of either kind, by the number that the scheduler knows them by.

use super::normal::NormalVcpu;
use super::rec::RecVcpu;
use super::{Vm, lifecycle, stats::Cause};
use crate::arch::guest::Trap;
use crate::arch::late::LateArray;
use crate::arch::percpu::core_index;
use crate::arch::{el1, fp, mitigation, serror, timer, tlb};
use crate::irq;
use crate::monitor::trace;
use crate::run::SCHEDULER;
use crate::sync::VmLock;
use core::sync::atomic::{AtomicUsize, Ordering};
use mm::Ipa;
use sched::lifecycle::VcpuStatus;
use sched::{CoreId, CoreSet, EntityId};
use vmm_services::VcpuId;
use vmm_services::exit::{Exit, FatalCause, Registers, Resume, StopReason};
use vmm_services::manifest;
use vmm_services::vgic::{LrImage, Vgic};

/// Most vCPUs of all VMs together.
pub const MAX_ENTITIES: usize = manifest::MAX_VCPUS_IN_ALL;

static SLOTS: LateArray<VcpuSlot, MAX_ENTITIES> = LateArray::new();

/// Makes room for vCPUs, once at boot.
pub fn init() {
    SLOTS.init(|_| VcpuSlot::new());
}

/// Place of one vCPU.
pub struct VcpuSlot {
    /// The vCPU; locked by the core that runs it for as long as it does.
    pub state: VmLock<Option<Vcpu>>,
    /// What others need to know of it meanwhile.
    pub status: VcpuStatus,
}

impl VcpuSlot {
    const fn new() -> Self {
        Self { state: VmLock::new(None), status: VcpuStatus::new() }
    }

    /// Takes the vCPU out, for good.
    pub fn empty(&self) -> Option<Vcpu> {
        let mut state = self.state.lock();
        self.status.set_on(false);
        self.status.cancel_wake();
        state.take()
    }
}

/// Slots from this index on have never held a vCPU.
static USED: AtomicUsize = AtomicUsize::new(0);

/// The slots that have ever held a vCPU. Cores look at them again and again.
fn used() -> impl Iterator<Item = &'static VcpuSlot> {
    SLOTS.iter().take(USED.load(Ordering::Acquire))
}

/// Puts a vCPU into the slot of `entity`; `None` if there is none.
pub fn fill(entity: EntityId, vcpu: Vcpu) -> Option<()> {
    *slot(entity)?.state.lock() = Some(vcpu);
    USED.fetch_max(entity.index() + 1, Ordering::AcqRel);
    Some(())
}

/// The slot of `entity`.
#[must_use]
pub fn slot(entity: EntityId) -> Option<&'static VcpuSlot> {
    SLOTS.get(entity.index())
}

/// Whether no slot holds a vCPU or plans a wake-up.
#[must_use]
pub fn all_gone() -> bool {
    let core = this_core();
    let idle = |slot: &VcpuSlot| slot.state.lock().is_none() && slot.status.wake_at(core).is_none();
    SLOTS.iter().all(idle)
}

/// The next wake-up that this core has to see to, in nanoseconds.
#[must_use]
pub fn next_wake() -> Option<u64> {
    let core = this_core();
    used().filter_map(|slot| slot.status.wake_at(core)).min()
}

/// Wakes the vCPUs whose wake-up time has come, as far as this core watches them. Returns the cores
/// to kick.
pub fn wake_due(now: u64) -> CoreSet {
    let core = this_core();
    let mut kicks = CoreSet::EMPTY;
    for (index, slot) in used().enumerate() {
        if slot.status.wake_at(core).is_none_or(|at| at > now) {
            continue;
        }
        let mut scheduler = SCHEDULER.lock();
        if slot.status.take_due(core, now) {
            kicks = kicks.union(scheduler.wake(EntityId(index as u16), now));
        }
    }
    kicks
}

/// Wakes the vCPUs whose wake-up `core` watches, which it will not do any more, before their time: what
/// waits for an interrupt may always find none. Returns the cores to kick.
pub fn wake_watched(core: CoreId, now: u64) -> CoreSet {
    let mut kicks = CoreSet::EMPTY;
    for (index, slot) in used().enumerate() {
        if slot.status.wake_at(core).is_some() {
            let mut scheduler = SCHEDULER.lock();
            if slot.status.take_due(core, u64::MAX) {
                kicks = kicks.union(scheduler.wake(EntityId(index as u16), now));
            }
        }
    }
    kicks
}

fn this_core() -> CoreId {
    CoreId(core_index() as u8)
}

/// One vCPU.
pub struct Vcpu {
    /// Its VM.
    pub vm: &'static Vm,
    /// Which vCPU of the VM it is.
    pub id: VcpuId,
    /// What runs it.
    pub kind: Kind,
    /// Whether it can enter its guest as it is.
    ready: bool,
}

/// The two kinds of vCPU. Nothing outside this module and the builders needs to ask which it is.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per entity, in a static, and no heap to put the large one on"
)]
pub enum Kind {
    /// We hold its registers and enter it by `eret`.
    Normal(NormalVcpu),
    /// The RMM holds its registers, and we enter it by REC_ENTER.
    Rec(RecVcpu),
}

impl Vcpu {
    /// vCPU `id` of `vm`, which is in no core.
    #[must_use]
    pub const fn new(vm: &'static Vm, id: VcpuId, kind: Kind) -> Self {
        Self { vm, id, kind, ready: false }
    }

    /// Puts the vCPU into this core.
    pub fn load(&mut self) {
        self.ready = false;
        match &mut self.kind {
            Kind::Normal(vcpu) => {
                mitigation::isolate();
                vcpu.load();
                // Now only: with the EL1 registers of another, a walk would leave its translations under
                // this VM's VMID.
                tlb::load(crate::run::vttbr(self.vm));
                if self.vm.changes_resident(core_index(), self.id) {
                    tlb::invalidate_stage1_here();
                }
                irq::set_ppis_active(self.active_timer_interrupts(), true);
            }
            Kind::Rec(_) => fp::forget(),
        }
    }

    /// Takes the vCPU out of this core.
    pub fn unload(&mut self) {
        match &mut self.kind {
            Kind::Normal(vcpu) => {
                vcpu.unload();
                tlb::unload();
                irq::end_guest_timers();
                if let Some(syndrome) = serror::take() {
                    let cause = FatalCause::ExternalAbort { esr: syndrome, ipa: 0 };
                    let reason = lifecycle::explain(self.vm, &StopReason::Fatal(cause));
                    lifecycle::fail(self.vm, reason);
                }
            }
            Kind::Rec(vcpu) => vcpu.unload(),
        }
    }

    /// Physical interrupts of this vCPU's timers that are between being taken by us and deactivated
    /// by the guest, one bit per INTID. Their active state in the GIC goes with the vCPU from core to
    /// core: left behind, it would keep the timers of whoever runs there next from firing.
    fn active_timer_interrupts(&self) -> u32 {
        let services = self.vm.services.lock();
        services.as_ref().map_or(0, |services| services.vgic().hardware_active(self.id))
    }

    /// Its list registers.
    pub fn image(&mut self) -> &mut LrImage {
        match &mut self.kind {
            Kind::Normal(vcpu) => &mut vcpu.image,
            Kind::Rec(vcpu) => &mut vcpu.image,
        }
    }

    /// Whether the vCPU can enter its guest without its services having been asked since the last exit:
    /// its list registers are as [`Vcpu::make_ready`] left them, or as its guest has them since. Who
    /// changes an interrupt of a vCPU that runs makes it exit.
    #[inline]
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Fills the list registers for the next entry. The vCPU is loaded.
    #[inline(always)]
    pub fn make_ready(&mut self, vgic: &mut Vgic) {
        if !vgic.is_quiet(self.id) {
            self.flush(vgic);
        }
        self.ready = true;
    }

    #[inline(never)]
    fn flush(&mut self, vgic: &mut Vgic) {
        vgic.resample_hardware_spis(irq::is_spi_pending);
        vgic.flush(self.id, self.image());
        vgic.release_hardware_spis(irq::deactivate);
        irq::set_ppis_active(self.image().activate, true);
        irq::set_ppis_active(self.image().deactivate, false);
    }

    /// Registers of the call that the last exit was.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        match &self.kind {
            Kind::Normal(vcpu) => vcpu.registers(),
            Kind::Rec(vcpu) => vcpu.registers(),
        }
    }

    /// Enters the guest and tells why it came back; `None` if that is dealt with already.
    pub fn enter(&mut self) -> Option<Exit> {
        let before = timer::now_ticks();
        let after;
        let exit = match &mut self.kind {
            Kind::Normal(vcpu) => {
                let trap = vcpu.enter();
                after = timer::now_ticks();
                normal_exit(vcpu, trap, self.vm)
            }
            Kind::Rec(vcpu) => {
                let raw = vcpu.enter();
                after = timer::now_ticks();
                self.ready = false;
                vcpu.exit(raw, self.vm)
            }
        };
        if exit.is_some() {
            self.ready = false;
            if let Kind::Normal(vcpu) = &mut self.kind {
                vcpu.store();
            }
        }
        // What was dealt with at once counts as a memory fault that was mended.
        let cause = exit.as_ref().map_or((Cause::Fault, 0), Cause::of);
        self.vm.stats.count(self.id, cause.0, after.wrapping_sub(before));
        trace::record(self.vm, self.id, after, cause);
        exit
    }

    /// Tells the interrupt controller about the guest's timers, as far as that is known from the
    /// exit alone.
    pub fn report_timers(&self, vgic: &mut Vgic) {
        if let Kind::Rec(vcpu) = &self.kind {
            vcpu.report_timers(self.id, vgic);
        }
    }

    /// When the guest's timers fire next that can, in nanoseconds. The vCPU is loaded.
    ///
    /// `active` are the physical interrupts ([`Vgic::hardware_active`]) that the guest has yet to
    /// deactivate: until then they do not fire again, though the timer's time may have come.
    #[must_use]
    pub fn timer_deadline(&self, active: u32) -> Option<u64> {
        let ticks = match &self.kind {
            Kind::Normal(_) => {
                let ppis = irq::ppis();
                let free = |intid| active & 1_u32.checked_shl(intid).unwrap_or(0) == 0;
                el1::timer_deadline(free(ppis.virtual_timer), free(ppis.physical_timer))
            }
            Kind::Rec(vcpu) => vcpu.timer_deadline(),
        };
        ticks.map(timer::ticks_to_ns)
    }

    /// Converts a value of the guest's virtual counter to nanoseconds.
    #[must_use]
    pub fn virtual_time(&self, count: u64) -> u64 {
        timer::ticks_to_ns(match &self.kind {
            Kind::Normal(vcpu) => vcpu.physical_count(count),
            // The RMM gives realms the physical counter.
            Kind::Rec(_) => count,
        })
    }

    /// Completes the instruction that led to the last exit, as far as it concerns registers.
    pub fn resume(&mut self, resume: &Resume) {
        match &mut self.kind {
            Kind::Normal(vcpu) => vcpu.resume(resume),
            Kind::Rec(vcpu) => vcpu.resume(resume),
        }
    }

    /// Turns the vCPU `target` of the same VM on; it is to be woken then. The RMM keeps the registers
    /// with which a REC begins, `entry` and `context` are those of a normal VM's vCPU.
    pub fn turn_on(&self, target: VcpuId, entry: Ipa, context: u64) {
        let Some(slot) = self.vm.entity(target).and_then(slot) else { return };
        // The target is off: at most it is just leaving its core, which does not wait for us.
        let mut state = slot.state.lock();
        let Some(sibling) = state.as_mut() else { return };
        if let (Kind::Normal(this), Kind::Normal(_)) = (&self.kind, &sibling.kind) {
            let offset = this.counter_offset();
            sibling.kind =
                Kind::Normal(NormalVcpu::new(target.mpidr(), offset, entry.get(), context));
        }
        slot.status.set_on(true);
    }
}

fn normal_exit(vcpu: &mut NormalVcpu, trap: Trap, vm: &Vm) -> Option<Exit> {
    match trap {
        Trap::Irq | Trap::Fiq => Some(Exit::Interrupt),
        Trap::SError => {
            let esr = crate::arch::sysreg::read_sysreg!("esr_el2");
            Some(Exit::Fatal(FatalCause::ExternalAbort { esr, ipa: 0 }))
        }
        Trap::Sync => vcpu.decode(vm),
    }
}
