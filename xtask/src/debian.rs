//! Packages of the Debian archive, by name, through apt and its signed lists.
//!
//! Two private apt states lie under `target/setup`: one for this machine's own architecture, whose
//! packages are installed, and one for arm64, whose packages are only unpacked. The machine's own
//! package sources are read to learn its mirror and never changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{output, step};
use crate::project::Project;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The suite that guest images and firmware sources come from, whatever the machine runs.
pub(crate) const GUEST_SUITE: &str = "trixie";

/// A Debian machine.
#[derive(Debug)]
pub(crate) struct Debian {
    /// Name of the release, such as `bookworm`.
    pub(crate) codename: String,
    /// URI of the main archive that the machine uses.
    archive: String,
    /// URI of the security archive.
    security: String,
}

/// A private apt state: its own sources, lists and download folder.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
    log: PathBuf,
    options: Vec<String>,
}

/// A value of `/etc/os-release`.
pub(crate) fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// True when this process may install packages.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

impl Debian {
    /// This machine, if it is a Debian 12 or 13.
    pub(crate) fn detect() -> Option<Self> {
        if os_release("ID")? != "debian" {
            return None;
        }
        let codename = os_release("VERSION_CODENAME")?;
        if !["bookworm", "trixie"].contains(&codename.as_str()) {
            return None;
        }
        let targets = output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
        ]))
        .ok()?;
        let (archive, security) = mirrors(&targets, &codename)?;
        Some(Self { codename, archive, security })
    }

    /// The state whose packages are installed on this machine: its release with security updates
    /// and backports.
    pub(crate) fn host_apt(&self, project: &Project) -> Result<Apt> {
        let Self { codename, archive, security } = self;
        let sources = format!(
            "Types: deb\nURIs: {archive}\nSuites: {codename} {codename}-updates \
             {codename}-backports\nComponents: main\nSigned-By: {KEYRING}\n\n\
             Types: deb\nURIs: {security}\nSuites: {codename}-security\nComponents: main\n\
             Signed-By: {KEYRING}\n"
        );
        Apt::create(project, "apt-host", &sources, None)
    }

    /// The state for arm64 guests and for source packages.
    pub(crate) fn guest_apt(&self, project: &Project) -> Result<Apt> {
        let sources = format!(
            "Types: deb deb-src\nURIs: {}\nSuites: {GUEST_SUITE} {GUEST_SUITE}-backports\n\
             Components: main\nSigned-By: {KEYRING}\n",
            self.archive
        );
        Apt::create(project, "apt-guest", &sources, Some("arm64"))
    }
}

/// The main and the security archive among lines of `URI RELEASE`.
///
/// A machine without a security archive gets the one that lies beside its main archive.
fn mirrors(targets: &str, codename: &str) -> Option<(String, String)> {
    let find = |wanted: &str| {
        targets.lines().find_map(|line| {
            let (uri, release) = line.rsplit_once(' ')?;
            (release == wanted).then(|| uri.trim_end_matches('/').to_owned())
        })
    };
    let archive = find(codename)?;
    let security = find(&format!("{codename}-security"));
    let beside = format!("{archive}-security");
    Some((archive, security.unwrap_or(beside)))
}

impl Apt {
    fn create(project: &Project, name: &str, sources: &str, arch: Option<&str>) -> Result<Self> {
        let folder = project.setup_dir().join(name);
        for sub in ["sources", "lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let path = |sub: &str| folder.join(sub).display().to_string();
        let mut options = vec![
            "Dir::Etc::SourceList=/dev/null".to_owned(),
            format!("Dir::Etc::SourceParts={}", path("sources")),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::Cache::Archives={}", path("archives")),
            // Two states must not share the cache of parsed lists.
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // The unprivileged download user cannot enter a checkout in a home directory.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Dpkg::Use-Pty=0".to_owned(),
        ];
        if let Some(arch) = arch {
            // A foreign architecture must not see what is installed here.
            let status = folder.join("status");
            if !status.exists() {
                fs::write(&status, "")?;
            }
            options.push(format!("Dir::State::status={}", status.display()));
            options.push(format!("APT::Architecture={arch}"));
            options.push(format!("APT::Architectures={arch}"));
        }
        let file = folder.join("sources/debian.sources");
        if fs::read_to_string(&file).ok().as_deref() != Some(sources) {
            fs::write(&file, sources)?;
            // Lists of other sources are of no use.
            let _ = fs::remove_file(folder.join("updated"));
        }
        Ok(Self { log: project.logs_dir().join(format!("setup-{name}.log")), folder, options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Brings the package lists, unless they are here already and `again` is not set.
    fn update(&self, again: bool) -> Result<()> {
        let stamp = self.folder.join("updated");
        if stamp.exists() && !again {
            return Ok(());
        }
        step("package lists", self.command("apt-get").args(["-q", "update"]), &self.log)?;
        fs::write(stamp, "")?;
        Ok(())
    }

    /// Runs an apt-get verb; when it fails, once more with fresh lists, as a listed version may
    /// have left the archive.
    fn apt_get(&self, what: &str, arguments: &[&str], folder: &Path) -> Result<()> {
        self.update(false)?;
        let run = || {
            let mut command = self.command("apt-get");
            step(what, command.current_dir(folder).arg("-q").args(arguments), &self.log)
        };
        run().or_else(|_| {
            self.update(true)?;
            run()
        })
    }

    /// Installs packages and removes none.
    pub(crate) fn install(&self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        let mut arguments = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
        if let Some(suite) = suite {
            arguments.extend(["-t", suite]);
        }
        arguments.extend(packages);
        self.apt_get(&format!("installing {}", packages.join(" ")), &arguments, Path::new("/"))
    }

    /// Candidate version of a package of this state, if there is one.
    pub(crate) fn candidate(&self, package: &str) -> Result<Option<String>> {
        self.update(false)?;
        let text = output(self.command("apt-cache").args(["policy", package]))?;
        let version = text.lines().find_map(|l| l.trim().strip_prefix("Candidate: "));
        Ok(version.filter(|v| *v != "(none)").map(str::to_owned))
    }

    /// Unpacks a binary package into a folder below `into` and returns that folder and the
    /// version. A suite can be named after a slash, as in `linux-image-arm64/trixie-backports`.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<(PathBuf, String)> {
        let name = package.split('/').next().unwrap_or(package);
        let downloads = into.join(format!("{name}.download"));
        recreate(&downloads)?;
        self.apt_get(&format!("downloading {name}"), &["download", package], &downloads)?;
        let deb = only_file(&downloads, ".deb")?;
        let folder = into.join(name);
        recreate(&folder)?;
        output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&folder))?;
        let version = output(Command::new("dpkg-deb").arg("-f").arg(&deb).arg("Version"))?;
        fs::remove_dir_all(&downloads)?;
        Ok((folder, version.trim().to_owned()))
    }

    /// What a package depends on, by name.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        self.update(false)?;
        let text = output(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Depends: ")).unwrap_or_default();
        let names = line.split([',', '|']).filter_map(|d| d.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    }

    /// Downloads a source package and returns its upstream tarball and its version.
    pub(crate) fn source(&self, package: &str, into: &Path) -> Result<(PathBuf, String)> {
        recreate(into)?;
        let name = format!("{package}/{GUEST_SUITE}");
        self.apt_get(
            &format!("downloading the source of {package}"),
            &["source", "--download-only", &name],
            into,
        )?;
        let control = fs::read_to_string(only_file(into, ".dsc")?)?;
        let version = control
            .lines()
            .find_map(|l| l.strip_prefix("Version: "))
            .context("the source package names no version")?;
        Ok((only_file(into, ".orig.tar.xz")?, version.to_owned()))
    }
}

/// Makes an empty folder.
pub(crate) fn recreate(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {folder:?}"))
}

/// The one file of a folder whose name ends so.
fn only_file(folder: &Path, ending: &str) -> Result<PathBuf> {
    let mut found = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.to_string_lossy().ends_with(ending));
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => bail!("{} holds not exactly one *{ending}", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::mirrors;

    #[test]
    fn the_machines_own_mirrors_are_used() {
        let targets = "http://mirror.example/debian/ bookworm-backports\n\
                       http://mirror.example/debian/ bookworm\n\
                       http://sec.example/ds/ bookworm-security\n";
        let (archive, security) = mirrors(targets, "bookworm").unwrap();
        assert_eq!(archive, "http://mirror.example/debian");
        assert_eq!(security, "http://sec.example/ds");
    }

    #[test]
    fn the_security_archive_is_sought_beside_the_main_one() {
        let (_, security) = mirrors("http://mirror.example/debian/ trixie\n", "trixie").unwrap();
        assert_eq!(security, "http://mirror.example/debian-security");
        assert_eq!(mirrors("http://mirror.example/debian/ sid\n", "trixie"), None);
    }
}
