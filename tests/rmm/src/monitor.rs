//! The monitor: one per machine, shared by all CPUs.

use core::sync::atomic::AtomicBool;

use crate::abi::{self, Refusal, Reply};
use crate::addr::{GRANULE_BYTES, Pa};
use crate::granule::{GranuleState, GranuleTable, Locked};
use crate::platform::{MachineFeatures, Platform};
use crate::v2::{Abi, OperationPool, Rmi2};
use crate::vmid::VmidPool;

/// A range of RAM whose granules can be delegated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First byte, granule aligned.
    pub base: Pa,
    /// Size in bytes, a multiple of the granule size.
    pub size: u64,
}

/// Why a monitor could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// There are more RAM ranges than the monitor keeps.
    TooManyRanges,
    /// A RAM range is empty, misaligned, or overlaps or precedes the range before it.
    BadRange,
    /// There are fewer granule slots than granules of RAM.
    TooFewSlots,
}

/// The Realm Management Monitor.
#[derive(Debug)]
pub struct Monitor<P> {
    pub(crate) platform: P,
    pub(crate) features: MachineFeatures,
    pub(crate) granules: GranuleTable,
    pub(crate) vmids: VmidPool,
    pub(crate) abi: Abi,
    /// RMI 2.0: RMM_ACTIVATE has been called.
    pub(crate) active: AtomicBool,
    pub(crate) operations: OperationPool,
}

impl<P: Platform> Monitor<P> {
    /// Starts a monitor that speaks RMI 1.0 over `ram`, ascending ranges, with one slot of the
    /// platform for each granule.
    ///
    /// # Errors
    /// The ranges or slots do not fit, see [`BootError`].
    pub fn new(platform: P, ram: &[RamRange]) -> Result<Self, BootError> {
        Self::with_abi(platform, ram, Abi::V1_0)
    }

    /// Starts a monitor like [`Monitor::new`] that speaks `abi`.
    ///
    /// # Errors
    /// The ranges or slots do not fit, see [`BootError`].
    pub fn with_abi(platform: P, ram: &[RamRange], abi: Abi) -> Result<Self, BootError> {
        let features = platform.features();
        let granules = GranuleTable::new(ram, platform.granule_slots().len())?;
        let contexts = match abi {
            Abi::V1_0 => 0,
            Abi::V2_0(rmi2) => rmi2.contexts,
        };
        Ok(Self {
            platform,
            features,
            granules,
            vmids: VmidPool::new(features.vmid_bits),
            abi,
            active: AtomicBool::new(false),
            operations: OperationPool::new(contexts),
        })
    }

    /// The details of 2.0, if the monitor speaks it.
    pub(crate) fn rmi2(&self) -> Option<&Rmi2> {
        match &self.abi {
            Abi::V1_0 => None,
            Abi::V2_0(rmi2) => Some(rmi2),
        }
    }

    /// The machine under the monitor.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// What the granule at `pa` is used for at this moment; none if `pa` is not a granule of RAM.
    pub fn granule_state(&self, pa: Pa) -> Option<GranuleState> {
        self.granules.peek(&self.platform, pa)
    }

    /// Handles one RMI call: `fid` is x0, `args` x1 to x7; the result is x0 to x7 (1.0 hosts get
    /// x0 to x4 from EL3). Of the registers that the command does not define as outputs, x1 to x3
    /// are zero and x4 to x7 keep their values. May be called on any CPU at any time, interrupts
    /// masked. Uses about 24 KiB of stack.
    pub fn handle(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        let reply = self.dispatch(fid & !abi::SVE_HINT, args);
        reply.unwrap_or(Reply::UNKNOWN).registers(args)
    }

    /// Locks the granule at `pa`, which the host claims to be in `state`.
    pub(crate) fn lock(&self, pa: Pa, state: GranuleState) -> Result<Locked<'_>, Refusal> {
        self.granules.lock(&self.platform, pa, state).ok_or(Refusal::INPUT)
    }

    /// Locks two granules that the host claims to be in their states; they must differ.
    pub(crate) fn lock_pair(
        &self,
        a: (Pa, GranuleState),
        b: (Pa, GranuleState),
    ) -> Result<(Locked<'_>, Locked<'_>), Refusal> {
        self.granules.lock_pair(&self.platform, a, b).ok_or(Refusal::INPUT)
    }

    /// Locks a granule that the monitor itself keeps in `state`.
    pub(crate) fn lock_own(&self, pa: Pa, state: GranuleState) -> Locked<'_> {
        match self.granules.lock(&self.platform, pa, state) {
            Some(locked) => locked,
            None => panic!("granule {:#x} is not in state {state:?} as recorded", pa.0),
        }
    }

    /// Copies from a granule that the host claims to be Non-secure.
    pub(crate) fn read_host(&self, pa: Pa, buf: &mut [u8]) -> Result<(), Refusal> {
        self.check_host(pa)?;
        self.platform.read_ns(pa, buf).map_err(|_| Refusal::INPUT)
    }

    /// Checks that `pa` is a granule of RAM that is not delegated.
    pub(crate) fn check_host(&self, pa: Pa) -> Result<(), Refusal> {
        match self.granules.peek(&self.platform, pa) {
            Some(GranuleState::Undelegated) => Ok(()),
            _ => Err(Refusal::INPUT),
        }
    }

    /// Wipes a granule of the monitor and makes it delegated.
    pub(crate) fn release(&self, granule: &Locked<'_>) {
        self.platform.zero_granule(granule.pa());
        granule.set_state(GranuleState::Delegated);
    }
}

/// A parameter page of the host, copied.
pub(crate) struct Page(pub(crate) [u8; GRANULE_BYTES]);

impl Page {
    pub(crate) const fn zeroed() -> Self {
        Self([0; GRANULE_BYTES])
    }

    /// The little-endian field of `N` bytes (at most 8) at `offset`, widened.
    pub(crate) fn field<const N: usize>(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.0[offset..offset + N]);
        u64::from_le_bytes(bytes)
    }

    /// True if every byte outside the `(offset, length)` pairs is zero. The pairs ascend.
    pub(crate) fn is_zero_outside(&self, fields: &[(usize, usize)]) -> bool {
        let mut gap = 0;
        for (offset, length) in fields {
            if self.0[gap..*offset].iter().any(|byte| *byte != 0) {
                return false;
            }
            gap = offset + length;
        }
        self.0[gap..].iter().all(|byte| *byte == 0)
    }
}
