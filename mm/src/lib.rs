//! Addresses, the granule ledger, and stage-1 and stage-2 translation tables.
#![no_std]

pub mod addr;
pub mod ledger;
pub mod stage2;

pub use addr::{Ipa, PAGE_SIZE, PhysAddr};
