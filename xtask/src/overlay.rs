//! Overlays to guests' device trees: compiled if they are sources.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use vmm_services::fdt::Overlay;

/// How the names of sources end.
const SOURCES: [&str; 2] = ["dts", "dtso"];

/// Reads an overlay, or compiles it with `dtc`, and checks that it is one that can be merged.
///
/// # Errors
///
/// What is wrong with the file, in one line.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let is_source = path.extension().is_some_and(|e| SOURCES.iter().any(|source| e == *source));
    let bytes =
        if is_source { compile(path)? } else { fs::read(path).map_err(|e| e.to_string())? };
    Overlay::new(&bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn compile(path: &Path) -> Result<Vec<u8>, String> {
    let output = Command::new("dtc")
        .args(["-q", "-I", "dts", "-O", "dtb", "-o", "-"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run dtc: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    Err(messages.lines().next().unwrap_or("dtc failed without a message").to_owned())
}
