//! Why a scenario is refused, and where.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One fault of a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) file: PathBuf,
    /// Counted from 1.
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// All faults that were found in a scenario file; never empty.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Vec<Refusal>);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.reason)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            refusal.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// A text file that knows which line a byte belongs to, and the faults found in it so far.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    refusals: Vec<Refusal>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        Self { file, text, refusals: Vec::new() }
    }

    /// Line of the first byte of `span`, counted from 1.
    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.as_bytes().iter().take(span.start);
        1 + before.filter(|b| **b == b'\n').count()
    }

    /// Notes a fault.
    pub(crate) fn refuse(&mut self, span: &Range<usize>, reason: impl Into<String>) {
        let line = self.line(span);
        self.refuse_line(line, reason);
    }

    /// Notes a fault at a line.
    pub(crate) fn refuse_line(&mut self, line: usize, reason: impl Into<String>) {
        let refusal = Refusal { file: self.file.to_owned(), line, reason: reason.into() };
        self.refusals.push(refusal);
    }

    /// `value` if no fault was noted.
    pub(crate) fn finish<T>(self, value: T) -> Result<T, Refused> {
        if self.refusals.is_empty() { Ok(value) } else { Err(self.into_refused()) }
    }

    /// The faults, in the order of their lines.
    pub(crate) fn into_refused(mut self) -> Refused {
        self.refusals.sort_by_key(|refusal| refusal.line);
        Refused(self.refusals)
    }
}
