//! The monitor as a whole: configuration, activation, features.

use core::sync::atomic::Ordering;

use crate::abi::{Refusal, Reply};
use crate::addr::{GRANULE_SIZE, Pa};
use crate::granule::{GranuleState, REFCOUNT_BITS};
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::realm::REC_TABLE_BITS;
use crate::v2::{Draft, Rmi2};

/// Size of a tracking region.
const TRACKING_REGION: u64 = 1 << 30;
/// RmiMemCategory of RAM.
const CONVENTIONAL: u64 = 0;
/// RmiTrackingRegionState: not tracked, tracked by granule.
const TRACKING_NONE: u64 = 1;
const TRACKING_FINE: u64 = 2;

impl<P: Platform> Monitor<P> {
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// RMM_ACTIVATE.
    pub(crate) fn rmm_activate(&self) -> Result<Reply, Refusal> {
        if self.active.swap(true, Ordering::AcqRel) {
            return Err(Refusal::GLOBAL);
        }
        Ok(Reply::SUCCESS)
    }

    /// RMM_STATE_GET. That it is there is known, its output is not: here whether the monitor is
    /// active.
    pub(crate) fn rmm_state_get(&self) -> Reply {
        Reply::with([u64::from(self.is_active())])
    }

    fn config_page(&self, page: Pa) -> Result<(), Refusal> {
        if page.0 == 0 { Err(Refusal::INPUT) } else { self.check_host(page) }
    }

    /// RMM_CONFIG_GET: 4 KiB granules, 1 GiB tracking regions, both encoded as zero.
    pub(crate) fn rmm_config_get(&self, page: Pa) -> Result<Reply, Refusal> {
        self.config_page(page)?;
        self.platform.write_ns(page, &[0; 16]).map_err(|_| Refusal::INPUT)?;
        Ok(Reply::SUCCESS)
    }

    /// RMM_CONFIG_SET: only what RMM_CONFIG_GET tells.
    pub(crate) fn rmm_config_set(&self, page: Pa) -> Result<Reply, Refusal> {
        self.config_page(page)?;
        let mut config = [0xff; 16];
        self.platform.read_ns(page, &mut config).map_err(|_| Refusal::INPUT)?;
        if config == [0; 16] { Ok(Reply::SUCCESS) } else { Err(Refusal::INPUT) }
    }

    /// RMI_FEATURES: registers 0 to 4; all others are zero.
    pub(crate) fn feature_register_v2(&self, rmi2: &Rmi2, index: u64) -> u64 {
        const GRANULE_4K: u64 = 1 << 0;
        const HASH_SHA_256: u64 = 1 << 3;
        const HASH_SHA_512: u64 = 1 << 5;
        const PPS_48_BITS: u64 = 5 << 14;
        let max_recs_order =
            if rmi2.draft.psci_names_target() { REFCOUNT_BITS } else { REC_TABLE_BITS };
        match index {
            0 => self.feature_register(0) & 0xffff_ffff,
            1 => {
                let recs = u64::from(max_recs_order) << 6;
                GRANULE_4K | HASH_SHA_256 | HASH_SHA_512 | recs | PPS_48_BITS
            }
            _ => 0,
        }
    }

    /// GRANULE_TRACKING_GET: all RAM is tracked by granule. v0.9 asks for one region, later
    /// drafts for a range.
    pub(crate) fn granule_tracking_get(
        &self,
        rmi2: &Rmi2,
        start: Pa,
        end: Pa,
    ) -> Result<Reply, Refusal> {
        let limit = 1 << self.features.pa_bits;
        let valid = match rmi2.draft {
            Draft::V0_9 => start.is_aligned(TRACKING_REGION) && start.0 < limit,
            Draft::Head | Draft::Late => {
                start.is_aligned(GRANULE_SIZE)
                    && end.is_aligned(GRANULE_SIZE)
                    && start < end
                    && end.0 < limit
            }
        };
        if !valid {
            return Err(Refusal::INPUT);
        }
        let tracked = self.granule_state(start).is_some();
        let state = if tracked { TRACKING_FINE } else { TRACKING_NONE };
        Ok(match rmi2.draft {
            Draft::V0_9 => Reply::with([CONVENTIONAL, state]),
            Draft::Head | Draft::Late => Reply::with([CONVENTIONAL, state, end.0]),
        })
    }

    /// GPT_L1_CREATE: all level 1 tables exist already.
    pub(crate) fn gpt_l1_create(&self, pa: Pa) -> Result<Reply, Refusal> {
        const L0_ENTRY: u64 = 1 << 30;
        Err(if pa.is_aligned(L0_ENTRY) { Refusal::GPT } else { Refusal::INPUT })
    }

    /// Makes `count` delegated granules from `pa` on data of zeroes: all or none.
    pub(crate) fn take_data(&self, pa: Pa, count: u64) -> Result<(), Refusal> {
        for number in 0..count {
            match self.lock(pa.offset(number * GRANULE_SIZE), GranuleState::Delegated) {
                Ok(granule) => {
                    self.platform.zero_granule(granule.pa());
                    granule.set_state(GranuleState::Data);
                }
                Err(refusal) => {
                    self.return_data(pa, number);
                    return Err(refusal);
                }
            }
        }
        Ok(())
    }

    /// Wipes data granules and makes them delegated.
    pub(crate) fn return_data(&self, pa: Pa, count: u64) {
        for number in 0..count {
            let pa = pa.offset(number * GRANULE_SIZE);
            self.release(&self.lock_own(pa, GranuleState::Data));
        }
    }
}
