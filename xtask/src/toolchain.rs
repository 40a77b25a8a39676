//! Rust for bare-metal AArch64 without FP registers: rustup's if it has that target, else the distribution's
//! compiler with the core library built from its source package.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{output, step};
use crate::project::{Project, host_cargo};

/// The bare-metal target. Guests keep their floating-point state in the registers while the
/// hypervisor and the RMM run, so their code must never touch them.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

/// Packages that make up the distribution's toolchain for the target.
pub(crate) const DISTRIBUTION_PACKAGES: &[&str] =
    &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "lld"];

/// Oldest minor version of Rust 1 that the workspace builds with (`rust-version`).
const OLDEST_MINOR: u32 = 88;

/// Where the distribution's packages put their programs.
const DISTRIBUTION_BIN: &str = "/usr/bin";

/// A toolchain that builds for [`TARGET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// The toolchain that runs this program has the target's libraries.
    Native,
    /// The distribution's compiler and the source of the core library.
    Distribution,
}

impl Toolchain {
    /// The toolchain that is here already.
    pub(crate) fn find() -> Option<Self> {
        if has_target_libraries(&host_rustc()) {
            return Some(Self::Native);
        }
        let rustc = Path::new(DISTRIBUTION_BIN).join("rustc");
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"])).ok()?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        let complete = minor_version(&rustc)? >= OLDEST_MINOR
            && source.is_dir()
            && ["cargo", "ld.lld"].iter().all(|p| Path::new(DISTRIBUTION_BIN).join(p).is_file());
        complete.then_some(Self::Distribution)
    }

    /// Asks rustup for the target's libraries. False where there is no rustup or no network.
    pub(crate) fn add_with_rustup(project: &Project) -> bool {
        if crate::process::find_program("rustup").is_none() {
            return false;
        }
        let log = project.logs_dir().join("setup-rustup.log");
        let mut command = Command::new("rustup");
        step("rustup: libraries for the target", command.args(["target", "add", TARGET]), &log)
            .is_ok()
            && has_target_libraries(&host_rustc())
    }

    /// Version of the compiler, as it prints it.
    pub(crate) fn version(self) -> Result<String> {
        Ok(output(Command::new(self.rustc()).arg("--version"))?.trim().to_owned())
    }

    fn rustc(self) -> PathBuf {
        match self {
            Self::Native => host_rustc(),
            Self::Distribution => Path::new(DISTRIBUTION_BIN).join("rustc"),
        }
    }

    /// A cargo command (`build` or `clippy`) for the bare-metal target.
    ///
    /// Its output goes to a folder of its own, so that host builds by another compiler do not
    /// invalidate it.
    pub(crate) fn cargo(self, project: &Project, verb: &str) -> Command {
        let mut command = match self {
            Self::Native => Command::new(host_cargo()),
            Self::Distribution if verb == "clippy" => {
                Command::new(Path::new(DISTRIBUTION_BIN).join("cargo-clippy"))
            }
            Self::Distribution => Command::new(Path::new(DISTRIBUTION_BIN).join("cargo")),
        };
        command
            .current_dir(&project.root)
            .env("CARGO_TARGET_DIR", project.target.join("bare"))
            .args([verb, "--release", "--target", TARGET]);
        if self == Self::Distribution {
            command
                .env_remove("RUSTUP_TOOLCHAIN")
                .env("RUSTC", self.rustc())
                .env("CARGO", Path::new(DISTRIBUTION_BIN).join("cargo"))
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["-Zbuild-std=core,compiler_builtins"])
                .args(["-Zbuild-std-features=compiler-builtins-mem"])
                .args(["--config", &format!("target.{TARGET}.linker='ld.lld'")])
                .args([
                    "--config",
                    &format!("target.{TARGET}.rustflags=['-Clinker-flavor=ld.lld']"),
                ]);
        }
        command
    }

    /// True when this toolchain can lint for the target.
    pub(crate) fn has_clippy(self) -> bool {
        match self {
            Self::Native => host_has("clippy"),
            Self::Distribution => Path::new(DISTRIBUTION_BIN).join("cargo-clippy").is_file(),
        }
    }
}

/// True when the host toolchain has that cargo subcommand.
pub(crate) fn host_has(subcommand: &str) -> bool {
    output(Command::new(host_cargo()).args([subcommand, "--version"])).is_ok()
}

/// The compiler that belongs to the cargo that started this program.
fn host_rustc() -> PathBuf {
    let beside = host_cargo().with_file_name("rustc");
    if beside.is_file() { beside } else { PathBuf::from("rustc") }
}

fn has_target_libraries(rustc: &Path) -> bool {
    let query = ["--print", "target-libdir", "--target", TARGET];
    output(Command::new(rustc).args(query)).is_ok_and(|path| Path::new(path.trim()).is_dir())
}

fn minor_version(rustc: &Path) -> Option<u32> {
    let text = output(Command::new(rustc).arg("--version")).ok()?;
    text.split_whitespace().nth(1)?.split('.').nth(1)?.parse().ok()
}

/// The toolchain, or an error that says how to get it.
pub(crate) fn require() -> Result<Toolchain> {
    match Toolchain::find() {
        Some(toolchain) => Ok(toolchain),
        None => bail!("no Rust for {TARGET} here: run ./x setup"),
    }
}
