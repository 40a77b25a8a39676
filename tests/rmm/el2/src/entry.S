// Entry from EL3, on every CPU: cold boot on the first one, warm boot on the others.
//
// x0: index of this CPU. x1 to x3: see the boot interface; zero on a warm boot.

    .section .head, "ax"
    .global rmm_entry
rmm_entry:
    cmp     x0, #{max_cpus}
    b.hs    refuse_cpu

    // The MMU comes first: nothing is written before it is on, so caches and memory agree.
    ldr     x9, ={mair}
    msr     mair_el2, x9
    ldr     x9, ={tcr}
    mrs     x10, id_aa64mmfr0_el1
    and     x10, x10, #0xf
    mov     x11, #5                     // at most 48 bits
    cmp     x10, x11
    csel    x10, x11, x10, hi
    orr     x9, x9, x10, lsl #16
    msr     tcr_el2, x9
    adrp    x9, level_1
    msr     ttbr0_el2, x9
    tlbi    alle2
    dsb     nsh
    isb
    ldr     x9, ={sctlr}
    msr     sctlr_el2, x9
    isb

    adrp    x9, vectors
    add     x9, x9, :lo12:vectors
    msr     vbar_el2, x9
    ldr     x9, ={stacks}
    add     x10, x0, #1
    add     x9, x9, x10, lsl #{stack_shift}
    mov     sp, x9
    msr     tpidr_el2, x0
    isb

    // The flag is the one word of .data that the first CPU changes before it clears .bss.
    adrp    x9, cold_boot_done
    add     x9, x9, :lo12:cold_boot_done
    ldar    w10, [x9]
    cbnz    w10, warm
    mov     w10, #1
    stlr    w10, [x9]
    ldr     x9, =bss_start
    ldr     x10, =bss_end
    bl      clear
    ldr     x9, ={slots}
    ldr     x10, =slots_end
    bl      clear
    b       rmm_cold_boot
warm:
    b       rmm_warm_boot

clear:                                  // x9 to x10, multiples of 16
    cmp     x9, x10
    b.hs    1f
    stp     xzr, xzr, [x9], #16
    b       clear
1:  ret

refuse_cpu:
    ldr     x0, ={boot_complete}
    mov     x1, #{cpu_out_of_range}
    smc     #0
    b       .

    .data
    .balign 4
cold_boot_done:
    .word   0
