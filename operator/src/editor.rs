//! A line editor for a terminal: backspace, Ctrl-U and Ctrl-C, and nothing that moves inside the
//! line.

use arrayvec::ArrayString;

/// Longest line in bytes; what is typed beyond it is refused with a bell, and the line with it.
pub const LINE_MAX: usize = 80;

const CTRL_C: u8 = 0x03;
const CTRL_U: u8 = 0x15;
const ESC: u8 = 0x1b;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

/// Where in a terminal's escape sequence (cursor keys and the like) the input is. Such sequences
/// are ignored as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    /// After ESC.
    Begun,
    /// After `ESC [` or `ESC O`.
    Inside,
}

/// What came of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// The line has changed.
    Changed,
    /// The line is full, or there is nothing to take back.
    Refused,
    /// The line is complete; it has been taken out of the editor.
    Done(ArrayString<LINE_MAX>),
    /// The line is complete, but its end did not fit. It has been taken out of the editor: what there is
    /// of it is not what was meant.
    Cut(ArrayString<LINE_MAX>),
}

/// The line that is being typed.
#[derive(Clone, Debug, Default)]
pub struct Editor {
    line: ArrayString<LINE_MAX>,
    sequence: Sequence,
    /// Something did not fit after the last byte of the line.
    cut: bool,
    /// The byte before was a carriage return: a line feed after it belongs to it.
    returned: bool,
}

impl Editor {
    /// An empty line.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            line: ArrayString::new_const(),
            sequence: Sequence::None,
            cut: false,
            returned: false,
        }
    }

    /// What has been typed of the line.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Takes the next byte.
    pub fn put(&mut self, byte: u8) -> Step {
        let after_return = core::mem::take(&mut self.returned);
        match (self.sequence, byte) {
            (Sequence::Begun, b'[' | b'O') => {
                self.sequence = Sequence::Inside;
                return Step::None;
            }
            // Parameters; the byte that ends the sequence is from '@' to '~'.
            (Sequence::Inside, b' '..=b'?') => return Step::None,
            (Sequence::Begun | Sequence::Inside, _) => {
                self.sequence = Sequence::None;
                return Step::None;
            }
            (Sequence::None, _) => {}
        }
        match byte {
            b'\n' if after_return => Step::None,
            b'\r' | b'\n' => {
                self.returned = byte == b'\r';
                let line = core::mem::take(&mut self.line);
                if core::mem::take(&mut self.cut) { Step::Cut(line) } else { Step::Done(line) }
            }
            // Who edits the line has seen where it ends.
            BACKSPACE | DELETE => {
                self.cut = false;
                changed(self.line.pop().is_some())
            }
            CTRL_U | CTRL_C => {
                self.cut = false;
                self.line.clear();
                Step::Changed
            }
            ESC => {
                self.sequence = Sequence::Begun;
                Step::None
            }
            b' '..=b'~' => {
                let fits = self.line.try_push(char::from(byte)).is_ok();
                self.cut |= !fits;
                changed(fits)
            }
            _ => Step::None,
        }
    }
}

fn changed(is: bool) -> Step {
    if is { Step::Changed } else { Step::Refused }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    /// The lines that `bytes` make, and what is left.
    fn typed(bytes: &[u8]) -> (Vec<String>, String) {
        let mut editor = Editor::new();
        let lines = bytes.iter().filter_map(|&byte| match editor.put(byte) {
            Step::Done(line) => Some(line.to_string()),
            _ => None,
        });
        let lines = lines.collect();
        (lines, editor.line().to_string())
    }

    #[test]
    fn lines_end_with_return_line_feed_or_both() {
        let (lines, rest) = typed(b"one\rtwo\nthree\r\n\nfive");
        assert_eq!(lines, ["one", "two", "three", ""]);
        assert_eq!(rest, "five");
    }

    #[test]
    fn mistakes_are_taken_back() {
        assert_eq!(typed(b"vmx\x7f list\x08t\r").0, ["vm list"]);
        assert_eq!(typed(b"\x7f\x7fa\x15bc\x03d").1, "d");
        assert_eq!(Editor::new().put(DELETE), Step::Refused);
    }

    #[test]
    fn cursor_keys_and_control_characters_are_ignored() {
        assert_eq!(typed(b"a\x1b[A\x1b[1;5Cb\x1bOP\x1bxc\x01\xffd").1, "abcd");
    }

    #[test]
    fn a_line_that_is_full_takes_no_more() {
        let mut editor = Editor::new();
        (0..LINE_MAX).for_each(|_| assert_eq!(editor.put(b'x'), Step::Changed));
        assert_eq!(editor.put(b'y'), Step::Refused);
        assert_eq!(editor.put(DELETE), Step::Changed);
        assert_eq!(editor.put(b'y'), Step::Changed);
        assert_eq!(editor.line().len(), LINE_MAX);
        assert!(matches!(editor.put(b'\r'), Step::Done(line) if line.ends_with("xy")));
    }

    #[test]
    fn a_line_whose_end_did_not_fit_is_no_command() {
        let mut editor = Editor::new();
        let mut type_line = |last: &[u8]| {
            for _ in 0..LINE_MAX {
                editor.put(b'x');
            }
            last.iter().map(|byte| editor.put(*byte)).last()
        };
        assert!(matches!(type_line(b"y\r"), Some(Step::Cut(line)) if line.len() == LINE_MAX));
        assert!(matches!(type_line(b"\r"), Some(Step::Done(_))));
        assert!(matches!(type_line(b"y\x15help\r"), Some(Step::Done(line)) if &line == "help"));
        assert!(
            matches!(type_line(b"yy\x7f\r"), Some(Step::Done(line)) if line.len() == LINE_MAX - 1)
        );
    }
}
