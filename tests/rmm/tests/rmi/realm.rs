//! REALM_CREATE, REALM_ACTIVATE, REALM_DESTROY.

use rmm::Pa;
use rmm::abi::fid;
use rmm::host::Census;

use crate::harness::{Host, INPUT, NORMAL_RW, OK, Params, REALM, SHARED, realm_params};

/// REALM_CREATE with changed parameters.
fn create_with(host: &Host, change: impl Fn(Params) -> Params) -> u64 {
    let (rd, root) = (host.delegated(), host.delegated());
    let params = host.page(&change(realm_params(root, 1)));
    host.status(fid::REALM_CREATE, [rd.0, params.0])
}

#[test]
fn parameters_are_checked() {
    let host = Host::new();
    let refused = |what: &str, offset: usize, value: u64| {
        assert_eq!(create_with(&host, |params| params.set(offset, value)), INPUT, "{what}");
    };
    refused("LPA2 is not offered", 0, 1);
    refused("SVE is not offered", 0, 2);
    refused("PMU is not offered", 0, 4);
    refused("reserved flag", 0, 1 << 63);
    refused("IPA width too small", 0x8, 31);
    refused("IPA width too large", 0x8, 49);
    refused("reserved half of the IPA width", 0x8, 1 << 32 | 40);
    refused("no breakpoints", 0x18, 0);
    refused("too many breakpoints", 0x18, 6);
    refused("no watchpoints", 0x20, 0);
    refused("too many watchpoints", 0x20, 4);
    refused("SHA-384 is not in 1.0", 0x30, 2);
    refused("reserved byte", 0x38, 1);
    refused("reserved end", 0xff8, 1);
    refused("VMID 0", 0x800, 0);
    refused("start level does not fit", 0x810, 1);
    refused("start level too deep", 0x810, 4);
    refused("negative start level", 0x810, u64::MAX);
    refused("number of start tables", 0x818, 2);
    refused("misaligned start table", 0x808, 0x8000_0008);
    refused("start table that is not delegated", 0x808, host.alloc(1).0);
    assert_eq!(create_with(&host, |params| params), OK, "and the VMID is still free");
    assert_eq!(create_with(&host, |params| params), INPUT, "VMID in use");
    assert_eq!(create_with(&host, |params| params.set(0x800, 0xffff)), OK);
}

#[test]
fn parameter_page_must_be_the_hosts() {
    let host = Host::new();
    let (rd, delegated) = (host.delegated(), host.delegated());
    for params in [delegated.0, 0x10, host.alloc(1).0 + 8] {
        assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params]), INPUT);
    }
}

#[test]
fn rd_must_be_delegated_and_no_start_table() {
    let host = Host::new();
    let root = host.delegated();
    let params = host.page(&realm_params(root, 1));
    for rd in [root, host.alloc(1), Pa(8)] {
        assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params.0]), INPUT);
    }
    assert_eq!(host.status(fid::REALM_CREATE, [host.delegated().0, params.0]), OK);
}

#[test]
fn concatenated_start_tables_are_aligned_and_all_delegated() {
    let host = Host::new();
    let rd = host.delegated();
    let root = host.alloc(4);
    let params = |root: Pa| {
        let params = realm_params(root, 1).set(0x8, 32).set(0x810, 2).set(0x818, 4);
        host.page(&params).0
    };
    for number in 0..3 {
        host.delegate(root.offset(number * 4096));
    }
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params(root)]), INPUT, "one is missing");
    host.delegate(root.offset(3 * 4096));
    host.delegate(host.alloc(1));
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params(root.offset(4096))]), INPUT);
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params(root)]), OK);
    // The last start table is that of the last gigabyte, which is unprotected.
    let read = host.call(fid::RTT_READ_ENTRY, [rd.0, 0xc000_0000, 2]);
    assert_eq!(read[..5], [OK, 2, 0, 0, 0]);
    assert_eq!(host.status(fid::REALM_DESTROY, [rd.0]), OK);
    assert_eq!(host.machine.census().rtt, 0);
}

#[test]
fn activation_happens_once() {
    let host = Host::new();
    let realm = host.realm();
    assert_eq!(host.status(fid::REALM_ACTIVATE, [realm.root.0]), INPUT);
    host.activate(realm);
    assert_eq!(host.status(fid::REALM_ACTIVATE, [realm.rd.0]), REALM);
}

#[test]
fn destruction_needs_an_empty_realm() {
    let host = Host::new();
    let realm = host.realm();
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.root.0]), INPUT);
    let (rec, aux) = host.rec(realm, 0, false);
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), REALM, "a REC is left");
    assert_eq!(host.status(fid::REC_DESTROY, [rec.0]), OK);
    let table = host.tables(realm, 0, 1)[0];
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), REALM, "a table is left");
    assert_eq!(host.call(fid::RTT_DESTROY, [realm.rd.0, 0, 1])[..2], [OK, table.0]);
    host.activate(realm);
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), OK);
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), INPUT);
    for pa in aux.into_iter().chain([rec, table, realm.rd, realm.root]) {
        host.undelegate(pa);
    }
    let all = host.machine.ram().size / 4096;
    assert_eq!(host.machine.census(), Census { undelegated: all, ..Census::default() });
    host.realm();
}

#[test]
fn unprotected_mappings_do_not_keep_a_realm() {
    let host = Host::new();
    let (rd, root) = (host.delegated(), host.delegated());
    let params = realm_params(root, 1).set(0x8, 39).set(0x810, 1);
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, host.page(&params).0]), OK);
    let args = [rd.0, SHARED / 2, 1, 0x8000_0000 | NORMAL_RW];
    assert_eq!(host.status(fid::RTT_MAP_UNPROTECTED, args), OK);
    assert_eq!(host.status(fid::REALM_DESTROY, [rd.0]), OK);
}
