use super::PowerState;
use crate::exit::{CALL_REGISTERS, PsciNotice, PsciVerdict, Resume, StopReason};
use crate::ids::VcpuId;
use crate::smccc;
use crate::testing::{Alone, Counting, Lines, Ram, RamDisks, Timer};
use crate::vm::Context;
use mm::Ipa;
use proptest::prelude::*;

const CPU_ON: u64 = 0xc400_0003;
const CPU_OFF: u64 = 0x8400_0002;
const AFFINITY_INFO: u64 = 0xc400_0004;
const PSCI_FEATURES: u64 = 0x8400_000a;
const CPU_SUSPEND: u64 = 0xc400_0001;
const SYSTEM_SUSPEND: u64 = 0xc400_000e;
const NOT_SUPPORTED: i64 = -1;
const DENIED: i64 = -3;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const INVALID_ADDRESS: i64 = -9;

fn cpu(index: usize) -> VcpuId {
    VcpuId::new(index).unwrap()
}

struct Rig {
    power: PowerState,
    memory: Ram,
}

impl Rig {
    fn new() -> Self {
        Self { power: PowerState::new(4), memory: Ram::new(0x1000) }
    }

    fn call(&mut self, vcpu: usize, head: &[u64]) -> Resume {
        let mut args = [0; CALL_REGISTERS];
        args[..head.len()].copy_from_slice(head);
        let mut lines = Lines::default();
        let entropy = Counting::default();
        let timer = Timer::default();
        let context = Context {
            memory: &self.memory,
            console: &mut lines,
            entropy: &entropy,
            disks: &RamDisks::default(),
            peers: &mut Alone,
            countdown: &timer,
        };
        smccc::call(&mut self.power, cpu(vcpu), &args, &context)
    }

    /// x0 of a call that returns at once.
    fn value(&mut self, head: &[u64]) -> i64 {
        match self.call(0, head) {
            Resume::Results([x0, 0, 0, 0]) => x0.cast_signed(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn versions_and_features() {
    let mut rig = Rig::new();
    assert_eq!(rig.value(&[0x8400_0000]), 0x1_0001, "PSCI 1.1");
    assert_eq!(rig.value(&[0x8000_0000]), 0x1_0002, "SMCCC 1.2");
    assert_eq!(rig.value(&[0x8000_0001, 0x8000_0000]), 0);
    assert_eq!(rig.value(&[0x8000_0001, 0x8000_8000]), NOT_SUPPORTED, "ARCH_WORKAROUND_1");
    assert_eq!(rig.value(&[0x8400_0006]), 2, "no trusted OS to migrate");
    for function in [CPU_ON, CPU_OFF, AFFINITY_INFO, PSCI_FEATURES, 0x8000_0000, 0x8400_0008] {
        assert_eq!(rig.value(&[PSCI_FEATURES, function]), 0, "{function:#x}");
    }
    assert_eq!(rig.value(&[PSCI_FEATURES, 0xc400_0001]), 2, "extended StateID");
    assert_eq!(rig.value(&[PSCI_FEATURES, SYSTEM_SUSPEND]), 0);
    // SYSTEM_RESET2, MEM_PROTECT, and numbers that mean nothing.
    for function in [0xc400_0012, 0x8400_0013, 0x8400_001f, 0, 0x1_8400_0000 + 0x1e] {
        assert_eq!(rig.value(&[PSCI_FEATURES, function]), NOT_SUPPORTED, "{function:#x}");
        assert_eq!(rig.value(&[function]), NOT_SUPPORTED, "{function:#x}");
    }
    assert_eq!(rig.value(&[0xffff_0000_8400_0000]), 0x1_0001, "only W0 names the function");
}

#[test]
fn vcpus_are_turned_on_and_off() {
    let mut rig = Rig::new();
    assert_eq!(rig.value(&[AFFINITY_INFO, 1, 0]), 1, "off");
    let on = rig.call(0, &[CPU_ON, 1, 0x4000_0ffc, 0xdead_beef_0000_0001]);
    let entry = Ipa::new(0x4000_0ffc);
    assert_eq!(on, Resume::CpuOn { target: cpu(1), entry, context: 0xdead_beef_0000_0001 });
    assert_eq!(rig.value(&[AFFINITY_INFO, 1, 0]), 0, "on");
    assert_eq!(rig.value(&[CPU_ON, 1, 0x4000_0000, 0]), ALREADY_ON);
    assert_eq!(rig.value(&[CPU_ON, 0, 0x4000_0000, 0]), ALREADY_ON, "oneself");
    assert_eq!(rig.call(1, &[CPU_OFF]), Resume::CpuOff);
    assert_eq!(rig.value(&[AFFINITY_INFO, 1, 0]), 1);
    assert!(matches!(rig.call(0, &[CPU_ON, 1, 0x4000_0000, 7]), Resume::CpuOn { .. }));
    // With 32-bit arguments.
    let on = rig.call(0, &[0x8400_0003, 2, 0xffff_ffff_4000_0010, 0xffff_ffff_0000_0009]);
    let entry = Ipa::new(0x4000_0010);
    assert_eq!(on, Resume::CpuOn { target: cpu(2), entry, context: 9 });
}

#[test]
fn bad_targets_and_entries_are_refused() {
    let mut rig = Rig::new();
    for target in [4, 16, 0x100, 1 << 32, 1 << 31, 1 << 40, u64::MAX] {
        let refused = rig.value(&[CPU_ON, target, 0x4000_0000, 0]);
        assert_eq!(refused, INVALID_PARAMETERS, "{target:#x}");
        assert_eq!(rig.value(&[AFFINITY_INFO, target, 0]), INVALID_PARAMETERS);
    }
    for entry in [0x3fff_fffc, 0x4000_1000, 0x4000_0002, 0x0900_0000, u64::MAX] {
        assert_eq!(rig.value(&[CPU_ON, 1, entry, 0]), INVALID_ADDRESS, "{entry:#x}");
    }
    assert!(!rig.power.is_on(cpu(1)));
}

#[test]
fn higher_affinity_levels_are_on_as_long_as_anybody_asks() {
    let mut rig = Rig::new();
    for level in 1..=3 {
        assert_eq!(rig.value(&[AFFINITY_INFO, 3, level]), 0);
    }
    assert_eq!(rig.value(&[AFFINITY_INFO, 0x100, 1]), INVALID_PARAMETERS);
    assert_eq!(rig.value(&[AFFINITY_INFO, 0x100, 2]), 0);
    assert_eq!(rig.value(&[AFFINITY_INFO, 1 << 32, 3]), INVALID_PARAMETERS);
    assert_eq!(rig.value(&[AFFINITY_INFO, 0, 4]), INVALID_PARAMETERS);
}

#[test]
fn system_calls_are_for_the_run_loop() {
    let mut rig = Rig::new();
    assert_eq!(rig.call(0, &[0x8400_0008]), Resume::SystemOff);
    assert_eq!(rig.call(0, &[0x8400_0009]), Resume::SystemReset);
}

#[test]
fn suspending() {
    let mut rig = Rig::new();
    const POWER_DOWN: u64 = 1 << 30;
    let (entry, context) = (0x4000_0100, 0xfeed);
    let down = Resume::PowerDown { entry: Ipa::new(entry), context };
    assert_eq!(rig.call(0, &[CPU_SUSPEND, 0, 0, 0]), Resume::Suspend);
    assert_eq!(rig.call(0, &[CPU_SUSPEND, 5, 1, 0]), Resume::Suspend, "standby has no entry point");
    assert_eq!(rig.value(&[CPU_SUSPEND, 1 << 31]), INVALID_PARAMETERS);
    assert_eq!(rig.call(0, &[CPU_SUSPEND, POWER_DOWN, entry, context]), down);
    assert_eq!(rig.value(&[CPU_SUSPEND, POWER_DOWN, 0x4000_0102, context]), INVALID_ADDRESS);
    assert_eq!(rig.value(&[CPU_SUSPEND, POWER_DOWN, 0x4000_1000, context]), INVALID_ADDRESS);
    // It stays on.
    assert_eq!(rig.value(&[AFFINITY_INFO, 0, 0]), 0);

    assert_eq!(rig.call(0, &[SYSTEM_SUSPEND, entry, context]), down);
    assert_eq!(rig.value(&[SYSTEM_SUSPEND, 0, context]), INVALID_ADDRESS);
    assert!(matches!(rig.call(0, &[CPU_ON, 1, entry, 0]), Resume::CpuOn { .. }));
    assert_eq!(rig.value(&[SYSTEM_SUSPEND, entry, context]), DENIED, "another vCPU is on");
    assert_eq!(rig.call(1, &[CPU_OFF]), Resume::CpuOff);
    assert_eq!(rig.call(0, &[SYSTEM_SUSPEND, entry, context]), down);
}

#[test]
fn requests_that_an_rmm_reports() {
    let mut power = PowerState::new(2);
    let on = PsciNotice::CpuOn { target: 1 };
    let complete =
        |cpu_on| Resume::PsciComplete { target: cpu(1), verdict: PsciVerdict::Success, cpu_on };
    assert_eq!(power.notice(cpu(0), on), complete(true));
    assert!(!power.is_on(cpu(1)), "not before the RMM has done it");
    assert!(power.cpu_on_completed(cpu(1)) && power.is_on(cpu(1)));
    assert_eq!(power.notice(cpu(0), PsciNotice::AffinityInfo { target: 1 }), complete(false));
    assert_eq!(power.notice(cpu(1), PsciNotice::CpuOff), Resume::CpuOff);
    assert!(!power.is_on(cpu(1)));
    assert_eq!(power.notice(cpu(0), on), complete(true));
    assert!(power.cpu_on_completed(cpu(1)));
    assert_eq!(power.notice(cpu(0), PsciNotice::CpuSuspend), Resume::Suspend);
    assert_eq!(power.notice(cpu(0), PsciNotice::SystemReset), Resume::SystemReset);
    let stop = power.notice(cpu(0), PsciNotice::CpuOn { target: 2 });
    assert!(matches!(stop, Resume::Stop(StopReason::Protocol(_))));
}

#[test]
fn a_rec_is_turned_on_before_the_host_hears_that_it_went_off() {
    let mut power = PowerState::new(2);
    assert!(power.cpu_on_completed(cpu(1)));
    // The RMM has turned it off, and on again, while its exit was under way.
    assert!(!power.cpu_on_completed(cpu(1)));
    assert_eq!(power.notice(cpu(1), PsciNotice::CpuOff), Resume::Continue);
    assert!(power.is_on(cpu(1)));
    // This time it is over, or it was on all the while and the RMM said so to the caller.
    assert_eq!(power.notice(cpu(1), PsciNotice::CpuOff), Resume::CpuOff);
    assert!(power.cpu_on_completed(cpu(1)), "and can be turned on as ever");
}

proptest! {
    #[test]
    fn random_calls_never_panic_and_keep_the_books(
        calls in proptest::collection::vec(
            (0usize..4, 0u64..0x20, any::<bool>(), 0u64..6, 0x3fff_fff0u64..0x4000_1010, any::<[u64; 4]>()),
            1..60),
    ) {
        let mut rig = Rig::new();
        for (vcpu, number, wide, target, entry, noise) in calls {
            // One that is off does not call.
            if !rig.power.is_on(cpu(vcpu)) {
                continue;
            }
            let _ = rig.call(vcpu, &noise);
            let before = rig.power.on;
            let function = 0x8400_0000 | number | u64::from(wide) << 30;
            match rig.call(vcpu, &[function, target, entry, noise[0]]) {
                Resume::CpuOn { target, entry, .. } => {
                    prop_assert!(!before.contains(target) && rig.power.is_on(target));
                    prop_assert!(target.index() < 4 && entry.is_aligned(4));
                    prop_assert!((0x4000_0000..=0x4000_0ffc).contains(&entry.get()));
                }
                Resume::CpuOff => prop_assert!(!rig.power.is_on(cpu(vcpu))),
                Resume::PowerDown { entry, .. } => {
                    prop_assert_eq!(before, rig.power.on);
                    prop_assert!(entry.is_aligned(4));
                    prop_assert!((0x4000_0000..=0x4000_0ffc).contains(&entry.get()));
                }
                Resume::Results(_) | Resume::Suspend | Resume::SystemOff | Resume::SystemReset => {
                    prop_assert_eq!(before, rig.power.on);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
