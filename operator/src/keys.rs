//! The escape key, which switches between the consoles of VMs and the monitor.

/// The escape key: Ctrl-T.
pub const ESCAPE: u8 = 0x14;

/// What a key press means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A byte for whoever has the keyboard.
    Input(u8),
    /// Escape, `1` to `9`: the keyboard and a raw view for the VM of this index, from 0 in the order of
    /// the bundle.
    Attach(usize),
    /// Escape, `n`: the same for the VM after the one that has it now.
    Next,
    /// Escape, `m`: the keyboard for the monitor, and a view of all VMs.
    Monitor,
    /// Escape, `?`: say what the keys are.
    Help,
    /// The escape key and another one that means nothing.
    Unknown(u8),
}

/// Tells escape sequences from input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// No key has been pressed.
    #[must_use]
    pub const fn new() -> Self {
        Self { escaped: false }
    }

    /// Takes the next byte of the keyboard; `None` if its meaning depends on the one after it.
    pub fn press(&mut self, byte: u8) -> Option<Key> {
        if !self.escaped {
            self.escaped = byte == ESCAPE;
            return (!self.escaped).then_some(Key::Input(byte));
        }
        self.escaped = false;
        Some(match byte {
            ESCAPE => Key::Input(ESCAPE),
            b'1'..=b'9' => Key::Attach(usize::from(byte - b'1')),
            b'n' => Key::Next,
            b'm' => Key::Monitor,
            b'?' => Key::Help,
            other => Key::Unknown(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn pressed(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::new();
        bytes.iter().filter_map(|&byte| keys.press(byte)).collect()
    }

    #[test]
    fn every_byte_but_the_escape_key_is_input() {
        for byte in (0..=255).filter(|&byte| byte != ESCAPE) {
            assert_eq!(pressed(&[byte]), [Key::Input(byte)]);
        }
    }

    #[test]
    fn the_key_after_the_escape_key_switches() {
        let keys = pressed(b"a\x14\x14b\x141\x149\x140\x14n\x14m\x14?\x14xc\x14");
        let expected = [
            Key::Input(b'a'),
            Key::Input(ESCAPE),
            Key::Input(b'b'),
            Key::Attach(0),
            Key::Attach(8),
            Key::Unknown(b'0'),
            Key::Next,
            Key::Monitor,
            Key::Help,
            Key::Unknown(b'x'),
            Key::Input(b'c'),
        ];
        assert_eq!(keys, expected);
    }
}
