//! Storms: SGIs, shared interrupts made pending by software, levels that stay high, and an
//! interrupt controller whose settings change all the while.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_rt::gic::GICR_STRIDE;
use guest_rt::{MAX_CPUS, cpu_index, mmu, timer};

use crate::guest::Guest;
use crate::space::{GICD, GICR, UART};
use guest_rt::rng::Rng;

/// Bytes from a redistributor's first frame to the second.
const SGI_FRAME: u64 = 0x1_0000;
const UART_INTID: u32 = 33;
const VTIMER_INTID: u32 = 27;
const UARTIMSC: u64 = 0x38;
/// Cases of one batch.
const BATCH: u64 = 128;
/// Every so many interrupts in a row, the handler turns off what it is interrupted by.
const PATIENCE: u64 = 16;

/// Interrupts that each vCPU took.
static TAKEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Interrupts that all vCPUs took.
pub(crate) fn taken() -> u64 {
    TAKEN.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading a register of the CPU interface or the timer; acknowledging an interrupt
        // has no effect on memory.
        unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack)) }
        value
    }};
}

macro_rules! write {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: registers of the CPU interface and the timer have no effect on memory, and the
        // handlers keep all registers.
        unsafe { asm!(concat!("msr ", $register, ", {}"), in(reg) value, options(nostack)) }
    }};
}

/// Stores a word to a register of the interrupt controller or the UART.
fn store(ipa: u64, value: u32) {
    // SAFETY: the interrupt controller and the UART do not touch memory.
    unsafe { mmu::write_register(ipa, value) }
}

/// Settings with which the virtual timer and SGIs arrive.
pub(crate) fn restore() {
    store(GICD, 0b11);
    let frame = GICR + GICR_STRIDE * cpu_index() as u64 + SGI_FRAME;
    store(frame + 0x80, u32::MAX); // IGROUPR0
    store(frame + 0x100, 1 << VTIMER_INTID | 0xffff); // ISENABLER0
    for word in 0..8 {
        store(frame + 0x400 + 4 * word, 0x8080_8080); // IPRIORITYR
    }
    store(frame + 0x380, u32::MAX); // ICACTIVER0
    // Interrupts that were never ended hold up all others no longer.
    write!("icc_ap0r0_el1", 0);
    write!("icc_ap1r0_el1", 0);
    write!("icc_ctlr_el1", 0);
    write!("icc_pmr_el1", 0xff);
    write!("icc_igrpen0_el1", 1);
    write!("icc_igrpen1_el1", 1);
    unmask();
}

/// UART settings with which output goes out: not looped back to the receiver.
pub(crate) fn restore_uart() {
    const UARTCR: u64 = 0x30;
    const TRANSMIT_AND_ENABLE: u32 = 1 << 8 | 1;
    store(UART + UARTCR, TRANSMIT_AND_ENABLE);
}

/// Turns everything off that could still interrupt.
pub(crate) fn quiet() {
    write!("cntv_ctl_el0", 0);
    write!("icc_igrpen0_el1", 0);
    write!("icc_igrpen1_el1", 0);
    mask();
}

/// Masks IRQ and FIQ.
pub(crate) fn mask() {
    // SAFETY: masking interrupts breaks no invariant of Rust code.
    unsafe { asm!("msr daifset, #3", options(nostack)) }
}

/// Unmasks IRQ and FIQ.
pub(crate) fn unmask() {
    // SAFETY: the handlers keep all registers.
    unsafe { asm!("msr daifclr, #3", options(nostack)) }
}

/// Takes interrupts of one group, 0 or 1.
#[unsafe(no_mangle)]
extern "C" fn hostile_interrupt(group: u64) {
    let taken = TAKEN[cpu_index()].fetch_add(1, Ordering::Relaxed);
    for _ in 0..8 {
        let intid = if group == 0 { read!("icc_iar0_el1") } else { read!("icc_iar1_el1") };
        if intid >= 1020 {
            break;
        }
        if taken.is_multiple_of(PATIENCE) {
            silence(intid as u32);
        }
        // At times an interrupt is never ended; the timer's always is, since it ends waits.
        if intid == u64::from(VTIMER_INTID) || !taken.is_multiple_of(61) {
            match group {
                0 => write!("icc_eoir0_el1", intid),
                _ => write!("icc_eoir1_el1", intid),
            }
            if read!("icc_ctlr_el1") & 2 != 0 {
                write!("icc_dir_el1", intid);
            }
        }
    }
}

/// Makes a source stop.
fn silence(intid: u32) {
    let frame = GICR + GICR_STRIDE * cpu_index() as u64 + SGI_FRAME;
    match intid {
        // Not never, since somebody may be about to wait for it, and not soon, since each exit of a
        // realm takes its time.
        VTIMER_INTID => {
            write!("cntv_tval_el0", timer::steps(10));
            return;
        }
        UART_INTID => store(UART + UARTIMSC, 0),
        _ => {}
    }
    match intid {
        0..32 => store(frame + 0x180, 1 << intid), // ICENABLER0
        _ => store(GICD + 0x180 + 4 * u64::from(intid / 32), 1 << (intid % 32)),
    }
}

/// Random settings and interrupts, with interrupts unmasked.
pub(crate) fn storm(guest: &mut Guest) -> u64 {
    for _ in 0..BATCH {
        match guest.rng.below(12) {
            0..=3 => sgi(guest),
            4 | 5 => distributor(&mut guest.rng),
            6 | 7 => redistributor(guest),
            8 => cpu_interface(&mut guest.rng),
            9 => {
                // A level that stays high, at once or soon.
                write!("cntv_tval_el0", guest.rng.below(2000));
                write!("cntv_ctl_el0", guest.rng.below(4));
            }
            10 => store(UART + UARTIMSC, guest.rng.next_u64() as u32),
            _ => restore(),
        }
        unmask();
    }
    restore();
    BATCH
}

fn sgi(guest: &mut Guest) {
    let rng = &mut guest.rng;
    let value = match rng.below(4) {
        0 => rng.next_u64(),
        1 => 1 << 40 | rng.below(16) << 24,
        _ => rng.below(16) << 24 | rng.below(1 << guest.cpus),
    };
    match rng.below(4) {
        0 => write!("icc_sgi0r_el1", value),
        1 => write!("icc_asgi1r_el1", value),
        _ => write!("icc_sgi1r_el1", value),
    }
}

/// Group, enable, pending, active, priority, configuration, route of shared interrupts.
fn distributor(rng: &mut Rng) {
    let value = rng.next_u64() as u32;
    let bank = 4 * (1 + rng.below(4));
    match rng.below(11) {
        0 => store(GICD + 0x80 + bank, value),
        1..=3 => store(GICD + 0x100 + bank, value),
        4 => store(GICD + 0x180 + bank, value),
        5 => store(GICD + 0x200 + bank, value),
        6 => store(GICD + 0x280 + bank, value),
        7 => store(GICD + 0x300 + 0x80 * rng.below(2) + bank, value),
        8 => store(GICD + 0x400 + 4 * rng.below(32), value),
        9 => store(GICD + 0xc00 + 4 * rng.below(8), value),
        _ => store(GICD + 0x6100 + 4 * rng.below(192), value & 0xff_0003),
    }
}

/// The same of private interrupts, of this vCPU or of another one.
fn redistributor(guest: &mut Guest) {
    let rng = &mut guest.rng;
    let frame = GICR + GICR_STRIDE * rng.below(guest.cpus as u64) + SGI_FRAME;
    let value = rng.next_u64() as u32;
    match rng.below(9) {
        0 => store(frame + 0x80, value),
        1 | 2 => store(frame + 0x100 + 0x80 * rng.below(2), value),
        3 | 4 => store(frame + 0x200 + 0x80 * rng.below(2), value),
        5 => store(frame + 0x300 + 0x80 * rng.below(2), value),
        6 => store(frame + 0x400 + 4 * rng.below(8), value),
        7 => store(frame + 0xc04, value),
        _ => store(frame - SGI_FRAME + 0x14, value),
    }
}

fn cpu_interface(rng: &mut Rng) {
    let value = rng.next_u64();
    match rng.below(10) {
        0 => write!("icc_pmr_el1", value & 0xff),
        1 => write!("icc_bpr0_el1", value & 7),
        2 => write!("icc_bpr1_el1", value & 7),
        3 => write!("icc_ctlr_el1", value & 0x43),
        4 => write!("icc_igrpen0_el1", value & 1),
        5 => write!("icc_igrpen1_el1", value & 1),
        6 => write!("icc_dir_el1", rng.below(160)),
        7 => write!("icc_eoir1_el1", rng.below(160)),
        8 => write!("icc_ap1r0_el1", value & 0xffff_ffff),
        _ => write!("icc_dir_el1", rng.number() & 0xffff_ffff),
    }
}
