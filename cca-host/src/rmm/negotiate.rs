//! Finding out which RMM is there (RMI_VERSION, RMI_FEATURES) and agreeing with it.

use core::fmt;
use core::sync::atomic::AtomicBool;

use mm::ledger::Ledger;

use super::pool::Pool;
use super::{CallCounts, Config, Reply, Rmm};
use crate::command::Command;
use crate::conduit::{Conduit, Host};
use crate::error::Error;
use crate::features::{Abi, Capabilities, Features, GicModel, Revision};
use crate::status::Status;
use crate::v2::ListReserve;

/// log2 of the granule size of RMI 1.0, and of the only size that today's 2.0 RMMs accept.
const GRANULE_SHIFT: u8 = 12;

/// Why there is no RMM to work with. Realms are refused with this; normal VMs do not care.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NegotiationError {
    /// RMI_VERSION is not implemented: no RMM, or it failed to boot.
    NoRmm,
    /// The RMM speaks no revision that the driver speaks.
    Version {
        /// Lowest revision offered, as a version word.
        lower: u64,
        /// Highest revision offered, as a version word.
        higher: u64,
    },
    /// The answer to RMI_VERSION makes no sense.
    Nonsense(Status),
    /// The RMM could not be configured or activated.
    Setup(Error),
}

impl fmt::Display for NegotiationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRmm => f.write_str("no RMM answers RMI_VERSION"),
            Self::Version { lower, higher } => {
                f.write_str("the RMM speaks RMI ")?;
                match (Revision::from_word(*lower), Revision::from_word(*higher)) {
                    (Some(lower), Some(higher)) => write!(f, "{lower} to {higher}")?,
                    _ => write!(f, "{lower:#x} to {higher:#x}")?,
                }
                f.write_str(", the hypervisor 1.0 and 2.0")
            }
            Self::Nonsense(status) => write!(f, "the RMM answers RMI_VERSION with {status}"),
            Self::Setup(error) => write!(f, "the RMM cannot be set up: {error}"),
        }
    }
}

impl core::error::Error for NegotiationError {}

/// Whether the words offer `revision`: same major version, and not below the lowest minor.
fn offers(lower: u64, higher: u64, revision: Revision) -> bool {
    match (Revision::from_word(lower), Revision::from_word(higher)) {
        (Some(lower), Some(higher)) => lower <= revision && revision.major <= higher.major,
        _ => false,
    }
}

/// Asks for a revision. `Ok(None)`: not offered.
fn request(
    host: &impl Conduit,
    revision: Revision,
) -> Result<(Option<()>, u64, u64), NegotiationError> {
    let registers = host.call(Command::Version.fid(), [revision.word(), 0, 0, 0, 0, 0, 0]);
    let reply = Reply::from_registers(registers);
    let (lower, higher) = (reply.x[1], reply.x[2]);
    match reply.status {
        Status::Success => Ok((Some(()), lower, higher)),
        Status::Input => Ok((offers(lower, higher, revision).then_some(()), lower, higher)),
        Status::NotImplemented => Err(NegotiationError::NoRmm),
        status => Err(NegotiationError::Nonsense(status)),
    }
}

impl<'l, H: Host> Rmm<'l, H> {
    /// Finds out what the RMM speaks and supports, and prepares it for realms.
    ///
    /// Asks for 1.0 first and then for 2.0: no RMM in the field offers both.
    ///
    /// # Errors
    /// See [`NegotiationError`]. The machine is as before, apart from an RMM that is configured but
    /// could not be activated.
    pub fn negotiate(
        host: H,
        ledger: &'l Ledger<'static>,
        config: Config,
    ) -> Result<Self, NegotiationError> {
        let (v1, mut lower, mut higher) = request(&host, Revision::V1_0)?;
        let is_v1 = v1.is_some();
        if !is_v1 {
            let (v2, low, high) = request(&host, Revision::V2_0)?;
            (lower, higher) = (low, high);
            if v2.is_none() {
                return Err(NegotiationError::Version { lower, higher });
            }
        }
        let (Some(low), Some(high)) = (Revision::from_word(lower), Revision::from_word(higher))
        else {
            return Err(NegotiationError::Version { lower, higher });
        };
        let register = |index: u64| {
            let x = host.call(Command::Features.fid(), [index, 0, 0, 0, 0, 0, 0]);
            if Status::from_word(x[0]) == Status::Success { x[1] } else { 0 }
        };
        let last = if is_v1 { 0 } else { 4 };
        let mut registers = [0; 5];
        for (value, index) in registers.iter_mut().zip(0..=last) {
            *value = register(index);
        }
        let [reg0, reg1, ..] = registers;
        let features = if is_v1 { Features::from_v1(reg0) } else { Features::from_v2(reg0, reg1) };
        let capabilities = Capabilities {
            lower: low,
            higher: high,
            abi: if is_v1 { Abi::V1 } else { Abi::V2(crate::features::Dialect::default()) },
            features,
            registers,
            gic: if is_v1 {
                GicModel::RunPage { list_registers: features.list_registers }
            } else {
                GicModel::Hardware
            },
            granule_shift: GRANULE_SHIFT,
        };
        let pool = Pool::new(config.pool_limit);
        let counts = CallCounts::new();
        let whole_ranges = AtomicBool::new(false);
        let list_reserve = ListReserve::new();
        let mut rmm = Self { host, ledger, capabilities, counts, pool, list_reserve, whole_ranges };
        if !is_v1 {
            rmm.capabilities.abi = Abi::V2(rmm.probe_late_draft());
            if let Err(error) = rmm.activate_v2() {
                rmm.list_reserve.empty().for_each(|page| ledger.free(page));
                return Err(NegotiationError::Setup(error));
            }
            rmm.capabilities.abi = Abi::V2(rmm.probe_dialect());
        }
        Ok(rmm)
    }
}
