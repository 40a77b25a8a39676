//! Host-side Arm CCA driver: RMI, granules, realms, RTTs and RECs.
#![no_std]
#![forbid(unsafe_code)]
