//! Protected data: DATA_CREATE, DATA_CREATE_UNKNOWN, DATA_DESTROY.

use crate::abi::{Refusal, Reply, Ripas};
use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::granule::{GranuleState, Locked};
use crate::measurement::measure_data;
use crate::monitor::{Monitor, Page};
use crate::platform::Platform;
use crate::realm::RealmState;
use crate::rtt::entry::Entry;
use crate::rtt::geometry::{PAGE_LEVEL, Stage2};
use crate::rtt::walk::Walk;

/// DATA_CREATE flag: measure the contents.
const MEASURE_CONTENT: u64 = 1;

/// Checks that `ipa` is a protected page.
fn check_protected_page(stage2: &Stage2, ipa: Ipa) -> Result<(), Refusal> {
    if stage2.is_protected(ipa) && stage2.is_entry_address(ipa, PAGE_LEVEL) {
        Ok(())
    } else {
        Err(Refusal::INPUT)
    }
}

impl<P: Platform> Monitor<P> {
    /// DATA_CREATE: a page with contents from the host, while the realm is being built.
    pub(crate) fn data_create(
        &self,
        rd: Pa,
        data: Pa,
        ipa: Ipa,
        source: Pa,
        flags: u64,
    ) -> Result<Reply, Refusal> {
        if flags & !MEASURE_CONTENT != 0 {
            return Err(Refusal::INPUT);
        }
        self.check_host(source)?;
        let (data, rd_granule) =
            self.lock_pair((data, GranuleState::Delegated), (rd, GranuleState::Rd))?;
        let mut rd = self.load_rd(&rd_granule);
        if rd.state() != RealmState::New {
            return Err(Refusal::REALM);
        }
        check_protected_page(&rd.stage2(), ipa)?;
        let (walk, _) = self.unassigned_page(&rd.stage2(), ipa)?;
        // Copied before it is measured and mapped: the host can change its page at any time.
        let mut content = Page::zeroed();
        self.platform.read_ns(source, &mut content.0).map_err(|_| Refusal::INPUT)?;
        self.platform.write_realm(data.pa(), &content.0);
        let measured = (flags & MEASURE_CONTENT != 0).then_some(&content.0);
        rd.extend_rim(|algorithm, rim| measure_data(algorithm, rim, ipa, flags, measured));
        self.store_rd(&rd_granule, &rd);
        self.assign_page(&walk, &data, Ripas::Ram);
        Ok(Reply::SUCCESS)
    }

    /// DATA_CREATE_UNKNOWN: a page of zeroes, in any state of the realm. The RIPAS stays.
    pub(crate) fn data_create_unknown(&self, rd: Pa, data: Pa, ipa: Ipa) -> Result<Reply, Refusal> {
        let (data, rd_granule) =
            self.lock_pair((data, GranuleState::Delegated), (rd, GranuleState::Rd))?;
        let stage2 = self.load_rd(&rd_granule).stage2();
        check_protected_page(&stage2, ipa)?;
        let (walk, ripas) = self.unassigned_page(&stage2, ipa)?;
        self.assign_page(&walk, &data, ripas);
        Ok(Reply::SUCCESS)
    }

    /// Walks to the page entry of `ipa`, which must be unassigned.
    fn unassigned_page(&self, stage2: &Stage2, ipa: Ipa) -> Result<(Walk, Ripas), Refusal> {
        let walk = self.walk(stage2, ipa, PAGE_LEVEL);
        match walk.entry {
            Entry::Unassigned(ripas) if walk.level == PAGE_LEVEL => Ok((walk, ripas)),
            _ => Err(Refusal::rtt(walk.level)),
        }
    }

    fn assign_page(&self, walk: &Walk, data: &Locked<'_>, ripas: Ripas) {
        data.set_state(GranuleState::Data);
        self.get_table(walk.table, 1);
        self.set_entry(walk, walk.index, Entry::Assigned(ripas, data.pa()));
    }

    /// DATA_DESTROY: takes a page away. RAM becomes DESTROYED, other RIPAS values stay.
    pub(crate) fn data_destroy(&self, rd: Pa, ipa: Ipa) -> Reply {
        match self.try_data_destroy(rd, ipa) {
            Ok((pa, top)) => Reply::with([pa.0, top.0]),
            Err((refusal, top)) => Reply::refused_with(refusal, [0, top.0]),
        }
    }

    /// The page's address and the next live one; both outcomes tell where to go on.
    pub(crate) fn try_data_destroy(&self, rd: Pa, ipa: Ipa) -> Result<(Pa, Ipa), (Refusal, Ipa)> {
        let wrong = |refusal| (refusal, Ipa(0));
        let (_rd_granule, rd) = self.lock_rd(rd).map_err(wrong)?;
        let stage2 = rd.stage2();
        check_protected_page(&stage2, ipa).map_err(wrong)?;
        let walk = self.walk(&stage2, ipa, PAGE_LEVEL);
        let (ripas, pa) = match walk.entry {
            Entry::Assigned(ripas, pa) if walk.level == PAGE_LEVEL => (ripas, pa),
            _ => return Err((Refusal::rtt(walk.level), self.skip_non_live(&walk, ipa))),
        };
        if ripas == Ripas::Ram {
            let hole = Entry::Unassigned(Ripas::Destroyed);
            self.replace_entry(&stage2, &walk, (ipa, GRANULE_SIZE), hole);
        } else {
            self.set_entry(&walk, walk.index, Entry::Unassigned(ripas));
        }
        self.put_table(walk.table, 1);
        self.release(&self.lock_own(pa, GranuleState::Data));
        Ok((pa, self.skip_non_live(&walk, ipa)))
    }
}
