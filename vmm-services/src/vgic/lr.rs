//! List registers: the window through which a virtual CPU interface sees pending interrupts.

use core::fmt;

/// Most list registers a virtual CPU interface has.
pub const MAX_LRS: usize = 16;

/// State field of a list register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LrState {
    /// Nothing in it.
    Invalid,
    /// Waits to be acknowledged.
    Pending,
    /// Acknowledged, not yet deactivated.
    Active,
    /// Acknowledged, and pending once more.
    PendingActive,
}

/// One list register, in the layout of ICH_LRn_EL2 (Arm IHI 0069 section 12.4).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct ListRegister(u64);

impl ListRegister {
    const STATE_SHIFT: u32 = 62;
    const HW: u64 = 1 << 61;
    const GROUP1: u64 = 1 << 60;
    const PRIORITY_SHIFT: u32 = 48;
    const EOI: u64 = 1 << 41;
    const PINTID_SHIFT: u32 = 32;

    /// The empty list register.
    pub const EMPTY: Self = Self(0);

    /// Wraps the value of the register.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the value of the register.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A list register that presents `vintid` with `priority`, in `state`.
    #[must_use]
    pub(crate) const fn new(vintid: u32, priority: u8, group1: bool, state: LrState) -> Self {
        let state = match state {
            LrState::Invalid => 0u64,
            LrState::Pending => 1,
            LrState::Active => 2,
            LrState::PendingActive => 3,
        };
        let group = if group1 { Self::GROUP1 } else { 0 };
        Self(
            vintid as u64
                | (priority as u64) << Self::PRIORITY_SHIFT
                | group
                | state << Self::STATE_SHIFT,
        )
    }

    /// Ties it to the physical interrupt `pintid`, which the guest's deactivation deactivates.
    #[must_use]
    pub(crate) const fn with_hardware(self, pintid: u32) -> Self {
        Self(self.0 | Self::HW | ((pintid & 0x1fff) as u64) << Self::PINTID_SHIFT)
    }

    /// Asks for a maintenance interrupt when the guest deactivates it.
    #[must_use]
    pub(crate) const fn with_eoi_maintenance(self) -> Self {
        Self(self.0 | Self::EOI)
    }

    /// Virtual interrupt number.
    #[must_use]
    pub const fn vintid(self) -> u32 {
        self.0 as u32
    }

    /// State.
    #[must_use]
    pub const fn state(self) -> LrState {
        match self.0 >> Self::STATE_SHIFT {
            0 => LrState::Invalid,
            1 => LrState::Pending,
            2 => LrState::Active,
            _ => LrState::PendingActive,
        }
    }

    /// Priority; the low three bits are zero.
    #[must_use]
    pub const fn priority(self) -> u8 {
        (self.0 >> Self::PRIORITY_SHIFT) as u8
    }

    /// Whether it is tied to a physical interrupt.
    #[must_use]
    pub const fn is_hardware(self) -> bool {
        self.0 & Self::HW != 0
    }
}

impl fmt::Debug for ListRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "LR({} {:?} prio {:#x}{})",
            self.vintid(),
            self.state(),
            self.priority(),
            if self.is_hardware() { " hw" } else { "" }
        )
    }
}

bitflags::bitflags! {
    /// Bits of ICH_HCR_EL2 that the planner asks for. All of them are ones that an RMM of
    /// interface 1.0 accepts from the host; `En` is the run loop's or the RMM's to add.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HcrBits: u64 {
        /// Maintenance interrupt when at most one list register is in use.
        const UIE = 1 << 1;
        /// Maintenance interrupt when an EOI found no list register.
        const LRENPIE = 1 << 2;
        /// Maintenance interrupt when no list register is pending.
        const NPIE = 1 << 3;
        /// Trap writes of ICC_DIR_EL1.
        const TDIR = 1 << 14;
    }
}

/// What goes into a virtual CPU interface before entry and what comes back after exit.
///
/// For an ordinary vCPU: ICH_LRn_EL2, ICH_HCR_EL2, ICH_VMCR_EL2. For a REC under RMI 1.0: the GIC
/// fields of the run page, `enter.gicv3_lrs` and `enter.gicv3_hcr` on the way in,
/// `exit.gicv3_lrs`, `exit.gicv3_hcr` and `exit.gicv3_vmcr` on the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LrImage {
    /// The list registers; those from `used` on are empty, and have to stay so.
    pub lrs: [ListRegister; MAX_LRS],
    /// How many list registers, from index 0, [`crate::vgic::Vgic::flush`] filled. The others need
    /// neither be written (if they are zero already) nor read back.
    pub used: usize,
    /// In: the wanted control bits, without `En`.
    pub hcr: HcrBits,
    /// In: physical PPIs, one bit per INTID of the machine, that have to be made active on this core
    /// first, since the guest wrote the state of what is tied to them.
    pub activate: u32,
    /// In: the same, for those to be made inactive.
    pub deactivate: u32,
    /// Out: what this run added to the `EOIcount` field of ICH_HCR_EL2 (bits 31 to 27).
    pub eoi_count: u8,
    /// Out: ICH_VMCR_EL2, whose priority mask tells what can wake the vCPU.
    pub vmcr: u64,
}

impl LrImage {
    /// No interrupts.
    pub const EMPTY: Self = Self {
        lrs: [ListRegister::EMPTY; MAX_LRS],
        used: 0,
        hcr: HcrBits::empty(),
        activate: 0,
        deactivate: 0,
        eoi_count: 0,
        vmcr: 0,
    };

    /// Largest `EOIcount`; one more is zero again.
    pub const EOI_COUNT_MAX: u8 = 0x1f;

    /// Takes `EOIcount` out of a value of ICH_HCR_EL2.
    #[must_use]
    pub const fn eoi_count_of(hcr: u64) -> u8 {
        (hcr >> 27) as u8 & Self::EOI_COUNT_MAX
    }
}

impl Default for LrImage {
    fn default() -> Self {
        Self::EMPTY
    }
}
