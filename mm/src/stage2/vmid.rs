//! VMIDs: few numbers for any number of VMs, by generations.
//!
//! A VM gets a number when it first runs on a core. When the numbers are used up, a new generation
//! begins: all TLBs are flushed once, and every VM that is not loaded on a core draws a new number
//! when it runs again. A VM that is loaded keeps its number, because its core goes on filling the
//! TLB under it.

use core::sync::atomic::{AtomicU64, Ordering};

use super::geometry::VmidBits;

/// Numbers that the allocator hands out at most, including 0. More would only make rollovers rarer.
const NUMBERS: u64 = 256;
const NUMBER_BITS: u32 = 16;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;

/// A virtual machine identifier as the TLB knows it. Number 0 is never given to a VM: it is what
/// `VTTBR_EL2` holds when no VM is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u16);

impl Vmid {
    /// The VMID that belongs to no VM.
    pub const NONE: Self = Self(0);

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Which VMID a VM holds, with the generation it was drawn in. One per VM, beside the lock around its
/// `Stage2`, so that entering the VM needs no table lock.
#[derive(Debug, Default)]
pub struct VmidSlot(AtomicU64);

impl VmidSlot {
    /// A slot of a VM that has not run.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The number under which TLB entries of this VM may exist; `None` before it first ran.
    ///
    /// Read it only after the table change is visible ([`super::Tlb::publish`]): a number that is
    /// drawn later starts with an empty TLB and sees the change.
    #[must_use]
    pub fn current(&self) -> Option<Vmid> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            tag => Some(number(tag)),
        }
    }
}

fn number(tag: u64) -> Vmid {
    // The mask leaves 16 bits.
    Vmid((tag & NUMBER_MASK) as u16)
}

/// What to load into `VTTBR_EL2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Entry {
    /// The VM's number.
    pub vmid: Vmid,
    /// A generation has begun: flush all stage-1 and stage-2 entries of EL1&0 on all cores
    /// (`DSB ISHST; TLBI ALLE1IS; DSB ISH`) before the allocator's lock is released.
    pub flush: bool,
}

/// Hands out VMIDs; keep it under one lock. `CORES` is the number of cores that can load a VM.
#[derive(Debug)]
pub struct VmidAllocator<const CORES: usize> {
    generation: u64,
    numbers: u64,
    next: u64,
    used: [u64; (NUMBERS / 64) as usize],
    /// Per core, the tag that was asked for last and the one before it. The one before may still be
    /// in `VTTBR_EL2` between [`Self::enter`] and the register write, so both keep their number.
    loaded: [[u64; 2]; CORES],
    rollovers: u64,
}

impl<const CORES: usize> VmidAllocator<CORES> {
    /// An allocator for a machine with `bits` of VMID.
    #[must_use]
    pub const fn new(bits: VmidBits) -> Self {
        const { assert!(CORES >= 1 && CORES <= 64, "every core may hold two numbers") };
        let machine: u64 = match bits {
            VmidBits::Eight => 1 << 8,
            VmidBits::Sixteen => 1 << 16,
        };
        Self::with_numbers(if machine < NUMBERS { machine } else { NUMBERS })
    }

    const fn with_numbers(numbers: u64) -> Self {
        let mut used = [0; (NUMBERS / 64) as usize];
        used[0] = 1;
        Self { generation: 1, numbers, next: 1, used, loaded: [[0; 2]; CORES], rollovers: 0 }
    }

    /// Gives the VMID under which the VM of `slot` may now be loaded on `core`. Call it before every
    /// write of a VM's table to `VTTBR_EL2`; a VM that stays loaded need not ask again.
    ///
    /// # Panics
    ///
    /// If there is no core of this number: the caller's table of cores is wrong.
    pub fn enter(&mut self, core: usize, slot: &VmidSlot) -> Entry {
        assert!(core < CORES, "core {core} of {CORES} loads a VM");
        let held = slot.0.load(Ordering::SeqCst);
        let mut flush = false;
        let tag = if held >> NUMBER_BITS == self.generation {
            held
        } else if held != 0 && self.is_loaded(held) {
            // Loaded somewhere across a rollover: same number, new generation.
            let tag = self.tag(held & NUMBER_MASK);
            self.retag(held, tag);
            tag
        } else {
            let number = self.draw().unwrap_or_else(|| {
                flush = true;
                self.roll_over()
            });
            self.tag(number)
        };
        slot.0.store(tag, Ordering::SeqCst);
        let loaded = &mut self.loaded[core];
        if loaded[0] != tag {
            *loaded = [tag, loaded[0]];
        }
        Entry { vmid: number(tag), flush }
    }

    /// Rollovers so far: each cost one flush of all TLBs.
    #[must_use]
    pub const fn rollovers(&self) -> u64 {
        self.rollovers
    }

    fn tag(&self, number: u64) -> u64 {
        self.generation << NUMBER_BITS | number
    }

    fn is_loaded(&self, tag: u64) -> bool {
        self.loaded.iter().flatten().any(|&loaded| loaded == tag)
    }

    fn retag(&mut self, old: u64, new: u64) {
        for loaded in self.loaded.iter_mut().flatten() {
            if *loaded == old {
                *loaded = new;
            }
        }
    }

    fn draw(&mut self) -> Option<u64> {
        let free =
            (self.next..self.numbers).chain(1..self.next).find(|&number| !self.is_used(number))?;
        self.set_used(free);
        self.next = free + 1;
        Some(free)
    }

    fn roll_over(&mut self) -> u64 {
        self.generation += 1;
        self.rollovers += 1;
        self.used = [0; (NUMBERS / 64) as usize];
        self.set_used(0);
        for index in 0..CORES * 2 {
            let tag = self.loaded[index / 2][index % 2];
            self.set_used(tag & NUMBER_MASK);
        }
        self.next = 1;
        // At most two numbers per core are reserved, and `new` checks that there are more: a number is
        // always found. Number 0 would be safe as well, since no VM leaves entries under it.
        self.draw().unwrap_or(0)
    }

    fn is_used(&self, number: u64) -> bool {
        self.used.get((number / 64) as usize).is_none_or(|word| word & 1 << (number % 64) != 0)
    }

    fn set_used(&mut self, number: u64) {
        if let Some(word) = self.used.get_mut((number / 64) as usize) {
            *word |= 1 << (number % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const CORES: usize = 2;
    const VMS: usize = 12;

    /// TLBs of all cores, reduced to the question of this module: which VM's entries may be there
    /// under which number.
    #[derive(Default)]
    struct Tlbs {
        owners: BTreeMap<u16, usize>,
        /// Number and VM in `VTTBR_EL2` of each core.
        vttbr: [Option<(u16, usize)>; CORES],
    }

    impl Tlbs {
        /// Cores walk speculatively at any time.
        fn speculate(&mut self) {
            for (number, vm) in self.vttbr.into_iter().flatten() {
                let owner = *self.owners.entry(number).or_insert(vm);
                assert_eq!(owner, vm, "two VMs under one number");
            }
        }

        fn flush(&mut self) {
            self.owners.clear();
        }
    }

    proptest! {
        #[test]
        fn no_number_is_shared(
            numbers in 6u64..12,
            // Core, VM, and whether the register write is late: after the other core's next entry.
            entries in prop::collection::vec((0..CORES, 0..VMS, any::<bool>()), 1..200),
        ) {
            let mut allocator = VmidAllocator::<CORES>::with_numbers(numbers);
            let slots: Vec<VmidSlot> = (0..VMS).map(|_| VmidSlot::new()).collect();
            let mut tlbs = Tlbs::default();
            let mut late: [Option<(u16, usize)>; CORES] = [None; CORES];
            for (core, vm, is_late) in entries {
                tlbs.speculate();
                // A core writes the register before it enters another VM.
                if let Some(value) = late[core].take() {
                    tlbs.vttbr[core] = Some(value);
                    tlbs.speculate();
                }
                let entry = allocator.enter(core, &slots[vm]);
                prop_assert!(entry.vmid != Vmid::NONE);
                prop_assert_eq!(slots[vm].current(), Some(entry.vmid));
                if entry.flush {
                    tlbs.flush();
                    tlbs.speculate();
                }
                let value = Some((entry.vmid.get(), vm));
                if is_late {
                    late[core] = value;
                } else {
                    tlbs.vttbr[core] = value;
                }
                tlbs.speculate();
                // Invalidation goes by the slot, so it must name what every core uses.
                for (number, vm) in tlbs.vttbr.iter().chain(&late).flatten() {
                    prop_assert_eq!(slots[*vm].current(), Some(Vmid(*number)));
                }
            }
            if entries_fit(numbers, &slots) {
                prop_assert_eq!(allocator.rollovers(), 0, "rolled over with numbers to spare");
            }
        }
    }

    /// Whether all VMs that ran have a number each.
    fn entries_fit(numbers: u64, slots: &[VmidSlot]) -> bool {
        let ran = slots.iter().filter(|slot| slot.current().is_some()).count();
        (ran as u64) < numbers
    }

    #[test]
    fn a_machine_full_of_vms_rolls_over_once_per_generation() {
        let mut allocator = VmidAllocator::<1>::new(VmidBits::Eight);
        let slots: Vec<VmidSlot> = (0..256).map(|_| VmidSlot::new()).collect();
        let flushes = slots.iter().filter(|slot| allocator.enter(0, slot).flush).count();
        assert_eq!((flushes, allocator.rollovers()), (1, 1), "255 numbers for 256 VMs");
        // The VM that was loaded at the rollover kept its number.
        assert_eq!(slots[254].current(), Some(Vmid(255)));
        assert_eq!(allocator.enter(0, &slots[254]), Entry { vmid: Vmid(255), flush: false });
    }
}
