//! Realm IPA state: RTT_INIT_RIPAS while building, RTT_SET_RIPAS when the realm asks, and the
//! look-ups that RSI makes.

use crate::abi::{Refusal, Reply, Ripas};
use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::granule::GranuleState;
use crate::measurement::measure_ripas;
use crate::monitor::Monitor;
use crate::platform::Platform;
use crate::realm::RealmState;
use crate::rtt::entry::Entry;
use crate::rtt::geometry::{ENTRIES, PAGE_LEVEL, Stage2, entry_size};

/// What RSI finds behind a protected page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageLookup {
    /// RAM with this page behind it.
    Ram(Pa),
    /// RIPAS EMPTY.
    Empty,
    /// RAM without a page, or DESTROYED: the host must act. The walk ended at this level.
    Fault(i64),
}

/// What an entry becomes by a change of RIPAS.
enum Change {
    /// Another entry.
    To(Entry),
    /// Already as wanted.
    None,
    /// The entry has no RIPAS, or may not change.
    Refused,
}

/// RIPAS change of one entry: `destroyed` says if DESTROYED memory may change.
fn change(entry: Entry, to: Ripas, destroyed: bool) -> Change {
    let from = match entry {
        Entry::Unassigned(ripas) | Entry::Assigned(ripas, _) => ripas,
        _ => return Change::Refused,
    };
    if from == to {
        return Change::None;
    }
    if from == Ripas::Destroyed && !destroyed {
        return Change::Refused;
    }
    Change::To(match entry {
        Entry::Assigned(_, pa) => Entry::Assigned(to, pa),
        _ => Entry::Unassigned(to),
    })
}

impl<P: Platform> Monitor<P> {
    /// RTT_INIT_RIPAS: makes empty memory RAM while the realm is built, entry by entry of one
    /// table; each is measured.
    pub(crate) fn rtt_init_ripas(&self, rd: Pa, base: Ipa, top: Ipa) -> Result<Reply, Refusal> {
        if top <= base {
            return Err(Refusal::INPUT);
        }
        let (rd_granule, mut rd) = self.lock_rd(rd)?;
        let stage2 = rd.stage2();
        let pages = base.is_aligned(GRANULE_SIZE) && top.is_aligned(GRANULE_SIZE);
        if !pages || top.0 > stage2.ipa_size() / 2 {
            return Err(Refusal::INPUT);
        }
        if rd.state() != RealmState::New {
            return Err(Refusal::REALM);
        }
        // 2.0 measures no RIPAS and lets pages be mapped before.
        let stateful = self.rmi2().is_some();
        let walk = self.walk(&stage2, base, PAGE_LEVEL);
        let size = entry_size(walk.level);
        let mut next = base;
        if base.is_aligned(size) {
            for index in walk.index..ENTRIES {
                let end = next.offset(size);
                if end > top {
                    break;
                }
                match self.sibling(&walk, index) {
                    Entry::Unassigned(Ripas::Empty) => {
                        self.set_entry(&walk, index, Entry::Unassigned(Ripas::Ram));
                    }
                    Entry::Unassigned(Ripas::Ram) => {}
                    Entry::Assigned(Ripas::Empty, pa) if stateful => {
                        self.set_entry(&walk, index, Entry::Assigned(Ripas::Ram, pa));
                    }
                    Entry::Assigned(Ripas::Ram, _) if stateful => {}
                    _ => break,
                }
                if !stateful {
                    rd.extend_rim(|algorithm, rim| measure_ripas(algorithm, rim, next, end));
                }
                next = end;
            }
        }
        if next == base {
            return Err(Refusal::rtt(walk.level));
        }
        self.store_rd(&rd_granule, &rd);
        Ok(Reply::with([next.0]))
    }

    /// RTT_SET_RIPAS: carries out part of the change that a REC has asked for.
    pub(crate) fn rtt_set_ripas(
        &self,
        rd_pa: Pa,
        rec_pa: Pa,
        base: Ipa,
        top: Ipa,
    ) -> Result<Reply, Refusal> {
        if top <= base {
            return Err(Refusal::INPUT);
        }
        let (rd_granule, rec_granule) =
            self.lock_pair((rd_pa, GranuleState::Rd), (rec_pa, GranuleState::Rec))?;
        if rec_granule.is_claimed() {
            return Err(Refusal::REC);
        }
        let mut rec = self.load_rec(rec_pa);
        if rec.rd != rd_pa.0 {
            return Err(Refusal::REC);
        }
        let request = rec.ripas;
        if base.0 != request.next || top.0 > request.top || !top.is_aligned(GRANULE_SIZE) {
            return Err(Refusal::INPUT);
        }
        let stage2 = self.load_rd(&rd_granule).stage2();
        let next = self.change_ripas(
            &stage2,
            (base, top),
            request.ripas(),
            // In 2.0 the realm can always give up what is destroyed.
            request.change_destroyed != 0
                || (self.rmi2().is_some() && request.ripas() == Ripas::Empty),
        )?;
        rec.ripas.next = next.0;
        self.store_rec(rec_pa, &rec);
        Ok(Reply::with([next.0]))
    }

    /// Changes entries of one table from `base` on as far as possible; the end of what was done.
    fn change_ripas(
        &self,
        stage2: &Stage2,
        (base, top): (Ipa, Ipa),
        to: Ripas,
        destroyed: bool,
    ) -> Result<Ipa, Refusal> {
        let walk = self.walk(stage2, base, PAGE_LEVEL);
        let size = entry_size(walk.level);
        let mut next = base;
        if base.is_aligned(size) {
            for index in walk.index..ENTRIES {
                let end = next.offset(size);
                if end > top {
                    break;
                }
                let entry = self.sibling(&walk, index);
                match change(entry, to, destroyed) {
                    Change::To(changed) => self.set_entry(&walk, index, changed),
                    Change::None => {}
                    Change::Refused => break,
                }
                if entry.is_mapping() && to != Ripas::Ram {
                    self.platform.tlb_invalidate(stage2.regime(&self.features), next, size);
                }
                next = end;
            }
        }
        if next == base { Err(Refusal::rtt(walk.level)) } else { Ok(next) }
    }

    /// What is behind the protected page `ipa`, for the monitor's own access on the realm's
    /// behalf. Valid while the lock of the realm descriptor is held.
    pub(crate) fn look_up_page(&self, stage2: &Stage2, ipa: Ipa) -> PageLookup {
        let walk = self.walk(stage2, ipa, PAGE_LEVEL);
        match walk.entry {
            Entry::Assigned(Ripas::Ram, pa) => {
                PageLookup::Ram(pa.offset(ipa.0 & (entry_size(walk.level) - 1)))
            }
            Entry::Unassigned(Ripas::Empty) | Entry::Assigned(Ripas::Empty, _) => PageLookup::Empty,
            _ => PageLookup::Fault(walk.level),
        }
    }

    /// The RIPAS of `base`, and the end, at most `top`, of the run of entries in the same table
    /// that share it; none if the entry has no RIPAS.
    pub(crate) fn ripas_run(&self, stage2: &Stage2, base: Ipa, top: Ipa) -> Option<(Ripas, Ipa)> {
        let ripas_of = |entry| match entry {
            Entry::Unassigned(ripas) | Entry::Assigned(ripas, _) => Some(ripas),
            _ => None,
        };
        let walk = self.walk(stage2, base, PAGE_LEVEL);
        let ripas = ripas_of(walk.entry)?;
        let size = entry_size(walk.level);
        let mut end = Ipa(base.0 & !(size - 1)).offset(size);
        for index in walk.index + 1..ENTRIES {
            if end >= top || ripas_of(self.sibling(&walk, index)) != Some(ripas) {
                break;
            }
            end = end.offset(size);
        }
        Some((ripas, end.min(top)))
    }
}
