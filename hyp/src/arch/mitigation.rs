//! Firmware's mitigations of speculation attacks (Arm DEN 0028, SMCCC_ARCH_WORKAROUND_n): between VMs that
//! share a core, and for guests. An exit does not call them: on cores that need them, EL2 runs with the
//! predictors of the guest that it serves.
//!
//! | call | against | offered to guests |
//! |---|---|---|
//! | 1 | branch target injection (CVE-2017-5715) | as firmware says; a guest's call goes on to it |
//! | 2 | speculative store bypass (CVE-2018-3639) | not required: firmware's default, on, stays |
//! | 3 | branch history injection (CVE-2022-23960) | as firmware says; a guest's call goes on to it |
//!
//! The answers of all cores are combined, since a vCPU runs on any of them.

use super::{firmware, smc};
use core::sync::atomic::{AtomicU8, Ordering};
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3,
};

const SUCCESS: i64 = 0;
/// The call exists, and this core does not need it.
const NOT_AFFECTED: i64 = 1;
const NOT_SUPPORTED: i64 = -1;
/// No core needs it, or all are always protected.
const NOT_REQUIRED: i64 = -2;

/// What is known of a mitigation after some cores were asked. Of two cores' answers, the greater
/// holds for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Need {
    /// Nobody was asked.
    Unasked,
    /// Firmware has the call, and the cores asked so far do not need it.
    Unaffected,
    /// Firmware does not have the call on some core: nothing is known.
    Unknown,
    /// Some core needs it.
    Required,
}

struct Mitigation {
    function: u32,
    need: AtomicU8,
}

impl Mitigation {
    const fn new(function: u32) -> Self {
        Self { function, need: AtomicU8::new(Need::Unasked as u8) }
    }

    /// Asks firmware about this core.
    fn probe(&self) {
        let supported = firmware::follows_smccc_1_1();
        let ask =
            || smc::call(SMCCC_ARCH_FEATURES, [u64::from(self.function), 0, 0, 0, 0, 0, 0])[0];
        let need = match supported.then(ask).map(|answer| answer as u32 as i32) {
            Some(0) => Need::Required,
            // NOT_REQUIRED is an answer about WORKAROUND_2 alone.
            Some(1 | -2) => Need::Unaffected,
            _ => Need::Unknown,
        };
        self.need.fetch_max(need as u8, Ordering::Relaxed);
    }

    fn is(&self, need: Need) -> bool {
        self.need.load(Ordering::Relaxed) == need as u8
    }

    /// Answer to a guest's ARCH_FEATURES about a call that is handed on.
    fn handed_on(&self) -> i64 {
        if self.is(Need::Required) {
            SUCCESS
        } else if self.is(Need::Unaffected) {
            NOT_AFFECTED
        } else {
            NOT_SUPPORTED
        }
    }

    /// Has firmware carry it out on this core, if any core needs it.
    fn carry_out(&self) {
        if self.is(Need::Required) {
            let _ = smc::call(self.function, [0; 7]);
        }
    }
}

static BRANCH_TARGETS: Mitigation = Mitigation::new(SMCCC_ARCH_WORKAROUND_1);
static STORE_BYPASS: Mitigation = Mitigation::new(SMCCC_ARCH_WORKAROUND_2);
static BRANCH_HISTORY: Mitigation = Mitigation::new(SMCCC_ARCH_WORKAROUND_3);

/// Asks firmware what this core needs. To be called on each core before guests run.
pub fn init_core() {
    [&BRANCH_TARGETS, &STORE_BYPASS, &BRANCH_HISTORY].into_iter().for_each(Mitigation::probe);
}

/// Keeps what the last vCPU of this core taught its branch predictors from the next one.
pub fn isolate() {
    // WORKAROUND_3 does what WORKAROUND_1 does as well.
    if BRANCH_HISTORY.is(Need::Required) {
        BRANCH_HISTORY.carry_out();
    } else {
        BRANCH_TARGETS.carry_out();
    }
}

/// Answers a guest's call if it concerns a mitigation: new `x0`.
#[must_use]
pub fn call(function: u32, argument: u32) -> Option<i64> {
    let mitigation = match function {
        SMCCC_ARCH_FEATURES => return features(argument),
        SMCCC_ARCH_WORKAROUND_1 => &BRANCH_TARGETS,
        SMCCC_ARCH_WORKAROUND_3 => &BRANCH_HISTORY,
        _ => return None,
    };
    mitigation.carry_out();
    Some(if mitigation.handed_on() < 0 { NOT_SUPPORTED } else { SUCCESS })
}

fn features(function: u32) -> Option<i64> {
    match function {
        SMCCC_ARCH_WORKAROUND_1 => Some(BRANCH_TARGETS.handed_on()),
        SMCCC_ARCH_WORKAROUND_2 if STORE_BYPASS.is(Need::Unknown) => Some(NOT_SUPPORTED),
        SMCCC_ARCH_WORKAROUND_2 => Some(NOT_REQUIRED),
        SMCCC_ARCH_WORKAROUND_3 => Some(BRANCH_HISTORY.handed_on()),
        _ => None,
    }
}
