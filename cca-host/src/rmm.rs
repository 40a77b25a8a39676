//! The RMM as the driver sees it: negotiation, calls, and granules on their way in and out.

mod granules;
mod negotiate;
mod pool;

use core::fmt;
use core::hint;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::ledger::{Ledger, Owner};

pub(crate) use self::granules::Delegation;
pub use self::granules::Returned;
pub use self::negotiate::NegotiationError;
pub use self::pool::POOL_CAPACITY;
use self::pool::Pool;
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::features::{Abi, Capabilities};
use crate::status::Status;
use crate::v2::ListReserve;

/// How often a call that answers BUSY or BLOCKED is repeated before the driver gives up. "Busy" is
/// momentary: another core is inside the RMM with the same object.
const BUSY_RETRIES: u32 = 4096;

/// Settings of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Delegated granules to keep for the next table, REC or page instead of undelegating them, at most
    /// [`POOL_CAPACITY`]. They are accounted to the hypervisor until [`Rmm::drain_pool`].
    pub pool_limit: usize,
}

/// A negotiated connection to the RMM. Shared by all cores and realms.
pub struct Rmm<'l, H> {
    pub(crate) host: H,
    pub(crate) ledger: &'l Ledger<'static>,
    capabilities: Capabilities,
    counts: CallCounts,
    pool: Pool,
    pub(crate) list_reserve: ListReserve,
    /// A delegation call has been seen to do more than one granule.
    whole_ranges: AtomicBool,
}

/// Registers of an answer and its decoded status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) x: [u64; 8],
}

impl Reply {
    pub(crate) const fn from_registers(x: [u64; 8]) -> Self {
        Self { status: Status::from_word(x[0]), x }
    }

    /// Stands for a call that could not be made.
    pub(crate) const fn failed() -> Self {
        Self::from_registers([u64::MAX, 0, 0, 0, 0, 0, 0, 0])
    }
}

impl<'l, H: Host> Rmm<'l, H> {
    /// What negotiation found out.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The machine that carries the calls.
    #[must_use]
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// The ledger from which the driver takes memory.
    #[must_use]
    pub const fn ledger(&self) -> &'l Ledger<'static> {
        self.ledger
    }

    /// Number of calls made so far, by command.
    #[must_use]
    pub const fn calls(&self) -> &CallCounts {
        &self.counts
    }

    pub(crate) const fn is_v2(&self) -> bool {
        matches!(self.capabilities.abi, Abi::V2(_))
    }

    pub(crate) fn note_whole_ranges(&self) {
        self.whole_ranges.store(true, Ordering::Relaxed);
    }

    /// Most granules of a range that are taken back from the RMM at a time: all of it where a call undelegates it
    /// all, else what a level-2 block has, to keep the work under the ledger's lock short.
    pub(crate) fn take_back_limit(&self) -> u64 {
        if self.delegates_ranges() { u64::MAX } else { 512 }
    }

    /// Whether a delegation call has been seen to do more than one granule.
    pub(crate) fn delegates_ranges(&self) -> bool {
        self.whole_ranges.load(Ordering::Relaxed)
    }

    /// Makes one call; repeats it while the RMM says that it is busy.
    pub(crate) fn call<const N: usize>(&self, command: Command, args: [u64; N]) -> Reply {
        let mut registers = [0; 7];
        registers.iter_mut().zip(args).for_each(|(to, from)| *to = from);
        let mut reply = self.call_once(command, registers);
        for _ in 0..BUSY_RETRIES {
            if !matches!(reply.status, Status::Busy | Status::Blocked) {
                break;
            }
            hint::spin_loop();
            reply = self.call_once(command, registers);
        }
        reply
    }

    /// Makes one call that must succeed.
    pub(crate) fn demand<const N: usize>(
        &self,
        command: Command,
        args: [u64; N],
    ) -> Result<Reply, Error> {
        let reply = self.call(command, args);
        match reply.status {
            Status::Success => Ok(reply),
            status => Err(Error::Refused { command, status }),
        }
    }

    /// Makes a call that may turn out to be a stateful operation in 2.0, and carries it to its end.
    pub(crate) fn operate<const N: usize>(
        &self,
        command: Command,
        args: [u64; N],
        owner: Owner,
    ) -> Result<Reply, Error> {
        let reply = self.call(command, args);
        match reply.status {
            Status::Incomplete { .. } if self.is_v2() => self.carry_on(command, reply, owner),
            _ => Ok(reply),
        }
    }

    fn call_once(&self, command: Command, registers: [u64; 7]) -> Reply {
        self.counts.count(command);
        Reply::from_registers(self.host.call(command.fid(), registers))
    }
}

impl<H> fmt::Debug for Rmm<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rmm({})", self.capabilities)
    }
}

/// Number of RMI calls by command since negotiation.
pub struct CallCounts([AtomicU64; Command::COUNT]);

impl CallCounts {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Command::COUNT])
    }

    fn count(&self, command: Command) {
        if let Some(counter) = self.0.get(command.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Calls of one command.
    #[must_use]
    pub fn of(&self, command: Command) -> u64 {
        self.0.get(command.index()).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Calls of all commands.
    #[must_use]
    pub fn total(&self) -> u64 {
        Command::ALL.iter().map(|command| self.of(*command)).sum()
    }
}

impl fmt::Display for CallCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} RMI calls", self.total())?;
        for command in Command::ALL {
            let count = self.of(*command);
            if count > 0 {
                write!(f, ", {count} {}", command.name())?;
            }
        }
        Ok(())
    }
}
