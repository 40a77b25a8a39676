//! From the TOML text to a [`Scenario`]: every value alone, then against the others.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use vmm_services::manifest::{MAX_NAME, MAX_POOL, MAX_VCPUS_IN_ALL, MAX_VMS, MIN_BUDGET_US};

use super::channels;
use super::format::{self, Expect, File, Kind, Populate};
use super::refusal::{Refused, Source};
use super::size::Size;
use super::{ImageRef, Machine, Overrides, Scenario, Vm, devices, nets};
use crate::project::Project;

/// Most cores that the hypervisor starts.
const MAX_CPUS: u32 = 8;
/// Most vCPUs of a VM.
const MAX_VCPUS: u32 = vmm_services::MAX_VCPUS as u32;
/// Priorities are below this.
const PRIORITIES: u32 = 16;
/// Priority unless given.
const DEFAULT_PRIORITY: u32 = 8;
/// Longest kernel command line in bytes.
const MAX_CMDLINE: usize = 1024;
/// Most resets after which a VM starts again.
const MAX_RESETS: u32 = 1_000_000;
/// Times for a watchdog.
const WATCHDOG_MS: std::ops::RangeInclusive<u32> = 1000..=3_600_000;
/// What firmware, RMM, hypervisor, its tables and the bundle take from the machine's memory.
const RESERVED: Size = Size(256 << 20);
/// IPA width of a realm unless given.
const DEFAULT_IPA_BITS: u32 = 40;

/// Where the images of a scenario are.
#[derive(Debug)]
pub(super) struct Images {
    /// Folder of the scenario file.
    beside: PathBuf,
    /// `setup:` and `guest:` images by their full names.
    named: BTreeMap<String, PathBuf>,
}

impl Images {
    /// The images that `setup` and `build` of this project make.
    pub(super) fn of(project: &Project, file: &Path) -> Self {
        let mut named = BTreeMap::from([
            ("setup:linux".to_owned(), crate::guest::kernel(project)),
            ("setup:initramfs".to_owned(), crate::guest::initramfs(project)),
            ("setup:u-boot".to_owned(), crate::guest::u_boot(project)),
        ]);
        for bin in project.guests().flat_map(|package| package.bins()) {
            let short = bin.strip_prefix("guest-").unwrap_or(bin);
            let path = project.images_dir().join(bin).with_extension("bin");
            named.insert(format!("guest:{short}"), path);
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        Self { beside: project.root.join(folder), named }
    }

    /// Only the images in a folder.
    #[cfg(test)]
    pub(super) fn beside(folder: &Path) -> Self {
        Self { beside: folder.to_owned(), named: BTreeMap::new() }
    }

    pub(super) fn find(&self, source: &mut Source<'_>, name: &Spanned<String>) -> ImageRef {
        let line = source.line(&name.span());
        let text = name.get_ref();
        let path = match self.named.get(text) {
            Some(path) => path.clone(),
            None if text.contains(':') => {
                let known: Vec<&str> = self.named.keys().map(String::as_str).collect();
                source.refuse_line(
                    line,
                    format!("there is no image \"{text}\", only {}", known.join(", ")),
                );
                PathBuf::new()
            }
            None => {
                let path = self.beside.join(text);
                if !path.is_file() {
                    source.refuse_line(line, format!("image {text} is missing"));
                }
                path
            }
        };
        ImageRef { path, line }
    }
}

/// Checks the text of a scenario file.
pub(super) fn check(
    images: &Images,
    path: &Path,
    text: &str,
    overrides: Overrides,
) -> Result<Scenario, Refused> {
    let mut source = Source::new(path, text);
    let file: File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            let reason = error.message().replace('\n', " ");
            source.refuse(&error.span().unwrap_or(0..0), reason);
            return Err(source.into_refused());
        }
    };
    let name = scenario_name(&mut source, path, file.name.as_ref());
    let machine = machine(&mut source, &file.machine, overrides);
    if file.vm.is_empty() {
        source.refuse(&(0..0), "a scenario has at least one [[vm]]");
    }
    if let Some(extra) = file.vm.get(MAX_VMS) {
        source.refuse(&extra.span(), format!("more than {MAX_VMS} VMs"));
    }
    let mut vms: Vec<Vm> =
        file.vm.iter().map(|vm| check_vm(&mut source, images, machine, vm)).collect();
    between_vms(&mut source, machine, &file.vm);
    let switches = nets::connect(&mut source, &file.vm, &mut vms);
    let channels = channels::check(&mut source, &file.channel, &file.vm);
    let scenario = Scenario {
        file: path.to_owned(),
        name,
        self_test: file.self_test,
        machine,
        vms,
        switches,
        channels,
    };
    source.finish(scenario)
}

fn scenario_name(source: &mut Source<'_>, path: &Path, name: Option<&Spanned<String>>) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (text, span) = match name {
        Some(name) => (name.get_ref().clone(), name.span()),
        None => (stem, 0..0),
    };
    check_name(source, &text, &span);
    text
}

/// Names become device tree nodes, and those of VMs prefixes of console lines.
pub(super) fn check_name(source: &mut Source<'_>, name: &str, span: &Range<usize>) {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    if name.len() > MAX_NAME || !starts_well || !name.chars().all(letters) {
        source.refuse(
            span,
            format!(
                "bad name \"{name}\": lower-case letters, digits and '-', a letter first, \
                 at most {MAX_NAME}"
            ),
        );
    }
}

fn machine(source: &mut Source<'_>, machine: &format::Machine, overrides: Overrides) -> Machine {
    let cpus = overrides.cpus.unwrap_or(*machine.cpus.get_ref());
    if !(1..=MAX_CPUS).contains(&cpus) {
        source.refuse(&machine.cpus.span(), format!("a machine has 1 to {MAX_CPUS} cpus"));
    }
    let memory = overrides.memory.unwrap_or(*machine.memory.get_ref());
    if !memory.0.is_multiple_of(1 << 20) || memory < Size(1 << 30) {
        source.refuse(
            &machine.memory.span(),
            format!("the machine's memory is whole MiB and at least 1 GiB, not {memory}"),
        );
    }
    let pool = machine.pool.as_ref();
    if let Some(pool) = pool.filter(|pool| *pool.get_ref() > MAX_POOL) {
        source.refuse(&pool.span(), format!("at most {MAX_POOL} granules stay delegated"));
    }
    Machine { cpus, memory, pool: pool.map(|pool| *pool.get_ref()) }
}

fn check_vm(
    source: &mut Source<'_>,
    images: &Images,
    machine: Machine,
    entry: &Spanned<format::Vm>,
) -> Vm {
    let vm = entry.get_ref();
    check_name(source, vm.name.get_ref(), &vm.name.span());
    check_sizes(source, vm);
    check_end(source, vm);
    let kernel = images.find(source, &vm.kernel);
    let initramfs = vm.initramfs.as_ref().map(|name| images.find(source, name));
    let overlay = vm.overlay.as_ref().map(|name| images.find(source, name));
    let vcpus = *vm.vcpus.get_ref();
    let devices = devices::check(source, images, vm);
    Vm {
        name: vm.name.get_ref().clone(),
        kind: vm.kind,
        vcpus,
        memory: *vm.memory.get_ref(),
        kernel,
        kernel_type: vm.kernel_type,
        initramfs,
        overlay,
        cmdline: vm.cmdline.as_ref().map(|c| c.get_ref().clone()),
        priority: vm.priority.as_ref().map_or(DEFAULT_PRIORITY, |p| *p.get_ref()),
        budget: check_budget(source, vm),
        affinity: check_affinity(source, machine, vm),
        devices: devices.placed,
        virtio: devices.virtio,
        passthrough: devices.passthrough,
        repeat: vm.repeat.as_ref().map(|r| *r.get_ref()),
        max_resets: check_resets(source, vm),
        watchdog_ms: check_watchdog(source, vm),
        expect: vm.expect,
        expect_reason: vm.expect_reason.as_ref().map(|r| r.get_ref().clone()),
        hash: value(&vm.hash),
        ipa_bits: vm.ipa_bits.as_ref().map_or(DEFAULT_IPA_BITS, |b| *b.get_ref()),
        personalization: check_realm(source, vm),
        populate: vm.populate.unwrap_or(match vm.kind {
            Kind::Vm => Populate::Eager,
            Kind::Realm => Populate::Image,
        }),
        fault: value(&vm.fault),
        conversions: value(&vm.conversions),
        stray_granule_of: vm.stray_granule_of.as_ref().map(|s| s.get_ref().clone()),
    }
}

/// The value of a key, or the default.
fn value<T: Copy + Default>(key: &Option<Spanned<T>>) -> T {
    key.as_ref().map(|value| *value.get_ref()).unwrap_or_default()
}

fn check_sizes(source: &mut Source<'_>, vm: &format::Vm) {
    if !(1..=MAX_VCPUS).contains(vm.vcpus.get_ref()) {
        source.refuse(&vm.vcpus.span(), format!("a VM has 1 to {MAX_VCPUS} vcpus"));
    }
    let memory = *vm.memory.get_ref();
    if memory.0 == 0 || !memory.0.is_multiple_of(2 << 20) {
        source.refuse(
            &vm.memory.span(),
            format!("the memory of a VM is a multiple of 2 MiB, not {memory}"),
        );
    }
    if let Some(priority) = vm.priority.as_ref().filter(|p| *p.get_ref() >= PRIORITIES) {
        source.refuse(&priority.span(), format!("priorities are 0 to {}", PRIORITIES - 1));
    }
    if let Some(repeat) = vm.repeat.as_ref().filter(|r| *r.get_ref() == 0) {
        source.refuse(&repeat.span(), "a VM runs at least once");
    }
    if let Some(cmdline) = &vm.cmdline {
        let text = cmdline.get_ref();
        if text.len() > MAX_CMDLINE || text.chars().any(char::is_control) {
            source.refuse(
                &cmdline.span(),
                format!("a command line is at most {MAX_CMDLINE} bytes on one line"),
            );
        }
    }
}

/// How often the VM may reset itself; `None` for the usual number.
fn check_resets(source: &mut Source<'_>, vm: &format::Vm) -> Option<u32> {
    let stops = vm.on_reset.as_ref().is_some_and(|on| *on.get_ref() == format::OnReset::Stop);
    match &vm.max_resets {
        Some(max) if stops => {
            source.refuse(&max.span(), "max-resets is for VMs that a reset starts again");
            None
        }
        Some(max) if !(1..=MAX_RESETS).contains(max.get_ref()) => {
            source.refuse(&max.span(), format!("max-resets is 1 to {MAX_RESETS}"));
            None
        }
        max => max.as_ref().map(|max| *max.get_ref()).or(stops.then_some(0)),
    }
}

fn check_watchdog(source: &mut Source<'_>, vm: &format::Vm) -> Option<u32> {
    let ms = vm.watchdog_ms.as_ref()?;
    if vm.kind == Kind::Realm {
        source.refuse(&ms.span(), "watchdog-ms is for normal VMs only");
    }
    if !WATCHDOG_MS.contains(ms.get_ref()) {
        source.refuse(&ms.span(), "watchdog-ms is 1000 to 3600000: a second to an hour");
    }
    Some(*ms.get_ref())
}

fn check_end(source: &mut Source<'_>, vm: &format::Vm) {
    let Some(reason) = &vm.expect_reason else { return };
    if vm.expect == Expect::Off {
        source.refuse(&reason.span(), "a VM that powers itself off gives no reason");
    }
    if reason.get_ref().contains(['"', '\n']) {
        source.refuse(&reason.span(), "a reason holds no quotation mark and no line end");
    }
}

fn check_budget(source: &mut Source<'_>, vm: &format::Vm) -> Option<(u32, u32)> {
    match (&vm.budget_us, &vm.period_us) {
        (None, None) => None,
        (Some(one), None) | (None, Some(one)) => {
            source.refuse(&one.span(), "budget-us and period-us go together");
            None
        }
        (Some(budget), Some(period)) => {
            if *budget.get_ref() < MIN_BUDGET_US || budget.get_ref() > period.get_ref() {
                source.refuse(
                    &budget.span(),
                    format!("the budget is at least {MIN_BUDGET_US} us and at most the period"),
                );
            }
            Some((*budget.get_ref(), *period.get_ref()))
        }
    }
}

fn check_affinity(source: &mut Source<'_>, machine: Machine, vm: &format::Vm) -> Option<u32> {
    let cores = vm.affinity.as_ref()?;
    if cores.get_ref().is_empty() {
        source.refuse(&cores.span(), "an affinity names at least one core");
    }
    let mut mask = 0;
    for core in cores.get_ref() {
        if *core >= machine.cpus.min(MAX_CPUS) {
            source.refuse(
                &cores.span(),
                format!("core {core} in a machine of {} cpus", machine.cpus),
            );
        } else {
            mask |= 1 << core;
        }
    }
    Some(mask)
}

fn check_realm(source: &mut Source<'_>, vm: &format::Vm) -> Option<[u8; 64]> {
    let realm = vm.kind == Kind::Realm;
    let mut only_for = |span: Option<Range<usize>>, key: &str, wanted: bool, kind: &str| {
        if let Some(span) = span.filter(|_| !wanted) {
            source.refuse(&span, format!("{key} is for {kind} only"));
        }
    };
    only_for(vm.hash.as_ref().map(Spanned::span), "hash", realm, "realms");
    only_for(vm.ipa_bits.as_ref().map(Spanned::span), "ipa-bits", realm, "realms");
    only_for(vm.fault.as_ref().map(Spanned::span), "fault", realm, "realms");
    only_for(vm.conversions.as_ref().map(Spanned::span), "conversions", realm, "realms");
    let value = vm.personalization.as_ref();
    only_for(value.map(Spanned::span), "personalization", realm, "realms");
    let stray = vm.stray_granule_of.as_ref();
    only_for(stray.map(Spanned::span), "stray-granule-of", !realm, "normal VMs");
    if let Some(bits) = vm.ipa_bits.as_ref().filter(|b| !(33..=52).contains(b.get_ref())) {
        // Below 33 the shared half would not hold the device registers and 1 GiB of RAM.
        source.refuse(&bits.span(), "ipa-bits is 33 to 52");
    }
    let value = value?;
    let bytes = parse_hex(value.get_ref());
    if bytes.is_none() {
        source.refuse(&value.span(), "a personalization is up to 64 bytes in hexadecimal");
    }
    bytes
}

/// Up to 64 bytes; the rest are zero.
fn parse_hex(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| d.try_into().ok()))
        .collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) || digits.len() > 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

/// Bytes of a VM's disks, as far as the scenario gives their sizes.
fn disks(vm: &format::Vm) -> u64 {
    let sizes = vm.device.iter().flatten().filter_map(|d| d.get_ref().size.as_ref());
    sizes.fold(0, |sum, size| sum.saturating_add(size.get_ref().0))
}

fn between_vms(source: &mut Source<'_>, machine: Machine, vms: &[Spanned<format::Vm>]) {
    let mut names = BTreeMap::new();
    let available = machine.memory.0.saturating_sub(RESERVED.0);
    let mut sum = 0_u64;
    let mut vcpus = 0;
    for vm in vms.iter().map(Spanned::get_ref) {
        if let Some(line) = names.get(vm.name.get_ref()) {
            let reason = format!("the VM of line {line} is called \"{}\" too", vm.name.get_ref());
            source.refuse(&vm.name.span(), reason);
        } else {
            names.insert(vm.name.get_ref(), source.line(&vm.name.span()));
        }
        sum = sum.saturating_add(vm.memory.get_ref().0).saturating_add(disks(vm));
        if sum > available {
            source.refuse(
                &vm.memory.span(),
                format!(
                    "the VMs so far need {}, the machine has {} of which {RESERVED} are kept \
                     for firmware, hypervisor and bundle",
                    Size(sum),
                    machine.memory,
                ),
            );
        }
        vcpus += vm.vcpus.get_ref().min(&MAX_VCPUS);
        if vcpus > MAX_VCPUS_IN_ALL as u32 {
            source.refuse(
                &vm.vcpus.span(),
                format!(
                    "the VMs so far have {vcpus} vcpus, the hypervisor runs {MAX_VCPUS_IN_ALL}"
                ),
            );
        }
        if let Some(stray) = &vm.stray_granule_of {
            let realm = vms
                .iter()
                .map(Spanned::get_ref)
                .any(|other| other.kind == Kind::Realm && other.name.get_ref() == stray.get_ref());
            if !realm {
                source.refuse(&stray.span(), format!("there is no realm \"{}\"", stray.get_ref()));
            }
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
