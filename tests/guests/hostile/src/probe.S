// Running one instruction that may do anything but keep its own house in order.
//
// Offsets in `Slot` of probe.rs; the slot of a vCPU is found by its MPIDR, since no register survives
// a probe for certain.

    .equ    SLOT_SP, 96
    .equ    SLOT_DAIF, 104
    .equ    SLOT_TTBR, 112
    .equ    SLOT_ACTIVE, 120
    .equ    SLOT_REGISTERS, 128
    .equ    SLOT_ESR, 192
    .equ    SLOT_FAR, 200
    .equ    SLOT_CORRUPTED, 208
    .equ    SLOT_SHIFT, 8
    // SCTLR_EL1: MMU, data and instruction cache.
    .equ    SCTLR_ON, 0x1005

    .macro  slot_of_cpu to, scratch
    mrs     \to, mpidr_el1
    and     \to, \to, #0xff
    adrp    \scratch, {slots}
    add     \scratch, \scratch, :lo12:{slots}
    add     \to, \scratch, \to, lsl #SLOT_SHIFT
    .endm

    // x19 to x29 hold their own number, to show whether anybody changed them.
    .macro  canaries op
    \op     x19, 0x1900
    \op     x20, 0x2000
    \op     x21, 0x2100
    \op     x22, 0x2200
    \op     x23, 0x2300
    \op     x24, 0x2400
    \op     x25, 0x2500
    \op     x26, 0x2600
    \op     x27, 0x2700
    \op     x28, 0x2800
    \op     x29, 0x2900
    .endm
    .macro  canary_set register, value
    mov     \register, #\value
    .endm
    .macro  canary_check register, value
    mov     x9, #\value
    eor     x9, x9, \register
    orr     x11, x11, x9
    .endm

    .text
    // x0: slot, x1: address of the code, which ends in RET and keeps off x16 to x30 and SP.
    // Returns 0 in x0, or 1 if the code took an exception.
    .global hostile_probe
hostile_probe:
    stp     x19, x20, [x0]
    stp     x21, x22, [x0, #16]
    stp     x23, x24, [x0, #32]
    stp     x25, x26, [x0, #48]
    stp     x27, x28, [x0, #64]
    stp     x29, x30, [x0, #80]
    mov     x2, sp
    mrs     x3, daif
    stp     x2, x3, [x0, #SLOT_SP]
    mrs     x2, ttbr0_el1
    mov     x3, #1
    stp     x2, x3, [x0, #SLOT_TTBR]
    canaries canary_set
    mov     x16, x1
    adr     x30, 1f
    ldp     x6, x7, [x0, #SLOT_REGISTERS + 48]
    ldp     x4, x5, [x0, #SLOT_REGISTERS + 32]
    ldp     x2, x3, [x0, #SLOT_REGISTERS + 16]
    ldp     x0, x1, [x0, #SLOT_REGISTERS]
    br      x16
1:  slot_of_cpu x17, x18
    mov     x15, xzr

    // x15: what to return, x17: slot.
hostile_leave:
    msr     spsel, #1
    str     xzr, [x17, #SLOT_ACTIVE]
    stp     x0, x1, [x17, #SLOT_REGISTERS]
    stp     x2, x3, [x17, #SLOT_REGISTERS + 16]
    stp     x4, x5, [x17, #SLOT_REGISTERS + 32]
    stp     x6, x7, [x17, #SLOT_REGISTERS + 48]
    ldr     x10, [x17, #SLOT_SP]
    mov     x9, sp
    eor     x11, x9, x10
    canaries canary_check
    str     x11, [x17, #SLOT_CORRUPTED]
    mov     sp, x10
    ldr     x9, [x17, #SLOT_TTBR]
    mrs     x10, ttbr0_el1
    cmp     x9, x10
    b.eq    2f
    msr     ttbr0_el1, x9
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
2:  mov     x0, x15
    ldr     x10, [x17, #SLOT_DAIF]
    ldp     x19, x20, [x17]
    ldp     x21, x22, [x17, #16]
    ldp     x23, x24, [x17, #32]
    ldp     x25, x26, [x17, #48]
    ldp     x27, x28, [x17, #64]
    ldp     x29, x30, [x17, #80]
    msr     daif, x10
    ret

    // A synchronous exception, or an SError: the end of the probe that runs, else of the guest.
hostile_fault:
    mrs     x18, sctlr_el1
    mov     x17, #SCTLR_ON
    orr     x18, x18, x17
    msr     sctlr_el1, x18
    isb
    slot_of_cpu x17, x18
    ldr     x18, [x17, #SLOT_ACTIVE]
    cbz     x18, 3f
    mrs     x9, esr_el1
    mrs     x10, far_el1
    stp     x9, x10, [x17, #SLOT_ESR]
    mov     x15, #1
    b       hostile_leave
3:  mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    b       hostile_unexpected

    .macro  interrupt_entry name, group
\name:
    sub     sp, sp, #192
    stp     x0, x1, [sp]
    mov     x0, #\group
    b       hostile_common
    .endm
    interrupt_entry hostile_irq, 1
    interrupt_entry hostile_fiq, 0

hostile_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x1, x2, [sp, #160]
    // A fault of the handler is not the probe's.
    slot_of_cpu x1, x2
    ldr     x2, [x1, #SLOT_ACTIVE]
    str     x2, [sp, #176]
    str     xzr, [x1, #SLOT_ACTIVE]
    bl      hostile_interrupt
    slot_of_cpu x1, x2
    ldr     x2, [sp, #176]
    str     x2, [x1, #SLOT_ACTIVE]
    ldp     x1, x2, [sp, #160]
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ldp     x18, x30, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp]
    add     sp, sp, #192
    eret

    .macro  vector target
    .balign 128
    b       \target
    .endm

    .balign 2048
    .global hostile_vectors
hostile_vectors:
    .rept   2                           // current EL, with SP_EL0 and with SP_EL1
    vector  hostile_fault
    vector  hostile_irq
    vector  hostile_fiq
    vector  hostile_fault
    .endr
    .rept   8                           // lower EL: there is none
    vector  hostile_fault
    .endr
