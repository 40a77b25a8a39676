//! PSCI 1.1 as a realm sees it. The monitor keeps the power state of RECs; the host schedules them.

use crate::abi::{Refusal, Reply, exit_reason, psci_fid};
use crate::addr::{Ipa, Pa};
use crate::granule::{GranuleState, Locked};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::realm::RealmState;
use crate::rec::{RESET_PSTATE, RESET_SCTLR, Rec, index_of_mpidr};
use crate::rsi::{Next, answer, function_of};
use crate::run::ExitRecord;

/// PSCI version 1.1.
const VERSION_1_1: u64 = 1 << 16 | 1;
/// Endianness of EL1.
const SCTLR_EE: u64 = 1 << 25;

/// An exit that tells the host the first `count` argument registers.
fn psci_exit(rec: &Rec, count: usize) -> ExitRecord {
    let mut exit = ExitRecord::new(exit_reason::PSCI);
    exit.gprs[..count].copy_from_slice(&rec.context.gprs[..count]);
    exit
}

/// Argument `number` of the PSCI call in the registers: 32-bit calls have 32-bit arguments.
fn argument(rec: &Rec, number: usize) -> u64 {
    const CALL_64: u64 = 1 << 30;
    let value = rec.context.gprs.get(number).copied().unwrap_or(0);
    if function_of(rec) & CALL_64 != 0 { value } else { value & 0xffff_ffff }
}

impl<P: Platform> Monitor<P> {
    pub(crate) fn handle_psci(&self, rec: &mut Rec) -> Next {
        match function_of(rec) {
            psci_fid::VERSION => answer(rec, [VERSION_1_1]),
            psci_fid::FEATURES => psci_features(rec),
            psci_fid::CPU_SUSPEND_32 | psci_fid::CPU_SUSPEND => {
                // Every power state is a plain suspend; the host decides how long.
                let exit = psci_exit(rec, 1);
                answer(rec, [psci_fid::SUCCESS]);
                Next::Host(exit)
            }
            psci_fid::CPU_OFF => {
                let exit = psci_exit(rec, 1);
                rec.runnable = 0;
                answer(rec, [psci_fid::SUCCESS]);
                Next::Host(exit)
            }
            psci_fid::CPU_ON_32 | psci_fid::CPU_ON => self.psci_cpu_on(rec),
            psci_fid::AFFINITY_INFO_32 | psci_fid::AFFINITY_INFO => self.psci_affinity_info(rec),
            psci_fid::SYSTEM_OFF | psci_fid::SYSTEM_RESET => {
                let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
                let mut rd = self.load_rd(&granule);
                rd.set_state(RealmState::SystemOff);
                self.store_rd(&granule, &rd);
                Next::Host(psci_exit(rec, 1))
            }
            _ => answer(rec, [psci_fid::NOT_SUPPORTED]),
        }
    }

    fn psci_cpu_on(&self, rec: &mut Rec) -> Next {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let rd = self.load_rd(&granule);
        if !rd.stage2().is_protected(Ipa(argument(rec, 2))) {
            return answer(rec, [psci_fid::INVALID_ADDRESS]);
        }
        let target = index_of_mpidr(argument(rec, 1));
        if target >= rd.rec_count {
            answer(rec, [psci_fid::INVALID_PARAMETERS])
        } else if target == rec.index {
            answer(rec, [psci_fid::ALREADY_ON])
        } else {
            rec.psci_pending = 1;
            Next::Host(psci_exit(rec, 2))
        }
    }

    fn psci_affinity_info(&self, rec: &mut Rec) -> Next {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let rd = self.load_rd(&granule);
        let target = index_of_mpidr(argument(rec, 1));
        let lowest_level = argument(rec, 2);
        drop(granule);
        if lowest_level != 0 || target >= rd.rec_count {
            answer(rec, [psci_fid::INVALID_PARAMETERS])
        } else if target == rec.index {
            answer(rec, [psci_fid::SUCCESS])
        } else if self.rmi2().is_some_and(|rmi2| !rmi2.draft.psci_names_target()) {
            let is_on = self.rec_at(Pa(rec.rd), target).is_some_and(|pa| self.is_on(pa));
            answer(rec, [if is_on { psci_fid::SUCCESS } else { psci_fid::AFFINITY_OFF }])
        } else {
            rec.psci_pending = 1;
            Next::Host(psci_exit(rec, 2))
        }
    }

    /// True if the REC runs or may run.
    fn is_on(&self, rec: Pa) -> bool {
        match self.lock(rec, GranuleState::Rec) {
            Ok(granule) => granule.is_claimed() || self.load_rec(rec).runnable != 0,
            Err(_) => false,
        }
    }

    /// PSCI_COMPLETE: the host says which REC a request names, and if it agrees.
    pub(crate) fn psci_complete(
        &self,
        calling_pa: Pa,
        target_pa: Pa,
        status: u64,
    ) -> Result<Reply, Refusal> {
        let (calling_granule, target_granule) =
            self.lock_pair((calling_pa, GranuleState::Rec), (target_pa, GranuleState::Rec))?;
        // A running REC has no request pending.
        if calling_granule.is_claimed() {
            return Err(Refusal::INPUT);
        }
        let mut calling = self.load_rec(calling_pa);
        let target = self.load_rec(target_pa);
        if calling.psci_pending == 0
            || calling.rd != target.rd
            || index_of_mpidr(argument(&calling, 1)) != target.index
        {
            return Err(Refusal::INPUT);
        }
        let is_on = target_granule.is_claimed() || target.runnable != 0;
        let result = match (function_of(&calling), status) {
            (psci_fid::AFFINITY_INFO_32 | psci_fid::AFFINITY_INFO, psci_fid::SUCCESS) => {
                if is_on {
                    psci_fid::SUCCESS
                } else {
                    psci_fid::AFFINITY_OFF
                }
            }
            (psci_fid::AFFINITY_INFO_32 | psci_fid::AFFINITY_INFO, _) => {
                return Err(Refusal::INPUT);
            }
            (_, psci_fid::SUCCESS | psci_fid::DENIED) if is_on => psci_fid::ALREADY_ON,
            (_, psci_fid::DENIED) => psci_fid::DENIED,
            (_, psci_fid::SUCCESS) => {
                self.start_rec(&target_granule, target, &calling);
                psci_fid::SUCCESS
            }
            _ => return Err(Refusal::INPUT),
        };
        calling.psci_pending = 0;
        answer(&mut calling, [result]);
        self.store_rec(calling_pa, &calling);
        // The realm learns that the target is on, and the host that it had no say.
        if result == psci_fid::ALREADY_ON && status == psci_fid::DENIED {
            return Err(Refusal::INPUT);
        }
        Ok(Reply::SUCCESS)
    }

    /// PSCI_COMPLETE without the target: the monitor knows it from the request.
    pub(crate) fn psci_complete_by_mpidr(
        &self,
        calling_pa: Pa,
        status: u64,
    ) -> Result<Reply, Refusal> {
        let calling = {
            let granule = self.lock(calling_pa, GranuleState::Rec)?;
            if granule.is_claimed() {
                return Err(Refusal::INPUT);
            }
            self.load_rec(calling_pa)
        };
        if calling.psci_pending == 0 {
            return Err(Refusal::INPUT);
        }
        let target = self.rec_at(Pa(calling.rd), index_of_mpidr(argument(&calling, 1)));
        // Everything is checked again there, under the locks of both.
        self.psci_complete(calling_pa, target.ok_or(Refusal::INPUT)?, status)
    }

    /// Resets a REC that is off and makes it runnable at the entry point of CPU_ON.
    fn start_rec(&self, granule: &Locked<'_>, mut target: Rec, calling: &Rec) {
        let context = &mut target.context;
        context.pstate = RESET_PSTATE;
        context.el1.sctlr_el1 = RESET_SCTLR | calling.context.el1.sctlr_el1 & SCTLR_EE;
        context.pc = argument(calling, 2);
        context.gprs[0] = argument(calling, 3);
        target.runnable = 1;
        self.store_rec(granule.pa(), &target);
    }
}

fn psci_features(rec: &mut Rec) -> Next {
    let result = match argument(rec, 1) & 0xffff_ffff {
        psci_fid::VERSION
        | psci_fid::FEATURES
        | psci_fid::CPU_SUSPEND_32
        | psci_fid::CPU_SUSPEND
        | psci_fid::CPU_OFF
        | psci_fid::CPU_ON_32
        | psci_fid::CPU_ON
        | psci_fid::AFFINITY_INFO_32
        | psci_fid::AFFINITY_INFO
        | psci_fid::SYSTEM_OFF
        | psci_fid::SYSTEM_RESET
        | psci_fid::SMCCC_VERSION => psci_fid::SUCCESS,
        _ => psci_fid::NOT_SUPPORTED,
    };
    answer(rec, [result])
}
