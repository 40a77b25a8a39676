//! The plugin itself: what QEMU calls.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::ptr;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::config::{Config, GUEST, HYPERVISOR, PARTS};
use crate::intervals::{Counts, Intervals, mark};
use crate::qemu::{self, Block, Instruction, PluginId};
use crate::report::{self, Executions};

/// Bytes of an A64 instruction.
const INSTRUCTION: u64 = 4;

/// What the plugin knows, for the whole run of QEMU.
struct Plugin {
    config: Config,
    counters: Counters,
    state: Mutex<State>,
}

/// Counters of executions. QEMU's own counters, which its generated code adds to, would be faster,
/// but QEMU 10.0 takes the index of the processor for a constant when one thread runs several.
struct Counters {
    parts: [AtomicU64; PARTS.len()],
    /// One for each instruction of the hypervisor.
    instructions: Vec<AtomicU64>,
}

/// What changes while the machine runs.
#[derive(Default)]
struct State {
    /// Host address of the first byte of RAM.
    ram_host: Option<u64>,
    first_guest: Option<Counts>,
    before_first_guest: Vec<u64>,
    intervals: Intervals,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

/// Called by QEMU when it loads the plugin. Anything but 0 makes it refuse to start.
///
/// # Safety
///
/// `arguments` must point to `count` C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: PluginId,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let mut texts = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: `index` is below `count`, so the pointer is in the caller's array.
        let text = unsafe { arguments.wrapping_add(index).read() };
        // SAFETY: the caller promises a C string.
        texts.push(unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
    let config = match Config::parse(texts.iter().map(|text| &**text)) {
        Ok(config) => config,
        Err(reason) => {
            complain(&reason);
            return 1;
        }
    };
    let instructions = (0..config.hypervisor.size / INSTRUCTION).map(|_| AtomicU64::new(0));
    let counters = Counters { parts: Default::default(), instructions: instructions.collect() };
    if PLUGIN.set(Plugin { config, counters, state: Mutex::default() }).is_err() {
        complain("loaded twice");
        return 1;
    }
    // SAFETY: the callback has the signature that the interface asks for and never unwinds into
    // QEMU: it panics nowhere.
    unsafe { qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    // SAFETY: as above.
    unsafe { qemu::qemu_plugin_register_atexit_cb(id, finished, ptr::null_mut()) };
    0
}

fn complain(reason: &str) {
    let text = CString::new(format!("count: {reason}\n")).unwrap_or_default();
    // SAFETY: the text is a C string.
    unsafe { qemu::qemu_plugin_outs(text.as_ptr()) }
}

/// QEMU has translated a block: each of its instructions is told which counters to add to.
extern "C" fn translated(_id: PluginId, block: *mut Block) {
    let Some(plugin) = PLUGIN.get() else { return };
    // SAFETY: QEMU passes a block that is valid during this call.
    let count = unsafe { qemu::qemu_plugin_tb_n_insns(block) };
    for index in 0..count {
        // SAFETY: as above, and the index is below the number of instructions.
        plugin.instrument(unsafe { qemu::qemu_plugin_tb_get_insn(block, index) });
    }
}

impl Plugin {
    fn instrument(&self, instruction: *mut Instruction) {
        let address = self.physical_address(instruction);
        let part = self.config.part(address);
        if part == HYPERVISOR {
            let offset = address.and_then(|at| self.config.hypervisor.offset(at));
            call(instruction, hypervisor_runs, (offset.unwrap_or(0) / INSTRUCTION) as usize);
        } else {
            call(instruction, other_runs, part);
        }
        if part == GUEST {
            // While no guest has run, each of their instructions may be the first.
            if self.state().first_guest.is_none() {
                call(instruction, guest_runs, 0);
            }
            if let Some(mark) = mark(word(instruction)) {
                call(instruction, passed, usize::from(mark));
            }
        }
    }

    /// Physical address of an instruction in RAM.
    fn physical_address(&self, instruction: *const Instruction) -> Option<u64> {
        let ram = self.config.ram;
        // SAFETY: the instruction belongs to the block that is being translated.
        let host = unsafe { qemu::qemu_plugin_insn_haddr(instruction) }.addr() as u64;
        // SAFETY: as above.
        let virtual_address = unsafe { qemu::qemu_plugin_insn_vaddr(instruction) };
        let mut state = self.state();
        let ram_host = match state.ram_host {
            Some(ram_host) => ram_host,
            None => *state.ram_host.insert(host.wrapping_sub(ram.offset(virtual_address)?)),
        };
        let address = host.wrapping_sub(ram_host).checked_add(ram.base)?;
        ram.offset(address).map(|_| address)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Counters {
    fn counts(&self) -> Counts {
        self.parts.each_ref().map(|part| part.load(Ordering::Relaxed))
    }

    /// How often each instruction of the hypervisor ran so far.
    fn profile(&self) -> Vec<u64> {
        self.instructions.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

/// Adds one. One thread runs all processors, so this need not be one atomic operation.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn call(
    instruction: *mut Instruction,
    callback: extern "C" fn(c_uint, *mut c_void),
    number: usize,
) {
    let userdata = ptr::without_provenance_mut(number);
    // SAFETY: the instruction belongs to the block that is being translated; the callback takes
    // the number back out of the pointer and does not follow it.
    unsafe {
        qemu::qemu_plugin_register_vcpu_insn_exec_cb(
            instruction,
            callback,
            qemu::CB_NO_REGS,
            userdata,
        );
    }
}

/// The instruction's bytes.
fn word(instruction: *const Instruction) -> u32 {
    let mut bytes = [0_u8; 4];
    // SAFETY: the instruction belongs to the block that is being translated, and at most the
    // length of the buffer is written.
    unsafe {
        qemu::qemu_plugin_insn_data(instruction, bytes.as_mut_ptr().cast(), bytes.len());
    }
    u32::from_le_bytes(bytes)
}

/// The hypervisor's instruction of this number is about to run.
extern "C" fn hypervisor_runs(_vcpu: c_uint, index: *mut c_void) {
    let Some(Plugin { counters, .. }) = PLUGIN.get() else { return };
    count(&counters.parts[HYPERVISOR]);
    if let Some(counter) = counters.instructions.get(index.addr()) {
        count(counter);
    }
}

/// An instruction of another part is about to run.
extern "C" fn other_runs(_vcpu: c_uint, part: *mut c_void) {
    let Some(Plugin { counters, .. }) = PLUGIN.get() else { return };
    if let Some(counter) = counters.parts.get(part.addr()) {
        count(counter);
    }
}

/// An instruction of a guest is about to run, and none had when it was translated.
extern "C" fn guest_runs(_vcpu: c_uint, _userdata: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    let counts = plugin.counters.counts();
    let mut state = plugin.state();
    // QEMU's own first instructions lie in RAM, too, and run before the hypervisor.
    if state.first_guest.is_none() && counts[HYPERVISOR] > 0 {
        state.before_first_guest = plugin.counters.profile();
        state.first_guest = Some(counts);
    }
}

/// A guest passes a mark.
extern "C" fn passed(_vcpu: c_uint, mark: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    let counts = plugin.counters.counts();
    let mark = u16::try_from(mark.addr()).unwrap_or_default();
    plugin.state().intervals.pass(mark, counts);
}

/// QEMU ends.
extern "C" fn finished(_id: PluginId, _userdata: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    let state = plugin.state();
    let before = |index: usize| state.before_first_guest.get(index).copied().unwrap_or(0);
    let profile: Vec<Executions> = plugin
        .counters
        .profile()
        .into_iter()
        .enumerate()
        .filter(|(_, total)| *total > 0)
        .map(|(index, total)| Executions {
            offset: index as u64 * INSTRUCTION,
            total,
            before_first_guest: before(index),
        })
        .collect();
    let counts = plugin.counters.counts();
    let text = report::write(counts, state.first_guest, &state.intervals, &profile);
    if let Err(error) = std::fs::write(&plugin.config.out, text) {
        complain(&format!("{}: {error}", plugin.config.out.display()));
    }
}
