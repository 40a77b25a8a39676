//! The VMs of the bundle: their state, their vCPUs, and how they begin and end.
//!
//! A [`Vm`] and a [`vcpu::VcpuSlot`] are statics: there are as many as the hypervisor can ever run.
//! Locks are taken in this order, and none is held across a guest's run except the vCPU's own:
//! vCPU, then services, then a switch or channel, then memory, then the scheduler, then the ledger.

pub mod abandon;
pub mod audit;
pub mod build;
pub mod channel;
pub mod disks;
pub mod extents;
pub mod lifecycle;
pub mod memory;
pub mod net;
pub mod normal;
pub mod output;
pub mod passthrough;
pub mod peers;
pub mod population;
pub mod realm;
pub mod rec;
pub mod selftest;
pub mod stats;
pub mod summary;
pub mod vcpu;
pub mod watchdog;

use crate::arch::late::LateArray;
use crate::arch::layout::MAX_CORES;
use crate::sync::{Lock, VmLock};
use arrayvec::ArrayString;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use mm::ledger::Owner;
use mm::stage2::VmidSlot;
use sched::EntityId;
use sched::lifecycle::{Lifecycle, Phase};
use spin::Once;
use stats::Stats;
use vmm_services::manifest::{Bundle, ManifestError, VmSpec};
use vmm_services::{VcpuId, VmServices, crc32};

pub use vmm_services::MAX_VCPUS;
pub use vmm_services::manifest::MAX_VMS;

/// The bundle that the machine was booted with.
static BUNDLE: Once<Bundle<'static>> = Once::new();

/// Every VM there can be; those of the bundle come first.
static VMS: LateArray<Vm, MAX_VMS> = LateArray::new();

/// Makes room for VMs, once at boot, before anything asks for one.
pub fn init() {
    VMS.init(|index| Vm::new(index as u8));
    vcpu::init();
    net::init();
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest turned itself off.
    Off,
    /// The guest said that it failed, or the hypervisor had to stop it.
    Stopped(Reason),
    /// It could not be built.
    Refused(Reason),
}

/// How a VM ended, and what is next.
#[derive(Clone, Debug)]
struct Record {
    /// `None` while it has not ended.
    end: Option<End>,
    next: lifecycle::Next,
}

/// Why a VM was stopped or refused, cut to what fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason(ArrayString<200>);

impl Reason {
    /// Formats a reason; what does not fit is cut off.
    #[must_use]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        struct Cut<'a>(&'a mut ArrayString<200>);
        impl fmt::Write for Cut<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for character in text.chars() {
                    // One line, and quotes would end the field in the report.
                    let shown =
                        if character.is_control() || character == '"' { ' ' } else { character };
                    if self.0.try_push(shown).is_err() {
                        break;
                    }
                }
                Ok(())
            }
        }
        let mut reason = Self::default();
        // `Cut` never fails.
        let _ = fmt::write(&mut Cut(&mut reason.0), text);
        reason
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Memory of a VM.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per VM slot, in a static, and no heap to put the large one on"
)]
pub enum Space {
    /// None: not built, or taken apart.
    None,
    /// A normal VM.
    Normal(memory::VmMemory),
    /// A normal VM whose RAM is being zeroed and filled.
    Population(population::Population),
    /// A realm.
    Realm(realm::RealmSpace),
    /// A realm that is being built.
    Construction(realm::Construction),
    /// A realm that is being destroyed.
    Demolition(realm::Demolition),
}

/// One VM.
pub struct Vm {
    index: u8,
    /// Its phase, and the scheduler's entities of its vCPUs.
    pub life: Lifecycle<MAX_VCPUS>,
    /// How it ended, if it has, and what is next.
    record: Lock<Record>,
    /// Device models, interrupt controller, power state.
    pub services: VmLock<Option<VmServices>>,
    /// Whether another VM has something for its devices.
    called: AtomicBool,
    /// RAM and translation tables.
    pub space: VmLock<Space>,
    /// Disks in RAM.
    pub disks: VmLock<disks::DiskList>,
    /// VMID of a normal VM.
    pub vmid: VmidSlot,
    /// For each core, the last vCPU that ran there, plus one; 0 for none.
    residents: [AtomicU8; MAX_CORES],
    /// What it cost so far.
    pub stats: Stats,
    /// How often it turned itself off.
    rounds: AtomicU32,
    /// How often it was started again for a reset, its own or its watchdog's.
    resets: AtomicU32,
    /// How often it was started.
    starts: AtomicU32,
    /// Held by the core that takes it apart or builds it, for one step of that.
    work: Lock<()>,
}

impl Vm {
    const fn new(index: u8) -> Self {
        Self {
            index,
            life: Lifecycle::new(),
            record: Lock::new(Record { end: None, next: lifecycle::Next::End }),
            services: VmLock::new(None),
            called: AtomicBool::new(false),
            space: VmLock::new(Space::None),
            disks: VmLock::new(disks::DiskList::new_const()),
            vmid: VmidSlot::new(),
            residents: [const { AtomicU8::new(0) }; MAX_CORES],
            stats: Stats::new(),
            rounds: AtomicU32::new(0),
            resets: AtomicU32::new(0),
            starts: AtomicU32::new(0),
            work: Lock::new(()),
        }
    }

    /// Its place in the bundle, from 0.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index as usize
    }

    /// What the bundle says about it.
    #[must_use]
    pub fn spec(&self) -> Option<&'static VmSpec<'static>> {
        BUNDLE.get()?.vms.get(usize::from(self.index))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.spec().map_or("?", |spec| spec.name)
    }

    /// What kind of VM it is, for reports.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.spec().and_then(|spec| spec.realm()) {
            Some(_) => "realm",
            None => "vm",
        }
    }

    /// What it is doing, or how it ended, for reports.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (&self.record.lock().end, self.phase()) {
            (_, Phase::Running) if self.life.is_paused() => "paused",
            (_, Phase::Running) => "running",
            (_, Phase::Built) => "built",
            (_, Phase::Stopping) => "stopping",
            (None, Phase::Reaping) => "building",
            (Some(End::Off), _) => "off",
            (Some(End::Stopped(_)), _) => "stopped",
            (Some(End::Refused(_)), _) => "refused",
            (None, _) => "not built",
        }
    }

    /// Who its granules are accounted to.
    #[must_use]
    pub const fn owner(&self) -> Owner {
        Owner::vm(self.index as u16 + 1)
    }

    /// What it is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// Notes that another VM has something for its devices.
    pub fn set_called(&self) {
        self.called.store(true, Ordering::SeqCst);
    }

    /// Whether another VM has something for its devices.
    #[must_use]
    pub fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst)
    }

    /// Takes the note back, before looking what there is.
    #[must_use]
    pub fn take_called(&self) -> bool {
        self.is_called() && self.called.swap(false, Ordering::SeqCst)
    }

    /// Scheduler entity of a vCPU.
    #[must_use]
    pub fn entity(&self, vcpu: VcpuId) -> Option<EntityId> {
        self.life.entity(vcpu.index())
    }

    /// Notes that `vcpu` runs on `core` now; `true` if another one of this VM ran there before.
    fn changes_resident(&self, core: usize, vcpu: VcpuId) -> bool {
        // There are at most 16 vCPUs. Only the core itself uses its entry.
        let now = vcpu.index() as u8 + 1;
        self.residents.get(core).is_some_and(|resident| {
            let before = resident.load(Ordering::Relaxed);
            resident.store(now, Ordering::Relaxed);
            before != now && before != 0
        })
    }

    /// Its vCPUs.
    pub fn vcpus(&self) -> impl Iterator<Item = VcpuId> + use<> {
        let count = self.spec().map_or(0, |spec| spec.vcpus);
        (0..count).filter_map(VcpuId::new)
    }
}

/// Parses the bundle that the machine was booted with, to be kept for good. Called once.
///
/// # Errors
///
/// What is wrong with it.
pub fn take_bundle(
    bytes: &'static [u8],
    crc: crc32::Update,
) -> Result<&'static Bundle<'static>, ManifestError<'static>> {
    BUNDLE.try_call_once(|| Bundle::parse_with(bytes, crc))
}

/// The VMs of the bundle.
pub fn all() -> &'static [Vm] {
    let count = BUNDLE.get().map_or(0, |bundle| bundle.vms.len());
    VMS.get(..count).unwrap_or(&[])
}

/// The bundle.
#[must_use]
pub fn bundle() -> Option<&'static Bundle<'static>> {
    BUNDLE.get()
}
