//! `test`: the tests of the development machine, the lints, and the QEMU scenarios.

mod host;
mod refused;
mod sums;
mod system;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::project::Project;
use crate::{build, qemu, setup};

/// Counts of what was tried.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    /// Notes one test and says so; `detail` tells how it failed, or is empty.
    fn note(&mut self, name: &str, start: Instant, detail: &str) {
        let seconds = start.elapsed().as_secs_f32();
        if detail.is_empty() {
            self.passed += 1;
            println!("ok      {name} ({seconds:.1} s)");
        } else {
            self.failed += 1;
            println!("FAILED  {name} ({seconds:.1} s)\n{detail}");
        }
    }

    /// Says why a test is not run here. It counts neither way.
    fn skip(name: &str, reason: &str) {
        println!("skipped {name}: {reason}");
    }
}

/// Runs all tests, or the system tests of these names. True when none failed.
pub(crate) fn run(project: &Project, names: &[String]) -> Result<bool> {
    let start = Instant::now();
    let mut tally = Tally::default();
    let cases = system::cases(project)?;
    if let Some(unknown) = names.iter().find(|name| cases.iter().all(|case| case.name != **name)) {
        let known: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        bail!("there is no system test {unknown}, only: {}", known.join(", "));
    }
    setup::run(project)?;
    if names.is_empty() {
        host::run(project, &mut tally)?;
        refused::run(project, &mut tally)?;
    }
    let begin = Instant::now();
    match build::run(project) {
        Ok(images) => {
            for case in &cases {
                if !names.is_empty() && !names.contains(&case.name) {
                    continue;
                }
                let begin = Instant::now();
                let result = case.run(project, &images);
                if qemu::interrupted() {
                    bail!("interrupted");
                }
                let detail = result.err().map(|e| format!("{e:#}")).unwrap_or_default();
                tally.note(&format!("system {}", case.name), begin, &detail);
            }
        }
        Err(error) => tally.note("system: build", begin, &format!("{error:#}")),
    }
    println!("test: done in {} s", start.elapsed().as_secs());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0 && tally.passed > 0)
}
