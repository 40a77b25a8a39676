//! A run loop as a hypervisor has it.

use cca_host::{
    EnterError, Entry, Error, ExitCause, FaultIn, GicImage, Host, Mmio, PsciRequest, PsciStatus,
    Realm, RealmState, Rec, RecId, Resume, Returned, RipasProgress, SharedAttrs, SyncExit,
};
use mm::PhysAddr;

/// Calls that the driver may make for one exit before it comes back.
pub const BUDGET: u64 = 64;

/// What the realm's surroundings do in a test.
#[derive(Debug, Default)]
pub struct Services {
    /// Value that every device register reads.
    pub device: u64,
    /// Stores to devices, in order: address and value.
    pub stores: Vec<(u64, u64)>,
    /// Immediates of host calls, in order. The answer is all registers plus 1.
    pub host_calls: Vec<u16>,
    /// Page to map where the realm touches unprotected memory; none injects an abort.
    pub shared_page: Option<PhysAddr>,
    /// Whether to refuse RIPAS changes.
    pub reject_ripas: bool,
    /// Granules mapped because of faults.
    pub faults: u64,
}

/// How a realm ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// PSCI SYSTEM_OFF.
    Off,
    /// A fault that no memory can cure.
    Destroyed,
    /// It ran for longer than the test wants.
    Endless,
}

/// Why a realm could not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunError {
    /// REC_ENTER failed.
    Enter(EnterError),
    /// Serving an exit failed.
    Serve(Error),
}

impl From<EnterError> for RunError {
    fn from(error: EnterError) -> Self {
        Self::Enter(error)
    }
}

impl From<Error> for RunError {
    fn from(error: Error) -> Self {
        Self::Serve(error)
    }
}

/// What to do next with a REC.
#[derive(Clone, Copy)]
enum Next {
    Plain,
    MmioRead,
    MmioWritten,
    InjectSea,
    HostCall,
    SysRegRead,
    RipasAccept,
    RipasReject,
    Sleep,
    Off,
    End(Outcome),
}

/// Runs the RECs of a realm in turn until it ends.
///
/// # Errors
/// A refusal of the RMM that concerns the run.
pub fn run_to_end<H: Host>(
    realm: &mut Realm<'_, H, cca_host::Active>,
    recs: &mut [Rec<'_, H>],
    services: &mut Services,
) -> Result<Outcome, RunError> {
    let ids: Vec<RecId> = recs.iter().map(Rec::id).collect();
    let mut next: Vec<Next> = recs.iter().map(|_| Next::Off).collect();
    if let Some(first) = next.first_mut() {
        *first = Next::Plain;
    }
    let mut results = [0; 31];
    for turn in 0..20_000 {
        let index = turn % recs.len();
        if matches!(next[index], Next::Off) {
            continue;
        }
        let resume = match next[index] {
            Next::MmioRead => Resume::MmioRead(services.device),
            Next::MmioWritten => Resume::MmioWritten,
            Next::InjectSea => Resume::InjectSea,
            Next::HostCall => Resume::HostCall(&results),
            Next::SysRegRead => Resume::SysRegRead(services.device),
            Next::RipasAccept => Resume::RipasAccept,
            Next::RipasReject => Resume::RipasReject,
            Next::Plain | Next::Sleep | Next::Off | Next::End(_) => Resume::Plain,
        };
        let entry = Entry::new(resume).trap_wfi(true);
        let exit = recs[index].enter(entry, &mut GicImage::default())?;
        if let ExitCause::HostCall(call) = &exit.cause {
            results = call.gprs.map(|value| value.wrapping_add(1));
        }
        if let ExitCause::Psci(request) = exit.cause
            && let Some(mpidr) = request.target()
        {
            let target = ids.iter().position(|id| id.mpidr() == mpidr);
            if let Some(target) = target {
                recs[index].complete_psci(ids[target], PsciStatus::Success)?;
                if matches!(request, PsciRequest::CpuOn { .. }) {
                    next[target] = Next::Plain;
                }
            }
        }
        next[index] = serve(realm, &mut recs[index], services, &exit.cause)?;
        if let Next::End(outcome) = next[index] {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Endless)
}

/// Does what an exit asks for.
fn serve<H: Host>(
    realm: &mut Realm<'_, H, cca_host::Active>,
    rec: &mut Rec<'_, H>,
    services: &mut Services,
    cause: &ExitCause,
) -> Result<Next, Error> {
    Ok(match cause {
        ExitCause::Sync(SyncExit::ProtectedFault { ipa, .. }) => {
            match realm.fault_in(*ipa, BUDGET)? {
                FaultIn::Mapped { granules } => {
                    services.faults += granules;
                    Next::Plain
                }
                FaultIn::AlreadyMapped | FaultIn::GivenUp | FaultIn::Underway => Next::Plain,
                FaultIn::Destroyed | FaultIn::NotRam(_) | FaultIn::Livelock => {
                    Next::End(Outcome::Destroyed)
                }
            }
        }
        ExitCause::Sync(SyncExit::Mmio(Mmio { ipa, write: Some(value), .. })) => {
            services.stores.push((ipa.get() & !realm.shared_bit(), *value));
            Next::MmioWritten
        }
        ExitCause::Sync(SyncExit::Mmio(_)) => Next::MmioRead,
        ExitCause::Sync(SyncExit::UnprotectedFault { ipa, .. }) => match services.shared_page {
            Some(page) => {
                realm.map_shared(*ipa, page, mm::PAGE_SIZE, SharedAttrs::NORMAL_RW)?;
                Next::Plain
            }
            None => Next::InjectSea,
        },
        ExitCause::Sync(SyncExit::SysReg(access)) if access.write.is_none() => Next::SysRegRead,
        ExitCause::Sync(SyncExit::Wfi | SyncExit::Wfe) => Next::Sleep,
        ExitCause::HostCall(call) => {
            services.host_calls.push(call.imm);
            Next::HostCall
        }
        ExitCause::RipasChange(_) if services.reject_ripas => Next::RipasReject,
        ExitCause::RipasChange(_) => {
            while realm.change_ripas(rec, BUDGET)? == RipasProgress::Underway {}
            Next::RipasAccept
        }
        ExitCause::Psci(PsciRequest::SystemOff | PsciRequest::SystemReset) => {
            Next::End(Outcome::Off)
        }
        ExitCause::Psci(PsciRequest::CpuOff) => Next::Off,
        _ => Next::Plain,
    })
}

/// Destroys a realm and its RECs, trying again where the RMM refuses at first.
///
/// # Errors
/// The RMM goes on refusing.
pub fn destroy<'l, H: Host, S: RealmState>(
    realm: Realm<'l, H, S>,
    recs: impl IntoIterator<Item = Rec<'l, H>>,
) -> Result<Returned, Error> {
    let mut returned = Returned::default();
    for rec in recs {
        returned += destroy_rec(rec)?;
    }
    let mut realm = realm;
    let mut refused = 0;
    loop {
        match realm.destroy() {
            Ok(report) => {
                returned += report.returned;
                return Ok(returned);
            }
            Err(failure) if refused == RETRIES => return Err(failure.error),
            Err(failure) => realm = failure.realm,
        }
        refused += 1;
    }
}

/// Attempts after the first one.
const RETRIES: u32 = 2;

fn destroy_rec<H: Host>(rec: Rec<'_, H>) -> Result<Returned, Error> {
    let mut rec = rec;
    let mut refused = 0;
    loop {
        match rec.destroy() {
            Ok(returned) => return Ok(returned),
            Err(failure) if refused == RETRIES => return Err(failure.error),
            Err(failure) => rec = failure.rec,
        }
        refused += 1;
    }
}
