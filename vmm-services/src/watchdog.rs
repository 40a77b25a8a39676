//! A watchdog that the guest drives by calls of the SMC calling convention: the interface that Linux
//! knows as `arm,smc-wdt`.
//!
//! It runs from the start of the VM, so that a guest that does not come as far as its driver is
//! restarted too, and nothing the guest does stops it.

use crate::exit::Resume;
use crate::traits::Countdown;

/// Function identifier of all its calls: a fast call of the vendor-specific hypervisor service. The
/// operation is in x1, its argument in x2; x0 of the answer is a status.
pub const CALL: u32 = 0x8600_0001;

/// Operation: x1 and x2 of the answer are the shortest and the longest timeout in seconds.
const INIT: u64 = 0;
/// Operation: the argument is the timeout in seconds. Counting begins anew.
const SET_TIMEOUT: u64 = 1;
/// Operation: the argument says whether it is to run. It cannot be stopped.
const ENABLE: u64 = 2;
/// Operation: counting begins anew.
const PET: u64 = 3;
/// Operation: x1 of the answer is the time that is left in seconds.
const GET_TIMELEFT: u64 = 4;

const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;

/// Shortest timeout in seconds that a guest can choose.
const MIN_S: u64 = 1;

/// The watchdog of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog {
    /// Longest timeout in milliseconds, and the one that it starts with.
    limit_ms: u32,
    timeout_ms: u32,
}

impl Watchdog {
    pub(crate) const fn new(limit_ms: u32) -> Self {
        Self { limit_ms, timeout_ms: limit_ms }
    }

    fn max_s(&self) -> u64 {
        u64::from(self.limit_ms) / 1000
    }

    /// Answers [`CALL`].
    pub(crate) fn call(
        &mut self,
        operation: u64,
        argument: u64,
        countdown: &dyn Countdown,
    ) -> Resume {
        // Like all calls whose identifier says so, it has arguments of 32 bits.
        let argument = argument & 0xffff_ffff;
        match operation & 0xffff_ffff {
            INIT => return answer(SUCCESS, [MIN_S, self.max_s()]),
            SET_TIMEOUT if (MIN_S..=self.max_s()).contains(&argument) => {
                // At most `limit_ms`, which has 32 bits.
                self.timeout_ms = argument as u32 * 1000;
            }
            ENABLE if argument == 1 => {}
            PET => {}
            GET_TIMELEFT => {
                return answer(SUCCESS, [u64::from(countdown.remaining_ms()).div_ceil(1000), 0]);
            }
            SET_TIMEOUT | ENABLE => return answer(INVALID_PARAMETERS, [0; 2]),
            _ => return answer(NOT_SUPPORTED, [0; 2]),
        }
        countdown.restart(self.timeout_ms);
        answer(SUCCESS, [0; 2])
    }
}

fn answer(status: i64, [first, second]: [u64; 2]) -> Resume {
    Resume::Results([status.cast_unsigned(), first, second, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Timer;

    #[test]
    fn a_guest_sets_and_pets_it() {
        let (mut watchdog, timer) = (Watchdog::new(30_500), Timer::default());
        assert_eq!(watchdog.call(INIT, 0, &timer), answer(SUCCESS, [1, 30]));
        assert_eq!(timer.0.get(), 0, "asking changes nothing");
        assert_eq!(watchdog.call(PET, 0, &timer), answer(SUCCESS, [0; 2]));
        assert_eq!(timer.0.get(), 30_500);
        assert_eq!(watchdog.call(SET_TIMEOUT, 1 << 32 | 5, &timer), answer(SUCCESS, [0; 2]));
        assert_eq!(timer.0.replace(4001), 5000);
        assert_eq!(watchdog.call(GET_TIMELEFT, 0, &timer), answer(SUCCESS, [5, 0]));
        assert_eq!(watchdog.call(ENABLE, 1, &timer), answer(SUCCESS, [0; 2]));
        assert_eq!(timer.0.get(), 5000);
    }

    #[test]
    fn a_guest_cannot_stop_it_or_outstay_the_limit() {
        let (mut watchdog, timer) = (Watchdog::new(2000), Timer::default());
        for (operation, argument) in [(SET_TIMEOUT, 0), (SET_TIMEOUT, 3), (ENABLE, 0), (ENABLE, 2)]
        {
            let refused = answer(INVALID_PARAMETERS, [0; 2]);
            assert_eq!(watchdog.call(operation, argument, &timer), refused);
        }
        for operation in [5, 0xffff_ffff] {
            assert_eq!(watchdog.call(operation, 0, &timer), answer(NOT_SUPPORTED, [0; 2]));
        }
        assert_eq!(timer.0.get(), 0);
    }
}
