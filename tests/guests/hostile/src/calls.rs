//! HVC and SMC with every immediate, function and argument.

use guest_rt::host::{EXCHANGE_PAGE, PUT_STRING, REPORT_FAILURE};
use guest_rt::rng::Rng;

use crate::guest::{Guest, scratch};
use crate::probe::{self, STUBS};

const HVC: u32 = 0xd400_0002;
const SMC: u32 = 0xd400_0003;

/// First functions of ranges that somebody serves: PSCI, TRNG, Arm architecture, hypervisor,
/// vendor, standard secure services, RMI, RSI, FF-A.
const RANGES: &[u32] = &[
    0x8400_0000,
    0xc400_0000,
    0x8400_0050,
    0xc400_0053,
    0x8000_0000,
    0x8000_3f00,
    0x8600_0000,
    0xc600_0000,
    0x8600_ff00,
    0x8500_0000,
    0x8300_ff00,
    0x8400_0060,
    0xc400_0150,
    0xc400_01d0,
    0xc400_0190,
    0x8400_00f0,
    0x8700_0000,
    0xbf00_ff00,
];

/// A function identifier that does not end or suspend the VM or its caller.
fn function(rng: &mut Rng) -> u64 {
    loop {
        let function = match rng.below(4) {
            0 => rng.next_u64() as u32,
            _ => rng.pick(RANGES) + rng.below(0x40) as u32,
        };
        // PSCI without VERSION, AFFINITY_INFO, MIGRATE*, FEATURES, CPU_ON and statistics.
        let psci = function & 0xbfff_ffe0 == 0x8400_0000;
        let number = function & 0x1f;
        if !(psci && matches!(number, 1 | 2 | 8 | 9 | 11 | 12 | 14 | 18)) {
            return u64::from(function) | if rng.one_in(8) { rng.next_u64() << 32 } else { 0 };
        }
    }
}

/// Registers of a host call that does not make the guest fail or overwrite itself.
fn host_call(immediate: u16, rng: &mut Rng, registers: &mut [u64; 8]) {
    registers[0] = match immediate {
        REPORT_FAILURE => 0,
        PUT_STRING if rng.one_in(64) => rng.below(24),
        PUT_STRING => 241 + rng.number() / 2,
        // The services' page is whatever they are told, so it is told no page in use.
        EXCHANGE_PAGE => match rng.below(4) {
            0 => scratch(),
            1 => rng.number() | 1,
            2 => rng.next_u64() & !0xfff & !0x7fff_ffff | rng.below(0x4000_0000) & !0xfff,
            _ => rng.below(0x4000_0000),
        },
        _ => rng.number(),
    };
}

/// Calls with random immediates, functions and arguments.
pub(crate) fn calls(guest: &mut Guest) -> u64 {
    let mut immediates = [0; STUBS];
    for (index, immediate) in immediates.iter_mut().enumerate() {
        *immediate = match guest.rng.below(4) {
            0 | 1 => 0,
            2 => guest.rng.below(16) as u16,
            _ => guest.rng.below(0x1_0000) as u16,
        };
        let conduit = if guest.rng.one_in(2) { HVC } else { SMC };
        probe::write(index, &[conduit | u32::from(*immediate) << 5]);
    }
    probe::synchronize();
    for (index, &immediate) in immediates.iter().enumerate() {
        let mut registers = [0; 8].map(|_| guest.rng.number());
        if immediate == 0 {
            registers[0] = function(&mut guest.rng);
        } else {
            host_call(immediate, &mut guest.rng, &mut registers);
        }
        let outcome = probe::run(index, registers);
        guest.faults += u64::from(outcome.faulted);
    }
    STUBS as u64
}
