//! Registers of distributor and redistributors.

use super::bank::Bank;
use super::{SHARED_BANKS, Vgic};
use crate::exit::{Access, MmioAccess, Width};
use crate::ids::{VcpuId, VcpuSet};
use crate::layout;

/// A register frame of the interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Distributor.
    Distributor,
    /// RD_base frame of a vCPU's redistributor.
    Redistributor(VcpuId),
    /// SGI_base frame of a vCPU's redistributor.
    Private(VcpuId),
}

/// An access, located.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameAccess {
    /// Frame.
    pub frame: Frame,
    /// Offset in bytes in the frame.
    pub offset: u32,
    /// Width.
    pub width: Width,
    /// Direction and data.
    pub access: Access,
}

const GICD_CTLR: u32 = 0x0000;
const GICD_TYPER: u32 = 0x0004;
const GICD_IIDR: u32 = 0x0008;
const GICD_IROUTER: u32 = 0x6100;
const GICD_IROUTER_END: u32 = GICD_IROUTER + 8 * 32 * SHARED_BANKS as u32;
const GICR_IIDR: u32 = 0x0004;
const GICR_TYPER: u32 = 0x0008;
const GICR_TYPER_HIGH: u32 = 0x000c;
const GICR_WAKER: u32 = 0x0014;
/// PIDR2, in all frames but SGI_base.
const PIDR2: u32 = 0xffe8;

const IGROUPR: u32 = 0x080;
const ISENABLER: u32 = 0x100;
const ICENABLER: u32 = 0x180;
const ISPENDR: u32 = 0x200;
const ICPENDR: u32 = 0x280;
const ISACTIVER: u32 = 0x300;
const ICACTIVER: u32 = 0x380;
const IPRIORITYR: u32 = 0x400;
const ICFGR: u32 = 0xc00;

const CTLR_GROUP0: u32 = 1;
const CTLR_GROUP1: u32 = 1 << 1;
/// Affinity routing and a single security state: both fixed.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
/// No 1-of-N routing, ten bits of INTID, this many banks.
const TYPER: u32 = 1 << 25 | 9 << 19 | SHARED_BANKS as u32;
/// Product 'S', revision 0, implementer Arm, as other hypervisors report.
const IIDR: u32 = 0x5300_043b;
/// GICv3, JEDEC code, the rest of the implementer.
const PIDR2_GICV3: u32 = 0x3b;
/// ProcessorSleep and ChildrenAsleep.
const WAKER_ASLEEP: u32 = 0b110;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
/// Interrupts of a private bank whose trigger can be configured. SGIs are edges. Whether a PPI can be
/// configured is implementation defined (GICv3, `GICR_ICFGR1`): these are levels, since the timers are,
/// and an edge of a realm's timer is not seen from outside between two exits.
const CONFIGURABLE_PRIVATE: u32 = 0;

/// A register that bank `bank` answers.
#[derive(Clone, Copy)]
enum BankRegister {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    /// Priorities from this index on.
    Priority(usize),
    /// Configuration of the low or high 16 interrupts.
    Config {
        high: bool,
    },
}

/// Which bank and register is at `offset` of the distributor; the SGI_base frame has the same with
/// bank 0 only. `None` for all that is not one of these, and for widths that are not allowed.
fn bank_register(offset: u32, width: Width) -> Option<(usize, BankRegister)> {
    if (IPRIORITYR..IPRIORITYR + 0x400).contains(&offset) {
        let intid = (offset - IPRIORITYR) as usize;
        return match width {
            Width::Byte | Width::Word => Some((intid / 32, BankRegister::Priority(intid % 32))),
            _ => None,
        };
    }
    if width != Width::Word {
        return None;
    }
    if (ICFGR..ICFGR + 0x100).contains(&offset) {
        let word = (offset - ICFGR) as usize / 4;
        return Some((word / 2, BankRegister::Config { high: word % 2 == 1 }));
    }
    let register = match offset & !0x7f {
        IGROUPR => BankRegister::Group,
        ISENABLER => BankRegister::SetEnable,
        ICENABLER => BankRegister::ClearEnable,
        ISPENDR => BankRegister::SetPending,
        ICPENDR => BankRegister::ClearPending,
        ISACTIVER => BankRegister::SetActive,
        ICACTIVER => BankRegister::ClearActive,
        _ => return None,
    };
    Some(((offset & 0x7f) as usize / 4, register))
}

/// Spreads 16 bits to the upper bits of 16 pairs, as ICFGR has them.
fn spread(half: u32) -> u32 {
    super::bits(half & 0xffff).fold(0, |word, index| word | 2 << (2 * index))
}

/// Collects the upper bits of 16 pairs.
fn gather(word: u32) -> u32 {
    (0..16).fold(0, |half, index| half | (word >> (2 * index + 1) & 1) << index)
}

impl Bank {
    fn read(&self, register: BankRegister, width: Width) -> u32 {
        match register {
            BankRegister::Group => self.group1,
            BankRegister::SetEnable | BankRegister::ClearEnable => self.enabled,
            BankRegister::SetPending | BankRegister::ClearPending => self.pending_state(),
            BankRegister::SetActive | BankRegister::ClearActive => self.active,
            BankRegister::Priority(first) => (0..width.bytes() as usize)
                .fold(0, |word, i| word | u32::from(self.priority(first + i)) << (8 * i)),
            BankRegister::Config { high } => spread(!self.level >> (16 * u32::from(high))),
        }
    }

    /// Writes `value`; returns the interrupts that this may matter to.
    fn write(
        &mut self,
        register: BankRegister,
        width: Width,
        value: u32,
        configurable: u32,
    ) -> u32 {
        match register {
            BankRegister::Group => {
                let changed = self.group1 ^ value;
                self.group1 = value;
                return changed;
            }
            BankRegister::SetEnable => self.enabled |= value,
            BankRegister::ClearEnable => self.enabled &= !value,
            BankRegister::SetPending => self.set_pending(value),
            BankRegister::ClearPending => self.clear_pending(value),
            BankRegister::SetActive => self.set_active(value, true),
            BankRegister::ClearActive => self.set_active(value, false),
            BankRegister::Priority(first) => {
                let bytes = value.to_le_bytes();
                let count = width.bytes() as usize;
                (first..).zip(bytes).take(count).for_each(|(i, p)| self.set_priority(i, p));
                return ((1_u32 << count) - 1) << first;
            }
            BankRegister::Config { high } => {
                let shift = 16 * u32::from(high);
                let mask = 0xffff << shift & configurable;
                let edge = gather(value) << shift;
                self.level = (self.level & !mask) | (!edge & mask);
                return mask;
            }
        }
        value
    }
}

impl Vgic {
    /// Finds the frame of an access; `None` when it is not to this interrupt controller.
    #[must_use]
    pub fn locate(&self, access: &MmioAccess) -> Option<FrameAccess> {
        let address = access.ipa.get();
        let found = |frame, offset: u64| FrameAccess {
            frame,
            offset: offset as u32,
            width: access.width,
            access: access.access,
        };
        if let Some(offset) = address.checked_sub(layout::GICR.get()) {
            let index = usize::try_from(offset / layout::GICR_STRIDE).ok()?;
            let vcpu = VcpuId::new(index).filter(|_| index < self.config.vcpus)?;
            let offset = offset % layout::GICR_STRIDE;
            return Some(match offset.checked_sub(layout::GICR_STRIDE / 2) {
                Some(offset) => found(Frame::Private(vcpu), offset),
                None => found(Frame::Redistributor(vcpu), offset),
            });
        }
        let offset = address.checked_sub(layout::GICD.get())?;
        (offset < layout::GICD_SIZE).then(|| found(Frame::Distributor, offset))
    }

    /// Performs an access; returns the value of a read (zero for a write) and whom to wake or kick.
    ///
    /// Reserved registers, unaligned accesses and widths that a register does not have read as zero
    /// and ignore writes.
    pub fn access(&mut self, access: &FrameAccess) -> (u64, VcpuSet) {
        let &FrameAccess { frame, offset, width, access } = access;
        if !u64::from(offset).is_multiple_of(width.bytes()) {
            return (0, VcpuSet::EMPTY);
        }
        match access {
            Access::Read => (self.read(frame, offset, width), VcpuSet::EMPTY),
            Access::Write(value) => (0, self.write(frame, offset, width, value)),
        }
    }

    fn read(&self, frame: Frame, offset: u32, width: Width) -> u64 {
        match frame {
            Frame::Distributor => self.read_distributor(offset, width),
            Frame::Redistributor(vcpu) => self.read_redistributor(vcpu, offset, width),
            Frame::Private(vcpu) => match bank_register(offset, width) {
                Some((0, register)) => {
                    u64::from(self.private[vcpu.index()].bank.read(register, width))
                }
                _ => 0,
            },
        }
    }

    fn read_distributor(&self, offset: u32, width: Width) -> u64 {
        if let Some((index, bit, half)) = router(offset, width) {
            let route = self.shared.get(index).and_then(|s| s.route.get(bit)).copied();
            return half.read(unpack_affinity(route.unwrap_or(0)));
        }
        // Interrupts below 32 are in the redistributors.
        if let Some((bank, register)) = bank_register(offset, width) {
            let shared = bank.checked_sub(1).and_then(|index| self.shared.get(index));
            return shared.map_or(0, |shared| u64::from(shared.bank.read(register, width)));
        }
        u64::from(match (offset, width) {
            (GICD_CTLR, Width::Word) => {
                let group0 = if self.groups.group0 { CTLR_GROUP0 } else { 0 };
                let group1 = if self.groups.group1 { CTLR_GROUP1 } else { 0 };
                CTLR_FIXED | group0 | group1
            }
            (GICD_TYPER, Width::Word) => TYPER,
            (GICD_IIDR, Width::Word) => IIDR,
            (PIDR2, Width::Word) => PIDR2_GICV3,
            _ => 0,
        })
    }

    fn read_redistributor(&self, vcpu: VcpuId, offset: u32, width: Width) -> u64 {
        let last = u64::from(vcpu.index() + 1 == self.config.vcpus);
        let typer = vcpu.mpidr() << 32 | (vcpu.index() as u64) << 8 | last << 4;
        match (offset, width) {
            (GICR_IIDR, Width::Word) => u64::from(IIDR),
            (GICR_TYPER, Width::Double) => typer,
            (GICR_TYPER, Width::Word) => typer & 0xffff_ffff,
            (GICR_TYPER_HIGH, Width::Word) => typer >> 32,
            (GICR_WAKER, Width::Word) if self.private[vcpu.index()].asleep => {
                u64::from(WAKER_ASLEEP)
            }
            (PIDR2, Width::Word) => u64::from(PIDR2_GICV3),
            _ => 0,
        }
    }

    fn write(&mut self, frame: Frame, offset: u32, width: Width, value: u64) -> VcpuSet {
        self.quiet = VcpuSet::EMPTY;
        match frame {
            Frame::Distributor => self.write_distributor(offset, width, value),
            Frame::Redistributor(vcpu) => {
                if (offset, width) == (GICR_WAKER, Width::Word) {
                    let asleep = value as u32 & WAKER_PROCESSOR_SLEEP != 0;
                    self.private[vcpu.index()].asleep = asleep;
                }
                VcpuSet::EMPTY
            }
            Frame::Private(vcpu) => match bank_register(offset, width) {
                Some((0, register)) => self.write_private(vcpu, register, width, value as u32),
                _ => VcpuSet::EMPTY,
            },
        }
    }

    fn write_private(
        &mut self,
        vcpu: VcpuId,
        register: BankRegister,
        width: Width,
        value: u32,
    ) -> VcpuSet {
        let bank = &mut self.private[vcpu.index()].bank;
        let changed = bank.write(register, width, value, CONFIGURABLE_PRIVATE);
        let hardware = matches!(
            register,
            BankRegister::SetPending
                | BankRegister::ClearPending
                | BankRegister::SetActive
                | BankRegister::ClearActive
        );
        if hardware && changed & self.tied != 0 {
            self.hardware_written(vcpu);
        }
        self.private_changed(vcpu, changed)
    }

    fn write_distributor(&mut self, offset: u32, width: Width, value: u64) -> VcpuSet {
        if (offset, width) == (GICD_CTLR, Width::Word) {
            let value = value as u32;
            self.groups.group0 = value & CTLR_GROUP0 != 0;
            self.groups.group1 = value & CTLR_GROUP1 != 0;
            return self.all_changed();
        }
        if let Some((index, bit, half)) = router(offset, width) {
            return self.write_route(index, bit, half, value);
        }
        let Some((bank, register)) = bank_register(offset, width) else { return VcpuSet::EMPTY };
        let Some(index) = bank.checked_sub(1) else { return VcpuSet::EMPTY };
        let vcpus = self.config.vcpus;
        let Some(shared) = self.shared.get_mut(index) else { return VcpuSet::EMPTY };
        let changed = shared.bank.write(register, width, value as u32, u32::MAX);
        if matches!(register, BankRegister::ClearActive) {
            shared.rehome(changed & shared.moved, vcpus);
        }
        self.shared_changed(index, changed)
    }

    fn write_route(&mut self, index: usize, bit: usize, half: Half, value: u64) -> VcpuSet {
        let vcpus = self.config.vcpus;
        let Some(shared) = self.shared.get_mut(index) else { return VcpuSet::EMPTY };
        let Some(route) = shared.route.get_mut(bit) else { return VcpuSet::EMPTY };
        *route = pack_affinity(half.merge(unpack_affinity(*route), value));
        shared.rehome(1 << bit, vcpus);
        self.shared_changed(index, 1 << bit)
    }
}

/// Part of a 64-bit register.
#[derive(Clone, Copy)]
enum Half {
    Both,
    Low,
    High,
}

impl Half {
    fn read(self, register: u64) -> u64 {
        match self {
            Self::Both => register,
            Self::Low => register & 0xffff_ffff,
            Self::High => register >> 32,
        }
    }

    fn merge(self, register: u64, value: u64) -> u64 {
        match self {
            Self::Both => value,
            Self::Low => register & !0xffff_ffff | value & 0xffff_ffff,
            Self::High => register & 0xffff_ffff | value << 32,
        }
    }
}

/// Shared bank, interrupt in it, and part of the GICD_IROUTER that an access is to.
fn router(offset: u32, width: Width) -> Option<(usize, usize, Half)> {
    if !(GICD_IROUTER..GICD_IROUTER_END).contains(&offset) {
        return None;
    }
    let half = match (width, offset % 8) {
        (Width::Double, 0) => Half::Both,
        (Width::Word, 0) => Half::Low,
        (Width::Word, 4) => Half::High,
        _ => return None,
    };
    let index = (offset - GICD_IROUTER) as usize / 8;
    Some((index / 32, index % 32, half))
}

/// `Aff3` in bits 39 to 32 and `Aff2.Aff1.Aff0` in bits 23 to 0, as GICD_IROUTER has them.
fn unpack_affinity(packed: u32) -> u64 {
    let packed = u64::from(packed);
    (packed >> 24) << 32 | packed & 0xff_ffff
}

/// The inverse; Interrupt_Routing_Mode (bit 31) is fixed at zero.
fn pack_affinity(register: u64) -> u32 {
    ((register >> 32 & 0xff) as u32) << 24 | (register as u32 & 0xff_ffff)
}
