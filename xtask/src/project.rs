//! Where the checkout and its generated files are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The checkout that this program was built from, and the folder for everything it makes.
#[derive(Clone, Debug)]
pub(crate) struct Project {
    /// Root of the checkout.
    pub(crate) root: PathBuf,
    /// Cargo's target directory; nothing is ever written elsewhere in the checkout.
    pub(crate) target: PathBuf,
    /// Packages of the workspace.
    packages: Vec<Package>,
}

/// A package of the workspace.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

/// A build target of a package.
#[derive(Clone, Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The part of `cargo metadata` that is read.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

impl Package {
    /// Names of the package's binaries.
    pub(crate) fn bins(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().filter(|t| t.kind.iter().any(|k| k == "bin")).map(|t| t.name.as_str())
    }
}

impl Project {
    /// Asks cargo about the workspace that this program belongs to.
    pub(crate) fn locate() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
        let output = Command::new(host_cargo())
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest)
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Metadata =
            serde_json::from_slice(&output.stdout).context("cannot read cargo metadata")?;
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            packages: metadata.packages,
        })
    }

    /// The bare-metal guests: all packages below `tests/guests`.
    pub(crate) fn guests(&self) -> impl Iterator<Item = &Package> {
        let folder = self.root.join("tests/guests");
        self.packages.iter().filter(move |p| p.manifest_path.starts_with(&folder))
    }

    /// What `setup` downloads and builds, kept between runs.
    pub(crate) fn setup_dir(&self) -> PathBuf {
        self.target.join("setup")
    }

    /// Flat images and bundles.
    pub(crate) fn images_dir(&self) -> PathBuf {
        self.target.join("images")
    }

    /// Logs of tools and serial output of runs.
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.target.join("logs")
    }

    /// `path` relative to the checkout where it lies inside, for messages.
    pub(crate) fn show<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

/// The cargo that started this program, else the one on the path.
pub(crate) fn host_cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
