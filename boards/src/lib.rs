//! Board descriptions: what the device tree that firmware passes does not say.
#![no_std]
#![forbid(unsafe_code)]
