//! `cargo xtask`: the one command-line entry of the project. `./x` wraps it.
//!
//! Exit codes: 0 for success, 1 for a failure, 2 when something must be installed first or the
//! command line is wrong.

mod bench;
mod build;
mod bundle;
mod console;
mod cpio;
mod debian;
mod doctor;
mod elf;
mod firmware;
mod guest;
mod keyboard;
mod overlay;
mod process;
mod project;
mod qemu;
mod rim;
mod run;
mod scenario;
mod setup;
mod test;
mod toolchain;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::keyboard::{Keystrokes, Share};
use crate::project::Project;
use crate::qemu::Boot;
use crate::scenario::{Overrides, Scenario, Size};

/// Builds, runs and tests Suzerain.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "./x")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring all that is missing: QEMU, compilers, EL3 firmware, guest kernel
    Setup,
    /// Build hypervisor, reference RMM, guests and flash images
    Build,
    /// Make the bundle of a scenario
    Image {
        /// A name in `scenarios/`, or a file
        scenario: String,
        /// Where to write it
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Run a scenario in QEMU; exit code 0 only if every VM ended as the scenario says
    Run(RunArgs),
    /// Run all tests, or the QEMU tests of these names
    Test {
        /// Names of tests in `tests/system/`
        names: Vec<String>,
    },
    /// Count the instructions that the hypervisor costs; exit code 0 only if all counts repeat
    Bench {
        /// Cases: vm, vcpus, vcpus-one-core, realm, linux, linux-virtio, mixed; all unless given
        cases: Vec<String>,
        /// Say which functions of the hypervisor the instructions belong to
        #[arg(long)]
        profile: bool,
    },
    /// Print the initial measurement of realms, computed from the files alone
    Rim {
        /// A name in `scenarios/`, or a file
        scenario: String,
        /// Only this realm
        #[arg(long, value_name = "NAME")]
        vm: Option<String>,
        /// As an RMM that speaks RMI 2.0 measures, which leaves the initial RIPAS out
        #[arg(long)]
        rmi_2: bool,
        /// How to write it
        #[arg(long, value_enum, default_value_t)]
        format: rim::Format,
        /// Where to write it
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Say what is on this machine, and how to get what is missing
    Doctor,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A name in `scenarios/`, or a file
    #[arg(default_value = "mixed")]
    scenario: String,
    /// Flash image with EL3 firmware and RMM to use instead of the built one
    #[arg(long, value_name = "FLASH")]
    firmware: Option<PathBuf>,
    /// The reference RMM speaks RMI 2.0 instead of 1.0
    #[arg(long, conflicts_with_all = ["firmware", "no_rme"])]
    rmi_2: bool,
    /// Plain machine without EL3 firmware and RME: normal VMs only
    #[arg(long, conflicts_with = "firmware")]
    no_rme: bool,
    /// Number of cores instead of the scenario's
    #[arg(long, value_name = "N")]
    smp: Option<u32>,
    /// Memory of the machine instead of the scenario's, such as 4G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Seconds until QEMU is killed
    #[arg(long, value_name = "S", default_value_t = 300)]
    timeout: u64,
    /// File for the serial output
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Attach the terminal to the console of this VM; Ctrl-] ends the run
    #[arg(long, value_name = "NAME")]
    console: Option<String>,
    /// Wait for a debugger on port 1234 before the first instruction
    #[arg(long)]
    gdb: bool,
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            match error.downcast_ref::<scenario::Refused>() {
                Some(refused) => eprintln!("{refused}"),
                None => eprintln!("error: {error:#}"),
            }
            ExitCode::from(if error.is::<setup::Missing>() { 2 } else { 1 })
        }
    }
}

/// True for success.
fn dispatch(command: Command) -> Result<bool> {
    let project = Project::locate()?;
    match command {
        Command::Setup => setup::run(&project).map(|()| true),
        Command::Build => {
            setup::run(&project)?;
            build::run(&project).map(|_| true)
        }
        Command::Image { scenario, output } => {
            let file = Scenario::find(&project, &scenario);
            let scenario = Scenario::load(&project, &file, Overrides::default())?;
            setup::run(&project)?;
            build::run(&project)?;
            let bundle = run::image(&project, &scenario, output)?;
            println!("{}", bundle.display());
            Ok(true)
        }
        Command::Run(args) => run(&project, &args),
        Command::Test { names } => test::run(&project, &names),
        Command::Bench { cases, profile } => bench::run(&project, &cases, profile),
        Command::Rim { scenario, vm, rmi_2, format, output } => {
            let file = Scenario::find(&project, &scenario);
            let scenario = Scenario::load(&project, &file, Overrides::default())?;
            setup::run(&project)?;
            build::run(&project)?;
            let bundle = bundle::write(&scenario)?;
            let measured = rim::Measurements::of_bundle(&bundle, vm.as_deref(), rmi_2)?;
            measured.write(format, output.as_deref()).map(|()| true)
        }
        Command::Doctor => doctor::run(&project),
    }
}

fn run(project: &Project, args: &RunArgs) -> Result<bool> {
    let overrides = Overrides { cpus: args.smp, memory: args.memory };
    let file = Scenario::find(project, &args.scenario);
    // What is wrong in the scenario is said before minutes of downloads.
    let scenario = Scenario::load(project, &file, overrides)?;
    setup::run(project)?;
    let images = build::run(project)?;
    let bundle = run::image(project, &scenario, None)?;
    let boot = match &args.firmware {
        _ if args.no_rme => Boot::direct(),
        Some(flash) => Boot::Flash(flash.clone()),
        None if args.rmi_2 => Boot::Flash(images.flash_rmi_2.clone()),
        None => Boot::Flash(images.flash.clone()),
    };
    let log = args.log.clone();
    let options = run::Options {
        boot,
        timeout: (!args.gdb && args.console.is_none()).then(|| Duration::from_secs(args.timeout)),
        log: log.unwrap_or_else(|| project.logs_dir().join(format!("run-{}.log", scenario.name))),
        live: true,
        gdb: args.gdb,
        counting: None,
        keys: if args.console.is_some() { Share::Everything } else { Share::Keys },
        script: match &args.console {
            Some(vm) => attach(&scenario, vm)?,
            None => Vec::new(),
        },
    };
    println!(
        "run: scenario {}, {} CPUs, {}",
        scenario.name, scenario.machine.cpus, scenario.machine.memory
    );
    if args.gdb {
        println!("run: waiting for a debugger on 127.0.0.1:1234");
    }
    if let Some(vm) = &args.console {
        println!("run: console of {vm}; Ctrl-T m for the monitor, Ctrl-] ends the run");
    }
    let outcome = run::run(&scenario, &images, &bundle, &options)?;
    let seconds = outcome.time.as_secs_f32();
    if outcome.faults.is_empty() {
        println!("run: ok after {seconds:.1} s, serial log: {}", project.show(&options.log));
        return Ok(true);
    }
    println!("run: failed after {seconds:.1} s");
    println!("{}", outcome.report(&project.show(&options.log)));
    Ok(false)
}

/// What is typed to attach the terminal to a VM: the escape key and the number of the VM.
fn attach(scenario: &Scenario, vm: &str) -> Result<Vec<Keystrokes>> {
    let index = scenario.vms.iter().position(|other| other.name == vm);
    let index = index.with_context(|| format!("scenario {} has no VM {vm}", scenario.name))?;
    ensure!(index < 9, "only the first nine VMs of a scenario have a key");
    let send = format!("\u{14}{}", index + 1);
    Ok(vec![Keystrokes { after: "] operator console: Ctrl-T".to_owned(), send }])
}
