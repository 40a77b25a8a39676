//! `cargo xtask`: setup, build, run, test.
fn main() {}
