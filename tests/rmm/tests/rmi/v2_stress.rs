//! RMI 2.0: many threads at once, on the same granules, RECs and operations. Whatever they get
//! answered, the monitor neither hangs nor loses a granule.

use std::thread;

use rmm::abi::fid;
use rmm::host::{Census, Config, Machine};
use rmm::v2::{Draft, Rmi2, fid as fid2};
use rmm::{GranuleState, Pa};

use crate::harness::{
    Host, INCOMPLETE, OK, Params, RECLAIM, Random, Realm, rec_params, undelegated,
};

/// Pages that the threads fight about.
const PAGES: u64 = 48;
const THREADS: u64 = 4;
const SINGLE: u64 = 1;
/// Contexts, few enough to run out.
const CONTEXTS: usize = 6;

/// What the threads share.
#[derive(Clone, Copy)]
struct Shared {
    realm: Realm,
    rec: Pa,
    rec_params: Pa,
    pool: Pa,
}

fn call(machine: &Machine, fid: u64, args: [u64; 5]) -> [u64; 8] {
    let [x1, x2, x3, x4, x5] = args;
    machine.call(fid, [x1, x2, x3, x4, x5, 0, 0])
}

/// Calls of one thread, for whose run page and lists `own` is.
fn disturb(machine: &Machine, shared: Shared, own: Pa, seed: u64) {
    let mut random = Random(seed);
    let rd = shared.realm.rd.0;
    for _ in 0..4000 {
        let pa = shared.pool.0 + random.below(PAGES) * 4096;
        let count = 1 + random.below(16);
        let ipa = random.below(8) * 4096;
        let handle = random.below(CONTEXTS as u64);
        let range = [pa, pa + 4096 * count, 0, 0, 0];
        match random.below(14) {
            0 | 1 => call(machine, fid2::GRANULE_RANGE_DELEGATE, range),
            2 => call(machine, fid2::GRANULE_RANGE_UNDELEGATE, range),
            3 => {
                let args = [rd, ipa, ipa + 0x4000, SINGLE, pa | count << 2];
                call(machine, fid2::RTT_DATA_MAP, args)
            }
            4 => call(machine, fid2::RTT_DATA_UNMAP, [rd, ipa, ipa + 0x4000, SINGLE, 0]),
            5 => call(machine, fid::RTT_CREATE, [rd, pa, 1 << 21, 3, 0]),
            6 => call(machine, fid::RTT_DESTROY, [rd, 1 << 21, 3, 0, 0]),
            7 => call(machine, fid::REC_ENTER, [shared.rec.0, own.0, 0, 0, 0]),
            8 => call(machine, fid::REC_CREATE, [rd, pa, shared.rec_params.0, 0, 0]),
            9 | 10 => {
                let state = random.below(2) * undelegated(Draft::Late);
                let count = if random.below(2) == 0 { 1 } else { count.min(6) };
                let descriptor = pa | count << 2 | state;
                machine.write(own.offset(4096), &descriptor.to_le_bytes()).unwrap();
                let args = [handle, own.offset(4096).0, 1, 0, 0];
                call(machine, fid2::OP_MEM_DONATE, args)
            }
            11 => {
                let room = random.below(4);
                call(machine, fid2::OP_MEM_RECLAIM, [handle, own.offset(4096).0, room, 0, 0])
            }
            12 => call(machine, fid2::OP_CONTINUE, [handle, 0, 0, 0, 0]),
            _ => call(machine, fid2::OP_CANCEL, [handle, 0, 0, 0, 0]),
        };
    }
}

/// Brings the operation to its end, whatever it waits for.
fn finish(host: &Host, handle: u64) {
    let (list, bad) = (host.alloc(1), host.page(&Params::new().set(0, 0x1000 | 1 << 2)));
    let state = undelegated(Draft::Late);
    let other = host.page(&Params::new().set(0, 0x1000 | 1 << 2 | state));
    for _ in 0..4 {
        host.status(fid2::OP_MEM_DONATE, [handle, bad.0, 1]);
        host.status(fid2::OP_MEM_DONATE, [handle, other.0, 1]);
        host.status(fid2::OP_CANCEL, [handle]);
        host.status(fid2::OP_MEM_RECLAIM, [handle, list.0, 512]);
        host.status(fid2::OP_CONTINUE, [handle, 0]);
    }
}

#[test]
fn threads_lose_no_granule_in_2_0() {
    let rmi2 = Rmi2 { contexts: CONTEXTS, ..Rmi2::EVERYTHING };
    // What is contiguous is rarely there in such a turmoil.
    let donations = rmi2.donations.map(|donation| rmm::Donation { contiguous: false, ..donation });
    let host = Host::v2(Rmi2 { donations, ..rmi2 });
    host.machine.set_guest(|cpu| {
        loop {
            cpu.wfi()?;
        }
    });
    let realm = host.realm();
    let tables = host.tables(realm, 0, 3);
    let (rec, aux) = host.rec(realm, 0, true);
    host.activate(realm);
    // The realm runs, so that no REC comes of the operations.
    let rec_params = host.page(&rec_params(1, 1, 0x1000, &[]));
    let pool = host.alloc(PAGES + 16);
    let own: Vec<Pa> = (0..THREADS).map(|_| host.alloc(2)).collect();
    let shared = Shared { realm, rec, rec_params, pool };
    thread::scope(|scope| {
        for (own, seed) in own.iter().zip(1..) {
            let machine = &host.machine;
            scope.spawn(move || disturb(machine, shared, *own, seed));
        }
    });

    (0..CONTEXTS as u64).for_each(|handle| finish(&host, handle));
    let unmap = |page: u64| {
        let args = [realm.rd.0, page * 4096, (page + 1) * 4096, SINGLE, 0];
        let [status, handle, ..] = host.call(fid2::RTT_DATA_UNMAP, args);
        if status == INCOMPLETE {
            assert_eq!(host.status(fid2::OP_CONTINUE, [handle, 0]), OK);
        }
    };
    (0..12).for_each(unmap);
    host.status(fid::RTT_DESTROY, [realm.rd.0, 1 << 21, 3]);
    for level in [3, 2, 1] {
        assert_eq!(host.status(fid::RTT_DESTROY, [realm.rd.0, 0, level]), OK);
    }
    let [status, handle, ..] = host.call(fid::REC_DESTROY, [rec.0]);
    assert_eq!(status, INCOMPLETE | RECLAIM);
    finish(&host, handle);
    assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.rd.0]), OK);
    assert_eq!(host.status(fid::REALM_DESTROY, [realm.rd.0]), OK);
    let pool = (0..PAGES + 16).map(|page| pool.offset(page * 4096));
    for pa in tables.into_iter().chain(aux).chain([rec, realm.rd, realm.root]).chain(pool) {
        if host.machine.granule_state(pa) != Some(GranuleState::Undelegated) {
            host.undelegate(pa);
        }
    }
    let all = Config::default().ram.size / 4096;
    assert_eq!(host.machine.census(), Census { undelegated: all, ..Census::default() });
}
