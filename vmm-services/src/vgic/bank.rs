//! State of 32 interrupts, one bit each.

/// Priority bits that exist. Five is what every virtual CPU interface has at least (Arm IHI 0069,
/// ICH_VTR_EL2.PRIbits), and an RMM refuses list registers with others set.
pub(super) const PRIORITY_MASK: u8 = 0xf8;

/// 32 interrupts that share a word in every register of the distributor or redistributor.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    /// Group 1, else group 0.
    pub(super) group1: u32,
    /// Forwarding is enabled.
    pub(super) enabled: u32,
    /// Pending latch: edges and software. It moves into the list register with the interrupt.
    pub(super) pending: u32,
    /// Input lines.
    pub(super) line: u32,
    /// Level-sensitive, else edge-triggered.
    pub(super) level: u32,
    /// Acknowledged and not deactivated.
    pub(super) active: u32,
    /// In a list register of a vCPU that may be running.
    pub(super) listed: u32,
    /// Of those listed: the pending latch went with it, and is not in `pending` meanwhile.
    pub(super) latched: u32,
    /// Of those listed: pending state was written since; the list register's does not count.
    pub(super) pending_written: u32,
    /// Of those listed: active state was written since; the list register's does not count.
    pub(super) active_written: u32,
    /// Priorities, lower is more urgent; [`PRIORITY_MASK`] applied.
    pub(super) priority: [u8; 32],
}

/// Which groups the distributor forwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) group0: bool,
    pub(super) group1: bool,
}

impl Bank {
    /// After reset: all of group 1, disabled, priority 0. `level` tells which can be triggered by
    /// level; they are.
    pub(super) const fn new(level: u32) -> Self {
        Self {
            group1: u32::MAX,
            enabled: 0,
            pending: 0,
            line: 0,
            level,
            active: 0,
            listed: 0,
            latched: 0,
            pending_written: 0,
            active_written: 0,
            priority: [0; 32],
        }
    }

    /// Pending as ISPENDR shows it.
    pub(super) fn pending_state(&self) -> u32 {
        self.pending | self.latched | (self.line & self.level)
    }

    /// Pending, enabled and of a forwarded group; latches that moved to a list register left out.
    pub(super) fn wanting(&self, groups: Groups) -> u32 {
        let of_group1 = if groups.group1 { self.group1 } else { 0 };
        let of_group0 = if groups.group0 { !self.group1 } else { 0 };
        (self.pending | (self.line & self.level)) & self.enabled & (of_group1 | of_group0)
    }

    /// Drives lines: those in `mask` take the value `high`.
    pub(super) fn drive(&mut self, mask: u32, high: bool) {
        if high {
            self.pending |= mask & !self.line & !self.level;
            self.line |= mask;
        } else {
            self.line &= !mask;
        }
    }

    /// Makes `mask` pending by software.
    pub(super) fn set_pending(&mut self, mask: u32) {
        self.pending |= mask;
    }

    /// Takes the pending latches of `mask` away; lines that are high keep theirs pending.
    pub(super) fn clear_pending(&mut self, mask: u32) {
        self.pending &= !mask;
        self.latched &= !mask;
        self.pending_written |= mask & self.listed;
    }

    /// Writes the active state of `mask`.
    pub(super) fn set_active(&mut self, mask: u32, active: bool) {
        self.active = if active { self.active | mask } else { self.active & !mask };
        self.active_written |= mask & self.listed;
    }

    /// Lends `bit` to a list register, and its latch along if that presents it as pending.
    pub(super) fn lend(&mut self, bit: u32, pending: bool) {
        self.listed |= bit;
        if pending {
            self.latched |= self.pending & bit;
            self.pending &= !bit;
        }
    }

    /// Takes `bit` back from a list register that says `pending` and `active`.
    pub(super) fn unlist(&mut self, bit: u32, pending: bool, active: bool) {
        if pending && self.pending_written & bit == 0 {
            self.pending |= self.latched & bit;
        }
        if self.active_written & bit == 0 {
            self.active = if active { self.active | bit } else { self.active & !bit };
        }
        for mask in [
            &mut self.listed,
            &mut self.latched,
            &mut self.pending_written,
            &mut self.active_written,
        ] {
            *mask &= !bit;
        }
    }

    /// Sets the priority of interrupt `index`.
    pub(super) fn set_priority(&mut self, index: usize, priority: u8) {
        if let Some(slot) = self.priority.get_mut(index) {
            *slot = priority & PRIORITY_MASK;
        }
    }

    /// Priority of interrupt `index`.
    pub(super) fn priority(&self, index: usize) -> u8 {
        self.priority.get(index).copied().unwrap_or(0)
    }
}

/// Indices of the bits that are set, lowest first.
pub(super) fn bits(mut word: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let index = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (index < 32).then_some(index)
    })
}
