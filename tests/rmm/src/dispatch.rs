//! From function identifier to command.

use crate::abi::{Refusal, Reply, Status, VERSION_1_0, fid};
use crate::addr::{GRANULE_BYTES, GRANULE_SIZE, Ipa, Pa};
use crate::granule::{GranuleState, REFCOUNT_BITS};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::rec::MAX_REC_AUX;
use crate::v2::Abi;

impl<P: Platform> Monitor<P> {
    /// Runs the command; none if there is none with this identifier.
    pub(crate) fn dispatch(&self, function: u64, args: [u64; 7]) -> Option<Reply> {
        match &self.abi {
            Abi::V1_0 => Some(self.dispatch_v1(function, args)?.unwrap_or_else(Reply::from)),
            Abi::V2_0(rmi2) => self.dispatch_v2(rmi2, function, args),
        }
    }

    /// Runs a command of RMI 1.0.
    pub(crate) fn dispatch_v1(
        &self,
        function: u64,
        args: [u64; 7],
    ) -> Option<Result<Reply, Refusal>> {
        let [x1, x2, x3, x4, x5, ..] = args;
        let rd = Pa(x1);
        Some(match function {
            fid::VERSION => Ok(version(x1, VERSION_1_0)),
            fid::FEATURES => Ok(Reply::with([self.feature_register(x1)])),
            fid::GRANULE_DELEGATE => self.granule_delegate(Pa(x1)),
            fid::GRANULE_UNDELEGATE => self.granule_undelegate(Pa(x1)),
            fid::REALM_CREATE => self.realm_create(rd, Pa(x2)),
            fid::REALM_ACTIVATE => self.realm_activate(rd),
            fid::REALM_DESTROY => self.realm_destroy(rd),
            fid::REC_AUX_COUNT => self.rec_aux_count(rd),
            fid::REC_CREATE => self.rec_create(rd, Pa(x2), Pa(x3)),
            fid::REC_DESTROY => self.rec_destroy(Pa(x1)),
            fid::REC_ENTER => self.rec_enter(Pa(x1), Pa(x2)),
            fid::PSCI_COMPLETE => self.psci_complete(Pa(x1), Pa(x2), x3),
            fid::DATA_CREATE => self.data_create(rd, Pa(x2), Ipa(x3), Pa(x4), x5),
            fid::DATA_CREATE_UNKNOWN => self.data_create_unknown(rd, Pa(x2), Ipa(x3)),
            fid::DATA_DESTROY => Ok(self.data_destroy(rd, Ipa(x2))),
            fid::RTT_CREATE => self.rtt_create(rd, Pa(x2), Ipa(x3), x4),
            fid::RTT_DESTROY => Ok(self.rtt_destroy(rd, Ipa(x2), x3)),
            fid::RTT_FOLD => self.rtt_fold(rd, Ipa(x2), x3),
            fid::RTT_READ_ENTRY => self.rtt_read_entry(rd, Ipa(x2), x3),
            fid::RTT_MAP_UNPROTECTED => self.rtt_map_unprotected(rd, Ipa(x2), x3, x4),
            fid::RTT_UNMAP_UNPROTECTED => Ok(self.rtt_unmap_unprotected(rd, Ipa(x2), x3)),
            fid::RTT_INIT_RIPAS => self.rtt_init_ripas(rd, Ipa(x2), Ipa(x3)),
            fid::RTT_SET_RIPAS => self.rtt_set_ripas(rd, Pa(x2), Ipa(x3), Ipa(x4)),
            _ => return None,
        })
    }

    /// RMI_FEATURES: register 0; all others are zero.
    pub(crate) fn feature_register(&self, index: u64) -> u64 {
        const HASH_SHA_256: u64 = 1 << 32;
        const HASH_SHA_512: u64 = 1 << 33;
        if index != 0 {
            return 0;
        }
        let features = &self.features;
        let lrs_minus_1 = features.ich_vtr & 0xf;
        self.max_ipa_bits()
            | u64::from(features.num_bps & 0x3f) << 14
            | u64::from(features.num_wps & 0x3f) << 20
            | HASH_SHA_256
            | HASH_SHA_512
            | lrs_minus_1 << 34
            | u64::from(REFCOUNT_BITS) << 38
    }

    /// GRANULE_DELEGATE. The contents are lost.
    pub(crate) fn granule_delegate(&self, pa: Pa) -> Result<Reply, Refusal> {
        let granule = self.lock(pa, GranuleState::Undelegated)?;
        self.platform.gpt_delegate(pa).map_err(|_| Refusal::INPUT)?;
        granule.set_state(GranuleState::Delegated);
        self.platform.zero_granule(pa);
        Ok(Reply::SUCCESS)
    }

    /// GRANULE_UNDELEGATE. The granule has been wiped when it became unused.
    pub(crate) fn granule_undelegate(&self, pa: Pa) -> Result<Reply, Refusal> {
        let granule = self.lock(pa, GranuleState::Delegated)?;
        self.platform.gpt_undelegate(pa).map_err(|_| Refusal::INPUT)?;
        granule.set_state(GranuleState::Undelegated);
        Ok(Reply::SUCCESS)
    }

    /// REC_AUX_COUNT.
    fn rec_aux_count(&self, rd: Pa) -> Result<Reply, Refusal> {
        self.lock(rd, GranuleState::Rd)?;
        Ok(Reply::with([MAX_REC_AUX as u64]))
    }
}

/// RMI_VERSION: one version is implemented.
pub(crate) fn version(requested: u64, implemented: u64) -> Reply {
    let range = [implemented, implemented];
    if requested == implemented {
        Reply::with(range)
    } else {
        Reply::refused_with(Refusal { status: Status::Input, index: 0 }, range)
    }
}

const _: () = assert!(GRANULE_SIZE == GRANULE_BYTES as u64);
