//! One end of a channel to another guest: see `docs/guest-abi.md`.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use safe_mmio::fields::{ReadPure, ReadPureWrite, WriteOnly};
use safe_mmio::{UniqueMmioPointer, field, field_shared};

use crate::boot::{MAX_CHANNELS, Place};
use crate::{gic, mmu};

const MAGIC: u32 = u32::from_le_bytes(*b"SZCH");
const VERSION: u32 = 1;

/// Event, and bit of the interrupt: what [`Channel::peer`] says has changed.
pub const PEER_CHANGED: u32 = 1 << 31;
/// Bit of [`Channel::peer`]: the peer's VM exists.
pub const PRESENT: u32 = 1 << 0;
/// Bit of [`Channel::peer`]: the peer is ready.
pub const READY: u32 = 1 << 1;

#[repr(C)]
struct Registers {
    magic: ReadPure<u32>,
    version: ReadPure<u32>,
    status: ReadPure<u32>,
    control: ReadPureWrite<u32>,
    doorbell: WriteOnly<u32>,
    pending: ReadPureWrite<u32>,
    enable: ReadPureWrite<u32>,
}

/// What the interrupt handler knows of a channel.
struct Slot {
    intid: AtomicU32,
    /// IPA of the registers.
    registers: AtomicU64,
    /// Bits that were pending and that nobody has taken yet.
    events: AtomicU32,
}

static SLOTS: [Slot; MAX_CHANNELS] = [const {
    Slot { intid: AtomicU32::new(0), registers: AtomicU64::new(0), events: AtomicU32::new(0) }
}; MAX_CHANNELS];

/// One end of a channel, in use by one vCPU.
pub struct Channel {
    registers: UniqueMmioPointer<'static, Registers>,
    slot: &'static Slot,
    memory: NonNull<u64>,
    words: usize,
}

fn registers(ipa: u64) -> UniqueMmioPointer<'static, Registers> {
    let registers = mmu::device(ipa);
    // SAFETY: the MMU maps the channel's registers there as device memory. The interrupt handler and
    // the vCPU that it interrupts both access them, by single reads and writes, and the handler leaves
    // PENDING alone to itself.
    unsafe { UniqueMmioPointer::new(registers) }
}

impl Channel {
    /// Takes channel number `index` of the guest into use and enables its interrupt for this vCPU.
    ///
    /// # Errors
    ///
    /// It is not there, or the GIC refuses its interrupt.
    pub fn open(index: usize, place: &Place) -> Result<Self, &'static str> {
        let slot = SLOTS.get(index).ok_or("too many channels")?;
        slot.registers.store(place.registers, Ordering::Relaxed);
        slot.intid.store(place.intid, Ordering::Release);
        let mut registers = registers(place.registers);
        let found =
            (field_shared!(registers, magic).read(), field_shared!(registers, version).read());
        if found != (MAGIC, VERSION) {
            return Err("the channel's registers are not there");
        }
        gic::enable_shared(place.intid)?;
        field!(registers, enable).write(u32::MAX);
        let words = usize::try_from(place.size / 8).map_err(|_| "the channel is too large")?;
        Ok(Self { registers, slot, memory: mmu::shared(place.memory), words })
    }

    /// Tells the peer whether this end is ready.
    pub fn set_ready(&mut self, ready: bool) {
        field!(self.registers, control).write(u32::from(ready));
    }

    /// What is known of the peer: [`PRESENT`] and [`READY`].
    #[must_use]
    pub fn peer(&self) -> u32 {
        field_shared!(self.registers, status).read()
    }

    /// Rings the peer with these bits, 0 to 30. What was written to the memory before is visible to it.
    pub fn ring(&mut self, bits: u32) {
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
        field!(self.registers, doorbell).write(bits);
    }

    /// Takes the events that the peer, or the hypervisor, has raised since the last call.
    #[must_use]
    pub fn take_events(&self) -> u32 {
        self.slot.events.swap(0, Ordering::AcqRel)
    }

    /// Number of 64-bit words of the memory.
    #[must_use]
    pub const fn words(&self) -> usize {
        self.words
    }

    /// Reads word `index` of the memory; 0 behind its end.
    #[must_use]
    pub fn read(&self, index: usize) -> u64 {
        if index >= self.words {
            return 0;
        }
        // SAFETY: the word lies in the channel's memory, which is mapped and which no Rust object
        // lies in. The peer may write it at any time, hence the volatile access.
        unsafe { self.memory.as_ptr().wrapping_add(index).read_volatile() }
    }

    /// Writes word `index` of the memory; does nothing behind its end.
    pub fn write(&mut self, index: usize, value: u64) {
        if index < self.words {
            // SAFETY: as in `read`.
            unsafe { self.memory.as_ptr().wrapping_add(index).write_volatile(value) }
        }
    }
}

/// Takes what is pending at the channel with this interrupt; `false` if there is none.
pub(crate) fn handle_irq(intid: u32) -> bool {
    let Some(slot) = SLOTS.iter().find(|slot| slot.intid.load(Ordering::Acquire) == intid) else {
        return false;
    };
    let mut registers = registers(slot.registers.load(Ordering::Relaxed));
    let pending = field_shared!(registers, pending).read();
    field!(registers, pending).write(pending);
    slot.events.fetch_or(pending, Ordering::AcqRel);
    true
}
