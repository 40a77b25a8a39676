//! Running other programs: with a progress line, a log file, and an error that names both.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a step that still runs says so.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Lines of a failed step's log that are repeated on the terminal.
const TAIL_LINES: usize = 25;

/// Runs `command` as one step of a longer job.
///
/// Prints `what` at the start and the time at the end, and every ten seconds in between the last
/// line that the program printed. All its output goes to `log`.
///
/// # Errors
///
/// When the program cannot be started or does not exit with 0; the message carries the end of
/// its output.
pub(crate) fn step(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    eprintln!("  {what} ...");
    let start = Instant::now();
    let status = logged(command, log)?;
    if !status.success() {
        bail!("{what}: {status}; the log is {}\n{}", log.display(), tail(log));
    }
    eprintln!("  {what}: done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Runs `command` with all its output to `log` and, every ten seconds, the last line of it to the
/// standard error, since the standard output is for results.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let start = Instant::now();
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut log_file = File::create(log).with_context(|| format!("cannot write {log:?}"))?;
    writeln!(log_file, "$ {command:?}")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let (sender, lines) = mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                // A closed channel means that the step has ended.
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);
    let mut last = String::new();
    let mut next_beat = start + HEARTBEAT;
    loop {
        match lines.recv_timeout(next_beat.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(log_file, "{line}")?;
                if !line.trim().is_empty() {
                    last = line;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                next_beat += HEARTBEAT;
                let shown: String = last.trim().chars().take(90).collect();
                eprintln!("    {:>4} s  {shown}", start.elapsed().as_secs());
            }
        }
    }
    Ok(child.wait()?)
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !out.status.success() {
        let reason = String::from_utf8_lossy(&out.stderr);
        bail!("{command:?} failed: {}", reason.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Where a program lies on the path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Writes a file by way of a temporary name, so that an interrupted run leaves no half file.
pub(crate) fn write_atomically(path: &Path, data: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let partial = path.with_file_name(name);
    fs::write(&partial, data).with_context(|| format!("cannot write {partial:?}"))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {path:?}"))
}
