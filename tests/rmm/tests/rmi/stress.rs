//! Many threads at once: whatever they get answered, the monitor neither hangs nor loses a
//! granule.

use std::sync::Arc;
use std::thread;

use rmm::Ipa;
use rmm::abi::fid;
use rmm::host::{Census, Config, Machine};

use crate::harness::{Host, OK, Random, Realm};

/// Number of pages that the threads fight about.
const PAGES: u64 = 8;

/// Calls of one thread: delegation, pages, tables, entries, all on the same few granules.
fn disturb(machine: &Machine, realm: Realm, rec: u64, pool: u64, seed: u64) {
    let mut random = Random(seed);
    let call = |fid: u64, args: [u64; 5]| {
        let [x1, x2, x3, x4, x5] = args;
        machine.call(fid, [x1, x2, x3, x4, x5, 0, 0])[0]
    };
    let run = pool + (PAGES + seed) * 4096;
    for _ in 0..2000 {
        let pa = pool + random.below(PAGES) * 4096;
        let ipa = random.below(PAGES) * 4096;
        let rd = realm.rd.0;
        match random.below(9) {
            0 | 1 => call(fid::GRANULE_DELEGATE, [pa, 0, 0, 0, 0]),
            2 => call(fid::GRANULE_UNDELEGATE, [pa, 0, 0, 0, 0]),
            3 => call(fid::DATA_CREATE_UNKNOWN, [rd, pa, ipa, 0, 0]),
            4 => call(fid::DATA_DESTROY, [rd, ipa, 0, 0, 0]),
            5 => call(fid::RTT_CREATE, [rd, pa, 1 << 21, 3, 0]),
            6 => call(fid::RTT_DESTROY, [rd, 1 << 21, 3, 0, 0]),
            7 => call(fid::RTT_FOLD, [rd, 1 << 21, 3, 0, 0]),
            _ => call(fid::REC_ENTER, [rec, run, 0, 0, 0]),
        };
    }
}

#[test]
fn threads_lose_no_granule() {
    let host = Host::with_guest(|cpu| {
        loop {
            for page in 0..PAGES {
                // Aborts on memory that is gone are as good as values.
                match cpu.load(Ipa(page * 4096), 8) {
                    Err(stop @ (rmm::host::Stop::Gone | rmm::host::Stop::Reset)) => {
                        return Err(stop);
                    }
                    _ => cpu.wfi()?,
                }
            }
        }
    });
    let realm = host.realm();
    let tables = host.tables(realm, 0, 3);
    let (rec, aux) = host.rec(realm, 0, true);
    host.activate(realm);
    let pool = host.alloc(PAGES + 8).0;
    let host = Arc::new(host.machine);
    thread::scope(|scope| {
        for seed in 1..=4 {
            let machine = Arc::clone(&host);
            scope.spawn(move || disturb(&machine, realm, rec.0, pool, seed));
        }
    });
    let call = |fid: u64, args: [u64; 3]| {
        let [x1, x2, x3] = args;
        host.call(fid, [x1, x2, x3, 0, 0, 0, 0])
    };
    for page in 0..PAGES {
        call(fid::DATA_DESTROY, [realm.rd.0, page * 4096, 0]);
    }
    call(fid::RTT_DESTROY, [realm.rd.0, 1 << 21, 3]);
    for level in [3, 2, 1] {
        assert_eq!(call(fid::RTT_DESTROY, [realm.rd.0, 0, level])[0], OK);
    }
    assert_eq!(call(fid::REC_DESTROY, [rec.0, 0, 0])[0], OK);
    assert_eq!(call(fid::REALM_DESTROY, [realm.rd.0, 0, 0])[0], OK);
    let mine = tables.into_iter().chain(aux).chain([rec, realm.rd, realm.root]);
    for pa in mine.map(|pa| pa.0).chain((0..PAGES).map(|page| pool + page * 4096)) {
        call(fid::GRANULE_UNDELEGATE, [pa, 0, 0]);
    }
    let all = Config::default().ram.size / 4096;
    assert_eq!(host.census(), Census { undelegated: all, ..Census::default() });
}
