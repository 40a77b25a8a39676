//! Reference RMM: the judge that the host driver is tried against. Not a production RMM.
#![no_std]
