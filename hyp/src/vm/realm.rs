//! Memory of a realm, and its construction and destruction through `cca-host`.

use super::build::FdtBuffer;
use super::stats::Life;
use super::{Reason, Vm};
use crate::arch::smc::{Smc, rmi_calls};
use crate::arch::{phys, timer};
use crate::memory::ledger;
use arrayvec::ArrayVec;
use cca_host::plan::PageSource;
use cca_host::{Active, Config, GicModel, Realm, Rec, RecId, Rmm, SharedAttrs};
use core::fmt;
use core::sync::atomic::Ordering;
use mm::ledger::{Frames, Undelegated, Use};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use realm_plan::RealmPlan;
use spin::Once;
use vmm_services::loader::{LoadPlan, Source};
use vmm_services::manifest::{Bundle, VmSpec};
use vmm_services::{GuestMemory, MAX_VCPUS, MemoryFault, VcpuId};

/// Most pages that one realm can have shared with the host at a time.
const MAX_SHARED: usize = 32;
/// Granules that stay delegated between realms.
const POOL: usize = 64;

/// The RMM, or why there is none to work with.
static RMM: Once<Result<Rmm<'static, Smc>, Reason>> = Once::new();

/// Looks for an RMM and agrees on a version with it; once at boot. `rme` says whether the cores have
/// realms at all.
pub fn init(rme: bool) {
    RMM.call_once(|| {
        if !rme {
            return Err(Reason::new(format_args!("this machine has no RME, so no realms")));
        }
        let config = Config { pool_limit: POOL };
        Rmm::negotiate(Smc, ledger(), config)
            .map_err(|error| Reason::new(format_args!("no RMM to work with: {error}")))
    });
}

/// The RMM.
///
/// # Errors
///
/// Why realms cannot be had on this machine.
pub fn rmm() -> Result<&'static Rmm<'static, Smc>, Reason> {
    match RMM.get() {
        Some(Ok(rmm)) => Ok(rmm),
        Some(Err(reason)) => Err(reason.clone()),
        None => Err(Reason::new(format_args!("the RMM has not been asked yet"))),
    }
}

/// Undelegates what was kept for the next realm.
pub fn drain_pool() {
    if let Ok(rmm) = rmm() {
        let returned = rmm.drain_pool();
        if returned.lost != 0 {
            log::error!("the RMM keeps {} granules that no realm uses", returned.lost);
        }
    }
}

/// What the boot stage says about realms.
pub struct Availability;

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match rmm() {
            Ok(rmm) => fmt::Display::fmt(rmm.capabilities(), f),
            Err(reason) => write!(f, "none: {reason}"),
        }
    }
}

/// Number of list registers that a REC has.
#[must_use]
pub fn list_registers(rmm: &Rmm<'_, Smc>) -> usize {
    match rmm.capabilities().gic {
        GicModel::RunPage { list_registers } => usize::from(list_registers),
        GicModel::Hardware => crate::arch::vgic_hw::list_registers(),
    }
}

/// A device address as the services know it: without the bit that marks it as shared.
#[must_use]
pub fn without_shared_bit(vm: &Vm, ipa: Ipa) -> Ipa {
    let bits = vm.spec().and_then(|spec| spec.realm()).map_or(64, |realm| realm.ipa_bits);
    let mask = 1_u64.checked_shl(bits.saturating_sub(1)).map_or(u64::MAX, |bit| bit - 1);
    Ipa::new(ipa.get() & mask)
}

/// A page that the realm has shared.
struct SharedPage {
    /// Without the shared bit.
    ipa: Ipa,
    frames: Frames<Undelegated>,
}

/// A realm's memory as far as it is the host's business.
pub struct RealmSpace {
    realm: Realm<'static, Smc, Active>,
    recs: ArrayVec<RecId, MAX_VCPUS>,
    shared: ArrayVec<SharedPage, MAX_SHARED>,
}

impl RealmSpace {
    /// Builds and activates the realm that `spec` and `plan` describe.
    ///
    /// # Errors
    ///
    /// Why it is refused; everything has been given back.
    pub fn build(
        rmm: &'static Rmm<'static, Smc>,
        vm: &Vm,
        spec: &VmSpec<'static>,
        bundle: &Bundle<'static>,
        plan: &LoadPlan,
        fdt: &FdtBuffer,
    ) -> Result<(Self, ArrayVec<Rec<'static, Smc>, MAX_VCPUS>), Reason> {
        let refused = |error: &dyn fmt::Display| Reason::new(format_args!("{error}"));
        // Unique among realms, and not zero: VMs count from 1.
        let realm_plan =
            RealmPlan::new(spec, plan, vm.owner().id()).map_err(|error| refused(&error))?;
        let scratch =
            ledger().alloc(0, Use::Interface, vm.owner()).map_err(|error| refused(&error))?;
        let pages = Pages { plan, bundle, fdt, scratch: &scratch };
        let (before, calls) = (timer::now_ticks(), rmi_calls());
        let outcome = Realm::build(rmm, vm.owner(), &realm_plan.as_build_plan(), &pages);
        charge(vm, before);
        vm.stats.count_rmi_calls(Life::Build, calls);
        ledger().free(scratch);
        let (realm, recs) = outcome.map_err(|error| refused(&error))?;
        if let Some(rim) = realm.rim() {
            log::info!("vm {}: rim {rim}", vm.name());
        }
        let ids = recs.iter().map(Rec::id).collect();
        Ok((Self { realm, recs: ids, shared: ArrayVec::new() }, recs))
    }

    /// Does something with the realm and charges the time to the VM.
    pub fn timed<R>(
        &mut self,
        vm: &Vm,
        f: impl FnOnce(&mut Realm<'static, Smc, Active>) -> R,
    ) -> R {
        let before = timer::now_ticks();
        let result = f(&mut self.realm);
        charge(vm, before);
        result
    }

    /// Name of the REC of vCPU `id` towards the RMM.
    #[must_use]
    pub fn rec_id(&self, id: VcpuId) -> Option<RecId> {
        self.recs.get(id.index()).copied()
    }

    /// Gives the realm a zeroed page of shared memory at `ipa` (without the shared bit).
    ///
    /// # Errors
    ///
    /// Too many shared pages, no memory, or the RMM refuses.
    pub fn share(&mut self, vm: &Vm, ipa: Ipa) -> Result<(), Reason> {
        if self.shared.iter().any(|page| page.ipa == ipa) {
            // Another REC was faster.
            return Ok(());
        }
        if self.shared.is_full() {
            return Err(Reason::new(format_args!("more than {MAX_SHARED} shared pages")));
        }
        let mut frames = ledger()
            .alloc(0, Use::Shared, vm.owner())
            .map_err(|error| Reason::new(format_args!("shared page at {ipa}: {error}")))?;
        crate::arch::bulk::zero(phys::bytes_mut(&mut frames));
        let pa = frames.base();
        let mapped =
            self.timed(vm, |realm| realm.map_shared(ipa, pa, PAGE_SIZE, SharedAttrs::NORMAL_RW));
        match mapped {
            Ok(()) => {
                self.shared.push(SharedPage { ipa, frames });
                Ok(())
            }
            Err(error) => {
                ledger().free(frames);
                Err(Reason::new(format_args!("shared page at {ipa}: {error}")))
            }
        }
    }

    /// Maps the memory of a channel among the realm's shared addresses.
    ///
    /// # Errors
    ///
    /// The RMM refuses, or memory for tables is short.
    pub fn map_channel(
        &mut self,
        vm: &Vm,
        ipa: Ipa,
        pa: PhysAddr,
        bytes: u64,
    ) -> Result<(), Reason> {
        self.timed(vm, |realm| realm.map_shared(ipa, pa, bytes, SharedAttrs::NORMAL_RW))
            .map_err(|error| Reason::new(format_args!("channel: {error}")))
    }

    /// Takes the realm back after a change of `[base, top)` to private memory: what was shared there
    /// is unmapped and freed.
    pub fn unshare(&mut self, vm: &Vm, base: Ipa, top: Ipa) {
        let mut index = 0;
        while let Some(page) = self.shared.get(index) {
            if page.ipa < base || page.ipa >= top {
                index += 1;
                continue;
            }
            let ipa = page.ipa;
            match self.timed(vm, |realm| realm.unmap_shared(ipa, PAGE_SIZE)) {
                Ok(()) => ledger().free(self.shared.swap_remove(index).frames),
                // The page stays the realm's until it is destroyed.
                Err(error) => {
                    log::warn!("vm {}: shared page at {ipa}: {error}", vm.name());
                    index += 1;
                }
            }
        }
    }

    /// Destroys RECs and realm and gives all memory back. What the RMM refuses to give back stays
    /// accounted to the VM, and the ledger's census shows it.
    pub fn destroy(self, vm: &Vm, recs: ArrayVec<Rec<'static, Smc>, MAX_VCPUS>) {
        let (before, calls) = (timer::now_ticks(), rmi_calls());
        for rec in recs {
            if let Err(failure) = rec.destroy() {
                log::error!("vm {}: {failure:?}", vm.name());
            }
        }
        match self.realm.destroy() {
            Ok(report) if report.stranded == 0 && report.returned.lost == 0 => {}
            Ok(report) => log::error!("vm {}: not all came back: {report:?}", vm.name()),
            Err(failure) => log::error!("vm {}: {failure:?}", vm.name()),
        }
        charge(vm, before);
        vm.stats.count_rmi_calls(Life::Teardown, calls);
        // Its tables are gone: the realm cannot reach the shared pages any more.
        for page in self.shared {
            ledger().free(page.frames);
        }
    }

    fn page(&self, ipa: Ipa) -> Result<&SharedPage, MemoryFault> {
        let page = ipa.align_down(PAGE_SIZE);
        self.shared.iter().find(|shared| shared.ipa == page).ok_or(MemoryFault { ipa })
    }
}

fn charge(vm: &Vm, since: u64) {
    let ticks = timer::now_ticks().wrapping_sub(since);
    vm.stats.rmm_ticks.fetch_add(ticks, Ordering::Relaxed);
}

impl GuestMemory for RealmSpace {
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        for (at, piece) in by_page(ipa, buf.len()) {
            let shared = self.page(at)?;
            let target = buf.get_mut(piece).ok_or(MemoryFault { ipa: at })?;
            if !phys::read(&shared.frames, at.page_offset(), target) {
                return Err(MemoryFault { ipa: at });
            }
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        for (at, piece) in by_page(ipa, data.len()) {
            let shared = self.page(at)?;
            let source = data.get(piece).ok_or(MemoryFault { ipa: at })?;
            if !phys::write(&shared.frames, at.page_offset(), source) {
                return Err(MemoryFault { ipa: at });
            }
        }
        Ok(())
    }
}

/// Cuts `length` bytes from `ipa` at page borders: address and index range of each piece. Stops
/// early, with a piece outside all pages, if the range would leave the address space.
fn by_page(ipa: Ipa, length: usize) -> impl Iterator<Item = (Ipa, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done >= length {
            return None;
        }
        let at = ipa.checked_add(done as u64).unwrap_or(Ipa::new(u64::MAX));
        let room = (PAGE_SIZE - at.page_offset()) as usize;
        let end = length.min(done + room);
        let piece = done..end;
        done = end;
        Some((at, piece))
    })
}

/// Where the contents of a realm's measured pages are.
struct Pages<'a> {
    plan: &'a LoadPlan,
    bundle: &'a Bundle<'static>,
    fdt: &'a FdtBuffer,
    /// A page for what does not lie in memory as it is to be measured: the zero-filled end of an
    /// image. Filled anew for each page that needs it, since the RMM copies at once.
    scratch: &'a Frames<Undelegated>,
}

impl PageSource for Pages<'_> {
    fn page(&self, segment: usize, page: u64) -> PhysAddr {
        let fallback = self.scratch.base();
        let Some(segment) = self.plan.segments.get(segment) else { return fallback };
        let offset = page * PAGE_SIZE;
        if let Source::Bundle { offset: start } = segment.source
            && offset + PAGE_SIZE <= segment.length
        {
            let bundle = self.bundle.bytes().as_ptr().addr() as u64;
            return PhysAddr::new(bundle + start + offset);
        }
        let mut contents = [0; PAGE_SIZE as usize];
        let ipa = Ipa::new(segment.ipa.get() + offset);
        self.plan.page(ipa, self.bundle.bytes(), &self.fdt.0, &mut contents);
        phys::write(self.scratch, 0, &contents);
        fallback
    }
}
