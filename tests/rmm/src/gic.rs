//! Virtual CPU interface: what the host may ask for, and what it gets to see.

use crate::context::{GicState, MAX_LRS};
use crate::platform::MachineFeatures;

/// ICH_HCR_EL2 bits of the host: UIE, LRENPIE, NPIE, VGrp0EIE, VGrp0DIE, VGrp1EIE, VGrp1DIE, TDIR.
const HCR_HOST: u64 = 0xfe | 1 << 14;
/// ICH_HCR_EL2.En.
pub(crate) const HCR_ENABLE: u64 = 1 << 0;
/// ICH_HCR_EL2 bits of the monitor: En, VSGIEEOICount, DVIM.
pub(crate) const HCR_MONITOR: u64 = 1 << 0 | 1 << 8 | 1 << 15;
const HCR_EOI_COUNT: u64 = 0x1f << 27;

const LR_STATE: u64 = 0b11 << 62;
const LR_HW: u64 = 1 << 61;
const LR_PINTID: u64 = 0x1fff << 32;
/// Bit of the pINTID field that asks for a maintenance interrupt when HW is 0.
const LR_EOI: u64 = 1 << 41;

/// The virtual CPU interface of REC_ENTER.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostGic {
    pub(crate) hcr: u64,
    pub(crate) lrs: [u64; MAX_LRS],
}

/// Number of list registers of the machine.
pub(crate) fn list_registers(features: &MachineFeatures) -> usize {
    (features.ich_vtr & 0x1f) as usize + 1
}

fn is_intid(intid: u64, features: &MachineFeatures) -> bool {
    let id_bits = if features.ich_vtr >> 23 & 0b111 == 0 { 16 } else { 24 };
    match intid {
        0..=1019 => true,
        1056..=1119 | 4096..=5119 => features.gic_ext_range,
        8192.. => intid < 1 << id_bits,
        _ => false,
    }
}

impl HostGic {
    /// Checks list registers that the host wrote itself (2.0): no hardware interrupt, nothing
    /// twice.
    pub(crate) fn is_valid_in_hardware(state: &GicState, features: &MachineFeatures) -> bool {
        let count = list_registers(features).min(MAX_LRS);
        let used = |lr: &&u64| **lr & LR_STATE != 0;
        let lrs = &state.ich_lr[..count];
        lrs.iter().filter(used).enumerate().all(|(position, lr)| {
            let intid = lr & 0xffff_ffff;
            let mut later = lrs.iter().filter(used).skip(position + 1);
            lr & LR_HW == 0 && !later.any(|other| other & 0xffff_ffff == intid)
        })
    }

    /// Checks what the host asks for, so that no list register can reach a physical interrupt or
    /// be unpredictable.
    pub(crate) fn is_valid(&self, features: &MachineFeatures) -> bool {
        if self.hcr & !HCR_HOST != 0 {
            return false;
        }
        let count = list_registers(features).min(MAX_LRS);
        let unused_priority_bits = 7 - (features.ich_vtr >> 29 & 0b111);
        let priority_res0 = (1 << unused_priority_bits) - 1;
        let used = |lr: &&u64| **lr & LR_STATE != 0;
        let lrs = &self.lrs[..count];
        lrs.iter().filter(used).enumerate().all(|(position, lr)| {
            let intid = lr & 0xffff_ffff;
            let mut later = lrs.iter().filter(used).skip(position + 1);
            lr & LR_HW == 0
                && lr >> 48 & 0xff & priority_res0 == 0
                && lr & LR_PINTID & !LR_EOI == 0
                && is_intid(intid, features)
                && !later.any(|other| other & 0xffff_ffff == intid)
        })
    }

    /// Takes over what the host asks for; the rest of the interface is the REC's.
    pub(crate) fn apply(&self, gic: &mut GicState, features: &MachineFeatures) {
        let count = list_registers(features).min(MAX_LRS);
        gic.ich_lr[..count].copy_from_slice(&self.lrs[..count]);
        gic.ich_hcr = gic.ich_hcr & !HCR_HOST | HCR_MONITOR | self.hcr;
    }
}

/// What the host sees of ICH_HCR_EL2 after a run.
pub(crate) fn visible_hcr(gic: &GicState) -> u64 {
    gic.ich_hcr & (HCR_HOST | HCR_EOI_COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PENDING: u64 = 1 << 62;

    fn features() -> MachineFeatures {
        MachineFeatures {
            pa_bits: 48,
            num_bps: 5,
            num_wps: 3,
            // Five bits of priority, four list registers.
            ich_vtr: 4 << 29 | 3,
            gic_ext_range: false,
            vmid_bits: 16,
        }
    }

    fn valid(hcr: u64, lrs: &[u64]) -> bool {
        let mut gic = HostGic { hcr, lrs: [0; MAX_LRS] };
        gic.lrs[..lrs.len()].copy_from_slice(lrs);
        gic.is_valid(&features())
    }

    #[test]
    fn host_gic_is_checked() {
        assert!(valid(0, &[]));
        assert!(valid(HCR_HOST, &[PENDING | 27, PENDING | 0xa0 << 48 | 33]));
        assert!(!valid(1, &[]), "En is the monitor's");
        assert!(!valid(0, &[PENDING | LR_HW | 27]), "hardware interrupt");
        assert!(valid(0, &[LR_HW | 27]), "an invalid register is not looked at");
        assert!(!valid(0, &[PENDING | 1 << 48 | 27]), "priority bit that is not implemented");
        assert!(!valid(0, &[PENDING | 1 << 32 | 27]), "physical INTID");
        assert!(valid(0, &[PENDING | LR_EOI | 27]));
        assert!(!valid(0, &[PENDING | 1020]), "special INTID");
        assert!(!valid(0, &[PENDING | 1056]), "no extended range");
        assert!(valid(0, &[PENDING | 8192]));
        assert!(!valid(0, &[PENDING | 1 << 16]), "LPI beyond the ID width");
        assert!(!valid(0, &[PENDING | 27, 0, 0, PENDING | 27]), "duplicate");
        assert!(valid(0, &[PENDING | 27, 27]), "no duplicate of an invalid register");
        assert!(valid(0, &[0, 0, 0, 0, PENDING | LR_HW]), "beyond the implemented registers");
    }
}
