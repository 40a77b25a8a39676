//! Build script of all guests: links a position-independent flat image, see `image.ld`.

fn main() {
    println!("cargo:rerun-if-changed=../rt/image.ld");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../rt/image.ld");
    // `notext`: the image relocates itself before it runs Rust code, also in read-only data.
    for arg in
        ["-pie", "-znotext", "-znorelro", "--no-dynamic-linker", "--gc-sections", "-T", script]
    {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
