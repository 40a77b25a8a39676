//! The 2.0 back end: address descriptors, stateful operations, ranges.

mod memory;
mod stateful;

use mm::ledger::Owner;
use mm::{PAGE_SIZE, PhysAddr};

use crate::command::Command;
use crate::conduit::{Host, HostMemoryExt};
use crate::error::Error;
use crate::features::{Abi, Dialect, Tracking};
use crate::geometry::LAST_LEVEL;
use crate::layout::RmmConfig;
use crate::rmm::Rmm;
use crate::status::Status;

pub(crate) use self::memory::Step;
pub(crate) use self::stateful::ListReserve;

/// Bytes of an entry of an address list.
pub(crate) const DESCRIPTOR_BYTES: u64 = 8;
/// Most entries of an address list: one page.
const MAX_LIST: u64 = PAGE_SIZE / DESCRIPTOR_BYTES;
/// Bytes of a tracking region as configured: the only size for granules of 4 KiB.
const TRACKING_REGION: u64 = 1 << 30;
/// Largest block count of a descriptor.
const MAX_BLOCKS: u64 = 1023;

/// A range of physical memory as lists and registers carry it (RmiAddrRangeDesc): block size in bits 1:0,
/// block count in bits 11:2, address in bits 51:12, state in bit 63 or, in late drafts, bits 63:62.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AddrRange {
    pub(crate) base: u64,
    /// Block size: 0 a granule, then one level of 512 more each.
    size: u8,
    blocks: u64,
    undelegated: bool,
}

impl AddrRange {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// The state of memory in the normal world; that of delegated memory is 0.
    const fn undelegated_state(late_draft: bool) -> u64 {
        if late_draft { 1 << 62 } else { 1 << 63 }
    }

    /// Most entries of an address list: one page.
    pub(crate) const MAX_LIST: u64 = MAX_LIST;

    /// A range of `blocks` blocks, each as large as an entry at `level`.
    const fn at_level(base: u64, level: i8, blocks: u64) -> Self {
        Self { base, size: (LAST_LEVEL - level) as u8, blocks, undelegated: false }
    }

    const fn encode(self, late_draft: bool) -> u64 {
        let state = if self.undelegated { Self::undelegated_state(late_draft) } else { 0 };
        state | self.base & Self::ADDRESS | (self.blocks & MAX_BLOCKS) << 2 | self.size as u64
    }

    pub(crate) const fn decode(word: u64, late_draft: bool) -> Self {
        Self {
            base: word & Self::ADDRESS,
            size: (word & 3) as u8,
            blocks: word >> 2 & MAX_BLOCKS,
            undelegated: word & Self::undelegated_state(late_draft) != 0,
        }
    }

    /// Granules in the range.
    pub(crate) const fn granules(&self) -> u64 {
        self.blocks << (9 * self.size as u32)
    }
}

impl<H: Host> Rmm<'_, H> {
    /// Configures and activates the RMM (RMM_CONFIG_SET, RMM_ACTIVATE), unless that has been done by
    /// whoever ran before us. The page for that, and another one, are kept for address lists.
    pub(crate) fn activate_v2(&self) -> Result<(), Error> {
        let page = self.alloc_interface(Owner::HYPERVISOR)?;
        let second = match self.alloc_interface(Owner::HYPERVISOR) {
            Ok(second) => second,
            Err(error) => {
                self.ledger.free(page);
                return Err(error);
            }
        };
        let config = RmmConfig { tracking_region_size: 0, granule_size: 0 };
        let outcome = self
            .host
            .store(page.base(), 0, &config)
            .map_err(Error::from)
            .and_then(|()| self.unless_active(Command::RmmConfigSet, [page.base().get()]));
        self.list_reserve.fill(page, second);
        outcome?;
        self.unless_active(Command::RmmActivate, [])
    }

    /// How the RMM keeps track of the memory from `base` on, and up to which address, at most `top`, that holds
    /// (GRANULE_TRACKING_GET). RMI 1.0 tracks all RAM that firmware has told it of by granule, and has no call to ask.
    ///
    /// # Errors
    /// The RMM refuses, as it does for addresses that it does not know, or its answer makes no sense.
    pub fn tracking(&self, base: PhysAddr, top: PhysAddr) -> Result<(Tracking, PhysAddr), Error> {
        let command = Command::GranuleTrackingGet;
        let (args, upto) = match self.capabilities().abi {
            Abi::V1 => return Ok((Tracking::Fine, top)),
            // One region, whose size RMM_CONFIG_SET has set.
            Abi::V2(Dialect { terminate: false, .. }) => {
                let region = base.align_down(TRACKING_REGION);
                ([region.get(), 0], Some(region.get().saturating_add(TRACKING_REGION)))
            }
            Abi::V2(_) => ([base.get(), top.get()], None),
        };
        let reply = self.demand(command, args)?;
        let upto = upto.unwrap_or(reply.x[3]).min(top.get());
        if upto <= base.get() {
            return Err(Error::progress(command, base.get(), upto));
        }
        let state = match reply.x[2] {
            1 => Tracking::None,
            2 => Tracking::Fine,
            3 => Tracking::Coarse,
            other => Tracking::Other(other),
        };
        Ok((state, PhysAddr::new(upto)))
    }

    /// A call that answers ERROR_GLOBAL if the RMM is active already.
    fn unless_active<const N: usize>(&self, command: Command, args: [u64; N]) -> Result<(), Error> {
        match self.operate(command, args, Owner::HYPERVISOR)?.status {
            Status::Success | Status::Global => Ok(()),
            status => Err(Error::Refused { command, status }),
        }
    }

    /// Finds out whether the RMM follows a late draft. This is known before it is activated, which may be an
    /// operation that asks for memory: commands that only late drafts have work before that.
    pub(crate) fn probe_late_draft(&self) -> Dialect {
        let late_draft = self.implements(Command::GptInfo) || self.implements(Command::RmmStateGet);
        Dialect { late_draft, ..Dialect::default() }
    }

    /// Finds out which draft of 2.0 an active RMM follows.
    pub(crate) fn probe_dialect(&self) -> Dialect {
        let ranges = self.implements(Command::RttUnprotMap);
        Dialect {
            per_entry_unprotected: !ranges && self.implements(Command::RttMapUnprotected),
            terminate: self.implements(Command::RealmTerminate),
            late_draft: self.is_late_draft(),
        }
    }

    /// Whether the RMM has a command, by a call whose arguments no draft accepts.
    fn implements(&self, command: Command) -> bool {
        // No granule begins at address 1.
        const MISALIGNED: u64 = 1;
        let status = self.call(command, [MISALIGNED, 0, 0, 0]).status;
        !matches!(status, Status::NotImplemented | Status::Global)
    }

    /// Whether the RMM follows a draft after TF-RMM main of July 2026.
    pub(crate) const fn is_late_draft(&self) -> bool {
        matches!(self.capabilities().abi, Abi::V2(Dialect { late_draft: true, .. }))
    }

    /// Stops a realm for good (REALM_TERMINATE), where that is a step of its own.
    pub(crate) fn terminate(&self, rd: PhysAddr, owner: Owner) -> Result<(), Error> {
        let Abi::V2(Dialect { terminate: true, .. }) = self.capabilities().abi else {
            return Ok(());
        };
        let command = Command::RealmTerminate;
        match self.operate(command, [rd.get()], owner)?.status {
            Status::Success => Ok(()),
            status => Err(Error::Refused { command, status }),
        }
    }

    /// Whether PSCI_COMPLETE has the target REC as an argument: all but late drafts of 2.0.
    pub(crate) const fn psci_names_target(&self) -> bool {
        !self.is_late_draft()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_encoded_as_the_reference_says() {
        let range = AddrRange::at_level(0x8020_0000, 2, 3);
        let page = AddrRange { undelegated: true, ..AddrRange::at_level(0x1000, 3, 1) };
        assert_eq!(range.granules(), 3 * 512);
        for late_draft in [false, true] {
            assert_eq!(range.encode(late_draft), 0x8020_0000 | 3 << 2 | 1);
            for range in [range, page] {
                assert_eq!(AddrRange::decode(range.encode(late_draft), late_draft), range);
            }
            assert_eq!(AddrRange::decode(u64::MAX, late_draft).granules(), 1023 << 27);
        }
        assert_eq!(page.encode(false), 1 << 63 | 0x1000 | 1 << 2);
        assert_eq!(page.encode(true), 1 << 62 | 0x1000 | 1 << 2);
    }
}
