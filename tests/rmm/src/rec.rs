//! Realm execution contexts: creation and destruction.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{Refusal, Reply, Ripas};
use crate::addr::Pa;
use crate::context::{El1State, GicState, RecContext};
use crate::gic;
use crate::granule::{GranuleState, REFCOUNT_MAX};
use crate::measurement::measure_rec;
use crate::monitor::{Monitor, Page};
use crate::platform::Platform;
use crate::realm::RealmState;

/// Auxiliary granules of each REC.
pub const MAX_REC_AUX: usize = 16;

/// PSTATE of a REC that starts: EL1 with its own stack pointer, all exceptions masked.
pub(crate) const RESET_PSTATE: u64 = 0x3c5;
/// SCTLR_EL1 of a REC that starts: MMU and caches off, RES1 bits set.
pub(crate) const RESET_SCTLR: u64 = 0x30c5_0878;
/// Parameter flag: the REC may run when the realm becomes active.
const RUNNABLE: u64 = 1;

/// A change of RIPAS that the REC asked for.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RipasRequest {
    /// First address; equal to `top` when nothing is pending.
    pub(crate) base: u64,
    pub(crate) top: u64,
    /// How far the host has come.
    pub(crate) next: u64,
    value: u64,
    /// 1 if DESTROYED memory may change too.
    pub(crate) change_destroyed: u64,
}

impl RipasRequest {
    pub(crate) fn new(base: u64, top: u64, value: Ripas, change_destroyed: bool) -> Self {
        let change_destroyed = u64::from(change_destroyed);
        Self { base, top, next: base, value: value as u64, change_destroyed }
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.base != self.top
    }

    pub(crate) fn ripas(&self) -> Ripas {
        if self.value == Ripas::Ram as u64 { Ripas::Ram } else { Ripas::Empty }
    }
}

/// What the next REC_ENTER has to complete of the last exit.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LastExit {
    pub(crate) esr: u64,
    pub(crate) far: u64,
    /// 1 if it was a data abort at an unprotected address (INJECT_SEA is allowed).
    pub(crate) unprotected_abort: u64,
    /// 1 if the host may emulate that access (EMUL_MMIO is allowed).
    pub(crate) emulatable: u64,
    /// 1 if it was a trapped read of a system register, which x0 of the host completes.
    pub(crate) sysreg_read: u64,
}

/// Contents of the first half of a REC granule.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Rec {
    /// Address of the realm descriptor; never changes.
    pub(crate) rd: u64,
    /// Number of the REC in its realm; never changes.
    pub(crate) index: u64,
    pub(crate) runnable: u64,
    /// 1 while a PSCI request waits for PSCI_COMPLETE.
    pub(crate) psci_pending: u64,
    /// 1 while a host call waits for its results.
    pub(crate) host_call_pending: u64,
    /// Timer outputs as last told to the host: bit 0 virtual, bit 1 physical.
    pub(crate) timers_reported: u64,
    pub(crate) ripas: RipasRequest,
    pub(crate) last_exit: LastExit,
    pub(crate) context: RecContext,
    aux: [u64; MAX_REC_AUX],
    /// 1 if the auxiliary granules were donated undelegated (2.0).
    aux_undelegated: u64,
}

const _: () = assert!(size_of::<Rec>() <= 2048, "the platform owns the second half");

/// Index of a REC from the affinity fields of an MPIDR, with Aff3 at bit `aff3_shift`: 16 RECs to
/// each Aff1.
fn index_of(mpidr: u64, aff3_shift: u32) -> u64 {
    let field = |shift: u32| mpidr >> shift & 0xff;
    mpidr & 0xf | field(8) << 4 | field(16) << 12 | field(aff3_shift) << 20
}

/// Index of the REC that the realm names by an architectural MPIDR.
pub(crate) fn index_of_mpidr(mpidr: u64) -> u64 {
    index_of(mpidr, 32)
}

/// RmiRecParams after all checks that need no lock.
pub(crate) struct RecParams {
    flags: u64,
    mpidr: u64,
    pc: u64,
    gprs: [u64; 8],
    num_aux: usize,
    aux: [Pa; MAX_REC_AUX],
    aux_undelegated: bool,
}

/// Fields of RmiRecParams as (offset, length); everything else must be zero.
const REC_PARAMS_FIELDS: [(usize, usize); 6] =
    [(0x000, 8), (0x100, 8), (0x200, 8), (0x300, 64), (0x800, 8), (0x808, 8 * MAX_REC_AUX)];

/// The same for RMI 2.0, where auxiliary granules are donated.
const REC_PARAMS_FIELDS_V2: [(usize, usize); 4] = [(0x000, 8), (0x100, 8), (0x200, 8), (0x300, 64)];

impl RecParams {
    /// Decodes the parameters of RMI 2.0, for a REC whose auxiliary granules were donated in this
    /// state.
    pub(crate) fn parse_stateful(page: &Page, aux_undelegated: bool) -> Result<Self, Refusal> {
        if !page.is_zero_outside(&REC_PARAMS_FIELDS_V2) {
            return Err(Refusal::INPUT);
        }
        Ok(Self { aux_undelegated, ..Self::parse(page)? })
    }

    fn parse(page: &Page) -> Result<Self, Refusal> {
        let num_aux = usize::try_from(page.field::<8>(0x800)).map_err(|_| Refusal::INPUT)?;
        let flags = page.field::<8>(0);
        if num_aux > MAX_REC_AUX
            || flags & !RUNNABLE != 0
            || !page.is_zero_outside(&REC_PARAMS_FIELDS)
        {
            return Err(Refusal::INPUT);
        }
        Ok(Self {
            flags,
            mpidr: page.field::<8>(0x100),
            pc: page.field::<8>(0x200),
            gprs: core::array::from_fn(|i| page.field::<8>(0x300 + 8 * i)),
            num_aux,
            aux: core::array::from_fn(|i| Pa(page.field::<8>(0x808 + 8 * i))),
            aux_undelegated: false,
        })
    }

    /// The index that the MPIDR stands for; none if bits outside its fields are set.
    fn index(&self) -> Option<u64> {
        (self.mpidr & !0xffff_ff0f == 0).then(|| index_of(self.mpidr, 24))
    }

    /// The state in which the REC starts.
    fn context(&self) -> RecContext {
        const VMPIDR_RES1: u64 = 1 << 31;
        /// Debug communication channel accesses of EL0 trap to EL1.
        const MDSCR_TDCC: u64 = 1 << 12;
        let mut context = RecContext { pc: self.pc, pstate: RESET_PSTATE, ..Default::default() };
        context.gprs[..8].copy_from_slice(&self.gprs);
        context.el1 = El1State {
            sctlr_el1: RESET_SCTLR,
            mdscr_el1: MDSCR_TDCC,
            vmpidr_el2: self.mpidr & 0x00ff_ff0f | VMPIDR_RES1 | (self.mpidr >> 24 & 0xff) << 32,
            ..Default::default()
        };
        context.gic = GicState { ich_hcr: gic::HCR_MONITOR, ..Default::default() };
        context
    }
}

impl<P: Platform> Monitor<P> {
    pub(crate) fn load_rec(&self, pa: Pa) -> Rec {
        let mut rec = Rec {
            rd: 0,
            index: 0,
            runnable: 0,
            psci_pending: 0,
            host_call_pending: 0,
            timers_reported: 0,
            ripas: RipasRequest::default(),
            last_exit: LastExit::default(),
            context: RecContext::default(),
            aux: [0; MAX_REC_AUX],
            aux_undelegated: 0,
        };
        self.platform.read_realm(pa, rec.as_mut_bytes());
        rec
    }

    pub(crate) fn store_rec(&self, pa: Pa, rec: &Rec) {
        self.platform.write_realm(pa, rec.as_bytes());
    }

    /// REC_CREATE.
    pub(crate) fn rec_create(
        &self,
        rd_pa: Pa,
        rec_pa: Pa,
        params_pa: Pa,
    ) -> Result<Reply, Refusal> {
        let mut page = Page::zeroed();
        self.read_host(params_pa, &mut page.0)?;
        let params = RecParams::parse(&page)?;
        let aux = &params.aux[..params.num_aux];
        self.take_aux(aux)?;
        self.build_rec(rd_pa, (rec_pa, GranuleState::Delegated), &params, aux)
            .inspect_err(|_| self.return_aux(aux, false))
    }

    /// Makes delegated granules auxiliary ones: all or none.
    fn take_aux(&self, aux: &[Pa]) -> Result<(), Refusal> {
        for (taken, pa) in aux.iter().enumerate() {
            match self.lock(*pa, GranuleState::Delegated) {
                Ok(granule) => granule.set_state(GranuleState::RecAux),
                Err(refusal) => {
                    self.return_aux(&aux[..taken], false);
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }

    /// Makes auxiliary granules delegated ones.
    pub(crate) fn return_aux(&self, aux: &[Pa], wipe: bool) {
        for pa in aux {
            let granule = self.lock_own(*pa, GranuleState::RecAux);
            if wipe {
                self.platform.zero_granule(*pa);
            }
            granule.set_state(GranuleState::Delegated);
        }
    }

    /// Makes a REC of its granule, which is in the state that is given with it, and of auxiliary
    /// granules.
    pub(crate) fn build_rec(
        &self,
        rd_pa: Pa,
        rec: (Pa, GranuleState),
        params: &RecParams,
        aux: &[Pa],
    ) -> Result<Reply, Refusal> {
        let (rec_granule, rd_granule) = self.lock_pair(rec, (rd_pa, GranuleState::Rd))?;
        let rec_pa = rec_granule.pa();
        if rd_granule.refcount() == REFCOUNT_MAX {
            return Err(Refusal::REALM);
        }
        let mut rd = self.load_rd(&rd_granule);
        if rd.state() != RealmState::New {
            return Err(Refusal::REALM);
        }
        let Ok(aux) = <&[Pa; MAX_REC_AUX]>::try_from(aux) else {
            return Err(Refusal::INPUT);
        };
        if params.index() != Some(rd.rec_count) {
            return Err(Refusal::INPUT);
        }
        let rec = Rec {
            rd: rd_pa.0,
            index: rd.rec_count,
            runnable: params.flags & RUNNABLE,
            context: params.context(),
            aux: aux.map(|pa| pa.0),
            aux_undelegated: params.aux_undelegated.into(),
            ..self.load_rec(rec_pa)
        };
        if rec.runnable != 0 {
            rd.extend_rim(|algorithm, rim| {
                measure_rec(algorithm, rim, params.flags, params.pc, &params.gprs)
            });
        }
        self.note_rec(&rd_granule, rec.index, rec_pa);
        rd.rec_count += 1;
        self.store_rd(&rd_granule, &rd);
        rd_granule.get(1);
        self.store_rec(rec_pa, &rec);
        rec_granule.set_state(GranuleState::Rec);
        self.platform.init_rec(rec_pa, aux);
        Ok(Reply::SUCCESS)
    }

    /// REC_DESTROY.
    pub(crate) fn rec_destroy(&self, rec_pa: Pa) -> Result<Reply, Refusal> {
        let (aux, _) = self.take_rec_apart(rec_pa, GranuleState::Partial)?;
        self.return_aux(&aux, true);
        self.release(&self.lock_own(rec_pa, GranuleState::Partial));
        Ok(Reply::SUCCESS)
    }

    /// Ends a REC: its granule changes to `state`, and its auxiliary granules are the caller's to
    /// give back, undelegated if that is true.
    pub(crate) fn take_rec_apart(
        &self,
        rec_pa: Pa,
        state: GranuleState,
    ) -> Result<([Pa; MAX_REC_AUX], bool), Refusal> {
        let rd_pa = {
            let granule = self.lock(rec_pa, GranuleState::Rec)?;
            if granule.is_claimed() {
                return Err(Refusal::REC);
            }
            Pa(self.load_rec(rec_pa).rd)
        };
        // Both locks at once, in their order; the REC may have begun to run in between.
        let (granule, rd_granule) =
            self.lock_pair((rec_pa, GranuleState::Rec), (rd_pa, GranuleState::Rd))?;
        if granule.is_claimed() {
            return Err(Refusal::REC);
        }
        let rec = self.load_rec(rec_pa);
        self.platform.destroy_rec(rec_pa);
        self.note_rec(&rd_granule, rec.index, Pa(0));
        rd_granule.put(1);
        granule.set_state(state);
        Ok((rec.aux.map(Pa), rec.aux_undelegated != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_recs_share_an_aff1() {
        assert_eq!(index_of_mpidr(0), 0);
        assert_eq!(index_of_mpidr(0x8000_000f), 15);
        assert_eq!(index_of_mpidr(0x100), 16);
        assert_eq!(index_of_mpidr(0x1_0000), 1 << 12);
        assert_eq!(index_of_mpidr(1 << 32), 1 << 20);
    }
}
