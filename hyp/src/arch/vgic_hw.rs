//! The virtual CPU interface of this core (`ICH_*_EL2`, Arm IHI 0069 chapter 12).

use super::control::Register;
use super::sysreg::{read_sysreg, write_sysreg};
use vmm_services::vgic::{ListRegister, LrImage};

/// `ICH_HCR_EL2.En`.
const ENABLE: u64 = 1;

/// Number of list registers that this core implements, 1 to 16.
#[must_use]
pub fn list_registers() -> usize {
    (read_sysreg!("ich_vtr_el2") & 0x1f) as usize + 1
}

/// Number of active-priority registers per group: 1, 2 or 4 for 5, 6 or 7 preemption bits.
fn active_priority_registers() -> usize {
    match read_sysreg!("ich_vtr_el2") >> 26 & 7 {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    }
}

/// State of a virtual CPU interface that stays in the registers while its vCPU is loaded.
#[derive(Clone, Debug, Default)]
pub struct VirtualInterface {
    vmcr: u64,
    ap0r: [u64; 4],
    ap1r: [u64; 4],
}

macro_rules! indexed {
    ($read:ident, $write:ident, $($index:literal = $name:literal),*) => {
        fn $read(index: usize) -> u64 {
            match index {
                $($index => read_sysreg!($name),)*
                _ => 0,
            }
        }

        fn $write(index: usize, value: u64) {
            match index {
                $($index => write_sysreg!($name, value),)*
                _ => {}
            }
        }
    };
}

indexed!(
    read_ap0r,
    write_ap0r,
    0 = "ich_ap0r0_el2",
    1 = "ich_ap0r1_el2",
    2 = "ich_ap0r2_el2",
    3 = "ich_ap0r3_el2"
);
indexed!(
    read_ap1r,
    write_ap1r,
    0 = "ich_ap1r0_el2",
    1 = "ich_ap1r1_el2",
    2 = "ich_ap1r2_el2",
    3 = "ich_ap1r3_el2"
);
indexed!(
    read_lr,
    write_lr,
    0 = "ich_lr0_el2",
    1 = "ich_lr1_el2",
    2 = "ich_lr2_el2",
    3 = "ich_lr3_el2",
    4 = "ich_lr4_el2",
    5 = "ich_lr5_el2",
    6 = "ich_lr6_el2",
    7 = "ich_lr7_el2",
    8 = "ich_lr8_el2",
    9 = "ich_lr9_el2",
    10 = "ich_lr10_el2",
    11 = "ich_lr11_el2",
    12 = "ich_lr12_el2",
    13 = "ich_lr13_el2",
    14 = "ich_lr14_el2",
    15 = "ich_lr15_el2"
);

impl VirtualInterface {
    /// Takes the state out of this core, whose virtual CPU interface is off and empty then.
    pub fn save(&mut self) {
        self.vmcr = read_sysreg!("ich_vmcr_el2");
        for index in 0..active_priority_registers() {
            self.ap0r[index] = read_ap0r(index);
            self.ap1r[index] = read_ap1r(index);
        }
        clear();
    }

    /// Puts the state into this core, whose list registers are empty.
    pub fn restore(&self) {
        write_sysreg!("ich_vmcr_el2", self.vmcr);
        for index in 0..active_priority_registers() {
            write_ap0r(index, self.ap0r[index]);
            write_ap1r(index, self.ap1r[index]);
        }
    }
}

/// Turns the virtual CPU interface off and empties it, as it is whenever no vCPU is loaded.
pub fn clear() {
    disable();
    write_sysreg!("ich_vmcr_el2", 0);
    for index in 0..active_priority_registers() {
        write_ap0r(index, 0);
        write_ap1r(index, 0);
    }
    for index in 0..list_registers() {
        write_lr(index, 0);
    }
}

/// Most registers that [`each`] shows.
pub const REGISTERS_MAX: usize = 2 + 2 * 4 + 16;

/// Shows what is in the virtual CPU interface.
pub fn each(see: &mut dyn FnMut(Register, u64)) {
    see(Register::one("ICH_HCR_EL2"), read_sysreg!("ich_hcr_el2"));
    see(Register::one("ICH_VMCR_EL2"), read_sysreg!("ich_vmcr_el2"));
    for index in 0..active_priority_registers() {
        see(Register::nth("ICH_AP0R_EL2", index), read_ap0r(index));
        see(Register::nth("ICH_AP1R_EL2", index), read_ap1r(index));
    }
    for index in 0..list_registers() {
        see(Register::nth("ICH_LR_EL2", index), read_lr(index));
    }
}

/// Loads list registers and control bits before entry. `written` is how many list registers the
/// call before this one for the loaded vCPU wrote; returns how many this one did.
#[inline(always)]
pub fn load(image: &LrImage, written: usize) -> usize {
    if image.used | written != 0 {
        load_list_registers(image, written);
    }
    write_sysreg!("ich_hcr_el2", ENABLE | image.hcr.bits());
    image.used
}

#[inline(never)]
fn load_list_registers(image: &LrImage, written: usize) {
    for (index, lr) in image.lrs.iter().enumerate().take(image.used) {
        write_lr(index, lr.bits());
    }
    for index in image.used..written {
        write_lr(index, 0);
    }
}

/// Turns the virtual CPU interface off until the next [`load`], and with it the maintenance interrupt,
/// whose cause stays in the list registers until then.
pub fn disable() {
    write_sysreg!("ich_hcr_el2", 0);
    super::cpu::isb();
}

/// Reads back after exit what the guest did with the list registers that were loaded.
#[inline(always)]
pub fn store(image: &mut LrImage) {
    if image.used != 0 {
        store_list_registers(image);
    }
    image.eoi_count = LrImage::eoi_count_of(read_sysreg!("ich_hcr_el2"));
    image.vmcr = read_sysreg!("ich_vmcr_el2");
}

#[inline(never)]
fn store_list_registers(image: &mut LrImage) {
    for (index, lr) in image.lrs.iter_mut().enumerate().take(image.used) {
        *lr = ListRegister::from_bits(read_lr(index));
    }
}
