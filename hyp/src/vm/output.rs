//! What VMs print, on its way to the machine's console.

use super::{MAX_VMS, Vm};
use crate::arch::percpu::core_index;
use crate::arch::timer;
use crate::run::SCHEDULER;
use crate::{console, cores, monitor, println};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use sched::State;
use vmm_services::ConsoleSink;

/// A VM that has printed nothing for so long (nanoseconds), and waits: what there is of its last line,
/// such as a prompt, is shown.
const SILENCE_NS: u64 = 50_000_000;
/// No check is planned.
const NEVER: u64 = u64::MAX;

/// Bit per VM that has begun a line and not ended it, as far as the last check knows.
static UNFINISHED: AtomicU32 = AtomicU32::new(0);
/// Length of that line at the last check.
static SEEN: [AtomicUsize; MAX_VMS] = [const { AtomicUsize::new(0) }; MAX_VMS];
/// When to look at these VMs again, in nanoseconds.
static CHECK_AT: AtomicU64 = AtomicU64::new(NEVER);
/// Core that looks.
static WATCHER: AtomicUsize = AtomicUsize::new(0);

const _: () = assert!(MAX_VMS <= u32::BITS as usize);

/// The console of a VM: each line carries its name, unless an operator's terminal is attached.
pub struct VmConsole(pub &'static Vm);

impl ConsoleSink for VmConsole {
    fn line(&mut self, text: &[u8], _complete: bool) {
        match monitor::attached() {
            Some(index) if index != self.0.index() => monitor::note_hidden_line(),
            _ => println!("{}| {}", self.0.name(), Lossy(text)),
        }
    }

    fn begun(&mut self) {
        let index = self.0.index();
        if let Some(seen) = SEEN.get(index) {
            seen.store(0, Ordering::Relaxed);
        }
        if UNFINISHED.fetch_or(1 << index, Ordering::AcqRel) == 0 {
            plan_check();
        }
    }

    fn is_attached(&self) -> bool {
        monitor::attached() == Some(self.0.index())
    }

    fn raw(&mut self, byte: u8) {
        console::write_raw(byte);
    }
}

fn plan_check() {
    let at = timer::now_ns().saturating_add(SILENCE_NS);
    WATCHER.store(core_index(), Ordering::Relaxed);
    CHECK_AT.store(at, Ordering::Release);
    timer::arm_no_later(at);
}

/// When this core is to call [`work`] next, in nanoseconds.
#[must_use]
pub fn next_check() -> Option<u64> {
    let at = CHECK_AT.load(Ordering::Acquire);
    (at != NEVER && cores::is_for_this(WATCHER.load(Ordering::Relaxed))).then_some(at)
}

/// Shows the unfinished lines of VMs that have fallen silent. Every core calls this between vCPUs.
pub fn work() {
    if next_check().is_none_or(|at| timer::now_ns() < at) {
        return;
    }
    CHECK_AT.store(NEVER, Ordering::Release);
    let set = UNFINISHED.swap(0, Ordering::AcqRel);
    let mut again = 0;
    for vm in super::all().iter().filter(|vm| set >> vm.index() & 1 != 0) {
        let Some(seen) = SEEN.get(vm.index()) else { continue };
        let mut services = vm.services.lock();
        let Some(services) = services.as_mut() else { continue };
        let length = services.unfinished_line();
        if length == 0 {
            continue;
        }
        let silent = length == seen.swap(length, Ordering::Relaxed);
        if silent && (services.polls_console() || is_idle(vm)) {
            services.flush_console(&mut VmConsole(vm));
        } else {
            again |= 1 << vm.index();
        }
    }
    if again != 0 {
        UNFINISHED.fetch_or(again, Ordering::AcqRel);
        plan_check();
    }
}

/// Whether all vCPUs wait. One that is in the middle of a line does not, however long it takes.
fn is_idle(vm: &Vm) -> bool {
    let scheduler = SCHEDULER.lock();
    let mut states = vm.vcpus().filter_map(|id| scheduler.state(vm.entity(id)?));
    states.all(|state| matches!(state, State::Blocked | State::Paused))
}

/// Bytes shown as UTF-8, with a replacement character for what is not, and for what terminals take as
/// commands although it is (U+0080 to U+009F).
struct Lossy<'a>(&'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            // Most lines are ASCII, and not looked at character by character.
            if chunk.valid().is_ascii() {
                f.write_str(chunk.valid())?;
            } else {
                write_without_controls(f, chunk.valid())?;
            }
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

fn write_without_controls(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for text in text.split_inclusive(is_terminal_control) {
        let shown = text.strip_suffix(is_terminal_control);
        f.write_str(shown.unwrap_or(text))?;
        if shown.is_some() {
            f.write_char(char::REPLACEMENT_CHARACTER)?;
        }
    }
    Ok(())
}

/// Whether terminals take a character beyond ASCII as a command.
fn is_terminal_control(character: char) -> bool {
    ('\u{80}'..='\u{9f}').contains(&character)
}
