//! Decoding of `ESR_EL2` for exceptions that a guest causes (Arm ARM, D24.2 `ESR_EL2`).

use vmm_services::exit::Width;

/// An exception syndrome (`ESR_EL2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Esr(pub u64);

/// Exception classes that can come from an AArch64 guest.
pub mod class {
    /// WFI, WFE, WFIT or WFET.
    pub const WFX: u8 = 0x01;
    /// Access to SVE, FP or SIMD that `CPTR_EL2` traps.
    pub const FP: u8 = 0x07;
    /// Pointer authentication.
    pub const PAUTH: u8 = 0x09;
    /// LD64B, ST64B and their variants.
    pub const LS64: u8 = 0x0a;
    /// 128-bit system register or instruction.
    pub const SYSREG128: u8 = 0x14;
    /// HVC from AArch64.
    pub const HVC64: u8 = 0x16;
    /// SMC from AArch64.
    pub const SMC64: u8 = 0x17;
    /// MSR, MRS or system instruction.
    pub const SYSREG: u8 = 0x18;
    /// SVE access.
    pub const SVE: u8 = 0x19;
    /// Transactional memory.
    pub const TME: u8 = 0x1b;
    /// SME access.
    pub const SME: u8 = 0x1d;
    /// Instruction abort from a lower EL.
    pub const INSTRUCTION_ABORT: u8 = 0x20;
    /// Data abort from a lower EL.
    pub const DATA_ABORT: u8 = 0x24;
}

impl Esr {
    /// Exception class, bits [31:26].
    #[must_use]
    pub fn class(self) -> u8 {
        (self.0 >> 26) as u8 & 0x3f
    }

    /// Instruction-specific syndrome, bits [24:0].
    #[must_use]
    pub fn iss(self) -> u32 {
        self.0 as u32 & 0x01ff_ffff
    }

    /// Length in bytes of the trapped instruction: 4, or 2 for a T32 one.
    #[must_use]
    pub fn instruction_bytes(self) -> u64 {
        if self.0 & (1 << 25) != 0 { 4 } else { 2 }
    }

    /// Fault status code of an abort, bits [5:0].
    #[must_use]
    pub fn fault_status(self) -> u8 {
        self.0 as u8 & 0x3f
    }

    /// Whether an abort is a granule protection fault: on a table walk at level 0 to 3 (0x24 to
    /// 0x27, 0x23 at level -1) or on the access itself (0x28).
    #[must_use]
    pub fn is_granule_protection_fault(self) -> bool {
        matches!(self.fault_status(), 0x23..=0x28)
    }

    /// Whether an abort is a stage-2 fault that the hypervisor or a device model can answer:
    /// translation (0x04 to 0x07), access flag (0x08 to 0x0b) or permission (0x0c to 0x0f).
    #[must_use]
    pub fn is_stage2_fault(self) -> bool {
        matches!(self.fault_status(), 0x04..=0x0f)
    }

    /// Whether an abort is a permission fault (0x0c to 0x0f).
    #[must_use]
    pub fn is_permission_fault(self) -> bool {
        matches!(self.fault_status(), 0x0c..=0x0f)
    }

    /// Whether an abort says that the memory does not allow this kind of access, because stage-2 makes it
    /// Device memory: alignment fault (0x21), or unsupported exclusive or atomic access (0x35).
    #[must_use]
    pub fn is_memory_type_fault(self) -> bool {
        matches!(self.fault_status(), 0x21 | 0x35)
    }

    /// Whether a data abort was caused by a cache maintenance instruction by address (CM), which says WnR
    /// whatever permission it needs.
    #[must_use]
    pub fn is_cache_maintenance(self) -> bool {
        self.0 & (1 << 8) != 0
    }

    /// Whether a data abort was caused by a store (WnR). A stage-1 walk that hits stage-2 is a read
    /// unless it wanted to update the descriptor.
    #[must_use]
    pub fn is_write(self) -> bool {
        self.0 & (1 << 6) != 0
    }

    /// Whether a stage-2 fault hit the walk of the guest's own stage-1 tables (S1PTW).
    #[must_use]
    pub fn is_stage1_walk(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// Whether a data abort has a syndrome of the access (ISV), by which it can be emulated: the methods
    /// below tell what it says.
    #[must_use]
    pub fn has_access(self) -> bool {
        self.0 & (1 << 24) != 0
    }

    /// Width of the access (SAS).
    #[must_use]
    pub fn access_width(self) -> Width {
        Width::from_sas(self.0 >> 22)
    }

    /// Number of the register that is loaded or stored (SRT); 31 is the zero register.
    #[must_use]
    pub fn access_register(self) -> u8 {
        (self.0 >> 16) as u8 & 0x1f
    }

    /// What the register gets from a load of the zero-extended `value`: extended by its sign if SSE says
    /// so, to 64 bits or, if SF says so, 32.
    #[must_use]
    pub fn extend(self, value: u64) -> u64 {
        let width = self.access_width();
        let value = value & width.mask();
        if self.0 & (1 << 21) == 0 {
            return value;
        }
        let unused = 64 - 8 * width.bytes() as u32;
        let extended = ((value << unused).cast_signed() >> unused).cast_unsigned();
        if self.0 & (1 << 15) != 0 { extended } else { extended & 0xffff_ffff }
    }
}

/// The IPA of a stage-2 fault, from `HPFAR_EL2` and the page offset of `FAR_EL2`.
#[must_use]
pub fn fault_ipa(hpfar: u64, far: u64) -> mm::Ipa {
    // HPFAR_EL2.FIPA is bits [47:4], IPA bits [55:12].
    mm::Ipa::new((hpfar & 0x0000_ffff_ffff_fff0) << 8 | (far & 0xfff))
}

/// A trapped MSR or MRS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysRegAccess {
    /// Encoding `op0:op1:CRn:CRm:op2`, packed as by [`encoding`].
    pub encoding: u32,
    /// Number of the general register; 31 is the zero register.
    pub register: u8,
    /// Whether the guest reads (MRS).
    pub read: bool,
}

impl SysRegAccess {
    /// Decodes the ISS of exception class 0x18.
    #[must_use]
    pub fn from_iss(iss: u32) -> Self {
        Self {
            encoding: encoding(
                iss >> 20 & 3,
                iss >> 14 & 7,
                iss >> 10 & 15,
                iss >> 1 & 15,
                iss >> 17 & 7,
            ),
            register: (iss >> 5) as u8 & 0x1f,
            read: iss & 1 != 0,
        }
    }
}

/// Packs a system register's encoding: op0 [15:14], op1 [13:11], CRn [10:7], CRm [6:3], op2 [2:0].
#[must_use]
pub const fn encoding(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// Whether this is a data cache operation by set and way: DC ISW, CSW or CISW.
#[must_use]
pub const fn is_set_way(register: u32) -> bool {
    const ISW: u32 = encoding(1, 0, 7, 6, 2);
    const CSW: u32 = encoding(1, 0, 7, 10, 2);
    const CISW: u32 = encoding(1, 0, 7, 14, 2);
    matches!(register, ISW | CSW | CISW)
}

/// When a trapped WFI, WFE, WFIT or WFET ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// At an interrupt.
    Interrupt,
    /// At an interrupt, or when the virtual counter reaches what this register holds.
    InterruptOrTime(u8),
    /// At an event, or at a time that the syndrome may not tell.
    Event,
}

impl WaitEnd {
    /// Decodes the ISS of exception class 0x01: TI in bits [1:0], RV in bit 2, RN in [9:5].
    #[must_use]
    pub const fn from_iss(iss: u32) -> Self {
        match (iss & 3, iss >> 2 & 1) {
            (0, _) => Self::Interrupt,
            (2, 1) => Self::InterruptOrTime((iss >> 5) as u8 & 0x1f),
            _ => Self::Event,
        }
    }
}

/// Whether this is a register of Armv8.0 debug: breakpoints, watchpoints, OS lock, claim tags, debug
/// channel. Trace and branch records, which have op0 2 as well, are not.
#[must_use]
pub const fn is_debug_register(encoding: u32) -> bool {
    let (op0, op1, crn) = (encoding >> 14, encoding >> 11 & 7, encoding >> 7 & 15);
    op0 == 2 && matches!(op1, 0 | 3) && matches!(crn, 0 | 1 | 4 | 5 | 7)
}
