//! Passes the linker script and the options for a self-relocating image to the linker.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for arg in [
        format!("-T{dir}/linker.ld").as_str(),
        // Position independent without a dynamic linker: `_start` applies the relocations, in
        // read-only sections too, before the MMU is on.
        "-pie",
        "--no-dynamic-linker",
        "-z",
        "notext",
        "-z",
        "max-page-size=4096",
        "-z",
        "norelro",
        "--hash-style=sysv",
        "--orphan-handling=error",
        // Early Cortex-A53 cores compute wrong addresses by ADRP at the end of a page.
        "--fix-cortex-a53-843419",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
