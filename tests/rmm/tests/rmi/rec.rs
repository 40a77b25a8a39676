//! REC_AUX_COUNT, REC_CREATE, REC_DESTROY.

use rmm::abi::fid;
use rmm::{GranuleState, Pa};

use crate::harness::{Host, INPUT, OK, Params, REALM, Realm, rec_params};

/// REC_CREATE for REC 0 with changed parameters; all auxiliary granules are as before if refused.
fn create_with(host: &Host, realm: Realm, change: impl Fn(Params) -> Params) -> u64 {
    let aux: Vec<Pa> = (0..16).map(|_| host.delegated()).collect();
    let rec = host.delegated();
    let params = host.page(&change(rec_params(1, 0, 0x1000, &aux)));
    let status = host.status(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]);
    let (rec_state, aux_state) = match status {
        OK => (GranuleState::Rec, GranuleState::RecAux),
        _ => (GranuleState::Delegated, GranuleState::Delegated),
    };
    assert_eq!(host.machine.granule_state(rec), Some(rec_state));
    for pa in aux {
        assert_eq!(host.machine.granule_state(pa), Some(aux_state));
    }
    status
}

#[test]
fn auxiliary_granules_are_counted() {
    let host = Host::new();
    let realm = host.realm();
    assert_eq!(host.call(fid::REC_AUX_COUNT, [realm.rd.0])[..2], [OK, 16]);
    assert_eq!(host.status(fid::REC_AUX_COUNT, [realm.root.0]), INPUT);
}

#[test]
fn parameters_are_checked() {
    let host = Host::new();
    let realm = host.realm();
    let taken = host.alloc(1);
    let refused = |what: &str, offset: usize, value: u64| {
        let status = create_with(&host, realm, |params| params.set(offset, value));
        assert_eq!(status, INPUT, "{what}");
    };
    refused("reserved flag", 0, 3);
    refused("REC 1 before REC 0", 0x100, 1);
    refused("affinity bits that do not exist", 0x100, 0x10);
    refused("upper half of the MPIDR", 0x100, 1 << 32);
    refused("too few auxiliary granules", 0x800, 15);
    refused("too many auxiliary granules", 0x800, 17);
    refused("auxiliary granule that is not delegated", 0x808 + 8 * 15, taken.0);
    refused("reserved byte", 0x8, 1);
    refused("reserved end", 0x888, 1);
    assert_eq!(create_with(&host, realm, |params| params), OK);
    assert_eq!(create_with(&host, realm, |params| params), INPUT, "REC 0 exists");
    assert_eq!(create_with(&host, realm, |params| params.set(0x100, 1)), OK);
}

#[test]
fn an_auxiliary_granule_is_used_once() {
    let host = Host::new();
    let realm = host.realm();
    let pa = host.delegated();
    let twice = |params: Params| params.set(0x808, pa.0).set(0x810, pa.0);
    let aux: Vec<Pa> = (0..16).map(|_| host.delegated()).collect();
    let params = host.page(&twice(rec_params(1, 0, 0, &aux)));
    let rec = host.delegated();
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]), INPUT);
    let params = host.page(&rec_params(1, 0, 0, &aux).set(0x808, rec.0));
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]), INPUT);
    assert_eq!(host.machine.census().rec_aux, 0);
}

#[test]
fn granules_must_be_what_they_are_said_to_be() {
    let host = Host::new();
    let realm = host.realm();
    let aux: Vec<Pa> = (0..16).map(|_| host.delegated()).collect();
    let params = host.page(&rec_params(1, 0, 0, &aux)).0;
    let rec = host.delegated().0;
    assert_eq!(host.status(fid::REC_CREATE, [realm.root.0, rec, params]), INPUT);
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, realm.rd.0, params]), INPUT);
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, host.alloc(1).0, params]), INPUT);
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, rec, rec]), INPUT);
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, rec, params]), OK);
}

#[test]
fn recs_are_created_before_activation() {
    let host = Host::new();
    let realm = host.realm();
    host.activate(realm);
    assert_eq!(create_with(&host, realm, |params| params), REALM);
}

#[test]
fn destruction_wipes_and_returns_everything() {
    let host = Host::new();
    let realm = host.realm();
    let (rec, aux) = host.rec(realm, 0, true);
    assert_eq!(host.status(fid::REC_DESTROY, [aux[0].0]), INPUT);
    assert_eq!(host.status(fid::REC_DESTROY, [rec.0]), OK);
    assert_eq!(host.status(fid::REC_DESTROY, [rec.0]), INPUT);
    host.undelegate(rec);
    let mut bytes = [0xff; 4096];
    host.machine.read(rec, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    aux.into_iter().for_each(|pa| host.undelegate(pa));
}
