//! RMI 2.0: running RECs.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use rmm::GicState;
use rmm::Ipa;
use rmm::abi::{exit_reason, fid, psci_fid};
use rmm::v2::{Draft, Rmi2, fid as fid2};

use crate::harness::{DESTROYED, EMPTY, Host, INPUT, OK, Params, RAM, REALM, REC};

#[test]
fn list_registers_are_the_hosts() {
    const PENDING: u64 = 1 << 62;
    let host = Host::v2(Rmi2::HEAD);
    host.machine.set_guest(|cpu| {
        assert_eq!(cpu.acknowledge(), Some(27));
        cpu.interrupted()
    });
    let (_, rec) = host.active();
    let set = |lr: [u64; 2]| {
        let mut state = GicState { ich_hcr: 1, ich_vmcr: 0xff, ..GicState::default() };
        state.ich_lr[..2].copy_from_slice(&lr);
        host.machine.set_cpu_interface(&state);
    };
    set([PENDING | 1 << 61 | 27, 0]);
    assert_eq!(host.try_enter(rec, Params::new()).0, REC, "hardware interrupt");
    set([PENDING | 27, PENDING | 27]);
    assert_eq!(host.try_enter(rec, Params::new()).0, REC, "twice");
    assert_eq!(host.try_enter(rec, Params::new().set(0x308, 1)).0, INPUT, "not in the run page");
    set([PENDING | 27, 0]);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.field(0x308)], [exit_reason::IRQ, 0]);
    let after = host.machine.cpu_interface();
    assert_eq!(after.ich_lr[0], 1 << 63 | 27, "active");
    assert_eq!([after.ich_hcr, after.ich_vmcr], [0, 0xff], "the interface is off");
}

#[test]
fn the_state_of_the_realm_is_told_only_by_v0_9() {
    for (rmi2, off) in [(Rmi2::HEAD, REALM), (Rmi2::V0_9, REALM | 1 << 8)] {
        let host = Host::v2(rmi2);
        host.machine.set_guest(|cpu| cpu.system_off());
        let (_, rec) = host.active();
        assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
        assert_eq!(host.try_enter(rec, Params::new()).0, off);
    }
}

#[test]
fn psci_completes_without_the_target() {
    let host = Host::v2(Rmi2 { draft: Draft::Late, ..Rmi2::HEAD });
    host.machine.set_guest(|cpu| {
        if cpu.index() == 1 {
            return cpu.smc(psci_fid::CPU_OFF, [0; 4]).map(|_| ());
        }
        let info = psci_fid::AFFINITY_INFO;
        assert_eq!(cpu.smc(info, [1, 0, 0, 0])?[0], psci_fid::AFFINITY_OFF, "no exit");
        assert_eq!(cpu.smc(psci_fid::CPU_ON, [1, 0x1000, 0, 0])?[0], psci_fid::SUCCESS);
        assert_eq!(cpu.smc(info, [1, 0, 0, 0])?[0], psci_fid::SUCCESS, "on");
        cpu.system_off()
    });
    let realm = host.realm();
    let (first, _) = host.rec(realm, 0, true);
    let (second, _) = host.rec(realm, 1, false);
    host.activate(realm);
    assert_eq!(host.status(fid::PSCI_COMPLETE, [first.0, 0]), INPUT, "nothing pending");
    assert_eq!(host.enter(first, 0).gpr(0), psci_fid::CPU_ON);
    assert_eq!(host.status(fid::PSCI_COMPLETE, [first.0, psci_fid::SUCCESS]), OK);
    assert_eq!(host.enter(first, 0).gpr(0), psci_fid::SYSTEM_OFF);
    assert_eq!(host.try_enter(second, Params::new()).0, REALM);
}

#[test]
fn destroyed_memory_can_be_given_up() {
    let host = Host::v2(Rmi2::HEAD);
    host.machine.set_guest(|cpu| {
        cpu.smc(rmm::abi::rsi_fid::IPA_STATE_SET, [0x1000, 0x2000, EMPTY, 0])?;
        cpu.smc(rmm::abi::rsi_fid::IPA_STATE_SET, [0x3000, 0x4000, RAM, 0])?;
        cpu.load(Ipa(0), 8).map(|_| ())
    });
    let realm = host.realm();
    for ipa in [0x1000, 0x3000] {
        host.map_ram(realm, ipa);
        let args = [realm.rd.0, ipa, ipa + 0x1000, 0, 0];
        assert_eq!(host.call(fid2::RTT_DATA_UNMAP, args)[0], OK);
    }
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::RIPAS_CHANGE);
    let args = [realm.rd.0, rec.0, 0x1000, 0x2000];
    assert_eq!(host.call(fid::RTT_SET_RIPAS, args)[..2], [OK, 0x2000]);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::RIPAS_CHANGE);
    let args = [realm.rd.0, rec.0, 0x3000, 0x4000];
    assert_eq!(host.status(fid::RTT_SET_RIPAS, args), crate::harness::rtt(3));
    assert_eq!(host.entry(realm, 0x3000, 3)[3], DESTROYED);
}

#[test]
fn termination_waits_for_running_recs() {
    let (entered, wait_entered) = channel();
    let (resume, wait_resume) = channel();
    let wait_resume = Mutex::new(wait_resume);
    let host = Host::v2(Rmi2::HEAD);
    host.machine.set_guest(move |cpu| {
        entered.send(()).unwrap();
        wait_resume.lock().unwrap().recv().unwrap();
        cpu.wfi()
    });
    let (realm, rec) = host.active();
    let run = host.alloc(1);
    thread::scope(|scope| {
        let machine = &host.machine;
        let cpu =
            scope.spawn(move || machine.call(fid::REC_ENTER, [rec.0, run.0, 0, 0, 0, 0, 0])[0]);
        wait_entered.recv().unwrap();
        assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.rd.0]), REALM);
        assert_eq!(host.status(fid::REC_DESTROY, [rec.0]), REC);
        resume.send(()).unwrap();
        assert_eq!(cpu.join().unwrap(), OK);
    });
    assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.rd.0]), OK);
}
