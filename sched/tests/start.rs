//! Entities that become runnable before the cores have begun to pick.

use sched::{CoreId, CoreSet, Next, Params, Scheduler};

const SLICE_NS: u64 = 1_000_000;

/// Two of eight cores are up, and there is more to run than they have time for: everything gets its
/// turn, also what came when no core had picked yet.
#[test]
fn entities_that_come_before_the_cores_get_their_turns() {
    const ENTITIES: usize = 7;
    let mut scheduler = Scheduler::<8, ENTITIES>::new();
    let cores = [CoreId(0), CoreId(1)];
    cores.iter().for_each(|core| scheduler.bring_up(*core));
    let params = Params { priority: 8, slice_ns: SLICE_NS, budget: None, affinity: CoreSet::ALL };
    let entities = [(); ENTITIES].map(|()| scheduler.add(params, 0).unwrap());
    for entity in entities {
        let _ = scheduler.wake(entity, 0);
    }
    let mut turns = [0; ENTITIES];
    for round in 0..4 * ENTITIES as u64 {
        for core in cores {
            match scheduler.pick(core, round * SLICE_NS).next {
                Next::Run { entity, .. } => turns[usize::from(entity.0)] += 1,
                Next::Idle { .. } => panic!("core {core:?} idles"),
            }
        }
    }
    assert!(turns.iter().all(|turns| (6..=10).contains(turns)), "{turns:?}");
}
