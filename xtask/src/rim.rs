//! `rim`: the measurement that a realm will have, from the files of its scenario alone.

mod corim;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use realm_plan::RealmPlan;
use serde::Serialize;
use sha2::{Digest, Sha256};
use vmm_services::loader::{self, FDT_MAX};
use vmm_services::manifest::{Bundle, HashAlgorithm, VmSpec};

/// A VMID, which a plan needs and no measurement contains.
const ANY_VMID: u16 = 1;

/// How `./x rim` writes measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line for each realm: its name and its RIM
    #[default]
    Text,
    /// All that is known of each realm, and of the images that it is made of
    Json,
    /// An unsigned CoRIM with reference values by Arm's profile for realms, in CBOR
    Corim,
}

/// What a verifier can be told beforehand about the realms of a scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Measurements {
    scenario: String,
    /// Version of the RMI by which the realms are built: it decides what is measured.
    rmi: &'static str,
    realms: Vec<Measurement>,
}

/// What a verifier can be told beforehand about one realm.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Measurement {
    pub(crate) name: String,
    /// As attestation tokens name it.
    hash_algorithm: &'static str,
    /// Realm initial measurement, as long as the digests of the algorithm are.
    #[serde(serialize_with = "as_hex")]
    pub(crate) rim: Vec<u8>,
    /// Realm personalization value: 64 bytes, in the token but not in the RIM.
    #[serde(serialize_with = "as_hex")]
    rpv: Vec<u8>,
    /// What is measured, as it is in the bundle.
    images: Vec<Image>,
}

/// A file of the bundle, or what the bundle tool has generated from the scenario.
#[derive(Debug, Serialize)]
struct Image {
    role: &'static str,
    bytes: usize,
    #[serde(serialize_with = "as_hex")]
    sha256: Vec<u8>,
}

impl Image {
    fn new(role: &'static str, bytes: &[u8]) -> Self {
        Self { role, bytes: bytes.len(), sha256: Sha256::digest(bytes).to_vec() }
    }
}

impl Measurements {
    /// Computes the measurements of a bundle's realms, or of the one named `only`. RMI 1.x measures the
    /// initial RIPAS and has no SHA-384, with RMI 2.0 it is the other way round.
    ///
    /// # Errors
    ///
    /// There is no such realm, or no RMM of that version can have it.
    pub(crate) fn of_bundle(bundle: &[u8], only: Option<&str>, rmi_2: bool) -> Result<Self> {
        let bundle = Bundle::parse(bundle).map_err(|e| anyhow!("{e}"))?;
        let wanted = |vm: &&VmSpec<'_>| vm.realm().is_some() && only.is_none_or(|o| o == vm.name);
        let realms: Vec<_> = bundle
            .vms
            .iter()
            .filter(wanted)
            .map(|vm| {
                Measurement::of_realm(vm, &bundle, rmi_2)
                    .with_context(|| format!("realm {}", vm.name))
            })
            .collect::<Result<_>>()?;
        if realms.is_empty() {
            bail!("the scenario has no realm{}", only.map(|o| format!(" {o}")).unwrap_or_default());
        }
        let rmi = if rmi_2 { "2.0" } else { "1.0" };
        Ok(Self { scenario: bundle.scenario.to_owned(), rmi, realms })
    }

    /// The realm of this name.
    pub(crate) fn realm(&self, name: &str) -> Option<&Measurement> {
        self.realms.iter().find(|realm| realm.name == name)
    }

    fn encode(&self, format: Format) -> Result<Vec<u8>> {
        Ok(match format {
            Format::Text => {
                let line = |realm: &Measurement| format!("{} {}\n", realm.name, realm.rim_hex());
                self.realms.iter().map(line).collect::<String>().into_bytes()
            }
            Format::Json => {
                let mut json = serde_json::to_vec_pretty(self)?;
                json.push(b'\n');
                json
            }
            Format::Corim => corim::encode(self),
        })
    }

    /// Writes the measurements to a file, or to the standard output.
    pub(crate) fn write(&self, format: Format, output: Option<&Path>) -> Result<()> {
        let bytes = self.encode(format)?;
        if let Some(path) = output {
            return fs::write(path, bytes)
                .with_context(|| format!("cannot write {}", path.display()));
        }
        let mut stdout = io::stdout().lock();
        ensure!(
            format != Format::Corim || !stdout.is_terminal(),
            "a CoRIM is no text for a terminal: give it a file with -o"
        );
        Ok(stdout.write_all(&bytes)?)
    }
}

impl Measurement {
    fn of_realm(vm: &VmSpec<'_>, bundle: &Bundle<'_>, rmi_2: bool) -> Result<Self> {
        let realm = vm.realm().context("it is no realm")?;
        if realm.hash == HashAlgorithm::Sha384 && !rmi_2 {
            bail!("SHA-384 needs an RMM that speaks RMI 2.0 (--rmi-2)");
        }
        let mut fdt = vec![0; FDT_MAX];
        let load = loader::plan(vm, bundle, None, &mut fdt)?;
        let plan = RealmPlan::new(vm, &load, ANY_VMID)?;
        let rim = plan.as_build_plan().rim(!rmi_2, |segment, page, buffer| {
            let ipa = plan.page_address(segment, page).context("a page outside of its segment")?;
            if load.page(ipa, bundle.bytes(), &fdt, buffer) {
                return Ok(());
            }
            Err(anyhow!("nothing belongs at {ipa}"))
        });
        let rim = rim.map_err(|failure| failure.error.context(failure.step))?;
        let tree = load.segments.iter().find(|segment| segment.source == loader::Source::Fdt);
        let tree = tree.and_then(|tree| fdt.get(..usize::try_from(tree.length).ok()?));
        let initramfs = vm.initramfs.as_ref().map(|image| ("initramfs", bundle.image(image)));
        let images = [("kernel", bundle.image(&vm.kernel))].into_iter().chain(initramfs);
        let images = images.chain(tree.map(|tree| ("device-tree", tree)));
        Ok(Self {
            name: vm.name.to_owned(),
            hash_algorithm: rim.algorithm().name(),
            rim: rim.as_bytes().to_vec(),
            rpv: realm.rpv.to_vec(),
            images: images.map(|(role, bytes)| Image::new(role, bytes)).collect(),
        })
    }

    /// The RIM as the guests print it.
    pub(crate) fn rim_hex(&self) -> String {
        hex(&self.rim)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes all that is written to it.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn as_hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(bytes))
}

#[cfg(test)]
mod tests;
