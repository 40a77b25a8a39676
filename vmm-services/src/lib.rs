//! Device models, PSCI, guest device tree, loaders and manifest of Suzerain.
#![no_std]
#![forbid(unsafe_code)]
