//! The EL2 vector table.
//!
//! Lower-EL slots branch straight to the guest exit path (see [`super::guest`]). An exception from
//! EL2 itself is always unexpected (interrupts stay masked at EL2), apart from the instructions
//! listed in `.extable`, whose faults [`super::exception`] turns into an error value.

use super::layout::{EMERGENCY_STACK_SIZE, STACK_SIZE};
use core::arch::global_asm;
use core::mem::offset_of;

/// Registers of an interrupted EL2 context, as the vectors store them.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Frame {
    /// `x0` to `x30`.
    pub x: [u64; 31],
    /// Stack pointer at the exception.
    pub sp: u64,
    /// `ELR_EL2`: address of the instruction.
    pub elr: u64,
    /// `SPSR_EL2`.
    pub spsr: u64,
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
}

const FRAME_SIZE: usize = size_of::<Frame>();
const _: () = assert!(FRAME_SIZE == 288 && FRAME_SIZE.is_multiple_of(16));
const _: () = assert!(offset_of!(Frame, sp) == 248 && offset_of!(Frame, elr) == 256);
const _: () = assert!(offset_of!(Frame, esr) == 272);

/// The slot of the vector table that an exception from EL2 itself took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Synchronous exception.
    Sync,
    /// IRQ: masked at EL2, so never taken unless `PSTATE` was corrupted.
    Irq,
    /// FIQ.
    Fiq,
    /// SError interrupt.
    SError,
    /// A slot that the classic regime with AArch64 guests never takes: `SP_EL0` selected at EL2,
    /// or a guest in AArch32.
    Unused,
    /// The exception found the stack pointer in or near the guard page of the stack.
    StackOverflow,
}

impl Slot {
    pub(super) fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Sync,
            1 => Self::Irq,
            2 => Self::Fiq,
            3 => Self::SError,
            4 => Self::Unused,
            _ => Self::StackOverflow,
        }
    }
}

global_asm!(
    r#"
    .macro vector_lower target
        .balign 0x80
        b       \target
    .endm

    // Exception from EL2 with SP_EL2: makes room for a frame unless SP would point into the guard
    // page, the lowest page of the stack's naturally aligned area. There is no scratch register
    // yet, so SP and x0 are exchanged by arithmetic.
    .macro vector_current number
        .balign 0x80
        sub     sp, sp, #{FRAME}
        add     sp, sp, x0
        sub     x0, sp, x0
        tst     x0, #({STACK_SIZE} - 0x1000)
        b.eq    __stack_overflow
        sub     x0, sp, x0
        sub     sp, sp, x0
        stp     x0, x1, [sp]
        mov     x0, #\number
        add     x1, sp, #{FRAME}
        b       __current_el
    .endm

    .section .text.vectors, "ax"
    .balign 0x800
    .global __vectors
__vectors:
    // Current EL with SP_EL0.
    vector_current 4
    vector_current 4
    vector_current 4
    vector_current 4
    // Current EL with SP_EL2.
    vector_current 0
    vector_current 1
    vector_current 2
    vector_current 3
    // Lower EL, AArch64.
    vector_lower __guest_exit_sync
    vector_lower __guest_exit_irq
    vector_lower __guest_exit_fiq
    vector_lower __guest_exit_serror
    // Lower EL, AArch32: guests are AArch64 only (HCR_EL2.RW), so this is not taken.
    vector_current 4
    vector_current 4
    vector_current 4
    vector_current 4
    .balign 0x80

    // x0 = slot, x1 = interrupted SP, x0 and x1 of the interrupted context are in the frame at sp.
__current_el:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    stp     x30, x1, [sp, #240]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    mrs     x4, esr_el2
    mrs     x5, far_el2
    stp     x2, x3, [sp, #256]
    stp     x4, x5, [sp, #272]
    mov     x1, sp
    bl      {handler}
    // Back only when the handler redirected ELR to the fix-up of an `.extable` entry, and put
    // syndrome and address into x0 and x1; every other register is as it was.
    ldr     x2, [sp, #256]
    ldr     x3, [sp, #264]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldr     x18, [sp, #144]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp]
    add     sp, sp, #{FRAME}
    eret
    dsb     nsh
    isb

    // x0 = interrupted SP - FRAME, SP = that + interrupted x0. The core will not return to what it
    // did, so registers of EL1 serve as scratch.
__stack_overflow:
    msr     sp_el0, x0
    sub     x0, sp, x0
    msr     tpidr_el0, x0
    msr     tpidr_el1, x1
    adrp    x0, __emergency_stacks_start
    add     x0, x0, :lo12:__emergency_stacks_start
    mrs     x1, tpidr_el2
    add     x1, x1, #1
    add     x0, x0, x1, lsl #{EMERGENCY_SHIFT}
    sub     sp, x0, #{FRAME}
    mrs     x0, tpidr_el0
    mrs     x1, tpidr_el1
    stp     x0, x1, [sp]
    mov     x0, #5
    mrs     x1, sp_el0
    add     x1, x1, #{FRAME}
    b       __current_el
    "#,
    FRAME = const FRAME_SIZE,
    STACK_SIZE = const STACK_SIZE,
    EMERGENCY_SHIFT = const EMERGENCY_STACK_SIZE.trailing_zeros(),
    handler = sym super::exception::from_el2,
);
