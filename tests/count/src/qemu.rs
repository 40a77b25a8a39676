//! The part of QEMU's plugin interface that is used here (`qemu-plugin.h`, version 4), declared by
//! hand: distributions ship no header. QEMU resolves the functions when it loads the plugin.

use core::ffi::{c_char, c_int, c_uint, c_void};

/// Version of the interface. QEMU refuses what it does not know.
#[unsafe(no_mangle)]
pub(crate) static qemu_plugin_version: c_int = 4;

/// A loaded plugin.
pub(crate) type PluginId = u64;

/// A block of instructions that is being translated; valid during the callback only.
#[repr(C)]
pub(crate) struct Block {
    _opaque: [u8; 0],
}

/// An instruction of a block; valid during the callback only.
#[repr(C)]
pub(crate) struct Instruction {
    _opaque: [u8; 0],
}

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback reads no registers.
pub(crate) const CB_NO_REGS: c_int = 0;

unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: PluginId,
        callback: extern "C" fn(PluginId, *mut Block),
    );
    pub(crate) fn qemu_plugin_register_atexit_cb(
        id: PluginId,
        callback: extern "C" fn(PluginId, *mut c_void),
        userdata: *mut c_void,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub(crate) fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub(crate) fn qemu_plugin_insn_vaddr(instruction: *const Instruction) -> u64;
    pub(crate) fn qemu_plugin_insn_haddr(instruction: *const Instruction) -> *mut c_void;
    pub(crate) fn qemu_plugin_insn_data(
        instruction: *const Instruction,
        destination: *mut c_void,
        length: usize,
    ) -> usize;
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut Instruction,
        callback: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        userdata: *mut c_void,
    );
    pub(crate) fn qemu_plugin_outs(text: *const c_char);
}
