//! RTT_INIT_RIPAS and RTT_SET_RIPAS.

use rmm::Ipa;
use rmm::abi::{enter_flags, exit_reason, fid, rsi_fid};
use rmm::host::{Cpu, Stop};

use crate::harness::{
    ASSIGNED, DESTROYED, EMPTY, Host, INPUT, OK, RAM, REALM, REC, SHARED, UNASSIGNED, rtt,
};

const MIB_2: u64 = 1 << 21;

#[test]
fn init_checks_its_operands() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    host.tables(realm, 0, 2);
    let init = |args: [u64; 3]| host.call(fid::RTT_INIT_RIPAS, args);
    assert_eq!(init([rd, 0x1000, 0x1000])[0], INPUT, "empty");
    assert_eq!(init([rd, 0x2000, 0x1000])[0], INPUT, "backwards");
    assert_eq!(init([realm.root.0, 0, MIB_2])[0], INPUT, "no RD");
    assert_eq!(init([rd, 8, MIB_2])[0], INPUT, "misaligned base");
    assert_eq!(init([rd, 0, MIB_2 + 8])[0], INPUT, "misaligned top");
    assert_eq!(init([rd, 0, SHARED + MIB_2])[0], INPUT, "top is unprotected");
    assert_eq!(init([rd, SHARED, SHARED + MIB_2])[0], INPUT, "unprotected");
    assert_eq!(init([rd, 0, 0x1000])[0], rtt(2), "less than an entry");
    assert_eq!(init([rd, 0x1000, MIB_2])[0], rtt(2), "in the middle of an entry");
    assert_eq!(init([rd, 0, 2 * MIB_2 + 0x1000])[..2], [OK, 2 * MIB_2], "whole entries only");
    assert_eq!(init([rd, 0, MIB_2])[..2], [OK, MIB_2], "again");
    host.map(realm, 4 * MIB_2);
    assert_eq!(init([rd, 3 * MIB_2, 5 * MIB_2])[..2], [OK, 4 * MIB_2], "up to the table");
    assert_eq!(init([rd, 4 * MIB_2, 5 * MIB_2])[0], rtt(3), "assigned");
    host.activate(realm);
    assert_eq!(init([rd, 0, MIB_2])[0], REALM);
}

/// A guest that asks for one change of RIPAS and reports the results in a host call page.
fn asks_once(base: u64, top: u64, ripas: u64, flags: u64) -> impl Fn(&mut Cpu) -> Result<(), Stop> {
    move |cpu| {
        let results = cpu.smc(rsi_fid::IPA_STATE_SET, [base, top, ripas, flags])?;
        let (_, answers) = cpu.host_call(Ipa(0), 7, results)?;
        assert_eq!(answers, [0; 31], "the host's, in the right place");
        Ok(())
    }
}

/// An active realm whose REC 0 has a page of RAM at 0 and has just asked for a change.
fn asked(
    host: &Host,
    more: impl Fn(&Host, crate::harness::Realm),
) -> (crate::harness::Realm, rmm::Pa) {
    let realm = host.realm();
    host.map_ram(realm, 0);
    more(host, realm);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, 0);
    assert_eq!(exit.reason(), exit_reason::RIPAS_CHANGE);
    (realm, rec)
}

#[test]
fn set_follows_the_request() {
    let host = Host::with_guest(asks_once(0x1000, 0x4000, RAM, 0));
    let (realm, rec) = asked(&host, |_, _| {});
    let rd = realm.rd.0;
    let set = |args: [u64; 4]| host.call(fid::RTT_SET_RIPAS, args);
    assert_eq!(set([rd, rec.0, 0x1000, 0x1000])[0], INPUT, "empty");
    assert_eq!(set([rd, rd, 0x1000, 0x2000])[0], INPUT, "no REC");
    assert_eq!(set([realm.root.0, rec.0, 0x1000, 0x2000])[0], INPUT, "no RD");
    assert_eq!(set([rd, rec.0, 0x2000, 0x3000])[0], INPUT, "not where the request is");
    assert_eq!(set([rd, rec.0, 0x1000, 0x5000])[0], INPUT, "beyond the request");
    assert_eq!(set([rd, rec.0, 0x1000, 0x2008])[0], INPUT, "misaligned");
    assert_eq!(set([rd, rec.0, 0x1000, 0x2000])[..2], [OK, 0x2000]);
    assert_eq!(set([rd, rec.0, 0x1000, 0x2000])[0], INPUT, "done already");
    assert_eq!(set([rd, rec.0, 0x2000, 0x4000])[..2], [OK, 0x4000]);
    assert_eq!(host.entry(realm, 0x3000, 3), [3, UNASSIGNED, 0, RAM]);
    let exit = host.enter(rec, 0);
    assert_eq!(exit.reason(), exit_reason::HOST_CALL);
    assert_eq!([exit.gpr(0), exit.gpr(1), exit.gpr(2)], [0, 0x4000, 0]);
    assert_eq!(set([rd, rec.0, 0x1000, 0x2000])[0], INPUT, "nothing is pending");
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::IRQ, "told once");
}

#[test]
fn the_exit_describes_the_request_and_rejection_is_told() {
    let host = Host::with_guest(asks_once(0x1000, 0x4000, RAM, 0));
    let realm = host.realm();
    host.map_ram(realm, 0);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.field(0x500), exit.field(0x508), exit.field(0x510)], [0x1000, 0x4000, RAM]);
    assert_eq!(exit.gpr(0), 0);
    let exit = host.enter(rec, enter_flags::RIPAS_RESPONSE);
    assert_eq!([exit.gpr(0), exit.gpr(1), exit.gpr(2)], [0, 0x1000, 1]);
}

#[test]
fn rejection_counts_only_for_unfinished_ram() {
    let host = Host::with_guest(asks_once(0x1000, 0x2000, EMPTY, 0));
    let (_, rec) = asked(&host, |_, _| {});
    let exit = host.enter(rec, enter_flags::RIPAS_RESPONSE);
    assert_eq!([exit.gpr(1), exit.gpr(2)], [0x1000, 0], "EMPTY cannot be rejected");
    let host = Host::with_guest(asks_once(0x1000, 0x2000, RAM, 0));
    let (realm, rec) = asked(&host, |_, _| {});
    host.call(fid::RTT_SET_RIPAS, [realm.rd.0, rec.0, 0x1000, 0x2000]);
    let exit = host.enter(rec, enter_flags::RIPAS_RESPONSE);
    assert_eq!([exit.gpr(1), exit.gpr(2)], [0x2000, 0], "it is done");
}

#[test]
fn set_needs_tables_of_the_right_depth() {
    let host = Host::with_guest(asks_once(MIB_2 + 0x1000, MIB_2 + 0x2000, RAM, 0));
    let (realm, rec) = asked(&host, |_, _| {});
    let args = [realm.rd.0, rec.0, MIB_2 + 0x1000, MIB_2 + 0x2000];
    assert_eq!(host.status(fid::RTT_SET_RIPAS, args), rtt(2));
    host.tables(realm, MIB_2, 3);
    assert_eq!(host.call(fid::RTT_SET_RIPAS, args)[..2], [OK, MIB_2 + 0x2000]);
}

#[test]
fn ram_becomes_empty_and_keeps_its_page() {
    let host = Host::with_guest(|cpu| {
        cpu.store(Ipa(0x1000), 8, 5)?;
        assert!(cpu.set_ripas(Ipa(0x1000), Ipa(0x2000), EMPTY, 0)?);
        assert!(matches!(cpu.load(Ipa(0x1000), 8), Err(Stop::Abort { .. })));
        cpu.system_off()
    });
    let realm = host.realm();
    let data = host.map_ram(realm, 0x1000);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::RIPAS_CHANGE);
    let args = [realm.rd.0, rec.0, 0x1000, 0x2000];
    assert_eq!(host.call(fid::RTT_SET_RIPAS, args)[..2], [OK, 0x2000]);
    assert_eq!(host.entry(realm, 0x1000, 3), [3, ASSIGNED, data.0, EMPTY]);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn destroyed_memory_changes_only_if_the_realm_says_so() {
    for (flags, expected) in [(0, rtt(3)), (1, OK)] {
        for to in [RAM, EMPTY] {
            let host = Host::with_guest(asks_once(0x1000, 0x2000, to, flags));
            let (realm, rec) = asked(&host, |host, realm| {
                host.map_ram(realm, 0x1000);
                assert_eq!(host.status(fid::DATA_DESTROY, [realm.rd.0, 0x1000]), OK);
            });
            let args = [realm.rd.0, rec.0, 0x1000, 0x2000];
            assert_eq!(host.status(fid::RTT_SET_RIPAS, args), expected);
            let ripas = if flags == 0 { DESTROYED } else { to };
            assert_eq!(host.entry(realm, 0x1000, 3), [3, UNASSIGNED, 0, ripas]);
        }
    }
}

#[test]
fn a_rec_of_another_realm_is_refused() {
    let host = Host::with_guest(asks_once(0x1000, 0x2000, RAM, 0));
    let (_, rec) = asked(&host, |_, _| {});
    let (rd, root) = (host.delegated(), host.delegated());
    let params = host.page(&crate::harness::realm_params(root, 2));
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params.0]), OK);
    assert_eq!(host.status(fid::RTT_SET_RIPAS, [rd.0, rec.0, 0x1000, 0x2000]), REC);
}
