//! The machine's real-time clock (PL031, Arm DDI 0224), which the hypervisor has given to this guest:
//! registers and interrupt are the machine's own.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::{gic, mmu, println, timer};

/// Where QEMU's `virt` has it.
const REGISTERS: u64 = 0x0901_0000;
const INTID: u32 = 34;

const DATA: usize = 0x00;
const MATCH: usize = 0x04;
const MASK_SET_CLEAR: usize = 0x10;
const RAW_STATUS: usize = 0x14;
const MASKED_STATUS: usize = 0x18;
const CLEAR: usize = 0x1c;
const PERIPHERAL_ID_0: usize = 0xfe0;
/// Part number of the PL031, low byte.
const PART: u32 = 0x31;

/// Alarms that the guest sets and waits for.
const ALARMS: u64 = 2;
/// Alarms that came.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// Interrupts without an alarm.
static SPURIOUS: AtomicU64 = AtomicU64::new(0);

fn register(offset: usize) -> NonNull<u32> {
    let registers: NonNull<u32> = mmu::device(REGISTERS);
    registers.map_addr(|address| address.saturating_add(offset))
}

fn read(offset: usize) -> u32 {
    let value: u32;
    // SAFETY: the MMU maps the registers there as device memory; reading them changes nothing.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) register(offset).as_ptr()) }
    value
}

fn write(offset: usize, value: u32) {
    // SAFETY: the MMU maps the registers there as device memory; the clock does not touch memory.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) register(offset).as_ptr()) }
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
        crate::wait_until(|| Ok(SEEN.load(Ordering::Acquire) >= count))?;
        println!("vm: alarm {count} of the machine's clock");
    }
    if SPURIOUS.load(Ordering::Acquire) != 0 {
        return Err("an interrupt of the clock came without an alarm");
    }
    Ok(())
}

/// Leaves the interrupt active and its line high, for the hypervisor to clean up.
pub(crate) fn leave_alarm_on() {
    gic::mask_irqs();
    write(MATCH, read(DATA) + 1);
    let deadline = timer::now() + timer::steps(5000);
    while read(RAW_STATUS) == 0 && timer::now() < deadline {
        core::hint::spin_loop();
    }
    println!("vm: alarm left on");
}
