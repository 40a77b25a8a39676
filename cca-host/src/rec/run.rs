//! REC_ENTER: entry flags, the run page, and the exit.

use core::fmt;
use core::mem::offset_of;

use bitflags::bitflags;
use mm::{Ipa, PhysAddr};

use super::{Pending, Rec};
use crate::command::Command;
use crate::conduit::{AccessFault, Host, HostMemoryExt};
use crate::error::Error;
use crate::exit::{
    ExitCause, HostCall, PsciRequest, RecExit, Ripas, RipasChange, SyncExit, Timers, reason,
};
use crate::features::GicModel;
use crate::layout::{self, EnterGic, ExitGic, ExitRipas, ExitSyndrome, ExitTimers, RecRun};
use crate::status::Status;

bitflags! {
    /// RmiRecEnterFlags. Made anew for each entry: the RMM does not remember them, and one left over from
    /// the last entry would be an error.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct EnterFlags: u64 {
        const EMUL_MMIO = 1 << 0;
        const INJECT_SEA = 1 << 1;
        const TRAP_WFI = 1 << 2;
        const TRAP_WFE = 1 << 3;
        const RIPAS_RESPONSE = 1 << 4;
    }
}

/// How a REC goes on after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume<'a> {
    /// The cause of the exit is gone, or there was none: interrupts, WFx, faults for which memory was
    /// mapped, a system register write that was emulated, and the first entry.
    Plain,
    /// Value of a load from a device.
    MmioRead(u64),
    /// A store to a device is done.
    MmioWritten,
    /// The access to an unprotected address failed: the realm takes a synchronous external abort.
    InjectSea,
    /// Results of a host call: x0 to x30.
    HostCall(&'a [u64; 31]),
    /// Value of a system register read.
    SysRegRead(u64),
    /// The RIPAS change was made as far as [`crate::Realm::change_ripas`] went.
    RipasAccept,
    /// The rest of the RIPAS change is refused.
    RipasReject,
}

/// One entry into a REC. Not `Clone`: it is consumed by the entry.
#[derive(Debug)]
#[must_use]
pub struct Entry<'a> {
    resume: Resume<'a>,
    flags: EnterFlags,
}

impl<'a> Entry<'a> {
    /// An entry that answers the last exit and traps nothing.
    pub const fn new(resume: Resume<'a>) -> Self {
        Self { resume, flags: EnterFlags::empty() }
    }

    /// Whether WFI exits.
    pub fn trap_wfi(mut self, trap: bool) -> Self {
        self.flags.set(EnterFlags::TRAP_WFI, trap);
        self
    }

    /// Whether WFE exits.
    pub fn trap_wfe(mut self, trap: bool) -> Self {
        self.flags.set(EnterFlags::TRAP_WFE, trap);
        self
    }
}

/// Virtual GIC state that goes in and out of a REC where the run page carries it (RMI 1.0). With 2.0
/// the hypervisor loads and saves the hardware registers instead, and this stays untouched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GicImage {
    /// ICH_HCR_EL2. Only the maintenance enables and TDIR are passed on; the RMM sets the rest.
    pub hcr: u64,
    /// ICH_LRn_EL2. Only software interrupts (HW = 0) are allowed.
    pub lrs: [u64; 16],
    /// ICH_MISR_EL2 after the exit.
    pub misr: u64,
    /// ICH_VMCR_EL2 after the exit.
    pub vmcr: u64,
}

impl GicImage {
    /// Bits of ICH_HCR_EL2 that the host may set: UIE, LRENPIE, NPIE, VGrp0EIE to VGrp1DIE, TDIR.
    const HOST_HCR: u64 = 0xfe | 1 << 14;
}

/// Why a REC was not entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnterError {
    /// The answer does not fit what the REC waits for; no call was made.
    WrongResume(Pending),
    /// The PSCI request must be answered first; no call was made.
    NotReady(PsciRequest),
    /// The realm has switched itself off, or is not activated: ERROR_REALM.
    RealmOff,
    /// The REC runs on another core, is off, or the virtual GIC state is bad: ERROR_REC.
    NotRunnable,
    /// Another refusal, or a failed access to the run page.
    Failed(Error),
}

impl From<AccessFault> for EnterError {
    fn from(error: AccessFault) -> Self {
        Self::Failed(error.into())
    }
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongResume(pending) => write!(f, "the answer does not fit {pending:?}"),
            Self::NotReady(request) => write!(f, "{request:?} is not answered"),
            Self::RealmOff => f.write_str("the realm is off"),
            Self::NotRunnable => f.write_str("the REC is not runnable"),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for EnterError {}

const EXIT: usize = offset_of!(RecRun, exit);

impl<H: Host> Rec<'_, H> {
    /// Runs the REC until its next exit (REC_ENTER). The caller has masked interrupts; with RMI 2.0 it
    /// has loaded the virtual GIC registers.
    ///
    /// # Errors
    /// See [`EnterError`]. The REC still waits for what it waited for.
    pub fn enter(&mut self, entry: Entry<'_>, gic: &mut GicImage) -> Result<RecExit, EnterError> {
        let Some(run) = self.run.as_ref().map(mm::ledger::Frames::base) else {
            return Err(EnterError::NotRunnable);
        };
        let flags = entry.flags | self.answer(run, entry.resume)?;
        let gic_in_page = matches!(self.rmm.capabilities().gic, GicModel::RunPage { .. });
        let host = &self.rmm.host;
        host.store(run, offset_of!(RecRun, enter.flags), &flags.bits())?;
        if gic_in_page {
            let enter = EnterGic { hcr: gic.hcr & GicImage::HOST_HCR, lrs: gic.lrs };
            host.store(run, offset_of!(RecRun, enter.gic), &enter)?;
        }
        let command = Command::RecEnter;
        let reply = self.rmm.call(command, [self.id.addr.get(), run.get()]);
        match reply.status {
            Status::Success => {}
            Status::Realm { .. } => return Err(EnterError::RealmOff),
            Status::Rec => return Err(EnterError::NotRunnable),
            status => return Err(EnterError::Failed(Error::Refused { command, status })),
        }
        self.pending = Pending::None;
        if gic_in_page {
            let exit: ExitGic = host.load(run, EXIT + offset_of!(layout::RecExit, gic))?;
            *gic = GicImage { hcr: exit.hcr, lrs: exit.lrs, misr: exit.misr, vmcr: exit.vmcr };
        }
        let timers: ExitTimers = host.load(run, EXIT + offset_of!(layout::RecExit, timers))?;
        let cause = self.read_cause(run)?;
        self.pending = pending_after(&cause);
        Ok(RecExit { cause, timers: Timers::from(timers) })
    }

    /// Checks the answer against what the REC waits for and writes its values into the run page.
    fn answer(&self, run: PhysAddr, resume: Resume<'_>) -> Result<EnterFlags, EnterError> {
        let gprs = offset_of!(RecRun, enter.gprs);
        let host = &self.rmm.host;
        match (self.pending, resume) {
            (Pending::Psci(request), _) => Err(EnterError::NotReady(request)),
            (Pending::MmioRead, Resume::MmioRead(value)) => {
                host.store(run, gprs, &value)?;
                Ok(EnterFlags::EMUL_MMIO)
            }
            (Pending::MmioWrite, Resume::MmioWritten) => Ok(EnterFlags::EMUL_MMIO),
            (Pending::MmioRead | Pending::MmioWrite | Pending::Unprotected, Resume::InjectSea) => {
                Ok(EnterFlags::INJECT_SEA)
            }
            (Pending::SysRegRead { rt }, Resume::SysRegRead(value)) => {
                // RMMs differ in where they look: in x0, or in the register of the instruction.
                host.store(run, gprs, &value)?;
                if rt < 31 {
                    host.store(run, gprs + 8 * usize::from(rt), &value)?;
                }
                Ok(EnterFlags::empty())
            }
            (Pending::HostCall, Resume::HostCall(values)) => {
                host.store(run, gprs, values)?;
                Ok(EnterFlags::empty())
            }
            (Pending::Ripas(_), Resume::RipasAccept) => Ok(EnterFlags::empty()),
            (Pending::Ripas(_), Resume::RipasReject) => Ok(EnterFlags::RIPAS_RESPONSE),
            // Memory was mapped where a device access or an unprotected fault was; or nothing is asked.
            (
                Pending::None | Pending::MmioRead | Pending::MmioWrite | Pending::Unprotected,
                Resume::Plain,
            ) => Ok(EnterFlags::empty()),
            (pending, _) => Err(EnterError::WrongResume(pending)),
        }
    }

    /// Reads the exit reason and the fields that it defines.
    fn read_cause(&self, run: PhysAddr) -> Result<ExitCause, AccessFault> {
        let host = &self.rmm.host;
        let gprs = EXIT + offset_of!(layout::RecExit, gprs);
        let exit_reason: u64 = host.load(run, EXIT + offset_of!(layout::RecExit, exit_reason))?;
        Ok(match exit_reason {
            reason::SYNC => {
                let syndrome: ExitSyndrome =
                    host.load(run, EXIT + offset_of!(layout::RecExit, syndrome))?;
                let x0: u64 = host.load(run, gprs)?;
                ExitCause::Sync(SyncExit::decode(&syndrome, x0, &self.geometry))
            }
            reason::IRQ => ExitCause::Irq,
            reason::FIQ => ExitCause::Fiq,
            reason::PSCI => {
                let [fid, x1]: [u64; 2] = host.load(run, gprs)?;
                ExitCause::Psci(PsciRequest::decode(fid, x1))
            }
            reason::RIPAS_CHANGE => {
                let ripas: ExitRipas = host.load(run, EXIT + offset_of!(layout::RecExit, ripas))?;
                ExitCause::RipasChange(RipasChange {
                    base: Ipa::new(ripas.base),
                    top: Ipa::new(ripas.top),
                    ripas: Ripas::from_code(ripas.value as u8),
                })
            }
            reason::HOST_CALL => {
                let imm: u64 = host.load(run, EXIT + offset_of!(layout::RecExit, imm))?;
                let gprs: [u64; 31] = host.load(run, gprs)?;
                ExitCause::HostCall(HostCall { imm: imm as u16, gprs })
            }
            reason::SERROR => {
                let syndrome: ExitSyndrome =
                    host.load(run, EXIT + offset_of!(layout::RecExit, syndrome))?;
                ExitCause::SError { esr: syndrome.esr }
            }
            reason => ExitCause::Unknown { reason },
        })
    }
}

/// What a REC waits for after an exit.
const fn pending_after(cause: &ExitCause) -> Pending {
    match cause {
        ExitCause::Sync(SyncExit::Mmio(mmio)) => match mmio.write {
            None => Pending::MmioRead,
            Some(_) => Pending::MmioWrite,
        },
        ExitCause::Sync(SyncExit::UnprotectedFault { .. }) => Pending::Unprotected,
        ExitCause::Sync(SyncExit::SysReg(access)) if access.write.is_none() => {
            Pending::SysRegRead { rt: access.rt }
        }
        ExitCause::HostCall(_) => Pending::HostCall,
        ExitCause::Psci(request) if request.target().is_some() => Pending::Psci(*request),
        ExitCause::RipasChange(change) => Pending::Ripas(*change),
        _ => Pending::None,
    }
}
