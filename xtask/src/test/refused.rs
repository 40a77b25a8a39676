//! Broken scenarios, which must be refused with the right line and reason: when they are read, or when
//! their bundle is made.
//!
//! Each file in `tests/system/refused` begins with `# refused: LINE: TEXT`.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::Tally;
use crate::bundle;
use crate::project::Project;
use crate::scenario::{Overrides, Refused, Scenario};

pub(super) fn run(project: &Project, tally: &mut Tally) -> Result<()> {
    let folder = project.root.join("tests/system/refused");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {folder:?}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    for file in files {
        let start = Instant::now();
        let detail = check(project, &file).err().map(|e| format!("{e:#}")).unwrap_or_default();
        tally.note(&format!("refused {}", project.show(&file)), start, &detail);
    }
    Ok(())
}

fn check(project: &Project, file: &Path) -> Result<()> {
    let text = fs::read_to_string(file)?;
    let first = text.lines().next().unwrap_or_default();
    let (line, reason) = first
        .strip_prefix("# refused: ")
        .and_then(|rest| rest.split_once(": "))
        .context("the first line is not `# refused: LINE: TEXT`")?;
    // Every reason contains an empty one.
    ensure!(!reason.is_empty(), "the first line gives no reason");
    let line: usize = line.parse()?;
    let scenario = Scenario::load(project, file, Overrides::default());
    let error = match scenario.and_then(|scenario| bundle::write(&scenario)) {
        Ok(_) => bail!("the scenario was accepted"),
        Err(error) => error,
    };
    let Refused(refusals) = error.downcast_ref::<Refused>().context("refused without a line")?;
    if !refusals.iter().any(|r| r.line == line && r.reason.contains(reason)) {
        bail!("wanted {line}: {reason}, got {error:#}");
    }
    Ok(())
}
