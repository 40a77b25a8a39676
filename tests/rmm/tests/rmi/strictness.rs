//! A call that is refused leaves no trace, whatever its arguments: commands with good arguments of
//! which some are then changed, on RMI 1.0 and each kind of 2.0, with everything that the monitor
//! keeps compared before and after.

use std::collections::BTreeMap;

use rmm::abi::{fid, psci_fid, rsi_fid};
use rmm::v2::{Rmi2, fid as fid2};
use rmm::{GRANULE_SIZE, GranuleState, Pa};

use crate::harness::{
    Host, INCOMPLETE, NORMAL_RW, OK, Params, RAM, Random, Realm, SHARED, descriptors,
    page_descriptor, realm_params, rec_params, undelegated,
};

const MIB_2: u64 = 1 << 21;
const SINGLE: u64 = 1;
const LIST: u64 = 2;
/// Operands of RTT_UNPROT_MAP: normal memory, readable and writable.
const SHARED_RW: u64 = SINGLE | 6 << 16 | 3 << 19;
/// Calls on one machine.
const CALLS: usize = 400;
/// Machines of each kind.
const MACHINES: u64 = 6;

/// Function identifier and arguments.
type Call = (u64, [u64; 5]);
/// Address, state and contents.
type Granule = (Pa, Option<GranuleState>, Box<[u8; 4096]>);

/// Realms in their states of life, and granules and pages to name in calls.
struct World {
    host: Host,
    building: Realm,
    running: Realm,
    /// A realm without tables and RECs, which can be destroyed.
    ending: Realm,
    /// Two that live on, unless they are named by accident, and one to be destroyed.
    recs: [Pa; 3],
    /// Granules that are delegated, and some that are not, at first.
    delegated: Vec<Pa>,
    pages: Vec<Pa>,
    /// Pages of parameters: of a realm, of a REC, of a run, a list.
    realm_params: Pa,
    rec_params: Pa,
    run: Pa,
    list: Pa,
    /// A list of one undelegated page.
    borrowed: Pa,
    /// Page for lists of the monitor.
    output: Pa,
    /// State of undelegated memory in a descriptor.
    undelegated: u64,
}

impl World {
    fn new(rmi2: Option<Rmi2>) -> Self {
        let host = rmi2.map_or_else(Host::new, Host::v2);
        host.machine.set_guest(|cpu| {
            loop {
                cpu.smc(psci_fid::CPU_ON, [1, 0x1000, 0, 0])?;
                cpu.smc(rsi_fid::IPA_STATE_SET, [0, 6 * GRANULE_SIZE, RAM, 0])?;
                cpu.wfi()?;
            }
        });
        let running = host.realm();
        host.tables(running, 0, 3);
        let recs =
            [(0, true), (1, false), (2, true)].map(|(mpidr, on)| host.rec(running, mpidr, on).0);
        host.activate(running);
        let building = host.realm_with_vmid(2);
        host.tables(building, SHARED, 3);
        for page in 0..3 {
            host.map_ram(building, page * GRANULE_SIZE);
        }
        let delegated: Vec<Pa> = (0..24).map(|_| host.delegated()).collect();
        let pages: Vec<Pa> = (0..4).map(|_| host.alloc(1)).collect();
        let undelegated = rmi2.map_or(0, |rmi2| undelegated(rmi2.draft));
        let ending = host.realm_with_vmid(3);
        let vmid = if rmi2.is_some() { 0 } else { 4 };
        Self {
            realm_params: host.page(&realm_params(delegated[0], vmid)),
            rec_params: host.page(&rec_params(1, 0, 0x1000, &delegated[2..18])),
            run: host.alloc(1),
            borrowed: host.page(&Params::new().set(0, page_descriptor(pages[0]) | undelegated)),
            undelegated,
            output: host.alloc(1),
            list: host.page(&descriptors(&delegated[2..8])),
            host,
            building,
            running,
            ending,
            recs,
            delegated,
            pages,
        }
    }

    /// Calls as a host would make them.
    fn calls(&self, random: &mut Random) -> Vec<Call> {
        let rd = self.building.rd.0;
        let free = random.pick(&self.delegated).0;
        let page = random.pick(&self.pages).0;
        let ipa = random.below(6) * GRANULE_SIZE;
        let top = ipa + GRANULE_SIZE;
        let table = random.pick(&[0, MIB_2, SHARED]);
        let shared = (SHARED + ipa, SHARED + top);
        let handle = random.below(3);
        let list = self.list.0;
        let realm = self.ending.rd.0;
        let version = random.pick(&[0x1_0000, 0x2_0000]);
        vec![
            (fid::VERSION, [version, 0, 0, 0, 0]),
            (fid::GRANULE_DELEGATE, [page, 0, 0, 0, 0]),
            (fid::GRANULE_UNDELEGATE, [free, 0, 0, 0, 0]),
            (fid::DATA_CREATE, [rd, free, ipa, page, 1]),
            (fid::DATA_CREATE_UNKNOWN, [rd, free, ipa, 0, 0]),
            (fid::DATA_DESTROY, [rd, ipa, 0, 0, 0]),
            (fid::REALM_CREATE, [free, self.realm_params.0, 0, 0, 0]),
            (fid::REALM_ACTIVATE, [realm, 0, 0, 0, 0]),
            (fid::REALM_DESTROY, [realm, 0, 0, 0, 0]),
            (fid::REC_AUX_COUNT, [rd, 0, 0, 0, 0]),
            (fid::REC_CREATE, [rd, free, self.rec_params.0, 0, 0]),
            (fid::REC_DESTROY, [self.recs[2].0, 0, 0, 0, 0]),
            (fid::REC_ENTER, [self.recs[0].0, self.run.0, 0, 0, 0]),
            (fid::PSCI_COMPLETE, [self.recs[0].0, self.recs[1].0, 0, 0, 0]),
            (fid::PSCI_COMPLETE, [self.recs[0].0, 0, 0, 0, 0]),
            (fid::RTT_CREATE, [rd, free, table, 3, 0]),
            (fid::RTT_DESTROY, [rd, table, 3, 0, 0]),
            (fid::RTT_FOLD, [rd, table, 3, 0, 0]),
            (fid::RTT_READ_ENTRY, [rd, ipa, 3, 0, 0]),
            (fid::RTT_INIT_RIPAS, [rd, ipa, top, 0, 0]),
            (fid::RTT_SET_RIPAS, [self.running.rd.0, self.recs[0].0, 0, top, 0]),
            (fid::RTT_MAP_UNPROTECTED, [rd, shared.0, 3, page | NORMAL_RW, 0]),
            (fid::RTT_UNMAP_UNPROTECTED, [rd, shared.0, 3, 0, 0]),
            (fid2::GRANULE_RANGE_DELEGATE, [page, page + GRANULE_SIZE, 0, 0, 0]),
            (fid2::GRANULE_RANGE_DELEGATE, [self.pages[1].0, self.pages[3].0, 0, 0, 0]),
            (fid2::GRANULE_RANGE_UNDELEGATE, [self.pages[1].0, self.pages[3].0, 0, 0, 0]),
            (fid2::GRANULE_RANGE_UNDELEGATE, [free, free + GRANULE_SIZE, 0, 0, 0]),
            (fid2::RTT_DATA_MAP, [rd, ipa, top, SINGLE, page_descriptor(Pa(free))]),
            (fid2::RTT_DATA_MAP, [rd, ipa, top, LIST | 2 << 2, list]),
            (fid2::RTT_DATA_UNMAP, [rd, ipa, top, SINGLE, 0]),
            (fid2::RTT_DATA_UNMAP, [rd, ipa, top, LIST | 4 << 2, self.output.0]),
            (
                fid2::RTT_UNPROT_MAP,
                [rd, shared.0, shared.1, SHARED_RW, page | 1 << 2 | self.undelegated],
            ),
            (fid2::RTT_UNPROT_UNMAP, [rd, shared.0, shared.1, 0, 0]),
            (fid2::REALM_TERMINATE, [realm, 0, 0, 0, 0]),
            (fid2::RMM_ACTIVATE, [0; 5]),
            (fid2::RMM_STATE_GET, [0; 5]),
            (fid2::RMM_CONFIG_SET, [page, 0, 0, 0, 0]),
            (fid2::GPT_L1_CREATE, [0x8000_0000, 0, 0, 0, 0]),
            (fid2::GRANULE_TRACKING_GET, [0x8000_0000, 0x8000_1000, 0, 0, 0]),
            (fid2::OP_MEM_DONATE, [handle, list, 6, 0, 0]),
            (fid2::OP_MEM_DONATE, [handle, self.borrowed.0, 1, 0, 0]),
            (fid2::OP_MEM_RECLAIM, [handle, self.output.0, 512, 0, 0]),
            (fid2::OP_CONTINUE, [handle, 0, 0, 0, 0]),
            (fid2::OP_CANCEL, [handle, 0, 0, 0, 0]),
        ]
    }

    /// A value that is wrong in most places.
    fn odd(&self, random: &mut Random) -> u64 {
        let granule = random.pick(&self.granules()).0;
        let values = [
            granule,
            granule,
            granule + 8,
            page_descriptor(Pa(granule)),
            page_descriptor(Pa(granule)) | 1 << 63,
            page_descriptor(Pa(granule)) | 1 << 62,
            granule | 2 << 2 | 1,
            0x1000,
            MIB_2,
            MIB_2 + 8,
            SHARED - GRANULE_SIZE,
            SHARED,
            1 << 40,
            random.below(8),
            1 << random.below(64),
            u64::MAX,
            u64::MAX - 0xfff,
        ];
        random.pick(&values)
    }

    fn granules(&self) -> Vec<Pa> {
        self.host.used().collect()
    }

    /// State and contents of all granules that are, or were, in use.
    fn snapshot(&self) -> Vec<Granule> {
        let look = |pa| {
            let contents = Box::new(self.host.machine.contents(pa).unwrap());
            (pa, self.host.machine.granule_state(pa), contents)
        };
        self.granules().into_iter().map(look).collect()
    }

    /// Makes a call and checks that nothing has changed if it is refused; whether it was. `known`
    /// is how everything is before, and afterwards how it is then.
    fn call(&self, (fid, args): Call, known: &mut Vec<Granule>) -> bool {
        let status = self.host.status(fid, args);
        let before = std::mem::replace(known, self.snapshot());
        if status == OK || status & 0xff == INCOMPLETE && status != u64::MAX {
            return false;
        }
        for (before, after) in before.iter().zip(known) {
            // The outcome of an operation that fails comes with the granule of its object.
            let states = (before.1, after.1);
            let ended = states == (Some(GranuleState::Partial), Some(GranuleState::Delegated));
            if ended && fid == fid2::OP_CONTINUE {
                continue;
            }
            let same = before == after;
            assert!(same, "{fid:#x} {args:x?}: {status:#x}, but {:x?} {states:?}", before.0);
        }
        true
    }
}

/// Makes calls on a machine; how often each command was accepted, and refused.
fn try_machine(rmi2: Option<Rmi2>, seed: u64, seen: &mut BTreeMap<u64, [u32; 2]>) {
    let world = World::new(rmi2);
    let mut random = Random(seed);
    let mut known = world.snapshot();
    for _ in 0..CALLS {
        let calls = world.calls(&mut random);
        let (fid, mut args) = random.pick(&calls);
        // Half of the calls are as they should be; the state of what they name is not always.
        for _ in 0..random.below(4).saturating_sub(1) {
            let odd = world.odd(&mut random);
            args[random.below(5) as usize] = odd;
        }
        if random.below(8) == 0 {
            // A field of a page that is not as it should be, for one call.
            let page = random.pick(&[world.realm_params, world.rec_params, world.run, world.list]);
            let at = page.offset(8 * random.below(512));
            let mut good = [0; 8];
            if world.host.machine.read(at, &mut good).is_ok() {
                let odd = world.odd(&mut random);
                world.host.machine.write(at, &odd.to_le_bytes()).unwrap();
                known = world.snapshot();
                world.call((fid, args), &mut known);
                // It is lost if the page has been delegated by this call.
                let _ = world.host.machine.write(at, &good);
                known = world.snapshot();
            }
            continue;
        }
        let refused = world.call((fid, args), &mut known);
        seen.entry(fid).or_default()[usize::from(refused)] += 1;
    }
}

/// Commands of all versions.
const COMMON: [u64; 15] = [
    fid::VERSION,
    fid::DATA_CREATE,
    fid::REALM_CREATE,
    fid::REALM_ACTIVATE,
    fid::REALM_DESTROY,
    fid::REC_CREATE,
    fid::REC_DESTROY,
    fid::REC_ENTER,
    fid::PSCI_COMPLETE,
    fid::RTT_CREATE,
    fid::RTT_DESTROY,
    fid::RTT_FOLD,
    fid::RTT_READ_ENTRY,
    fid::RTT_INIT_RIPAS,
    fid::RTT_SET_RIPAS,
];
/// Commands of 1.0 that 2.0 has not.
const ONLY_V1: [u64; 5] = [
    fid::GRANULE_DELEGATE,
    fid::GRANULE_UNDELEGATE,
    fid::DATA_CREATE_UNKNOWN,
    fid::DATA_DESTROY,
    fid::REC_AUX_COUNT,
];
/// Commands of 1.0 and of v0.9.
const UNPROTECTED: [u64; 2] = [fid::RTT_MAP_UNPROTECTED, fid::RTT_UNMAP_UNPROTECTED];
/// Commands of 2.0.
const V2: [u64; 8] = [
    fid2::GRANULE_TRACKING_GET,
    fid2::GRANULE_RANGE_DELEGATE,
    fid2::GRANULE_RANGE_UNDELEGATE,
    fid2::RTT_DATA_MAP,
    fid2::RTT_DATA_UNMAP,
    fid2::OP_CONTINUE,
    fid2::OP_MEM_DONATE,
    fid2::OP_MEM_RECLAIM,
];
/// Commands of late drafts that others have not, and commands that only donations which can be
/// cancelled allow.
const LATE: [u64; 2] = [fid2::RMM_STATE_GET, fid2::OP_CANCEL];
/// Commands of 2.0 that v0.9 has not.
const HEAD: [u64; 3] = [fid2::RTT_UNPROT_MAP, fid2::RTT_UNPROT_UNMAP, fid2::REALM_TERMINATE];

#[test]
fn refused_calls_leave_no_trace() {
    let kinds: [(Option<Rmi2>, &[&[u64]]); 4] = [
        (None, &[&COMMON, &ONLY_V1, &UNPROTECTED]),
        (Some(Rmi2::V0_9), &[&COMMON, &UNPROTECTED, &V2]),
        (Some(Rmi2::HEAD), &[&COMMON, &V2, &HEAD]),
        (Some(Rmi2::EVERYTHING), &[&COMMON, &V2, &HEAD, &LATE]),
    ];
    for (rmi2, commands) in kinds {
        let mut seen = BTreeMap::new();
        for seed in 1..=MACHINES {
            try_machine(rmi2, seed, &mut seen);
        }
        // Each command of the version has come to its end and has been refused, and no other one
        // has done anything.
        for (fid, [accepted, refused]) in seen {
            let exists = commands.iter().any(|commands| commands.contains(&fid));
            let fallible = fid != fid2::RMM_STATE_GET || !exists;
            assert!(refused > 0 || !fallible, "{rmi2:?}: {fid:#x} was never refused");
            assert_eq!(accepted > 0, exists, "{rmi2:?}: {fid:#x} was accepted {accepted} times");
        }
    }
}
