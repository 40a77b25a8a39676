//! DATA_CREATE, DATA_CREATE_UNKNOWN, DATA_DESTROY.

use rmm::abi::fid;

use crate::harness::{
    ASSIGNED, DESTROYED, EMPTY, Host, INPUT, OK, RAM, REALM, SHARED, UNASSIGNED, rtt,
};

#[test]
fn data_create_checks_its_operands() {
    let host = Host::new();
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let (rd, data, source) = (realm.rd.0, host.delegated().0, host.alloc(1).0);
    let create = |args: [u64; 5]| host.status(fid::DATA_CREATE, args);
    assert_eq!(create([rd, data, 0, source, 2]), INPUT, "flags");
    assert_eq!(create([rd, data, 0, data, 0]), INPUT, "source is delegated");
    assert_eq!(create([rd, data, 0, 0x1000, 0]), INPUT, "source is no RAM");
    assert_eq!(create([rd, source, 0, source, 0]), INPUT, "data is not delegated");
    assert_eq!(create([realm.root.0, data, 0, source, 0]), INPUT, "no RD");
    assert_eq!(create([rd, rd, 0, source, 0]), INPUT, "data is the RD");
    assert_eq!(create([rd, data, 8, source, 0]), INPUT, "misaligned IPA");
    assert_eq!(create([rd, data, SHARED, source, 0]), INPUT, "unprotected IPA");
    assert_eq!(create([rd, data, 1 << 40, source, 0]), INPUT, "beyond the IPA space");
    assert_eq!(create([rd, data, 1 << 21, source, 0]), rtt(2), "no table");
    assert_eq!(create([rd, data, 1 << 30, source, 0]), rtt(1), "no table");
    assert_eq!(create([rd, data, 0, source, 1]), OK);
    let more = host.delegated().0;
    assert_eq!(create([rd, more, 0, source, 0]), rtt(3), "assigned");
    host.activate(realm);
    assert_eq!(create([rd, more, 0x1000, source, 0]), REALM, "active");
    assert_eq!(create([rd, more, 8, source, 0]), REALM, "state before address");
    assert_eq!(host.entry(realm, 0, 3), [3, ASSIGNED, data, RAM]);
}

#[test]
fn unknown_data_keeps_the_ripas() {
    let host = Host::new();
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let (rd, data) = (realm.rd.0, host.delegated().0);
    let create = |args: [u64; 3]| host.status(fid::DATA_CREATE_UNKNOWN, args);
    assert_eq!(create([rd, host.alloc(1).0, 0]), INPUT, "data is not delegated");
    assert_eq!(create([realm.root.0, data, 0]), INPUT, "no RD");
    assert_eq!(create([rd, data, 8]), INPUT, "misaligned IPA");
    assert_eq!(create([rd, data, SHARED]), INPUT, "unprotected IPA");
    assert_eq!(create([rd, data, 1 << 21]), rtt(2), "no table");
    assert_eq!(create([rd, data, 0]), OK);
    assert_eq!(host.entry(realm, 0, 3), [3, ASSIGNED, data, EMPTY]);
    assert_eq!(create([rd, host.delegated().0, 0]), rtt(3), "assigned");
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [rd, 0x1000, 0x2000])[..2], [OK, 0x2000]);
    host.activate(realm);
    let data = host.delegated().0;
    assert_eq!(create([rd, data, 0x1000]), OK, "also when active");
    assert_eq!(host.entry(realm, 0x1000, 3), [3, ASSIGNED, data, RAM]);
}

#[test]
fn destroyed_ram_stays_destroyed() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    let ram = host.map_ram(realm, 0);
    let empty = host.map(realm, 0x1000);
    host.map_ram(realm, 0x5000);
    let destroy = |ipa: u64| host.call(fid::DATA_DESTROY, [rd, ipa]);
    assert_eq!(host.call(fid::DATA_DESTROY, [realm.root.0, 0])[..3], [INPUT, 0, 0]);
    assert_eq!(destroy(8)[..3], [INPUT, 0, 0]);
    assert_eq!(destroy(SHARED)[..3], [INPUT, 0, 0]);
    assert_eq!(destroy(0)[..3], [OK, ram.0, 0x1000]);
    assert_eq!(host.entry(realm, 0, 3), [3, UNASSIGNED, 0, DESTROYED]);
    assert_eq!(destroy(0)[..3], [rtt(3), 0, 0x1000], "to the next live entry");
    assert_eq!(destroy(0x1000)[..3], [OK, empty.0, 0x5000]);
    assert_eq!(host.entry(realm, 0x1000, 3), [3, UNASSIGNED, 0, EMPTY]);
    assert_eq!(destroy(1 << 21)[..3], [rtt(2), 0, 1 << 30], "to the end of the table");
    assert_eq!(destroy(1 << 30)[..3], [rtt(1), 0, 1 << 39]);
    let again = host.delegated().0;
    assert_eq!(host.status(fid::DATA_CREATE_UNKNOWN, [rd, again, 0]), OK);
    assert_eq!(host.entry(realm, 0, 3), [3, ASSIGNED, again, DESTROYED]);
    assert_eq!(destroy(0)[..3], [OK, again, 0x5000]);
    host.undelegate(ram);
    host.undelegate(empty);
}

#[test]
fn contents_do_not_leak() {
    let host = Host::new();
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let (data, source) = (host.delegated(), host.alloc(1));
    host.machine.write(source, &[0xa5; 4096]).unwrap();
    assert_eq!(host.status(fid::DATA_CREATE, [realm.rd.0, data.0, 0, source.0, 0]), OK);
    assert_eq!(host.call(fid::DATA_DESTROY, [realm.rd.0, 0])[0], OK);
    host.undelegate(data);
    let mut bytes = [0xff; 4096];
    host.machine.read(data, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}
