//! Addresses of the image's sections and stacks, from the linker script.

use core::arch::global_asm;
use mm::{PAGE_SIZE, PhysAddr};

/// Largest number of cores that the hypervisor drives.
pub const MAX_CORES: usize = 8;
/// Bytes of address space of one core's stack, including its guard page. A power of two, and the
/// alignment of every stack: the exception vectors rely on both.
pub const STACK_SIZE: usize = 0x2_0000;
/// Bytes of the stack on which a core reports that its own stack overflowed.
pub const EMERGENCY_STACK_SIZE: usize = 0x2000;

// For the linker script, which reserves the memory and asserts that it agrees.
global_asm!(
    ".global __layout_max_cores",
    ".set __layout_max_cores, {max_cores}",
    ".global __layout_stack_size",
    ".set __layout_stack_size, {stack_size}",
    ".global __layout_emergency_stack_size",
    ".set __layout_emergency_stack_size, {emergency_stack_size}",
    max_cores = const MAX_CORES,
    stack_size = const STACK_SIZE,
    emergency_stack_size = const EMERGENCY_STACK_SIZE,
);

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __data_end: u8;
    static __stacks_start: u8;
    static __image_end: u8;
}

/// A range of the image, page aligned at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte.
    pub start: PhysAddr,
    /// One past the last byte.
    pub end: PhysAddr,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident, $start:ident, $end:ident) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name() -> Section {
            Section {
                start: PhysAddr::new((&raw const $start).addr() as u64),
                end: PhysAddr::new((&raw const $end).addr() as u64),
            }
        }
    };
}

section!(
    /// The whole image in memory, with `.bss` and stacks.
    image, __image_start, __image_end
);
section!(
    /// Code.
    text, __text_start, __text_end
);
section!(
    /// Constants and relocated pointers to them.
    rodata, __rodata_start, __rodata_end
);
section!(
    /// Initialised and zeroed variables, and the emergency stacks.
    data, __data_start, __data_end
);

/// The stack of core `index` (below [`MAX_CORES`]) without its guard page.
#[must_use]
pub fn stack(index: usize) -> Section {
    let base = (&raw const __stacks_start).addr() + index * STACK_SIZE;
    Section {
        start: PhysAddr::new((base + PAGE_SIZE as usize) as u64),
        end: PhysAddr::new((base + STACK_SIZE) as u64),
    }
}
