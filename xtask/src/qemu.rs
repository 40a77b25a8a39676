//! One run of QEMU: its command line, its life, and what came out of its serial port.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::console::{Lines, Transcript};
use crate::firmware::HYPERVISOR_BASE;
use crate::keyboard::{self, Keyboard, Script, Share};
use crate::process::find_program;
use crate::scenario::Size;

/// Root node of QEMU's `virt` machine, by which `boards` knows it.
const VIRT: &str = "linux,dummy-virt";

/// Start of the RAM of that machine.
const RAM_BASE: u64 = 0x4000_0000;

/// How long the machine may take to power off after the hypervisor's last line.
const POWER_OFF_TIME: Duration = Duration::from_secs(10);

/// How often the loop looks for signals and deadlines.
const TICK: Duration = Duration::from_millis(100);

/// What enters the hypervisor.
#[derive(Clone, Debug)]
pub(crate) enum Boot {
    /// EL3 firmware in a flash image, on a machine with RME.
    Flash(PathBuf),
    /// QEMU itself, at EL2, on a machine without EL3 and RME whose cores are of this model.
    Direct(String),
}

impl Boot {
    /// Without firmware, on cores that have all that QEMU knows.
    pub(crate) fn direct() -> Self {
        Self::Direct("max".to_owned())
    }
}

/// A machine to run.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) boot: &'a Boot,
    pub(crate) cpus: u32,
    pub(crate) memory: Size,
    pub(crate) hypervisor: &'a Path,
    pub(crate) bundle: &'a Path,
    /// Wait for a debugger before the first instruction.
    pub(crate) gdb: bool,
    /// Count instructions.
    pub(crate) counting: Option<&'a Counting>,
}

/// Counts of instructions by a plugin; see `tests/count`. The machine is then deterministic: one
/// instruction takes one nanosecond of its time, and nothing depends on the time of the day.
#[derive(Debug)]
pub(crate) struct Counting {
    pub(crate) plugin: PathBuf,
    /// Where the plugin writes its counts.
    pub(crate) result: PathBuf,
    /// Where the serial port writes: to a file, since how fast a pipe is read shows in the state of
    /// the UART, and so in how often guests and firmware ask for it.
    pub(crate) output: PathBuf,
    /// Physical base and bytes of the hypervisor.
    pub(crate) hypervisor: (u64, u64),
    /// Physical base and bytes of the RMM.
    pub(crate) rmm: Option<(u64, u64)>,
}

impl Counting {
    fn arguments(&self, memory: Size) -> Vec<String> {
        let range = |(base, size): (u64, u64)| format!("{base:#x}:{size:#x}");
        let mut plugin = format!(
            "file={},out={},ram={},hypervisor={}",
            escaped(&self.plugin),
            escaped(&self.result),
            range((RAM_BASE, memory.0)),
            range(self.hypervisor),
        );
        if let Some(rmm) = self.rmm {
            plugin += &format!(",rmm={}", range(rmm));
        }
        let fixed = "-icount shift=0,sleep=off -seed 1 -rtc base=2026-01-01T00:00:00,clock=vm";
        fixed.split(' ').map(str::to_owned).chain(["-plugin".to_owned(), plugin]).collect()
    }
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// QEMU ended by itself, as it does when the machine powers off.
    PoweredOff,
    /// QEMU ended with an error.
    Failed(ExitStatus),
    /// The time was over; QEMU was killed.
    TimedOut,
    /// The hypervisor said its last line and did not power the machine off; QEMU was killed.
    StillOn,
}

/// Where the serial output goes and its input comes from.
#[derive(Debug)]
pub(crate) struct Serial<'a> {
    pub(crate) log: &'a Path,
    /// Output goes to standard output too.
    pub(crate) live: bool,
    /// What of the keyboard is the machine's.
    pub(crate) keys: Share,
    /// What is typed by itself.
    pub(crate) script: Script,
}

/// Set by SIGINT, SIGTERM and SIGHUP.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// True once this process was asked to end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

impl Machine<'_> {
    /// The command line.
    ///
    /// # Errors
    ///
    /// When the bundle does not fit the machine's memory.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = tied_to_this_process("qemu-system-aarch64");
        command.args(["-display", "none", "-monitor", "none", "-serial"]);
        match self.counting {
            Some(counting) => command.arg(format!("file:{}", counting.output.display())),
            None => command.arg("stdio"),
        };
        command.args(["-nodefaults", "-no-reboot", "-cpu"]);
        let machine = |options: &str| match self.counting {
            Some(_) => format!("{options},dtb-randomness=off"),
            None => options.to_owned(),
        };
        match self.boot {
            Boot::Flash(flash) => {
                let bundle_base = bundle_base().context("the board names no place for a bundle")?;
                let bundle_size = std::fs::metadata(self.bundle)?.len();
                ensure!(
                    bundle_base + bundle_size <= RAM_BASE + self.memory.0,
                    "the bundle of {} does not fit between {bundle_base:#x} and the end of {}",
                    Size(bundle_size),
                    self.memory,
                );
                command.args(["max,x-rme=on", "-M"]);
                command.arg(machine("virt,virtualization=on,secure=on,gic-version=3,acpi=off"));
                command.arg("-bios").arg(flash);
                command.arg("-device").arg(loader(self.hypervisor, HYPERVISOR_BASE));
                command.arg("-device").arg(loader(self.bundle, bundle_base));
            }
            Boot::Direct(core) => {
                command.args([core, "-M"]);
                command.arg(machine("virt,virtualization=on,gic-version=3,acpi=off"));
                command.arg("-kernel").arg(self.hypervisor);
                command.arg("-initrd").arg(self.bundle);
            }
        }
        command.args(["-smp", &self.cpus.to_string()]);
        command.args(["-m", &format!("{}M", self.memory.0 >> 20)]);
        if let Some(counting) = self.counting {
            command.args(counting.arguments(self.memory));
        }
        if self.gdb {
            command.args(["-S", "-gdb", "tcp:127.0.0.1:1234"]);
        }
        Ok(command)
    }

    /// Runs the machine until it powers off, `timeout` is over, or this process is to end.
    ///
    /// # Errors
    ///
    /// When QEMU cannot be started, the log cannot be written, or a signal came in.
    pub(crate) fn run(
        &self,
        serial: Serial<'_>,
        timeout: Option<Duration>,
    ) -> Result<(Ending, Transcript)> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // Without a handler the signal ends this process, and the kernel QEMU with it.
            let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
        });
        let mut command = self.command()?;
        let mut log = File::create(serial.log).with_context(|| format!("{:?}", serial.log))?;
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let (ending, mut transcript) = Running { child }.follow(&mut log, serial, timeout)?;
        if let Some(counting) = self.counting {
            let output = std::fs::read(&counting.output)?;
            for line in String::from_utf8_lossy(&output).lines() {
                writeln!(log, "{line}")?;
                transcript.take(line);
            }
        }
        Ok((ending, transcript))
    }
}

/// A QEMU that is killed when this is dropped.
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn follow(
        mut self,
        log: &mut File,
        serial: Serial<'_>,
        timeout: Option<Duration>,
    ) -> Result<(Ending, Transcript)> {
        let Serial { live, keys, mut script, .. } = serial;
        let port = self.child.stdin.take().map(|stdin| Arc::new(Mutex::new(stdin)));
        let keyboard = match &port {
            Some(port) => Keyboard::connect(keys, port)?,
            None => None,
        };
        let pieces = self.output();
        let mut lines = [Lines::default(), Lines::default()];
        let mut transcript = Transcript::default();
        let mut take = |line: String, transcript: &mut Transcript| {
            transcript.take(&line);
            writeln!(log, "{line}")
        };
        let mut deadline = timeout.map(|t| Instant::now() + t);
        let mut late = Ending::TimedOut;
        let ending = loop {
            match pieces.recv_timeout(TICK) {
                Ok((stream, bytes)) => {
                    if live {
                        let mut stdout = std::io::stdout().lock();
                        stdout.write_all(&bytes)?;
                        stdout.flush()?;
                    }
                    for line in lines[stream].split(&bytes) {
                        take(line, &mut transcript)?;
                    }
                    let keys = script.read(&bytes);
                    if let Some(port) = port.as_ref().filter(|_| !keys.is_empty()) {
                        keyboard::send(port, keys.as_bytes());
                    }
                    if transcript.has_verdict() && late == Ending::TimedOut {
                        deadline = Some(Instant::now() + POWER_OFF_TIME);
                        late = Ending::StillOn;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break None,
            }
            if keyboard.as_ref().is_some_and(Keyboard::wants_to_quit) {
                return Err(anyhow!("ended by Ctrl-]"));
            }
            if interrupted() {
                return Err(anyhow!("interrupted"));
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                break Some(late);
            }
        };
        for line in lines.iter_mut().filter_map(Lines::rest) {
            take(line, &mut transcript)?;
        }
        transcript.waited_for = script.waits_for().map(str::to_owned);
        let ending = match ending {
            Some(late) => late,
            None => match self.child.wait()? {
                status if status.success() => Ending::PoweredOff,
                status => Ending::Failed(status),
            },
        };
        Ok((ending, transcript))
    }

    /// Both output streams as they come, by their number. The channel closes when QEMU has closed
    /// both.
    fn output(&mut self) -> mpsc::Receiver<(usize, Vec<u8>)> {
        let (sender, receiver) = mpsc::channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            self.child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
            self.child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        ];
        for (number, mut stream) in streams.into_iter().flatten().enumerate() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if sender.send((number, buffer[..count].to_vec())).is_err() {
                        break;
                    }
                }
            });
        }
        receiver
    }
}

/// A command that the kernel kills when this process dies, however it dies.
fn tied_to_this_process(program: &str) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    if !*SETPRIV.get_or_init(|| find_program("setpriv").is_some()) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

fn loader(file: &Path, address: u64) -> String {
    format!("loader,file={},addr={address:#x},force-raw=on", escaped(file))
}

/// A file's name as the value of an option: a comma in it is written twice.
fn escaped(file: &Path) -> String {
    file.display().to_string().replace(',', ",,")
}

/// Where the hypervisor looks for the bundle on this machine.
fn bundle_base() -> Option<u64> {
    boards::select([VIRT].into_iter()).bundle.map(|base| base.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyboard::Keystrokes;

    fn arguments(boot: &Boot, memory: Size) -> Result<Vec<String>> {
        let here = Path::new(file!()).file_name().map(|f| Path::new("src").join(f)).unwrap();
        let machine = Machine {
            boot,
            cpus: 2,
            memory,
            hypervisor: Path::new("suzerain.bin"),
            bundle: &here,
            gdb: false,
            counting: None,
        };
        let command = machine.command()?;
        Ok(command.get_args().map(|a| a.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn the_machine_with_firmware() {
        let boot = Boot::Flash(PathBuf::from("flash.bin"));
        let all = arguments(&boot, Size(3 << 30)).unwrap().join(" ");
        assert!(all.contains("-cpu max,x-rme=on -M virt,virtualization=on,secure=on"), "{all}");
        assert!(all.contains("loader,file=suzerain.bin,addr=0x60000000"), "{all}");
        assert!(all.contains("qemu.rs,addr=0x70000000"), "{all}");
        assert!(all.contains("-smp 2 -m 3072M"), "{all}");
        // 768 MiB of RAM end where the bundle would begin.
        assert!(arguments(&boot, Size(768 << 20)).is_err());
    }

    #[test]
    fn the_machine_without() {
        let all = arguments(&Boot::direct(), Size(1 << 30)).unwrap().join(" ");
        assert!(all.contains("-kernel suzerain.bin -initrd"), "{all}");
        assert!(!all.contains("secure=on") && !all.contains("loader"), "{all}");
    }

    #[test]
    fn commas_in_file_names() {
        assert!(loader(Path::new("a,b"), 0x1000).starts_with("loader,file=a,,b,addr=0x1000"));
    }

    fn silent() -> Serial<'static> {
        let (log, keys) = (Path::new("/dev/null"), Share::Nothing);
        Serial { log, live: false, keys, script: Script::default() }
    }

    #[test]
    fn a_script_types() {
        let steps = vec![Keystrokes { after: "name? ".to_owned(), send: "x\n".to_owned() }];
        let serial = Serial { script: Script::new(steps), ..silent() };
        let child = Command::new("sh")
            .args(["-c", "printf 'name? '; read name; echo hello $name"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = File::create("/dev/null").unwrap();
        let (_, transcript) = Running { child }.follow(&mut log, serial, None).unwrap();
        assert_eq!(transcript.lines, ["name? hello x"]);
        assert_eq!(transcript.waited_for, None);
    }

    #[test]
    fn a_silent_child_is_killed_when_the_time_is_over() {
        let child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = File::create("/dev/null").unwrap();
        let start = Instant::now();
        let timeout = Some(Duration::from_millis(300));
        let (ending, _) = Running { child }.follow(&mut log, silent(), timeout).unwrap();
        assert_eq!(ending, Ending::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn lines_and_the_end_are_seen() {
        let child = Command::new("sh")
            .args(["-c", "printf '[stage 01] up\\r\\nlast'; exit 3"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = File::create("/dev/null").unwrap();
        let (ending, transcript) = Running { child }.follow(&mut log, silent(), None).unwrap();
        assert!(matches!(ending, Ending::Failed(status) if status.code() == Some(3)));
        assert_eq!(transcript.lines, ["[stage 01] up", "last"]);
        assert_eq!(transcript.last_stage.as_deref(), Some("[stage 01] up"));
    }
}
