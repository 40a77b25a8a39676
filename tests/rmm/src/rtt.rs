//! Realm translation tables: stage-2 tables whose granules the host gives and the monitor fills.
//!
//! All of it runs under the lock of the realm descriptor. The reference count of a table counts
//! its protected assigned entries and its table entries; unprotected mappings do not count.

pub(crate) mod data;
pub(crate) mod entry;
pub(crate) mod geometry;
pub(crate) mod ripas;
pub(crate) mod structure;
pub(crate) mod unprotected;
pub(crate) mod walk;
