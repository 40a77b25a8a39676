// Stage-1 translation of R-EL2: constant tables, 4 KiB granule, 39-bit virtual addresses.
//
//   virtual                         output
//   0x0900_0000 (2 MiB)             same, device: the console
//   0x4000_0000..0x1_0000_0000      same, Realm address space; the image by rmm.ld's regions, the rest data
//   0x10_4000_0000..0x11_0000_0000  less 64 GiB, Non-secure address space, data
//
// Descriptor bits (VMSAv8-64, EL2): attribute index [4:2], NS 5, AP 7:6, SH 9:8, AF 10, XN 54.

    .equ    TABLE,      0x3
    .equ    BLOCK,      0x1
    .equ    PAGE,       0x3
    .equ    NONSECURE,  1 << 5
    .equ    READ_ONLY,  1 << 7
    .equ    NORMAL,     (1 << 2) | (3 << 8) | (1 << 10) | (1 << 6)   // attribute 1, inner shareable, AF, AP[1] RES1
    .equ    DEVICE,     (0 << 2) | (1 << 10) | (1 << 6) | (1 << 54)
    .equ    XN,         1 << 54

    .section .rodata.tables, "a"
    .balign 4096
    .global level_1
level_1:
    .quad   level_2_device + TABLE
    .quad   level_2_ram + TABLE
    .quad   (2 << 30) | NORMAL | XN | BLOCK
    .quad   (3 << 30) | NORMAL | XN | BLOCK
    .fill   60, 8, 0
    .quad   0                                                        // window onto Non-secure memory
    .quad   (1 << 30) | NONSECURE | NORMAL | XN | BLOCK
    .quad   (2 << 30) | NONSECURE | NORMAL | XN | BLOCK
    .quad   (3 << 30) | NONSECURE | NORMAL | XN | BLOCK
    .fill   512 - 68, 8, 0

level_2_device:
    .fill   72, 8, 0
    .quad   0x09000000 | DEVICE | BLOCK
    .fill   512 - 73, 8, 0

level_2_ram:
    .quad   level_3_image + TABLE
    .quad   level_3_stacks + TABLE
    .set    address, 0x40400000
    .rept   510
    .quad   address | NORMAL | XN | BLOCK
    .set    address, address + 0x200000
    .endr

    .macro  pages first, count, attributes
    .set    address, \first
    .rept   \count
    .quad   address | (\attributes) | PAGE
    .set    address, address + 0x1000
    .endr
    .endm

level_3_image:
    pages   0x40000000, 256, NORMAL | XN                             // RAM before the image
    pages   0x40100000, 64,  NORMAL | READ_ONLY                      // text
    pages   0x40140000, 64,  NORMAL | READ_ONLY | XN                 // rodata
    pages   0x40180000, 128, NORMAL | XN                             // data

level_3_stacks:
    .set    stack, 0x40200000
    .rept   32
    .quad   0                                                        // guard
    pages   stack + 0x1000, 15, NORMAL | XN
    .set    stack, stack + 0x10000
    .endr
