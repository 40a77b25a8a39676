//! Scheduling policy of Suzerain: pure logic, tested on the development machine.
#![no_std]
#![forbid(unsafe_code)]
