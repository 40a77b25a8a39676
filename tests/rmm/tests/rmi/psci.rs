//! PSCI of realms, and PSCI_COMPLETE.

use rmm::Pa;
use rmm::abi::{exit_reason, fid, psci_fid};
use rmm::host::{Cpu, Stop};

use crate::harness::{Host, INPUT, OK, REC, Realm, SHARED, realm_params};

/// A realm with a REC that runs and one that is off.
fn two_recs(host: &Host) -> (Realm, Pa, Pa) {
    let realm = host.realm();
    let (first, _) = host.rec(realm, 0, true);
    let (second, _) = host.rec(realm, 1, false);
    host.activate(realm);
    (realm, first, second)
}

/// What both RECs do: the first starts the second and stores its result, then both go off.
fn start_second(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.index() == 1 {
        assert_eq!(cpu.entry(), (0x4000, 0x77));
        cpu.smc(psci_fid::CPU_OFF, [0; 4])?;
    }
    let result = cpu.smc(psci_fid::CPU_ON, [1, 0x4000, 0x77, 0])?;
    assert_eq!(result[1..4], [0; 3]);
    cpu.smc(psci_fid::CPU_SUSPEND, [result[0], 0, 0, 0])?;
    cpu.system_off()
}

#[test]
fn what_is_answered_without_the_host() {
    let host = Host::with_guest(|cpu| {
        let mut psci = |function, args| Ok(cpu.smc(function, args)?[0]);
        assert_eq!(psci(psci_fid::VERSION, [0; 4])?, 0x1_0001);
        assert_eq!(psci(psci_fid::FEATURES, [psci_fid::CPU_ON, 0, 0, 0])?, 0);
        assert_eq!(psci(psci_fid::FEATURES, [0x8400_0005, 0, 0, 0])?, psci_fid::NOT_SUPPORTED);
        assert_eq!(psci(0x8400_0005, [0; 4])?, psci_fid::NOT_SUPPORTED);
        let on = psci_fid::CPU_ON;
        assert_eq!(psci(on, [1, SHARED, 0, 0])?, psci_fid::INVALID_ADDRESS);
        assert_eq!(psci(on, [2, 0, 0, 0])?, psci_fid::INVALID_PARAMETERS);
        assert_eq!(psci(on, [0, 0, 0, 0])?, psci_fid::ALREADY_ON, "itself");
        let affinity = psci_fid::AFFINITY_INFO;
        assert_eq!(psci(affinity, [0, 0, 0, 0])?, 0, "itself is on");
        assert_eq!(psci(affinity, [1, 1, 0, 0])?, psci_fid::INVALID_PARAMETERS, "level");
        assert_eq!(psci(affinity, [2, 0, 0, 0])?, psci_fid::INVALID_PARAMETERS);
        cpu.system_off()
    });
    let (_, first, _) = two_recs(&host);
    assert_eq!(host.enter(first, 0).gpr(0), psci_fid::SYSTEM_OFF);
}

#[test]
fn cpu_on_starts_the_target_when_the_host_completes_it() {
    let host = Host::with_guest(start_second);
    let (_, first, second) = two_recs(&host);
    let exit = host.enter(first, 0);
    assert_eq!([exit.reason(), exit.gpr(0), exit.gpr(1)], [exit_reason::PSCI, psci_fid::CPU_ON, 1]);
    assert_eq!(exit.gpr(2), 0, "the entry point is the realm's");
    assert_eq!(host.try_enter(first, crate::harness::Params::new()).0, REC, "pending");
    assert_eq!(host.try_enter(second, crate::harness::Params::new()).0, REC, "still off");
    let complete = |args: [u64; 3]| host.status(fid::PSCI_COMPLETE, args);
    assert_eq!(complete([first.0, first.0, 0]), INPUT, "same REC");
    assert_eq!(complete([second.0, first.0, 0]), INPUT, "nothing pending");
    assert_eq!(complete([first.0 + 8, second.0, 0]), INPUT, "misaligned");
    assert_eq!(complete([first.0, second.0, psci_fid::ALREADY_ON]), INPUT, "status");
    assert_eq!(complete([first.0, second.0, 0]), OK);
    assert_eq!(complete([first.0, second.0, 0]), INPUT, "done");
    let exit = host.enter(second, 0);
    assert_eq!([exit.reason(), exit.gpr(0)], [exit_reason::PSCI, psci_fid::CPU_OFF]);
    assert_eq!(host.try_enter(second, crate::harness::Params::new()).0, REC, "off again");
    let exit = host.enter(first, 0);
    assert_eq!([exit.reason(), exit.gpr(0)], [exit_reason::PSCI, psci_fid::CPU_SUSPEND]);
}

#[test]
fn the_host_may_deny() {
    let host = Host::with_guest(|cpu| {
        let denied = cpu.smc(psci_fid::CPU_ON, [1, 0x4000, 0, 0])?[0];
        assert_eq!(denied, psci_fid::DENIED);
        let off = cpu.smc(psci_fid::AFFINITY_INFO, [1, 0, 0, 0])?[0];
        assert_eq!(off, psci_fid::AFFINITY_OFF);
        cpu.system_off()
    });
    let (_, first, second) = two_recs(&host);
    host.enter(first, 0);
    let complete = |status: u64| host.status(fid::PSCI_COMPLETE, [first.0, second.0, status]);
    assert_eq!(complete(psci_fid::DENIED), OK);
    assert_eq!(host.enter(first, 0).gpr(0), psci_fid::AFFINITY_INFO);
    assert_eq!(complete(psci_fid::DENIED), INPUT, "affinity cannot be denied");
    assert_eq!(complete(psci_fid::SUCCESS), OK);
    assert_eq!(host.enter(first, 0).gpr(0), psci_fid::SYSTEM_OFF);
}

#[test]
fn a_target_that_is_on_stays_on() {
    for (status, expected) in [(psci_fid::SUCCESS, OK), (psci_fid::DENIED, INPUT)] {
        let host = Host::with_guest(|cpu| {
            let result = cpu.smc(psci_fid::CPU_ON, [1, 0x4000, 0, 0])?[0];
            assert_eq!(result, psci_fid::ALREADY_ON);
            cpu.system_off()
        });
        let realm = host.realm();
        let (first, _) = host.rec(realm, 0, true);
        let (second, _) = host.rec(realm, 1, true);
        host.activate(realm);
        host.enter(first, 0);
        assert_eq!(host.status(fid::PSCI_COMPLETE, [first.0, second.0, status]), expected);
        assert_eq!(host.enter(first, 0).gpr(0), psci_fid::SYSTEM_OFF);
    }
}

#[test]
fn the_target_must_be_the_one_that_was_named() {
    let host = Host::with_guest(start_second);
    let realm = host.realm();
    let (first, _) = host.rec(realm, 0, true);
    host.rec(realm, 1, false);
    let (third, _) = host.rec(realm, 2, false);
    let (rd, root) = (host.delegated(), host.delegated());
    let params = host.page(&realm_params(root, 2));
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params.0]), OK);
    let other = Realm { rd, root };
    host.rec(other, 0, false);
    let (foreign, _) = host.rec(other, 1, false);
    host.activate(realm);
    host.enter(first, 0);
    assert_eq!(host.status(fid::PSCI_COMPLETE, [first.0, third.0, 0]), INPUT);
    assert_eq!(host.status(fid::PSCI_COMPLETE, [first.0, foreign.0, 0]), INPUT);
}

#[test]
fn reset_ends_the_realm_too() {
    let host = Host::with_guest(|cpu| cpu.smc(psci_fid::SYSTEM_RESET, [0; 4]).map(|_| ()));
    let (_, rec) = host.active();
    assert_eq!(host.enter(rec, 0).gpr(0), psci_fid::SYSTEM_RESET);
    let (status, _) = host.try_enter(rec, crate::harness::Params::new());
    assert_eq!(status, crate::harness::REALM | 1 << 8);
}
