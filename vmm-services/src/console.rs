//! A VM's console output, cut into lines.

use crate::traits::ConsoleSink;
use arrayvec::ArrayVec;

/// Longest line in bytes; longer ones are cut.
pub(crate) const LINE_MAX: usize = 256;

/// Collects the bytes that a guest prints.
#[derive(Clone, Debug, Default)]
pub(crate) struct LineBuffer {
    line: ArrayVec<u8, LINE_MAX>,
}

impl LineBuffer {
    /// Takes one byte of output.
    ///
    /// A line feed ends the line and a carriage return is dropped. Other control characters are
    /// shown in caret notation, so that a guest cannot move the cursor of the machine's console.
    pub(crate) fn put(&mut self, byte: u8, sink: &mut dyn ConsoleSink) {
        match byte {
            b'\n' => {
                sink.line(&self.line, true);
                self.line.clear();
            }
            b'\r' => {}
            b'\t' | b' '..=b'~' | 0x80.. => self.push(&[byte], sink),
            control => self.push(&[b'^', control ^ 0x40], sink),
        }
    }

    fn push(&mut self, bytes: &[u8], sink: &mut dyn ConsoleSink) {
        if self.line.remaining_capacity() < bytes.len() {
            self.flush(sink);
        }
        // Fits: the line is empty or has room.
        self.line.extend(bytes.iter().copied());
    }

    /// Gives out what has been collected of a line, if anything.
    pub(crate) fn flush(&mut self, sink: &mut dyn ConsoleSink) {
        if !self.line.is_empty() {
            sink.line(&self.line, false);
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LINE_MAX, LineBuffer};
    use crate::testing::Lines;
    use std::vec;

    #[test]
    fn lines_are_cut_at_line_feeds_and_controls_are_shown() {
        let (mut buffer, mut lines) = (LineBuffer::default(), Lines::default());
        b"one\r\n\ntwo\x1b[2J\x7f\t\xc3\xa9\nrest".iter().for_each(|&b| buffer.put(b, &mut lines));
        buffer.flush(&mut lines);
        buffer.flush(&mut lines);
        let expected: [(&[u8], bool); 4] =
            [(b"one", true), (b"", true), (b"two^[[2J^?\t\xc3\xa9", true), (b"rest", false)];
        let found: vec::Vec<(&[u8], bool)> = lines.0.iter().map(|(l, c)| (&l[..], *c)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn endless_lines_are_cut() {
        let (mut buffer, mut lines) = (LineBuffer::default(), Lines::default());
        (0..LINE_MAX - 1).for_each(|_| buffer.put(b'x', &mut lines));
        buffer.put(1, &mut lines);
        assert_eq!(lines.0, [(vec![b'x'; LINE_MAX - 1], false)]);
        buffer.put(b'\n', &mut lines);
        assert_eq!(lines.0[1], (b"^A".to_vec(), true));
    }
}
