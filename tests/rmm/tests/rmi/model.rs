//! Translation table commands in random order against a model of one line per page: RMI 1.0, and
//! what has taken the place of its commands in 2.0.

use std::collections::HashMap;

use proptest::prelude::*;
use rmm::abi::fid;
use rmm::v2::{Rmi2, fid as fid2};
use rmm::{GRANULE_SIZE, Pa};

use crate::harness::{
    ASSIGNED, DESTROYED, EMPTY, Host, INCOMPLETE, OK, RAM, Realm, TABLE, UNASSIGNED,
    page_descriptor,
};

/// Type of the address operand of 2.0: one descriptor.
const SINGLE: u64 = 1;

/// Two tables' worth of pages, of which the operations touch a few near the edges.
const PAGES: [u64; 8] = [0, 1, 2, 510, 511, 512, 513, 1023];

#[derive(Clone, Copy, Debug)]
enum Op {
    CreateTable(u64),
    DestroyTable(u64),
    FoldTable(u64),
    Map(usize),
    Fill(usize),
    Unmap(usize),
    InitRipas(usize),
    InitTableRipas(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let page = 0..PAGES.len();
    let table = 0..2_u64;
    prop_oneof![
        3 => table.clone().prop_map(Op::CreateTable),
        1 => table.clone().prop_map(Op::DestroyTable),
        2 => table.clone().prop_map(Op::FoldTable),
        4 => page.clone().prop_map(Op::Map),
        3 => page.clone().prop_map(Op::Fill),
        3 => page.clone().prop_map(Op::Unmap),
        2 => page.prop_map(Op::InitRipas),
        1 => table.prop_map(Op::InitTableRipas),
    ]
}

/// What the specification says about each page, without tables.
#[derive(Default)]
struct Model {
    pages: HashMap<u64, (u64, Option<Pa>)>,
    tables: [bool; 2],
}

impl Model {
    fn page(&self, page: u64) -> (u64, Option<Pa>) {
        self.pages.get(&page).copied().unwrap_or((EMPTY, None))
    }

    fn range(table: u64) -> std::ops::Range<u64> {
        table * 512..(table + 1) * 512
    }

    fn has_table(&self, page: u64) -> bool {
        self.tables[(page / 512) as usize]
    }

    fn assigned(&self, table: u64) -> usize {
        Self::range(table).filter(|page| self.page(*page).1.is_some()).count()
    }

    fn is_uniform(&self, table: u64) -> bool {
        let first = self.page(table * 512);
        first.1.is_none() && Self::range(table).all(|page| self.page(page) == first)
    }
}

struct Run {
    host: Host,
    realm: Realm,
    model: Model,
    /// Which 2.0, if not 1.0.
    rmi2: Option<Rmi2>,
}

impl Run {
    fn new(rmi2: Option<Rmi2>) -> Self {
        let host = rmi2.map_or_else(Host::new, Host::v2);
        let realm = host.realm();
        host.tables(realm, 0, 2);
        Self { host, realm, model: Model::default(), rmi2 }
    }

    /// Makes a call, and OP_CONTINUE if it yields.
    fn call_through<const N: usize>(&self, fid: u64, args: [u64; N]) -> [u64; 8] {
        match self.host.call(fid, args) {
            [INCOMPLETE, handle, ..] => self.host.call(fid2::OP_CONTINUE, [handle, 0]),
            result => result,
        }
    }

    fn apply(&mut self, op: Op) {
        let rd = self.realm.rd.0;
        match op {
            Op::CreateTable(table) => {
                let pa = self.host.delegated();
                let args = [rd, pa.0, table << 21, 3];
                let created = self.host.status(fid::RTT_CREATE, args) == OK;
                let had = std::mem::replace(&mut self.model.tables[table as usize], true);
                assert_eq!(created, !had);
            }
            Op::DestroyTable(table) => {
                let destroyed = self.host.status(fid::RTT_DESTROY, [rd, table << 21, 3]) == OK;
                let has = self.model.tables[table as usize];
                assert_eq!(destroyed, has && self.model.assigned(table) == 0);
                if destroyed {
                    self.model.tables[table as usize] = false;
                    for page in Model::range(table) {
                        self.model.pages.insert(page, (DESTROYED, None));
                    }
                }
            }
            Op::FoldTable(table) => {
                let folded = self.host.status(fid::RTT_FOLD, [rd, table << 21, 3]) == OK;
                let has = self.model.tables[table as usize];
                assert_eq!(folded, has && self.model.is_uniform(table));
                if folded {
                    self.model.tables[table as usize] = false;
                }
            }
            Op::Map(page) => self.map(PAGES[page], false),
            Op::Fill(page) => self.map(PAGES[page], true),
            Op::Unmap(page) => self.unmap(PAGES[page]),
            Op::InitRipas(page) => self.init_ripas(PAGES[page], PAGES[page] + 1),
            Op::InitTableRipas(table) => {
                let range = Model::range(table);
                self.init_ripas(range.start, range.end);
            }
        }
    }

    fn map(&mut self, page: u64, with_contents: bool) {
        let (rd, ipa) = (self.realm.rd.0, page * GRANULE_SIZE);
        let data = self.host.delegated();
        let status = if with_contents {
            let source = self.host.machine.ram().base; // the page of the realm's parameters
            let source = source.offset(2 * GRANULE_SIZE);
            self.host.status(fid::DATA_CREATE, [rd, data.0, ipa, source.0, 1])
        } else if self.rmi2.is_some() {
            let args = [rd, ipa, ipa + GRANULE_SIZE, SINGLE, page_descriptor(data)];
            self.call_through(fid2::RTT_DATA_MAP, args)[0]
        } else {
            self.host.status(fid::DATA_CREATE_UNKNOWN, [rd, data.0, ipa])
        };
        let (ripas, behind) = self.model.page(page);
        assert_eq!(status == OK, self.model.has_table(page) && behind.is_none());
        if status == OK {
            let ripas = if with_contents { RAM } else { ripas };
            self.model.pages.insert(page, (ripas, Some(data)));
        } else {
            self.host.undelegate(data);
        }
    }

    fn unmap(&mut self, page: u64) {
        if self.rmi2.is_some() {
            return self.unmap_range(page);
        }
        let ipa = page * GRANULE_SIZE;
        let result = self.host.call(fid::DATA_DESTROY, [self.realm.rd.0, ipa]);
        let (ripas, behind) = self.model.page(page);
        match behind {
            Some(pa) => {
                assert_eq!(result[..2], [OK, pa.0]);
                let ripas = if ripas == RAM { DESTROYED } else { ripas };
                self.model.pages.insert(page, (ripas, None));
                self.host.undelegate(pa);
            }
            None => assert_ne!(result[0], OK),
        }
        self.check_top(page, result[2]);
    }

    /// RTT_DATA_UNMAP of a page: a hole is no failure where there is a table.
    fn unmap_range(&mut self, page: u64) {
        let ipa = page * GRANULE_SIZE;
        let args = [self.realm.rd.0, ipa, ipa + GRANULE_SIZE, SINGLE, 0];
        let [status, end, freed, ..] = self.call_through(fid2::RTT_DATA_UNMAP, args);
        let (ripas, behind) = self.model.page(page);
        let Some(pa) = behind else {
            let done = self.model.has_table(page) || self.rmi2 == Some(Rmi2::V0_9);
            assert_eq!(status == OK, done, "page {page}");
            assert_eq!(freed, 0);
            return;
        };
        assert_eq!([status, end, freed], [OK, ipa + GRANULE_SIZE, page_descriptor(pa)]);
        let ripas = if ripas == RAM { DESTROYED } else { ripas };
        self.model.pages.insert(page, (ripas, None));
        self.host.undelegate(pa);
    }

    /// The skip address never jumps over a page that is assigned.
    fn check_top(&self, page: u64, top: u64) {
        let end = (top / GRANULE_SIZE).min(1024);
        let from = if self.model.page(page).1.is_some() { page + 1 } else { page };
        for skipped in from..end {
            assert!(self.model.page(skipped).1.is_none(), "page {skipped} was skipped");
        }
    }

    fn init_ripas(&mut self, base: u64, top: u64) {
        let args = [self.realm.rd.0, base * GRANULE_SIZE, top * GRANULE_SIZE];
        let [status, end, ..] = self.host.call(fid::RTT_INIT_RIPAS, args);
        let whole = base.is_multiple_of(512) && top - base == 512;
        let mut expected = base;
        if self.model.has_table(base) || whole {
            // In 2.0 it passes over assigned pages.
            let passes = self.rmi2.is_some();
            let fits = |page: &u64| {
                let (ripas, behind) = self.model.page(*page);
                (passes || behind.is_none()) && ripas != DESTROYED
            };
            expected = (base..top).take_while(fits).last().map_or(base, |last| last + 1);
            // An entry that covers many pages changes as a whole.
            if !self.model.has_table(base) && expected != top {
                expected = base;
            }
        }
        assert_eq!(status == OK, expected > base);
        if status == OK {
            assert_eq!(end, expected * GRANULE_SIZE);
            for page in base..expected {
                let (_, behind) = self.model.page(page);
                self.model.pages.insert(page, (RAM, behind));
            }
        }
    }

    /// Everything that the host can read agrees with the model.
    fn check(&self) {
        for page in PAGES {
            let (ripas, behind) = self.model.page(page);
            let level = if self.model.has_table(page) { 3 } else { 2 };
            let state = if behind.is_some() { ASSIGNED } else { UNASSIGNED };
            let shown = behind.map_or(0, |pa| pa.0);
            let entry = self.host.entry(self.realm, page * GRANULE_SIZE, 3);
            assert_eq!(entry, [level, state, shown, ripas], "page {page}");
        }
        for (table, exists) in (0..).zip(self.model.tables) {
            let is_table = self.host.entry(self.realm, table << 21, 2)[1] == TABLE;
            assert_eq!(is_table, exists);
        }
    }

    /// No granule is data but those behind pages.
    fn check_census(&self) {
        let data = (0..1024).filter(|page| self.model.page(*page).1.is_some()).count();
        assert_eq!(self.host.machine.census().data, data as u64);
    }
}

/// Runs the commands on each kind of monitor.
fn agree(kinds: &[Option<Rmi2>], ops: &[Op]) {
    for rmi2 in kinds {
        let mut run = Run::new(*rmi2);
        for op in ops {
            run.apply(*op);
            run.check();
        }
        run.check_census();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn table_commands_agree_with_the_model(ops in prop::collection::vec(op(), 1..60)) {
        agree(&[None], &ops);
    }

    #[test]
    fn table_commands_of_2_0_agree_with_the_model(ops in prop::collection::vec(op(), 1..60)) {
        let kinds = [Rmi2::V0_9, Rmi2::HEAD, Rmi2::EVERYTHING];
        agree(&kinds.map(Some), &ops);
    }
}
