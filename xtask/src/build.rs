//! `build`: everything that runs on the machine, as flat images under `target/images`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::elf::{Flat, flatten_file, is_arm64_image};
use crate::firmware::{self, Interface, Rmm};
use crate::process::{step, write_atomically};
use crate::project::Project;
use crate::toolchain::{self, TARGET};

/// The hypervisor's package and binary.
const HYPERVISOR: (&str, &str) = ("hyp", "suzerain");

/// Package and binary of the reference RMM's R-EL2 image.
const RMM: (&str, &str) = ("rmm-el2", "rmm-el2");

/// What a run needs.
#[derive(Debug)]
pub(crate) struct Images {
    /// The hypervisor as an arm64 `Image`.
    pub(crate) hypervisor: PathBuf,
    /// The hypervisor as the linker made it.
    pub(crate) hypervisor_elf: PathBuf,
    /// Bytes of memory that the hypervisor occupies, `.bss` and stacks included.
    pub(crate) hypervisor_memory: u64,
    /// Flash with EL3 firmware and the reference RMM, which speaks RMI 1.0.
    pub(crate) flash: PathBuf,
    /// The same with EL3 firmware for which the reference RMM speaks RMI 2.0.
    pub(crate) flash_rmi_2: PathBuf,
    /// Flash with EL3 firmware and no RMM that works.
    pub(crate) flash_without_rmm: PathBuf,
    /// Flash with EL3 firmware and its test payload, which speaks RMI 0.0.
    pub(crate) flash_unknown_rmm: PathBuf,
}

/// Builds hypervisor, guests, reference RMM and flash images.
pub(crate) fn run(project: &Project) -> Result<Images> {
    let start = Instant::now();
    // One call each, so that no package gets features that another asks for.
    let mut bins = Vec::new();
    for (package, bin) in [HYPERVISOR, RMM] {
        bins.push((bin, cargo(project, &[package])?));
    }
    let guests: Vec<_> = project.guests().filter(|p| p.bins().next().is_some()).collect();
    let names: Vec<&str> = guests.iter().map(|p| p.name.as_str()).collect();
    let folder = cargo(project, &names)?;
    bins.extend(guests.iter().flat_map(|p| p.bins()).map(|bin| (bin, folder.clone())));
    let mut hypervisor = (PathBuf::new(), 0);
    for (bin, folder) in bins {
        let elf = folder.join(bin);
        let flat = flatten_file(&elf)?;
        write_atomically(&image(project, bin), &flat.bytes)?;
        eprintln!("  {bin}: {flat}");
        check_kind(bin, &flat)?;
        if bin == HYPERVISOR.1 {
            hypervisor = (elf, flat.memory);
        }
    }
    let rmm_image = image(project, RMM.1);
    let images = Images {
        hypervisor: image(project, HYPERVISOR.1),
        hypervisor_elf: hypervisor.0,
        hypervisor_memory: hypervisor.1,
        flash: firmware::flash(project, Rmm::Image(&rmm_image, Interface::V0_4))?,
        flash_rmi_2: firmware::flash(project, Rmm::Image(&rmm_image, Interface::V2_0))?,
        flash_without_rmm: firmware::flash(project, Rmm::Failing)?,
        flash_unknown_rmm: firmware::flash(project, Rmm::TestPayload)?,
    };
    eprintln!("build: done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(images)
}

/// The flat image of a binary.
fn image(project: &Project, bin: &str) -> PathBuf {
    project.images_dir().join(bin).with_extension("bin")
}

/// Builds packages for the bare-metal target and returns the folder with their ELF files.
fn cargo(project: &Project, packages: &[&str]) -> Result<PathBuf> {
    let mut command = toolchain::require()?.cargo(project, "build");
    for package in packages {
        command.args(["--package", package]);
    }
    let log = project.logs_dir().join(format!("build-{}.log", packages.join("-")));
    step(&format!("building {}", packages.join(" ")), &mut command, &log)?;
    let folder = project.target.join("bare").join(TARGET).join("release");
    fs::metadata(&folder).with_context(|| format!("cargo left nothing in {folder:?}"))?;
    Ok(folder)
}

/// Boot loaders start the hypervisor as if it were Linux.
fn check_kind(bin: &str, flat: &Flat) -> Result<()> {
    if bin == HYPERVISOR.1 && !is_arm64_image(&flat.bytes) {
        bail!("{bin} does not begin with the header of an arm64 Image");
    }
    Ok(())
}
