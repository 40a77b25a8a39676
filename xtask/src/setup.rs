//! `setup`: brings everything that the other commands need, once.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::debian::{self, Debian};
use crate::process::{find_program, output};
use crate::project::Project;
use crate::toolchain::{DISTRIBUTION_PACKAGES, TARGET, Toolchain, host_has};
use crate::{firmware, guest};

/// Oldest QEMU whose `max` CPU has the Realm Management Extension as these machines use it.
const OLDEST_QEMU: u32 = 10;

/// A program or a header that has to be on the machine.
#[derive(Debug)]
pub(crate) struct Need {
    /// What is looked for: a program's name or an absolute path.
    pub(crate) what: &'static str,
    /// Debian's package.
    pub(crate) package: &'static str,
    /// What it is good for.
    pub(crate) purpose: &'static str,
}

/// Everything but Rust.
pub(crate) const NEEDS: &[Need] = &[
    Need { what: "qemu-system-aarch64", package: "qemu-system-arm", purpose: "QEMU 10 or later" },
    Need {
        what: "aarch64-linux-gnu-gcc",
        package: "gcc-aarch64-linux-gnu",
        purpose: "C compiler for the EL3 firmware",
    },
    Need { what: "cc", package: "gcc", purpose: "C compiler for the firmware's host tools" },
    Need { what: "make", package: "make", purpose: "builds the EL3 firmware" },
    Need {
        what: "/usr/include/openssl/sha.h",
        package: "libssl-dev",
        purpose: "OpenSSL headers for the firmware's image tool",
    },
    Need { what: "dtc", package: "device-tree-compiler", purpose: "device tree compiler" },
    Need { what: "xz", package: "xz-utils", purpose: "unpacks firmware source and guest modules" },
    Need { what: "setpriv", package: "util-linux", purpose: "ends QEMU together with xtask" },
];

/// Something is missing that this program cannot bring by itself; exit code 2.
#[derive(Debug)]
pub(crate) struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

impl Need {
    /// True when it is here, in a version that serves.
    pub(crate) fn is_met(&self) -> bool {
        if self.what == "qemu-system-aarch64" {
            return qemu_version().is_some_and(|v| major(&v).is_some_and(|m| m >= OLDEST_QEMU));
        }
        match self.what.starts_with('/') {
            // Distributions other than Debian keep headers elsewhere too: ask the compiler.
            true => Path::new(self.what).exists(),
            false => find_program(self.what).is_some(),
        }
    }
}

/// Version of the QEMU on the path, such as `10.0.2`.
pub(crate) fn qemu_version() -> Option<String> {
    let text = output(Command::new("qemu-system-aarch64").arg("--version")).ok()?;
    let word = text.split_whitespace().skip_while(|w| *w != "version").nth(1)?;
    Some(word.trim_end_matches(',').to_owned())
}

/// Leading number of a version, after Debian's epoch.
fn major(version: &str) -> Option<u32> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split('.').next()?.parse().ok()
}

/// Brings what is missing. Says one line when everything is here.
///
/// # Errors
///
/// [`Missing`] with the exact names where packages cannot be installed; else the step that failed.
pub(crate) fn run(project: &Project) -> Result<()> {
    let debian = Debian::detect();
    tools(project, debian.as_ref())?;
    let toolchain = rust(project, debian.as_ref())?;
    firmware::setup(project, debian.as_ref())?;
    let kernel = guest::setup(project, debian.as_ref())?;
    eprintln!(
        "setup: QEMU {}, {}, firmware {}, guest kernel {kernel}",
        qemu_version().unwrap_or_default(),
        toolchain.version()?,
        firmware::version(project)?,
    );
    Ok(())
}

fn tools(project: &Project, debian: Option<&Debian>) -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let Some(debian) = debian.filter(|_| debian::is_root()) else {
        return Err(missing_tools(&missing, debian).into());
    };
    let apt = debian.host_apt(project)?;
    let (qemu, others): (Vec<&str>, Vec<&str>) =
        missing.iter().map(|need| need.package).partition(|p| *p == "qemu-system-arm");
    if !others.is_empty() {
        apt.install(&others, None)?;
    }
    for package in qemu {
        let candidate = apt.candidate(package)?.unwrap_or_default();
        let new_enough = major(&candidate).is_some_and(|m| m >= OLDEST_QEMU);
        let backports = format!("{}-backports", debian.codename);
        apt.install(&[package], (!new_enough).then_some(backports.as_str()))?;
    }
    match NEEDS.iter().find(|need| !need.is_met()) {
        Some(need) => bail!("{} was installed and {} is still missing", need.package, need.what),
        None => Ok(()),
    }
}

/// Says what to install, by the names that this machine's user can use.
fn missing_tools(missing: &[&Need], debian: Option<&Debian>) -> Missing {
    let mut text = String::from("this machine lacks:\n");
    for need in missing {
        text += &format!("  {:<28} {}\n", need.what, need.purpose);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    match debian {
        Some(debian) => {
            text += &format!("run ./x setup as root, or\n  apt-get install {}", packages.join(" "));
            if debian.codename == "bookworm" && packages.contains(&"qemu-system-arm") {
                text += "\n(qemu-system-arm from bookworm-backports)";
            }
        }
        None => {
            text += &format!("install them; Debian's packages are\n  {}", packages.join(" "));
        }
    }
    Missing(text)
}

fn rust(project: &Project, debian: Option<&Debian>) -> Result<Toolchain> {
    let root_debian = debian.filter(|_| debian::is_root());
    let toolchain = match Toolchain::find() {
        Some(toolchain) => toolchain,
        None if Toolchain::add_with_rustup(project) => Toolchain::Native,
        None => {
            let Some(debian) = root_debian else {
                return Err(missing_rust(debian).into());
            };
            debian.host_apt(project)?.install(DISTRIBUTION_PACKAGES, None)?;
            crate::toolchain::require()?
        }
    };
    // Lints and formatting are checked where they can be had; `test` says so where not.
    if let Some(debian) = root_debian {
        let mut extra = Vec::new();
        if !toolchain.has_clippy() || !host_has("clippy") {
            extra.push("rust-web-clippy");
        }
        if !host_has("fmt") {
            extra.push("rustfmt-web");
        }
        if !extra.is_empty()
            && let Err(error) = debian.host_apt(project)?.install(&extra, None)
        {
            eprintln!("  {}: not to be had, checks are skipped ({error:.80})", extra.join(" "));
        }
    }
    Ok(toolchain)
}

fn missing_rust(debian: Option<&Debian>) -> Missing {
    let packages = DISTRIBUTION_PACKAGES.join(" ");
    Missing(match debian {
        Some(_) => format!(
            "no Rust for {TARGET}: run `rustup target add {TARGET}`, or as root\n  \
             apt-get install {packages}"
        ),
        None => format!("no Rust for {TARGET}: run `rustup target add {TARGET}`"),
    })
}

/// For the parts that come from Debian's archive: the machine as a Debian, or what to do instead.
pub(crate) fn require_debian<'a>(
    debian: Option<&'a Debian>,
    what: &str,
    file: &Path,
) -> Result<&'a Debian> {
    debian.ok_or_else(|| {
        Missing(format!(
            "{what} is taken from Debian's archive, which this machine does not use: \
             put it at {} by hand",
            file.display()
        ))
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn versions_with_and_without_an_epoch() {
        assert_eq!(major("10.0.2"), Some(10));
        assert_eq!(major("1:7.2+dfsg-7+deb12u18"), Some(7));
        assert_eq!(major(""), None);
    }
}
