use super::{Context, RealmConfig, Response, ServicesConfig, VmServices};
use crate::channel::{self, End, Endpoint, Link, Window};
use crate::exit::{
    Access, CALL_REGISTERS, Exit, FatalCause, HOST_CALL_REGISTERS, MmioAccess, PsciNotice,
    Registers, Resume, Ripas, StopReason, SysReg, WaitKind, Width,
};
use crate::host_call;
use crate::ids::{VcpuId, VcpuSet};
use crate::layout;
use crate::manifest::{Conversions, Placement, VirtioDevice};
use crate::testing::{Counting, Lines, Ram, RamDisks, Timer};
use crate::traits::{NicId, Peers};
use crate::vgic::{LrImage, VgicConfig};
use mm::Ipa;
use proptest::prelude::*;

const BOOT: VcpuId = VcpuId::BOOT;
const CHANNEL: Endpoint = Endpoint {
    channel: 3,
    end: End::Second,
    registers: Placement { base: 0x0c00_0000, intid: 56 },
    window: Window { base: 0x2000_0000, size: 0x1000 },
};

/// The other end of a channel.
#[derive(Default)]
struct Neighbour(Link);

impl Peers for Neighbour {
    fn send(&mut self, _: NicId, _: &[u8]) {}

    fn has_frame(&mut self, _: NicId) -> bool {
        false
    }

    fn receive(&mut self, _: NicId, _: &mut [u8]) -> Option<usize> {
        None
    }

    fn discard(&mut self, _: NicId) {}

    fn channel_access(&mut self, at: &Endpoint, offset: u64, width: Width, access: Access) -> u32 {
        assert_eq!(*at, CHANNEL);
        self.0.access(at.end, at.window, offset, width, access).value
    }

    fn channel_line(&mut self, at: &Endpoint) -> bool {
        self.0.line(at.end)
    }
}

struct Rig {
    services: VmServices,
    memory: Ram,
    lines: Lines,
    peers: Neighbour,
    timer: Timer,
}

impl Rig {
    fn new(realm: Option<RealmConfig>) -> Self {
        Self {
            services: VmServices::new(&ServicesConfig {
                vgic: VgicConfig { vcpus: 2, list_registers: 4, hardware_ppis: [None; 2] },
                realm,
                uart: Some(Placement { base: 0x0900_0000, intid: 33 }),
                flash: realm.is_some(),
                watchdog_ms: realm.is_none().then_some(60_000),
                virtio: &[VirtioDevice::Console],
                channels: &[CHANNEL],
            }),
            memory: Ram::new(0x2000),
            lines: Lines::default(),
            peers: Neighbour::default(),
            timer: Timer::default(),
        }
    }

    fn vm() -> Self {
        Self::new(None)
    }

    fn realm() -> Self {
        Self::realm_with(Conversions::Any)
    }

    fn realm_with(conversions: Conversions) -> Self {
        Self::new(Some(RealmConfig { ipa_bits: 40, memory: 0x4000, conversions }))
    }

    fn handle(&mut self, vcpu: VcpuId, exit: &Exit) -> Response {
        self.call(vcpu, exit, &[0; HOST_CALL_REGISTERS])
    }

    /// Handles an exit by a call with these registers.
    fn call(&mut self, vcpu: VcpuId, exit: &Exit, registers: &Registers) -> Response {
        let mut context = Context {
            memory: &self.memory,
            console: &mut self.lines,
            entropy: &Counting::default(),
            disks: &RamDisks::default(),
            peers: &mut self.peers,
            countdown: &self.timer,
        };
        self.services.handle(vcpu, exit, registers, &mut context)
    }

    fn resume(&mut self, exit: &Exit) -> Resume {
        self.handle(BOOT, exit).resume
    }

    fn mmio(&mut self, ipa: u64, access: Access) -> Resume {
        self.resume(&Exit::Mmio(MmioAccess { ipa: Ipa::new(ipa), width: Width::Word, access }))
    }

    fn host_call(&mut self, imm: u16, args: &[u64]) -> u64 {
        let mut all = [0; HOST_CALL_REGISTERS];
        all[..args.len()].copy_from_slice(args);
        match self.call(BOOT, &Exit::HostCall { imm }, &all).resume {
            Resume::HostCallDone(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Lets everything through to `vcpu`: group, CPU interface, and interrupt `intid`.
    fn open(&mut self, vcpu: usize, intid: u32) {
        self.mmio(0x0800_0000, Access::Write(2));
        let registers = match intid / 32 {
            0 => 0x080b_0100 + 0x2_0000 * vcpu as u64,
            n => 0x0800_0100 + 4 * u64::from(n),
        };
        self.mmio(registers, Access::Write(1 << (intid % 32)));
        let image = LrImage { vmcr: 0xf8 << 24 | 2, ..LrImage::EMPTY };
        let _ = self.services.vgic_mut().sync(VcpuId::new(vcpu).unwrap(), &image);
    }
}

#[test]
fn printing_through_the_uart() {
    let mut rig = Rig::vm();
    for byte in b"hello\nwor" {
        assert_eq!(rig.mmio(0x0900_0000, Access::Write(u64::from(*byte))), Resume::Done);
    }
    rig.services.flush_console(&mut rig.lines);
    assert_eq!(rig.lines.0, [(b"hello".to_vec(), true), (b"wor".to_vec(), false)]);
}

#[test]
fn typing_interrupts_the_guest() {
    let mut rig = Rig::vm();
    rig.open(0, 33);
    rig.mmio(0x0900_0038, Access::Write(1 << 4));
    let (taken, kick) = rig.services.console_input(b"ab");
    assert_eq!((taken, kick), (2, VcpuSet::only(BOOT)));
    for byte in b"ab" {
        // Without FIFO there is room for one: the other follows when it is read.
        assert!(rig.services.vgic().has_pending(BOOT));
        assert_eq!(rig.mmio(0x0900_0000, Access::Read), Resume::Read(u64::from(*byte)));
    }
    assert!(!rig.services.vgic().has_pending(BOOT), "all read, so the line is low again");
    let (taken, _) = rig.services.console_input(&[b'x'; 1000]);
    assert!((1..1000).contains(&taken), "a guest that does not read loses what is typed");
}

#[test]
fn the_watchdog_is_a_call() {
    let mut rig = Rig::vm();
    let mut registers = [0; HOST_CALL_REGISTERS];
    registers[1] = 3;
    let pet = Exit::Smccc { function: crate::watchdog::CALL };
    assert_eq!(rig.call(BOOT, &pet, &registers).resume, Resume::Results([0; 4]));
    assert_eq!(rig.timer.0.get(), 60_000);
}

#[test]
fn a_guest_that_polls_for_input_is_told_from_one_that_prints() {
    let mut rig = Rig::vm();
    for _ in 0..1000 {
        rig.mmio(0x0900_0018, Access::Read);
        rig.mmio(0x0900_0000, Access::Write(u64::from(b'x')));
    }
    assert!(!rig.services.polls_console());
    (0..100).for_each(|_| assert_ne!(rig.mmio(0x0900_0018, Access::Read), Resume::Done));
    assert!(rig.services.polls_console());
}

#[test]
fn what_is_not_there_is_an_external_abort() {
    let mut rig = Rig::vm();
    for ipa in [0, 0x0801_0000, 0x080e_0000, 0x0900_1000, 0x0a00_0200, u64::MAX] {
        assert_eq!(rig.mmio(ipa, Access::Read), Resume::InjectExternalAbort, "{ipa:#x}");
        assert_eq!(rig.mmio(ipa, Access::Write(1)), Resume::InjectExternalAbort, "{ipa:#x}");
    }
    let fault = Exit::Stage2Fault { ipa: Ipa::new(0), fetch: true, write: false };
    assert_eq!(rig.resume(&fault), Resume::InjectExternalAbort);
}

#[test]
fn flash_is_erased_and_write_protected() {
    let mut rig = Rig::realm();
    for ipa in [0, 0x07ff_fffc] {
        assert_eq!(rig.mmio(ipa, Access::Write(0)), Resume::Done);
        assert_eq!(rig.mmio(ipa, Access::Read), Resume::Read(0xffff_ffff));
    }
    assert_eq!(rig.mmio(0x0801_0000, Access::Read), Resume::InjectExternalAbort);
}

#[test]
fn an_sgi_kicks_the_other_vcpu() {
    let mut rig = Rig::vm();
    let other = VcpuId::new(1).unwrap();
    rig.open(1, 3);
    let sgi = |value| Exit::SysReg { reg: SysReg::ICC_SGI1R_EL1, access: Access::Write(value) };
    let response = rig.handle(BOOT, &sgi(3 << 24 | 0b11));
    assert_eq!(response, Response { resume: Resume::Done, kick: VcpuSet::only(other) });
    assert!(rig.services.vgic().has_pending(other));
    let response = rig.handle(other, &sgi(3 << 24 | 0b10));
    assert!(response.kick.is_empty(), "one does not kick oneself");
}

#[test]
fn system_registers() {
    let mut rig = Rig::vm();
    let exit = |reg, access| Exit::SysReg { reg, access };
    let sre = exit(SysReg::ICC_SRE_EL1, Access::Read);
    assert_eq!(rig.resume(&sre), Resume::Read(7));
    let unknown = SysReg::new(3, 7, 15, 15, 7);
    for access in [Access::Read, Access::Write(0)] {
        assert_eq!(rig.resume(&exit(unknown, access)), Resume::InjectUndefined);
    }
    let write_only = exit(SysReg::ICC_SGI1R_EL1, Access::Read);
    assert_eq!(rig.resume(&write_only), Resume::InjectUndefined);
    // An RMM cannot inject that.
    let mut realm = Rig::realm();
    assert_eq!(realm.resume(&exit(unknown, Access::Read)), Resume::Read(0));
    assert_eq!(realm.resume(&exit(unknown, Access::Write(1))), Resume::Done);
}

#[test]
fn syndromes_name_registers() {
    // MSR ICC_SGI1R_EL1, x3 as a guest's syndrome has it: direction and Rt are left out.
    let iss = 3 << 20 | 5 << 17 | 12 << 10 | 3 << 5 | 11 << 1;
    assert_eq!(SysReg::from_iss(iss), SysReg::ICC_SGI1R_EL1);
    assert_eq!(SysReg::from_iss(iss | 1), SysReg::ICC_SGI1R_EL1);
    assert_eq!(std::format!("{:?}", SysReg::ICC_SGI1R_EL1), "S3_0_C12_C11_5");
}

#[test]
fn waiting() {
    let mut rig = Rig::vm();
    rig.open(0, 33);
    let wait = |kind| Exit::Wait { kind, deadline: Some(77) };
    assert_eq!(rig.resume(&wait(WaitKind::Interrupt)), Resume::Block { deadline: Some(77) });
    assert_eq!(rig.resume(&wait(WaitKind::Event)), Resume::Yield);
    let _ = rig.services.vgic_mut().set_spi(33, true);
    assert_eq!(rig.resume(&wait(WaitKind::Interrupt)), Resume::Done);
}

#[test]
fn strings_by_host_call() {
    let mut rig = Rig::realm();
    let text = u64::from_le_bytes(*b"12345678");
    let put = host_call::PUT_STRING;
    assert_eq!(rig.host_call(put, &[9, text, u64::from_le_bytes(*b"\nrest...")]), 0);
    assert_eq!(rig.lines.0, [(b"12345678".to_vec(), true)]);
    assert_eq!(rig.host_call(put, &[0]), host_call::SUCCESS);
    for length in [241, 1 << 32, u64::MAX] {
        assert_eq!(rig.host_call(put, &[length]), host_call::INVALID);
    }
    let mut longest = [text; HOST_CALL_REGISTERS];
    longest[0] = 240;
    assert_eq!(rig.host_call(put, &longest), host_call::SUCCESS);
    rig.services.flush_console(&mut rig.lines);
    assert_eq!(rig.lines.0[1].0.len(), 240);
    assert_eq!(rig.host_call(99, &[0]), host_call::UNKNOWN);
}

#[test]
fn exchanging_a_page() {
    let mut rig = Rig::realm();
    rig.memory.0.borrow_mut()[0x1000..0x1008].copy_from_slice(&u64::MAX.to_le_bytes());
    rig.memory.0.borrow_mut()[0x1ff8..].copy_from_slice(&41_u64.to_le_bytes());
    let exchange = host_call::EXCHANGE_PAGE;
    assert_eq!(rig.host_call(exchange, &[0x4000_1000 | 1 << 39]), host_call::SUCCESS);
    assert_eq!(rig.host_call(exchange, &[0x4000_1000]), host_call::SUCCESS);
    let words: std::vec::Vec<u64> = rig.memory.0.borrow()[0x1000..]
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!((words[0], words[1], words[511]), (1, 2, 43));
    assert!(rig.memory.0.borrow()[..0x1000].iter().all(|&b| b == 0));
    for bad in [0x4000_1008, 0x4000_2000, 0x3fff_f000, u64::MAX, u64::MAX - 0xfff] {
        assert_eq!(rig.host_call(exchange, &[bad]), host_call::INVALID, "{bad:#x}");
    }
}

#[test]
fn failures_are_remembered() {
    let mut rig = Rig::realm();
    assert_eq!(rig.host_call(host_call::REPORT_FAILURE, &[0]), host_call::INVALID);
    assert_eq!(rig.services.reported_failure(), None);
    assert_eq!(rig.host_call(host_call::REPORT_FAILURE, &[12]), host_call::SUCCESS);
    assert_eq!(rig.services.reported_failure(), Some(12));
}

#[test]
fn conversions_that_the_owner_does_not_allow_are_rejected() {
    let change =
        |to| Exit::RipasChange { base: layout::RAM, top: Ipa::new(layout::RAM.get() + 0x4000), to };
    for (allowed, to_private, to_shared) in [
        (Conversions::Any, Resume::RipasAccept, Resume::RipasAccept),
        (Conversions::ToPrivate, Resume::RipasAccept, Resume::RipasReject),
        (Conversions::None, Resume::RipasReject, Resume::RipasReject),
    ] {
        let mut realm = Rig::realm_with(allowed);
        assert_eq!(realm.resume(&change(Ripas::Ram)), to_private, "{allowed:?}");
        assert_eq!(realm.resume(&change(Ripas::Empty)), to_shared, "{allowed:?}");
    }
}

#[test]
fn a_realm_gets_no_memory_beside_its_ram() {
    let ram = layout::RAM.get();
    let mut realm = Rig::realm();
    for (base, top) in [
        (ram - 0x1000, ram + 0x1000),
        (ram + 0x3000, ram + 0x5000),
        (ram + 0x4000, ram + 0x5000),
        (0, !0xfff),
        (1 << 39, (1 << 39) + 0x1000),
    ] {
        for to in [Ripas::Ram, Ripas::Empty] {
            let change = Exit::RipasChange { base: Ipa::new(base), top: Ipa::new(top), to };
            assert_eq!(realm.resume(&change), Resume::RipasReject, "{base:#x}..{top:#x}");
        }
    }
}

#[test]
fn realms_and_ordinary_guests_keep_apart() {
    let protocol = |resume| matches!(resume, Resume::Stop(StopReason::Protocol(_)));
    let change = Exit::RipasChange {
        base: layout::RAM,
        top: Ipa::new(layout::RAM.get() + 4096),
        to: Ripas::Ram,
    };
    let notice = Exit::Psci(PsciNotice::CpuOn { target: 1 });
    let call = Exit::Smccc { function: 0x8400_0000 };
    let (mut vm, mut realm) = (Rig::vm(), Rig::realm());
    assert!(protocol(vm.resume(&change)) && protocol(vm.resume(&notice)));
    assert!(protocol(realm.resume(&call)));
    assert_eq!(realm.resume(&change), Resume::RipasAccept);
    assert!(matches!(realm.resume(&notice), Resume::PsciComplete { cpu_on: true, .. }));
    let sibling = VcpuId::new(1).unwrap();
    assert!(realm.services.cpu_on_completed(sibling) && realm.services.is_on(sibling));
    assert_eq!(vm.resume(&call), Resume::Results([0x1_0001, 0, 0, 0]));
    let cause = FatalCause::GranuleProtection { ipa: 5 };
    assert_eq!(vm.resume(&Exit::Fatal(cause)), Resume::Stop(StopReason::Fatal(cause)));
    assert_eq!(vm.resume(&Exit::Interrupt), Resume::Continue);
}

fn exit() -> impl Strategy<Value = Exit> {
    let access = any::<Option<u64>>().prop_map(|v| v.map_or(Access::Read, Access::Write));
    prop_oneof![
        4 => (0x0800_0000u64..0x0a00_1000, 0u64..4, access.clone()).prop_map(|(ipa, sas, access)| {
            Exit::Mmio(MmioAccess { ipa: Ipa::new(ipa), width: Width::from_sas(sas), access })
        }),
        1 => (any::<u64>(), access.clone()).prop_map(|(ipa, access)| {
            Exit::Mmio(MmioAccess { ipa: Ipa::new(ipa), width: Width::Double, access })
        }),
        1 => any::<u32>().prop_map(|function| Exit::Smccc { function }),
        1 => (0u16..5).prop_map(|imm| Exit::HostCall { imm }),
        1 => (any::<u32>(), access.clone())
            .prop_map(|(iss, access)| Exit::SysReg { reg: SysReg::from_iss(iss), access }),
        1 => (prop::sample::select(std::vec![
            SysReg::ICC_SGI1R_EL1, SysReg::ICC_SGI0R_EL1, SysReg::ICC_ASGI1R_EL1, SysReg::ICC_DIR_EL1,
        ]), any::<u64>())
            .prop_map(|(reg, value)| Exit::SysReg { reg, access: Access::Write(value) }),
        1 => any::<u64>().prop_map(|target| Exit::Psci(PsciNotice::CpuOn { target })),
        1 => any::<Option<u64>>().prop_map(|deadline| {
            Exit::Wait { kind: WaitKind::Interrupt, deadline }
        }),
    ]
}

proptest! {
    #[test]
    fn random_exits_never_panic(
        realm: bool,
        exits in proptest::collection::vec(
            (0usize..2, exit(), any::<[u64; CALL_REGISTERS]>()), 1..150),
    ) {
        let mut rig = if realm { Rig::realm() } else { Rig::vm() };
        let mut images = [LrImage::EMPTY, LrImage::EMPTY];
        for (index, exit, args) in exits {
            let registers = core::array::from_fn(|register| args[register % args.len()]);
            let vcpu = VcpuId::new(index).unwrap();
            rig.services.vgic_mut().flush(vcpu, &mut images[index]);
            let _ = rig.services.vgic_mut().sync(vcpu, &images[index]);
            let response = rig.call(vcpu, &exit, &registers);
            prop_assert!(!response.kick.contains(vcpu));
            prop_assert!(response.kick.iter().all(|v| v.index() < 2));
        }
    }
}

#[test]
fn a_channel_interrupts_the_guest_until_it_answers() {
    let mut rig = Rig::vm();
    rig.open(0, 56);
    let register = |offset| CHANNEL.registers.base + offset;
    assert_eq!(rig.mmio(register(channel::reg::MAGIC), Access::Read), Resume::Read(0x4843_5a53));
    let _ = rig.peers.0.join(End::First);
    let _ = rig.peers.0.join(End::Second);
    rig.mmio(register(channel::reg::ENABLE), Access::Write(1));
    let ring = Access::Write(1);
    let offset = channel::reg::DOORBELL;
    let _ = rig.peers.0.access(End::First, CHANNEL.window, offset, Width::Word, ring);
    assert!(!rig.services.vgic().has_pending(BOOT), "nobody has told the services yet");
    assert_eq!(rig.services.peers_called(&mut rig.peers), VcpuSet::only(BOOT));
    assert!(rig.services.vgic().has_pending(BOOT));
    rig.mmio(register(channel::reg::PENDING), Access::Write(1));
    assert!(!rig.services.vgic().has_pending(BOOT));
    assert_eq!(rig.mmio(register(0x1000), Access::Read), Resume::InjectExternalAbort);
}
