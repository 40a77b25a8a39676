//! Realms on their way in and out, a bounded number of RMI calls at a time.

use super::super::stats::Life;
use super::super::{Reason, Vm};
use super::{RealmSpace, SharedPages, charge};
use crate::arch::smc::{Smc, rmi_calls};
use crate::arch::{phys, timer};
use crate::memory::ledger;
use crate::vm::build::FdtBuffer;
use arrayvec::ArrayVec;
use cca_host::plan::{BuildError, Builder, PageSource};
use cca_host::{Dismantling, Rec, Rmm};
use core::fmt;
use mm::ledger::{Frames, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use realm_plan::RealmPlan;
use vmm_services::MAX_VCPUS;
use vmm_services::loader::{LoadPlan, Source};
use vmm_services::manifest::{Bundle, VmSpec};

/// RMI calls that a core makes for a realm on its way in or out before it looks for a vCPU to run.
const STEP_CALLS: u64 = 64;
/// Refusals of the RMM after which the destruction of a realm is given up.
const MAX_FAILURES: u32 = 3;

fn reason(error: &dyn fmt::Display) -> Reason {
    Reason::new(format_args!("{error}"))
}

/// Does something for `vm` and charges time and RMI calls to it.
fn charged<R>(vm: &Vm, life: Life, work: impl FnOnce() -> R) -> R {
    let (before, calls) = (timer::now_ticks(), rmi_calls());
    let result = work();
    charge(vm, before);
    vm.stats.count_rmi_calls(life, calls);
    result
}

/// What a realm is made from.
pub struct Image<'a> {
    /// What the bundle says about it.
    pub spec: &'a VmSpec<'static>,
    /// The bundle.
    pub bundle: &'a Bundle<'static>,
    /// Where everything goes.
    pub plan: &'a LoadPlan,
    /// Its device tree.
    pub fdt: &'a FdtBuffer,
}

impl Image<'_> {
    fn realm_plan(&self, vm: &Vm) -> Result<RealmPlan, Reason> {
        // Unique among realms, and not zero: VMs count from 1.
        RealmPlan::new(self.spec, self.plan, vm.owner().id()).map_err(|error| reason(&error))
    }
}

/// A realm that can run, and its RECs.
pub type Finished = (RealmSpace, ArrayVec<Rec<'static, Smc>, MAX_VCPUS>);

/// A realm that is being built.
pub struct Construction(Builder<'static, Smc>);

impl Construction {
    /// Creates the realm.
    ///
    /// # Errors
    ///
    /// Why it is refused; everything has been given back.
    pub fn begin(
        rmm: &'static Rmm<'static, Smc>,
        vm: &Vm,
        image: &Image<'_>,
    ) -> Result<Self, Reason> {
        let plan = image.realm_plan(vm)?;
        let builder = || Builder::new(rmm, vm.owner(), &plan.as_build_plan());
        charged(vm, Life::Build, builder).map(Self).map_err(|error| reason(&error))
    }

    /// Goes on; `true` when the realm is active.
    ///
    /// # Errors
    ///
    /// Why it cannot be built. What there is has to be demolished.
    pub fn step(&mut self, vm: &Vm, image: &Image<'_>) -> Result<bool, Reason> {
        let plan = image.realm_plan(vm)?;
        let scratch =
            crate::memory::alloc(0, Use::Interface, vm.owner()).map_err(|error| reason(&error))?;
        let pages = Pages { image, scratch: &scratch };
        let outcome = charged(vm, Life::Build, || {
            let done = self.0.advance(&plan.as_build_plan(), &pages, STEP_CALLS)?;
            if done {
                self.0.activate()?;
            }
            Ok(done)
        });
        ledger().free(scratch);
        outcome.map_err(|error: BuildError| reason(&error))
    }

    /// The realm, once it is active.
    // Inlined, the moves of what is in here become a hundred kilobytes of single-byte copies.
    #[inline(never)]
    pub fn finish(self) -> Option<Finished> {
        let (realm, recs) = self.0.finish()?;
        let ids = recs.iter().map(Rec::id).collect();
        Some((RealmSpace { realm, recs: ids, shared: SharedPages::new() }, recs))
    }

    /// Gives up.
    #[inline(never)]
    pub fn demolish(self) -> Demolition {
        Demolition::new(self.0.dismantle(), SharedPages::new())
    }
}

impl RealmSpace {
    /// Begins to destroy the realm and its RECs.
    pub fn demolish(self, recs: ArrayVec<Rec<'static, Smc>, MAX_VCPUS>) -> Demolition {
        Demolition::new(self.realm.dismantle(recs), self.shared)
    }
}

/// A realm that is being destroyed.
pub struct Demolition {
    realm: Dismantling<'static, Smc>,
    /// Freed when the tables are gone, or when the RMM has refused to take them down so often that it is left at
    /// that. Tables may still map the pages then, but nothing uses those: no REC of the realm is entered again.
    shared: SharedPages,
    failures: u32,
}

impl Demolition {
    fn new(realm: Dismantling<'static, Smc>, shared: SharedPages) -> Self {
        Self { realm, shared, failures: 0 }
    }

    /// Goes on; `true` when nothing more can be done. What the RMM refuses to give back stays
    /// accounted to the VM, and the ledger's census shows it.
    pub fn step(&mut self, vm: &Vm) -> bool {
        match charged(vm, Life::Teardown, || self.realm.step(STEP_CALLS)) {
            Ok(None) => return false,
            Ok(Some(report)) if report.stranded == 0 && report.returned.lost == 0 => {}
            Ok(Some(report)) => log::error!("vm {}: not all came back: {report:?}", vm.name()),
            Err(error) => {
                log::error!("vm {}: {error}", vm.name());
                self.failures += 1;
                if self.failures < MAX_FAILURES {
                    return false;
                }
            }
        }
        self.shared.free();
        true
    }
}

/// Where the contents of a realm's measured pages are.
struct Pages<'a> {
    image: &'a Image<'a>,
    /// A page for what does not lie in memory as it is to be measured: the zero-filled end of an
    /// image. Filled anew for each page that needs it, since the RMM copies at once.
    scratch: &'a Frames<Undelegated>,
}

impl PageSource for Pages<'_> {
    fn page(&self, segment: usize, page: u64) -> PhysAddr {
        let fallback = self.scratch.base();
        let Some(segment) = self.image.plan.segments.get(segment) else { return fallback };
        let offset = page * PAGE_SIZE;
        if let Source::Bundle { offset: start } = segment.source
            && offset + PAGE_SIZE <= segment.length
        {
            let bundle = self.image.bundle.bytes().as_ptr().addr() as u64;
            return PhysAddr::new(bundle + start + offset);
        }
        let mut contents = [0; PAGE_SIZE as usize];
        let ipa = Ipa::new(segment.ipa.get() + offset);
        self.image.plan.page(ipa, self.image.bundle.bytes(), &self.image.fdt.0, &mut contents);
        phys::write(self.scratch, 0, &contents);
        fallback
    }
}
