//! The Linux guest: Debian's arm64 cloud kernel, unpacked, and an initial RAM file system made of
//! Debian's static busybox, the kernel's modules for virtio devices, and a script. And U-Boot.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};

use crate::cpio::Archive;
use crate::debian::{Apt, Debian, GUEST_SUITE, recreate};
use crate::process::{output, write_atomically};
use crate::project::Project;
use crate::setup::require_debian;

/// What runs as process 1 in the guest.
const INIT: &str = include_str!("init.sh");

/// Commands of busybox that [`INIT`] uses, and some for whoever types in its shell.
const APPLETS: &[&str] = &[
    "sh",
    "mount",
    "cat",
    "grep",
    "uname",
    "sleep",
    "poweroff",
    "reboot",
    "setsid",
    "ls",
    "ps",
    "dmesg",
    "vi",
    "insmod",
    "awk",
    "cmp",
    "dd",
    "md5sum",
    "mkdir",
    "taskset",
    "tee",
    "umount",
    "wc",
    "ip",
    "ping",
    "nc",
    "head",
    "sha256sum",
    "watchdog",
];

/// What [`INIT`] runs when it is told to.
const SELF_TEST: &str = include_str!("selftest.sh");
/// What [`INIT`] runs to try the network.
const NET_TEST: &str = include_str!("nettest.sh");

/// Modules of the kernel, each behind those that it needs: [`INIT`] loads them in this order.
const MODULES: &[&str] = &[
    "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/virtio-rng",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/watchdog/arm_smc_wdt",
];

/// The guest kernel, a raw arm64 `Image`.
pub(crate) fn kernel(project: &Project) -> PathBuf {
    project.setup_dir().join("guest/Image")
}

/// The initial RAM file system, gzip-compressed.
pub(crate) fn initramfs(project: &Project) -> PathBuf {
    project.setup_dir().join("guest/initramfs.cpio.gz")
}

/// U-Boot for QEMU's `virt` machine, to be entered at its first byte.
pub(crate) fn u_boot(project: &Project) -> PathBuf {
    project.setup_dir().join("guest/u-boot.bin")
}

/// Folder of the modules, unpacked. Not there for a kernel that was placed by hand.
fn modules(project: &Project) -> PathBuf {
    project.setup_dir().join("guest/modules")
}

fn busybox(project: &Project) -> PathBuf {
    project.setup_dir().join("guest/busybox")
}

/// Brings kernel and busybox if they are missing and writes the initial RAM file system. Returns
/// the kernel's version.
pub(crate) fn setup(project: &Project, debian: Option<&Debian>) -> Result<String> {
    let folder = project.setup_dir().join("guest");
    let version_file = folder.join("kernel-version");
    fs::create_dir_all(&folder)?;
    let module_is_missing =
        MODULES.iter().any(|module| !module_file(&modules(project), module).exists());
    let without_modules = version_file.exists() && module_is_missing;
    if !kernel(project).exists() || without_modules {
        let debian = require_debian(debian, "the guest kernel", &kernel(project))?;
        let apt = debian.guest_apt(project)?;
        let package = kernel_package(&apt)?;
        let (unpacked, version) = apt.unpack(&package, &folder)?;
        let image = find_image(&unpacked)?;
        setup_modules(project, &apt, &package, &version)?;
        write_atomically(&version_file, version.as_bytes())?;
        write_atomically(&kernel(project), &fs::read(image)?)?;
        fs::remove_dir_all(unpacked)?;
    }
    if !busybox(project).exists() {
        let debian = require_debian(debian, "busybox for arm64", &busybox(project))?;
        let (unpacked, _) = debian.guest_apt(project)?.unpack("busybox-static", &folder)?;
        let program = ["usr/bin/busybox", "bin/busybox"]
            .map(|p| unpacked.join(p))
            .into_iter()
            .find(|p| p.exists())
            .context("busybox-static holds no busybox")?;
        write_atomically(&busybox(project), &fs::read(program)?)?;
        fs::remove_dir_all(unpacked)?;
    }
    setup_u_boot(project, debian)?;
    write_initramfs(project)?;
    version(project).context("the guest kernel vanished")
}

/// Brings U-Boot where Debian's archive is at hand; elsewhere its scenarios find no image.
fn setup_u_boot(project: &Project, debian: Option<&Debian>) -> Result<()> {
    let Some(debian) = debian.filter(|_| !u_boot(project).exists()) else { return Ok(()) };
    let folder = project.setup_dir().join("guest");
    let (unpacked, _) = debian.guest_apt(project)?.unpack("u-boot-qemu", &folder)?;
    let program = unpacked.join("usr/lib/u-boot/qemu_arm64/u-boot.bin");
    let program = fs::read(program).context("u-boot-qemu holds no U-Boot for arm64")?;
    write_atomically(&u_boot(project), &program)?;
    fs::remove_dir_all(unpacked)?;
    Ok(())
}

/// Version of the guest kernel that is here.
pub(crate) fn version(project: &Project) -> Option<String> {
    let file = kernel(project).with_file_name("kernel-version");
    let placed_by_hand = || kernel(project).exists().then(|| "placed by hand".to_owned());
    fs::read_to_string(file).ok().or_else(placed_by_hand)
}

/// Follows the dependencies from the package that always names the newest kernel to the one that
/// holds it.
fn kernel_package(apt: &Apt) -> Result<String> {
    let mut package = format!("linux-image-cloud-arm64/{GUEST_SUITE}-backports");
    for _ in 0..3 {
        let name = package.split('/').next().unwrap_or_default();
        let dependencies = apt.dependencies(&package)?;
        let next = dependencies.into_iter().find(|d| {
            d != name
                && d.ends_with("-cloud-arm64")
                && ["linux-binary-", "linux-image-"].iter().any(|prefix| d.starts_with(prefix))
        });
        match next {
            Some(next) => package = next,
            None => break,
        }
    }
    if package.contains('/') {
        bail!("linux-image-cloud-arm64 depends on no kernel package");
    }
    Ok(package)
}

/// Brings the modules that belong to the kernel of `package`.
fn setup_modules(project: &Project, apt: &Apt, package: &str, kernel_version: &str) -> Result<()> {
    let folder = modules(project);
    let kernel = package.trim_start_matches("linux-binary-").trim_start_matches("linux-image-");
    let (unpacked, version) =
        apt.unpack(&format!("linux-modules-{kernel}"), &folder.with_extension("package"))?;
    if version != kernel_version {
        bail!("the kernel is {kernel_version}, its modules are {version}");
    }
    let root = unpacked.join("usr/lib/modules").join(kernel).join("kernel");
    recreate(&folder)?;
    for module in MODULES {
        let packed = root.join(module).with_extension("ko.xz");
        output(Command::new("xz").arg("--decompress").arg(&packed))?;
        fs::copy(packed.with_extension(""), module_file(&folder, module))
            .with_context(|| format!("no module {module}"))?;
    }
    fs::remove_dir_all(folder.with_extension("package"))?;
    Ok(())
}

/// Where the module at that path of the kernel lies in `folder`.
fn module_file(folder: &Path, module: &str) -> PathBuf {
    let name = module.rsplit('/').next().unwrap_or(module);
    folder.join(name).with_extension("ko")
}

/// The kernel in an unpacked package: below `usr/lib/modules`, or in `boot` in older packages.
fn find_image(root: &Path) -> Result<PathBuf> {
    let modules = fs::read_dir(root.join("usr/lib/modules")).into_iter().flatten();
    let mut places: Vec<PathBuf> =
        modules.filter_map(|e| Some(e.ok()?.path().join("vmlinuz"))).collect();
    let boot = fs::read_dir(root.join("boot")).into_iter().flatten();
    places.extend(boot.filter_map(|e| Some(e.ok()?.path())));
    places
        .into_iter()
        .find(|p| p.is_file() && p.to_string_lossy().contains("vmlinuz"))
        .with_context(|| format!("no kernel below {}", root.display()))
}

/// Writes the archive again whenever busybox, the modules or a script changed.
fn write_initramfs(project: &Project) -> Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "lib", "proc", "sys", "lib/modules"] {
        archive.directory(folder);
    }
    // The kernel opens it for process 1 before the script can mount anything.
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &fs::read(busybox(project))?);
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    if modules(project).exists() {
        let mut order = String::new();
        for module in MODULES {
            let file = module_file(&modules(project), module);
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("lib/modules/{name}"), 0o644, &fs::read(&file)?);
            order += &format!("{name}\n");
        }
        archive.file("lib/modules/order", 0o644, order.as_bytes());
    }
    archive.file("bin/selftest", 0o755, SELF_TEST.as_bytes());
    archive.file("bin/nettest", 0o755, NET_TEST.as_bytes());
    archive.file("init", 0o755, INIT.as_bytes());
    // No time stamp: the measurement of a realm that carries this archive must repeat.
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(&archive.finish())?;
    let bytes = gzip.finish()?;
    if fs::read(initramfs(project)).ok().as_deref() != Some(bytes.as_slice()) {
        write_atomically(&initramfs(project), &bytes)?;
    }
    Ok(())
}
