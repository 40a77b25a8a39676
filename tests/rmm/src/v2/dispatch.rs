//! From function identifier to command, RMI 2.0.

use crate::abi::{Refusal, Reply, VERSION_2_0, fid as v1};
use crate::addr::{Ipa, Pa};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::v2::granules::Change;
use crate::v2::map::Half;
use crate::v2::{Draft, Rmi2, fid};

/// Commands that need an active monitor and are in both drafts.
const COMMANDS: [u64; 22] = [
    fid::GRANULE_RANGE_DELEGATE,
    fid::GRANULE_RANGE_UNDELEGATE,
    fid::GPT_L1_CREATE,
    fid::RTT_DATA_MAP_INIT,
    fid::RTT_DATA_MAP,
    fid::RTT_DATA_UNMAP,
    fid::OP_CONTINUE,
    fid::OP_MEM_DONATE,
    fid::OP_MEM_RECLAIM,
    fid::OP_CANCEL,
    v1::REALM_CREATE,
    v1::REALM_ACTIVATE,
    v1::REALM_DESTROY,
    v1::REC_CREATE,
    v1::REC_DESTROY,
    v1::REC_ENTER,
    v1::PSCI_COMPLETE,
    v1::RTT_CREATE,
    v1::RTT_DESTROY,
    v1::RTT_FOLD,
    v1::RTT_READ_ENTRY,
    v1::RTT_INIT_RIPAS,
];

/// True if the draft has this command, which needs an active monitor.
fn exists(draft: Draft, function: u64) -> bool {
    let of_draft = match draft {
        Draft::V0_9 => [v1::RTT_MAP_UNPROTECTED, v1::RTT_UNMAP_UNPROTECTED, v1::RTT_SET_RIPAS]
            .contains(&function),
        Draft::Head | Draft::Late => {
            [fid::RTT_UNPROT_MAP, fid::RTT_UNPROT_UNMAP, fid::REALM_TERMINATE, v1::RTT_SET_RIPAS]
                .contains(&function)
        }
    };
    of_draft || COMMANDS.contains(&function)
}

impl<P: Platform> Monitor<P> {
    /// Runs the command; none if there is none with this identifier.
    pub(crate) fn dispatch_v2(&self, rmi2: &Rmi2, function: u64, args: [u64; 7]) -> Option<Reply> {
        let [x1, x2, ..] = args;
        let outcome = match function {
            v1::VERSION => Ok(crate::dispatch::version(x1, VERSION_2_0)),
            v1::FEATURES => Ok(Reply::with([self.feature_register_v2(rmi2, x1)])),
            fid::RMM_CONFIG_GET => self.rmm_config_get(Pa(x1)),
            fid::GRANULE_TRACKING_GET => self.granule_tracking_get(rmi2, Pa(x1), Pa(x2)),
            fid::RMM_ACTIVATE => self.rmm_activate(),
            fid::RMM_STATE_GET if rmi2.draft == Draft::Late => Ok(self.rmm_state_get()),
            fid::RMM_CONFIG_SET if self.is_active() => Err(Refusal::GLOBAL),
            fid::RMM_CONFIG_SET => self.rmm_config_set(Pa(x1)),
            _ if !exists(rmi2.draft, function) => return None,
            _ if !self.is_active() => Err(Refusal::GLOBAL),
            _ => self.run_v2(rmi2, function, args)?,
        };
        Some(outcome.unwrap_or_else(Reply::from))
    }

    /// Runs a command of an active monitor.
    fn run_v2(&self, rmi2: &Rmi2, function: u64, args: [u64; 7]) -> Option<Result<Reply, Refusal>> {
        let [x1, x2, x3, x4, x5, ..] = args;
        let rd = Pa(x1);
        let ipa_range = (Ipa(x2), Ipa(x3));
        Some(match function {
            fid::GRANULE_RANGE_DELEGATE => {
                self.granule_range(rmi2, (Pa(x1), Pa(x2)), Change::Delegate)
            }
            fid::GRANULE_RANGE_UNDELEGATE => {
                self.granule_range(rmi2, (Pa(x1), Pa(x2)), Change::Undelegate)
            }
            fid::GPT_L1_CREATE => self.gpt_l1_create(Pa(x1)),
            fid::RTT_DATA_MAP_INIT => self.data_create(rd, Pa(x2), Ipa(x3), Pa(x4), x5),
            fid::RTT_DATA_MAP => self.rtt_data_map(rmi2, rd, ipa_range, x4, x5),
            fid::RTT_DATA_UNMAP => self.rtt_unmap(rmi2, Half::Protected, rd, ipa_range, x4, x5),
            fid::RTT_UNPROT_MAP => self.rtt_unprot_map(rd, ipa_range, x4, x5),
            fid::RTT_UNPROT_UNMAP => self.rtt_unmap(rmi2, Half::Unprotected, rd, ipa_range, x4, x5),
            fid::OP_CONTINUE => self.op_continue(x1),
            fid::OP_MEM_DONATE => self.op_mem_donate(x1, Pa(x2), x3),
            fid::OP_MEM_RECLAIM => self.op_mem_reclaim(x1, Pa(x2), x3),
            fid::OP_CANCEL => self.op_cancel(x1),
            fid::REALM_TERMINATE => self.realm_terminate(rd),
            v1::REC_CREATE => self.rec_create_stateful(rmi2, rd, Pa(x2), Pa(x3)),
            v1::REC_DESTROY => self.rec_destroy_stateful(Pa(x1)),
            v1::PSCI_COMPLETE if !rmi2.draft.psci_names_target() => {
                self.psci_complete_by_mpidr(Pa(x1), x2)
            }
            // The rest is as in 1.0, but for what depends on the interface inside.
            _ => return self.dispatch_v1(function, args),
        })
    }
}
