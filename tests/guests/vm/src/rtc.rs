//! The machine's real-time clock (PL031, Arm DDI 0224), which the hypervisor has given to this guest:
//! registers and interrupt are the machine's own.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{gic, mmu, println, timer};

/// Where QEMU's `virt` has it.
const REGISTERS: u64 = 0x0901_0000;
const INTID: u32 = 34;

const DATA: u64 = 0x00;
const MATCH: u64 = 0x04;
const MASK_SET_CLEAR: u64 = 0x10;
const RAW_STATUS: u64 = 0x14;
const MASKED_STATUS: u64 = 0x18;
const CLEAR: u64 = 0x1c;
const PERIPHERAL_ID_0: u64 = 0xfe0;
/// Part number of the PL031, low byte.
const PART: u32 = 0x31;

/// Alarms that the guest sets and waits for.
const ALARMS: u64 = 2;
/// Milliseconds that one may take: it is set to come in a second.
const ALARM_MS: u64 = 10_000;
/// Alarms that came.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// Interrupts without an alarm.
static SPURIOUS: AtomicU64 = AtomicU64::new(0);

fn read(offset: u64) -> u32 {
    mmu::read_register(REGISTERS + offset)
}

fn write(offset: u64, value: u32) {
    // SAFETY: the clock does not touch memory.
    unsafe { mmu::write_register(REGISTERS + offset, value) }
}

fn alarm(intid: u32) {
    if intid == INTID && read(MASKED_STATUS) == 1 {
        SEEN.fetch_add(1, Ordering::Release);
    } else {
        SPURIOUS.fetch_add(1, Ordering::Release);
    }
    write(CLEAR, 1);
}

/// Reads the clock and takes its alarms.
///
/// # Errors
///
/// Says what did not come or was not right.
pub(crate) fn check() -> Result<(), &'static str> {
    if read(PERIPHERAL_ID_0) != PART {
        return Err("there is no PL031 at its place");
    }
    // Whoever had it last may have left its alarm on.
    write(MASK_SET_CLEAR, 0);
    write(CLEAR, 1);
    println!("vm: the machine's clock says {}", read(DATA));
    gic::set_handler(alarm);
    gic::enable_shared(INTID)?;
    for count in 1..=ALARMS {
        write(MATCH, read(DATA) + 1);
        write(MASK_SET_CLEAR, 1);
        if !timer::poll(ALARM_MS, || SEEN.load(Ordering::Acquire) >= count) {
            return Err("an alarm of the clock did not come in ten seconds");
        }
        println!("vm: alarm {count} of the machine's clock");
    }
    if SPURIOUS.load(Ordering::Acquire) != 0 {
        return Err("an interrupt of the clock came without an alarm");
    }
    Ok(())
}

/// Leaves the clock's line high, for the hypervisor to clean up.
///
/// # Errors
///
/// Says that there was no alarm.
pub(crate) fn leave_alarm_on() -> Result<(), &'static str> {
    gic::mask_irqs();
    write(MATCH, read(DATA) + 1);
    if !timer::poll(ALARM_MS, || read(RAW_STATUS) != 0) {
        return Err("the last alarm of the clock did not come");
    }
    println!("vm: alarm left on");
    Ok(())
}
