//! RMI 2.0: the monitor as a whole, delegation, life of a realm.

use rmm::abi::{Status, fid};
use rmm::host::Census;
use rmm::v2::{Draft, Rmi2, fid as fid2};
use rmm::{Donation, GranuleState, Pa};

use crate::harness::{
    DONATE, Host, INCOMPLETE, INPUT, OK, Params, REALM, RECLAIM, page_descriptor, realm_params,
};

const GLOBAL: u64 = Status::Global as u64;

#[test]
fn nothing_works_before_activation() {
    let host = Host::inactive(Rmi2::HEAD);
    let pa = host.alloc(1).0;
    assert_eq!(host.call(fid::VERSION, [0x2_0000])[..3], [OK, 0x2_0000, 0x2_0000]);
    assert_eq!(host.call(fid::VERSION, [0x1_0000])[..3], [INPUT, 0x2_0000, 0x2_0000]);
    assert_eq!(host.call(fid::FEATURES, [1])[..2], [OK, 0x1_4000 | 10 << 6 | 0b10_1001]);
    assert_eq!(host.call(fid::FEATURES, [5])[..2], [OK, 0]);
    assert_eq!(host.call(fid::FEATURES, [0])[1] >> 32, 0);
    assert_eq!(host.status(fid2::GRANULE_RANGE_DELEGATE, [pa, pa + 4096]), GLOBAL);
    assert_eq!(host.status(fid::REALM_CREATE, [pa, pa]), GLOBAL);
    assert_eq!(host.status(fid::GRANULE_DELEGATE, [pa]), u64::MAX, "not in 2.0");
    assert_eq!(host.status(0xc400_01ee, []), u64::MAX, "a later draft");
    assert_eq!(host.status(fid2::RMM_ACTIVATE, []), OK);
    assert_eq!(host.status(fid2::RMM_ACTIVATE, []), GLOBAL);
    assert_eq!(host.status(fid2::GRANULE_RANGE_DELEGATE, [pa, pa + 4096]), OK);
}

#[test]
fn only_the_one_configuration_is_accepted() {
    let host = Host::inactive(Rmi2::HEAD);
    let page = host.alloc(1);
    host.machine.write(page, &[0xff; 16]).unwrap();
    assert_eq!(host.status(fid2::RMM_CONFIG_SET, [page.0]), INPUT);
    assert_eq!(host.status(fid2::RMM_CONFIG_GET, [page.0]), OK);
    assert_eq!(host.status(fid2::RMM_CONFIG_SET, [page.0]), OK);
    for bad in [0, page.0 + 8, 0x1000] {
        assert_eq!(host.status(fid2::RMM_CONFIG_GET, [bad]), INPUT);
        assert_eq!(host.status(fid2::RMM_CONFIG_SET, [bad]), INPUT);
    }
    assert_eq!(host.status(fid2::RMM_ACTIVATE, []), OK);
    assert_eq!(host.status(fid2::RMM_CONFIG_SET, [page.0]), GLOBAL);
    assert_eq!(host.status(fid2::RMM_CONFIG_GET, [page.0]), OK);
}

#[test]
fn tracking_and_tables_of_protection() {
    let host = Host::v2(Rmi2::HEAD);
    let get = |start: u64, end: u64| host.call(fid2::GRANULE_TRACKING_GET, [start, end]);
    assert_eq!(get(0x8000_0000, 0x8400_0000)[..4], [OK, 0, 2, 0x8400_0000]);
    assert_eq!(get(0x1000_0000, 0x1000_1000)[..3], [OK, 0, 1]);
    assert_eq!(get(0x8000_0000, 0x8000_0000)[0], INPUT);
    assert_eq!(get(0x8000_0008, 0x8000_1000)[0], INPUT);
    let old = Host::v2(Rmi2::V0_9);
    assert_eq!(old.call(fid2::GRANULE_TRACKING_GET, [0x8000_0000])[..3], [OK, 0, 2]);
    assert_eq!(old.status(fid2::GRANULE_TRACKING_GET, [0x8000_1000]), INPUT);
    assert_eq!(host.status(fid2::GPT_L1_CREATE, [0x4000_0000]), Status::Gpt as u64);
    assert_eq!(host.status(fid2::GPT_L1_CREATE, [0x4000_1000]), INPUT);
}

#[test]
fn ranges_are_delegated_one_by_one_or_whole() {
    for whole_ranges in [false, true] {
        let host = Host::v2(Rmi2 { whole_ranges, ..Rmi2::HEAD });
        let base = host.alloc(8).0;
        let top = base + 8 * 4096;
        let delegate = |base, top| host.call(fid2::GRANULE_RANGE_DELEGATE, [base, top]);
        for (base, top) in [(base + 8, top), (base, top + 8), (base, base), (top, base)] {
            assert_eq!(delegate(base, top)[..2], [INPUT, base]);
        }
        let end = if whole_ranges { top } else { base + 4096 };
        assert_eq!(delegate(base, top)[..2], [OK, end]);
        assert_eq!(delegate(base, top)[..2], [INPUT, base], "the first is delegated");
        let undelegated = host.call(fid2::GRANULE_RANGE_UNDELEGATE, [base, top]);
        assert_eq!(undelegated[..2], [OK, end]);
        if whole_ranges {
            host.delegate(rmm::Pa(base + 3 * 4096));
            assert_eq!(delegate(base, top)[..2], [OK, base + 3 * 4096], "up to the obstacle");
        }
    }
}

/// A late draft that delegates whole ranges with a pause, and wants a granule for the time.
const WITH_SCRATCH: Rmi2 = Rmi2 {
    draft: Draft::Late,
    whole_ranges: true,
    yields: true,
    scratch: Some(Donation { undelegated: true, cancellable: true, ..Donation::PAGES }),
    ..Rmi2::HEAD
};

#[test]
fn delegation_of_a_range_pauses() {
    let host = Host::v2(Rmi2 { whole_ranges: true, yields: true, ..Rmi2::HEAD });
    let base = host.alloc(5).0;
    let top = base + 5 * 4096;
    let at = |granule: u64| host.machine.granule_state(Pa(base + granule * 4096));
    for (command, state) in [
        (fid2::GRANULE_RANGE_DELEGATE, GranuleState::Delegated),
        (fid2::GRANULE_RANGE_UNDELEGATE, GranuleState::Undelegated),
    ] {
        let [status, handle, ..] = host.call(command, [base, top]);
        assert_eq!(status, INCOMPLETE);
        assert_eq!((at(1), at(2) == Some(state)), (Some(state), false), "half of it");
        assert_eq!(host.status(fid2::OP_MEM_RECLAIM, [handle, base, 1]), INPUT, "not due");
        assert_eq!(host.call(fid2::OP_CONTINUE, [handle, 0])[..2], [OK, top]);
        assert_eq!(at(4), Some(state));
        assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INPUT, "the handle is dead");
    }
    host.delegate(Pa(base + 4096));
    let args = [base, top];
    assert_eq!(host.call(fid2::GRANULE_RANGE_DELEGATE, args)[..2], [OK, base + 4096], "obstacle");
    host.undelegate(Pa(base));
    host.delegate(Pa(base + 3 * 4096));
    host.undelegate(Pa(base + 4096));
    let [status, handle, ..] = host.call(fid2::GRANULE_RANGE_DELEGATE, args);
    assert_eq!(status, INCOMPLETE);
    let end = base + 3 * 4096;
    assert_eq!(host.call(fid2::OP_CONTINUE, [handle, 0])[..2], [OK, end], "after the pause");
}

#[test]
fn delegation_of_a_range_borrows_a_granule() {
    let host = Host::v2(WITH_SCRATCH);
    let (base, scratch, list) = (host.alloc(4).0, host.alloc(1), host.alloc(1));
    let top = base + 4 * 4096;
    let undelegated = 1 << 62 | page_descriptor(scratch);
    let can_cancel = 1 << 10;
    let begin = || {
        let [status, handle, request, ..] = host.call(fid2::GRANULE_RANGE_DELEGATE, [base, top]);
        assert_eq!((status, request), (INCOMPLETE | DONATE | can_cancel, 1 << 17 | 1 << 2));
        handle
    };
    let donate = |handle, descriptor: u64| {
        let list = host.page(&Params::new().set(0, descriptor));
        host.status(fid2::OP_MEM_DONATE, [handle, list.0, 1])
    };
    assert_eq!(host.status(fid2::OP_CANCEL, [begin()]), OK);
    let handle = begin();
    let wrong = [page_descriptor(scratch), 1 << 63 | page_descriptor(scratch)];
    assert_eq!(wrong.map(|descriptor| donate(handle, descriptor)), [INPUT; 2], "the state");
    assert_eq!(donate(handle, undelegated), INCOMPLETE);
    assert_eq!(host.machine.granule_state(scratch), Some(GranuleState::RecAux));
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INCOMPLETE, "a pause");
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INCOMPLETE | RECLAIM);
    assert_eq!(host.call(fid2::OP_MEM_RECLAIM, [handle, list.0, 1])[..2], [INCOMPLETE, 1]);
    let mut word = [0; 8];
    host.machine.read(list, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), undelegated);
    assert_eq!(host.machine.granule_state(scratch), Some(GranuleState::Undelegated));
    assert_eq!(host.call(fid2::OP_CONTINUE, [handle, 0])[..2], [OK, top]);
    let one = host.call(fid2::GRANULE_RANGE_UNDELEGATE, [base, base + 4096]);
    assert_eq!(one[..2], [OK, base + 4096], "one granule is done at once");
}

#[test]
fn late_drafts_tell_their_state_before_activation() {
    for (rmi2, status) in [(WITH_SCRATCH, OK), (Rmi2::HEAD, u64::MAX)] {
        let host = Host::inactive(rmi2);
        assert_eq!(host.status(fid2::RMM_STATE_GET, [1]), status);
    }
}

#[test]
fn vmids_are_the_monitors() {
    let host = Host::v2(Rmi2::HEAD);
    let (rd, root) = (host.delegated(), host.delegated());
    let params = host.page(&realm_params(root, 1));
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params.0]), INPUT, "reserved field");
    let params = host.page(&realm_params(root, 0).set(0x38, 1));
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params.0]), INPUT, "planes");
    let params = host.page(&realm_params(root, 0).set(0x30, 2));
    assert_eq!(host.status(fid::REALM_CREATE, [rd.0, params.0]), OK, "SHA-384");
    host.realm();
}

#[test]
fn a_realm_is_terminated_before_it_is_destroyed() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let (rec, aux) = host.rec(realm, 0, true);
    host.activate(realm);
    assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.root.0]), INPUT);
    assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.rd.0]), OK);
    assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.rd.0]), OK, "again");
    assert_eq!(host.try_enter(rec, crate::harness::Params::new()).0, REALM);
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), REALM, "a REC is left");
    let destroyed = host.call(fid::REC_DESTROY, [rec.0]);
    assert_eq!(destroyed[0], INCOMPLETE | RECLAIM);
    let list = host.alloc(1);
    let given = host.call(fid2::OP_MEM_RECLAIM, [destroyed[1], list.0, 512]);
    assert_eq!(given[..2], [INCOMPLETE, 1], "side by side: one descriptor");
    assert_eq!(host.status(fid2::OP_CONTINUE, [destroyed[1], 0]), OK);
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), OK);
    for pa in aux.into_iter().chain([rec, realm.rd, realm.root]) {
        host.undelegate(pa);
    }
    let all = host.machine.ram().size / 4096;
    assert_eq!(host.machine.census(), Census { undelegated: all, ..Census::default() });
}

#[test]
fn destruction_needs_termination_only_where_there_is_one() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), REALM);
    let old = Host::v2(Rmi2::V0_9);
    let realm = old.realm();
    assert_eq!(old.status(fid2::REALM_TERMINATE, [realm.rd.0]), u64::MAX);
    assert_eq!(old.status(fid::REALM_DESTROY, [realm.rd.0]), OK);
}
