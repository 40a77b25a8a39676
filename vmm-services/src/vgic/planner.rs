//! Lending interrupts to list registers and taking them back.

use super::bank::bits;
use super::{HcrBits, ListRegister, LrImage, LrState, MAX_INTID, MAX_LRS, SHARED_BANKS, Vgic};
use crate::ids::{VcpuId, VcpuSet};
use arrayvec::ArrayVec;

/// Banks of interrupts that one vCPU sees: its own and the shared ones.
const BANKS: usize = SHARED_BANKS + 1;

/// Interrupts that one vCPU could have to handle at once.
type Candidates = ArrayVec<u8, { MAX_INTID as usize + 1 }>;

/// Numbers of the interrupts whose bits are set.
fn candidates(words: &[u32; BANKS]) -> Candidates {
    // There are exactly as many places as interrupts.
    let numbers =
        (0..).zip(words).flat_map(|(n, &word)| bits(word).map(move |i| (32 * n + i) as u8));
    numbers.collect()
}

const VMCR_GROUP0_ENABLE: u64 = 1;
const VMCR_GROUP1_ENABLE: u64 = 1 << 1;
const VMCR_EOI_MODE: u64 = 1 << 9;
const VMCR_PRIORITY_MASK_SHIFT: u32 = 24;

impl Vgic {
    /// Fills `image` with what `vcpu` is to see. Call right before entry.
    ///
    /// The most urgent interrupts are chosen if there are more than list registers; then the control
    /// bits ask for the exits at which the others get their turn. `image` has to be the one that this
    /// vCPU was entered with last.
    #[inline]
    pub fn flush(&mut self, vcpu: VcpuId, image: &mut LrImage) {
        if !self.is_quiet(vcpu) {
            self.refill(vcpu, image);
        }
    }

    fn refill(&mut self, vcpu: VcpuId, image: &mut LrImage) {
        // Whoever entered and went straight on, or flushed and did not enter, may flush again.
        self.take_back(vcpu, image);
        let found = self.candidate_words(vcpu);
        let filled = image.used;
        image.used = if found == [0; BANKS] {
            image.hcr = HcrBits::empty();
            0
        } else {
            self.lend(vcpu, image, &found)
        };
        if let Some(unused) = image.lrs.get_mut(image.used..filled) {
            unused.fill(ListRegister::EMPTY);
        }
        let private = &mut self.private[vcpu.index()];
        let stale = core::mem::take(&mut private.hardware_stale);
        image.activate = 0;
        image.deactivate = 0;
        if stale != 0 {
            let active = private.hardware_active;
            image.activate = self.physical(stale & active);
            image.deactivate = self.physical(stale & !active);
        } else if image.used == 0 && !self.has_active_hardware_spis() {
            self.quiet.insert(vcpu);
        }
    }

    /// Lends the interrupts `found` to list registers, the most urgent of them if there are not enough;
    /// returns to how many.
    fn lend(&mut self, vcpu: VcpuId, image: &mut LrImage, found: &[u32; BANKS]) -> usize {
        let all: u32 = found.iter().map(|word| word.count_ones()).sum();
        if all as usize > self.config.list_registers {
            return self.lend_most_urgent(vcpu, image, found);
        }
        let mut count = 0;
        for (n, &word) in (0..).zip(found) {
            for index in bits(word) {
                let _ = self.lend_one(vcpu, image, count, 32 * n + index as u8);
                count += 1;
            }
        }
        image.hcr = HcrBits::empty();
        self.private[vcpu.index()].lent_count = count;
        count
    }

    #[inline(never)]
    fn lend_most_urgent(
        &mut self,
        vcpu: VcpuId,
        image: &mut LrImage,
        found: &[u32; BANKS],
    ) -> usize {
        let mut candidates = candidates(found);
        candidates.sort_unstable_by_key(|&intid| self.rank(vcpu, intid));
        let count = self.config.list_registers.min(candidates.len());
        let (chosen, rest) = candidates.split_at(count);
        let mut pending = 0;
        for (place, &intid) in chosen.iter().enumerate() {
            let state = self.lend_one(vcpu, image, place, intid);
            pending += usize::from(state == LrState::Pending);
        }
        image.hcr = self.control(vcpu, count, pending, rest);
        self.private[vcpu.index()].lent_count = count;
        count
    }

    /// Lends `intid` to list register `place`; returns the state that it has there.
    #[inline]
    fn lend_one(&mut self, vcpu: VcpuId, image: &mut LrImage, place: usize, intid: u8) -> LrState {
        let lr = self.list(vcpu, intid);
        let slots = image.lrs.get_mut(place).zip(self.private[vcpu.index()].lent.get_mut(place));
        if let Some((register, lent)) = slots {
            *register = lr;
            *lent = intid;
        }
        lr.state()
    }

    /// Takes back what `vcpu` did with `image`. Call right after every exit, before anything else is
    /// asked of the vGIC on behalf of this vCPU.
    ///
    /// Returns whom to wake or kick: shared interrupts may now go to where they have been routed.
    #[inline]
    pub fn sync(&mut self, vcpu: VcpuId, image: &LrImage) -> VcpuSet {
        if self.is_quiet(vcpu) {
            self.private[vcpu.index()].vmcr = image.vmcr;
            return VcpuSet::EMPTY;
        }
        self.take_back(vcpu, image);
        self.private[vcpu.index()].vmcr = image.vmcr;
        let mut kick = VcpuSet::EMPTY;
        (0..SHARED_BANKS).for_each(|index| kick.extend(self.settle(index)));
        kick.remove(vcpu);
        kick
    }

    /// Whether `vcpu` has an interrupt that ends its WFI: pending, enabled everywhere, and more
    /// urgent than the priority mask of its CPU interface.
    ///
    /// Means nothing while the vCPU's interrupts are lent out.
    #[must_use]
    pub fn has_pending(&self, vcpu: VcpuId) -> bool {
        let private = &self.private[vcpu.index()];
        let mask = (private.vmcr >> VMCR_PRIORITY_MASK_SHIFT) as u8;
        let group_enabled = |group1| {
            let enable = if group1 { VMCR_GROUP1_ENABLE } else { VMCR_GROUP0_ENABLE };
            private.vmcr & enable != 0
        };
        let signals = |bank: &super::Bank, wanting: u32| {
            bits(wanting & !bank.active).any(|index| {
                bank.priority(index as usize) < mask && group_enabled(bank.group1 >> index & 1 != 0)
            })
        };
        signals(&private.bank, private.bank.wanting(self.groups))
            || self.shared.iter().any(|shared| {
                let owned = shared.owned[vcpu.index()];
                owned != 0 && signals(&shared.bank, shared.bank.wanting(self.groups) & owned)
            })
    }

    /// Deactivates `intid` as a trapped write of ICC_DIR_EL1 by `vcpu` does; returns whom to wake or
    /// kick.
    pub(crate) fn deactivate(&mut self, vcpu: VcpuId, intid: u32) -> VcpuSet {
        self.clear_active(vcpu, intid);
        let bit = 1 << (intid % 32);
        match (intid / 32) as usize {
            0 => self.private_changed(vcpu, bit),
            n => {
                let mut kick = self.settle(n - 1);
                kick.extend(self.shared_changed(n - 1, bit));
                kick
            }
        }
    }

    fn clear_active(&mut self, vcpu: VcpuId, intid: u32) {
        let bit = 1 << (intid % 32);
        if intid >= 32 {
            if let Some(shared) = self.shared.get_mut((intid / 32) as usize - 1) {
                shared.bank.set_active(bit, false);
            }
            return;
        }
        self.private[vcpu.index()].bank.set_active(bit, false);
        if bit & self.tied != 0 {
            self.hardware_written(vcpu);
        }
    }

    /// Gives interrupts of shared bank `index` that were routed elsewhere while their owner had them
    /// to whom they belong now; returns whom to wake or kick.
    #[inline]
    fn settle(&mut self, index: usize) -> VcpuSet {
        let vcpus = self.config.vcpus;
        let Some(shared) = self.shared.get_mut(index) else { return VcpuSet::EMPTY };
        // Those that their owner still has stay with it, and are nobody's business until then.
        let done = shared.moved & !(shared.bank.listed | shared.bank.active);
        if done == 0 {
            return VcpuSet::EMPTY;
        }
        shared.rehome(done, vcpus);
        self.quiet = VcpuSet::EMPTY;
        self.shared_changed(index, done)
    }

    /// Interrupts that `vcpu` should see, active ones and those that want to become so: one bit each,
    /// the private bank first.
    #[inline]
    fn candidate_words(&self, vcpu: VcpuId) -> [u32; BANKS] {
        let mut words = [0; BANKS];
        let private = &self.private[vcpu.index()].bank;
        words[0] = private.wanting(self.groups) | private.active;
        for (word, shared) in words.iter_mut().skip(1).zip(&self.shared) {
            let owned = shared.owned[vcpu.index()];
            *word = (shared.bank.wanting(self.groups) | shared.bank.active) & owned;
        }
        words
    }

    fn bank(&self, vcpu: VcpuId, intid: u8) -> Option<&super::Bank> {
        match usize::from(intid / 32) {
            0 => Some(&self.private[vcpu.index()].bank),
            n => self.shared.get(n - 1).map(|shared| &shared.bank),
        }
    }

    /// Order in which interrupts get list registers.
    ///
    /// The most urgent first; at the same priority those that are active, which the others cannot
    /// preempt. In EOI mode 1 an active interrupt may have dropped its priority long ago and keep
    /// nobody waiting, and its deactivation can be trapped: there all pending ones come first.
    fn rank(&self, vcpu: VcpuId, intid: u8) -> (bool, u8, bool, u8) {
        let index = intid % 32;
        let bank = self.bank(vcpu, intid);
        let priority = bank.map_or(u8::MAX, |bank| bank.priority(usize::from(index)));
        let active = bank.is_some_and(|bank| bank.active >> index & 1 != 0);
        (active && self.separate_deactivation(vcpu), priority, !active, intid)
    }

    /// Whether the guest of `vcpu` drops priority and deactivates in two steps (EOI mode 1).
    fn separate_deactivation(&self, vcpu: VcpuId) -> bool {
        self.private[vcpu.index()].vmcr & VMCR_EOI_MODE != 0
    }

    /// Makes the list register of `intid` and lends the interrupt out.
    fn list(&mut self, vcpu: VcpuId, intid: u8) -> ListRegister {
        let groups = self.groups;
        let index = intid % 32;
        let bit = 1_u32 << index;
        let number = u32::from(intid);
        let (bank, moved, physical) = match usize::from(intid / 32) {
            0 => {
                let mut tied = self.config.hardware_ppis.iter().flatten();
                let physical = tied.find(|ppi| ppi.guest == number).map(|ppi| ppi.physical);
                (&mut self.private[vcpu.index()].bank, 0, physical)
            }
            n => match self.shared.get_mut(n - 1) {
                Some(shared) => {
                    let physical = (shared.tied & bit != 0).then_some(number);
                    (&mut shared.bank, shared.moved, physical)
                }
                None => return ListRegister::EMPTY,
            },
        };
        // What is routed elsewhere by now is pending there once it is not active here any more: as
        // for a level, the exit at deactivation decides.
        let resample = (bank.level | moved) & bit != 0;
        let active = bank.active & bit != 0;
        let pending = bank.wanting(groups) & bit != 0;
        let state = match (active, pending) {
            // Tied interrupts cannot be both (Arm IHI 0069, ICH_LRn_EL2.State).
            (true, true) if physical.is_none() && !resample => LrState::PendingActive,
            (true, _) => LrState::Active,
            (false, _) => LrState::Pending,
        };
        let lr = ListRegister::new(
            number,
            bank.priority(usize::from(index)),
            bank.group1 & bit != 0,
            state,
        );
        bank.lend(bit, state != LrState::Active);
        match (physical, resample) {
            (Some(physical), _) => lr.with_hardware(physical),
            (None, true) => lr.with_eoi_maintenance(),
            (None, false) => lr,
        }
    }

    /// Control bits for `count` list registers, `pending` of them pending, with `rest` left over.
    fn control(&self, vcpu: VcpuId, count: usize, pending: usize, rest: &[u8]) -> HcrBits {
        let mut control = HcrBits::empty();
        let active = |&intid: &u8| {
            self.bank(vcpu, intid).is_some_and(|bank| bank.active >> (intid % 32) & 1 != 0)
        };
        if rest.is_empty() {
            return control;
        }
        if rest.iter().any(active) {
            control |= HcrBits::LRENPIE;
            if self.separate_deactivation(vcpu) {
                // Deactivation is separate and in any order: only a trap tells which one.
                control |= HcrBits::TDIR;
            }
        }
        // Each asks for an exit at once if its condition holds already.
        if pending > 0 {
            control |= HcrBits::NPIE;
        } else if count > 1 {
            control |= HcrBits::UIE;
        }
        control
    }

    /// Takes everything back that `image` was lent, if it still is.
    #[inline]
    fn take_back(&mut self, vcpu: VcpuId, image: &LrImage) {
        if self.private[vcpu.index()].lent_count > 0 {
            self.reclaim(vcpu, image);
        }
    }

    /// Takes lent interrupts back, as the list registers of `image` have them now.
    #[inline(never)]
    fn reclaim(&mut self, vcpu: VcpuId, image: &LrImage) {
        self.deactivate_unlisted(vcpu, image.eoi_count);
        let tied = self.tied;
        let private = &mut self.private[vcpu.index()];
        let lent = private.lent;
        let count = core::mem::take(&mut private.lent_count).min(MAX_LRS);
        for (&intid, lr) in lent.iter().zip(&image.lrs).take(count) {
            let bit = 1_u32 << (intid % 32);
            // An empty list register need not keep the number. With another number than the one
            // that was lent, it says nothing about this interrupt.
            let state = lr.state();
            let known = state == LrState::Invalid || lr.vintid() == u32::from(intid);
            let state = if known { state } else { LrState::Pending };
            let pending = matches!(state, LrState::Pending | LrState::PendingActive);
            let active = matches!(state, LrState::Active | LrState::PendingActive);
            if intid < 32 {
                let private = &mut self.private[vcpu.index()];
                private.bank.unlist(bit, pending, active);
                if bit & tied != 0 && state == LrState::Invalid {
                    private.hardware_active &= !bit | private.bank.pending;
                }
            } else if let Some(shared) = self.shared.get_mut(usize::from(intid / 32) - 1) {
                shared.bank.unlist(bit, pending, active);
                if bit & shared.tied != 0 && state == LrState::Invalid {
                    shared.hardware_active &= !bit | shared.bank.pending;
                }
            }
        }
    }

    /// Deactivates the `count` most urgent active interrupts that are in no list register: the guest
    /// ended that many, and it ends the most urgent first.
    fn deactivate_unlisted(&mut self, vcpu: VcpuId, count: u8) {
        for _ in 0..count {
            let unlisted = |intid: &u8| {
                self.bank(vcpu, *intid)
                    .is_some_and(|bank| (bank.active & !bank.listed) >> (intid % 32) & 1 != 0)
            };
            let candidates = candidates(&self.candidate_words(vcpu));
            let next = candidates.into_iter().filter(unlisted).min_by_key(|&i| self.rank(vcpu, i));
            let Some(intid) = next else { return };
            self.clear_active(vcpu, u32::from(intid));
        }
    }
}
