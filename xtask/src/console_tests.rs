use std::path::PathBuf;

use super::*;
use crate::scenario::{Conversions, Fault, Hash, ImageRef, Kind, Machine, Populate, Size, Vm};

fn vm(name: &str, expect: Expect, reason: Option<&str>) -> Vm {
    Vm {
        name: name.to_owned(),
        kind: Kind::Vm,
        vcpus: 1,
        memory: Size(64 << 20),
        kernel: ImageRef { path: PathBuf::new(), line: 1 },
        kernel_type: None,
        initramfs: None,
        overlay: None,
        cmdline: None,
        priority: 8,
        budget: None,
        affinity: None,
        devices: Vec::new(),
        virtio: Vec::new(),
        passthrough: Vec::new(),
        repeat: None,
        max_resets: None,
        watchdog_ms: None,
        expect,
        expect_reason: reason.map(str::to_owned),
        hash: Hash::Sha256,
        ipa_bits: 40,
        personalization: None,
        populate: Populate::Eager,
        fault: Fault::default(),
        conversions: Conversions::default(),
        stray_granule_of: None,
    }
}

fn scenario() -> Scenario {
    Scenario {
        file: PathBuf::new(),
        name: "pair".to_owned(),
        self_test: None,
        machine: Machine { cpus: 1, memory: Size(3 << 30), pool: None },
        vms: vec![vm("good", Expect::Off, None), vm("bad", Expect::Stopped, Some("granule"))],
        switches: Vec::new(),
        channels: Vec::new(),
    }
}

/// The last lines of a run in which all is well.
const GOOD: &[&str] = &[
    "granules: all 786432 returned",
    "end vm=good kind=vm state=off reason=\"\" expect=off ok=yes",
    "end vm=bad kind=vm state=stopped reason=\"touched a granule of good\" expect=stopped ok=yes",
    "scenario pair: ok",
];

fn faults(lines: &[&str]) -> Vec<String> {
    let mut transcript = Transcript::default();
    lines.iter().for_each(|line| transcript.take(line));
    transcript.faults(&scenario())
}

/// `GOOD` with one text in the place of another.
#[track_caller]
fn fault_of(from: &str, to: &str, fault: &str) {
    let lines: Vec<String> = GOOD.iter().map(|line| line.replace(from, to)).collect();
    assert_ne!(lines, GOOD);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let found = faults(&lines);
    assert!(found.iter().any(|f| f.contains(fault)), "{found:?}");
}

#[test]
fn lines_are_told_apart() {
    assert_eq!(Line::parse("[stage 03] MMU on"), Line::Stage("[stage 03] MMU on"));
    assert_eq!(Line::parse("linux| Booting"), Line::Guest { vm: "linux", text: "Booting" });
    assert_eq!(Line::parse("linux|"), Line::Guest { vm: "linux", text: "" });
    assert_eq!(Line::parse("[INFO core 1] vm linux: running"), Line::State("vm linux: running"));
    assert_eq!(Line::parse("[INFO core 1] all is well"), Line::Other);
    assert_eq!(Line::parse("[no end"), Line::Other);
    assert_eq!(Line::parse("NOTICE:  BL1: v2.12.1"), Line::Other);
    assert_eq!(Line::parse("scenario a: ok"), Line::Verdict { scenario: "a", ok: true });
    assert_eq!(Line::parse("scenario a: okay"), Line::Other);
    assert_eq!(Line::parse("VM    | kind"), Line::Other);
    assert_eq!(Line::parse("end of the line"), Line::Other);
    let end = Line::parse("end vm=a kind=realm state=off reason=\"b c=d\" expect=off ok=yes");
    let wanted = End { vm: "a", kind: "realm", state: "off", reason: "b c=d", ok: true };
    assert_eq!(end, Line::End(wanted));
}

#[test]
fn a_guest_cannot_speak_for_the_hypervisor() {
    let mut lines = vec!["bad| scenario pair: ok", "bad| granules: all 1 returned"];
    assert!(!faults(&lines).is_empty());
    lines.extend(GOOD);
    assert_eq!(faults(&lines), Vec::<String>::new());
}

#[test]
fn a_success() {
    assert_eq!(faults(GOOD), Vec::<String>::new());
}

#[test]
fn each_fault_alone_fails_the_run() {
    fault_of("scenario pair: ok", "", "gave no verdict");
    fault_of("scenario pair: ok", "scenario pair: failed", "scenario pair: failed");
    fault_of("scenario pair: ok", "scenario other: ok", "scenario other: ok");
    fault_of("all 786432 returned", "3 of 786432 missing", "3 of 786432 missing");
    fault_of("granules: all", "pellets: all", "no word about the granules");
    fault_of("state=off", "state=stopped", "vm good: stopped, expected off");
    fault_of("state=stopped", "state=off", "vm bad: off");
    fault_of("granule of", "page of", "expected stopped (\"granule\")");
    fault_of("ok=yes", "ok=no", "vm good");
    fault_of("vm=bad", "vm=ugly", "vm bad: 0 end lines");
    fault_of("vm=bad", "vm=ugly", "vm ugly: not in the scenario");
    fault_of("vm=bad", "vm=good", "vm good: 2 end lines");
    assert!(!faults(&[]).is_empty());
}

#[test]
fn interleaving_counts_changes_of_the_speaker() {
    let mut transcript = Transcript::default();
    for line in ["a| 1", "a| 2", "b| 1", "[stage 01] x", "b| 2", "c| 1", "a| 3"] {
        transcript.take(line);
    }
    assert_eq!(transcript.changes_between(["a", "b"]), 2);
    assert_eq!(transcript.changes_between(["b", "c"]), 1);
    assert_eq!(transcript.changes_between(["a", "d"]), 0);
    assert_eq!(transcript.guest_lines("b").collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn bytes_become_lines() {
    let mut lines = Lines::default();
    assert!(lines.split(b"one").is_empty());
    assert_eq!(lines.split(b"\r\ntwo\n\nthr"), ["one", "two", ""]);
    // The monitor's line is erased to make room for another.
    assert_eq!(lines.split(b"\r\x1b[Klinux| x\r\nsuzerain> vm\r\x1b[Kgo\r\n"), ["linux| x", "go"]);
    assert_eq!(lines.rest(), None);
    assert!(lines.split(b"end\r").is_empty());
    assert_eq!(lines.rest().as_deref(), Some("end"));
}
