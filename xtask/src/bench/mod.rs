//! `bench`: what the hypervisor costs, in executed instructions.
//!
//! QEMU runs in its deterministic mode with the plugin of `tests/count`, so the counts are exact
//! and repeat bit for bit, whatever else the development machine does. Each case runs twice, and
//! counts that differ are a failure.

mod result;
mod symbols;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, Images};
use crate::firmware::HYPERVISOR_BASE;
use crate::keyboard::Share;
use crate::project::{Project, host_cargo};
use crate::qemu::{Boot, Counting};
use crate::run::{self, Options, Outcome};
use crate::scenario::{Overrides, Scenario};
use crate::{process, qemu, setup};

use result::{Counted, Counts, HYPERVISOR};
use symbols::Symbols;

/// Package of the plugin, and the file that cargo makes of it.
const PLUGIN: (&str, &str) = ("count", "libcount.so");
/// Where QEMU puts an arm64 `Image` on a `virt` machine without firmware.
const DIRECT_BASE: u64 = 0x4020_0000;
/// Where the firmware for QEMU puts the RMM, and bytes of it.
const RMM: (u64, u64) = (0x4010_0000, 0x180_0000);
/// Longest time for one run: some ten times what it takes on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(240);
/// Functions that a profile shows.
const PROFILE_LINES: usize = 40;

/// A scenario whose instructions are counted.
struct Case {
    name: &'static str,
    /// In the checkout.
    scenario: &'static str,
    /// Cores instead of the scenario's.
    cpus: Option<u32>,
    /// With EL3 firmware and the reference RMM.
    realms: bool,
    what: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "vm",
        scenario: "tests/bench/vm.toml",
        cpus: None,
        realms: false,
        what: "bare-metal VM, 1 vCPU, 32 MiB, no firmware",
    },
    Case {
        name: "lazy",
        scenario: "tests/bench/lazy.toml",
        cpus: None,
        realms: false,
        what: "bare-metal VM, 1 vCPU, its RAM populated on demand",
    },
    Case {
        name: "vcpus",
        scenario: "tests/bench/vcpus.toml",
        cpus: None,
        realms: false,
        what: "bare-metal VM, 2 vCPUs on 2 cores",
    },
    Case {
        name: "vcpus-one-core",
        scenario: "tests/bench/vcpus-one-core.toml",
        cpus: None,
        realms: false,
        what: "bare-metal VM, 2 vCPUs on 1 core",
    },
    Case {
        name: "realm",
        scenario: "tests/bench/realm.toml",
        cpus: None,
        realms: true,
        what: "realm, 1 REC, reference RMM",
    },
    Case {
        name: "linux",
        scenario: "tests/bench/linux.toml",
        cpus: None,
        realms: false,
        what: "Linux to power-off, 1 vCPU, 256 MiB, no firmware",
    },
    Case {
        name: "linux-virtio",
        scenario: "tests/bench/linux-virtio.toml",
        cpus: None,
        realms: false,
        what: "the same with a virtio console",
    },
    Case {
        name: "mixed",
        scenario: "scenarios/mixed.toml",
        // With more, the firmware polls for work on the other cores, and its counts vary a little.
        cpus: Some(1),
        realms: true,
        what: "Linux beside a realm on 1 core, reference RMM",
    },
];

/// Counts the cases of these names, or all. True when every run ended well and repeated.
///
/// # Errors
///
/// An unknown name, or whatever keeps QEMU from running.
pub(crate) fn run(project: &Project, names: &[String], profile: bool) -> Result<bool> {
    if let Some(unknown) = names.iter().find(|name| CASES.iter().all(|case| case.name != **name)) {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("there is no case {unknown}, only: {}", known.join(", "));
    }
    setup::run(project)?;
    let images = build::run(project)?;
    let plugin = build_plugin(project)?;
    let symbols = Symbols::read(&images.hypervisor_elf)?;
    println!();
    println!(
        "hypervisor: {} bytes of image, {} bytes in memory",
        fs::metadata(&images.hypervisor)?.len(),
        images.hypervisor_memory
    );
    let mut ok = true;
    for case in CASES.iter().filter(|case| names.is_empty() || names.iter().any(|n| n == case.name))
    {
        println!("\n{}: {}", case.name, case.what);
        let first = case.run(project, &images, &plugin)?;
        if !first.outcome.faults.is_empty() {
            println!("{}", first.outcome.report(&project.show(&first.log)));
            ok = false;
            continue;
        }
        first.print();
        if let Some(what) = first.unfinished() {
            println!("  FAILED: never counted: {what}");
            ok = false;
        }
        if profile {
            first.counted.print_profile(&symbols, PROFILE_LINES);
        } else {
            first.counted.print_boot(&symbols);
        }
        let second = case.run(project, &images, &plugin)?;
        if let Some(difference) = first.difference(&second) {
            println!("  FAILED: a second run differs: {difference}");
            ok = false;
        }
    }
    println!("\nbench: {}", if ok { "all counts repeated" } else { "failed" });
    Ok(ok)
}

/// Builds the plugin for the development machine and returns its file.
fn build_plugin(project: &Project) -> Result<PathBuf> {
    let (package, file) = PLUGIN;
    let mut command = std::process::Command::new(host_cargo());
    command.current_dir(&project.root).args(["build", "--release", "--package", package]);
    let log = project.logs_dir().join(format!("build-{package}.log"));
    process::step(&format!("building {package}"), &mut command, &log)?;
    let path = project.target.join("release").join(file);
    ensure!(path.is_file(), "cargo left no {}", path.display());
    Ok(path)
}

/// One run.
struct Run {
    outcome: Outcome,
    counted: Counted,
    log: PathBuf,
    /// Names of the VMs.
    vms: Vec<String>,
}

impl Case {
    fn run(&self, project: &Project, images: &Images, plugin: &Path) -> Result<Run> {
        let file = project.root.join(self.scenario);
        let overrides = Overrides { cpus: self.cpus, memory: None };
        let scenario = Scenario::load(project, &file, overrides)?;
        let bundle = project.images_dir().join(format!("bench-{}.bundle", self.name));
        let bundle = run::image(project, &scenario, Some(bundle))?;
        let log = project.logs_dir().join(format!("bench-{}.log", self.name));
        let result = log.with_extension("count");
        // What an earlier run left must not pass for the result of this one.
        if result.exists() {
            fs::remove_file(&result)?;
        }
        let base = if self.realms { HYPERVISOR_BASE } else { DIRECT_BASE };
        let options = Options {
            boot: if self.realms { Boot::Flash(images.flash.clone()) } else { Boot::direct() },
            timeout: Some(TIMEOUT),
            log: log.clone(),
            live: false,
            gdb: false,
            counting: Some(Counting {
                plugin: plugin.to_owned(),
                result: result.clone(),
                output: log.with_extension("serial"),
                hypervisor: (base, images.hypervisor_memory),
                rmm: self.realms.then_some(RMM),
            }),
            keys: Share::Nothing,
            script: Vec::new(),
        };
        let outcome = run::run(&scenario, images, &bundle, &options)?;
        if qemu::interrupted() {
            bail!("interrupted");
        }
        let text = fs::read_to_string(&result)
            .with_context(|| format!("the plugin left no {}", result.display()))?;
        let vms = scenario.vms.iter().map(|vm| vm.name.clone());
        let counted = Counted::parse(&text)?;
        Ok(Run { outcome, counted, log, vms: vms.collect() })
    }
}

impl Run {
    /// The first thing that is not the same in another run.
    fn difference(&self, other: &Self) -> Option<String> {
        let lines = |run: &Self| -> Vec<String> {
            // What QEMU itself says comes in another stream, at any time.
            let lines = run.outcome.transcript.lines.iter();
            lines.filter(|line| !line.starts_with("qemu-system-")).cloned().collect()
        };
        let (these, those) = (lines(self), lines(other));
        let differing = these.iter().zip(&those).find(|(this, that)| this != that);
        if let Some((this, that)) = differing {
            return Some(format!("{this:?} became {that:?}"));
        }
        let same = these.len() == those.len() && self.counted.repeats(&other.counted);
        (!same).then(|| format!("{:?} became {:?}", self.counted.total, other.counted.total))
    }

    /// The IDs and names of intervals that the guests have announced.
    fn announced(&self) -> impl Iterator<Item = (u16, &str)> {
        let vms = self.vms.iter();
        let lines = vms.flat_map(|vm| self.outcome.transcript.guest_lines(vm));
        lines.filter_map(announcement)
    }

    /// An interval that was announced and never ended.
    fn unfinished(&self) -> Option<&str> {
        let mut announced = self.announced();
        announced.find(|(id, _)| self.counted.intervals(*id).is_empty()).map(|(_, what)| what)
    }

    /// Prints what was counted between marks, and in all.
    fn print(&self) {
        let lines = &self.outcome.transcript;
        println!("  {:<46} {:>12} {:>12} {:>12}", "instructions", "hypervisor", "RMM", "EL3");
        let row = |what: &str, [hypervisor, rmm, firmware, _]: &Counts, range: &str| {
            println!("  {what:<46} {hypervisor:>12} {rmm:>12} {firmware:>12}{range}");
        };
        for (id, what) in self.announced() {
            let mut counts = self.counted.intervals(id);
            counts.sort_unstable_by_key(|counts| counts[HYPERVISOR]);
            let (Some(min), Some(max)) = (counts.first(), counts.last()) else { continue };
            let range = format!(
                "   median of {}, {} to {}",
                counts.len(),
                min[HYPERVISOR],
                max[HYPERVISOR]
            );
            row(what, &counts[counts.len() / 2], &range);
        }
        if let Some(counts) = &self.counted.first_guest {
            row("from EL2 entry to the first guest instruction", counts, "");
        }
        row("to power-off", &self.counted.total, "");
        let of_interest =
            |line: &&String| line.contains("] ledger: ") || line.starts_with("rmi calls of ");
        for line in lines.lines.iter().filter(of_interest) {
            println!("  {line}");
        }
    }
}

/// The ID and the name of an interval that a guest announces.
fn announcement(line: &str) -> Option<(u16, &str)> {
    let (id, what) = line.strip_prefix("interval ")?.split_once(": ")?;
    Some((id.parse().ok()?, what))
}
