//! Addresses, the granule ledger, and stage-1 and stage-2 translation tables.
#![no_std]

#[cfg(any(test, loom))]
extern crate std;

pub mod addr;
pub mod ledger;
pub mod stage1;
pub mod stage2;
pub mod sync;

pub use addr::{Ipa, PAGE_SIZE, PhysAddr};
