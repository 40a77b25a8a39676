//! What the hypervisor says on its console, and what that means for a run.
//!
//! One UART carries the lines of firmware, RMM and hypervisor. Lines of guests begin with the VM's
//! name and a bar, so a guest cannot speak for the hypervisor.

use crate::scenario::{Expect, Scenario};

/// A line that means something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A boot stage was reached: `[stage NN] text`.
    Stage(&'a str),
    /// A guest printed: `NAME| text`.
    Guest { vm: &'a str, text: &'a str },
    /// A VM changed its state: `[INFO core N] vm NAME: state`.
    State(&'a str),
    /// Whether all granules came back: `granules: ...`.
    Granules(&'a str),
    /// How a VM ended: `end vm=NAME kind=... state=... reason="..." expect=... ok=...`.
    End(End<'a>),
    /// The hypervisor's own verdict: `scenario NAME: ok`.
    Verdict { scenario: &'a str, ok: bool },
    /// Anything else.
    Other,
}

/// How a VM ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End<'a> {
    pub(crate) vm: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) state: &'a str,
    pub(crate) reason: &'a str,
    pub(crate) ok: bool,
}

impl<'a> Line<'a> {
    /// Understands one line without its end.
    pub(crate) fn parse(line: &'a str) -> Self {
        if let Some((vm, text)) = guest(line) {
            return Self::Guest { vm, text };
        }
        if let Some(rest) = line.strip_prefix('[') {
            let Some((tag, text)) = rest.split_once("] ") else { return Self::Other };
            return match tag.split_once(' ') {
                Some(("stage", _)) => Self::Stage(line),
                Some(_) if text.starts_with("vm ") && text.contains(": ") => Self::State(text),
                _ => Self::Other,
            };
        }
        if let Some(text) = line.strip_prefix("granules: ") {
            return Self::Granules(text);
        }
        if let Some(end) = line.strip_prefix("end ").and_then(End::parse) {
            return Self::End(end);
        }
        match line.strip_prefix("scenario ").and_then(|l| l.rsplit_once(": ")) {
            Some((scenario, "ok")) => Self::Verdict { scenario, ok: true },
            Some((scenario, "failed")) => Self::Verdict { scenario, ok: false },
            _ => Self::Other,
        }
    }
}

/// A guest's line: a name and a bar.
fn guest(line: &str) -> Option<(&str, &str)> {
    let (vm, text) = line.split_once('|')?;
    let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = vm.starts_with(|c: char| c.is_ascii_lowercase()) && vm.chars().all(name);
    is_name.then(|| (vm, text.strip_prefix(' ').unwrap_or(text)))
}

impl<'a> End<'a> {
    /// Reads `key=value` pairs; values in quotation marks may hold spaces.
    fn parse(mut text: &'a str) -> Option<Self> {
        let mut end = Self::default();
        loop {
            text = text.trim_start();
            let Some((key, rest)) = text.split_once('=') else { break };
            let (value, rest) = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => rest.split_once(' ').unwrap_or((rest, "")),
            };
            match key {
                "vm" => end.vm = value,
                "kind" => end.kind = value,
                "state" => end.state = value,
                "reason" => end.reason = value,
                "ok" => end.ok = value == "yes",
                _ => {}
            }
            text = rest;
        }
        (!end.vm.is_empty() && !end.state.is_empty()).then_some(end)
    }
}

/// An [`End`] that outlives its line.
#[derive(Clone, Debug)]
struct Ended {
    vm: String,
    state: String,
    reason: String,
    ok: bool,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes and returns the lines that end in them.
    pub(crate) fn split(&mut self, bytes: &[u8]) -> Vec<String> {
        self.begun.extend(bytes);
        let Some(end) = self.begun.iter().rposition(|&byte| byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.begun.split_off(end + 1);
        let whole = std::mem::replace(&mut self.begun, rest);
        whole[..end].split(|&byte| byte == b'\n').map(visible).collect()
    }

    /// The line that has not ended, if there is one.
    pub(crate) fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.begun);
        (!rest.is_empty()).then(|| visible(&rest))
    }
}

/// What is left on the screen of a line: the monitor shows the operator's line below all others,
/// and erases it (carriage return, erase) to print one.
fn visible(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    text.rsplit("\r\x1b[K").next().unwrap_or(text).to_owned()
}

/// What was seen on the console of one run.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    pub(crate) last_stage: Option<String>,
    pub(crate) last_state: Option<String>,
    granules: Option<String>,
    ended: Vec<Ended>,
    verdicts: Vec<(String, bool)>,
    /// Text after which something was to be typed, and which did not come.
    pub(crate) waited_for: Option<String>,
    /// All lines, in order.
    pub(crate) lines: Vec<String>,
}

impl Transcript {
    /// Takes the next line, without its end.
    pub(crate) fn take(&mut self, line: &str) {
        match Line::parse(line) {
            Line::Stage(text) => self.last_stage = Some(text.to_owned()),
            Line::State(text) => self.last_state = Some(text.to_owned()),
            Line::Granules(text) => self.granules = Some(text.to_owned()),
            Line::End(end) => self.ended.push(Ended {
                vm: end.vm.to_owned(),
                state: end.state.to_owned(),
                reason: end.reason.to_owned(),
                ok: end.ok,
            }),
            Line::Verdict { scenario, ok } => self.verdicts.push((scenario.to_owned(), ok)),
            Line::Guest { .. } | Line::Other => {}
        }
        self.lines.push(line.to_owned());
    }

    /// True once the hypervisor has nothing more to say.
    pub(crate) fn has_verdict(&self) -> bool {
        !self.verdicts.is_empty()
    }

    /// The end state of a VM, if the hypervisor told it.
    pub(crate) fn end_state(&self, vm: &str) -> Option<&str> {
        self.ended.iter().find(|end| end.vm == vm).map(|end| end.state.as_str())
    }

    /// What no VM printed, line by line.
    pub(crate) fn own_lines(&self) -> Vec<&str> {
        let lines = self.lines.iter().map(String::as_str);
        lines.filter(|line| !matches!(Line::parse(line), Line::Guest { .. })).collect()
    }

    /// What the VM printed, line by line.
    pub(crate) fn guest_lines<'a>(&'a self, vm: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| match Line::parse(line) {
            Line::Guest { vm: name, text } if name == vm => Some(text),
            _ => None,
        })
    }

    /// How often the console changed from a line of one of these VMs to a line of the other.
    pub(crate) fn changes_between(&self, vms: [&str; 2]) -> usize {
        let mut speakers: Vec<&str> = self
            .lines
            .iter()
            .filter_map(|line| match Line::parse(line) {
                Line::Guest { vm, .. } if vms.contains(&vm) => Some(vm),
                _ => None,
            })
            .collect();
        speakers.dedup();
        speakers.len().saturating_sub(1)
    }

    /// What the hypervisor says about granules, unless all are back.
    pub(crate) fn granule_fault(&self) -> Option<String> {
        match self.granules.as_deref() {
            Some(text) if text.starts_with("all ") && text.ends_with(" returned") => None,
            Some(text) => Some(format!("granules: {text}")),
            None => Some("no word about the granules".to_owned()),
        }
    }

    /// Everything that keeps the run from being a success; empty for a success.
    ///
    /// The hypervisor's verdict alone is not enough: each VM must have reached the state that the
    /// scenario names, and each granule must be back.
    pub(crate) fn faults(&self, scenario: &Scenario) -> Vec<String> {
        let mut faults = Vec::new();
        for vm in &scenario.vms {
            let ends: Vec<&Ended> = self.ended.iter().filter(|end| end.vm == vm.name).collect();
            let [end] = ends.as_slice() else {
                faults.push(format!("vm {}: {} end lines", vm.name, ends.len()));
                continue;
            };
            let wanted = vm.expect_reason.as_deref().unwrap_or_default();
            if end.state != vm.expect.name() || !end.reason.contains(wanted) || !end.ok {
                faults.push(format!(
                    "vm {}: {}{}, expected {}{}",
                    vm.name,
                    end.state,
                    because(&end.reason),
                    vm.expect.name(),
                    because(if vm.expect == Expect::Off { "" } else { wanted }),
                ));
            }
        }
        for end in self.ended.iter().filter(|e| scenario.vms.iter().all(|vm| vm.name != e.vm)) {
            faults.push(format!("vm {}: not in the scenario", end.vm));
        }
        if let Some(text) = &self.waited_for {
            faults.push(format!("not seen, so nothing was typed after it: {text}"));
        }
        faults.extend(self.granule_fault());
        match self.verdicts.as_slice() {
            [(name, true)] if *name == scenario.name => {}
            [] => faults.push("the hypervisor gave no verdict".to_owned()),
            [(name, ok), ..] => faults.push(format!(
                "the hypervisor says: scenario {name}: {}",
                if *ok { "ok" } else { "failed" }
            )),
        }
        faults
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" (\"{reason}\")") }
}

#[cfg(test)]
#[path = "console_tests.rs"]
mod tests;
