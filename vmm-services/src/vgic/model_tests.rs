//! The vGIC against a model that knows nothing of list registers.
//!
//! [`Model`] is the distributor as the architecture describes it: flags per interrupt, and at each
//! acknowledge the most urgent of all that may be signalled. [`Interface`] is a virtual CPU
//! interface: it sees nothing but list registers and says when it would raise its maintenance
//! interrupt. The same guest runs on both; it must get the same interrupts in the same order, and
//! read the same registers.

use super::tests::{CONFIG, TIED, VMCR, access, cpu, started, word};
use super::{
    Frame, HardwarePpi, HcrBits, ListRegister, LrImage, LrState, SgiGroup, Vgic, VgicConfig,
};
use crate::ids::VcpuSet;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const VCPUS: usize = 3;
/// Few interrupts, so that they meet often. 27 and 30 are tied where there are tied ones.
const INTIDS: [u32; 12] = [0, 1, 15, 16, 27, 30, 31, 32, 33, 40, 63, 127];
const EOI_MODE: u64 = 1 << 9;
const IDLE: u8 = 0xff;

/// One interrupt of the model; private ones exist per vCPU.
#[derive(Clone, Debug, Default)]
struct Interrupt {
    enabled: bool,
    latch: bool,
    line: bool,
    edge: bool,
    active: bool,
    priority: u8,
    target: usize,
}

impl Interrupt {
    fn pending(&self) -> bool {
        self.latch || (self.line && !self.edge)
    }
}

#[derive(Clone, Debug)]
struct Model {
    forwarding: bool,
    tied: bool,
    /// By vCPU (0 for shared ones) and number.
    interrupts: BTreeMap<(usize, u32), Interrupt>,
    /// Per vCPU, interrupts whose priority is in force.
    running: [Vec<(u32, u8)>; VCPUS],
    /// Per vCPU, interrupts acknowledged and not deactivated, in order.
    taken: [Vec<u32>; VCPUS],
}

impl Model {
    fn new(tied: bool) -> Self {
        let mut interrupts = BTreeMap::new();
        for intid in INTIDS {
            for vcpu in 0..if intid < 32 { VCPUS } else { 1 } {
                let edge = intid < 16;
                let target = if intid < 32 { vcpu } else { 0 };
                interrupts.insert((vcpu, intid), Interrupt { edge, target, ..Default::default() });
            }
        }
        Self {
            forwarding: true,
            tied,
            interrupts,
            running: Default::default(),
            taken: Default::default(),
        }
    }

    fn at(&mut self, vcpu: usize, intid: u32) -> &mut Interrupt {
        self.interrupts.get_mut(&(if intid < 32 { vcpu } else { 0 }, intid)).unwrap()
    }

    fn signalled(&self, vcpu: usize) -> Option<(u8, u32)> {
        let candidates = self.interrupts.iter().filter(|(key, i)| {
            let here = if key.1 < 32 { key.0 == vcpu } else { i.target == vcpu };
            here && self.forwarding && i.enabled && i.pending() && !i.active
        });
        candidates.map(|(key, i)| (i.priority, key.1)).min()
    }

    fn acknowledge(&mut self, vcpu: usize) -> Option<u32> {
        let (priority, intid) = self.signalled(vcpu)?;
        let running = self.running[vcpu].last().map_or(IDLE, |r| r.1);
        if priority >= running.min(0xf8) {
            return None;
        }
        let interrupt = self.at(vcpu, intid);
        interrupt.active = true;
        interrupt.latch = false;
        self.running[vcpu].push((intid, priority));
        self.taken[vcpu].push(intid);
        Some(intid)
    }

    fn deactivate(&mut self, vcpu: usize, intid: u32) {
        self.taken[vcpu].retain(|&taken| taken != intid);
        self.at(vcpu, intid).active = false;
    }

    fn drive(&mut self, vcpu: usize, intid: u32, high: bool) {
        let interrupt = self.at(vcpu, intid);
        interrupt.latch |= interrupt.edge && high && !interrupt.line;
        interrupt.line = high;
    }
}

/// A virtual CPU interface (Arm IHI 0069 chapter 6), with its guest's stack of running priorities.
#[derive(Clone, Debug, Default)]
struct Interface {
    image: LrImage,
    running: Vec<(u32, u8)>,
    /// Active physical interrupts, one bit each.
    physical_active: u32,
}

impl Interface {
    fn set_state(&mut self, index: usize, state: u64) {
        let bits = self.image.lrs[index].bits() & !(3 << 62) | state << 62;
        self.image.lrs[index] = ListRegister::from_bits(bits);
    }

    fn acknowledge(&mut self) -> Option<u32> {
        let pending = |lr: &&(usize, ListRegister)| lr.1.state() == LrState::Pending;
        let lrs = self.image.lrs.iter().copied().enumerate().collect::<Vec<_>>();
        let best = lrs.iter().filter(pending).min_by_key(|lr| (lr.1.priority(), lr.1.vintid()))?;
        let running = self.running.last().map_or(IDLE, |r| r.1);
        if best.1.priority() >= running.min(0xf8) {
            return None;
        }
        self.set_state(best.0, 2);
        self.running.push((best.1.vintid(), best.1.priority()));
        Some(best.1.vintid())
    }

    /// Deactivation; `true` if a list register had it.
    fn deactivate(&mut self, intid: u32) -> bool {
        let has = |lr: &ListRegister| {
            lr.vintid() == intid && matches!(lr.state(), LrState::Active | LrState::PendingActive)
        };
        let Some(index) = self.image.lrs.iter().position(has) else { return false };
        let lr = self.image.lrs[index];
        self.set_state(index, if lr.state() == LrState::PendingActive { 1 } else { 0 });
        if lr.is_hardware() {
            let physical = 1 << (lr.bits() >> 32 & 0x1f);
            assert!(self.physical_active & physical != 0, "what is deactivated was active");
            self.physical_active &= !physical;
        }
        true
    }

    /// Whether the maintenance interrupt is raised.
    fn maintenance(&self) -> bool {
        let hcr = self.image.hcr;
        let lrs = &self.image.lrs;
        let count = |state| lrs.iter().filter(|lr| lr.state() == state).count();
        let valid = lrs.len() - count(LrState::Invalid);
        let ended = lrs.iter().any(|lr| {
            lr.state() == LrState::Invalid && !lr.is_hardware() && lr.bits() >> 41 & 1 != 0
        });
        ended
            || hcr.contains(HcrBits::UIE) && valid <= 1
            || hcr.contains(HcrBits::NPIE) && count(LrState::Pending) == 0
            || hcr.contains(HcrBits::LRENPIE) && self.image.eoi_count > 0
    }
}

/// Whom an SGI is for.
#[derive(Clone, Copy, Debug)]
enum Targets {
    /// A list of Aff0 values.
    List(u8),
    /// The same list under another Aff1, Aff2, Aff3 or range of Aff0, where no vCPU is.
    Nowhere { list: u8, shift: u32 },
    /// All but the sender (Interrupt_Routing_Mode 1), whatever the other fields are.
    AllOthers { ignored: u8 },
}

impl Targets {
    fn contains(self, from: usize, vcpu: usize) -> bool {
        match self {
            Self::List(list) => list >> vcpu & 1 != 0,
            Self::Nowhere { .. } => false,
            Self::AllOthers { .. } => vcpu != from,
        }
    }

    /// The fields of ICC_SGI1R_EL1.
    fn bits(self) -> u64 {
        match self {
            Self::List(list) => u64::from(list),
            Self::Nowhere { list, shift } => u64::from(list) | 1 << shift,
            Self::AllOthers { ignored } => 1 << 40 | u64::from(ignored) << 16 | u64::from(ignored),
        }
    }
}

fn targets() -> impl Strategy<Value = Targets> {
    prop_oneof![
        4 => (0u8..8).prop_map(Targets::List),
        // Lowest bits of Aff1, Aff2, range selector and Aff3.
        1 => (0u8..8, prop::sample::select(vec![16u32, 32, 44, 48]))
            .prop_map(|(list, shift)| Targets::Nowhere { list, shift }),
        2 => any::<u8>().prop_map(|ignored| Targets::AllOthers { ignored }),
    ]
}

/// What happens to the machine between entries.
#[derive(Clone, Debug)]
enum Event {
    Line { vcpu: usize, intid: u32, high: bool },
    Sgi { from: usize, targets: Targets, intid: u32 },
    Enable { vcpu: usize, intid: u32, on: bool },
    Pend { vcpu: usize, intid: u32, on: bool },
    Priority { vcpu: usize, intid: u32, priority: u8 },
    Trigger { intid: u32, edge: bool },
    Route { intid: u32, target: usize },
    Forward(bool),
    PhysicalTimer { vcpu: usize, which: usize },
}

/// What a guest does while it runs.
#[derive(Clone, Copy, Debug)]
enum Action {
    Acknowledge,
    /// ICC_EOIR of the interrupt that runs.
    End,
    /// ICC_DIR of one of those taken (EOI mode 1).
    Deactivate(prop::sample::Index),
}

#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    Run { vcpu: usize, actions: Vec<Action> },
}

fn event() -> impl Strategy<Value = Event> {
    let vcpu = 0..VCPUS;
    let intid = prop::sample::select(INTIDS.to_vec());
    let private_or_shared = (vcpu.clone(), intid, any::<bool>());
    prop_oneof![
        6 => (vcpu.clone(), prop::sample::select(INTIDS[3..].to_vec()), any::<bool>())
            .prop_map(|(vcpu, intid, high)| Event::Line { vcpu, intid, high }),
        4 => (vcpu.clone(), targets(), prop::sample::select(vec![0u32, 1, 15]))
            .prop_map(|(from, targets, intid)| Event::Sgi { from, targets, intid }),
        3 => private_or_shared.clone().prop_map(|(vcpu, intid, on)| Event::Enable { vcpu, intid, on }),
        2 => private_or_shared.clone().prop_map(|(vcpu, intid, on)| Event::Pend { vcpu, intid, on }),
        2 => (private_or_shared.clone(), 0u8..8).prop_map(|((vcpu, intid, _), p)| {
            Event::Priority { vcpu, intid, priority: p << 5 }
        }),
        1 => (prop::sample::select(vec![32u32, 33, 40, 63, 127]), any::<bool>())
            .prop_map(|(intid, edge)| Event::Trigger { intid, edge }),
        2 => (prop::sample::select(vec![32u32, 33, 40, 63, 127]), 0..VCPUS + 1)
            .prop_map(|(intid, target)| Event::Route { intid, target }),
        1 => prop::bool::weighted(0.8).prop_map(Event::Forward),
        2 => (vcpu, 0..TIED.len())
            .prop_map(|(vcpu, which)| Event::PhysicalTimer { vcpu, which }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let action = prop_oneof![
        4 => Just(Action::Acknowledge),
        3 => Just(Action::End),
        2 => any::<prop::sample::Index>().prop_map(Action::Deactivate),
    ];
    prop_oneof![
        2 => event().prop_map(Step::Event),
        1 => (0..VCPUS, proptest::collection::vec(action, 0..10))
            .prop_map(|(vcpu, actions)| Step::Run { vcpu, actions }),
    ]
}

struct Rig {
    vgic: Vgic,
    model: Model,
    interfaces: [Interface; VCPUS],
    eoi_mode: bool,
}

impl Rig {
    fn new(list_registers: usize, tied: bool, eoi_mode: bool) -> Self {
        let hardware_ppis = if tied { TIED } else { [None; 2] };
        let mut rig = Self {
            vgic: started(VgicConfig { vcpus: VCPUS, list_registers, hardware_ppis }),
            model: Model::new(tied),
            interfaces: Default::default(),
            eoi_mode,
        };
        for interface in &mut rig.interfaces {
            interface.image.vmcr = VMCR | if eoi_mode { EOI_MODE } else { 0 };
        }
        // Most tests are about interrupts that are on.
        for intid in INTIDS {
            for vcpu in 0..VCPUS {
                rig.apply(&Event::Enable { vcpu, intid, on: true });
                let priority = ((intid * 7) as u8 % 6) << 5;
                rig.apply(&Event::Priority { vcpu, intid, priority });
            }
        }
        (0..VCPUS).for_each(|vcpu| rig.run(vcpu, &[]));
        rig
    }

    fn write_bit(&mut self, vcpu: usize, intid: u32, base: u32) -> VcpuSet {
        let (frame, offset) = word(intid, vcpu, base);
        access(&mut self.vgic, frame, offset, Some(1 << (intid % 32))).1
    }

    /// Applies an event to both; whoever can be interrupted by it must be told.
    fn apply(&mut self, event: &Event) {
        let before: Vec<_> = (0..VCPUS).map(|vcpu| self.model.signalled(vcpu)).collect();
        let kick = match *event {
            // The tied interrupts have no line of their own.
            Event::Line { intid: 27 | 30, .. } | Event::Pend { intid: 27 | 30, .. }
                if self.model.tied =>
            {
                VcpuSet::EMPTY
            }
            Event::Line { vcpu, intid, high } => {
                self.model.drive(vcpu, intid, high);
                if intid < 32 {
                    self.vgic.set_ppi(cpu(vcpu), intid, high)
                } else {
                    self.vgic.set_spi(intid, high)
                }
            }
            Event::Sgi { from, targets, intid } => {
                for vcpu in (0..VCPUS).filter(|vcpu| targets.contains(from, *vcpu)) {
                    self.model.at(vcpu, intid).latch = true;
                }
                let value = u64::from(intid) << 24 | targets.bits();
                self.vgic.generate_sgi(cpu(from), SgiGroup::Group1, value)
            }
            Event::Enable { vcpu, intid, on } => {
                self.model.at(vcpu, intid).enabled = on;
                self.write_bit(vcpu, intid, if on { 0x100 } else { 0x180 })
            }
            Event::Pend { vcpu, intid, on } => {
                self.model.at(vcpu, intid).latch = on;
                self.write_bit(vcpu, intid, if on { 0x200 } else { 0x280 })
            }
            Event::Priority { vcpu, intid, priority } => {
                // What runs keeps the priority it was taken with, here and there; to change it
                // meanwhile is unpredictable.
                if self.model.at(vcpu, intid).active {
                    return;
                }
                self.model.at(vcpu, intid).priority = priority;
                let frame = word(intid, vcpu, 0).0;
                let base = 0x400 + intid / 4 * 4;
                let shift = 8 * (intid % 4);
                let old = access(&mut self.vgic, frame, base, None).0 as u32;
                let new = old & !(0xff << shift) | u32::from(priority) << shift;
                access(&mut self.vgic, frame, base, Some(new)).1
            }
            Event::Trigger { intid, edge } => {
                self.model.at(0, intid).edge = edge;
                let offset = 0xc00 + intid / 16 * 4;
                let shift = 2 * (intid % 16);
                let old = access(&mut self.vgic, Frame::Distributor, offset, None).0 as u32;
                let new = old & !(3 << shift) | u32::from(edge) << (shift + 1);
                access(&mut self.vgic, Frame::Distributor, offset, Some(new)).1
            }
            Event::Route { intid, target } => {
                self.model.at(0, intid).target = target;
                let offset = 0x6000 + 8 * intid;
                access(&mut self.vgic, Frame::Distributor, offset, Some(target as u32)).1
            }
            Event::Forward(on) => {
                self.model.forwarding = on;
                access(&mut self.vgic, Frame::Distributor, 0, Some(u32::from(on) << 1)).1
            }
            Event::PhysicalTimer { vcpu, which } => {
                let Some(timer) = TIED[which].filter(|_| self.model.tied) else { return };
                let physical = 1 << timer.physical;
                // It cannot fire while it is active.
                if self.interfaces[vcpu].physical_active & physical != 0 {
                    return;
                }
                self.interfaces[vcpu].physical_active |= physical;
                self.model.at(vcpu, timer.guest).latch = true;
                self.vgic.raise_hardware(cpu(vcpu), timer.guest)
            }
        };
        for (vcpu, before) in before.into_iter().enumerate() {
            let after = self.model.signalled(vcpu);
            let better = after.is_some() && (before.is_none() || after < before);
            assert!(!better || kick.contains(cpu(vcpu)), "vCPU {vcpu} was not told of {event:?}");
        }
    }

    /// A vCPU that counts as quiet would get empty list registers, and its exit would tell nothing, if
    /// the vGIC looked.
    fn check_quiet(&self) {
        for vcpu in (0..VCPUS).filter(|vcpu| self.vgic.is_quiet(cpu(*vcpu))) {
            let mut looks = self.vgic.clone();
            looks.quiet.remove(cpu(vcpu));
            let mut image = self.interfaces[vcpu].image.clone();
            looks.flush(cpu(vcpu), &mut image);
            assert_eq!(image, self.interfaces[vcpu].image, "vCPU {vcpu} is not quiet");
            assert_eq!((image.used, image.hcr), (0, HcrBits::empty()), "vCPU {vcpu} is not quiet");
            looks.quiet.remove(cpu(vcpu));
            assert!(looks.sync(cpu(vcpu), &image).is_empty(), "vCPU {vcpu} settles something");
            let all =
                |vgic: &Vgic| vgic.shared.each_ref().map(|s| (s.owned, s.moved, s.hardware_active));
            assert_eq!(all(&looks), all(&self.vgic), "vCPU {vcpu} settles something");
        }
    }

    fn enter(&mut self, vcpu: usize) {
        self.check_quiet();
        let interface = &mut self.interfaces[vcpu];
        interface.image.eoi_count = 0;
        self.vgic.flush(cpu(vcpu), &mut interface.image);
        interface.physical_active |= interface.image.activate;
        interface.physical_active &= !interface.image.deactivate;
    }

    fn leave(&mut self, vcpu: usize) {
        let before: Vec<_> = (0..VCPUS).map(|v| self.vgic.has_pending(cpu(v))).collect();
        let kick = self.vgic.sync(cpu(vcpu), &self.interfaces[vcpu].image);
        for (other, before) in before.into_iter().enumerate().filter(|(v, _)| *v != vcpu) {
            let woken = !before && self.vgic.has_pending(cpu(other));
            assert!(!woken || kick.contains(cpu(other)), "vCPU {other} got one by rerouting");
        }
    }

    fn run(&mut self, vcpu: usize, actions: &[Action]) {
        self.enter(vcpu);
        for action in actions {
            self.act(vcpu, *action);
            let mut exits = 0;
            while self.interfaces[vcpu].maintenance() {
                self.leave(vcpu);
                self.enter(vcpu);
                exits += 1;
                assert!(exits < 2, "an exit that does not help: {:?}", self.interfaces[vcpu].image);
            }
        }
        assert!(!self.interfaces[vcpu].maintenance());
        self.leave(vcpu);
    }

    fn act(&mut self, vcpu: usize, action: Action) {
        match action {
            Action::Acknowledge => {
                let expected = self.model.acknowledge(vcpu);
                assert_eq!(self.interfaces[vcpu].acknowledge(), expected, "acknowledged");
            }
            Action::End => {
                let Some((intid, _)) = self.model.running[vcpu].pop() else { return };
                assert_eq!(self.interfaces[vcpu].running.pop().map(|r| r.0), Some(intid));
                if !self.eoi_mode {
                    self.model.deactivate(vcpu, intid);
                    let interface = &mut self.interfaces[vcpu];
                    if !interface.deactivate(intid) {
                        interface.image.eoi_count += 1;
                    }
                }
            }
            Action::Deactivate(index) => {
                // Only what has been ended already, as drivers do.
                let running: Vec<u32> = self.model.running[vcpu].iter().map(|r| r.0).collect();
                let ended: Vec<u32> = self.model.taken[vcpu]
                    .iter()
                    .copied()
                    .filter(|intid| !running.contains(intid))
                    .collect();
                if !self.eoi_mode || ended.is_empty() {
                    return;
                }
                let intid = *index.get(&ended);
                self.model.deactivate(vcpu, intid);
                if self.interfaces[vcpu].image.hcr.contains(HcrBits::TDIR) {
                    self.leave(vcpu);
                    let _ = self.vgic.deactivate(cpu(vcpu), intid);
                    self.enter(vcpu);
                } else {
                    assert!(self.interfaces[vcpu].deactivate(intid), "in a list register");
                }
            }
        }
    }

    /// Registers and wake-up conditions agree.
    fn compare(&mut self) {
        self.check_quiet();
        for vcpu in 0..VCPUS {
            let wakes = self.model.signalled(vcpu).is_some_and(|(priority, _)| priority < 0xf8);
            assert_eq!(self.vgic.has_pending(cpu(vcpu)), wakes, "vCPU {vcpu} wakes");
            for intid in INTIDS {
                let expected = self.model.at(vcpu, intid).clone();
                let mut bit = |base| {
                    let (frame, offset) = word(intid, vcpu, base);
                    access(&mut self.vgic, frame, offset, None).0 >> (intid % 32) & 1 != 0
                };
                let found = (bit(0x100), bit(0x200), bit(0x300));
                let expected = (expected.enabled, expected.pending(), expected.active);
                assert_eq!(found, expected, "interrupt {intid} of vCPU {vcpu}");
            }
            if self.model.tied {
                let physical = self.interfaces[vcpu].physical_active;
                assert_eq!(self.vgic.hardware_active(cpu(vcpu)), physical, "tied interrupt");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn guests_cannot_tell_it_from_the_model(
        list_registers in prop::sample::select(vec![2usize, 3, 4, 16]),
        tied: bool,
        eoi_mode: bool,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut rig = Rig::new(list_registers, tied, eoi_mode);
        for step in &steps {
            match step {
                Step::Event(event) => rig.apply(event),
                Step::Run { vcpu, actions } => rig.run(*vcpu, actions),
            }
            rig.compare();
        }
    }
}

#[test]
fn configuration_is_clamped() {
    let [virtual_timer, _] = TIED;
    let hardware_ppis = [Some(HardwarePpi { guest: 3, physical: 27 }), virtual_timer];
    let odd = VgicConfig { vcpus: 99, list_registers: 0, hardware_ppis };
    let config = *Vgic::new(odd).config();
    let hardware_ppis = [None, virtual_timer];
    assert_eq!(config, VgicConfig { vcpus: 16, list_registers: 2, hardware_ppis });
    assert_eq!(*Vgic::new(CONFIG).config(), CONFIG);
}
