//! Stateful operations of RMI 2.0, several at once and in random order, good calls and bad ones,
//! against a model of what each operation waits for.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rmm::abi::{Status, fid};
use rmm::v2::{Donation, Rmi2, fid as fid2};
use rmm::{GranuleState, Pa};

use crate::harness::{
    DONATE, Host, INCOMPLETE, INPUT, OK, Params, RECLAIM, Realm, page_descriptor, rec_params,
};

const BLOCKED: u64 = Status::Blocked as u64;
const CANCELLABLE: u64 = 1 << 10;
const UNDELEGATED: u64 = 1 << 63;
/// Auxiliary granules of a REC.
const AUX: usize = 16;
/// Operations at once.
const CONTEXTS: usize = 3;

/// What is wrong with a donation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Descriptors of the other state.
    State,
    /// Descriptors of 2 MiB.
    Size,
    /// One granule more than asked for.
    TooMany,
    /// The granule of this number is in use.
    InUse(usize),
}

#[derive(Clone, Copy, Debug)]
enum Op {
    /// REC_CREATE whose parameters are good or not.
    Create(bool),
    /// So many granules to the operation of this handle.
    Donate(u64, usize, Flaw),
    /// Takes back from the operation with room for so many descriptors.
    Reclaim(u64, u64),
    Continue(u64),
    Cancel(u64),
    /// REC_DESTROY of the REC of this number, as far as there is one.
    Destroy(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let handle = 0..CONTEXTS as u64 + 1;
    let flaw = prop_oneof![
        8 => Just(Flaw::None),
        1 => Just(Flaw::State),
        1 => Just(Flaw::Size),
        1 => Just(Flaw::TooMany),
        1 => (0..4_usize).prop_map(Flaw::InUse),
    ];
    prop_oneof![
        2 => prop::bool::weighted(0.8).prop_map(Op::Create),
        6 => (handle.clone(), 0..=AUX, flaw).prop_map(|(h, n, flaw)| Op::Donate(h, n, flaw)),
        3 => (handle.clone(), 0..4_u64).prop_map(|(h, room)| Op::Reclaim(h, room)),
        4 => handle.clone().prop_map(Op::Continue),
        1 => handle.prop_map(Op::Cancel),
        1 => (0..3_usize).prop_map(Op::Destroy),
    ]
}

/// What an operation waits for.
#[derive(Clone, Debug)]
enum Waits {
    /// For granules, or if it has all for OP_CONTINUE.
    Creation { good: bool, mpidr: u64, donation: Donation, got: Vec<Pa> },
    /// For its granules to be taken back.
    Reclaim { left: Vec<Pa>, undelegated: bool, outcome: u64 },
    /// For OP_CONTINUE, which tells this.
    End(u64),
}

struct Run {
    host: Host,
    realm: Realm,
    donations: [Donation; 2],
    turns: usize,
    /// By handle, each with the granule of its REC.
    operations: BTreeMap<u64, (Pa, Waits)>,
    /// RECs with their auxiliary granules and the state in which these were donated.
    recs: Vec<(Pa, Vec<Pa>, bool)>,
    /// RECs that there have been.
    created: u64,
}

impl Run {
    fn new(donations: [Donation; 2]) -> Self {
        let host = Host::v2(Rmi2 { donations, contexts: CONTEXTS, ..Rmi2::HEAD });
        let realm = host.realm();
        let (turns, operations, recs) = (0, BTreeMap::new(), Vec::new());
        Self { host, realm, donations, turns, operations, recs, created: 0 }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Create(good) => self.create(good),
            Op::Donate(handle, count, flaw) => self.donate(handle, count, flaw),
            Op::Reclaim(handle, room) => self.reclaim(handle, room),
            Op::Continue(handle) => self.go_on(handle),
            Op::Cancel(handle) => self.cancel(handle),
            Op::Destroy(number) => self.destroy(number),
        }
    }

    /// The answer of an operation that waits for so many granules, and its request.
    fn wants(donation: Donation, missing: usize) -> (u64, u64) {
        let cancellable = if donation.cancellable { CANCELLABLE } else { 0 };
        let count = (missing as u64).min(donation.most);
        let form = u64::from(donation.contiguous) << 16 | u64::from(donation.undelegated) << 17;
        (INCOMPLETE | DONATE | cancellable, count << 2 | form)
    }

    fn create(&mut self, good: bool) {
        let (rec, mpidr) = (self.host.delegated(), self.created);
        let flags = if good { 1 } else { 2 };
        let params = self.host.page(&rec_params(flags, mpidr, 0x1000, &[]));
        let args = [self.realm.rd.0, rec.0, params.0];
        let [status, handle, request, ..] = self.host.call(fid::REC_CREATE, args);
        if self.operations.len() == CONTEXTS {
            assert_eq!(status, BLOCKED);
            return self.host.undelegate(rec);
        }
        let donation = self.donations[self.turns % 2];
        self.turns += 1;
        assert_eq!((status, request), Self::wants(donation, AUX));
        let waits = Waits::Creation { good, mpidr, donation, got: Vec::new() };
        assert!(self.operations.insert(handle, (rec, waits)).is_none(), "the handle is in use");
    }

    /// Granules to donate, side by side, in the state that `donation` wants.
    fn granules(&self, donation: Donation, count: usize) -> Vec<Pa> {
        let base = self.host.alloc(count.max(1) as u64);
        let granules: Vec<Pa> = (0..count as u64).map(|n| base.offset(4096 * n)).collect();
        if !donation.undelegated {
            granules.iter().for_each(|pa| self.host.delegate(*pa));
        }
        granules
    }

    fn donate(&mut self, handle: u64, count: usize, flaw: Flaw) {
        let Some((rec, Waits::Creation { good, mpidr, donation, got })) =
            self.operations.get(&handle).cloned()
        else {
            return self.expect_wrong(fid2::OP_MEM_DONATE, handle);
        };
        if got.len() == AUX {
            return self.expect_wrong(fid2::OP_MEM_DONATE, handle);
        }
        let requested = (AUX - got.len()).min(donation.most as usize);
        let count = match flaw {
            Flaw::TooMany => requested + 1,
            // Contiguous memory comes at once; what is not so is refused as well.
            _ if donation.contiguous && count > 8 => requested,
            _ => count.min(requested),
        };
        let mut granules = self.granules(donation, count);
        let rd = self.realm.rd;
        if let Flaw::InUse(number) = flaw
            && let Some(granule) = granules.get_mut(number)
            && !donation.contiguous
        {
            *granule = rd;
        }
        let mut state = if donation.undelegated { UNDELEGATED } else { 0 };
        state ^= if flaw == Flaw::State { UNDELEGATED } else { 0 };
        state |= u64::from(flaw == Flaw::Size);
        let mut list = Params::new();
        let entries = if donation.contiguous && !granules.is_empty() {
            list = list.set(0, granules[0].0 | (count as u64) << 2 | state);
            1
        } else {
            for (number, pa) in granules.iter().enumerate() {
                list = list.set(8 * number, page_descriptor(*pa) | state);
            }
            count as u64
        };
        let list = self.host.page(&list);
        let args = [handle, list.0, entries];
        let [status, taken, request, ..] = self.host.call(fid2::OP_MEM_DONATE, args);
        let bad = matches!(flaw, Flaw::State | Flaw::Size) && count > 0
            || count > requested
            || donation.contiguous && count > 0 && count < requested
            // An odd number left over is not aligned as the whole has to be.
            || donation.contiguous && count > 0 && !granules[0].is_aligned(size_of(requested));
        if bad {
            return assert_eq!(status, INPUT);
        }
        let good_ones = granules.iter().take_while(|pa| **pa != rd).count();
        let mut got = got;
        if count > 0 && good_ones == 0 {
            assert_eq!([status, taken], [INCOMPLETE | RECLAIM, got.len() as u64]);
            let undelegated = donation.undelegated;
            let waits = Waits::Reclaim { left: got, undelegated, outcome: INPUT };
            self.operations.insert(handle, (rec, waits));
            return;
        }
        assert_eq!(taken, good_ones as u64);
        got.extend(&granules[..good_ones]);
        if got.len() == AUX {
            assert_eq!(status, INCOMPLETE);
        } else {
            assert_eq!((status, request), Self::wants(donation, AUX - got.len()));
        }
        let waits = Waits::Creation { good, mpidr, donation, got };
        self.operations.insert(handle, (rec, waits));
    }

    /// A call for an operation that does not wait for it, or that is none: nothing happens.
    fn expect_wrong(&self, function: u64, handle: u64) {
        let list = self.host.alloc(1);
        assert_eq!(self.host.status(function, [handle, list.0, 1]), INPUT);
    }

    fn reclaim(&mut self, handle: u64, room: u64) {
        let Some((rec, Waits::Reclaim { mut left, undelegated, outcome })) =
            self.operations.get(&handle).cloned()
        else {
            return self.expect_wrong(fid2::OP_MEM_RECLAIM, handle);
        };
        let list = self.host.alloc(1);
        let [status, count, ..] = self.host.call(fid2::OP_MEM_RECLAIM, [handle, list.0, room]);
        assert!(count <= room);
        let mut pages = Vec::new();
        for entry in 0..count {
            let mut word = [0; 8];
            self.host.machine.read(list.offset(8 * entry), &mut word).unwrap();
            let word = u64::from_le_bytes(word);
            assert_eq!(word & UNDELEGATED != 0, undelegated);
            let base = Pa(word & 0xf_ffff_ffff_f000);
            pages.extend((0..word >> 2 & 0x3ff).map(|n| base.offset(4096 * n)));
        }
        let mut told: Vec<Pa> = left.drain(..pages.len()).collect();
        told.sort();
        pages.sort();
        assert_eq!(pages, told, "what came first goes first");
        let state = if undelegated { GranuleState::Undelegated } else { GranuleState::Delegated };
        for pa in pages {
            assert_eq!(self.host.machine.granule_state(pa), Some(state));
            assert_eq!(self.host.machine.contents(pa), Ok([0; 4096]));
        }
        assert!(left.is_empty() || count == room, "there is room for more");
        let done = left.is_empty() && room > 0;
        assert_eq!(status, if done { INCOMPLETE } else { INCOMPLETE | RECLAIM });
        let waits =
            if done { Waits::End(outcome) } else { Waits::Reclaim { left, undelegated, outcome } };
        self.operations.insert(handle, (rec, waits));
    }

    fn go_on(&mut self, handle: u64) {
        match self.operations.get(&handle).cloned() {
            Some((rec, Waits::End(outcome))) => {
                assert_eq!(self.host.status(fid2::OP_CONTINUE, [handle, 0]), outcome);
                self.operations.remove(&handle);
                self.host.undelegate(rec);
            }
            Some((rec, Waits::Creation { good, mpidr, donation, got })) if got.len() == AUX => {
                let status = self.host.status(fid2::OP_CONTINUE, [handle, 0]);
                let undelegated = donation.undelegated;
                if good && mpidr == self.created {
                    assert_eq!(status, OK);
                    self.operations.remove(&handle);
                    self.created += 1;
                    self.recs.push((rec, got, undelegated));
                } else {
                    assert_eq!(status, INCOMPLETE | RECLAIM);
                    let waits = Waits::Reclaim { left: got, undelegated, outcome: INPUT };
                    self.operations.insert(handle, (rec, waits));
                }
            }
            _ => self.expect_wrong(fid2::OP_CONTINUE, handle),
        }
    }

    fn cancel(&mut self, handle: u64) {
        match self.operations.get(&handle).cloned() {
            Some((rec, Waits::Creation { donation, got, .. }))
                if donation.cancellable && got.len() < AUX =>
            {
                let status = self.host.status(fid2::OP_CANCEL, [handle]);
                if got.is_empty() {
                    assert_eq!(status, OK);
                    self.operations.remove(&handle);
                    return self.host.undelegate(rec);
                }
                assert_eq!(status, INCOMPLETE | RECLAIM);
                let undelegated = donation.undelegated;
                let waits = Waits::Reclaim { left: got, undelegated, outcome: OK };
                self.operations.insert(handle, (rec, waits));
            }
            _ => self.expect_wrong(fid2::OP_CANCEL, handle),
        }
    }

    fn destroy(&mut self, number: usize) {
        let Some((rec, left, undelegated)) = self.recs.get(number).cloned() else { return };
        let [status, handle, ..] = self.host.call(fid::REC_DESTROY, [rec.0]);
        if self.operations.len() == CONTEXTS {
            return assert_eq!(status, BLOCKED);
        }
        assert_eq!(status, INCOMPLETE | RECLAIM);
        self.recs.remove(number);
        let waits = Waits::Reclaim { left, undelegated, outcome: OK };
        assert!(self.operations.insert(handle, (rec, waits)).is_none(), "the handle is in use");
    }

    /// No granule is in use but by the realm, its RECs and the operations.
    fn check(&self) {
        let census = self.host.machine.census();
        let held = |waits: &Waits| match waits {
            Waits::Creation { got: granules, .. } | Waits::Reclaim { left: granules, .. } => {
                granules.len()
            }
            Waits::End(_) => 0,
        };
        let aux: usize = self.operations.values().map(|(_, waits)| held(waits)).sum();
        let aux = aux + AUX * self.recs.len();
        let counts = [census.partial, census.rec, census.rec_aux, census.rd];
        let expected = [self.operations.len() as u64, self.recs.len() as u64, aux as u64, 1];
        assert_eq!(counts, expected);
    }

    /// Brings all operations to their ends and destroys all RECs.
    fn tear_down(mut self) {
        while let Some((handle, (_, waits))) =
            self.operations.iter().next().map(|(handle, operation)| (*handle, operation.clone()))
        {
            match waits {
                Waits::Creation { donation, got, .. } if got.len() < AUX => {
                    let count = if donation.contiguous { AUX } else { 3 };
                    self.donate(handle, count, Flaw::None);
                }
                Waits::Reclaim { .. } => self.reclaim(handle, 2),
                _ => self.go_on(handle),
            }
        }
        while !self.recs.is_empty() {
            self.destroy(0);
            let handle = *self.operations.keys().next().unwrap();
            self.reclaim(handle, 512);
            self.go_on(handle);
        }
        self.check();
        assert_eq!(self.host.status(fid2::REALM_TERMINATE, [self.realm.rd.0]), OK);
        assert_eq!(self.host.status(fid::REALM_DESTROY, [self.realm.rd.0]), OK);
    }
}

/// Bytes to which so many contiguous granules are aligned.
fn size_of(granules: usize) -> u64 {
    granules.next_power_of_two() as u64 * 4096
}

fn donation() -> impl Strategy<Value = Donation> {
    let flags = prop::array::uniform3(any::<bool>());
    (prop::sample::select(vec![1, 6, 16]), flags).prop_map(
        |(most, [contiguous, undelegated, cancellable])| Donation {
            most,
            contiguous,
            undelegated,
            cancellable,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn operations_agree_with_the_model(
        donations in prop::array::uniform2(donation()),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut run = Run::new(donations);
        for op in ops {
            run.apply(op);
        }
        run.check();
        run.tear_down();
    }
}
