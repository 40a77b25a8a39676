//! Models of Suzerain's concurrent protocols: the code that ships, run by a few threads on the atomics and
//! locks of a model checker, which tries their interleavings one after the other.
//!
//! Built with `RUSTFLAGS="--cfg loom"`, else this crate is empty. `./x test` runs the models with bounds
//! that keep them short; `LOOM_MAX_PREEMPTIONS=N` widens the bound of those that have one.
#![cfg(loom)]

pub mod machine;

/// Runs `model` under all interleavings with at most `preemptions` switches away from a thread that could
/// go on, or as many as the environment says.
pub fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}
