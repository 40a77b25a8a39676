// Image header (Linux arm64 boot protocol), self-relocation, first stacks.

    .section .head, "ax"
    .global image_header
image_header:
    b       primary_entry
    .word   0
    .quad   0                           // text_offset
    .quad   image_size
    .quad   0xa                         // little endian, 4 KiB pages, may lie anywhere in RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0

    .text
primary_entry:
    mov     x19, x0                     // device tree
    adrp    x0, bss_start
    add     x0, x0, :lo12:bss_start
    adrp    x1, bss_end
    add     x1, x1, :lo12:bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  // The image is linked at 0, so its load address is the value to add to every R_AARCH64_RELATIVE.
    adrp    x4, image_start
    adrp    x0, rela_start
    add     x0, x0, :lo12:rela_start
    adrp    x1, rela_end
    add     x1, x1, :lo12:rela_end
3:  cmp     x0, x1
    b.hs    4f
    ldp     x2, x3, [x0], #16           // offset, type
    ldr     x5, [x0], #8                // addend
    cmp     x3, #1027                   // R_AARCH64_RELATIVE
    b.ne    park
    add     x5, x5, x4
    str     x5, [x2, x4]
    b       3b
4:  bl      set_stack
    mov     x0, x19
    bl      rt_primary
    b       park

    .global secondary_entry
secondary_entry:                        // x0: context id of PSCI CPU_ON
    mov     x19, x0
    bl      set_stack
    mov     x0, x19
    bl      rt_secondary
park:
    wfi
    b       park

// One stack per vCPU, chosen by Aff0; an affinity beyond the stacks we have parks. Clobbers x0 to x2.
set_stack:
    mrs     x0, mpidr_el1
    and     x0, x0, #0xff
    cmp     x0, #{max_cpus}
    b.hs    park
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    adrp    x1, {stacks}
    add     x1, x1, :lo12:{stacks}
    mov     x2, #{stack_size}
    madd    x1, x0, x2, x1
    add     sp, x1, x2
    isb
    ret

// Exceptions. IRQs return, and so do faults of instructions run by `attempt!`; everything else is
// reported and ends the guest.
    .macro  unexpected kind
    .balign 128
    mov     x0, #\kind
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, far_el1
    b       rt_unexpected
    .endm

    .balign 2048
vectors:
    unexpected 0                        // current EL with SP_EL0
    unexpected 1
    unexpected 2
    unexpected 3
    .balign 128
    b       sync_entry
    .balign 128
    b       irq_entry
    unexpected 6                        // FIQ
    unexpected 7                        // SError
    unexpected 8                        // lower EL: never entered
    unexpected 9
    unexpected 10
    unexpected 11
    unexpected 12
    unexpected 13
    unexpected 14
    unexpected 15

// TPIDR_EL1 is 1 while `attempt!` runs an instruction: then its syndrome goes there, and execution
// goes on behind it.
sync_entry:
    str     x0, [sp, #-16]!
    mrs     x0, tpidr_el1
    cmp     x0, #1
    b.ne    1f
    mrs     x0, esr_el1
    msr     tpidr_el1, x0
    mrs     x0, elr_el1
    add     x0, x0, #4
    msr     elr_el1, x0
    ldr     x0, [sp], #16
    eret
1:  unexpected 4

irq_entry:
    sub     sp, sp, #192
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x0, x1, [sp, #160]
    bl      rt_irq
    ldp     x0, x1, [sp, #160]
    msr     elr_el1, x0
    msr     spsr_el1, x1
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
