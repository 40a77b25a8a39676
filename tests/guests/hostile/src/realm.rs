//! What only a realm can try: host calls through the RMM, changes of RIPAS, pages that go back and
//! forth between private and shared while they are in use.

use core::ptr::NonNull;

use guest_rt::host::{EXCHANGE_PAGE, PUT_STRING, REPORT_FAILURE};
use guest_rt::mmu;
use guest_rt::rsi::{self, HostCall};

use crate::guest::{Guest, SCRATCH_BYTES, scratch};

const RSI_IPA_STATE_SET: u32 = 0xc400_0197;
const RIPAS_EMPTY: u64 = 0;
const RIPAS_RAM: u64 = 1;

const PAGE: u64 = 4096;
/// Cases of one batch.
const BATCH: u64 = 32;

/// Makes a host call, whatever comes of it.
fn host_call(imm: u64, gprs: [u64; 31]) {
    let _ = rsi::host_call(&mut HostCall { imm, gprs });
}

/// Makes one call of RSI_IPA_STATE_SET, whatever part of the range it does.
fn set_ripas(base: u64, top: u64, ripas: u64, flags: u64) {
    rsi::raw_call(RSI_IPA_STATE_SET, &[base, top, ripas, flags]);
}

/// Host calls with random immediates and registers.
pub(crate) fn host_calls(guest: &mut Guest) -> u64 {
    for _ in 0..BATCH {
        let rng = &mut guest.rng;
        let imm = if rng.one_in(2) { rng.below(16) } else { rng.below(0x1_0000) } as u16;
        let mut gprs = [0; 31].map(|_| rng.number());
        gprs[0] = match imm {
            REPORT_FAILURE => 0,
            PUT_STRING => 241 + rng.number() / 2,
            // Only shared pages count; what is private the host cannot reach.
            EXCHANGE_PAGE => scratch() + rng.below(SCRATCH_BYTES),
            _ => gprs[0],
        };
        host_call(imm.into(), gprs);
    }
    BATCH
}

/// RIPAS changes of random ranges in scratch memory, and of ranges that the RMM has to refuse.
pub(crate) fn ripas_storm(guest: &mut Guest) -> u64 {
    for _ in 0..BATCH {
        let rng = &mut guest.rng;
        let first = rng.below(SCRATCH_BYTES / PAGE);
        let last = first + rng.below(SCRATCH_BYTES / PAGE - first) + 1;
        let (base, top) = match rng.below(8) {
            0 => (rng.next_u64(), rng.next_u64()),
            1 => (guest.ram.end, guest.ram.end + PAGE * rng.below(16)),
            2 => (scratch() + rng.below(PAGE), scratch() + rng.below(SCRATCH_BYTES)),
            _ => (scratch() + PAGE * first, scratch() + PAGE * last),
        };
        let kinds = if rng.one_in(8) { 5 } else { 2 };
        let ripas = rng.below(kinds);
        set_ripas(base, top, ripas, rng.below(3));
        // Behind its RAM there is nothing, whatever it has asked for.
        let page = match rng.below(8) {
            0 => guest.ram.end + PAGE * rng.below(16),
            _ => scratch() + PAGE * rng.below(SCRATCH_BYTES / PAGE),
        };
        touch(guest, page);
    }
    BATCH
}

/// Pages of scratch memory shared, handed to the host, and taken back, by all vCPUs at once.
pub(crate) fn flips(guest: &mut Guest) -> u64 {
    for _ in 0..BATCH {
        let page = scratch() + PAGE * guest.rng.below(SCRATCH_BYTES / PAGE);
        let ripas = guest.rng.pick(&[RIPAS_EMPTY, RIPAS_RAM]);
        set_ripas(page, page + PAGE, ripas, 0);
        touch(guest, page);
        let mut gprs = [0; 31];
        gprs[0] = page | guest.rng.pick(&[0, guest.alias]);
        host_call(EXCHANGE_PAGE.into(), gprs);
        touch(guest, page);
    }
    BATCH
}

/// Reads or writes a page at its private address or through the shared alias; either may fault.
fn touch(guest: &mut Guest, page: u64) {
    crate::probe::write(0, &[0xf940_0001]); // ldr x1, [x0]
    crate::probe::write(1, &[0xf900_0001]); // str x1, [x0]
    crate::probe::synchronize();
    let alias: NonNull<u64> = mmu::shared(page);
    let address = if guest.rng.one_in(2) { page } else { alias.addr().get() as u64 };
    let offset = guest.rng.below(PAGE) & !7;
    let index = guest.rng.below(2) as usize;
    let registers = [address + offset, guest.rng.next_u64(), 0, 0, 0, 0, 0, 0];
    guest.faults += u64::from(crate::probe::run(index, registers).faulted);
}
