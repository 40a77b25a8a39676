//! Memory of a realm.

mod shared;
mod transit;

pub use transit::{Construction, Demolition, Finished, Image};

use super::{Reason, Vm};
use crate::arch::smc::Smc;
use crate::arch::{phys, timer};
use crate::memory::ledger;
use arrayvec::ArrayVec;
use cca_host::{Active, Config, GicModel, Realm, RecId, Rmm, SharedAttrs, Tracking};
use core::fmt;
use core::sync::atomic::Ordering;
use mm::ledger::{Frames, PhysRange, Undelegated};
use mm::{Ipa, PAGE_SIZE, PhysAddr};
use shared::SharedPages;
use spin::Once;
use vmm_services::manifest;
use vmm_services::{GuestMemory, MAX_VCPUS, MemoryFault, VcpuId};

/// Granules that stay delegated between realms unless the bundle says otherwise.
const POOL: usize = 64;

const _: () = assert!(manifest::MAX_POOL as usize <= cca_host::POOL_CAPACITY);

/// The RMM, or why there is none to work with.
static RMM: Once<Result<Rmm<'static, Smc>, Reason>> = Once::new();

/// Looks for an RMM and agrees on a version with it; once at boot. `rme` says whether the cores have
/// realms at all, `ram` is the memory from which they are to be made.
pub fn init(rme: bool, ram: &[PhysRange]) {
    RMM.call_once(|| {
        if !rme {
            return Err(Reason::new(format_args!("this machine has no RME, so no realms")));
        }
        let config = Config { pool_limit: POOL };
        Rmm::negotiate(Smc, ledger(), config)
            .inspect(|rmm| check_tracking(rmm, ram))
            .map_err(|error| Reason::new(format_args!("no RMM to work with: {error}")))
    });
}

/// Keeps RAM that the RMM does not know granule by granule out of what realms are made from.
fn check_tracking(rmm: &Rmm<'_, Smc>, ram: &[PhysRange]) {
    for range in ram {
        let mut at = range.start;
        while at < range.end {
            at = match rmm.tracking(at, range.end) {
                Ok((Tracking::Fine, upto)) => upto,
                Ok((tracking, upto)) => {
                    forbid_delegation(PhysRange::new(at, upto), format_args!("{tracking:?}"));
                    upto
                }
                Err(error) => {
                    forbid_delegation(PhysRange::new(at, range.end), format_args!("{error}"));
                    range.end
                }
            };
        }
    }
}

fn forbid_delegation(range: PhysRange, tracking: fmt::Arguments<'_>) {
    let reserved = ledger().forbid_delegation(range);
    log::warn!("no realms from {range}: RMM's tracking there: {tracking}");
    if reserved != 0 {
        log::warn!("{reserved} granules of it serve nobody: realms can have the RAM beside them");
    }
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

/// Changes how many granules stay delegated between realms.
pub fn limit_pool(granules: u32) {
    if let Ok(rmm) = rmm() {
        rmm.set_pool_limit(granules as usize);
    }
}

/// Undelegates what was kept for the next realm; returns how many granules are free because of it.
pub fn drain_pool() -> u64 {
    let Ok(rmm) = rmm() else { return 0 };
    let returned = rmm.drain_pool();
    if returned.lost != 0 {
        log::error!("the RMM keeps {} granules that no realm uses", returned.lost);
    }
    returned.freed
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

/// A realm's memory as far as it is the host's business.
pub struct RealmSpace {
    realm: Realm<'static, Smc, Active>,
    recs: ArrayVec<RecId, MAX_VCPUS>,
    shared: SharedPages,
}

impl RealmSpace {
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
    /// No memory, shared pages in too many places, or the RMM refuses.
    pub fn share(&mut self, vm: &Vm, ipa: Ipa) -> Result<(), Reason> {
        if self.shared.contains(ipa) {
            // Another REC was faster.
            return Ok(());
        }
        let failed =
            |error: &dyn fmt::Display| Reason::new(format_args!("shared page at {ipa}: {error}"));
        let pa = self.shared.add(vm.owner(), ipa).map_err(|error| failed(&error))?;
        self.timed(vm, |realm| realm.map_shared(ipa, pa, PAGE_SIZE, SharedAttrs::NORMAL_RW))
            .map_err(|error| {
                self.shared.remove(ipa);
                failed(&error)
            })
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

    /// Takes back what is shared in `[from, top)`, before it becomes private memory: unmaps and frees at
    /// most `pages` pages. Returns where to go on if there may be more.
    pub fn unshare(&mut self, vm: &Vm, from: Ipa, top: Ipa, pages: u64) -> Option<Ipa> {
        let mut from = from;
        for _ in 0..pages {
            let ipa = self.shared.first_in(from, top)?;
            match self.timed(vm, |realm| realm.unmap_shared(ipa, PAGE_SIZE)) {
                Ok(()) => self.shared.remove(ipa),
                // The page stays the realm's until it is destroyed.
                Err(error) => log::warn!("vm {}: shared page at {ipa}: {error}", vm.name()),
            }
            from = Ipa::new(ipa.get() + PAGE_SIZE);
        }
        Some(from)
    }

    /// The granules that hold the byte at `ipa`, and its offset there.
    fn byte(&self, ipa: Ipa) -> Result<(&Frames<Undelegated>, u64), MemoryFault> {
        let (frames, page) =
            self.shared.page(ipa.align_down(PAGE_SIZE)).ok_or(MemoryFault { ipa })?;
        Ok((frames, page + ipa.page_offset()))
    }
}

fn charge(vm: &Vm, since: u64) {
    let ticks = timer::now_ticks().wrapping_sub(since);
    vm.stats.rmm_ticks.fetch_add(ticks, Ordering::Relaxed);
}

impl GuestMemory for RealmSpace {
    fn read(&self, ipa: Ipa, buf: &mut [u8]) -> Result<(), MemoryFault> {
        for (at, piece) in by_page(ipa, buf.len()) {
            let (frames, offset) = self.byte(at)?;
            let target = buf.get_mut(piece).ok_or(MemoryFault { ipa: at })?;
            if !phys::read(frames, offset, target) {
                return Err(MemoryFault { ipa: at });
            }
        }
        Ok(())
    }

    fn write(&self, ipa: Ipa, data: &[u8]) -> Result<(), MemoryFault> {
        for (at, piece) in by_page(ipa, data.len()) {
            let (frames, offset) = self.byte(at)?;
            let source = data.get(piece).ok_or(MemoryFault { ipa: at })?;
            if !phys::write(frames, offset, source) {
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
