//! What needs no QEMU: unit and property tests of every crate, formatting, lints.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::Tally;
use crate::process::{logged, tail};
use crate::project::{Project, host_cargo};
use crate::toolchain::{Toolchain, host_has};

pub(super) fn run(project: &Project, tally: &mut Tally) -> Result<()> {
    cargo_test(project, tally)?;
    models(project, tally)?;
    format(project, tally)?;
    lint_host(project, tally)?;
    lint_target(project, tally)
}

/// Runs the tests of the workspace's default members and counts each one.
fn cargo_test(project: &Project, tally: &mut Tally) -> Result<()> {
    count_tests(project, tally, "host tests", &mut cargo_test_command(&[]))
}

/// Runs the models of `tests/models`. They need the crates that they look into built for the model checker,
/// and optimised: hence a target folder of their own.
fn models(project: &Project, tally: &mut Tally) -> Result<()> {
    let mut command = cargo_test_command(&["--release", "--package", "models"]);
    command.arg("--target-dir").arg(project.target.join("loom")).env("RUSTFLAGS", "--cfg loom");
    count_tests(project, tally, "models", &mut command)
}

/// `cargo test` with its two streams as one, so that the name of a test binary comes before its result.
fn cargo_test_command(args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" test --no-fail-fast \"$@\" 2>&1"])
        .arg(host_cargo())
        .args(args);
    command
}

/// Runs a `cargo test` and counts each test.
fn count_tests(
    project: &Project,
    tally: &mut Tally,
    what: &str,
    command: &mut Command,
) -> Result<()> {
    let start = Instant::now();
    let log = project.logs_dir().join(format!("test-{}.log", what.replace(' ', "-")));
    println!("  {what} ...");
    let status = logged(command.current_dir(&project.root), &log)?;
    let text = fs::read_to_string(&log)?;
    let report = Report::read(&text);
    for suite in report.suites.iter().filter(|suite| suite.passed + suite.failed > 0) {
        let verdict = if suite.failed == 0 { "ok     " } else { "FAILED " };
        println!("{verdict} {}: {} passed, {} failed", suite.name, suite.passed, suite.failed);
    }
    for name in &report.failures {
        println!("FAILED  {name}");
    }
    tally.passed += report.passed();
    tally.failed += report.failed();
    println!("  {what}: done in {:.1} s", start.elapsed().as_secs_f32());
    if !status.success() && report.failed() == 0 {
        tally.note(&format!("{what}: build"), start, &tail(&log));
    }
    Ok(())
}

fn format(project: &Project, tally: &mut Tally) -> Result<()> {
    if !host_has("fmt") {
        Tally::skip("format", "rustfmt is not installed");
        return Ok(());
    }
    check(project, tally, "format", Command::new(host_cargo()).args(["fmt", "--all", "--check"]))
}

fn lint_host(project: &Project, tally: &mut Tally) -> Result<()> {
    if !host_has("clippy") {
        Tally::skip("lints of host crates", "clippy is not installed");
        return Ok(());
    }
    let mut command = Command::new(host_cargo());
    command.args(["clippy", "--all-targets", "--", "-D", "warnings"]);
    check(project, tally, "lints of host crates", &mut command)
}

fn lint_target(project: &Project, tally: &mut Tally) -> Result<()> {
    let Some(toolchain) = Toolchain::find().filter(|t| t.has_clippy()) else {
        Tally::skip("lints of bare-metal crates", "clippy for the target is not installed");
        return Ok(());
    };
    let mut command = toolchain.cargo(project, "clippy");
    command.args(["--package", "hyp", "--package", "rmm-el2"]);
    for guest in project.guests() {
        command.args(["--package", &guest.name]);
    }
    check(project, tally, "lints of bare-metal crates", command.args(["--", "-D", "warnings"]))
}

/// A command whose exit code is the result.
fn check(project: &Project, tally: &mut Tally, name: &str, command: &mut Command) -> Result<()> {
    let start = Instant::now();
    let log = project.logs_dir().join(format!("test-{}.log", name.replace(' ', "-")));
    let status = logged(command.current_dir(&project.root), &log)?;
    let detail = if status.success() { String::new() } else { tail(&log) };
    tally.note(name, start, &detail);
    Ok(())
}

/// Results of one test binary.
#[derive(Debug, Default, PartialEq, Eq)]
struct Suite {
    name: String,
    passed: usize,
    failed: usize,
}

/// What `cargo test` printed, as numbers.
#[derive(Debug, Default)]
struct Report {
    suites: Vec<Suite>,
    /// Names of failed tests.
    failures: Vec<String>,
}

impl Report {
    fn read(text: &str) -> Self {
        let mut report = Self::default();
        let mut name = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(binary) = line.strip_prefix("Running ") {
                name = suite_name(binary);
            } else if let Some(package) = line.strip_prefix("Doc-tests ") {
                name = format!("{package} examples");
            } else if let Some(result) = line.strip_prefix("test result: ") {
                let passed = count(result, " passed");
                let failed = count(result, " failed");
                report.suites.push(Suite { name: name.clone(), passed, failed });
            } else if let Some(test) = line.strip_suffix(" ... FAILED") {
                let test = test.strip_prefix("test ").unwrap_or(test);
                report.failures.push(format!("{name}: {test}"));
            }
        }
        report
    }

    fn passed(&self) -> usize {
        self.suites.iter().map(|suite| suite.passed).sum()
    }

    fn failed(&self) -> usize {
        self.suites.iter().map(|suite| suite.failed).sum()
    }
}

/// From `unittests src/lib.rs (target/debug/deps/mm-0123456789abcdef)` to `mm (unittests
/// src/lib.rs)`.
fn suite_name(binary: &str) -> String {
    let Some((what, path)) = binary.rsplit_once(" (") else { return binary.to_owned() };
    let file = path.trim_end_matches(')').rsplit('/').next().unwrap_or(path);
    let package = file.rsplit_once('-').map_or(file, |(package, _)| package);
    format!("{package} ({what})")
}

/// The number before ` passed` or ` failed` in a result line.
fn count(result: &str, what: &str) -> usize {
    let before = result.split(what).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_counted() {
        let text = "\
     Running unittests src/lib.rs (target/debug/deps/mm-0123)
running 3 tests
test a::b ... ok
test a::c ... FAILED
test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
   Doc-tests mm
test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out
";
        let report = Report::read(text);
        assert_eq!((report.passed(), report.failed()), (6, 1));
        assert_eq!(report.suites[0].name, "mm (unittests src/lib.rs)");
        assert_eq!(report.suites[1].name, "mm examples");
        assert_eq!(report.failures, ["mm (unittests src/lib.rs): a::c"]);
        assert_eq!(Report::read("error: could not compile").failed(), 0);
    }
}
