//! Links the image at the address that EL3 loads it to: see `rmm.ld`.

fn main() {
    println!("cargo:rerun-if-changed=rmm.ld");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/rmm.ld");
    for arg in ["--no-dynamic-linker", "-znorelro", "-T", script] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
