//! Registers of the lower exception levels, by their architectural names.
//!
//! Nothing that this image does depends on them, so reading and writing them is sound; what must
//! be right is only that everybody gets back what was theirs.

use rmm::{El1State, TimerState};

/// Reads a system register.
macro_rules! read {
    ($register:expr) => {{
        let value: u64;
        // SAFETY: reading the register has no effect.
        unsafe {
            core::arch::asm!(
                concat!("mrs {}, ", $register),
                out(reg) value,
                options(nomem, nostack, preserves_flags),
            );
        }
        value
    }};
}

/// Writes a system register that only the lower exception levels, or the entry into them, use.
macro_rules! write {
    ($register:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register does not take part in the execution of this image at EL2.
        unsafe {
            core::arch::asm!(
                concat!("msr ", $register, ", {}"),
                in(reg) value,
                options(nomem, nostack, preserves_flags),
            );
        }
    }};
}

pub(crate) use {read, write};

/// Applies a macro to the registers of [`El1State`] that EL3 does not switch between the worlds.
macro_rules! shared_el1_registers {
    ($apply:ident, $state:expr) => {
        $apply!(
            $state, sp_el0 sp_el1 elr_el1 spsr_el1 tpidrro_el0 tpidr_el0 tpidr_el1 csselr_el1
            sctlr_el1 actlr_el1 cpacr_el1 ttbr0_el1 ttbr1_el1 tcr_el1 esr_el1 afsr0_el1 afsr1_el1
            far_el1 mair_el1 amair_el1 vbar_el1 contextidr_el1 cntkctl_el1 par_el1 mdscr_el1
            mdccint_el1
        )
    };
}

/// Stores the EL1 and EL0 state that the machine holds now into `state`, leaving alone what EL3
/// switches (`vmpidr_el2`) and what only a REC has (`disr_el1`, `vse_pending`).
pub(crate) fn store_el1(state: &mut El1State) {
    macro_rules! store {
        ($state:expr, $($register:ident)*) => { $( $state.$register = read!(stringify!($register)); )* };
    }
    shared_el1_registers!(store, state);
}

/// Loads `state` into the machine; the counterpart of [`store_el1`].
pub(crate) fn load_el1(state: &El1State) {
    macro_rules! load {
        ($state:expr, $($register:ident)*) => { $( write!(stringify!($register), $state.$register); )* };
    }
    shared_el1_registers!(load, state);
}

/// Stores the EL1 timers.
pub(crate) fn store_timers() -> TimerState {
    TimerState {
        cntv_ctl: read!("cntv_ctl_el0"),
        cntv_cval: read!("cntv_cval_el0"),
        cntp_ctl: read!("cntp_ctl_el0"),
        cntp_cval: read!("cntp_cval_el0"),
    }
}

/// Loads the EL1 timers. The deadline goes first: an old one under a new control word could raise
/// the output for a moment.
pub(crate) fn load_timers(timers: &TimerState) {
    write!("cntv_ctl_el0", 0);
    write!("cntp_ctl_el0", 0);
    write!("cntv_cval_el0", timers.cntv_cval);
    write!("cntv_ctl_el0", timers.cntv_ctl);
    write!("cntp_cval_el0", timers.cntp_cval);
    write!("cntp_ctl_el0", timers.cntp_ctl);
}

/// Reads the AArch64 ID register of the encoding `S3_0_C0_C<crm>_<op2>`: zero where there is none.
pub(crate) fn id_register(crm: u64, op2: u64) -> u64 {
    macro_rules! row {
        ($crm:literal: $($op2:literal)*) => {
            match op2 {
                $( $op2 => read!(concat!("S3_0_C0_C", $crm, "_", $op2)), )*
                _ => 0,
            }
        };
    }
    match crm {
        1 => row!(1: 0 1 2 3 4 5 6 7),
        2 => row!(2: 0 1 2 3 4 5 6 7),
        3 => row!(3: 0 1 2 3 4 5 6 7),
        4 => row!(4: 0 1 2 3 4 5 6 7),
        5 => row!(5: 0 1 2 3 4 5 6 7),
        6 => row!(6: 0 1 2 3 4 5 6 7),
        7 => row!(7: 0 1 2 3 4 5 6 7),
        _ => 0,
    }
}
