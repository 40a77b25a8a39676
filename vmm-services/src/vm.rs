//! All services of one VM.

use crate::channel::{Endpoint, REGISTERS_SIZE};
use crate::console::{InputQueue, LineBuffer};
use crate::exit::{
    Access, CALL_REGISTERS, Exit, MmioAccess, Registers, Resume, Ripas, StopReason, SysReg,
    WaitKind,
};
use crate::host_call;
use crate::ids::{VcpuId, VcpuSet};
use crate::layout;
use crate::manifest::{Conversions, Placement, VirtioDevice};
use crate::psci::PowerState;
use crate::smccc;
use crate::traits::{
    ConsoleSink, Countdown, Disks, Entropy, GuestMemory, Peers, SharedAlias, VirtualIrq,
};
use crate::uart::Pl011;
use crate::vgic::{SgiGroup, Vgic, VgicConfig};
use crate::virtio::{Model, Transport};
use crate::watchdog::{self, Watchdog};
use arrayvec::ArrayVec;
use mm::{Ipa, PAGE_SIZE};

/// Ends of channels of one VM.
pub type Endpoints = ArrayVec<Endpoint, { layout::MAX_VM_CHANNELS }>;

/// What services are to be given to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicesConfig<'a> {
    /// Interrupt controller.
    pub vgic: VgicConfig,
    /// What is particular to a realm, if it is one: its RMM serves PSCI.
    pub realm: Option<RealmConfig>,
    /// Where the PL011 is, if there is one.
    pub uart: Option<Placement>,
    /// Whether there is flash at [`layout::FLASH`]: erased, so that it reads as ones, and write
    /// protected. U-Boot for QEMU's `virt` looks for its environment there.
    pub flash: bool,
    /// Longest time in milliseconds that the VM may leave its watchdog alone, if it has one.
    pub watchdog_ms: Option<u32>,
    /// Virtio devices, by slot; those beyond [`layout::MAX_VIRTIO`] are left out.
    pub virtio: &'a [VirtioDevice],
    /// Its ends of channels to other VMs; those beyond [`layout::MAX_VM_CHANNELS`] are left out.
    pub channels: &'a [Endpoint],
}

/// What is particular to the services of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealmConfig {
    /// Width of its IPA space in bits: addresses that it names may carry the shared-alias bit
    /// `ipa_bits - 1`.
    pub ipa_bits: u32,
    /// Bytes of RAM from [`layout::RAM`] on. The RIPAS of nothing else may change: memory and tables
    /// for what lies elsewhere would be other VMs'.
    pub memory: u64,
    /// Which conversions of its memory the owner allows.
    pub conversions: Conversions,
}

impl RealmConfig {
    /// Whether the realm may change the RIPAS of `base..top`.
    fn allows(&self, base: Ipa, top: Ipa, to: Ripas) -> bool {
        let end = layout::RAM.get().saturating_add(self.memory);
        base >= layout::RAM && top.get() <= end && self.conversions.allow(to == Ripas::Ram)
    }
}

/// What services reach while they handle an exit.
pub struct Context<'a> {
    /// The VM's memory.
    pub memory: &'a dyn GuestMemory,
    /// The VM's console.
    pub console: &'a mut dyn ConsoleSink,
    /// The machine's random numbers.
    pub entropy: &'a dyn Entropy,
    /// The VM's disks.
    pub disks: &'a dyn Disks,
    /// Other VMs.
    pub peers: &'a mut dyn Peers,
    /// The time that its watchdog has left.
    pub countdown: &'a dyn Countdown,
}

impl Context<'_> {
    /// The same with other memory.
    fn with_memory<'a>(&'a mut self, memory: &'a dyn GuestMemory) -> Context<'a> {
        Context {
            memory,
            console: self.console,
            entropy: self.entropy,
            disks: self.disks,
            peers: self.peers,
            countdown: self.countdown,
        }
    }
}

/// Answer to an [`Exit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Response {
    /// What the vCPU that left its guest is to do.
    pub resume: Resume,
    /// Other vCPUs that got an interrupt: wake them if they block, make them exit if they run.
    pub kick: VcpuSet,
}

impl From<Resume> for Response {
    fn from(resume: Resume) -> Self {
        Self { resume, kick: VcpuSet::EMPTY }
    }
}

/// The UART, where it is.
#[derive(Clone, Debug)]
struct PlacedUart {
    place: Placement,
    device: Pl011,
    /// Accesses since the guest sent a byte.
    polls: u32,
}

/// Accesses to the UART after the last byte that was sent from which on the guest polls it for input.
/// Drivers look once or twice for each byte that they send.
const POLLS: u32 = 64;

/// Lines into the interrupt controller, collecting whom they concern.
struct IrqLines<'a> {
    vgic: &'a mut Vgic,
    kick: VcpuSet,
}

impl VirtualIrq for IrqLines<'_> {
    fn set_level(&mut self, intid: u32, high: bool) {
        self.kick.extend(self.vgic.set_spi(intid, high));
    }
}

/// The services of one VM, to be kept behind one lock.
#[derive(Clone, Debug)]
pub struct VmServices {
    vgic: Vgic,
    power: PowerState,
    uart: Option<PlacedUart>,
    flash: bool,
    watchdog: Option<Watchdog>,
    virtio: ArrayVec<Transport, { layout::MAX_VIRTIO }>,
    channels: Endpoints,
    console: LineBuffer,
    typed: InputQueue,
    realm: Option<RealmConfig>,
    reported_failure: Option<u64>,
    /// Virtio slot whose turn is next.
    next_slot: usize,
}

impl VmServices {
    /// Services after reset; only [`VcpuId::BOOT`] is on.
    #[must_use]
    pub fn new(config: &ServicesConfig<'_>) -> Self {
        let vgic = Vgic::new(config.vgic);
        Self {
            power: PowerState::new(vgic.config().vcpus),
            vgic,
            uart: config.uart.map(|place| PlacedUart { place, device: Pl011::new(), polls: 0 }),
            flash: config.flash,
            watchdog: config.watchdog_ms.map(Watchdog::new),
            virtio: Model::all(config.virtio).map(Transport::new).collect(),
            channels: config.channels.iter().copied().take(layout::MAX_VM_CHANNELS).collect(),
            console: LineBuffer::default(),
            typed: InputQueue::default(),
            realm: config.realm,
            reported_failure: None,
            next_slot: 0,
        }
    }

    /// The VM's interrupt controller.
    #[must_use]
    pub fn vgic(&self) -> &Vgic {
        &self.vgic
    }

    /// The VM's interrupt controller, for flush, sync and timers.
    pub fn vgic_mut(&mut self) -> &mut Vgic {
        &mut self.vgic
    }

    /// Whether PSCI has `vcpu` turned on.
    #[must_use]
    pub fn is_on(&self, vcpu: VcpuId) -> bool {
        self.power.is_on(vcpu)
    }

    /// Code of [`host_call::REPORT_FAILURE`], if the guest called it.
    #[must_use]
    pub fn reported_failure(&self) -> Option<u64> {
        self.reported_failure
    }

    /// Handles an exit of `vcpu`, whose list registers have been synced ([`Vgic::sync`]). `registers`
    /// count for calls only.
    pub fn handle(
        &mut self,
        vcpu: VcpuId,
        exit: &Exit,
        registers: &Registers,
        context: &mut Context<'_>,
    ) -> Response {
        if let Some(realm) = &self.realm {
            let memory = SharedAlias::new(context.memory, Some(realm.ipa_bits));
            self.dispatch(vcpu, exit, registers, &mut context.with_memory(&memory))
        } else {
            self.dispatch(vcpu, exit, registers, context)
        }
    }

    fn dispatch(
        &mut self,
        vcpu: VcpuId,
        exit: &Exit,
        registers: &Registers,
        context: &mut Context<'_>,
    ) -> Response {
        let mut response = match exit {
            Exit::Mmio(access) => self.mmio(access, context),
            Exit::Stage2Fault { .. } => Resume::InjectExternalAbort.into(),
            Exit::Smccc { function } => self.call(vcpu, *function, registers, context),
            Exit::HostCall { imm } => self.host_call(*imm, registers, context).into(),
            Exit::Psci(notice) => self.power_notice(vcpu, *notice),
            Exit::Wait { kind, deadline } => self.wait(vcpu, *kind, *deadline).into(),
            Exit::SysReg { reg, access } => self.system_register(vcpu, *reg, *access),
            // Memory of a realm is shared with the host once its private page is given up.
            Exit::RipasChange { base, top, to } => match &self.realm {
                Some(realm) if realm.allows(*base, *top, *to) => Resume::RipasAccept.into(),
                Some(_) => Resume::RipasReject.into(),
                None => protocol("RIPAS change of an ordinary guest"),
            },
            Exit::Interrupt => Resume::Continue.into(),
            Exit::Fatal(cause) => Resume::Stop(StopReason::Fatal(*cause)).into(),
        };
        response.kick.remove(vcpu);
        response
    }

    fn is_realm(&self) -> bool {
        self.realm.is_some()
    }

    /// Finds the device at the address. Nothing there means an external abort, as on a bus.
    fn mmio(&mut self, access: &MmioAccess, context: &mut Context<'_>) -> Response {
        let done = |value| match access.access {
            Access::Read => Resume::Read(value),
            Access::Write(_) => Resume::Done,
        };
        let Self { uart, vgic, console: line, typed, .. } = self;
        if let Some(PlacedUart { place, device, polls }) = uart {
            let offset = access.ipa.get().checked_sub(place.base);
            if let Some(offset) = offset.filter(|offset| *offset < layout::UART_SIZE) {
                let (value, sent) = device.access(offset as u32, access.width, access.access);
                *polls = polls.saturating_add(1);
                if let Some(byte) = sent {
                    *polls = 0;
                    line.put(byte, context.console);
                }
                if !typed.is_empty() {
                    feed(device, typed);
                }
                let mut irq = IrqLines { vgic, kick: VcpuSet::EMPTY };
                irq.set_level(place.intid, device.line());
                return Response { resume: done(value), kick: irq.kick };
            }
        }
        if let Some(located) = self.vgic.locate(access) {
            let (value, kick) = self.vgic.access(&located);
            return Response { resume: done(value), kick };
        }
        if let Some(response) = self.virtio_access(access) {
            return response;
        }
        for endpoint in &self.channels {
            let offset = access.ipa.get().checked_sub(endpoint.registers.base);
            let Some(offset) = offset.filter(|offset| *offset < REGISTERS_SIZE) else { continue };
            let peers = &mut *context.peers;
            let value = peers.channel_access(endpoint, offset, access.width, access.access);
            let line = peers.channel_line(endpoint);
            let kick = self.vgic.set_spi(endpoint.registers.intid, line);
            return Response { resume: done(value.into()), kick };
        }
        if self.flash && access.ipa.get() < layout::FLASH.get() + layout::FLASH_SIZE {
            return done(access.width.mask()).into();
        }
        Resume::InjectExternalAbort.into()
    }

    fn call(
        &mut self,
        vcpu: VcpuId,
        function: u32,
        registers: &Registers,
        context: &Context<'_>,
    ) -> Response {
        if self.is_realm() {
            return protocol("firmware call of a realm");
        }
        let mut args: [u64; CALL_REGISTERS] = core::array::from_fn(|index| registers[index]);
        args[0] = function.into();
        let [_, first, second, ..] = args;
        let resume = match &mut self.watchdog {
            Some(watchdog) if function == watchdog::CALL => {
                watchdog.call(first, second, context.countdown)
            }
            _ => smccc::call(&mut self.power, vcpu, &args, context),
        };
        if let Resume::CpuOn { target, .. } = resume {
            self.vgic.power_on(target);
        }
        resume.into()
    }

    fn power_notice(&mut self, vcpu: VcpuId, notice: crate::exit::PsciNotice) -> Response {
        if !self.is_realm() {
            return protocol("realm's PSCI request by an ordinary guest");
        }
        self.power.notice(vcpu, notice).into()
    }

    /// RMI_PSCI_COMPLETE has carried out a realm's CPU_ON of `target`; `true` if that REC is to be
    /// started.
    ///
    /// `false` if it is on as far as is known here. It may be that the RMM has turned it off and its
    /// exit is still to come: it will be answered by another entry then, which the RMM refuses if the
    /// REC is off after all. That refusal is to be handed in as [`crate::exit::PsciNotice::CpuOff`].
    #[must_use = "a REC that is not started never runs"]
    pub fn cpu_on_completed(&mut self, target: VcpuId) -> bool {
        let starts = self.power.cpu_on_completed(target);
        if starts {
            self.vgic.power_on(target);
        }
        starts
    }

    fn wait(&self, vcpu: VcpuId, kind: WaitKind, deadline: Option<u64>) -> Resume {
        match kind {
            WaitKind::Interrupt if self.vgic.has_pending(vcpu) => Resume::Done,
            WaitKind::Interrupt => Resume::Block { deadline },
            // An event that was sent to the core meanwhile is not seen from here: never sleep.
            WaitKind::Event => Resume::Yield,
        }
    }

    fn system_register(&mut self, vcpu: VcpuId, reg: SysReg, access: Access) -> Response {
        let kick = match (reg, access) {
            (SysReg::ICC_SGI1R_EL1, Access::Write(value)) => {
                self.vgic.generate_sgi(vcpu, SgiGroup::Group1, value)
            }
            (SysReg::ICC_SGI0R_EL1, Access::Write(value)) => {
                self.vgic.generate_sgi(vcpu, SgiGroup::Group0, value)
            }
            // There is no other security state to signal.
            (SysReg::ICC_ASGI1R_EL1, Access::Write(_)) => VcpuSet::EMPTY,
            (SysReg::ICC_DIR_EL1, Access::Write(value)) => {
                self.vgic.deactivate(vcpu, value as u32 & 0xff_ffff)
            }
            // System registers are always enabled, bypass is disabled, and nothing of it changes.
            (SysReg::ICC_SRE_EL1, Access::Write(_)) => VcpuSet::EMPTY,
            (SysReg::ICC_SRE_EL1, Access::Read) => return Resume::Read(0b111).into(),
            // An RMM cannot be told to inject an Undefined exception.
            (_, Access::Read) if self.is_realm() => return Resume::Read(0).into(),
            (_, Access::Write(_)) if self.is_realm() => VcpuSet::EMPTY,
            _ => return Resume::InjectUndefined.into(),
        };
        Response { resume: Resume::Done, kick }
    }

    fn host_call(&mut self, imm: u16, args: &Registers, context: &mut Context<'_>) -> Resume {
        let [first, registers @ ..] = args;
        Resume::HostCallDone(match imm {
            host_call::PUT_STRING => self.put_string(*first, registers, context.console),
            host_call::EXCHANGE_PAGE => Self::exchange_page(*first, context.memory),
            host_call::REPORT_FAILURE if *first != 0 => {
                self.reported_failure = Some(*first);
                host_call::SUCCESS
            }
            host_call::REPORT_FAILURE => host_call::INVALID,
            _ => host_call::UNKNOWN,
        })
    }

    fn put_string(&mut self, length: u64, text: &[u64], console: &mut dyn ConsoleSink) -> u64 {
        if length > host_call::PUT_STRING_MAX as u64 {
            return host_call::INVALID;
        }
        let bytes = text.iter().flat_map(|register| register.to_le_bytes());
        bytes.take(length as usize).for_each(|byte| self.console.put(byte, console));
        host_call::SUCCESS
    }

    /// Adds one to each 64-bit word of a shared page.
    fn exchange_page(address: u64, memory: &dyn GuestMemory) -> u64 {
        if !address.is_multiple_of(PAGE_SIZE) {
            return host_call::INVALID;
        }
        const CHUNK: usize = 256;
        for offset in (0..PAGE_SIZE).step_by(CHUNK) {
            let mut chunk = [0; CHUNK];
            let at = Ipa::new(address.wrapping_add(offset));
            if memory.read(at, &mut chunk).is_err() {
                return host_call::INVALID;
            }
            for word in chunk.as_chunks_mut().0 {
                *word = u64::from_le_bytes(*word).wrapping_add(1).to_le_bytes();
            }
            if memory.write(at, &chunk).is_err() {
                return host_call::INVALID;
            }
        }
        host_call::SUCCESS
    }

    /// Types bytes on the VM's console: its UART, or without one its virtio console. What the UART
    /// has no room for waits until the guest has read; returns how many bytes there was room for, and
    /// whom to wake or kick.
    pub fn console_input(&mut self, bytes: &[u8]) -> (usize, VcpuSet) {
        let Some(PlacedUart { place, device, .. }) = &mut self.uart else {
            return self.virtio_console_input(bytes);
        };
        let taken = self.typed.push(bytes);
        feed(device, &mut self.typed);
        let kick = self.vgic.set_spi(place.intid, device.line());
        (taken, kick)
    }

    /// Whether the guest looks again and again whether something was typed.
    #[must_use]
    pub fn polls_console(&self) -> bool {
        self.uart.as_ref().is_some_and(|uart| uart.polls >= POLLS)
    }

    /// Bytes of a line of output that has begun and not ended.
    #[must_use]
    pub fn unfinished_line(&self) -> usize {
        self.console.len()
    }

    /// Looks at what other VMs have done to this one's devices; returns whom to wake or kick. What network
    /// devices have to do then is left to [`VmServices::work`].
    pub fn peers_called(&mut self, peers: &mut dyn Peers) -> VcpuSet {
        let mut kick = VcpuSet::EMPTY;
        self.virtio.iter_mut().filter(|t| t.model().is_net()).for_each(Transport::request_work);
        for endpoint in &self.channels {
            let line = peers.channel_line(endpoint);
            kick.extend(self.vgic.set_spi(endpoint.registers.intid, line));
        }
        kick
    }

    /// Gives out a line that has begun, because the VM stopped or fell silent.
    pub fn flush_console(&mut self, console: &mut dyn ConsoleSink) {
        self.console.flush(console);
        self.flush_virtio_consoles(console);
    }
}

/// Moves typed bytes to the UART while it has room.
fn feed(device: &mut Pl011, typed: &mut InputQueue) {
    while device.can_receive() {
        match typed.pop() {
            Some(byte) => device.receive(byte),
            None => break,
        }
    }
}

fn protocol(what: &'static str) -> Response {
    Resume::Stop(StopReason::Protocol(what)).into()
}

mod virtio;

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
