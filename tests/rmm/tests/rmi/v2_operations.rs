//! RMI 2.0: stateful operations.

use rmm::abi::{Status, fid};
use rmm::v2::{Rmi2, fid as fid2};
use rmm::{GranuleState, Pa};

use crate::harness::{
    DONATE, Host, INCOMPLETE, INPUT, OK, Params, REALM, RECLAIM, Realm, descriptors,
    page_descriptor, rec_params,
};

/// A REC whose creation waits for donations: its granule and the handle.
fn begun(host: &Host, realm: Realm, params: &Params) -> (Pa, u64) {
    let rec = host.delegated();
    let params = host.page(params);
    let [status, handle, request, ..] = host.call(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]);
    assert_eq!([status, request], [INCOMPLETE | DONATE, 16 << 2]);
    assert_eq!(host.machine.granule_state(rec), Some(GranuleState::Partial));
    (rec, handle)
}

/// Takes everything back until the operation only has to be continued; the pages.
fn drain(host: &Host, handle: u64, room: u64) -> Vec<Pa> {
    let list = host.alloc(1);
    let mut pages = Vec::new();
    loop {
        let [status, count, ..] = host.call(fid2::OP_MEM_RECLAIM, [handle, list.0, room]);
        let mut bytes = vec![0; 8 * count as usize];
        host.machine.read(list, &mut bytes).unwrap();
        for word in bytes.chunks_exact(8) {
            let descriptor = u64::from_le_bytes(word.try_into().unwrap());
            assert_eq!(descriptor & (1 << 63 | 0b11), 0, "delegated pages");
            let base = Pa(descriptor & 0xf_ffff_ffff_f000);
            pages.extend((0..descriptor >> 2 & 0x3ff).map(|n| base.offset(4096 * n)));
        }
        match status {
            INCOMPLETE => return pages,
            status => assert_eq!(status, INCOMPLETE | RECLAIM),
        }
    }
}

#[test]
fn donations_may_come_in_parts() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let (rec, handle) = begun(&host, realm, &rec_params(1, 0, 0, &[]));
    let donate = |pages: &[Pa]| {
        let list = host.page(&descriptors(pages));
        host.call(fid2::OP_MEM_DONATE, [handle, list.0, pages.len() as u64])
    };
    let aux: Vec<Pa> = (0..16).map(|_| host.delegated()).collect();
    assert_eq!(donate(&[])[..3], [INCOMPLETE | DONATE, 0, 16 << 2], "nothing is allowed");
    assert_eq!(donate(&aux[..5])[..3], [INCOMPLETE | DONATE, 5, 11 << 2]);
    assert_eq!(donate(&aux)[0], INPUT, "more than asked for");
    assert_eq!(donate(&[aux[6], aux[5], host.alloc(1)])[..3], [INCOMPLETE | DONATE, 2, 9 << 2]);
    assert_eq!(donate(&aux[7..])[..3], [INCOMPLETE, 9, 0]);
    assert_eq!(donate(&[])[0], INPUT, "nothing is due");
    assert_eq!(host.status(fid2::OP_MEM_RECLAIM, [handle, 0x8000_0000, 1]), INPUT);
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), OK);
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INPUT, "the handle is dead");
    assert_eq!(host.machine.granule_state(rec), Some(GranuleState::Rec));
}

#[test]
fn wrong_donations_change_nothing() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let (_, handle) = begun(&host, realm, &rec_params(1, 0, 0, &[]));
    let page = host.delegated();
    let one = |descriptor: u64| host.page(&Params::new().set(0, descriptor)).0;
    let good = one(page_descriptor(page));
    let donate = |args: [u64; 3]| host.status(fid2::OP_MEM_DONATE, args);
    assert_eq!(donate([handle + 1, good, 1]), INPUT, "handle");
    assert_eq!(donate([handle, good + 4, 1]), INPUT, "misaligned list");
    assert_eq!(donate([handle, page.0, 1]), INPUT, "the list is delegated");
    assert_eq!(donate([handle, one(page.0 | 1 << 2 | 1), 1]), INPUT, "2 MiB");
    assert_eq!(donate([handle, one(page_descriptor(page) | 1 << 63), 1]), INPUT, "state");
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INPUT, "not due");
    assert_eq!(host.status(fid2::OP_CANCEL, [handle]), INPUT, "cannot be cancelled");
    assert_eq!(donate([handle, good, 1]), INCOMPLETE | DONATE);
}

#[test]
fn a_bad_first_granule_ends_the_operation() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let (rec, handle) = begun(&host, realm, &rec_params(1, 0, 0, &[]));
    let taken: Vec<Pa> = (0..3).map(|_| host.delegated()).collect();
    let list = host.page(&descriptors(&taken));
    assert_eq!(host.call(fid2::OP_MEM_DONATE, [handle, list.0, 3])[1], 3);
    let list = host.page(&descriptors(&[host.alloc(1)]));
    assert_eq!(host.status(fid2::OP_MEM_DONATE, [handle, list.0, 1]), INCOMPLETE | RECLAIM);
    assert_eq!(drain(&host, handle, 1), taken);
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INPUT, "the outcome");
    taken.into_iter().chain([rec]).for_each(|pa| host.undelegate(pa));
}

#[test]
fn failed_creation_gives_everything_back() {
    let failing = |params: Params, active: bool, expected: u64| {
        let host = Host::v2(Rmi2::HEAD);
        let realm = host.realm();
        let (rec, handle) = begun(&host, realm, &params);
        if active {
            host.activate(realm);
        }
        // Every other page, so that nothing joins.
        let aux: Vec<Pa> = (0..16)
            .map(|_| {
                host.alloc(1);
                host.delegated()
            })
            .collect();
        let list = host.page(&descriptors(&aux));
        assert_eq!(host.status(fid2::OP_MEM_DONATE, [handle, list.0, 16]), INCOMPLETE);
        assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INCOMPLETE | RECLAIM);
        let nothing = host.call(fid2::OP_MEM_RECLAIM, [handle, host.alloc(1).0, 0]);
        assert_eq!(nothing[..2], [INCOMPLETE | RECLAIM, 0]);
        let refused = host.status(fid2::OP_MEM_RECLAIM, [handle, rec.0, 1]);
        assert_eq!(refused, INPUT, "the list is not the host's");
        assert_eq!(drain(&host, handle, 5), aux);
        assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), expected);
        aux.into_iter().chain([rec]).for_each(|pa| host.undelegate(pa));
    };
    failing(rec_params(1, 1, 0, &[]), false, INPUT);
    failing(rec_params(2, 0, 0, &[]), false, INPUT);
    failing(rec_params(1, 0, 0, &[]).set(0x800, 16), false, INPUT);
    failing(rec_params(1, 0, 0, &[]), true, REALM);
}

#[test]
fn contexts_run_out() {
    let host = Host::v2(Rmi2 { contexts: 2, ..Rmi2::HEAD });
    let realm = host.realm();
    let (rec, _) = host.rec(realm, 0, true);
    begun(&host, realm, &rec_params(1, 1, 0, &[]));
    let (_, handle) = begun(&host, realm, &rec_params(1, 2, 0, &[]));
    let blocked = Status::Blocked as u64;
    let params = host.page(&rec_params(1, 3, 0, &[]));
    let args = [realm.rd.0, host.delegated().0, params.0];
    assert_eq!(host.status(fid::REC_CREATE, args), blocked);
    assert_eq!(host.status(fid::REC_DESTROY, [rec.0]), blocked);
    assert_eq!(host.status(fid2::RTT_DATA_MAP, [realm.rd.0, 0, 4096, 1, 0]), blocked);
    let list = host.page(&descriptors(&[host.alloc(1)]));
    assert_eq!(host.status(fid2::OP_MEM_DONATE, [handle, list.0, 1]), INCOMPLETE | RECLAIM);
    drain(&host, handle, 1);
    assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), INPUT);
    assert_eq!(host.status(fid::REC_CREATE, args), INCOMPLETE | DONATE);
}

#[test]
fn a_rec_in_an_operation_is_no_rec() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let (rec, handle) = begun(&host, realm, &rec_params(1, 0, 0, &[]));
    assert_eq!(host.status(fid::REC_DESTROY, [rec.0]), INPUT);
    assert_eq!(host.try_enter(rec, Params::new()).0, INPUT);
    assert_eq!(host.status(fid2::GRANULE_RANGE_UNDELEGATE, [rec.0, rec.0 + 4096]), INPUT);
    assert_eq!(host.status(fid2::OP_MEM_RECLAIM, [handle, 0x8000_0000, 1]), INPUT);
}
