use super::{
    Frame, FrameAccess, HardwarePpi, LrImage, LrState, MAX_INTID, SgiGroup, Vgic, VgicConfig,
};
use crate::exit::{Access, MmioAccess, Width};
use crate::ids::{VcpuId, VcpuSet};
use mm::Ipa;
use proptest::prelude::*;
use std::vec::Vec;

pub(super) const CONFIG: VgicConfig =
    VgicConfig { vcpus: 2, list_registers: 4, hardware_ppis: [None; 2] };
/// Both timers, of which a machine has one elsewhere than its guests.
pub(super) const TIED: [Option<HardwarePpi>; 2] =
    [Some(HardwarePpi { guest: 27, physical: 20 }), Some(HardwarePpi { guest: 30, physical: 30 })];
/// ICH_VMCR_EL2 of a guest that has everything enabled.
pub(super) const VMCR: u64 = 0xf8 << 24 | 0b11;

pub(super) fn cpu(index: usize) -> VcpuId {
    VcpuId::new(index).unwrap()
}

pub(super) fn access(
    vgic: &mut Vgic,
    frame: Frame,
    offset: u32,
    value: Option<u32>,
) -> (u64, VcpuSet) {
    let access = value.map_or(Access::Read, |v| Access::Write(u64::from(v)));
    vgic.access(&FrameAccess { frame, offset, width: Width::Word, access })
}

/// Offset and frame of the word of `intid` in the register array at `base`.
pub(super) fn word(intid: u32, vcpu: usize, base: u32) -> (Frame, u32) {
    if intid < 32 {
        (Frame::Private(cpu(vcpu)), base)
    } else {
        (Frame::Distributor, base + 4 * (intid / 32))
    }
}

/// Enables `intid` for `vcpu` (if private) with `priority`.
pub(super) fn enable(vgic: &mut Vgic, vcpu: usize, intid: u32, priority: u8) {
    let (frame, offset) = word(intid, vcpu, 0x100);
    let _ = access(vgic, frame, offset, Some(1 << (intid % 32)));
    let write = Access::Write(u64::from(priority));
    let offset = 0x400 + intid;
    let _ = vgic.access(&FrameAccess { frame, offset, width: Width::Byte, access: write });
}

pub(super) fn started(config: VgicConfig) -> Vgic {
    let mut vgic = Vgic::new(config);
    let _ = access(&mut vgic, Frame::Distributor, 0, Some(0b11));
    vgic
}

fn flushed(vgic: &mut Vgic, vcpu: usize) -> LrImage {
    let mut image = LrImage { vmcr: VMCR, ..LrImage::EMPTY };
    vgic.flush(cpu(vcpu), &mut image);
    image
}

fn listed(image: &LrImage) -> Vec<(u32, LrState)> {
    image.lrs[..image.used].iter().map(|lr| (lr.vintid(), lr.state())).collect()
}

fn with_state(image: &LrImage, index: usize, state: u64) -> LrImage {
    let mut changed = image.clone();
    let bits = changed.lrs[index].bits() & !(3 << 62) | state << 62;
    changed.lrs[index] = super::ListRegister::from_bits(bits);
    changed
}

#[test]
fn nothing_is_forwarded_until_everything_is_enabled() {
    let mut vgic = Vgic::new(CONFIG);
    assert!(vgic.set_spi(40, true).is_empty());
    enable(&mut vgic, 0, 40, 0x80);
    assert_eq!(flushed(&mut vgic, 0).used, 0, "the group is disabled");
    let (_, kick) = access(&mut vgic, Frame::Distributor, 0, Some(0b10));
    assert_eq!(kick, VcpuSet::only(cpu(0)));
    let image = flushed(&mut vgic, 0);
    assert_eq!(listed(&image), [(40, LrState::Pending)]);
    assert_eq!(image.lrs[0].bits(), 1 << 62 | 1 << 60 | 0x80 << 48 | 1 << 41 | 40);
    assert_eq!(flushed(&mut vgic, 1).used, 0, "routed to the boot vCPU");
}

#[test]
fn level_interrupts_follow_their_line() {
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 33, 0);
    let _ = vgic.set_spi(33, true);
    let image = flushed(&mut vgic, 0);
    // Acknowledged, and ended with the line still high: pending again.
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 2));
    assert!(!vgic.has_pending(cpu(0)), "active");
    let image = flushed(&mut vgic, 0);
    assert_eq!(listed(&image), [(33, LrState::Active)]);
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 0));
    assert!(vgic.has_pending(cpu(0)));
    // The line falls before the guest acknowledges: gone.
    let image = flushed(&mut vgic, 0);
    let _ = vgic.set_spi(33, false);
    let _ = vgic.sync(cpu(0), &image);
    assert!(!vgic.has_pending(cpu(0)));
    assert_eq!(flushed(&mut vgic, 0).used, 0);
}

#[test]
fn edges_are_remembered_while_active() {
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 34, 0);
    let _ = access(&mut vgic, Frame::Distributor, 0xc08, Some(2 << 4));
    let _ = vgic.set_spi(34, true);
    let image = flushed(&mut vgic, 0);
    assert_eq!(image.lrs[0].bits() >> 41 & 1, 0, "an edge needs no maintenance");
    // Acknowledged while another edge comes.
    let _ = vgic.set_spi(34, false);
    assert_eq!(vgic.set_spi(34, true), VcpuSet::only(cpu(0)));
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 2));
    assert_eq!(listed(&flushed(&mut vgic, 0)), [(34, LrState::PendingActive)]);
    // Two edges before the acknowledge are one.
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 1, 0);
    let _ = vgic.generate_sgi(cpu(1), SgiGroup::Group1, 1 << 24 | 1);
    let image = flushed(&mut vgic, 0);
    let _ = vgic.generate_sgi(cpu(1), SgiGroup::Group1, 1 << 24 | 1);
    let _ = vgic.sync(cpu(0), &image);
    let image = flushed(&mut vgic, 0);
    assert_eq!(listed(&image), [(1, LrState::Pending)]);
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 0));
    assert_eq!(flushed(&mut vgic, 0).used, 0);
}

#[test]
fn the_most_urgent_get_the_list_registers() {
    let mut vgic = started(CONFIG);
    for (intid, priority) in
        [(32, 0xa0), (33, 0x20), (34, 0x80), (35, 0x40), (36, 0x60), (37, 0x10)]
    {
        enable(&mut vgic, 0, intid, priority);
        let _ = vgic.set_spi(intid, true);
    }
    let image = flushed(&mut vgic, 0);
    let order: Vec<u32> = listed(&image).iter().map(|lr| lr.0).collect();
    assert_eq!(order, [37, 33, 35, 36]);
    assert_eq!(image.hcr, super::HcrBits::NPIE);
    // All four acknowledged, in order of urgency from last to first by preemption: none can be
    // left out, but a more urgent one coming in displaces the least urgent.
    let mut taken = image.clone();
    for index in 0..4 {
        taken = with_state(&taken, index, 2);
    }
    let _ = vgic.sync(cpu(0), &taken);
    let image = flushed(&mut vgic, 0);
    assert!(listed(&image).iter().all(|lr| lr.1 == LrState::Active));
    assert_eq!(image.hcr, super::HcrBits::UIE);
    let _ = vgic.sync(cpu(0), &image);
    enable(&mut vgic, 0, 2, 0);
    let _ = vgic.generate_sgi(cpu(1), SgiGroup::Group1, 2 << 24 | 1);
    let image = flushed(&mut vgic, 0);
    assert_eq!(image.lrs[0].vintid(), 2);
    assert_eq!(image.hcr, super::HcrBits::NPIE | super::HcrBits::LRENPIE);
    // The guest took interrupt 2, ended it and the three listed ones, and then the one that was
    // displaced: 36, the least urgent of those active.
    let mut ended = image.clone();
    for index in 0..4 {
        ended = with_state(&ended, index, 0);
    }
    ended.eoi_count = 1;
    for intid in [37, 33, 35, 36] {
        let _ = vgic.set_spi(intid, false);
    }
    let _ = vgic.sync(cpu(0), &ended);
    assert_eq!(listed(&flushed(&mut vgic, 0)), [(32, LrState::Pending), (34, LrState::Pending)]);
}

#[test]
fn a_displaced_active_interrupt_traps_deactivation_in_eoi_mode_1() {
    let mut vgic = started(VgicConfig { list_registers: 2, ..CONFIG });
    for intid in 0..3 {
        enable(&mut vgic, 0, intid, 8 * intid as u8);
    }
    let _ = access(&mut vgic, Frame::Private(cpu(0)), 0x300, Some(0b111));
    let mut image = LrImage { vmcr: VMCR | 1 << 9, ..LrImage::EMPTY };
    let _ = vgic.sync(cpu(0), &image);
    vgic.flush(cpu(0), &mut image);
    assert!(image.hcr.contains(super::HcrBits::TDIR));
    let _ = vgic.sync(cpu(0), &image);
    let _ = vgic.deactivate(cpu(0), 2);
    assert_eq!(access(&mut vgic, Frame::Private(cpu(0)), 0x300, None).0, 0b011);
    // Numbers that do not exist are ignored.
    for intid in [MAX_INTID + 1, 1023, 0xff_ffff] {
        assert!(vgic.deactivate(cpu(0), intid).is_empty());
    }
}

#[test]
fn sgi_targets_in_all_forms() {
    let config = VgicConfig { vcpus: 4, ..CONFIG };
    let targets = |value: u64, group| {
        let mut vgic = started(config);
        for vcpu in 0..4 {
            enable(&mut vgic, vcpu, 5, 0);
        }
        let kick = vgic.generate_sgi(cpu(1), group, 5 << 24 | value);
        let pending: Vec<usize> = (0..4).filter(|&v| flushed(&mut vgic, v).used == 1).collect();
        assert_eq!(kick.iter().map(VcpuId::index).collect::<Vec<_>>(), pending);
        pending
    };
    let group1 = |value| targets(value, SgiGroup::Group1);
    assert_eq!(group1(0b1101), [0, 2, 3]);
    assert_eq!(group1(0b0010), [1], "oneself");
    assert_eq!(group1(0xfff0), [0; 0], "no such vCPUs");
    assert_eq!(group1(1 << 40), [0, 2, 3], "all but oneself");
    assert_eq!(group1(1 << 40 | 0xff << 16 | 0b10), [0, 2, 3], "which ignores the rest");
    for other_affinity in [1 << 16, 1 << 32, 1 << 48, 1 << 44] {
        assert_eq!(group1(other_affinity | 0xf), [0; 0]);
    }
    assert_eq!(targets(0xf, SgiGroup::Group0), [0; 0], "the interrupt is in group 1");
}

#[test]
fn spis_go_where_they_are_routed() {
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 50, 0);
    let router = 0x6000 + 8 * 50;
    let _ = access(&mut vgic, Frame::Distributor, router, Some(1));
    assert_eq!(vgic.set_spi(50, true), VcpuSet::only(cpu(1)));
    // In flight when it is routed back: it goes once it is done with.
    let image = flushed(&mut vgic, 1);
    let (_, kick) = access(&mut vgic, Frame::Distributor, router, Some(0));
    assert_eq!(kick, VcpuSet::only(cpu(1)), "whoever has it must let go");
    assert_eq!(vgic.sync(cpu(1), &image), VcpuSet::only(cpu(0)));
    assert!(!vgic.has_pending(cpu(1)));
    assert_eq!(flushed(&mut vgic, 0).used, 1);
    // To nobody.
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 50, 0);
    for nobody in [2, 0x100, 0x1_0000] {
        let _ = access(&mut vgic, Frame::Distributor, router, Some(nobody));
        assert!(vgic.set_spi(50, true).is_empty());
        assert_eq!(access(&mut vgic, Frame::Distributor, router, None).0, u64::from(nobody));
    }
    let _ = access(&mut vgic, Frame::Distributor, router, Some(0));
    let _ = access(&mut vgic, Frame::Distributor, router + 4, Some(1));
    assert_eq!(flushed(&mut vgic, 0).used, 0, "Aff3");
    let double = FrameAccess {
        frame: Frame::Distributor,
        offset: router,
        width: Width::Double,
        access: Access::Read,
    };
    assert_eq!(vgic.access(&double).0, 1 << 32);
}

#[test]
fn an_active_spi_stays_with_whom_it_interrupted() {
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 50, 0);
    let _ = access(&mut vgic, Frame::Distributor, 0xc0c, Some(2 << 4));
    let _ = vgic.set_spi(50, true);
    let image = flushed(&mut vgic, 0);
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 2));
    let _ = access(&mut vgic, Frame::Distributor, 0x6000 + 8 * 50, Some(1));
    let _ = vgic.set_spi(50, false);
    let _ = vgic.set_spi(50, true);
    assert_eq!(flushed(&mut vgic, 1).used, 0);
    let image = flushed(&mut vgic, 0);
    assert_eq!(listed(&image), [(50, LrState::Active)]);
    assert_eq!(image.lrs[0].bits() >> 41 & 1, 1, "its end must be told");
    // Nothing moves meanwhile, so nobody is to be kicked: two vCPUs would kick each other for ever.
    let other = flushed(&mut vgic, 1);
    assert!(vgic.sync(cpu(1), &other).is_empty());
    assert!(vgic.sync(cpu(0), &image).is_empty());
    let image = flushed(&mut vgic, 0);
    assert_eq!(vgic.sync(cpu(0), &with_state(&image, 0, 0)), VcpuSet::only(cpu(1)));
    assert_eq!(listed(&flushed(&mut vgic, 1)), [(50, LrState::Pending)]);
}

#[test]
fn writes_by_others_outlast_the_list_register() {
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 3, 0);
    let _ = vgic.generate_sgi(cpu(1), SgiGroup::Group1, 3 << 24 | 1);
    let image = flushed(&mut vgic, 0);
    let frame = Frame::Private(cpu(0));
    assert_eq!(access(&mut vgic, frame, 0x200, None).0, 0b1000);
    let (_, kick) = access(&mut vgic, frame, 0x280, Some(0b1000));
    assert_eq!(kick, VcpuSet::only(cpu(0)));
    assert_eq!(access(&mut vgic, frame, 0x200, None).0, 0);
    let _ = vgic.sync(cpu(0), &image);
    assert_eq!(flushed(&mut vgic, 0).used, 0);
    // The same for the active state.
    let _ = vgic.generate_sgi(cpu(1), SgiGroup::Group1, 3 << 24 | 1);
    let image = flushed(&mut vgic, 0);
    let image = with_state(&image, 0, 2);
    let _ = vgic.sync(cpu(0), &image);
    let image = flushed(&mut vgic, 0);
    let _ = access(&mut vgic, frame, 0x380, Some(0b1000));
    let _ = vgic.sync(cpu(0), &image);
    assert_eq!(access(&mut vgic, frame, 0x300, None).0, 0);
}

#[test]
fn the_tied_timer_is_deactivated_by_the_guest() {
    let mut vgic = started(VgicConfig { hardware_ppis: TIED, ..CONFIG });
    enable(&mut vgic, 0, 27, 0xa0);
    let _ = vgic.raise_hardware(cpu(0), 27);
    assert_eq!(vgic.hardware_active(cpu(0)), 1 << 20);
    let image = flushed(&mut vgic, 0);
    assert_eq!(image.lrs[0].bits(), 1 << 62 | 1 << 61 | 1 << 60 | 0xa0 << 48 | 20 << 32 | 27);
    assert_eq!((image.activate, image.deactivate), (0, 0));
    // Preempted while active: stays so.
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 2));
    assert_eq!(vgic.hardware_active(cpu(0)), 1 << 20);
    let image = flushed(&mut vgic, 0);
    assert_eq!(listed(&image), [(27, LrState::Active)]);
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 0));
    assert_eq!(vgic.hardware_active(cpu(0)), 0);
    // Withdrawn by software: the physical interrupt has to be told, once. The other one is not
    // concerned.
    let _ = vgic.raise_hardware(cpu(0), 30);
    let _ = vgic.raise_hardware(cpu(0), 27);
    assert_eq!(vgic.hardware_active(cpu(0)), 1 << 20 | 1 << 30);
    let _ = access(&mut vgic, Frame::Private(cpu(0)), 0x280, Some(1 << 27));
    assert_eq!(vgic.hardware_active(cpu(0)), 1 << 30);
    let mut image = flushed(&mut vgic, 0);
    assert_eq!((image.activate, image.deactivate), (0, 1 << 20));
    vgic.flush(cpu(0), &mut image);
    assert_eq!((image.activate, image.deactivate), (0, 0));
    // Made active by software.
    let _ = access(&mut vgic, Frame::Private(cpu(0)), 0x300, Some(1 << 27));
    let image = flushed(&mut vgic, 0);
    assert_eq!((image.activate, image.deactivate), (1 << 20, 0));
    // Another vCPU's is another, and what is not tied does not matter.
    assert_eq!(vgic.hardware_active(cpu(1)), 0);
    assert!(vgic.raise_hardware(cpu(1), 26).is_empty());
    assert!(vgic.raise_hardware(cpu(1), 59).is_empty());
    assert_eq!(vgic.hardware_active(cpu(1)), 0);
}

#[test]
fn the_cpu_interface_decides_about_waking() {
    let mut vgic = started(CONFIG);
    enable(&mut vgic, 0, 40, 0x80);
    let _ = vgic.set_spi(40, true);
    let mut waking = |vmcr| {
        let image = LrImage { vmcr, ..LrImage::EMPTY };
        let _ = vgic.sync(cpu(0), &image);
        vgic.has_pending(cpu(0))
    };
    assert!(waking(0xf8 << 24 | 0b10));
    assert!(!waking(0xf8 << 24 | 0b01), "group 1 is off");
    assert!(!waking(0x80 << 24 | 0b10), "masked by priority");
    assert!(waking(0x88 << 24 | 0b10));
    assert!(!waking(0));
}

#[test]
fn identification() {
    let mut vgic = Vgic::new(VgicConfig { vcpus: 3, ..CONFIG });
    let dist = Frame::Distributor;
    assert_eq!(access(&mut vgic, dist, 0x0, None).0, 0x50, "ARE and DS");
    let typer = access(&mut vgic, dist, 0x4, None).0;
    assert_eq!(32 * ((typer & 0x1f) + 1) - 1, u64::from(MAX_INTID));
    assert_eq!(typer >> 17 & 1, 0, "no LPIs");
    for frame in [dist, Frame::Redistributor(cpu(1))] {
        assert_eq!(access(&mut vgic, frame, 0xffe8, None).0 >> 4 & 0xf, 3, "GICv3");
    }
    for vcpu in 0..3 {
        let frame = Frame::Redistributor(cpu(vcpu));
        let low = access(&mut vgic, frame, 0x8, None).0;
        assert_eq!(low >> 8 & 0xffff, vcpu as u64);
        assert_eq!(low >> 4 & 1 == 1, vcpu == 2, "last");
        assert_eq!(access(&mut vgic, frame, 0xc, None).0, vcpu as u64, "affinity");
        assert_eq!(access(&mut vgic, frame, 0x14, None).0, 0b110);
        let _ = access(&mut vgic, frame, 0x14, Some(0));
        assert_eq!(access(&mut vgic, frame, 0x14, None).0, 0);
    }
}

#[test]
fn frames_are_where_the_layout_says() {
    let vgic = Vgic::new(CONFIG);
    let at = |ipa| {
        let access = MmioAccess { ipa: Ipa::new(ipa), width: Width::Word, access: Access::Read };
        vgic.locate(&access).map(|located| (located.frame, located.offset))
    };
    assert_eq!(at(0x0800_0004), Some((Frame::Distributor, 4)));
    assert_eq!(at(0x0801_0000), None);
    assert_eq!(at(0x07ff_fffc), None);
    assert_eq!(at(0x080a_0008), Some((Frame::Redistributor(cpu(0)), 8)));
    assert_eq!(at(0x080b_0100), Some((Frame::Private(cpu(0)), 0x100)));
    assert_eq!(at(0x080c_0000), Some((Frame::Redistributor(cpu(1)), 0)));
    assert_eq!(at(0x080e_0000), None, "there are two vCPUs");
    assert_eq!(at(u64::MAX), None);
}

#[test]
fn configuration_and_priorities_read_back() {
    let mut vgic = Vgic::new(CONFIG);
    let dist = Frame::Distributor;
    assert_eq!(access(&mut vgic, dist, 0xc08, None).0, 0);
    let _ = access(&mut vgic, dist, 0xc08, Some(0xffff_ffff));
    assert_eq!(access(&mut vgic, dist, 0xc08, None).0, 0xaaaa_aaaa);
    let private = Frame::Private(cpu(0));
    assert_eq!(access(&mut vgic, private, 0xc00, None).0, 0xaaaa_aaaa, "SGIs are edges");
    let _ = access(&mut vgic, private, 0xc00, Some(0));
    assert_eq!(access(&mut vgic, private, 0xc00, None).0, 0xaaaa_aaaa);
    let _ = access(&mut vgic, private, 0xc04, Some(0xffff_ffff));
    assert_eq!(access(&mut vgic, private, 0xc04, None).0, 0, "PPIs are levels");
    let _ = access(&mut vgic, dist, 0x420, Some(0x1122_33ff));
    assert_eq!(access(&mut vgic, dist, 0x420, None).0, 0x1020_30f8);
    let _ = access(&mut vgic, dist, 0x400, Some(0x1122_33ff));
    assert_eq!(access(&mut vgic, dist, 0x400, None).0, 0, "those are in the redistributors");
}

proptest! {
    #[test]
    fn random_accesses_never_panic(
        steps in proptest::collection::vec(
            (0u64..0x0810_0000, 0u64..4, any::<Option<u64>>(), 0usize..2, any::<u64>()), 1..200),
        lrs in 0usize..20,
    ) {
        let mut vgic = started(VgicConfig { vcpus: 2, list_registers: lrs, hardware_ppis: TIED });
        let mut image = LrImage::EMPTY;
        for (offset, sas, value, vcpu, noise) in steps {
            // Half of the accesses go to the dense part of the register maps.
            let ipa = if offset % 2 == 0 { 0x0800_0000 + offset % 0x10_0000 } else { 0x0800_0000 + offset % 0x1000 };
            let access = MmioAccess {
                ipa: Ipa::new(ipa),
                width: Width::from_sas(sas),
                access: value.map_or(Access::Read, Access::Write),
            };
            if let Some(located) = vgic.locate(&access) {
                let _ = vgic.access(&located);
            }
            let _ = vgic.set_spi(noise as u32 % 140, noise >> 32 & 1 != 0);
            let _ = vgic.set_ppi(cpu(vcpu), noise as u32 % 40, noise >> 33 & 1 != 0);
            let _ = vgic.generate_sgi(cpu(vcpu), SgiGroup::Group1, noise);
            let _ = vgic.deactivate(cpu(vcpu), noise as u32);
            vgic.flush(cpu(vcpu), &mut image);
            prop_assert!(image.used <= vgic.config().list_registers);
            for (i, lr) in image.lrs.iter().enumerate() {
                prop_assert_eq!(lr.state() == LrState::Invalid, i >= image.used);
                prop_assert_eq!(lr.priority() & 7, 0);
                prop_assert!(!(lr.is_hardware() && lr.state() == LrState::PendingActive));
                prop_assert!(image.lrs[..i].iter().take(image.used)
                    .all(|other| i >= image.used || other.vintid() != lr.vintid()));
            }
            // What comes back in those that were written can be anything at all.
            if let Some(lr) = image.lrs[..image.used].get_mut(noise as usize % 16) {
                *lr = super::ListRegister::from_bits(noise.rotate_left(7));
            }
            image.eoi_count = (noise >> 5) as u8;
            let _ = vgic.sync(cpu(vcpu), &image);
            let _ = (vgic.has_pending(cpu(0)), vgic.has_pending(cpu(1)));
        }
    }
}

#[test]
fn tied_spis_are_deactivated_by_whoever_is_done_with_them() {
    fn released(vgic: &mut Vgic) -> Vec<u32> {
        let mut found = Vec::new();
        vgic.release_hardware_spis(|intid| found.push(intid));
        found
    }
    let mut vgic = started(CONFIG);
    vgic.tie_spi(34, true);
    enable(&mut vgic, 0, 34, 0);
    assert!(vgic.raise_hardware_spi(35).is_empty(), "not tied");
    assert_eq!(vgic.raise_hardware_spi(34), VcpuSet::only(cpu(0)));
    let image = flushed(&mut vgic, 0);
    assert_eq!(listed(&image), [(34, LrState::Pending)]);
    assert!(image.lrs[0].is_hardware());
    assert_eq!(image.lrs[0].bits() >> 32 & 0x1fff, 34);
    // The guest takes it, and deactivates it in the list register.
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 2));
    let image = flushed(&mut vgic, 0);
    let _ = vgic.sync(cpu(0), &with_state(&image, 0, 0));
    assert_eq!(released(&mut vgic), []);
    // The line falls before the guest sees it.
    let _ = vgic.raise_hardware_spi(34);
    vgic.resample_hardware_spis(|intid| intid == 34);
    assert_eq!(released(&mut vgic), []);
    vgic.resample_hardware_spis(|_| false);
    assert_eq!(released(&mut vgic), [34]);
    assert_eq!(flushed(&mut vgic, 0).used, 0);
    // The same while it is disabled: the vCPU has nothing in its list registers, and yet is not quiet.
    let disable = |vgic: &mut Vgic| access(vgic, Frame::Distributor, 0x184, Some(1 << 2)).1;
    assert!(disable(&mut vgic).is_empty());
    assert_eq!(flushed(&mut vgic, 0).used, 0);
    assert!(vgic.is_quiet(cpu(0)));
    let _ = vgic.raise_hardware_spi(34);
    assert_eq!(flushed(&mut vgic, 0).used, 0);
    assert!(!vgic.is_quiet(cpu(0)));
    vgic.resample_hardware_spis(|_| false);
    assert_eq!(released(&mut vgic), [34]);
    assert_eq!(flushed(&mut vgic, 0).used, 0);
    assert!(vgic.is_quiet(cpu(0)));
    enable(&mut vgic, 0, 34, 0);
    // It takes the pending state away before it sees it, or the active state after that.
    for (register, state) in [(0x284, 1), (0x384, 2)] {
        let _ = vgic.raise_hardware_spi(34);
        let image = flushed(&mut vgic, 0);
        let _ = vgic.sync(cpu(0), &with_state(&image, 0, state));
        assert_eq!(released(&mut vgic), []);
        let _ = access(&mut vgic, Frame::Distributor, register, Some(1 << 2));
        assert_eq!(released(&mut vgic), [34]);
        assert_eq!(flushed(&mut vgic, 0).used, 0);
    }
}
