//! `image` and `run`: from a scenario to its bundle, and from a bundle to a verdict.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::build::Images;
use crate::bundle;
use crate::console::Transcript;
use crate::keyboard::{Keystrokes, Script, Share};
use crate::process::write_atomically;
use crate::project::Project;
use crate::qemu::{Boot, Counting, Ending, Machine, Serial};
use crate::scenario::Scenario;

/// How a scenario is to be run.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) boot: Boot,
    pub(crate) timeout: Option<Duration>,
    pub(crate) log: PathBuf,
    /// Show the serial output while it comes.
    pub(crate) live: bool,
    pub(crate) gdb: bool,
    /// Count instructions, deterministically.
    pub(crate) counting: Option<Counting>,
    /// What of the keyboard is the machine's.
    pub(crate) keys: Share,
    /// What is typed on the console by itself.
    pub(crate) script: Vec<Keystrokes>,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    pub(crate) transcript: Transcript,
    pub(crate) time: Duration,
    /// Why the run is no success; empty for a success.
    pub(crate) faults: Vec<String>,
}

/// Writes the bundle of a scenario and returns its path.
pub(crate) fn image(
    project: &Project,
    scenario: &Scenario,
    output: Option<PathBuf>,
) -> Result<PathBuf> {
    let path =
        output.unwrap_or_else(|| project.images_dir().join(format!("{}.bundle", scenario.name)));
    write_atomically(&path, &bundle::write(scenario)?)?;
    Ok(path)
}

/// Runs a scenario's bundle.
pub(crate) fn run(
    scenario: &Scenario,
    images: &Images,
    bundle: &Path,
    options: &Options,
) -> Result<Outcome> {
    let machine = Machine {
        boot: &options.boot,
        cpus: scenario.machine.cpus,
        memory: scenario.machine.memory,
        hypervisor: &images.hypervisor,
        bundle,
        gdb: options.gdb,
        counting: options.counting.as_ref(),
    };
    if let Some(folder) = options.log.parent() {
        fs::create_dir_all(folder)?;
    }
    let start = Instant::now();
    let serial = Serial {
        log: &options.log,
        live: options.live,
        keys: options.keys,
        script: Script::new(options.script.clone()),
    };
    let (ending, transcript) = machine.run(serial, options.timeout)?;
    let time = start.elapsed();
    let mut faults = transcript.faults(scenario);
    match &ending {
        Ending::PoweredOff => {}
        Ending::Failed(status) => faults.insert(0, format!("QEMU: {status}")),
        Ending::TimedOut => {
            faults.insert(0, format!("no end after {} s, QEMU was killed", time.as_secs()));
        }
        Ending::StillOn => faults.insert(0, "the machine did not power off".to_owned()),
    }
    Ok(Outcome { ending, transcript, time, faults })
}

impl Outcome {
    /// Why the run is no success, how far it came, and where to read on.
    pub(crate) fn report(&self, log: &std::path::Display<'_>) -> String {
        let mut text = String::new();
        for fault in &self.faults {
            let _ = writeln!(text, "  {fault}");
        }
        let none = "none".to_owned();
        let stage = self.transcript.last_stage.as_ref().unwrap_or(&none);
        let state = self.transcript.last_state.as_ref().unwrap_or(&none);
        let _ = writeln!(text, "  last boot stage: {stage}");
        let _ = writeln!(text, "  last VM state: {state}");
        let _ = write!(text, "  serial log: {log}");
        text
    }
}
