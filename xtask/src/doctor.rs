//! `doctor`: what is on this machine, and how to get what is missing.

use anyhow::Result;

use crate::debian::{Debian, is_root, os_release};
use crate::project::Project;
use crate::setup::{NEEDS, qemu_version};
use crate::toolchain::{DISTRIBUTION_PACKAGES, TARGET, Toolchain, host_has};
use crate::{firmware, guest};

/// Prints the report; true when nothing is missing.
pub(crate) fn run(project: &Project) -> Result<bool> {
    let debian = Debian::detect();
    let mut missing = Vec::new();
    let mut line = |here: bool, what: &str, fact: &str| {
        println!("{:<8}{what:<28}{fact}", if here { "ok" } else { "missing" });
        if !here {
            missing.push(what.to_owned());
        }
    };
    let system = os_release("PRETTY_NAME").unwrap_or_else(|| "unknown system".to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("host    {system}, {cores} cores, {}", if is_root() { "root" } else { "not root" });
    for need in NEEDS {
        let fact = match need.what {
            "qemu-system-aarch64" => match qemu_version() {
                Some(version) => format!("{version} (10 or later is needed)"),
                None => "10 or later is needed".to_owned(),
            },
            _ => format!("{} (package {})", need.purpose, need.package),
        };
        line(need.is_met(), need.what, &fact);
    }
    let rust = format!("Rust for {TARGET}");
    match Toolchain::find() {
        Some(toolchain) => {
            let origin = match toolchain {
                Toolchain::Native => "with its libraries",
                Toolchain::Distribution => "distribution's, builds the core library",
            };
            line(true, "Rust", &format!("{}, {origin}", toolchain.version()?));
        }
        None => line(
            false,
            "Rust",
            &format!("{rust}: rustup target add {TARGET}, or {}", DISTRIBUTION_PACKAGES.join(" ")),
        ),
    }
    for tool in ["clippy", "fmt"] {
        let fact = if host_has(tool) { "" } else { "missing: ./x test skips this check" };
        println!("{:<8}cargo {tool:<22}{fact}", if host_has(tool) { "ok" } else { "-" });
    }
    match firmware::version(project) {
        Ok(version) => line(true, "EL3 firmware", &format!("arm-trusted-firmware {version}")),
        Err(_) => line(false, "EL3 firmware", "./x setup downloads and builds it"),
    }
    match guest::version(project) {
        Some(version) => line(true, "guest kernel", &version),
        None => line(false, "guest kernel", "./x setup downloads it"),
    }
    if missing.is_empty() {
        println!("nothing is missing");
        return Ok(true);
    }
    match debian {
        Some(_) if is_root() => println!("./x setup brings all of it"),
        Some(_) => println!("./x setup as root brings all of it"),
        None => println!("./x setup installs by itself on Debian 12 and 13 only"),
    }
    Ok(false)
}
