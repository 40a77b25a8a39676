//! `rim`: the measurement that a realm will have, from the files of its scenario alone.

use anyhow::{Context, Result, anyhow, bail};
use realm_plan::RealmPlan;
use vmm_services::loader::{self, FDT_MAX};
use vmm_services::manifest::{Bundle, VmSpec};

/// A VMID, which a plan needs and no measurement contains.
const ANY_VMID: u16 = 1;

/// The RIM of each realm of a bundle, by name, in hexadecimal. RMI 1.x measures the initial RIPAS,
/// RMI 2.0 does not.
pub(crate) fn of_bundle(bundle: &[u8], rmi_2: bool) -> Result<Vec<(String, String)>> {
    let bundle = Bundle::parse(bundle).map_err(|e| anyhow!("{e}"))?;
    let realms = bundle.vms.iter().filter(|vm| vm.realm().is_some());
    let rims = realms.map(|vm| {
        let rim = of_realm(vm, &bundle, rmi_2).with_context(|| format!("realm {}", vm.name))?;
        Ok((vm.name.to_owned(), rim))
    });
    rims.collect()
}

fn of_realm(vm: &VmSpec<'_>, bundle: &Bundle<'_>, rmi_2: bool) -> Result<String> {
    let mut fdt = vec![0; FDT_MAX];
    let load = loader::plan(vm, bundle, &mut fdt)?;
    let plan = RealmPlan::new(vm, &load, ANY_VMID)?;
    let rim = plan.as_build_plan().rim(!rmi_2, |segment, page, buffer| {
        let ipa = plan.page_address(segment, page).context("a page outside of its segment")?;
        if load.page(ipa, bundle.bytes(), &fdt, buffer) {
            return Ok(());
        }
        Err(anyhow!("nothing belongs at {ipa}"))
    });
    rim.map(|digest| digest.to_string()).map_err(|failure| failure.error.context(failure.step))
}

/// Prints the RIM of one realm or of all. True if there was one.
pub(crate) fn print(bundle: &[u8], vm: Option<&str>, rmi_2: bool) -> Result<bool> {
    let all = of_bundle(bundle, rmi_2)?;
    let wanted: Vec<_> = all.iter().filter(|(name, _)| vm.is_none_or(|v| v == name)).collect();
    if wanted.is_empty() {
        bail!("the scenario has no realm{}", vm.map(|v| format!(" {v}")).unwrap_or_default());
    }
    for (name, rim) in wanted {
        println!("{name} {rim}");
    }
    Ok(true)
}
