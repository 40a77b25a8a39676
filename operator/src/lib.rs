//! The operator's console as pure logic: what typed bytes mean.
//!
//! [`Keys`] finds the escape key in the bytes of the keyboard, [`Editor`] makes lines of the bytes
//! that are for the monitor, and [`Command::parse`] understands such a line. What a command does is
//! the hypervisor's.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod command;
mod editor;
mod keys;

pub use command::{Command, HELP, ParseError, VmAction};
pub use editor::{Editor, LINE_MAX, Step};
pub use keys::{ESCAPE, Key, Keys};
