// Exception vectors of R-EL2, the way into a REC and out of it, and copies that survive faults.

    .text

// rec_enter(context: x0) -> x0: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError
//
// `context` starts with x0 to x30, then pc and pstate. The frame on the stack, top to bottom: x19 to x30 of
// the caller, the context.
    .global rec_enter
rec_enter:
    stp     x29, x30, [sp, #-112]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    str     x0, [sp, #96]
    ldp     x1, x2, [x0, #{pc}]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                         // no speculation past the return
    isb

rec_exit:                               // x0, x1 on the stack; x1: kind of exit
    ldr     x0, [sp, #16 + 96]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #{pc}]
    mov     x0, x1
    ldp     x19, x20, [sp, #80]
    ldp     x21, x22, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #32]
    ldp     x27, x28, [sp, #16]
    ldp     x29, x30, [sp], #112
    ret

// copy_guarded(to: x0, from: x1, length: x2) -> x0: 0 done, 1 an access faulted
//
// Between the two labels a data abort is an answer and not a failure.
    .global copy_guarded
copy_guarded:
guarded_start:
    orr     x3, x0, x1
    orr     x3, x3, x2
    tst     x3, #7
    b.ne    2f
1:  cbz     x2, 3f
    ldr     x3, [x1], #8
    str     x3, [x0], #8
    sub     x2, x2, #8
    b       1b
2:  cbz     x2, 3f
    ldrb    w3, [x1], #1
    strb    w3, [x0], #1
    sub     x2, x2, #1
    b       2b
guarded_end:
3:  mov     x0, xzr
    ret
guarded_fault:
    mov     x0, #1
    ret

// Nothing is saved: after a fault in the guarded range its registers are dead, and any other fault is the
// end. So this works also when what faulted was the stack, in a guard page.
own_sync:
    mrs     x0, esr_el2
    lsr     x0, x0, #26
    cmp     x0, #0x25                   // data abort from this exception level
    b.ne    1f
    mrs     x0, elr_el2
    adr     x1, guarded_start
    cmp     x0, x1
    b.lo    1f
    adr     x1, guarded_end
    cmp     x0, x1
    b.hs    1f
    adr     x0, guarded_fault
    msr     elr_el2, x0
    eret
1:  mov     x0, #4
own_unexpected:                         // x0: vector
    mrs     x1, esr_el2
    mrs     x2, elr_el2
    mrs     x3, far_el2
    // The stack may be what is broken: start over at the top of this CPU's.
    mrs     x4, tpidr_el2
    add     x4, x4, #1
    ldr     x5, ={stacks}
    add     x5, x5, x4, lsl #{stack_shift}
    mov     sp, x5
    b       rmm_unexpected

    .macro  own vector
    .balign 128
    mov     x0, #\vector
    b       own_unexpected
    .endm

    .macro  from_rec kind
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\kind
    b       rec_exit
    .endm

    .balign 2048
vectors:
    own     0                           // current EL with SP_EL0: not used
    own     1
    own     2
    own     3
    .balign 128
    b       own_sync
    own     5
    own     6
    own     7
    from_rec 0                          // lower EL, AArch64
    from_rec 1
    from_rec 2
    from_rec 3
    from_rec 0                          // lower EL, AArch32
    from_rec 1
    from_rec 2
    from_rec 3
