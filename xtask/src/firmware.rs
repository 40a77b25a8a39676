//! EL3 firmware: Debian's source of Trusted Firmware-A, built for QEMU's `virt` machine with RME.
//!
//! The firmware is built once with its test payload in the place of an RMM. A flash image with
//! another RMM differs only in the image package, whose entry is replaced.
//!
//! An RMM that speaks RMI 2.0 needs more of EL3 than this release gives: see [`TO_INTERFACE_2_0`].
//! The runtime firmware (BL31) is built a second time with that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

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

/// Changes to the source after which EL3 speaks RMM-EL3 interface 2.0 as far as RMI 2.0 needs it:
/// all function identifiers of 2.0 are forwarded, `ICH_HCR_EL2` and `ICH_VMCR_EL2` stay as they are
/// when the world changes, so that host and RMM share the virtual CPU interface, and x0 to x7 are
/// returned. Each is a file, a text that is in it once, and what takes its place.
const TO_INTERFACE_2_0: [(&str, &str, &str); 6] = [
    ("include/services/rmmd_svc.h", "_IFC_VERSION_MAJOR\t(U(0))", "_IFC_VERSION_MAJOR\t(U(2))"),
    ("include/services/rmmd_svc.h", "_IFC_VERSION_MINOR\t(U(4))", "_IFC_VERSION_MINOR\t(U(0))"),
    ("include/services/rmmd_svc.h", "RMI_FNUM_MAX_VALUE\tU(0x18F)", "RMI_FNUM_MAX_VALUE\tU(0x2CF)"),
    (
        "lib/el3_runtime/aarch64/context_mgmt.c",
        "write_ich_hcr_el2(read_el2_ctx_common(ctx, ich_hcr_el2));",
        "",
    ),
    (
        "lib/el3_runtime/aarch64/context_mgmt.c",
        "write_ich_vmcr_el2(read_el2_ctx_common(ctx, ich_vmcr_el2));",
        "",
    ),
    (
        "services/std_svc/rmmd/rmmd_main.c",
        "SMC_RET5(ctx, x0, x1, x2, x3, x4);",
        "SMC_RET8(ctx, x0, x1, x2, x3, x4, SMC_GET_GP(handle, CTX_GPREG_X6), \
         SMC_GET_GP(handle, CTX_GPREG_X7), SMC_GET_GP(handle, CTX_GPREG_X8));",
    ),
];

/// The version of the interface between EL3 and RMM, by which the reference RMM chooses the version
/// of RMI that it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interface {
    /// 0.4, as released: RMI 1.0.
    V0_4,
    /// 2.0: RMI 2.0.
    V2_0,
}

/// The RMM that a flash image carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rmm<'a> {
    /// An RMM image.
    Image(&'a Path, Interface),
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
    setup_released(project, debian)?;
    setup_interface_2_0(project)
}

/// The firmware as it is released.
fn setup_released(project: &Project, debian: Option<&Debian>) -> Result<()> {
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
    let log = "setup-firmware.log";
    make(
        project,
        "building the EL3 firmware",
        ("source", "build"),
        &version,
        &["all", "fip"],
        log,
    )?;
    write_atomically(&folder.join("version"), version.as_bytes())?;
    write_atomically(&stamp, wanted.as_bytes())
}

/// The runtime firmware with [`TO_INTERFACE_2_0`], from a copy of the source.
fn setup_interface_2_0(project: &Project) -> Result<()> {
    let folder = folder(project);
    let version = version(project)?;
    let stamp = folder.join("options-2.0");
    let wanted = format!("{version}\n{}\n{TO_INTERFACE_2_0:?}", options().join("\n"));
    if fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
        return Ok(());
    }
    let source = folder.join("source-2.0");
    recreate(&source)?;
    output(Command::new("cp").arg("-r").arg(folder.join("source/.")).arg(&source))?;
    for (file, from, to) in TO_INTERFACE_2_0 {
        let file = source.join(file);
        let text = fs::read_to_string(&file)?;
        ensure!(text.matches(from).count() == 1, "{} does not have once: {from}", file.display());
        write_atomically(&file, text.replace(from, to).as_bytes())?;
    }
    let what = "building the EL3 firmware for RMI 2.0";
    let log = "setup-firmware-2.0.log";
    make(project, what, ("source-2.0", "build-2.0"), &version, &["bl31"], log)?;
    write_atomically(&stamp, wanted.as_bytes())
}

/// Builds `targets` of the source in a folder into another one.
fn make(
    project: &Project,
    what: &str,
    (source, build): (&str, &str),
    version: &str,
    targets: &[&str],
    log: &str,
) -> Result<()> {
    let source = folder(project).join(source);
    let build = folder(project).join(build);
    recreate(&build)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    step(
        what,
        Command::new("make")
            .arg("-C")
            .arg(&source)
            .arg(format!("-j{cores}"))
            .args(options())
            // The same source gives the same image: no time, and not this checkout's revision.
            .arg(format!("BUILD_STRING={version}"))
            .arg("BUILD_MESSAGE_TIMESTAMP=\"from Debian\"")
            .arg(format!("BUILD_BASE={}", build.display()))
            .args(targets),
        &project.logs_dir().join(log),
    )
}

/// Writes a flash image with that RMM and returns its path.
pub(crate) fn flash(project: &Project, rmm: Rmm<'_>) -> Result<PathBuf> {
    let built = built(project);
    let name = match rmm {
        Rmm::Image(_, Interface::V0_4) => "flash.bin",
        Rmm::Image(_, Interface::V2_0) => "flash-rmi-2.bin",
        Rmm::TestPayload => "flash-test-payload.bin",
        Rmm::Failing => "flash-no-rmm.bin",
    };
    let path = project.images_dir().join(name);
    fs::create_dir_all(project.images_dir())?;
    let mut package = built.join("fip.bin");
    let failing = project.images_dir().join("failing-rmm.bin");
    let image = match rmm {
        Rmm::Image(image, _) => Some(image),
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
        let mut update = Command::new(tool);
        update.arg("update").arg("--rmm-fw").arg(image);
        if matches!(rmm, Rmm::Image(_, Interface::V2_0)) {
            let runtime = folder(project).join("build-2.0/qemu/release/bl31.bin");
            update.arg("--soc-fw").arg(runtime);
        }
        output(update.arg(&with_rmm))?;
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
