//! EL3 firmware: Debian's source of Trusted Firmware-A, built for QEMU's `virt` machine with RME.
//!
//! The firmware is built once with its test payload in the place of an RMM. A flash image with
//! another RMM differs only in the image package, whose entry is replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::debian::{Debian, recreate};
use crate::process::{output, step, write_atomically};
use crate::project::Project;
use crate::setup::require_debian;

const PACKAGE: &str = "arm-trusted-firmware";

/// Where the hypervisor is loaded before the firmware starts, and entered with the address of the
/// machine's device tree in `x0`.
pub(crate) const HYPERVISOR_BASE: u64 = 0x6000_0000;

/// Where the firmware's first stage looks for the image package in the flash.
const PACKAGE_OFFSET: usize = 256 << 10;

/// Size of the flash bank that holds first stage and package.
const FLASH_SIZE: usize = 64 << 20;

/// The RMM that a flash image carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rmm<'a> {
    /// An RMM image.
    Image(&'a Path),
    /// The firmware's own test payload, which delegates granules, knows no realms, and speaks a
    /// version of RMI that nothing else does.
    TestPayload,
    /// None that works: what is loaded tells EL3 that it could not start.
    Failing,
}

/// An RMM that tells EL3 at once that it cannot work; EL3 then answers all RMI calls itself.
const FAILING_RMM: [u32; 5] = [
    0xd280_39e0, // movz x0, #0x01cf
    0xf2b8_8000, // movk x0, #0xc400, lsl #16: RMM_BOOT_COMPLETE
    0x9280_0001, // movn x1, #0: -1, unknown error
    0xd400_0003, // smc #0
    0x1400_0000, // b .
];

fn folder(project: &Project) -> PathBuf {
    project.setup_dir().join("firmware")
}

/// What the build left, with `bl1.bin` and `fip.bin`.
fn built(project: &Project) -> PathBuf {
    folder(project).join("build/qemu/release")
}

/// Version of the source package that was built.
pub(crate) fn version(project: &Project) -> Result<String> {
    let file = folder(project).join("version");
    fs::read_to_string(&file).with_context(|| "the firmware is not built: run ./x setup")
}

/// Options of the firmware's build.
fn options() -> Vec<String> {
    vec![
        "PLAT=qemu".to_owned(),
        "CROSS_COMPILE=aarch64-linux-gnu-".to_owned(),
        "DEBUG=0".to_owned(),
        "ENABLE_RME=1".to_owned(),
        "QEMU_USE_GIC_DRIVER=QEMU_GICV3".to_owned(),
        "ARM_LINUX_KERNEL_AS_BL33=1".to_owned(),
        format!("PRELOADED_BL33_BASE={HYPERVISOR_BASE:#x}"),
    ]
}

/// Downloads and builds the firmware unless it was built with these options already.
pub(crate) fn setup(project: &Project, debian: Option<&Debian>) -> Result<()> {
    let folder = folder(project);
    let stamp = folder.join("options");
    let wanted = options().join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
        return Ok(());
    }
    let debian = require_debian(debian, "the EL3 firmware's source", &folder)?;
    let (tarball, version) =
        debian.guest_apt(project)?.source(PACKAGE, &folder.join("download"))?;
    let source = folder.join("source");
    recreate(&source)?;
    output(
        Command::new("tar")
            .arg("-xf")
            .arg(&tarball)
            .arg("-C")
            .arg(&source)
            .args(["--strip-components=1"]),
    )?;
    let build = folder.join("build");
    recreate(&build)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    step(
        "building the EL3 firmware",
        Command::new("make")
            .arg("-C")
            .arg(&source)
            .arg(format!("-j{cores}"))
            .args(options())
            // The same source gives the same image: no time, and not this checkout's revision.
            .arg(format!("BUILD_STRING={version}"))
            .arg("BUILD_MESSAGE_TIMESTAMP=\"from Debian\"")
            .arg(format!("BUILD_BASE={}", build.display()))
            .args(["all", "fip"]),
        &project.logs_dir().join("setup-firmware.log"),
    )?;
    write_atomically(&folder.join("version"), version.as_bytes())?;
    write_atomically(&stamp, wanted.as_bytes())
}

/// Writes a flash image with that RMM and returns its path.
pub(crate) fn flash(project: &Project, rmm: Rmm<'_>) -> Result<PathBuf> {
    let built = built(project);
    let name = match rmm {
        Rmm::Image(_) => "flash.bin",
        Rmm::TestPayload => "flash-test-payload.bin",
        Rmm::Failing => "flash-no-rmm.bin",
    };
    let path = project.images_dir().join(name);
    fs::create_dir_all(project.images_dir())?;
    let mut package = built.join("fip.bin");
    let failing = project.images_dir().join("failing-rmm.bin");
    let image = match rmm {
        Rmm::Image(image) => Some(image),
        Rmm::TestPayload => None,
        Rmm::Failing => {
            write_atomically(&failing, &FAILING_RMM.map(u32::to_le_bytes).concat())?;
            Some(failing.as_path())
        }
    };
    if let Some(image) = image {
        let with_rmm = project.images_dir().join("fip.bin");
        fs::copy(&package, &with_rmm).context("the firmware is not built: run ./x setup")?;
        let tool = folder(project).join("source/tools/fiptool/fiptool");
        output(Command::new(tool).arg("update").arg("--rmm-fw").arg(image).arg(&with_rmm))?;
        package = with_rmm;
    }
    let read = |file: &Path| fs::read(file).with_context(|| format!("cannot read {file:?}"));
    write_atomically(&path, &lay_out(&read(&built.join("bl1.bin"))?, &read(&package)?)?)?;
    Ok(path)
}

/// First stage at the start, image package behind it.
fn lay_out(first_stage: &[u8], package: &[u8]) -> Result<Vec<u8>> {
    if first_stage.len() > PACKAGE_OFFSET {
        bail!("the firmware's first stage is larger than {PACKAGE_OFFSET} bytes");
    }
    if PACKAGE_OFFSET + package.len() > FLASH_SIZE {
        bail!("the firmware's image package does not fit the flash of {FLASH_SIZE} bytes");
    }
    let mut flash = first_stage.to_vec();
    flash.resize(PACKAGE_OFFSET, 0xff);
    flash.extend(package);
    Ok(flash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_lies_where_the_first_stage_looks() {
        let flash = lay_out(b"one", b"two").unwrap();
        assert_eq!(&flash[..3], b"one");
        assert_eq!(&flash[PACKAGE_OFFSET..], b"two");
        assert!(lay_out(&vec![0; PACKAGE_OFFSET + 1], b"").is_err());
        assert!(lay_out(b"", &vec![0; FLASH_SIZE]).is_err());
    }
}
