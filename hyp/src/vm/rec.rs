//! A vCPU of a realm: its registers are the RMM's, and we enter it by REC_ENTER.

use super::realm;
use super::{Reason, Space, Vm, lifecycle};
use crate::arch::smc::Smc;
use crate::arch::vgic_hw::{self, VirtualInterface};
use cca_host::{
    Access as RecAccess, EnterError, Entry, ExitCause, FaultIn, GicImage, GicModel, Pending,
    PsciRequest, PsciStatus, Rec, RecExit, Resume as RecResume, Ripas as RecRipas, RipasProgress,
    SyncExit, TimerState, Timers,
};
use core::fmt;
use mm::{Ipa, PAGE_SIZE};
use vmm_services::exit::{
    Access, Exit, FatalCause, HOST_CALL_REGISTERS, MmioAccess, PsciNotice, PsciVerdict, Registers,
    Resume, Ripas, SysReg, WaitKind, Width,
};
use vmm_services::vgic::{HcrBits, ListRegister, LrImage, Vgic};
use vmm_services::{VcpuId, layout};

/// One REC and what its next entry is to tell the RMM.
pub struct RecVcpu {
    rec: Rec<'static, Smc>,
    next: Next,
    /// List registers as of the last flush or sync.
    pub image: LrImage,
    timers: Timers,
    /// EOIcount after the last run, where the RMM runs the virtual CPU interface (RMI 1.0). It
    /// carries the field over from run to run, and the host cannot reset it.
    eoi_count: u8,
    /// Virtual CPU interface, where host and realm share the registers (RMI 2.0).
    interface: Option<VirtualInterface>,
    /// Registers of the host call that is being answered.
    call: Registers,
    ripas_change: RipasStage,
    /// External aborts since it last got on.
    aborts: u32,
    /// Whether the last exit was its CPU_OFF: the RMM need not let it be entered again.
    was_off: bool,
}

/// External aborts in a row that a realm is entered again after.
const MAX_ABORTS: u32 = 64;

/// How far a RIPAS change is, which has to be finished before the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RipasStage {
    /// There is none, or it has not been begun.
    None,
    /// What is shared from this address on is still to be taken back.
    Unsharing { from: Ipa },
    /// The RMM has a part of it.
    Underway,
}

/// The answer that the next entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Plain,
    MmioRead(u64),
    MmioWritten,
    SysRegRead(u64),
    InjectSea,
    HostCall,
    RipasAccept,
    RipasReject,
}

/// What REC_ENTER came back with.
pub type RawExit = Result<RecExit, EnterError>;

impl RecVcpu {
    /// A REC that has not run, with the virtual GIC state where `gic` says.
    #[must_use]
    pub fn new(rec: Rec<'static, Smc>, gic: GicModel) -> Self {
        Self {
            rec,
            was_off: false,
            aborts: 0,
            next: Next::Plain,
            image: LrImage::EMPTY,
            timers: Timers::default(),
            eoi_count: 0,
            interface: matches!(gic, GicModel::Hardware).then(VirtualInterface::default),
            call: [0; HOST_CALL_REGISTERS],
            ripas_change: RipasStage::None,
        }
    }

    /// Gives the REC back, to be destroyed.
    pub fn into_rec(self) -> Rec<'static, Smc> {
        self.rec
    }

    /// Takes what the RMM has left of the REC out of this core: where the list registers are in the run page,
    /// those of the realm may still be in the core's. Those in hardware go with each exit.
    pub fn unload(&self) {
        if self.interface.is_none() {
            vgic_hw::clear();
        }
    }

    /// Enters the REC until its next exit.
    pub fn enter(&mut self) -> RawExit {
        let mut hcr = self.image.hcr;
        if self.interface.is_none() && self.eoi_count != 0 {
            // It would end each run at once. Later exits tell the count as well.
            hcr.remove(HcrBits::LRENPIE);
        }
        let mut gic = GicImage { hcr: hcr.bits(), ..GicImage::default() };
        for (to, from) in gic.lrs.iter_mut().zip(&self.image.lrs).take(self.image.used) {
            *to = from.bits();
        }
        let resume = match core::mem::replace(&mut self.next, Next::Plain) {
            Next::Plain => RecResume::Plain,
            Next::MmioRead(value) => RecResume::MmioRead(value),
            Next::MmioWritten => RecResume::MmioWritten,
            Next::SysRegRead(value) => RecResume::SysRegRead(value),
            Next::InjectSea => RecResume::InjectSea,
            Next::HostCall => RecResume::HostCall(&self.call),
            Next::RipasAccept => RecResume::RipasAccept,
            Next::RipasReject => RecResume::RipasReject,
        };
        if let Some(interface) = &self.interface {
            interface.restore();
            vgic_hw::load(&self.image, 0);
        }
        let exit = self.rec.enter(Entry::new(resume).trap_wfi(true), &mut gic);
        if let Some(interface) = &mut self.interface {
            vgic_hw::store(&mut self.image);
            interface.save();
        } else if exit.is_ok() {
            for (to, from) in self.image.lrs.iter_mut().zip(&gic.lrs).take(self.image.used) {
                *to = ListRegister::from_bits(*from);
            }
            let eoi_count = LrImage::eoi_count_of(gic.hcr);
            self.image.eoi_count = eoi_count.wrapping_sub(self.eoi_count) & LrImage::EOI_COUNT_MAX;
            self.eoi_count = eoi_count;
            self.image.vmcr = gic.vmcr;
        }
        let exit = exit?;
        self.timers = exit.timers;
        Ok(exit)
    }

    /// Turns an exit into a message for the services; memory faults are mended here, and give
    /// `None`.
    pub fn exit(&mut self, raw: RawExit, vm: &'static Vm) -> Option<Exit> {
        let exit = match raw {
            Ok(exit) => exit,
            // The realm turned itself off on another REC, whose exit ends the VM.
            Err(EnterError::RealmOff) => return Some(Exit::Interrupt),
            // It was entered in case that a CPU_ON had come just behind its CPU_OFF, and none had.
            Err(EnterError::NotRunnable) if self.was_off => {
                return Some(Exit::Psci(PsciNotice::CpuOff));
            }
            Err(error) => return Some(self.fail(vm, &error)),
        };
        self.was_off = matches!(exit.cause, ExitCause::Psci(PsciRequest::CpuOff));
        // Between two attempts at the same access there may be interrupts.
        let got_on = !matches!(
            exit.cause,
            ExitCause::Irq | ExitCause::Fiq | ExitCause::Sync(SyncExit::ExternalAbort { .. })
        );
        if got_on {
            self.aborts = 0;
        }
        match exit.cause {
            ExitCause::Irq | ExitCause::Fiq => Some(Exit::Interrupt),
            ExitCause::SError { esr } => {
                // The RMM has told the realm as far as it concerns it.
                log::warn!("vm {}: SError while a REC ran (ESR_EL2 {esr:#x})", vm.name());
                Some(Exit::Interrupt)
            }
            ExitCause::Psci(request) => self.psci(request),
            ExitCause::RipasChange(change) => {
                let to = match change.ripas {
                    RecRipas::Empty => Ripas::Empty,
                    RecRipas::Ram => Ripas::Ram,
                    // No other value can be asked for; a refusal is always allowed.
                    _ => {
                        self.next = Next::RipasReject;
                        return None;
                    }
                };
                Some(Exit::RipasChange { base: change.base, top: change.top, to })
            }
            ExitCause::HostCall(call) => {
                self.call = call.gprs;
                Some(Exit::HostCall { imm: call.imm })
            }
            ExitCause::Sync(sync) => self.sync(sync, vm),
            ExitCause::Unknown { reason } => {
                Some(self.fail(vm, &format_args!("REC exit with unknown reason {reason}")))
            }
        }
    }

    /// Registers of the host call that the last exit was.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.call
    }

    /// Stops a realm that cannot go on; its RECs leave their cores by the next look at its phase.
    fn fail(&self, vm: &'static Vm, what: &dyn fmt::Display) -> Exit {
        lifecycle::fail(vm, Reason::new(format_args!("{what}")));
        Exit::Interrupt
    }

    fn psci(&self, request: PsciRequest) -> Option<Exit> {
        Some(Exit::Psci(match request {
            PsciRequest::CpuSuspend => PsciNotice::CpuSuspend,
            PsciRequest::CpuOff => PsciNotice::CpuOff,
            PsciRequest::CpuOn { mpidr } => PsciNotice::CpuOn { target: mpidr },
            PsciRequest::AffinityInfo { mpidr } => PsciNotice::AffinityInfo { target: mpidr },
            PsciRequest::SystemOff => PsciNotice::SystemOff,
            PsciRequest::SystemReset => PsciNotice::SystemReset,
            // Answered by the RMM already, and nothing that a host would know of.
            PsciRequest::Other { .. } => return None,
        }))
    }

    fn sync(&mut self, sync: SyncExit, vm: &'static Vm) -> Option<Exit> {
        let wait = |kind, deadline| Some(Exit::Wait { kind, deadline });
        match sync {
            SyncExit::ProtectedFault { ipa, .. } => self.fault_in(ipa, vm),
            // The first touch of a page that the realm has just made shared looks like a device access.
            SyncExit::Mmio(mmio) if is_ram(vm, mmio.ipa) => {
                self.share(mmio.ipa, RecAccess::Data, vm)
            }
            SyncExit::Mmio(mmio) => {
                let width = match mmio.width {
                    1 => Width::Byte,
                    2 => Width::Half,
                    4 => Width::Word,
                    _ => Width::Double,
                };
                let access = mmio.write.map_or(Access::Read, Access::Write);
                self.next = Next::MmioRead(0);
                let ipa = realm::without_shared_bit(vm, mmio.ipa);
                Some(Exit::Mmio(MmioAccess { ipa, width, access }))
            }
            SyncExit::UnprotectedFault { ipa, access } => self.share(ipa, access, vm),
            SyncExit::ExternalAbort { esr, recoverable: true, ipa } if self.aborts < MAX_ABORTS => {
                self.aborts += 1;
                let (name, aborts) = (vm.name(), self.aborts);
                log::warn!(
                    "vm {name}: external abort at {ipa} (ESR_EL2 {esr:#x}, {aborts} in a row)"
                );
                None
            }
            SyncExit::ExternalAbort { esr, ipa, .. } => {
                Some(Exit::Fatal(FatalCause::ExternalAbort { esr, ipa: ipa.get() }))
            }
            SyncExit::Wfi => wait(WaitKind::Interrupt, None),
            SyncExit::Wfe => wait(WaitKind::Event, None),
            SyncExit::WfiTimeout(deadline) => wait(WaitKind::Interrupt, deadline),
            SyncExit::WfeTimeout(deadline) => wait(WaitKind::Event, deadline),
            SyncExit::SysReg(access) => {
                let register = access.register;
                let reg = SysReg::new(
                    u32::from(register.op0),
                    u32::from(register.op1),
                    u32::from(register.crn),
                    u32::from(register.crm),
                    u32::from(register.op2),
                );
                self.next = Next::SysRegRead(0);
                Some(Exit::SysReg { reg, access: access.write.map_or(Access::Read, Access::Write) })
            }
            SyncExit::Other { esr, .. } => Some(Exit::Fatal(FatalCause::UnknownException { esr })),
        }
    }

    /// Gives the realm a page of protected memory.
    fn fault_in(&self, ipa: Ipa, vm: &'static Vm) -> Option<Exit> {
        if !is_ram(vm, ipa) {
            // The RMM lets a realm get here only where we have let its RIPAS be RAM.
            return Some(self.fail(vm, &format_args!("the RMM wants memory at {ipa}, not RAM")));
        }
        let mut space = vm.space.lock();
        let Space::Realm(realm) = &mut *space else { return Some(Exit::Interrupt) };
        let outcome = realm.timed(vm, |realm| realm.fault_in(ipa, EXIT_CALLS));
        drop(space);
        match outcome {
            // If there is more to do, the REC faults again, and comes back earlier if there is an interrupt.
            Ok(
                FaultIn::Mapped { .. }
                | FaultIn::AlreadyMapped
                | FaultIn::GivenUp
                | FaultIn::Underway,
            ) => None,
            Ok(outcome) => {
                Some(self.fail(vm, &format_args!("no memory for the realm at {ipa}: {outcome:?}")))
            }
            Err(error) => Some(self.fail(vm, &error)),
        }
    }

    /// Gives the realm a page of shared memory, if the address is RAM of it; devices that cannot
    /// be emulated without a syndrome are the services' to answer.
    fn share(&self, ipa: Ipa, access: RecAccess, vm: &'static Vm) -> Option<Exit> {
        let device = realm::without_shared_bit(vm, ipa);
        let fetch = access == RecAccess::Instruction;
        let conversions = vm.spec().and_then(|spec| spec.realm()).map(|realm| realm.conversions);
        let allowed = conversions.is_some_and(|conversions| conversions.allow(false));
        if fetch || !allowed || !is_ram(vm, ipa) {
            return Some(Exit::Stage2Fault { ipa: device, fetch, write: false });
        }
        let mut space = vm.space.lock();
        let Space::Realm(realm) = &mut *space else { return Some(Exit::Interrupt) };
        match realm.share(vm, device.align_down(PAGE_SIZE)) {
            Ok(()) => None,
            Err(reason) => {
                drop(space);
                Some(self.fail(vm, &reason))
            }
        }
    }

    /// Drives the timer interrupts by the state that the last exit reported.
    pub fn report_timers(&self, id: VcpuId, vgic: &mut Vgic) {
        // The calling vCPU flushes before its next entry anyway: nobody is to be kicked.
        let _ = vgic.set_ppi(id, layout::VTIMER_INTID, self.timers.virt.asserted());
        let _ = vgic.set_ppi(id, layout::PTIMER_INTID, self.timers.physical.asserted());
    }

    /// Counter value at which the earlier of the realm's timers fires; `None` while none can.
    #[must_use]
    pub fn timer_deadline(&self) -> Option<u64> {
        let pending = |timer: TimerState| timer.deadline().filter(|_| !timer.asserted());
        [pending(self.timers.virt), pending(self.timers.physical)].into_iter().flatten().min()
    }

    /// Notes the services' answer for the next entry.
    pub fn resume(&mut self, resume: &Resume) {
        self.next = match (*resume, self.next) {
            (Resume::Read(value), Next::SysRegRead(_)) => Next::SysRegRead(value),
            (Resume::Read(value), _) => Next::MmioRead(value),
            (Resume::Done, Next::MmioRead(_)) => Next::MmioWritten,
            (Resume::InjectExternalAbort, _) => Next::InjectSea,
            (Resume::HostCallDone(value), _) => {
                self.call[0] = value;
                Next::HostCall
            }
            (Resume::RipasAccept, _) => Next::RipasAccept,
            (Resume::RipasReject, _) => Next::RipasReject,
            _ => Next::Plain,
        };
    }

    /// Answers the pending PSCI request of this REC.
    ///
    /// # Errors
    ///
    /// The RMM refused, or there is no such REC.
    pub fn complete_psci(
        &mut self,
        vm: &Vm,
        target: VcpuId,
        verdict: PsciVerdict,
    ) -> Result<(), Reason> {
        let status = match verdict {
            PsciVerdict::Success => PsciStatus::Success,
            PsciVerdict::Denied => PsciStatus::Denied,
        };
        let target = match &*vm.space.lock() {
            Space::Realm(realm) => realm.rec_id(target),
            _ => None,
        };
        let target = target.ok_or_else(|| Reason::new(format_args!("PSCI names no REC")))?;
        self.rec.complete_psci(target, status).map_err(|error| Reason::new(format_args!("{error}")))
    }

    /// Whether [`Self::change_ripas`] has to be called again before the next entry.
    #[must_use]
    pub fn is_changing_ripas(&self) -> bool {
        self.ripas_change != RipasStage::None
    }

    /// Goes on with the RIPAS change that this REC asked for; `true` when that is done.
    ///
    /// # Errors
    ///
    /// The RMM refused, or memory for tables ran out.
    pub fn change_ripas(&mut self, vm: &Vm) -> Result<bool, Reason> {
        let mut space = vm.space.lock();
        let Space::Realm(realm) = &mut *space else { return Ok(true) };
        let rec = &mut self.rec;
        if self.ripas_change != RipasStage::Underway
            && let Pending::Ripas(change) = rec.pending()
            && change.ripas == RecRipas::Ram
        {
            let from = match self.ripas_change {
                RipasStage::Unsharing { from } => from,
                _ => change.base,
            };
            if let Some(from) = realm.unshare(vm, from, change.top, EXIT_CALLS) {
                self.ripas_change = RipasStage::Unsharing { from };
                return Ok(false);
            }
        }
        let progress = realm
            .timed(vm, |realm| realm.change_ripas(rec, EXIT_CALLS))
            .map_err(|error| Reason::new(format_args!("{error}")))?;
        let underway = progress == RipasProgress::Underway;
        self.ripas_change = if underway { RipasStage::Underway } else { RipasStage::None };
        Ok(!underway)
    }
}

/// Whether a shared address is the alias of an address in the realm's RAM.
fn is_ram(vm: &Vm, ipa: Ipa) -> bool {
    let device = realm::without_shared_bit(vm, ipa);
    let size = vm.spec().map_or(0, |spec| spec.memory);
    device >= layout::RAM && device.get() - layout::RAM.get() < size
}

/// RMI calls that serving one exit may take before the core looks whether there is something more urgent to do.
const EXIT_CALLS: u64 = 64;
