//! `cargo xtask`: the one command-line entry of the project. `./x` wraps it.

mod cpio;
mod debian;
mod firmware;
mod guest;
mod process;
mod project;
mod scenario;
mod setup;
mod toolchain;
fn main() {}
