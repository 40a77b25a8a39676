//! Commands of the monitor.

use core::fmt;
use log::LevelFilter;

/// What the monitor answers to `help`.
pub const HELP: &[&str] = &[
    "vm list                   the VMs and what they are doing",
    "vm show NAME              one VM with its vCPUs and exits",
    "vm pause|resume NAME      keep its vCPUs from running; let them run on",
    "vm stop NAME              power it off; it can be started again",
    "vm start NAME             run it, built anew",
    "vm restart NAME           stop it and start it again",
    "vm create NAME            build it, and do not run it yet",
    "vm destroy NAME           power it off for good: the scenario does not wait for it",
    "console NAME              attach the terminal to its console",
    "cpu                       cores and what they run",
    "mem                       physical memory by use",
    "granules                  granules by state and owner",
    "irq                       physical interrupts by source",
    "trace [CORE]              the last exits of the cores, or of one",
    "log off|error|warn|info|debug|trace",
    "help                      this",
    "Ctrl-T and 1 to 9, n (next), m (monitor), ? switch consoles; Ctrl-T twice is Ctrl-T",
];

/// What to do with a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmAction {
    /// Say what there is to say about it.
    Show,
    /// Build it if it is not, and run it.
    Start,
    /// Keep its vCPUs from running.
    Pause,
    /// End a pause.
    Resume,
    /// Power it off.
    Stop,
    /// Stop it and start it again.
    Restart,
    /// Build it.
    Create,
    /// Power it off for good.
    Destroy,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The line was empty.
    Nothing,
    /// Say what commands there are.
    Help,
    /// List the VMs.
    List,
    /// Do something with the VM of this name.
    Vm(VmAction, &'a str),
    /// Attach the terminal to the console of the VM of this name.
    Console(&'a str),
    /// Say what the cores do.
    Cpu,
    /// Say what memory there is.
    Memory,
    /// Say where the granules are.
    Granules,
    /// Say which interrupts came.
    Irq,
    /// Show the last exits, of one core or of all.
    Trace(Option<usize>),
    /// Log messages up to this level.
    Log(LevelFilter),
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError<'a> {
    /// There is no such command.
    UnknownCommand(&'a str),
    /// There is no such action on VMs.
    UnknownAction(&'a str),
    /// The command needs one more word.
    Missing(&'static str),
    /// The command has one word too many.
    Surplus(&'a str),
    /// Not the number of a core.
    NotACore(&'a str),
    /// Not a log level.
    NotALevel(&'a str),
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCommand(word) => write!(f, "no command \"{word}\"; try help"),
            Self::UnknownAction(word) => write!(f, "no command \"vm {word}\"; try help"),
            Self::Missing(what) => write!(f, "{what} is missing; try help"),
            Self::Surplus(word) => write!(f, "\"{word}\" is one word too many; try help"),
            Self::NotACore(word) => write!(f, "\"{word}\" is not the number of a core"),
            Self::NotALevel(word) => write!(f, "\"{word}\" is not a log level; try help"),
        }
    }
}

impl core::error::Error for ParseError<'_> {}

impl<'a> Command<'a> {
    /// Understands a line.
    ///
    /// # Errors
    ///
    /// [`ParseError`], which says what is wrong with it.
    pub fn parse(line: &'a str) -> Result<Self, ParseError<'a>> {
        let mut words = line.split_ascii_whitespace();
        let command = match words.next() {
            None => Self::Nothing,
            Some("help" | "?") => Self::Help,
            Some("vm") => vm(&mut words)?,
            Some("console") => Self::Console(name(&mut words)?),
            Some("cpu") => Self::Cpu,
            Some("mem") => Self::Memory,
            Some("granules") => Self::Granules,
            Some("irq") => Self::Irq,
            Some("trace") => Self::Trace(words.next().map(core_number).transpose()?),
            Some("log") => {
                let level = words.next().ok_or(ParseError::Missing("a log level"))?;
                Self::Log(level.parse().map_err(|_| ParseError::NotALevel(level))?)
            }
            Some(other) => return Err(ParseError::UnknownCommand(other)),
        };
        words.next().map_or(Ok(command), |word| Err(ParseError::Surplus(word)))
    }
}

fn vm<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<Command<'a>, ParseError<'a>> {
    let action = match words.next().ok_or(ParseError::Missing("what to do"))? {
        "list" => return Ok(Command::List),
        "show" => VmAction::Show,
        "start" => VmAction::Start,
        "pause" => VmAction::Pause,
        "resume" => VmAction::Resume,
        "stop" => VmAction::Stop,
        "restart" => VmAction::Restart,
        "create" => VmAction::Create,
        "destroy" => VmAction::Destroy,
        other => return Err(ParseError::UnknownAction(other)),
    };
    Ok(Command::Vm(action, name(words)?))
}

fn name<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<&'a str, ParseError<'a>> {
    words.next().ok_or(ParseError::Missing("the name of a VM"))
}

fn core_number(word: &str) -> Result<usize, ParseError<'_>> {
    word.parse().map_err(|_| ParseError::NotACore(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn commands_and_their_words() {
        let cases = [
            ("", Command::Nothing),
            ("  ", Command::Nothing),
            ("help", Command::Help),
            (" vm  list ", Command::List),
            ("vm show linux", Command::Vm(VmAction::Show, "linux")),
            ("vm pause x", Command::Vm(VmAction::Pause, "x")),
            ("vm resume x", Command::Vm(VmAction::Resume, "x")),
            ("vm stop x", Command::Vm(VmAction::Stop, "x")),
            ("vm start a-1", Command::Vm(VmAction::Start, "a-1")),
            ("vm restart x", Command::Vm(VmAction::Restart, "x")),
            ("vm create x", Command::Vm(VmAction::Create, "x")),
            ("vm destroy x", Command::Vm(VmAction::Destroy, "x")),
            ("console x", Command::Console("x")),
            ("cpu", Command::Cpu),
            ("mem", Command::Memory),
            ("granules", Command::Granules),
            ("irq", Command::Irq),
            ("trace", Command::Trace(None)),
            ("trace 3", Command::Trace(Some(3))),
            ("log debug", Command::Log(LevelFilter::Debug)),
            ("log OFF", Command::Log(LevelFilter::Off)),
        ];
        for (line, command) in cases {
            assert_eq!(Command::parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("vms", "no command \"vms\"; try help"),
            ("vm kill x", "no command \"vm kill\"; try help"),
            ("vm", "what to do is missing; try help"),
            ("vm stop", "the name of a VM is missing; try help"),
            ("vm list x", "\"x\" is one word too many; try help"),
            ("cpu 1", "\"1\" is one word too many; try help"),
            ("trace -1", "\"-1\" is not the number of a core"),
            ("trace 99999999999999999999", "\"99999999999999999999\" is not the number of a core"),
            ("log", "a log level is missing; try help"),
            ("log loud", "\"loud\" is not a log level; try help"),
            ("console", "the name of a VM is missing; try help"),
        ];
        for (line, message) in cases {
            assert_eq!(Command::parse(line).unwrap_err().to_string(), message, "{line}");
        }
    }
}
