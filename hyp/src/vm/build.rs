//! Building VMs from the bundle.

use super::memory::VmMemory;
use super::normal::NormalVcpu;
use super::population::{Population, Progress};
use super::realm::{Construction, Image};
use super::rec::RecVcpu;
use super::vcpu::{self, Kind, Vcpu};
use super::{Reason, Space, Vm, channel, disks, lifecycle, net, passthrough, watchdog};
use crate::arch::smc::Smc;
use crate::arch::sysreg::{read_sysreg, write_sysreg};
use crate::arch::{cpu, timer, tlb, vgic_hw};
use crate::entropy::{self, MachineEntropy};
use crate::run::{self, SCHEDULER};
use crate::sync::Lock;
use crate::{cores, irq};
use arrayvec::ArrayVec;
use cca_host::Rec;
use core::fmt;
use core::sync::atomic::Ordering;
use mm::Ipa;
use mm::stage2::{Geometry, PaRange, VmidBits};
use sched::{Budget, CoreSet, Params};
use spin::Once;
use vmm_services::loader::{self, FDT_MAX};
use vmm_services::manifest::{Bundle, MIN_BUDGET_US, VirtioDevice, VmKind, VmSpec};
use vmm_services::vgic::{HardwarePpi, VgicConfig};
use vmm_services::vm::{Endpoints, RealmConfig, ServicesConfig};
use vmm_services::{Entropy, EntropyError, MAX_VCPUS, VcpuId, VmServices, layout};

/// Width of a normal VM's IPA space in bits.
const IPA_BITS: u32 = 40;
/// Time slice of every vCPU in nanoseconds.
const SLICE_NS: u64 = 10_000_000;

// What a bundle may ask for, the scheduler does.
const _: () = assert!(MIN_BUDGET_US as u64 * 1000 >= sched::MIN_NS);

/// Shape of the stage-2 tables of all normal VMs, and their `VTCR_EL2`.
static STAGE2: Once<(Geometry, u64)> = Once::new();

/// Buffer for the device tree of the VM that is being built, aligned as a realm's pages are.
#[repr(C, align(4096))]
pub struct FdtBuffer(pub [u8; FDT_MAX]);

static FDT: Lock<FdtBuffer> = Lock::new(FdtBuffer([0; FDT_MAX]));

/// Decides the shape of stage-2 tables, once at boot.
///
/// # Errors
///
/// If this machine's cores cannot have it.
pub fn init_stage2() -> Result<(), Reason> {
    /// `ID_AA64MMFR1_EL1.VMIDBits`: 16 bits.
    const VMID_16: u64 = 2;
    let bits = if read_sysreg!("id_aa64mmfr1_el1") >> 4 & 0xf == VMID_16 {
        VmidBits::Sixteen
    } else {
        VmidBits::Eight
    };
    let pa_range = PaRange::from_id(read_sysreg!("id_aa64mmfr0_el1") & 0xf);
    // No wider than the machine's physical addresses: the tables need not be deeper than that.
    let ipa_bits = IPA_BITS.min(pa_range.bits());
    let geometry = Geometry::new(ipa_bits, pa_range)
        .map_err(|error| Reason::new(format_args!("stage-2: {error}")))?;
    let geometry =
        if cpu::has_forced_write_back() { geometry.with_forced_write_back() } else { geometry };
    if geometry.root_order() > tlb::MAX_ROOT_ORDER {
        return Err(Reason::new(format_args!("stage-2 root tables are too large")));
    }
    STAGE2.call_once(|| (geometry, geometry.vtcr(bits)));
    run::init(bits);
    Ok(())
}

/// Loads `VTCR_EL2` on this core.
pub fn load_translation_control() {
    if let Some((_, vtcr)) = STAGE2.get() {
        write_sysreg!("vtcr_el2", *vtcr);
    }
}

/// Builds all VMs of the bundle. Called once, on the boot core, before the cores enter their run
/// loops.
pub fn start_all() {
    super::summary::begin();
    lifecycle::expect(super::all().len());
    if let Some(pool) = super::bundle().and_then(|bundle| bundle.pool) {
        super::realm::limit_pool(pool);
    }
    // Built first and started then, so that the last to be built does not miss the others' start.
    let mut built = [false; super::MAX_VMS];
    for (vm, built) in super::all().iter().zip(&mut built) {
        match build(vm) {
            Ok(()) => *built = true,
            Err(reason) => lifecycle::refuse(vm, reason),
        }
    }
    for (vm, built) in super::all().iter().zip(built) {
        if built {
            vm.life.ready();
            start(vm);
        }
    }
}

/// Builds `vm` in one go, before there is anything else to do.
///
/// # Errors
///
/// Why it is refused. Nothing is held then.
fn build(vm: &'static Vm) -> Result<(), Reason> {
    let mut built = begin(vm).map(|()| false);
    while let Ok(false) = built {
        built = advance(vm);
    }
    if built.is_err() {
        lifecycle::take_apart(vm);
        while !lifecycle::demolish(vm) {}
    }
    built.map(|_| ())
}

/// Begins to build `vm`.
///
/// # Errors
///
/// Why it is refused. What there is has to be taken apart.
pub fn begin(vm: &'static Vm) -> Result<(), Reason> {
    let (spec, _) = source(vm)?;
    check_entropy(spec)?;
    check_affinity(spec)?;
    disks::begin(vm, spec)?;
    let space = match spec.kind {
        VmKind::Vm => Space::Population(begin_normal(vm, spec)?),
        VmKind::Realm(_) => {
            let rmm = super::realm::rmm()?;
            Space::Construction(with_image(vm, |image| Construction::begin(rmm, vm, image))?)
        }
    };
    *vm.space.lock() = space;
    Ok(())
}

/// Goes on building `vm`, for a bounded time; `true` when it is built.
///
/// # Errors
///
/// As for [`begin`].
pub fn advance(vm: &'static Vm) -> Result<bool, Reason> {
    let (spec, bundle) = source(vm)?;
    if disks::step(vm, bundle) {
        return Ok(false);
    }
    let progress = match &mut *vm.space.lock() {
        Space::Population(population) => population.step(&vm.vmid, bundle)?,
        Space::Construction(_) => Progress::NeedsImage,
        _ => return Ok(true),
    };
    let complete = match progress {
        Progress::Underway => false,
        Progress::Complete => true,
        Progress::NeedsImage => with_image(vm, |image| match &mut *vm.space.lock() {
            Space::Population(population) => population.plan(&vm.vmid, image).map(|()| false),
            Space::Construction(construction) => construction.step(vm, image),
            _ => Ok(false),
        })?,
    };
    if complete {
        match spec.kind {
            VmKind::Vm => equip_normal(vm, spec)?,
            VmKind::Realm(_) => equip_realm(vm, spec)?,
        }
        connect(vm)?;
        finish(vm);
    }
    Ok(complete)
}

/// Connects a VM that has all its own with others.
fn connect(vm: &'static Vm) -> Result<(), Reason> {
    channel::join(vm)?;
    net::plug_in(vm)
}

/// Notes that all parts of `vm` are there.
fn finish(vm: &Vm) {
    let granules = crate::memory::ledger().census_of(vm.owner()).total();
    vm.stats.note_granules(granules);
    log::info!("vm {}: built, {granules} granules", vm.name());
}

/// What the bundle says about `vm`, and the bundle.
fn source(vm: &Vm) -> Result<(&'static VmSpec<'static>, &'static Bundle<'static>), Reason> {
    vm.spec().zip(super::bundle()).ok_or_else(|| Reason::new(format_args!("not in the bundle")))
}

/// Does something with what `vm` is made from. That is worked out anew each time: the device trees of
/// all VMs share one buffer.
fn with_image<R>(
    vm: &'static Vm,
    work: impl FnOnce(&Image<'_>) -> Result<R, Reason>,
) -> Result<R, Reason> {
    let (spec, bundle) = source(vm)?;
    let mut fdt = FDT.lock();
    // Drawn anew for each start: a normal VM's image is worked out once for each.
    let seeds = if spec.realm().is_none() { entropy::seeds() } else { None };
    let plan = loader::plan(spec, bundle, seeds.as_ref(), &mut fdt.0)
        .map_err(|error| Reason::new(format_args!("{error}")))?;
    work(&Image { spec, bundle, plan: &plan, fdt: &fdt })
}

/// Lets a VM that is built run; `false` if it is not built, or not any more.
pub fn start(vm: &'static Vm) -> bool {
    if let Some(slot) = vm.entity(VcpuId::BOOT).and_then(vcpu::slot) {
        slot.status.set_on(true);
    }
    let kicks = vm.life.start(&mut SCHEDULER.lock(), VcpuId::BOOT.index(), timer::now_ns());
    let Some(kicks) = kicks else { return false };
    log::info!("vm {}: running", vm.name());
    vm.starts.fetch_add(1, Ordering::Relaxed);
    watchdog::start(vm);
    run::kick(kicks);
    true
}

/// Sets apart the RAM of a normal VM.
// Large temporaries: not to be on the stack together with those of a realm.
#[inline(never)]
fn begin_normal(vm: &'static Vm, spec: &VmSpec<'_>) -> Result<Population, Reason> {
    let (geometry, _) =
        STAGE2.get().ok_or_else(|| Reason::new(format_args!("stage-2 is not set up")))?;
    let memory = VmMemory::new(vm.owner(), spec.memory, *geometry)
        .map_err(|error| Reason::new(format_args!("{error}")))?;
    Ok(Population::new(memory, spec.populate))
}

/// Gives a normal VM whose RAM is complete devices, and makes its vCPUs known to the scheduler.
#[inline(never)]
fn equip_normal(vm: &'static Vm, spec: &VmSpec<'_>) -> Result<(), Reason> {
    let Some((entry, fdt)) = take_population(vm) else {
        return Err(Reason::new(format_args!("its RAM is not complete")));
    };
    equip(vm, spec, vgic_hw::list_registers(), timer_interrupts());
    passthrough::assign(vm, &spec.passthrough)?;
    // Virtual time of the VM starts at zero.
    let offset = timer::now_ticks();
    for id in vm.vcpus() {
        let (pc, x0) = if id == VcpuId::BOOT { (entry.get(), fdt.get()) } else { (0, 0) };
        let kind = Kind::Normal(NormalVcpu::new(id.mpidr(), offset, pc, x0));
        add_vcpu(vm, spec, id, kind)?;
    }
    map_stray_granule(vm, spec)
}

/// Turns a population into the VM's memory; where its first vCPU and its device tree are in it, if it was
/// complete.
#[inline(never)]
fn take_population(vm: &Vm) -> Option<(Ipa, Ipa)> {
    let mut space = vm.space.lock();
    let Space::Population(population) = core::mem::replace(&mut *space, Space::None) else {
        return None;
    };
    let (memory, start) = population.finish();
    *space = Space::Normal(memory);
    start
}

/// Gives a VM its device models.
// A frame of its own: they are large, and building a VM has no need of them.
#[inline(never)]
fn equip(
    vm: &Vm,
    spec: &VmSpec<'_>,
    list_registers: usize,
    hardware_ppis: [Option<HardwarePpi>; 2],
) {
    let realm = spec.realm().map(|realm| RealmConfig {
        ipa_bits: realm.ipa_bits,
        memory: spec.memory,
        conversions: realm.conversions,
    });
    *vm.services.lock() = Some(VmServices::new(&ServicesConfig {
        vgic: VgicConfig { vcpus: spec.vcpus, list_registers, hardware_ppis },
        realm,
        uart: spec.devices.uart,
        flash: spec.devices.flash,
        watchdog_ms: spec.watchdog_ms,
        virtio: &spec.devices.virtio,
        channels: &channel::endpoints(vm).collect::<Endpoints>(),
    }));
}

/// A guest's timers are the core's own, so their interrupts are tied to the machine's.
fn timer_interrupts() -> [Option<HardwarePpi>; 2] {
    let machine = irq::ppis();
    [
        Some(HardwarePpi { guest: layout::VTIMER_INTID, physical: machine.virtual_timer }),
        Some(HardwarePpi { guest: layout::PTIMER_INTID, physical: machine.physical_timer }),
    ]
}

/// Turns a construction that is complete into the realm; its RECs.
#[inline(never)]
fn take_over(vm: &Vm) -> ArrayVec<Rec<'static, Smc>, MAX_VCPUS> {
    let mut space = vm.space.lock();
    let Space::Construction(construction) = core::mem::replace(&mut *space, Space::None) else {
        return ArrayVec::new();
    };
    let Some((realm, recs)) = construction.finish() else { return ArrayVec::new() };
    *space = Space::Realm(realm);
    recs
}

/// Gives a realm that is complete devices, and makes its RECs known to the scheduler.
#[inline(never)]
fn equip_realm(vm: &'static Vm, spec: &VmSpec<'_>) -> Result<(), Reason> {
    let rmm = super::realm::rmm()?;
    let recs = take_over(vm);
    equip(vm, spec, super::realm::list_registers(rmm), [None; 2]);
    let mut failure = None;
    let gic = rmm.capabilities().gic;
    for (id, rec) in vm.vcpus().zip(recs) {
        // All RECs must reach a slot even after a failure, since teardown collects them there.
        if let Err(reason) = add_vcpu(vm, spec, id, Kind::Rec(RecVcpu::new(rec, gic))) {
            failure.get_or_insert(reason);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Makes a vCPU known to the scheduler, blocked.
fn add_vcpu(vm: &'static Vm, spec: &VmSpec<'_>, id: VcpuId, kind: Kind) -> Result<(), Reason> {
    let params = Params {
        priority: u8::try_from(spec.priority).unwrap_or(u8::MAX),
        slice_ns: SLICE_NS,
        budget: spec.budget.map(|budget| Budget {
            budget_ns: u64::from(budget.budget_us) * 1000,
            period_ns: u64::from(budget.period_us) * 1000,
        }),
        affinity: spec.affinity.map_or(CoreSet::ALL, CoreSet::from_bits),
    };
    let entity = SCHEDULER
        .lock()
        .add(params, timer::now_ns())
        .map_err(|error| Reason::new(format_args!("{id}: {error}")))?;
    vm.life.enrol(id.index(), entity);
    vcpu::fill(entity, Vcpu::new(vm, id, kind))
        .ok_or_else(|| Reason::new(format_args!("{id}: no place for another vCPU")))
}

/// Refuses a VM that may run only on cores that are not up: it would wait for ever.
fn check_affinity(spec: &VmSpec<'_>) -> Result<(), Reason> {
    let up = CoreSet::from_bits(cores::online_mask());
    match spec.affinity.map(CoreSet::from_bits) {
        Some(wanted) if wanted.intersection(up).is_empty() => Err(Reason::new(format_args!(
            "none of the cores of its affinity is up; {} up: {}",
            if up.iter().count() == 1 { "this one is" } else { "these are" },
            Cores(up)
        ))),
        _ => Ok(()),
    }
}

/// Cores as a list of numbers.
struct Cores(CoreSet);

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(place, core)| {
            let separator = if place == 0 { "" } else { ", " };
            write!(f, "{separator}{}", core.index())
        })
    }
}

/// Refuses a VM that is to have random numbers on a machine without a source of them.
fn check_entropy(spec: &VmSpec<'_>) -> Result<(), Reason> {
    if spec.devices.virtio.contains(&VirtioDevice::Entropy) && !MachineEntropy.has_source() {
        return Err(Reason::new(format_args!("{}", EntropyError::NoSource)));
    }
    Ok(())
}

/// Maps a granule of a realm into a VM that the scenario tells to stray.
fn map_stray_granule(vm: &Vm, spec: &VmSpec<'_>) -> Result<(), Reason> {
    let Some(name) = spec.stray_granule_of else { return Ok(()) };
    let victim = super::selftest::granule_of(name)
        .ok_or_else(|| Reason::new(format_args!("{name} has no granule to stray to")))?;
    let mut space = vm.space.lock();
    let Space::Normal(memory) = &mut *space else { return Ok(()) };
    memory
        .map_stray(&vm.vmid, victim)
        .map_err(|error| Reason::new(format_args!("stray granule: {error}")))
}
