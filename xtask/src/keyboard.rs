//! What is typed on the serial port of a machine: by whoever sits at the terminal, or by a script.

use std::io::{IsTerminal, Read, Write, stdin};
use std::process::ChildStdin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use nix::unistd::{getpgrp, tcgetpgrp};
use serde::Deserialize;

/// Ends the run when the machine has the keyboard to itself: Ctrl-].
const QUIT: u8 = 0x1d;

/// Most bytes of output in which a script looks for a text.
const WINDOW: usize = 64 << 10;

/// The serial port, as those who type see it.
pub(crate) type Port = Arc<Mutex<ChildStdin>>;

/// What of the keyboard is the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nothing.
    Nothing,
    /// All keys but those that send signals, if this process has a terminal.
    Keys,
    /// All keys but Ctrl-].
    Everything,
}

/// The keyboard, given to a machine. The terminal is as it was before when this is dropped.
#[derive(Debug)]
pub(crate) struct Keyboard {
    before: Option<Termios>,
    quit: Arc<AtomicBool>,
}

impl Keyboard {
    /// Sets the terminal up, if there is one, and types on `port` what comes from standard input.
    ///
    /// # Errors
    ///
    /// When the terminal cannot be set up.
    pub(crate) fn connect(share: Share, port: &Port) -> Result<Option<Self>> {
        let terminal = stdin().is_terminal();
        // A process in the background would be stopped for touching the terminal.
        let foreground = tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
        match share {
            Share::Nothing => return Ok(None),
            Share::Keys if !terminal || !foreground => return Ok(None),
            Share::Keys | Share::Everything => {}
        }
        let before = if terminal { Some(unbuffered(share)?) } else { None };
        let keyboard = Self { before, quit: Arc::default() };
        let (quit, port) = (keyboard.quit.clone(), port.clone());
        // Ends with this process: nothing wakes a read of a terminal.
        thread::spawn(move || {
            let mut keys = [0; 256];
            while let Ok(count @ 1..) = stdin().lock().read(&mut keys) {
                let keys = &keys[..count];
                if terminal && share == Share::Everything && keys.contains(&QUIT) {
                    quit.store(true, Ordering::Relaxed);
                    break;
                }
                send(&port, keys);
            }
        });
        Ok(Some(keyboard))
    }

    /// True once the user wants the run to end.
    pub(crate) fn wants_to_quit(&self) -> bool {
        self.quit.load(Ordering::Relaxed)
    }
}

/// Gives out keys one by one and unseen; returns the settings before.
fn unbuffered(share: Share) -> Result<Termios> {
    let before = tcgetattr(stdin()).context("the terminal's settings")?;
    let mut settings = before.clone();
    settings.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::IEXTEN);
    if share == Share::Everything {
        settings.local_flags.remove(LocalFlags::ISIG);
        settings.input_flags = nix::sys::termios::InputFlags::empty();
    }
    settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    tcsetattr(stdin(), SetArg::TCSANOW, &settings).context("the terminal's settings")?;
    Ok(before)
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody to tell.
            let _ = tcsetattr(stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

/// Types keys on a serial port.
pub(crate) fn send(port: &Port, keys: &[u8]) {
    if let Ok(mut port) = port.lock() {
        // QEMU may have ended.
        let _ = port.write_all(keys).and_then(|()| port.flush());
    }
}

/// One thing to type.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keystrokes {
    /// Text of the console after which it is typed.
    pub(crate) after: String,
    pub(crate) send: String,
}

/// Things to type one after the other, each when its time has come.
#[derive(Debug, Default)]
pub(crate) struct Script {
    steps: std::vec::IntoIter<Keystrokes>,
    next: Option<Keystrokes>,
    /// Output since the last text that was found.
    seen: Vec<u8>,
}

impl Script {
    pub(crate) fn new(steps: Vec<Keystrokes>) -> Self {
        let mut steps = steps.into_iter();
        let next = steps.next();
        Self { steps, next, seen: Vec::new() }
    }

    /// Takes the next piece of output and returns what is to be typed now.
    pub(crate) fn read(&mut self, output: &[u8]) -> String {
        let mut keys = String::new();
        if self.next.is_none() {
            return keys;
        }
        self.seen.extend(output);
        while let Some(step) = &self.next {
            let text = step.after.as_bytes();
            let found = self.seen.windows(text.len().max(1)).position(|window| window == text);
            let Some(at) = found else { break };
            self.seen.drain(..at + text.len());
            keys.push_str(&step.send);
            self.next = self.steps.next();
        }
        let surplus = self.seen.len().saturating_sub(WINDOW);
        self.seen.drain(..surplus);
        keys
    }

    /// The text that the script waits for; `None` when all is typed.
    pub(crate) fn waits_for(&self) -> Option<&str> {
        self.next.as_ref().map(|step| step.after.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::{Keystrokes, Script, WINDOW};

    fn script(steps: &[(&str, &str)]) -> Script {
        let steps = steps
            .iter()
            .map(|&(after, send)| Keystrokes { after: after.to_owned(), send: send.to_owned() });
        Script::new(steps.collect())
    }

    #[test]
    fn keys_follow_their_texts_in_order() {
        let mut script = script(&[("=> ", "one\n"), ("=> ", "two\n"), ("done", "x")]);
        assert_eq!(script.read(b"done\r\nboot =>"), "");
        assert_eq!(script.read(b" "), "one\n");
        assert_eq!(script.waits_for(), Some("=> "));
        assert_eq!(script.read(b"one\r\n=> do"), "two\n");
        assert_eq!(script.read(b"ne"), "x");
        assert_eq!(script.waits_for(), None);
        assert_eq!(script.read(b"=> done"), "");
    }

    #[test]
    fn a_text_is_found_in_any_amount_of_output() {
        let mut script = script(&[("here", "y")]);
        (0..3).for_each(|_| assert_eq!(script.read("\u{e9}".repeat(WINDOW).as_bytes()), ""));
        assert_eq!(script.read(b"her\xff here"), "y");
    }
}
