//! Software-generated interrupts (Arm IHI 0069, ICC_SGI0R_EL1, ICC_SGI1R_EL1).

use super::Vgic;
use crate::ids::{VcpuId, VcpuSet};

/// Which register generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SgiGroup {
    /// ICC_SGI0R_EL1.
    Group0,
    /// ICC_SGI1R_EL1.
    Group1,
}

impl Vgic {
    /// `vcpu` writes `value` to the SGI register of `group`; returns whom to wake or kick.
    ///
    /// A target gets the interrupt if it has it in that group.
    pub(crate) fn generate_sgi(&mut self, vcpu: VcpuId, group: SgiGroup, value: u64) -> VcpuSet {
        let bit = 1_u32 << (value >> 24 & 0xf);
        let mut kick = VcpuSet::EMPTY;
        for target in self.sgi_targets(vcpu, value).iter() {
            let bank = &mut self.private[target.index()].bank;
            let in_group1 = bank.group1 & bit != 0;
            if in_group1 == (group == SgiGroup::Group1) {
                bank.set_pending(bit);
                self.quiet.remove(target);
                kick.extend(self.private_changed(target, bit));
            }
        }
        kick
    }

    fn sgi_targets(&self, vcpu: VcpuId, value: u64) -> VcpuSet {
        let mut all = VcpuSet::first(self.config.vcpus);
        let to_all_others = value >> 40 & 1 != 0;
        if to_all_others {
            all.remove(vcpu);
            return all;
        }
        // All vCPUs have Aff3.Aff2.Aff1 zero and Aff0 below 16, so the range selector is zero too.
        let [aff1, aff2, range, aff3] =
            [value >> 16 & 0xff, value >> 32 & 0xff, value >> 44 & 0xf, value >> 48 & 0xff];
        if [aff1, aff2, range, aff3] == [0; 4] {
            VcpuSet::from_bits(value as u16).intersection(all)
        } else {
            VcpuSet::EMPTY
        }
    }
}
