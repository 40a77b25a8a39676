//! A channel between two VMs: memory that both map, and a doorbell each way.
//!
//! Each of the two [`End`]s has a page of 32-bit registers and one level-triggered interrupt. The
//! memory carries whatever the two guests agree on; the hypervisor never looks at it. `docs/guest-abi.md`
//! is the contract for guests.
//!
//! A [`Link`] is the state of both register pages. It belongs to no VM: what one end writes
//! concerns the other, and either end may come and go while the other stays.

use crate::exit::{Access, Width};
use crate::manifest::Placement;

/// Bytes of a register page.
pub const REGISTERS_SIZE: u64 = mm::PAGE_SIZE;
/// Bit of [`reg::PENDING`] that says that [`reg::STATUS`] has changed. All others are rung by the peer.
pub const STATUS_CHANGED: u32 = 1 << 31;
/// Value of [`reg::MAGIC`]: "SZCH", first letter lowest.
pub const MAGIC: u32 = u32::from_le_bytes(*b"SZCH");
/// Value of [`reg::VERSION`].
pub const VERSION: u32 = 1;

/// Offsets of the registers.
pub mod reg {
    /// Read: [`super::MAGIC`].
    pub const MAGIC: u64 = 0x00;
    /// Read: [`super::VERSION`].
    pub const VERSION: u64 = 0x04;
    /// Read: [`super::Status`] of the peer.
    pub const STATUS: u64 = 0x08;
    /// Read and write: bit 0 is what the peer sees as [`super::Status::READY`].
    pub const CONTROL: u64 = 0x0c;
    /// Write: sets these bits, 0 to 30, in the peer's [`PENDING`].
    pub const DOORBELL: u64 = 0x10;
    /// Read: bits rung and not cleared yet. Write: clears the bits that are one.
    pub const PENDING: u64 = 0x14;
    /// Read and write: bits of [`PENDING`] that raise the interrupt.
    pub const ENABLE: u64 = 0x18;
    /// Read: low half of the address of the memory, without a realm's alias bit.
    pub const MEMORY_LOW: u64 = 0x20;
    /// Read: high half of it.
    pub const MEMORY_HIGH: u64 = 0x24;
    /// Read: low half of the size of the memory in bytes.
    pub const SIZE_LOW: u64 = 0x28;
    /// Read: high half of it.
    pub const SIZE_HIGH: u64 = 0x2c;
}

bitflags::bitflags! {
    /// What an end sees of its peer.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        /// The peer's VM exists.
        const PRESENT = 1 << 0;
        /// The peer has set bit 0 of its CONTROL register.
        const READY = 1 << 1;
    }
}

/// One of the two ends of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The VM that the scenario names first.
    First,
    /// The other.
    Second,
}

impl End {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// The other end.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// Where a VM finds one of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of the channel among all of the bundle.
    pub channel: usize,
    /// Which end it is.
    pub end: End,
    /// Registers and interrupt.
    pub registers: Placement,
    /// Memory.
    pub window: Window,
}

/// Memory of a channel, as an end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its address in the guest.
    pub base: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Registers of one end.
#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    present: bool,
    ready: bool,
    pending: u32,
    enable: u32,
}

/// What an access came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// Value of a read.
    pub value: u32,
    /// Whether the peer's interrupt line may have risen: it is to look at [`Link::line`].
    pub peer_rung: bool,
}

/// State of a channel.
#[derive(Clone, Debug, Default)]
pub struct Link {
    ends: [Registers; 2],
}

impl Link {
    /// A channel that no VM has joined.
    #[must_use]
    pub const fn new() -> Self {
        let none = Registers { present: false, ready: false, pending: 0, enable: 0 };
        Self { ends: [none; 2] }
    }

    /// The VM at `end` is there now, with its registers as after reset. Returns whether the peer is
    /// to look at its line.
    pub fn join(&mut self, end: End) -> bool {
        *self.own(end) = Registers { present: true, ..Registers::default() };
        self.tell_status(end)
    }

    /// The VM at `end` is gone. Returns whether the peer is to look at its line.
    pub fn leave(&mut self, end: End) -> bool {
        *self.own(end) = Registers::default();
        self.tell_status(end)
    }

    /// Whether a VM is at `end`.
    #[must_use]
    pub fn is_present(&self, end: End) -> bool {
        self.at(end).present
    }

    /// Whether the interrupt line of `end` is high.
    #[must_use]
    pub fn line(&self, end: End) -> bool {
        let own = self.at(end);
        own.pending & own.enable != 0
    }

    /// Accesses the register at `offset` of the page of `end`, whose memory is at `window`.
    ///
    /// Registers are accessed by aligned words. Anything else reads as zero and is ignored.
    pub fn access(
        &mut self,
        end: End,
        window: Window,
        offset: u64,
        width: Width,
        access: Access,
    ) -> Outcome {
        if width != Width::Word {
            return Outcome::default();
        }
        match access {
            Access::Read => Outcome { value: self.read(end, window, offset), peer_rung: false },
            Access::Write(value) => {
                Outcome { value: 0, peer_rung: self.write(end, offset, value as u32) }
            }
        }
    }

    fn read(&self, end: End, window: Window, offset: u64) -> u32 {
        let own = self.at(end);
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::STATUS => self.status(end).bits(),
            reg::CONTROL => u32::from(own.ready),
            reg::PENDING => own.pending,
            reg::ENABLE => own.enable,
            reg::MEMORY_LOW => window.base as u32,
            reg::MEMORY_HIGH => (window.base >> 32) as u32,
            reg::SIZE_LOW => window.size as u32,
            reg::SIZE_HIGH => (window.size >> 32) as u32,
            _ => 0,
        }
    }

    fn write(&mut self, end: End, offset: u64, value: u32) -> bool {
        match offset {
            reg::CONTROL => {
                let ready = value & 1 != 0;
                let changed = core::mem::replace(&mut self.own(end).ready, ready) != ready;
                changed && self.tell_status(end)
            }
            // Nobody is rung who is not there: a VM that comes starts with clean registers.
            reg::DOORBELL if self.is_present(end.peer()) => {
                self.raise(end.peer(), value & !STATUS_CHANGED)
            }
            reg::PENDING => {
                self.own(end).pending &= !value;
                false
            }
            reg::ENABLE => {
                self.own(end).enable = value;
                false
            }
            _ => false,
        }
    }

    /// What `end` sees of its peer.
    fn status(&self, end: End) -> Status {
        let peer = self.at(end.peer());
        let mut status = Status::empty();
        status.set(Status::PRESENT, peer.present);
        status.set(Status::READY, peer.ready);
        status
    }

    /// Tells the peer of `end`, if it is there, that its status register has changed.
    fn tell_status(&mut self, end: End) -> bool {
        self.is_present(end.peer()) && self.raise(end.peer(), STATUS_CHANGED)
    }

    /// Sets pending bits; `true` if the line has risen by that.
    fn raise(&mut self, end: End, bits: u32) -> bool {
        let before = self.line(end);
        self.own(end).pending |= bits;
        !before && self.line(end)
    }

    fn at(&self, end: End) -> &Registers {
        &self.ends[end.index()]
    }

    fn own(&mut self, end: End) -> &mut Registers {
        &mut self.ends[end.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const WINDOW: Window = Window { base: 0x1_2000_0000, size: 0x2_0000_1000 };

    fn read(link: &mut Link, end: End, offset: u64) -> u32 {
        link.access(end, WINDOW, offset, Width::Word, Access::Read).value
    }

    fn write(link: &mut Link, end: End, offset: u64, value: u32) -> bool {
        link.access(end, WINDOW, offset, Width::Word, Access::Write(value.into())).peer_rung
    }

    fn both() -> Link {
        let mut link = Link::new();
        assert!(!link.join(End::First) && !link.join(End::Second), "nothing is enabled yet");
        write(&mut link, End::First, reg::PENDING, u32::MAX);
        link
    }

    #[test]
    fn a_guest_finds_its_channel() {
        let mut link = both();
        let words = [reg::MAGIC, reg::VERSION, reg::STATUS, reg::CONTROL, reg::PENDING];
        let found = words.map(|offset| read(&mut link, End::First, offset));
        assert_eq!(found, [0x4843_5a53, 1, 1, 0, 0]);
        let memory = [reg::MEMORY_LOW, reg::MEMORY_HIGH, reg::SIZE_LOW, reg::SIZE_HIGH];
        let found = memory.map(|offset| read(&mut link, End::Second, offset));
        assert_eq!(found, [0x2000_0000, 1, 0x1000, 2]);
        for width in [Width::Byte, Width::Half, Width::Double] {
            let outcome = link.access(End::First, WINDOW, reg::MAGIC, width, Access::Read);
            assert_eq!(outcome, Outcome::default());
        }
    }

    #[test]
    fn a_doorbell_rings_once_until_it_is_answered() {
        let mut link = both();
        assert!(!write(&mut link, End::First, reg::DOORBELL, 0b01), "not enabled");
        write(&mut link, End::Second, reg::PENDING, 0b01);
        write(&mut link, End::Second, reg::ENABLE, 0b11);
        assert!(write(&mut link, End::First, reg::DOORBELL, 0b01));
        assert!(!write(&mut link, End::First, reg::DOORBELL, 0b11), "the line is high already");
        assert!(link.line(End::Second) && !link.line(End::First));
        write(&mut link, End::Second, reg::PENDING, 0b01);
        assert_eq!(read(&mut link, End::Second, reg::PENDING), 0b10);
        assert!(link.line(End::Second));
        write(&mut link, End::Second, reg::PENDING, 0b10);
        assert!(!link.line(End::Second));
    }

    #[test]
    fn comings_and_goings_are_told() {
        let mut link = Link::new();
        let _ = link.join(End::First);
        write(&mut link, End::First, reg::ENABLE, STATUS_CHANGED);
        write(&mut link, End::First, reg::DOORBELL, 1);
        assert!(link.join(End::Second));
        assert_eq!(read(&mut link, End::Second, reg::PENDING), 0, "rung before it was there");
        write(&mut link, End::First, reg::PENDING, STATUS_CHANGED);
        assert!(write(&mut link, End::Second, reg::CONTROL, 1));
        assert_eq!(read(&mut link, End::First, reg::STATUS), 0b11);
        write(&mut link, End::First, reg::PENDING, STATUS_CHANGED);
        assert!(!write(&mut link, End::Second, reg::CONTROL, 1), "nothing has changed");
        assert!(link.leave(End::Second));
        assert_eq!(read(&mut link, End::First, reg::STATUS), 0);
        assert!(!link.leave(End::First) && End::BOTH.iter().all(|end| !link.line(*end)));
    }

    /// What one end may see pending: a set of bits, and a word of enables.
    #[derive(Default)]
    struct Model {
        pending: BTreeSet<u32>,
        enable: u32,
    }

    proptest! {
        /// Whatever both ends do, an end sees exactly the bits rung by its peer that it has not
        /// cleared, and `peer_rung` is true exactly when a line rises.
        #[test]
        fn bits_are_neither_lost_nor_invented(
            steps in prop::collection::vec((any::<bool>(), 0..3_usize, any::<u32>(), any::<u32>()), 1..60)
        ) {
            let mut link = both();
            let mut model = [Model::default(), Model::default()];
            for (second, what, one, other) in steps {
                let end = if second { End::Second } else { End::First };
                let value = one & other;
                let peer_before = link.line(end.peer());
                let offset = [reg::DOORBELL, reg::PENDING, reg::ENABLE][what];
                let rung = write(&mut link, end, offset, value);
                prop_assert_eq!(rung, !peer_before && link.line(end.peer()));
                let bits = (0..32).filter(|bit| value & 1 << bit != 0);
                match what {
                    0 => model[end.peer().index()].pending.extend(bits.filter(|bit| *bit < 31)),
                    1 => bits.for_each(|bit| { model[end.index()].pending.remove(&bit); }),
                    _ => model[end.index()].enable = value,
                }
                for end in End::BOTH {
                    let model = &model[end.index()];
                    let pending = model.pending.iter().fold(0, |word, bit| word | 1 << bit);
                    let status = read(&mut link, end, reg::PENDING) & STATUS_CHANGED;
                    prop_assert_eq!(read(&mut link, end, reg::PENDING), pending | status);
                    prop_assert_eq!(link.line(end), (pending | status) & model.enable != 0);
                }
            }
        }
    }
}
