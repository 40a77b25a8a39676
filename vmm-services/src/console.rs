//! A VM's console: output, cut into lines, and input that waits for the guest to read it.

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
        if sink.is_attached() {
            self.flush(sink);
            sink.raw(byte);
            return;
        }
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

    /// Takes bytes of output, as [`Self::put`] does each of them.
    pub(crate) fn write(&mut self, bytes: &[u8], sink: &mut dyn ConsoleSink) {
        let mut rest = bytes;
        while let Some((&first, tail)) = rest.split_first() {
            let plain = rest.iter().take_while(|byte| matches!(byte, b' '..=b'~')).count();
            if plain == 0 || sink.is_attached() {
                self.put(first, sink);
                rest = tail;
                continue;
            }
            if self.line.is_full() {
                self.flush(sink);
            }
            let (text, after) = rest.split_at(plain.min(self.line.remaining_capacity()));
            self.push(text, sink);
            rest = after;
        }
    }

    fn push(&mut self, bytes: &[u8], sink: &mut dyn ConsoleSink) {
        if self.line.remaining_capacity() < bytes.len() {
            self.flush(sink);
        }
        if self.line.is_empty() {
            sink.begun();
        }
        // Fits: the line is empty or has room.
        let _ = self.line.try_extend_from_slice(bytes);
    }

    /// How many bytes of a line have been collected.
    pub(crate) fn len(&self) -> usize {
        self.line.len()
    }

    /// Gives out what has been collected of a line, if anything.
    pub(crate) fn flush(&mut self, sink: &mut dyn ConsoleSink) {
        if !self.line.is_empty() {
            sink.line(&self.line, false);
            self.line.clear();
        }
    }
}

/// Most typed bytes that wait for a guest to read them.
const INPUT_MAX: usize = 256;

/// Typed bytes that the VM's console device has no room for yet.
#[derive(Clone, Debug)]
pub(crate) struct InputQueue {
    bytes: [u8; INPUT_MAX],
    first: usize,
    length: usize,
}

impl Default for InputQueue {
    fn default() -> Self {
        Self { bytes: [0; INPUT_MAX], first: 0, length: 0 }
    }
}

impl InputQueue {
    /// Queues as many bytes as there is room for; returns how many.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let room = INPUT_MAX - self.length;
        for &byte in bytes.iter().take(room) {
            self.bytes[(self.first + self.length) % INPUT_MAX] = byte;
            self.length += 1;
        }
        bytes.len().min(room)
    }

    /// Whether no byte waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes the oldest byte.
    pub(crate) fn pop(&mut self) -> Option<u8> {
        if self.length == 0 {
            return None;
        }
        let byte = self.bytes[self.first];
        self.first = (self.first + 1) % INPUT_MAX;
        self.length -= 1;
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::{INPUT_MAX, InputQueue, LINE_MAX, LineBuffer};
    use crate::testing::Lines;
    use crate::traits::ConsoleSink;
    use std::vec;
    use std::vec::Vec;

    /// A terminal that is attached or not.
    #[derive(Default)]
    struct Terminal {
        attached: bool,
        begun: usize,
        shown: Vec<u8>,
    }

    impl ConsoleSink for Terminal {
        fn line(&mut self, text: &[u8], _complete: bool) {
            self.shown.extend(b"<");
            self.shown.extend(text);
            self.shown.extend(b">");
        }

        fn begun(&mut self) {
            self.begun += 1;
        }

        fn is_attached(&self) -> bool {
            self.attached
        }

        fn raw(&mut self, byte: u8) {
            self.shown.push(byte);
        }
    }

    #[test]
    fn an_attached_terminal_gets_the_bytes_as_they_are() {
        let (mut buffer, mut terminal) = (LineBuffer::default(), Terminal::default());
        b"one\ntw".iter().for_each(|&byte| buffer.put(byte, &mut terminal));
        terminal.attached = true;
        b"o\x1b[1m\r\n".iter().for_each(|&byte| buffer.put(byte, &mut terminal));
        terminal.attached = false;
        b"\x07".iter().for_each(|&byte| buffer.put(byte, &mut terminal));
        buffer.flush(&mut terminal);
        assert_eq!(terminal.shown, b"<one><tw>o\x1b[1m\r\n<^G>");
        assert_eq!(terminal.begun, 3);
    }

    #[test]
    fn input_waits_in_order_and_what_does_not_fit_is_refused() {
        let mut queue = InputQueue::default();
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(queue.push(&bytes[..200]), 200);
        (0..150).for_each(|byte| assert_eq!(queue.pop(), Some(byte)));
        assert_eq!(queue.push(&bytes), INPUT_MAX - 50);
        (150..200).for_each(|byte| assert_eq!(queue.pop(), Some(byte)));
        (0..INPUT_MAX - 50).for_each(|byte| assert_eq!(queue.pop(), Some(byte as u8)));
        assert_eq!(queue.pop(), None);
    }

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
    fn many_bytes_at_once_are_as_one_by_one() {
        let long = [b'x'; 3 * LINE_MAX / 2];
        for bytes in [&b"one\r\n\ntwo\x1b[2J\x7f\t\xc3\xa9\nrest"[..], &long, b"", b"\n"] {
            let (mut buffer, mut lines) = (LineBuffer::default(), Lines::default());
            let (mut other, mut other_lines) = (LineBuffer::default(), Lines::default());
            bytes.iter().for_each(|&byte| buffer.put(byte, &mut lines));
            other.write(bytes, &mut other_lines);
            buffer.flush(&mut lines);
            other.flush(&mut other_lines);
            assert_eq!(lines.0, other_lines.0);
        }
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
