//! Realm descriptors: creation, activation, destruction.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{Refusal, Reply, Ripas};
use crate::addr::{GRANULE_BYTES, GRANULE_SIZE, Ipa, Pa};
use crate::granule::{GranuleState, Locked};
use crate::measurement::{HashAlgorithm, MeasuredParams, Measurement, measure_realm};
use crate::monitor::{Monitor, Page};
use crate::platform::Platform;
use crate::rtt::entry::Entry;
use crate::rtt::geometry::{ENTRIES, MAX_IPA_BITS, MIN_IPA_BITS, Stage2, entry_size, start_tables};
use crate::v2::Draft;

/// Most start tables of a realm.
const MAX_START_TABLES: usize = 16;
/// Slot of the initial measurement; the others are extensible.
pub(crate) const RIM: usize = 0;
/// Number of measurements of a realm.
pub(crate) const MEASUREMENTS: usize = 5;
/// Log2 of the entries of the table of RECs.
pub(crate) const REC_TABLE_BITS: u32 = 8;
/// Offset of the table of RECs in the realm descriptor granule: the address of each REC with one of
/// the first numbers, zero when it is gone.
const REC_TABLE: u64 = 2048;
/// Length of the realm personalization value in bytes.
pub(crate) const RPV_BYTES: usize = 64;

/// Life of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum RealmState {
    /// Being built; no REC runs.
    New = 0,
    /// RECs may run.
    Active = 1,
    /// The realm switched itself off; no REC runs again.
    SystemOff = 2,
    /// Terminated by the host (2.0): it can only be taken apart.
    Zombie = 3,
}

/// Contents of a realm descriptor granule.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Rd {
    state: u64,
    rtt_base: u64,
    start_level: u64,
    num_start: u64,
    ipa_bits: u64,
    vmid: u64,
    /// RECs created so far, which is the index of the next one.
    pub(crate) rec_count: u64,
    /// RECs that run at this moment.
    pub(crate) running: u64,
    algorithm: u64,
    pub(crate) rpv: [u8; RPV_BYTES],
    pub(crate) measurements: [Measurement; MEASUREMENTS],
}

impl Rd {
    pub(crate) fn state(&self) -> RealmState {
        match self.state {
            0 => RealmState::New,
            1 => RealmState::Active,
            2 => RealmState::SystemOff,
            _ => RealmState::Zombie,
        }
    }

    pub(crate) fn set_state(&mut self, state: RealmState) {
        self.state = state as u64;
    }

    pub(crate) fn stage2(&self) -> Stage2 {
        Stage2 {
            root: Pa(self.rtt_base),
            start_level: self.start_level.cast_signed(),
            num_start: self.num_start,
            ipa_bits: self.ipa_bits,
            vmid: self.vmid,
        }
    }

    pub(crate) fn algorithm(&self) -> HashAlgorithm {
        match self.algorithm {
            1 => HashAlgorithm::Sha512,
            2 => HashAlgorithm::Sha384,
            _ => HashAlgorithm::Sha256,
        }
    }

    /// Folds one step into the initial measurement.
    pub(crate) fn extend_rim(
        &mut self,
        step: impl FnOnce(HashAlgorithm, &Measurement) -> Measurement,
    ) {
        self.measurements[RIM] = step(self.algorithm(), &self.measurements[RIM]);
    }
}

/// RmiRealmParams after all checks that need no lock.
struct RealmParams {
    measured: MeasuredParams,
    rpv: [u8; RPV_BYTES],
    stage2: Stage2,
}

const _: () = assert!(size_of::<Rd>() as u64 <= REC_TABLE);

/// Fields of RmiRealmParams as (offset, length); everything else must be zero.
const REALM_PARAMS_FIELDS: [(usize, usize); 12] = [
    (0x000, 8),
    (0x008, 4),
    (0x010, 4),
    (0x018, 4),
    (0x020, 4),
    (0x028, 4),
    (0x030, 1),
    (0x400, RPV_BYTES),
    (0x800, 2),
    (0x808, 8),
    (0x810, 8),
    (0x818, 4),
];

/// The same for RMI 2.0, which has no VMID; what it adds for planes must be zero.
const REALM_PARAMS_FIELDS_V2: [(usize, usize); 11] = [
    (0x000, 8),
    (0x008, 4),
    (0x010, 4),
    (0x018, 4),
    (0x020, 4),
    (0x028, 4),
    (0x030, 1),
    (0x400, RPV_BYTES),
    (0x808, 8),
    (0x810, 8),
    (0x818, 4),
];

impl<P: Platform> Monitor<P> {
    pub(crate) fn load_rd(&self, granule: &Locked<'_>) -> Rd {
        let mut rd = Rd::new_zeroed_record();
        self.platform.read_realm(granule.pa(), rd.as_mut_bytes());
        rd
    }

    pub(crate) fn store_rd(&self, granule: &Locked<'_>, rd: &Rd) {
        self.platform.write_realm(granule.pa(), rd.as_bytes());
    }

    /// Most IPA bits of a realm on this machine.
    pub(crate) fn max_ipa_bits(&self) -> u64 {
        u64::from(self.features.pa_bits).min(MAX_IPA_BITS)
    }

    /// REALM_CREATE.
    pub(crate) fn realm_create(&self, rd_pa: Pa, params_pa: Pa) -> Result<Reply, Refusal> {
        let mut page = Page::zeroed();
        self.read_host(params_pa, &mut page.0)?;
        let mut params = self.check_realm_params(&page)?;
        if self.rmi2().is_some() {
            params.stage2.vmid = self.vmids.allocate().ok_or(Refusal::GLOBAL)?;
        } else if !self.vmids.reserve(params.stage2.vmid) {
            return Err(Refusal::INPUT);
        }
        let vmid = params.stage2.vmid;
        self.build_realm(rd_pa, &params).inspect_err(|_| self.vmids.free(vmid))
    }

    fn check_realm_params(&self, page: &Page) -> Result<RealmParams, Refusal> {
        let reserved_is_zero = match self.rmi2() {
            None => page.is_zero_outside(&REALM_PARAMS_FIELDS),
            Some(_) => page.is_zero_outside(&REALM_PARAMS_FIELDS_V2),
        };
        if !reserved_is_zero {
            return Err(Refusal::INPUT);
        }
        let flags = page.field::<8>(0);
        let ipa_bits = page.field::<4>(0x8);
        let num_bps = page.field::<4>(0x18);
        let num_wps = page.field::<4>(0x20);
        let algorithm = match HashAlgorithm::from_field(page.0[0x30]) {
            Some(HashAlgorithm::Sha384) if self.rmi2().is_none() => return Err(Refusal::INPUT),
            Some(algorithm) => algorithm,
            None => return Err(Refusal::INPUT),
        };
        // LPA2, SVE, PMU and (2.0) devices and private encryption are the flags that exist, and the
        // feature registers offer none.
        if flags != 0
            || !(MIN_IPA_BITS..=self.max_ipa_bits()).contains(&ipa_bits)
            || !(1..=u64::from(self.features.num_bps)).contains(&num_bps)
            || !(1..=u64::from(self.features.num_wps)).contains(&num_wps)
        {
            return Err(Refusal::INPUT);
        }
        let start_level = page.field::<8>(0x810).cast_signed();
        let num_start = page.field::<4>(0x818);
        let root = Pa(page.field::<8>(0x808));
        let expected = start_tables(ipa_bits, start_level, self.features.pa_bits);
        if expected != Some(num_start) || !root.is_aligned(num_start * GRANULE_SIZE) {
            return Err(Refusal::INPUT);
        }
        let mut rpv = [0; RPV_BYTES];
        rpv.copy_from_slice(&page.0[0x400..0x440]);
        Ok(RealmParams {
            measured: MeasuredParams {
                flags,
                s2sz: ipa_bits,
                sve_vl: page.field::<4>(0x10),
                num_bps,
                num_wps,
                pmu_num_ctrs: page.field::<4>(0x28),
                algorithm,
            },
            rpv,
            stage2: Stage2 { root, start_level, num_start, ipa_bits, vmid: page.field::<2>(0x800) },
        })
    }

    fn build_realm(&self, rd_pa: Pa, params: &RealmParams) -> Result<Reply, Refusal> {
        let (rd_granule, tables) = self.lock_realm_granules(rd_pa, &params.stage2)?;
        for (table, number) in tables.iter().flatten().zip(0..) {
            self.init_start_table(&params.stage2, table.pa(), number);
            table.set_state(GranuleState::Rtt);
        }
        let stage2 = &params.stage2;
        let mut rd = Rd {
            state: RealmState::New as u64,
            rtt_base: stage2.root.0,
            start_level: stage2.start_level.cast_unsigned(),
            num_start: stage2.num_start,
            ipa_bits: stage2.ipa_bits,
            vmid: stage2.vmid,
            algorithm: params.measured.algorithm as u64,
            rpv: params.rpv,
            ..Rd::new_zeroed_record()
        };
        rd.measurements[RIM] = measure_realm(&params.measured);
        self.store_rd(&rd_granule, &rd);
        rd_granule.set_state(GranuleState::Rd);
        Ok(Reply::SUCCESS)
    }

    /// Locks the granules of a realm to be, all delegated and different, in ascending order.
    fn lock_realm_granules(
        &self,
        rd_pa: Pa,
        stage2: &Stage2,
    ) -> Result<(Locked<'_>, [Option<Locked<'_>>; MAX_START_TABLES]), Refusal> {
        let end = stage2.root.offset(stage2.num_start * GRANULE_SIZE);
        if (stage2.root..end).contains(&rd_pa) {
            return Err(Refusal::INPUT);
        }
        let mut rd = None;
        if rd_pa < stage2.root {
            rd = Some(self.lock(rd_pa, GranuleState::Delegated)?);
        }
        let mut tables = [const { None }; MAX_START_TABLES];
        for (table, number) in tables.iter_mut().zip(0..stage2.num_start) {
            let pa = stage2.root.offset(number * GRANULE_SIZE);
            *table = Some(self.lock(pa, GranuleState::Delegated)?);
        }
        match rd {
            Some(rd) => Ok((rd, tables)),
            None => Ok((self.lock(rd_pa, GranuleState::Delegated)?, tables)),
        }
    }

    /// Fills start table `number`: protected addresses are empty, unprotected ones unassigned,
    /// and what lies beyond the IPA space stays zero.
    fn init_start_table(&self, stage2: &Stage2, table: Pa, number: u64) {
        let mut image = [0; GRANULE_BYTES];
        let size = entry_size(stage2.start_level);
        for (chunk, index) in image.chunks_exact_mut(8).zip(number * ENTRIES..) {
            let ipa = Ipa(index * size);
            let entry = if stage2.is_protected(ipa) {
                Entry::Unassigned(Ripas::Empty)
            } else if ipa.0 < stage2.ipa_size() {
                Entry::UnassignedNs
            } else {
                break;
            };
            chunk.copy_from_slice(&entry.encode(stage2.start_level).to_le_bytes());
        }
        self.platform.write_realm(table, &image);
    }

    /// REALM_ACTIVATE.
    pub(crate) fn realm_activate(&self, rd_pa: Pa) -> Result<Reply, Refusal> {
        let granule = self.lock(rd_pa, GranuleState::Rd)?;
        let mut rd = self.load_rd(&granule);
        if rd.state() != RealmState::New {
            return Err(Refusal::REALM);
        }
        rd.set_state(RealmState::Active);
        self.store_rd(&granule, &rd);
        Ok(Reply::SUCCESS)
    }

    /// REALM_TERMINATE: from any state, as long as no REC runs.
    pub(crate) fn realm_terminate(&self, rd_pa: Pa) -> Result<Reply, Refusal> {
        let (granule, mut rd) = self.lock_rd(rd_pa)?;
        if rd.running != 0 {
            return Err(Refusal::REALM);
        }
        rd.set_state(RealmState::Zombie);
        self.store_rd(&granule, &rd);
        Ok(Reply::SUCCESS)
    }

    /// Notes where REC number `index` of the realm is; zero if it is gone.
    pub(crate) fn note_rec(&self, rd: &Locked<'_>, index: u64, rec: Pa) {
        if index < 1 << REC_TABLE_BITS {
            let at = rd.pa().offset(REC_TABLE + 8 * index);
            self.platform.write_realm(at, &rec.0.to_le_bytes());
        }
    }

    /// Where REC number `index` of a realm is, if it is noted.
    pub(crate) fn rec_at(&self, rd: Pa, index: u64) -> Option<Pa> {
        let granule = self.lock(rd, GranuleState::Rd).ok()?;
        if index >= 1 << REC_TABLE_BITS {
            return None;
        }
        let mut bytes = [0; 8];
        self.platform.read_realm(granule.pa().offset(REC_TABLE + 8 * index), &mut bytes);
        Some(Pa(u64::from_le_bytes(bytes))).filter(|pa| pa.0 != 0)
    }

    /// REALM_DESTROY: no REC and nothing in the start tables may be left.
    pub(crate) fn realm_destroy(&self, rd_pa: Pa) -> Result<Reply, Refusal> {
        let granule = self.lock(rd_pa, GranuleState::Rd)?;
        let rd = self.load_rd(&granule);
        let alive = self.rmi2().is_some_and(|rmi2| rmi2.draft != Draft::V0_9)
            && rd.state() != RealmState::Zombie;
        if granule.refcount() != 0 || alive {
            return Err(Refusal::REALM);
        }
        let stage2 = rd.stage2();
        let tables = (0..stage2.num_start).map(|n| stage2.root.offset(n * GRANULE_SIZE));
        for pa in tables.clone() {
            if self.lock_own(pa, GranuleState::Rtt).refcount() != 0 {
                return Err(Refusal::REALM);
            }
        }
        // Unprotected block mappings in the start tables hold no reference and may still be
        // cached under the VMID that becomes free.
        self.platform.tlb_invalidate_all(stage2.regime(&self.features));
        for pa in tables {
            self.release(&self.lock_own(pa, GranuleState::Rtt));
        }
        self.vmids.free(stage2.vmid);
        self.release(&granule);
        Ok(Reply::SUCCESS)
    }
}

impl Rd {
    fn new_zeroed_record() -> Self {
        Self {
            state: 0,
            rtt_base: 0,
            start_level: 0,
            num_start: 0,
            ipa_bits: 0,
            vmid: 0,
            rec_count: 0,
            running: 0,
            algorithm: 0,
            rpv: [0; RPV_BYTES],
            measurements: [[0; 64]; MEASUREMENTS],
        }
    }
}
