//! System tests: scenarios in QEMU, and what must be seen of them.
//!
//! Each file in `tests/system` is one test. `tests/system/README.md` explains the keys.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::sums;
use crate::build::Images;
use crate::keyboard::{Keystrokes, Share};
use crate::process::write_atomically;
use crate::project::Project;
use crate::qemu::{Boot, Ending};
use crate::rim::{Measurement, Measurements};
use crate::run::{self, Options, Outcome};
use crate::scenario::{Overrides, Scenario, Size};

/// Changes of the speaker on the console from which on two guests count as interleaved: boot lines
/// of one that runs wholly before the other make a single change.
const INTERLEAVED: usize = 4;

/// One test.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Case {
    /// The file's name.
    #[serde(skip)]
    pub(super) name: String,
    scenario: String,
    boot: BootKind,
    outcome: Wanted,
    /// Seconds until QEMU is killed.
    timeout: u64,
    cpus: Option<u32>,
    memory: Option<Size>,
    /// QEMU's name of the cores, for a run without firmware.
    core: Option<String>,
    damage: Option<Damage>,
    /// What is typed on the console, and after which texts.
    #[serde(default)]
    r#type: Vec<Keystrokes>,
    /// End states of VMs.
    #[serde(default)]
    ends: BTreeMap<String, String>,
    /// Texts each of which must be in a line.
    #[serde(default)]
    see: Vec<String>,
    /// Texts and in how many lines each must be.
    #[serde(default)]
    counts: BTreeMap<String, usize>,
    /// Texts none of which may be in a line.
    #[serde(default)]
    never: Vec<String>,
    /// Texts of lines that give the sums of the tables above them.
    #[serde(default)]
    sums: Vec<String>,
    /// Guests each two of which must have run in turns.
    #[serde(default)]
    interleaved: Vec<String>,
    /// Realms that must have printed the measurement which the files give, in each of their lives.
    #[serde(default)]
    measured: Vec<String>,
}

/// What enters the hypervisor.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BootKind {
    /// EL3 firmware with the reference RMM, RMI 1.0.
    Rmm,
    /// The same, RMI 2.0.
    #[serde(rename = "rmm-rmi-2")]
    RmmRmi2,
    /// EL3 firmware whose RMM did not start.
    NoRmm,
    /// EL3 firmware with an RMM that speaks RMI 0.0.
    UnknownRmm,
    /// No firmware, and no RME.
    Direct,
}

/// What the run has to come to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Wanted {
    /// Every VM ends as the scenario says: `run` exits with 0.
    Ok,
    /// Not so, and the hypervisor says so: `run` exits with 1.
    Failed,
    /// The hypervisor refuses the bundle and powers off: `run` exits with 1.
    BundleRefused,
}

/// What is done to a bundle before it is loaded.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Damage {
    /// The first byte of the tree.
    Magic,
    /// A byte in the middle of the tree.
    Tree,
    /// A byte of the first image.
    Image,
    /// Everything behind the first half is gone.
    Cut,
}

/// All tests, in the order of their names.
pub(super) fn cases(project: &Project) -> Result<Vec<Case>> {
    let folder = project.root.join("tests/system");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {folder:?}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files.iter().map(|file| Case::read(file)).collect()
}

impl Case {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file)?;
        let mut case: Self = toml::from_str(&text).with_context(|| file.display().to_string())?;
        ensure!(case.interleaved.len() != 1, "{}: one guest takes no turns", file.display());
        case.name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(case)
    }

    /// Runs the test. The error tells everything that is not as it should be.
    pub(super) fn run(&self, project: &Project, images: &Images) -> Result<()> {
        let file = Scenario::find(project, &self.scenario);
        let overrides = Overrides { cpus: self.cpus, memory: self.memory };
        let scenario = Scenario::load(project, &file, overrides)?;
        let bundle = project.images_dir().join(format!("test-{}.bundle", self.name));
        run::image(project, &scenario, Some(bundle.clone()))?;
        if let Some(damage) = self.damage {
            write_atomically(&bundle, &damage.apply(fs::read(&bundle)?)?)?;
        }
        let options = Options {
            boot: match self.boot {
                BootKind::Rmm => Boot::Flash(images.flash.clone()),
                BootKind::RmmRmi2 => Boot::Flash(images.flash_rmi_2.clone()),
                BootKind::NoRmm => Boot::Flash(images.flash_without_rmm.clone()),
                BootKind::UnknownRmm => Boot::Flash(images.flash_unknown_rmm.clone()),
                BootKind::Direct => self.core.clone().map_or_else(Boot::direct, Boot::Direct),
            },
            timeout: Some(Duration::from_secs(self.timeout)),
            log: project.logs_dir().join(format!("test-{}.log", self.name)),
            live: false,
            gdb: false,
            counting: None,
            keys: Share::Nothing,
            script: self.r#type.clone(),
        };
        let outcome = run::run(&scenario, images, &bundle, &options)?;
        let mut faults = self.faults(&outcome);
        faults.extend(self.check_measurements(&outcome, &fs::read(&bundle)?)?);
        if !faults.is_empty() {
            let list: String = faults.iter().map(|fault| format!("  {fault}\n")).collect();
            bail!("{list}{}", outcome.report(&project.show(&options.log)));
        }
        // A bundle is tens of megabytes; that of a failed test is kept.
        fs::remove_file(bundle)?;
        Ok(())
    }

    /// Compares what realms read as their RIM with what their files give.
    fn check_measurements(&self, outcome: &Outcome, bundle: &[u8]) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        if self.measured.is_empty() {
            return Ok(faults);
        }
        let rmi_2 = matches!(self.boot, BootKind::RmmRmi2);
        let computed = Measurements::of_bundle(bundle, None, rmi_2)?;
        for realm in &self.measured {
            let rim = computed.realm(realm).map(Measurement::rim_hex);
            let rim = rim.with_context(|| format!("there is no realm {realm}"))?;
            let lines = outcome.transcript.guest_lines(realm);
            let mut read = lines.filter_map(|line| line.strip_prefix("realm: rim ")).peekable();
            if read.peek().is_none() {
                faults.push(format!("realm {realm} did not print its RIM"));
            }
            // In each of its lives.
            let others = read.filter(|read| *read != rim);
            faults.extend(others.map(|read| format!("realm {realm}: RIM {read}, wanted {rim}")));
        }
        Ok(faults)
    }

    /// What the test wanted and did not get.
    fn faults(&self, outcome: &Outcome) -> Vec<String> {
        let transcript = &outcome.transcript;
        let mut faults = Vec::new();
        let refused = transcript.lines.iter().any(|line| line.starts_with("bundle refused: "));
        match self.outcome {
            Wanted::Ok if !outcome.faults.is_empty() => faults.push("the run failed".to_owned()),
            Wanted::Failed if outcome.faults.is_empty() => {
                faults.push("the run did not fail".to_owned());
            }
            Wanted::Failed if !transcript.has_verdict() => {
                faults.push("the hypervisor gave no verdict".to_owned());
            }
            Wanted::Failed => faults.extend(transcript.granule_fault()),
            Wanted::BundleRefused if !refused => faults.push("the bundle was accepted".to_owned()),
            _ => {}
        }
        if outcome.ending != Ending::PoweredOff {
            faults.push(format!("the machine ended by {:?}", outcome.ending));
        }
        for (vm, wanted) in &self.ends {
            let state = transcript.end_state(vm).unwrap_or("no state");
            if state != wanted {
                faults.push(format!("vm {vm}: {state}, wanted {wanted}"));
            }
        }
        let seen = |text: &String| transcript.lines.iter().any(|line| line.contains(text));
        let unseen = self.see.iter().filter(|text| !seen(text));
        faults.extend(unseen.map(|text| format!("not seen: {text}")));
        let unwanted = self.never.iter().filter(|text| seen(text));
        faults.extend(unwanted.map(|text| format!("seen: {text}")));
        for (text, wanted) in &self.counts {
            let found = transcript.lines.iter().filter(|line| line.contains(text)).count();
            if found != *wanted {
                faults.push(format!("in {found} lines, wanted {wanted}: {text}"));
            }
        }
        let own = transcript.own_lines();
        faults.extend(self.sums.iter().filter_map(|text| sums::fault(&own, text)));
        for (index, one) in self.interleaved.iter().enumerate() {
            for other in self.interleaved.iter().skip(index + 1) {
                let changes = transcript.changes_between([one, other]);
                if changes < INTERLEAVED {
                    faults.push(format!("{one} and {other} took turns {changes} times only"));
                }
            }
        }
        faults
    }
}

impl Damage {
    fn apply(self, mut bundle: Vec<u8>) -> Result<Vec<u8>> {
        // `totalsize` of the tree's header.
        let tree = bundle.get(4..8).and_then(|b| <[u8; 4]>::try_from(b).ok());
        let tree = u32::from_be_bytes(tree.context("the bundle has no tree")?) as usize;
        let first_image = tree.next_multiple_of(4096);
        let spot = match self {
            Self::Magic => 0,
            Self::Tree => tree / 2,
            Self::Image => first_image + 100,
            Self::Cut => {
                bundle.truncate(bundle.len() / 2);
                return Ok(bundle);
            }
        };
        *bundle.get_mut(spot).context("the bundle is too short")? ^= 0x40;
        Ok(bundle)
    }
}
