//! First instructions of every core: from firmware to Rust with MMU and caches on.
//!
//! Firmware enters the boot core at `_start` as the arm64 Linux boot protocol says: EL2, MMU off,
//! physical address of the device tree in `x0`. Rust needs atomics and pointers in data, so all
//! that must happen before them happens here: relocation, `.bss`, an identity map of the image
//! (2 MiB blocks; [`crate::memory`] replaces it by the final tables with one permission per
//! section), caches.
//!
//! PSCI enters the other cores at `__secondary_start` with the core's index in `x0`. They use the
//! final tables, whose registers the boot core left in `SECONDARY_TTBR`.

use super::layout::{EMERGENCY_STACK_SIZE, MAX_CORES, STACK_SIZE};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// `TCR_EL2` without `PS`: RES1 bits, 48-bit input addresses, 4 KiB granule, inner shareable
/// write-back table walks.
pub const TCR: u64 = 1 << 31 | 1 << 23 | 3 << 12 | 1 << 10 | 1 << 8 | 16;
/// `SCTLR_EL2` with the MMU off: RES1 bits, and EIS and EOS which are RES1 before FEAT_ExS.
const SCTLR_OFF: u64 = 0x30c5_0830;
/// `SCTLR_EL2` bits that turn on MMU (M), data cache (C), SP alignment check (SA) and instruction
/// cache (I).
const SCTLR_ON: u64 = 1 << 12 | 1 << 3 | 1 << 2 | 1;
/// `SCTLR_EL2.WXN`: what is writable is never executable.
const SCTLR_WXN: u64 = 1 << 19;
/// `SCTLR_EL2` under the final tables.
pub const SCTLR_FINAL: u64 = SCTLR_OFF | SCTLR_ON | SCTLR_WXN;
/// A 2 MiB block of Normal memory, readable, writable and executable (early tables only).
const EARLY_BLOCK: u64 = 1 << 10 | 3 << 8 | 1 << 6 | 1 << 2 | 1;
/// `HCR_EL2` until a guest runs: EL1 is AArch64 (RW), classic regime (E2H and TGE clear), and
/// physical interrupts are for EL2 (AMO, IMO, FMO), so that they end its WFI.
const HCR_BOOT: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 3;
/// `CPTR_EL2` for the classic regime: its RES1 bits, which trap SVE and SME; FP is not trapped.
const CPTR_BOOT: u64 = 0x33ff;

/// Physical address of the root table that secondary cores install. Written once by the boot
/// core, which cleans it to the point of coherency: it is read with the MMU off.
#[unsafe(export_name = "__secondary_ttbr")]
static SECONDARY_TTBR: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .macro adr_l reg, symbol
        adrp    \reg, \symbol
        add     \reg, \reg, :lo12:\symbol
    .endm
    .macro mov_q reg, value
        movz    \reg, #((\value) & 0xffff)
        movk    \reg, #(((\value) >> 16) & 0xffff), lsl #16
        movk    \reg, #(((\value) >> 32) & 0xffff), lsl #32
        movk    \reg, #(((\value) >> 48) & 0xffff), lsl #48
    .endm

    .section .head.text, "ax"
    .global _start
_start:
    // arm64 Linux Image header (Documentation/arch/arm64/booting.rst).
    b       __primary_start         // code0
    .long   0                       // code1
    .quad   0                       // text_offset
    .quad   __image_size            // image_size, .bss and stacks included
    .quad   0xa                     // flags: little endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

    .section .text.entry, "ax"
    // Puts EL2 into a known state with the MMU off, or stops a core that is not at EL2.
    // Clobbers x9.
    .macro el2_init
        msr     daifset, #0xf
        mrs     x9, CurrentEL
        cmp     x9, #(2 << 2)
        b.ne    __park
        mov_q   x9, {SCTLR_OFF}
        msr     sctlr_el2, x9
        mov_q   x9, {HCR_BOOT}
        msr     hcr_el2, x9
        mov_q   x9, {CPTR_BOOT}
        msr     cptr_el2, x9
        isb
        msr     spsel, #1
        adr_l   x9, __vectors
        msr     vbar_el2, x9
    .endm

    // Stack pointer and TPIDR_EL2 of the core whose index is in \index. Clobbers x9, x10.
    .macro core_init index
        msr     tpidr_el2, \index
        adr_l   x9, __stacks_start
        mov_q   x10, {STACK_SIZE}
        madd    x9, \index, x10, x9
        add     sp, x9, x10
        mov     x29, xzr
        mov     x30, xzr
    .endm

__primary_start:
    mov     x19, x0
    el2_init

    // Apply R_AARCH64_RELATIVE relocations; the image is linked at 0.
    adr_l   x20, _start
    adr_l   x1, __rela_start
    adr_l   x2, __rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     x4, #1027
    b.ne    __park
    add     x5, x5, x20
    str     x5, [x20, x3]
    b       1b

2:  adr_l   x1, __bss_start
    adr_l   x2, __bss_end
3:  stp     xzr, xzr, [x1]          // both ends are page aligned
    stp     xzr, xzr, [x1, #16]
    stp     xzr, xzr, [x1, #32]
    stp     xzr, xzr, [x1, #48]
    add     x1, x1, #64
    cmp     x1, x2
    b.lo    3b

    // Early identity map of the image: level 0 -> level 1 -> two level 2 tables that cover the
    // image's 1 GiB and the next one.
    adr_l   x1, __early_tables
    orr     x2, x1, #3
    add     x3, x2, #4096           // level 1 table descriptor
    add     x4, x2, #8192           // first level 2 table descriptor
    add     x5, x4, #4096
    ubfx    x6, x20, #39, #9
    str     x3, [x1, x6, lsl #3]
    ubfx    x6, x20, #30, #9
    cmp     x6, #511                // an image across a 512 GiB boundary is not supported
    b.eq    __park
    add     x7, x1, #4096
    add     x7, x7, x6, lsl #3
    stp     x4, x5, [x7]
    add     x7, x1, #8192
    ubfx    x6, x20, #21, #9
    add     x7, x7, x6, lsl #3
    mov_q   x8, {EARLY_BLOCK}
    orr     x8, x8, x20
    and     x9, x20, #0x1fffff      // the boot protocol gives a multiple of 2 MiB
    cbnz    x9, __park
    adr_l   x9, __image_end
4:  str     x8, [x7], #8
    add     x8, x8, #0x200000
    cmp     x8, x9
    b.lo    4b

    // What was written above went past the caches: drop stale lines before turning them on.
    mov     x2, x20
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x4, x4, x3
    adr_l   x3, __image_end
    dsb     sy
5:  dc      ivac, x2
    add     x2, x2, x4
    cmp     x2, x3
    b.lo    5b
    dsb     sy
    ic      iallu

    mov     x0, x1
    mov_q   x1, {SCTLR_EARLY}
    bl      __mmu_switch
    mov     x0, xzr
    core_init x0
    mov     x0, x19
    bl      {primary}
    b       __park

    .global __secondary_start
__secondary_start:
    mov     x19, x0
    el2_init
    ic      iallu
    adr_l   x0, __secondary_ttbr
    ldr     x0, [x0]
    mov_q   x1, {SCTLR_FINAL}
    bl      __mmu_switch
    core_init x19
    mov     x0, x19
    bl      {secondary}

__park:
    msr     daifset, #0xf
    wfi
    b       __park

    // Installs the identity map with root table x0 and SCTLR_EL2 value x1. The MMU is off in
    // between, so that no TLB ever holds entries of the old and the new tables together; therefore
    // this touches no data memory. Clobbers x9 to x11.
    .global __mmu_switch
__mmu_switch:
    mrs     x9, sctlr_el2
    bic     x9, x9, #1
    msr     sctlr_el2, x9
    isb
    tlbi    alle2
    dsb     nsh
    isb
    mov_q   x9, {MAIR}
    msr     mair_el2, x9
    mov_q   x9, {TCR}
    mrs     x10, id_aa64mmfr0_el1
    and     x10, x10, #0xf          // PARange, at most 48 bits (5)
    cmp     x10, #5
    mov     x11, #5
    csel    x10, x10, x11, lo
    orr     x9, x9, x10, lsl #16
    msr     tcr_el2, x9
    msr     ttbr0_el2, x0
    isb
    msr     sctlr_el2, x1
    isb
    ret

    .section .bss.early_tables, "aw", %nobits
    .balign 4096
__early_tables:
    .space  4 * 4096
    "#,
    MAIR = const mm::stage1::MAIR,
    TCR = const TCR,
    SCTLR_OFF = const SCTLR_OFF,
    SCTLR_EARLY = const SCTLR_OFF | SCTLR_ON,
    SCTLR_FINAL = const SCTLR_FINAL,
    EARLY_BLOCK = const EARLY_BLOCK,
    HCR_BOOT = const HCR_BOOT,
    CPTR_BOOT = const CPTR_BOOT,
    STACK_SIZE = const STACK_SIZE,
    primary = sym crate::boot::primary,
    secondary = sym crate::boot::secondary,
);

const _: () = assert!(STACK_SIZE.is_power_of_two() && STACK_SIZE > 0x2000);
const _: () = assert!(MAX_CORES <= 16 && EMERGENCY_STACK_SIZE.is_multiple_of(16));

/// Replaces the tables of this core by those with the root table at `root`, with what is writable
/// never executable from now on.
///
/// # Safety
///
/// The tables at `root` must identity-map the image, the current stack and everything else that
/// this core has references to, with at least the permissions that the code needs, and must stay
/// valid for good.
pub unsafe fn switch_tables(root: mm::PhysAddr) {
    // SAFETY: `__mmu_switch` is a leaf function that clobbers x9 to x11 and touches no memory; the
    // caller vouches for the tables.
    unsafe {
        core::arch::asm!(
            "bl __mmu_switch",
            in("x0") root.get(),
            in("x1") SCTLR_FINAL,
            out("x9") _,
            out("x10") _,
            out("x11") _,
            out("x30") _,
        );
    }
}

/// Tells the other cores, which read it with the MMU off, which tables to install.
pub fn publish_to_secondaries(root: mm::PhysAddr) {
    SECONDARY_TTBR.store(root.get(), Ordering::Relaxed);
    let at = mm::PhysAddr::new((&raw const SECONDARY_TTBR).addr() as u64);
    super::cache::clean(at, size_of_val(&SECONDARY_TTBR) as u64);
}

/// Physical address at which PSCI starts secondary cores.
#[must_use]
pub fn secondary_start() -> mm::PhysAddr {
    unsafe extern "C" {
        fn __secondary_start() -> !;
    }
    mm::PhysAddr::new(__secondary_start as *const () as u64)
}
