//! A guest that does nothing but raise and take interrupts: one vCPU leaves the interrupt of its UART
//! high, the others send SGIs to all others without end.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::boot::BootInfo;
use guest_rt::{gic, mmu, println, timer, uart};

/// SGI of the storm.
const SGI: u32 = 2;
/// Interrupt of the UART.
const UART_INTID: u32 = 33;
/// `UARTIMSC`, and its bit for the transmit interrupt, which stays raised once something was sent.
const UART_IMSC: u64 = uart::UART_IPA + 0x38;
const TRANSMIT: u32 = 1 << 5;

/// Virtual count at which the storm is over; 0 for no storm.
static END: AtomicU64 = AtomicU64::new(0);
static LEVELS: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Whether the first vCPU wants the others to take part.
pub(crate) fn is_wanted() -> bool {
    END.load(Ordering::Acquire) != 0
}

fn is_over() -> bool {
    timer::now() >= END.load(Ordering::Acquire)
}

fn mask_uart(mask: u32) {
    // SAFETY: the UART does not touch memory.
    unsafe { mmu::write_register(UART_IMSC, mask) }
}

/// Counts, and does not clear what raised the UART's interrupt before the storm is over.
fn handle(intid: u32) {
    if intid == SGI {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        return;
    }
    LEVELS.fetch_add(1, Ordering::Relaxed);
    if is_over() {
        mask_uart(0);
    }
}

/// What the first vCPU does, before the others are started.
pub(crate) fn begin(seconds: u64) {
    END.store(timer::now() + timer::steps(1000 * seconds), Ordering::Release);
}

/// What the first vCPU does when the others run: is interrupted without end.
pub(crate) fn endure(info: &BootInfo) -> Result<(), &'static str> {
    gic::enable(SGI, handle)?;
    gic::enable_shared(UART_INTID)?;
    println!("cpu: storm begins");
    mask_uart(TRANSMIT);
    let others = info.secondaries().count() as u64;
    while DONE.load(Ordering::Acquire) < others || !is_over() {
        core::hint::spin_loop();
    }
    mask_uart(0);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (levels, sent, taken) = (count(&LEVELS), count(&SENT), count(&TAKEN));
    println!("cpu: storm over, {levels} level interrupts, {sent} SGIs sent, {taken} taken");
    if levels == 0 || taken == 0 { Err("there was no storm") } else { Ok(()) }
}

/// What the other vCPUs do: send.
pub(crate) fn send() -> Result<(), &'static str> {
    gic::enable(SGI, handle)?;
    while !is_over() {
        gic::broadcast(SGI);
        SENT.fetch_add(1, Ordering::Relaxed);
    }
    DONE.fetch_add(1, Ordering::AcqRel);
    Ok(())
}
