//! Version, features, delegation.

use rmm::Pa;
use rmm::abi::fid;
use rmm::host::AccessFault;

use crate::harness::{Host, INPUT, OK};

#[test]
fn version_1_0_is_the_only_one() {
    let host = Host::new();
    assert_eq!(host.call(fid::VERSION, [0x1_0000])[..3], [OK, 0x1_0000, 0x1_0000]);
    assert_eq!(host.call(fid::VERSION, [0x2_0000])[..3], [INPUT, 0x1_0000, 0x1_0000]);
    assert_eq!(host.call(fid::VERSION, [0])[0], INPUT);
}

#[test]
fn unknown_functions_are_unknown() {
    let host = Host::new();
    for function in [0xc400_0156, 0xc400_0160, 0xc400_0163, 0xc400_01f1, 0xc400_0202, 0] {
        assert_eq!(host.status(function, []), u64::MAX);
    }
    assert_eq!(host.status(fid::VERSION | 1 << 16, [0x1_0000]), OK, "SVE hint");
}

#[test]
fn feature_register_0_describes_the_machine() {
    let host = Host::new();
    let [status, register, ..] = host.call(fid::FEATURES, [0]);
    assert_eq!(status, OK);
    assert_eq!(register & 0xff, 48);
    assert_eq!(register >> 14 & 0x3f, 5);
    assert_eq!(register >> 20 & 0x3f, 3);
    assert_eq!(register >> 32 & 0b11, 0b11, "SHA-256 and SHA-512");
    assert_eq!(register >> 34 & 0xf, 3);
    assert_eq!(register >> 38 & 0xf, 10);
    assert_eq!(register & 1 << 26, 0, "no PMU");
    assert_eq!(host.call(fid::FEATURES, [1])[..2], [OK, 0]);
}

#[test]
fn delegation_takes_the_granule_and_its_contents() {
    let host = Host::new();
    let pa = host.alloc(1);
    host.machine.write(pa, b"secret").unwrap();
    host.delegate(pa);
    let mut bytes = [0xff; 6];
    assert_eq!(host.machine.read(pa, &mut bytes), Err(AccessFault::GranuleProtection(pa)));
    assert_eq!(host.status(fid::GRANULE_DELEGATE, [pa.0]), INPUT, "twice");
    host.undelegate(pa);
    host.machine.read(pa, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 6]);
    assert_eq!(host.status(fid::GRANULE_UNDELEGATE, [pa.0]), INPUT, "twice");
}

#[test]
fn delegation_is_refused_for_what_is_no_granule_of_ours() {
    let host = Host::new();
    let pa = host.alloc(1);
    let end = host.machine.ram().base.offset(host.machine.ram().size);
    for bad in [pa.0 + 8, end.0, 0, u64::MAX - 0xfff] {
        assert_eq!(host.status(fid::GRANULE_DELEGATE, [bad]), INPUT);
        assert_eq!(host.status(fid::GRANULE_UNDELEGATE, [bad]), INPUT);
    }
    assert!(host.machine.make_secure(pa));
    assert_eq!(host.status(fid::GRANULE_DELEGATE, [pa.0]), INPUT, "EL3 refuses");
    assert_eq!(host.machine.granule_state(pa), Some(rmm::GranuleState::Undelegated));
}

#[test]
fn only_unused_granules_can_be_undelegated() {
    let host = Host::new();
    let realm = host.realm();
    let (rec, aux) = host.rec(realm, 0, true);
    let data = host.map(realm, 0);
    let table = Pa(host.entry(realm, 0, 0)[2]);
    for pa in [realm.rd, realm.root, rec, aux[0], data, table] {
        assert_eq!(host.status(fid::GRANULE_UNDELEGATE, [pa.0]), INPUT);
    }
}
