//! Access to system registers that `aarch64-cpu` does not name.

/// Reads a system register by its assembler name.
macro_rules! read_sysreg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: MRS of this register only returns a value; it has no side effect on memory or
        // on the stack, and the register exists on this core (the caller has checked its feature).
        unsafe {
            core::arch::asm!(concat!("mrs {0}, ", $name), out(reg) value,
                options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register by its assembler name.
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the registers written through this macro configure the guest (EL1 state, virtual
        // interface, stage-2) or a timer; none of them changes how EL2 itself executes or what it
        // can access.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {0}"), in(reg) value,
                options(nostack, preserves_flags));
        }
    }};
}

pub(crate) use {read_sysreg, write_sysreg};
