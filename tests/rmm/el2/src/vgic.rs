//! Virtual CPU interface of the REC that runs (`ICH_*_EL2`).
//!
//! With RMM-EL3 interface 0.x, EL3 switches `ICH_HCR_EL2` and `ICH_VMCR_EL2` between the worlds;
//! list registers and active priorities are shared. They are clear after a REC has run: a host
//! cannot count on what it had left there, and learns nothing from what a REC leaves.
//!
//! With interface 2.x all of it is shared: the core takes it from the host before a REC runs
//! ([`read`]), and leaves it to the host afterwards ([`load`]).

use rmm::GicState;

use crate::sysreg::{read, write};

/// Applies a macro to the list registers with these numbers, those of them that are implemented.
macro_rules! list_registers {
    ($count:expr, $apply:ident) => {
        list_registers!(@each $count, $apply, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@each $count:expr, $apply:ident, $($n:literal)*) => {
        $( if $count > $n { $apply!($n, concat!("ich_lr", $n, "_el2")); } )*
    };
}

/// Applies a macro to the active priority registers that are implemented.
macro_rules! active_priorities {
    ($count:expr, $apply:ident) => {
        active_priorities!(@each $count, $apply, 0 1 2 3)
    };
    (@each $count:expr, $apply:ident, $($n:literal)*) => {
        $( if $count > $n {
            $apply!($n, concat!("ich_ap0r", $n, "_el2"), concat!("ich_ap1r", $n, "_el2"));
        } )*
    };
}

/// Number of list registers, 1 to 16.
fn list_register_count() -> usize {
    (read!("ich_vtr_el2") & 0xf) as usize + 1
}

/// Number of registers for the active priorities of each group: 1, 2 or 4.
fn active_priority_count() -> usize {
    const FEWEST_PREEMPTION_BITS: u64 = 5;
    let preemption_bits = (read!("ich_vtr_el2") >> 26 & 7) + 1;
    1 << preemption_bits.saturating_sub(FEWEST_PREEMPTION_BITS).min(2)
}

/// Gives the CPU interface to a REC, or back to the host.
pub(crate) fn load(state: &GicState) {
    macro_rules! load_list {
        ($n:literal, $register:expr) => {
            write!($register, state.ich_lr[$n])
        };
    }
    macro_rules! load_priorities {
        ($n:literal, $group0:expr, $group1:expr) => {
            write!($group0, state.ich_ap0r[$n]);
            write!($group1, state.ich_ap1r[$n]);
        };
    }
    list_registers!(list_register_count(), load_list);
    active_priorities!(active_priority_count(), load_priorities);
    write!("ich_vmcr_el2", state.ich_vmcr);
    write!("ich_hcr_el2", state.ich_hcr);
}

/// What is in the CPU interface.
pub(crate) fn read() -> GicState {
    let mut state = GicState {
        ich_misr: read!("ich_misr_el2"),
        ich_hcr: read!("ich_hcr_el2"),
        ich_vmcr: read!("ich_vmcr_el2"),
        ..GicState::default()
    };
    macro_rules! read_list {
        ($n:literal, $register:expr) => {
            state.ich_lr[$n] = read!($register)
        };
    }
    macro_rules! read_priorities {
        ($n:literal, $group0:expr, $group1:expr) => {
            state.ich_ap0r[$n] = read!($group0);
            state.ich_ap1r[$n] = read!($group1);
        };
    }
    list_registers!(list_register_count(), read_list);
    active_priorities!(active_priority_count(), read_priorities);
    state
}

/// Takes the CPU interface from a REC and leaves it clear.
pub(crate) fn store(state: &mut GicState) {
    macro_rules! clear_list {
        ($n:literal, $register:expr) => {
            write!($register, 0)
        };
    }
    macro_rules! clear_priorities {
        ($n:literal, $group0:expr, $group1:expr) => {
            write!($group0, 0);
            write!($group1, 0);
        };
    }
    *state = read();
    write!("ich_hcr_el2", 0);
    list_registers!(list_register_count(), clear_list);
    active_priorities!(active_priority_count(), clear_priorities);
}
