//! The switch between EL2 and a guest at EL1/EL0: general registers, `ELR_EL2` and `SPSR_EL2`.
//!
//! [`enter`] is an ordinary function call: it saves the callee-saved registers on the stack of
//! this core, loads the guest's registers and executes `eret`. The lower-EL slots of the vector
//! table branch to `__guest_exit_*` below, which undo this and return from [`enter`] with the kind
//! of exception. EL2 runs with all interrupts masked, so nothing else can happen in between.
//!
//! FP/SIMD registers are not touched here: this image is built without FP, so a guest's FP state
//! simply stays in the registers until another vCPU uses them (see [`super::fp`]).

use core::arch::global_asm;

/// General registers of a guest, as the code below lays them out.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct GuestContext {
    /// `x0` to `x30`.
    pub x: [u64; 31],
    /// Program counter (`ELR_EL2`).
    pub pc: u64,
    /// Processor state (`SPSR_EL2`).
    pub pstate: u64,
}

const _: () = {
    assert!(core::mem::offset_of!(GuestContext, x) == 0);
    assert!(core::mem::offset_of!(GuestContext, pc) == 248);
    assert!(core::mem::offset_of!(GuestContext, pstate) == 256);
};

impl GuestContext {
    /// Reads register `index`; 31 is the zero register.
    #[must_use]
    pub fn reg(&self, index: u8) -> u64 {
        self.x.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Writes register `index`; a write to 31, the zero register, is ignored.
    pub fn set_reg(&mut self, index: u8, value: u64) {
        if let Some(reg) = self.x.get_mut(usize::from(index)) {
            *reg = value;
        }
    }
}

/// Which vector brought the core back to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// Synchronous exception; `ESR_EL2` tells the cause.
    Sync,
    /// A physical interrupt is pending.
    Irq,
    /// A physical FIQ is pending.
    Fiq,
    /// SError interrupt; `ESR_EL2` holds its syndrome.
    SError,
}

global_asm!(
    r#"
    .section .text.guest, "ax"
    .global __guest_enter
    // x0: &mut GuestContext. Returns the kind of exception in x0.
    __guest_enter:
        stp     x19, x20, [sp, #-96]!
        stp     x21, x22, [sp, #16]
        stp     x23, x24, [sp, #32]
        stp     x25, x26, [sp, #48]
        stp     x27, x28, [sp, #64]
        stp     x29, x30, [sp, #80]
        str     x0, [sp, #-16]!
        ldp     x1, x2, [x0, #248]
        msr     elr_el2, x1
        msr     spsr_el2, x2
        mov     x30, x0
        ldp     x0, x1, [x30]
        ldp     x2, x3, [x30, #16]
        ldp     x4, x5, [x30, #32]
        ldp     x6, x7, [x30, #48]
        ldp     x8, x9, [x30, #64]
        ldp     x10, x11, [x30, #80]
        ldp     x12, x13, [x30, #96]
        ldp     x14, x15, [x30, #112]
        ldp     x16, x17, [x30, #128]
        ldp     x18, x19, [x30, #144]
        ldp     x20, x21, [x30, #160]
        ldp     x22, x23, [x30, #176]
        ldp     x24, x25, [x30, #192]
        ldp     x26, x27, [x30, #208]
        ldp     x28, x29, [x30, #224]
        ldr     x30, [x30, #240]
        eret
        dsb     nsh
        isb

    .macro guest_exit name, kind
    .global __guest_exit_\name
    __guest_exit_\name:
        stp     x0, x1, [sp, #-16]!
        mov     x0, #\kind
        b       __guest_exit
    .endm
        guest_exit sync, 0
        guest_exit irq, 1
        guest_exit fiq, 2
        guest_exit serror, 3

    __guest_exit:
        ldr     x1, [sp, #16]
        stp     x2, x3, [x1, #16]
        stp     x4, x5, [x1, #32]
        stp     x6, x7, [x1, #48]
        stp     x8, x9, [x1, #64]
        stp     x10, x11, [x1, #80]
        stp     x12, x13, [x1, #96]
        stp     x14, x15, [x1, #112]
        stp     x16, x17, [x1, #128]
        stp     x18, x19, [x1, #144]
        stp     x20, x21, [x1, #160]
        stp     x22, x23, [x1, #176]
        stp     x24, x25, [x1, #192]
        stp     x26, x27, [x1, #208]
        stp     x28, x29, [x1, #224]
        str     x30, [x1, #240]
        ldp     x2, x3, [sp], #16
        stp     x2, x3, [x1]
        mrs     x2, elr_el2
        mrs     x3, spsr_el2
        stp     x2, x3, [x1, #248]
        add     sp, sp, #16
        ldp     x29, x30, [sp, #80]
        ldp     x27, x28, [sp, #64]
        ldp     x25, x26, [sp, #48]
        ldp     x23, x24, [sp, #32]
        ldp     x21, x22, [sp, #16]
        ldp     x19, x20, [sp], #96
        ret
    "#
);

/// Runs a guest from `context` until the next exception to EL2 and stores its registers back.
///
/// The caller has loaded the guest's EL1 state, its stage-2 tables and `HCR_EL2`, and keeps
/// IRQ, FIQ and SError masked.
pub fn enter(context: &mut GuestContext) -> Trap {
    unsafe extern "C" {
        fn __guest_enter(context: *mut GuestContext) -> u64;
    }
    // SAFETY: the assembly above reads and writes exactly the fields of `GuestContext` at the
    // offsets asserted above, through a pointer that is exclusive for the call, and keeps the
    // procedure call standard: callee-saved registers and `sp` are restored. The guest itself is
    // confined by stage-2 and by the traps of `HCR_EL2`.
    match unsafe { __guest_enter(&raw mut *context) } {
        0 => Trap::Sync,
        1 => Trap::Irq,
        2 => Trap::Fiq,
        _ => Trap::SError,
    }
}
