//! A host of a few lines: allocates granules, fills parameter pages, makes calls.

use std::cell::Cell;

use rmm::abi::{Status, fid};
use rmm::host::{Config, Cpu, Machine, Stop};
use rmm::v2::{Abi, Draft, Rmi2, fid as fid2};
use rmm::{GRANULE_SIZE, Pa};

/// x0 of a command that succeeded.
pub(crate) const OK: u64 = 0;
pub(crate) const INPUT: u64 = Status::Input as u64;
pub(crate) const REALM: u64 = Status::Realm as u64;
pub(crate) const REC: u64 = Status::Rec as u64;

/// x0 of ERROR_RTT at `level`.
pub(crate) const fn rtt(level: u64) -> u64 {
    Status::Rtt as u64 | level << 8
}

/// First unprotected address of the default realm.
pub(crate) const SHARED: u64 = 1 << 39;
/// Normal write-back, read/write: attributes of an unprotected mapping.
pub(crate) const NORMAL_RW: u64 = 0b110 << 2 | 0b11 << 6;
/// RIPAS values.
pub(crate) const EMPTY: u64 = 0;
pub(crate) const RAM: u64 = 1;
pub(crate) const DESTROYED: u64 = 2;
/// RTT entry states.
pub(crate) const UNASSIGNED: u64 = 0;
pub(crate) const ASSIGNED: u64 = 1;
pub(crate) const TABLE: u64 = 2;

/// x0 of an operation that waits for OP_CONTINUE, and what is added to it for a memory request.
pub(crate) const INCOMPLETE: u64 = Status::Incomplete as u64;
pub(crate) const DONATE: u64 = 1 << 8;
pub(crate) const RECLAIM: u64 = 2 << 8;

/// A list of descriptors of one delegated page each.
pub(crate) fn descriptors(pages: &[Pa]) -> Params {
    let mut list = Params::new();
    for (number, pa) in pages.iter().enumerate() {
        list = list.set(8 * number, page_descriptor(*pa));
    }
    list
}

/// The state of undelegated memory in descriptors of a draft: bit 63, in late drafts 1 in bits 63:62.
pub(crate) fn undelegated(draft: Draft) -> u64 {
    if draft == Draft::Late { 1 << 62 } else { 1 << 63 }
}

/// The descriptor of one delegated page.
pub(crate) fn page_descriptor(pa: Pa) -> u64 {
    pa.0 | 1 << 2
}

/// A small generator (xorshift), so that a run can be repeated; its state is not 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A machine and a granule allocator.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    next: Cell<u64>,
    stateful: bool,
    /// State of undelegated memory in a descriptor.
    undelegated: u64,
}

/// A page to fill field by field.
pub(crate) struct Params(pub(crate) Vec<u8>);

impl Params {
    pub(crate) fn new() -> Self {
        Self(vec![0; GRANULE_SIZE as usize])
    }

    pub(crate) fn set(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self
    }
}

/// The default realm's parameters: 40-bit IPA space, one start table at level 0, SHA-256.
pub(crate) fn realm_params(root: Pa, vmid: u64) -> Params {
    Params::new()
        .set(0x8, 40)
        .set(0x18, 1)
        .set(0x20, 1)
        .set(0x800, vmid)
        .set(0x808, root.0)
        .set(0x810, 0)
        .set(0x818, 1)
}

/// Parameters of a REC.
pub(crate) fn rec_params(flags: u64, mpidr: u64, pc: u64, aux: &[Pa]) -> Params {
    let mut params =
        Params::new().set(0, flags).set(0x100, mpidr).set(0x200, pc).set(0x800, aux.len() as u64);
    for (number, pa) in aux.iter().enumerate() {
        params = params.set(0x808 + 8 * number, pa.0);
    }
    params
}

/// A realm with its start table.
#[derive(Clone, Copy)]
pub(crate) struct Realm {
    pub(crate) rd: Pa,
    pub(crate) root: Pa,
}

/// The exit half of the run page.
#[derive(Clone, Debug)]
pub(crate) struct Exit(Vec<u8>);

impl Exit {
    pub(crate) fn field(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.0[offset..offset + 8].try_into().unwrap())
    }

    pub(crate) fn reason(&self) -> u64 {
        self.field(0)
    }

    pub(crate) fn esr(&self) -> u64 {
        self.field(0x100)
    }

    pub(crate) fn far(&self) -> u64 {
        self.field(0x108)
    }

    pub(crate) fn fault_ipa(&self) -> u64 {
        self.field(0x110) << 8
    }

    pub(crate) fn gpr(&self, number: usize) -> u64 {
        self.field(0x200 + 8 * number)
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        let machine = Machine::new(Config::default());
        Self { machine, next: Cell::new(0), stateful: false, undelegated: 0 }
    }

    /// A machine whose monitor speaks 2.0 and is active.
    pub(crate) fn v2(rmi2: Rmi2) -> Self {
        let host = Self::inactive(rmi2);
        assert_eq!(host.status(fid2::RMM_ACTIVATE, []), OK);
        host
    }

    /// A machine whose monitor speaks 2.0 and is not active yet.
    pub(crate) fn inactive(rmi2: Rmi2) -> Self {
        let machine = Machine::new(Config { abi: Abi::V2_0(rmi2), ..Config::default() });
        let undelegated = undelegated(rmi2.draft);
        Self { machine, next: Cell::new(0), stateful: true, undelegated }
    }

    /// A machine whose realms run `guest`.
    pub(crate) fn with_guest(
        guest: impl Fn(&mut Cpu) -> Result<(), Stop> + Send + Sync + 'static,
    ) -> Self {
        let host = Self::new();
        host.machine.set_guest(guest);
        host
    }

    /// `count` granules side by side, aligned to their number, that nobody uses.
    pub(crate) fn alloc(&self, count: u64) -> Pa {
        let index = self.next.get().next_multiple_of(count.next_power_of_two());
        self.next.set(index + count);
        self.machine.ram().base.offset(index * GRANULE_SIZE)
    }

    pub(crate) fn call<const N: usize>(&self, fid: u64, args: [u64; N]) -> [u64; 8] {
        let mut all = [0x5a5a; 7];
        all[..N].copy_from_slice(&args);
        let result = self.machine.call(fid, all);
        assert_eq!(result[5..], all[4..], "x5 to x7 are preserved");
        result
    }

    /// x0 of the call.
    pub(crate) fn status<const N: usize>(&self, fid: u64, args: [u64; N]) -> u64 {
        self.call(fid, args)[0]
    }

    pub(crate) fn delegate(&self, pa: Pa) {
        let status = if self.stateful {
            self.status(fid2::GRANULE_RANGE_DELEGATE, [pa.0, pa.0 + GRANULE_SIZE])
        } else {
            self.status(fid::GRANULE_DELEGATE, [pa.0])
        };
        assert_eq!(status, OK);
    }

    pub(crate) fn undelegate(&self, pa: Pa) {
        let status = if self.stateful {
            self.status(fid2::GRANULE_RANGE_UNDELEGATE, [pa.0, pa.0 + GRANULE_SIZE])
        } else {
            self.status(fid::GRANULE_UNDELEGATE, [pa.0])
        };
        assert_eq!(status, OK);
    }

    /// A new delegated granule.
    pub(crate) fn delegated(&self) -> Pa {
        let pa = self.alloc(1);
        self.delegate(pa);
        pa
    }

    /// A new Non-secure page with these contents.
    pub(crate) fn page(&self, params: &Params) -> Pa {
        let pa = self.alloc(1);
        self.machine.write(pa, &params.0).unwrap();
        pa
    }

    /// All granules that were allocated.
    pub(crate) fn used(&self) -> impl Iterator<Item = Pa> + '_ {
        (0..self.next.get()).map(|index| self.machine.ram().base.offset(index * GRANULE_SIZE))
    }

    pub(crate) fn realm(&self) -> Realm {
        self.realm_with_vmid(1)
    }

    /// A realm with this VMID, which is the monitor's in 2.0.
    pub(crate) fn realm_with_vmid(&self, vmid: u64) -> Realm {
        let realm = Realm { rd: self.delegated(), root: self.delegated() };
        let vmid = if self.stateful { 0 } else { vmid };
        let params = self.page(&realm_params(realm.root, vmid));
        assert_eq!(self.status(fid::REALM_CREATE, [realm.rd.0, params.0]), OK);
        realm
    }

    /// Creates the missing tables for `ipa` down to `level`.
    pub(crate) fn tables(&self, realm: Realm, ipa: u64, level: u64) -> Vec<Pa> {
        let mut tables = Vec::new();
        for level in 1..=level {
            let base = ipa & !((4096 << (9 * (4 - level))) - 1);
            let read = self.call(fid::RTT_READ_ENTRY, [realm.rd.0, base, level - 1]);
            if read[2] != TABLE {
                let table = self.delegated();
                let args = [realm.rd.0, table.0, base, level];
                assert_eq!(self.status(fid::RTT_CREATE, args), OK);
                tables.push(table);
            }
        }
        tables
    }

    /// A page of unknown contents at `ipa`, with tables as needed.
    pub(crate) fn map(&self, realm: Realm, ipa: u64) -> Pa {
        self.tables(realm, ipa, 3);
        let data = self.delegated();
        assert_eq!(self.status(fid::DATA_CREATE_UNKNOWN, [realm.rd.0, data.0, ipa]), OK);
        data
    }

    /// A page of RAM at `ipa` of a realm that is being built.
    pub(crate) fn map_ram(&self, realm: Realm, ipa: u64) -> Pa {
        self.tables(realm, ipa, 3);
        let data = self.delegated();
        let source = self.alloc(1);
        let args = [realm.rd.0, data.0, ipa, source.0, 0];
        assert_eq!(self.status(fid::DATA_CREATE, args), OK);
        data
    }

    /// A page of the host at the unprotected address `ipa`.
    pub(crate) fn share(&self, realm: Realm, ipa: u64) -> Pa {
        self.tables(realm, ipa, 3);
        let page = self.alloc(1);
        let args = [realm.rd.0, ipa, 3, page.0 | NORMAL_RW];
        assert_eq!(self.status(fid::RTT_MAP_UNPROTECTED, args), OK);
        page
    }

    /// State, descriptor and RIPAS of an entry, after its level.
    pub(crate) fn entry(&self, realm: Realm, ipa: u64, level: u64) -> [u64; 4] {
        let [status, level, state, descriptor, ripas, ..] =
            self.call(fid::RTT_READ_ENTRY, [realm.rd.0, ipa, level]);
        assert_eq!(status, OK);
        [level, state, descriptor, ripas]
    }

    /// REC number `mpidr` with its auxiliary granules.
    pub(crate) fn rec(&self, realm: Realm, mpidr: u64, runnable: bool) -> (Pa, Vec<Pa>) {
        let base = self.alloc(16);
        let aux: Vec<Pa> = (0..16).map(|number| base.offset(number * GRANULE_SIZE)).collect();
        let rec = self.delegated();
        if self.stateful {
            let params = self.page(&rec_params(runnable.into(), mpidr, 0x1000, &[]));
            let begun = self.call(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]);
            self.donate(begun, &aux);
            assert_eq!(self.status(fid2::OP_CONTINUE, [begun[1], 0]), OK);
            return (rec, aux);
        }
        aux.iter().for_each(|pa| self.delegate(*pa));
        let params = self.page(&rec_params(runnable.into(), mpidr, 0x1000, &aux));
        assert_eq!(self.status(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]), OK);
        (rec, aux)
    }

    /// Gives an operation that has begun what it asks for, from undelegated granules side by side,
    /// which must be exactly enough.
    fn donate(&self, begun: [u64; 8], granules: &[Pa]) {
        const CANCELLABLE: u64 = 1 << 10;
        const UNDELEGATED: u64 = 1 << 17;
        let [mut status, handle, mut request, ..] = begun;
        let mut left = granules;
        while status & !CANCELLABLE == INCOMPLETE | DONATE {
            let count = request >> 2 & 0x3fff;
            let (given, rest) = left.split_at(count as usize);
            let mut descriptor = given[0].0 | count << 2;
            if request & UNDELEGATED != 0 {
                descriptor |= self.undelegated;
            } else {
                given.iter().for_each(|pa| self.delegate(*pa));
            }
            let list = self.page(&Params::new().set(0, descriptor));
            let taken;
            [status, taken, request, ..] = self.call(fid2::OP_MEM_DONATE, [handle, list.0, 1]);
            assert_eq!(taken, count);
            left = rest;
        }
        assert_eq!((status, left.len()), (INCOMPLETE, 0));
    }

    /// An active realm with one REC.
    pub(crate) fn active(&self) -> (Realm, Pa) {
        let realm = self.realm();
        let (rec, _) = self.rec(realm, 0, true);
        self.activate(realm);
        (realm, rec)
    }

    pub(crate) fn activate(&self, realm: Realm) {
        assert_eq!(self.status(fid::REALM_ACTIVATE, [realm.rd.0]), OK);
    }

    /// REC_ENTER with this enter half; x0, and the exit half.
    pub(crate) fn try_enter(&self, rec: Pa, enter: Params) -> (u64, Exit) {
        let run = self.page(&enter);
        let status = self.status(fid::REC_ENTER, [rec.0, run.0]);
        let mut exit = vec![0; 2048];
        self.machine.read(run.offset(2048), &mut exit).unwrap();
        (status, Exit(exit))
    }

    /// REC_ENTER with these flags, which must succeed.
    pub(crate) fn enter(&self, rec: Pa, flags: u64) -> Exit {
        self.enter_with(rec, Params::new().set(0, flags))
    }

    pub(crate) fn enter_with(&self, rec: Pa, enter: Params) -> Exit {
        let (status, exit) = self.try_enter(rec, enter);
        assert_eq!(status, OK);
        exit
    }
}
