//! Calls to what a guest takes for firmware: SMCCC, TRNG, PSCI.

use crate::timers;
use guest_rt::{entry, println, timer};

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_RND64: u32 = 0xc400_0053;
const PSCI_FEATURES: u32 = 0x8400_000a;
const CPU_SUSPEND: u32 = 0xc400_0001;
const SYSTEM_SUSPEND: u32 = 0xc400_000e;
const NOT_SUPPORTED: i32 = -1;
const INVALID_PARAMETERS: i32 = -2;
const INVALID_ADDRESS: i32 = -9;
/// `power_state` in the extended StateID format: StateType, powerdown.
const POWERDOWN: u64 = 1 << 30;

/// Context id of a vCPU `n` that wakes from a powerdown state is this plus `n`.
pub(crate) const WOKEN: u64 = 0xcafe_0000_0000;

fn call(function: u32, args: [u64; 3]) -> [u64; 4] {
    let mut all = [0; 17];
    all[..3].copy_from_slice(&args);
    let results = smccc::hvc64(function, all);
    [results[0], results[1], results[2], results[3]]
}

/// Status of a call, the low half of `x0`.
fn status(function: u32, args: [u64; 3]) -> i32 {
    call(function, args)[0] as u32 as i32
}

pub(crate) fn check_calls() -> Result<(), &'static str> {
    if status(SMCCC_VERSION, [0; 3]) < 0x1_0001 {
        return Err("SMCCC is older than 1.1");
    }
    for workaround in [ARCH_WORKAROUND_1, ARCH_WORKAROUND_3] {
        let known = status(SMCCC_ARCH_FEATURES, [u64::from(workaround), 0, 0]) >= 0;
        if known != (status(workaround, [0; 3]) == 0) {
            return Err("a workaround is not what ARCH_FEATURES says");
        }
    }
    let mut bits = 0;
    if status(TRNG_VERSION, [0; 3]) >= 0x1_0000 {
        let [first, second] = [call(TRNG_RND64, [192, 0, 0]), call(TRNG_RND64, [192, 0, 0])];
        if first[0] != 0 || second[0] != 0 {
            return Err("TRNG_RND64 failed");
        }
        if (1..4).any(|word| first[word] == second[word]) {
            return Err("TRNG_RND64 repeats itself");
        }
        if call(TRNG_RND64, [5, 0, 0])[3] >> 5 != 0 {
            return Err("TRNG_RND64 gives more than was asked for");
        }
        if status(TRNG_RND64, [193, 0, 0]) != INVALID_PARAMETERS {
            return Err("TRNG_RND64 accepts more than it can give");
        }
        bits = 192;
    }
    println!("cpu: firmware calls ok, {bits} random bits per call");
    Ok(())
}

/// CPU_SUSPEND to a standby state, and what is refused.
pub(crate) fn check_standby() -> Result<(), &'static str> {
    let tick = timer::ticks() + 1;
    timer::start(5);
    if status(CPU_SUSPEND, [0, 0, 0]) != 0 {
        return Err("CPU_SUSPEND to standby failed");
    }
    timer::wait_for_tick(tick);
    timer::stop();
    if status(CPU_SUSPEND, [POWERDOWN, 0x1000, 0]) != INVALID_ADDRESS {
        return Err("CPU_SUSPEND accepted an entry point outside RAM");
    }
    if status(CPU_SUSPEND, [1 << 31, 0, 0]) != INVALID_PARAMETERS {
        return Err("CPU_SUSPEND accepted a reserved bit");
    }
    if status(PSCI_FEATURES, [u64::from(SYSTEM_SUSPEND), 0, 0]) == 0
        && status(SYSTEM_SUSPEND, [0x1000, 0, 0]) != INVALID_ADDRESS
    {
        return Err("SYSTEM_SUSPEND accepted an entry point outside RAM");
    }
    if status(0x8400_001f, [0; 3]) != NOT_SUPPORTED {
        return Err("an unknown PSCI function was not refused");
    }
    println!("cpu: standby ok");
    Ok(())
}

/// Sends this vCPU into a powerdown state. Its virtual timer wakes it, in `secondary` with `context`.
pub(crate) fn power_down(context: u64) -> Result<(), &'static str> {
    timers::sleep(2);
    timer::start(5);
    let status = status(CPU_SUSPEND, [POWERDOWN, entry::secondary_entry_ipa(), context]);
    // A wake-up that came before the call makes it return.
    if status == 0 { Err("CPU_SUSPEND returned to its caller") } else { Err("CPU_SUSPEND failed") }
}
