//! Granules that go from core to core through the ledger.
//!
//! The RMM is not asked here: what is checked is that the record never gives a granule to two cores,
//! and that it is as it was when all have given theirs back.
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use mm::ledger::{Delegated, Frames, Ledger, Owner, PhysRange, RmmUse, Use};
use mm::{PAGE_SIZE, PhysAddr};
use models::check;

const RAM: PhysAddr = PhysAddr::new(0x8000_0000);
const OWNER: Owner = Owner::vm(1);

/// A ledger of `granules` free granules.
fn ledger(granules: u64) -> Arc<Ledger<'static>> {
    let ram = [PhysRange::new(RAM, PhysAddr::new(RAM.get() + granules * PAGE_SIZE))];
    let limit = PhysAddr::new(1 << 32);
    let words = Ledger::metadata_words(&ram, limit).unwrap();
    Arc::new(Ledger::new(&ram, limit, vec![0; words].leak()).unwrap())
}

/// Runs `work` on two cores and returns both results.
fn on_two_cores<R: 'static>(
    ledger: &Arc<Ledger<'static>>,
    work: impl Fn(&Ledger<'static>) -> R + Copy + Send + 'static,
) -> [R; 2] {
    let other = {
        let ledger = Arc::clone(ledger);
        thread::spawn(move || work(&ledger))
    };
    let this = work(ledger);
    [this, other.join().unwrap()]
}

fn give_back(ledger: &Ledger<'_>, frames: Frames<Delegated>) {
    ledger.free(ledger.undelegated(frames));
}

/// The RMM names a granule that it has released, to two cores at once: one of them gets it.
#[test]
fn a_returned_granule_is_taken_back_once() {
    check(3, || {
        let ledger = ledger(4);
        let start = ledger.census();
        let frames = ledger.delegated(ledger.alloc(1, Use::Realm, OWNER).unwrap());
        let base = frames.base();
        ledger.hand_over(frames, RmmUse::Data);
        let taken = on_two_cores(&ledger, move |ledger| {
            let frames = ledger.take_back(base, 2, RmmUse::Data, OWNER);
            frames.map(|frames| give_back(ledger, frames)).is_ok()
        });
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
        assert_eq!(ledger.census(), start);
    });
}

/// A table that two cores find again: one of them frees it.
#[test]
fn a_table_is_freed_once() {
    check(3, || {
        let ledger = ledger(2);
        let start = ledger.census();
        // Its token is not kept: the table above it has the address.
        let base = ledger.alloc(0, Use::Stage2, OWNER).unwrap().base();
        let freed = on_two_cores(&ledger, move |ledger| {
            ledger.free_untracked(base, 1, Use::Stage2, OWNER).is_ok()
        });
        assert_eq!(freed.iter().filter(|freed| **freed).count(), 1);
        assert_eq!(ledger.census(), start);
    });
}

/// Two cores want the last two granules: each gets one.
#[test]
fn a_granule_is_allocated_once() {
    check(3, || {
        let ledger = ledger(2);
        let start = ledger.census();
        let frames = on_two_cores(&ledger, |ledger| ledger.alloc(0, Use::Realm, OWNER).unwrap());
        assert_ne!(frames[0].base(), frames[1].base());
        assert!(ledger.alloc(0, Use::Realm, OWNER).is_err());
        frames.into_iter().for_each(|frames| ledger.free(frames));
        assert_eq!(ledger.census(), start);
    });
}

/// The halves of a run go their ways on two cores: through the RMM, and straight back.
#[test]
fn halves_of_a_run_merge_again() {
    check(3, || {
        let ledger = ledger(4);
        let start = ledger.census();
        let (first, second) = ledger.alloc(2, Use::Realm, OWNER).unwrap().split_at(2);
        let other = {
            let ledger = Arc::clone(&ledger);
            thread::spawn(move || ledger.free(second))
        };
        let base = first.base();
        ledger.hand_over(ledger.delegated(first), RmmUse::Rtt);
        let back = ledger.take_back(base, 2, RmmUse::Rtt, OWNER).unwrap();
        give_back(&ledger, back);
        other.join().unwrap();
        assert_eq!(ledger.census(), start);
        assert!(ledger.alloc(2, Use::Realm, OWNER).is_ok(), "one block of four again");
    });
}
