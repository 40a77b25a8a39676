//! RMI 2.0 range commands in random order against a model of one line per page.

use std::collections::HashMap;

use proptest::prelude::*;
use rmm::abi::fid as v1;
use rmm::v2::{Rmi2, fid};
use rmm::{GRANULE_SIZE, Pa};

use crate::harness::{Host, OK, Params, Realm};

/// Pages of the IPA range, around the border of two tables.
const FIRST: u64 = 504;
const PAGES: u64 = 16;
/// Pages of the pool, all delegated, that are mapped.
const POOL: u64 = 24;

const SINGLE: u64 = 1;
const LIST: u64 = 2;

#[derive(Clone, Debug)]
enum Op {
    /// Maps `count` pages of the pool from `from` on at `page`.
    Map { page: u64, from: u64, count: u64 },
    /// Maps these pages of the pool, by a list.
    MapList { page: u64, pool: Vec<u64> },
    /// Unmaps `count` pages with room for so many ranges; SINGLE if none.
    Unmap { page: u64, count: u64, room: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let page = FIRST..FIRST + PAGES;
    prop_oneof![
        (page.clone(), 0..POOL, 1..8_u64).prop_map(|(page, from, count)| Op::Map {
            page,
            from,
            count
        }),
        (page.clone(), prop::collection::vec(0..POOL, 1..6))
            .prop_map(|(page, pool)| Op::MapList { page, pool }),
        (page, 1..12_u64, 0..4_u64).prop_map(|(page, count, room)| Op::Unmap { page, count, room }),
    ]
}

struct Run {
    host: Host,
    realm: Realm,
    pool: Pa,
    mapped: HashMap<u64, Pa>,
}

impl Run {
    fn new() -> Self {
        let host = Host::v2(Rmi2::HEAD);
        let realm = host.realm();
        host.tables(realm, FIRST * GRANULE_SIZE, 3);
        host.tables(realm, 512 * GRANULE_SIZE, 3);
        let pool = host.alloc(POOL);
        (0..POOL).for_each(|page| host.delegate(pool.offset(page * GRANULE_SIZE)));
        Self { host, realm, pool, mapped: HashMap::new() }
    }

    fn page(&self, number: u64) -> Pa {
        self.pool.offset(number % POOL * GRANULE_SIZE)
    }

    fn table_end(page: u64) -> u64 {
        (page / 512 + 1) * 512
    }

    /// Maps by the command and by the model, which stops at the first page that cannot be.
    fn map(&mut self, page: u64, pages: &[Pa], flags: u64, address: u64) {
        let top = (page + pages.len() as u64) * GRANULE_SIZE;
        let args = [self.realm.rd.0, page * GRANULE_SIZE, top, flags, address];
        let [status, end, ..] = self.host.call(fid::RTT_DATA_MAP, args);
        let mut next = page;
        for pa in pages {
            let free = !self.mapped.values().any(|mapped| mapped == pa);
            let fits = match self.mapped.get(&next) {
                Some(mapped) => mapped == pa,
                None => free,
            };
            if !fits || next == Self::table_end(page) {
                break;
            }
            self.mapped.insert(next, *pa);
            next += 1;
        }
        assert_eq!(status == OK, next > page);
        if status == OK {
            assert_eq!(end, next * GRANULE_SIZE);
        }
    }

    fn unmap(&mut self, page: u64, count: u64, room: u64) {
        let list = self.host.alloc(1);
        let (flags, address) = if room == 0 { (SINGLE, 0) } else { (LIST | room << 2, list.0) };
        let (base, top) = (page * GRANULE_SIZE, (page + count) * GRANULE_SIZE);
        let args = [self.realm.rd.0, base, top, flags, address];
        let [status, end, single, listed, ..] = self.host.call(fid::RTT_DATA_UNMAP, args);
        assert_eq!(status, OK);
        let mut words = vec![0; 8 * listed as usize];
        self.host.machine.read(list, &mut words).unwrap();
        let words = words.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let ranges: Vec<u64> = if room == 0 { vec![single] } else { words.collect() };
        let mut told: Vec<Pa> = ranges
            .into_iter()
            .flat_map(|range| {
                let base = Pa(range & 0xf_ffff_ffff_f000);
                (0..range >> 2 & 0x3ff).map(move |n| base.offset(n * GRANULE_SIZE))
            })
            .collect();
        let end = end / GRANULE_SIZE;
        let mut freed: Vec<Pa> = (page..end).filter_map(|page| self.mapped.remove(&page)).collect();
        told.sort();
        freed.sort();
        assert_eq!(told, freed, "every page that came free is told");
        // It stops early only for want of room in the list, or at the table's end.
        let stopped = end < (page + count).min(Self::table_end(page));
        assert!(!stopped || self.mapped.contains_key(&end), "stopped at a hole");
    }

    /// Everything can be unmapped, destroyed and given back.
    fn tear_down(mut self) {
        for base in [FIRST, 512] {
            while self.mapped.keys().any(|page| page / 512 == base / 512) {
                let first = self.mapped.keys().filter(|page| **page / 512 == base / 512).min();
                let first = first.copied().unwrap_or(base);
                self.unmap(first, Self::table_end(first) - first, 512);
            }
        }
        let destroy =
            |ipa: u64, level: u64| self.host.status(v1::RTT_DESTROY, [self.realm.rd.0, ipa, level]);
        assert_eq!([destroy(0, 3), destroy(1 << 21, 3)], [OK; 2]);
        assert_eq!([destroy(0, 2), destroy(0, 1)], [OK; 2]);
        assert_eq!(self.host.status(fid::REALM_TERMINATE, [self.realm.rd.0]), OK);
        assert_eq!(self.host.status(v1::REALM_DESTROY, [self.realm.rd.0]), OK);
        (0..POOL).for_each(|page| self.host.undelegate(self.page(page)));
    }

    fn check(&self) {
        assert_eq!(self.host.machine.census().data, self.mapped.len() as u64);
        for page in FIRST..FIRST + PAGES {
            let [_, state, pa, _] = self.host.entry(self.realm, page * GRANULE_SIZE, 3);
            assert_eq!((state == 1).then_some(Pa(pa)), self.mapped.get(&page).copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn range_commands_agree_with_the_model(ops in prop::collection::vec(op(), 1..40)) {
        let mut run = Run::new();
        for op in ops {
            match op {
                Op::Map { page, from, count } => {
                    let count = count.min(POOL - from);
                    let pages: Vec<Pa> = (from..from + count).map(|n| run.page(n)).collect();
                    let range = run.page(from).0 | count << 2;
                    run.map(page, &pages, SINGLE, range);
                }
                Op::MapList { page, pool } => {
                    let pages: Vec<Pa> = pool.iter().map(|n| run.page(*n)).collect();
                    let mut list = Params::new();
                    for (number, pa) in pages.iter().enumerate() {
                        list = list.set(8 * number, pa.0 | 1 << 2);
                    }
                    let list = run.host.page(&list);
                    run.map(page, &pages, LIST | (pages.len() as u64) << 2, list.0);
                }
                Op::Unmap { page, count, room } => run.unmap(page, count, room),
            }
            run.check();
        }
        run.tear_down();
    }
}
