//! Addresses, the granule ledger, and stage-1 and stage-2 translation tables.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod ledger;
pub mod stage1;
pub mod stage2;

pub use addr::{Ipa, PAGE_SIZE, PhysAddr};
