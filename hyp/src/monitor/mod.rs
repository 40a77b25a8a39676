//! The operator's console: who has the keyboard and the terminal, and the monitor's commands.
//!
//! At first, and whenever the monitor has the keyboard, the lines of all VMs are shown, each with the
//! name of its VM. A VM that has the keyboard has the terminal too: its bytes go out as they are,
//! and the lines of other VMs are left out and counted. Messages of the hypervisor are always shown.

mod commands;
pub mod trace;

use crate::console;
use crate::println;
use crate::run;
use crate::sync::Lock;
use crate::vm::{self, Vm};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use operator::{Command, Editor, HELP, Key, Keys, LINE_MAX, Step};

/// What the monitor's line begins with.
const PROMPT: &str = "suzerain> ";
/// No VM.
const NONE: usize = usize::MAX;

/// Index of the VM that has keyboard and terminal, or [`NONE`].
static ATTACHED: AtomicUsize = AtomicUsize::new(NONE);
/// Lines of other VMs that were left out meanwhile.
static HIDDEN_LINES: AtomicU64 = AtomicU64::new(0);
static KEYBOARD: Lock<Keyboard> = Lock::new(Keyboard { keys: Keys::new(), editor: Editor::new() });

struct Keyboard {
    keys: Keys,
    editor: Editor,
}

/// The VM that has the terminal to itself, by its index.
#[must_use]
pub fn attached() -> Option<usize> {
    let index = ATTACHED.load(Ordering::Relaxed);
    (index != NONE).then_some(index)
}

/// Counts a line of a VM that is left out because another one has the terminal.
pub fn note_hidden_line() {
    HIDDEN_LINES.fetch_add(1, Ordering::Relaxed);
}

/// Does what the operator has typed. Every core calls this between vCPUs; no lock is held then.
pub fn work() {
    let mut input = console::take_input();
    while !input.is_empty() {
        let mut keyboard = KEYBOARD.lock();
        for byte in input {
            keyboard.press(byte);
        }
        input = console::take_input();
    }
}

impl Keyboard {
    fn press(&mut self, byte: u8) {
        match self.keys.press(byte) {
            None => {}
            Some(Key::Input(byte)) => match attached().and_then(|index| vm::all().get(index)) {
                Some(vm) => type_to(vm, byte),
                None => self.edit(byte),
            },
            Some(Key::Attach(index)) => attach(index),
            Some(Key::Next) => {
                attach(attached().map_or(0, |index| index + 1) % vm::all().len().max(1))
            }
            Some(Key::Monitor) => {
                detach();
                self.prompt();
            }
            Some(Key::Help) => help(),
            Some(Key::Unknown(_)) => console::ring_bell(),
        }
    }

    fn prompt(&self) {
        console::set_bottom_line(format_args!("{PROMPT}{}", self.editor.line()));
    }

    fn edit(&mut self, byte: u8) {
        match self.editor.put(byte) {
            Step::None => {}
            Step::Changed => self.prompt(),
            Step::Refused => console::ring_bell(),
            Step::Done(line) => {
                end_line(&line);
                match Command::parse(&line) {
                    Ok(command) => commands::run(&command),
                    Err(error) => println!("{error}"),
                }
                if attached().is_none() {
                    self.prompt();
                }
            }
            Step::Cut(line) => {
                end_line(&line);
                println!("not done: the line is longer than {LINE_MAX} characters");
                self.prompt();
            }
        }
    }
}

/// Makes the operator's line a part of the output.
fn end_line(line: &str) {
    console::set_bottom_line(format_args!("{PROMPT}{line}"));
    console::end_bottom_line();
}

fn help() {
    for line in HELP {
        println!("{line}");
    }
}

/// Types a byte on the console of `vm`; the bell tells that nobody takes it.
fn type_to(vm: &'static Vm, byte: u8) {
    let (taken, wake) = match vm.services.lock().as_mut() {
        Some(services) => services.console_input(&[byte]),
        None => (0, vmm_services::VcpuSet::EMPTY),
    };
    if taken == 0 {
        console::ring_bell();
    }
    // This core is about to pick anew as it is.
    run::wake_set(vm, wake);
}

/// Gives keyboard and terminal to the VM of this index.
fn attach(index: usize) {
    let Some(vm) = vm::all().get(index) else {
        console::ring_bell();
        return;
    };
    detach();
    if let Some(services) = vm.services.lock().as_mut() {
        services.flush_console(&mut vm::output::VmConsole(vm));
    }
    println!("[console of {}; Ctrl-T m for the monitor]", vm.name());
    ATTACHED.store(index, Ordering::Relaxed);
}

/// Goes back to the view of all VMs, with the keyboard for the monitor.
pub fn detach() {
    console::end_bottom_line();
    if ATTACHED.swap(NONE, Ordering::Relaxed) == NONE {
        return;
    }
    match HIDDEN_LINES.swap(0, Ordering::Relaxed) {
        0 => println!("[monitor; Ctrl-T ? for help]"),
        lines => println!("[monitor; Ctrl-T ? for help; {lines} lines of other VMs were left out]"),
    }
}
