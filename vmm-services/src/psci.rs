//! PSCI 1.1 (Arm DEN 0022) for guests.

use crate::exit::{CALL_REGISTERS, PsciNotice, PsciVerdict, Resume, StopReason};
use crate::ids::{VcpuId, VcpuSet};
use crate::smccc::{self, SUCCESS, result};
use crate::traits::GuestMemory;
use arm_psci::{
    AffinityInfo, EntryPoint, ErrorCode, Function, FunctionId, MigrateInfoType, Mpidr,
    PowerState as PowerDepth,
};
use mm::Ipa;

const PSCI_VERSION_1_1: u32 = 0x1_0001;

/// Standard calls of PSCI: 0x8400_0000 to 0x8400_001f, and the same with 64-bit arguments.
const PSCI_CALLS: u32 = 0x8400_0000;
const PSCI_CALL_MASK: u32 = 0xbfff_ffe0;

/// Whether `function` is one of PSCI's.
pub(crate) fn is_call(function: u32) -> bool {
    function & PSCI_CALL_MASK == PSCI_CALLS
}

/// Which vCPUs of a VM are on.
#[derive(Clone, Debug)]
pub(crate) struct PowerState {
    all: VcpuSet,
    on: VcpuSet,
    /// RECs that were named by a CPU_ON while the host took them for on. The RMM may have turned such
    /// a REC off before, and then on again by that call, while its core was still on the way to say so.
    named_while_on: VcpuSet,
}

fn error(code: ErrorCode) -> Resume {
    result(i64::from(code as i32))
}

impl PowerState {
    /// Only [`VcpuId::BOOT`] of `vcpus` is on.
    pub(crate) fn new(vcpus: usize) -> Self {
        Self {
            all: VcpuSet::first(vcpus),
            on: VcpuSet::only(VcpuId::BOOT),
            named_while_on: VcpuSet::EMPTY,
        }
    }

    pub(crate) fn is_on(&self, vcpu: VcpuId) -> bool {
        self.on.contains(vcpu)
    }

    fn find(&self, mpidr: u64) -> Option<VcpuId> {
        VcpuId::from_mpidr(mpidr).filter(|vcpu| self.all.contains(*vcpu))
    }

    /// Answers a call for which [`is_call`] holds.
    pub(crate) fn call(
        &mut self,
        vcpu: VcpuId,
        args: &[u64; CALL_REGISTERS],
        memory: &dyn GuestMemory,
    ) -> Resume {
        let [function, first, second, third, ..] = *args;
        match Function::try_from(&[u64::from(function as u32), first, second, third]) {
            Ok(function) => self.psci(vcpu, &function, memory),
            Err(parse_error) => error(parse_error.into()),
        }
    }

    fn psci(&mut self, vcpu: VcpuId, function: &Function, memory: &dyn GuestMemory) -> Resume {
        match *function {
            Function::Version => result(i64::from(PSCI_VERSION_1_1)),
            Function::Features { psci_func_id } => features(psci_func_id.into()),
            Function::CpuOn { target_cpu, entry } => self.cpu_on(target_cpu, entry, memory),
            Function::CpuOff => {
                self.on.remove(vcpu);
                Resume::CpuOff
            }
            Function::CpuSuspend { state: PowerDepth::StandbyOrRetention(_), .. } => {
                Resume::Suspend
            }
            Function::CpuSuspend { state: PowerDepth::PowerDown(_), entry } => {
                power_down(entry, memory)
            }
            // All others have to be off before.
            Function::SystemSuspend { .. } if self.on != VcpuSet::only(vcpu) => {
                error(ErrorCode::Denied)
            }
            Function::SystemSuspend { entry } => power_down(entry, memory),
            Function::AffinityInfo { mpidr, lowest_affinity_level } => {
                self.affinity_info(mpidr, lowest_affinity_level)
            }
            Function::MigrateInfoType => {
                result(i64::from(u32::from(MigrateInfoType::MigrationNotRequired)))
            }
            Function::SystemOff => Resume::SystemOff,
            Function::SystemReset => Resume::SystemReset,
            _ => error(ErrorCode::NotSupported),
        }
    }

    fn cpu_on(&mut self, target: Mpidr, entry: EntryPoint, memory: &dyn GuestMemory) -> Resume {
        let Some(target) = self.find(target.into()) else {
            return error(ErrorCode::InvalidParameters);
        };
        if self.on.contains(target) {
            return error(ErrorCode::AlreadyOn);
        }
        let Some(address) = entry_point(entry, memory) else {
            return error(ErrorCode::InvalidAddress);
        };
        self.on.insert(target);
        Resume::CpuOn { target, entry: address, context: entry.context_id() }
    }

    fn affinity_info(&self, mpidr: Mpidr, lowest_level: u32) -> Resume {
        let state = |on| {
            let info = if on { AffinityInfo::On } else { AffinityInfo::Off };
            result(i64::from(u32::from(info)))
        };
        match (lowest_level, mpidr) {
            (0, _) => match self.find(mpidr.into()) {
                Some(vcpu) => state(self.on.contains(vcpu)),
                None => error(ErrorCode::InvalidParameters),
            },
            // All vCPUs are in one group at every higher level, and the caller is on.
            (1, Mpidr { aff1: 0, aff2: 0, aff3: None | Some(0), .. })
            | (2, Mpidr { aff2: 0, aff3: None | Some(0), .. })
            | (3, Mpidr { aff3: None | Some(0), .. }) => state(true),
            _ => error(ErrorCode::InvalidParameters),
        }
    }

    /// Answers a PSCI request that a realm's RMM reports.
    pub(crate) fn notice(&mut self, vcpu: VcpuId, notice: PsciNotice) -> Resume {
        match notice {
            PsciNotice::CpuSuspend => Resume::Suspend,
            // To be entered once more: only the RMM knows whether it is on again.
            PsciNotice::CpuOff if self.named_while_on.contains(vcpu) => {
                self.named_while_on.remove(vcpu);
                Resume::Continue
            }
            PsciNotice::CpuOff => {
                self.on.remove(vcpu);
                Resume::CpuOff
            }
            PsciNotice::CpuOn { target } => match self.find(target) {
                // The RMM answers ALREADY_ON by itself, whatever our verdict on such a target is.
                Some(target) => {
                    Resume::PsciComplete { target, verdict: PsciVerdict::Success, cpu_on: true }
                }
                None => Resume::Stop(StopReason::Protocol("CPU_ON of a REC that does not exist")),
            },
            PsciNotice::AffinityInfo { target } => match self.find(target) {
                Some(target) => {
                    Resume::PsciComplete { target, verdict: PsciVerdict::Success, cpu_on: false }
                }
                None => {
                    Resume::Stop(StopReason::Protocol("AFFINITY_INFO of a REC that does not exist"))
                }
            },
            PsciNotice::SystemOff => Resume::SystemOff,
            PsciNotice::SystemReset => Resume::SystemReset,
        }
    }

    /// The RMM has carried out a CPU_ON of `target`; `true` if that one is to be started.
    pub(crate) fn cpu_on_completed(&mut self, target: VcpuId) -> bool {
        let starts = !self.on.contains(target);
        let set = if starts { &mut self.on } else { &mut self.named_while_on };
        set.insert(target);
        starts
    }
}

/// Address at which a vCPU is to start, if it can.
fn entry_point(entry: EntryPoint, memory: &dyn GuestMemory) -> Option<Ipa> {
    let address = Ipa::new(entry.entry_point_address());
    let first_instruction = memory.read(address, &mut [0; 4]);
    (address.is_aligned(4) && first_instruction.is_ok()).then_some(address)
}

fn power_down(entry: EntryPoint, memory: &dyn GuestMemory) -> Resume {
    match entry_point(entry, memory) {
        Some(address) => Resume::PowerDown { entry: address, context: entry.context_id() },
        None => error(ErrorCode::InvalidAddress),
    }
}

/// Flag of CPU_SUSPEND in PSCI_FEATURES: `power_state` has the extended StateID format.
const EXTENDED_STATE_ID: i64 = 1 << 1;

/// PSCI_FEATURES: nothing but CPU_SUSPEND has flags.
fn features(function: u32) -> Resume {
    if function == smccc::VERSION {
        return result(SUCCESS);
    }
    match FunctionId::try_from(function) {
        Ok(FunctionId::CpuSuspend32 | FunctionId::CpuSuspend64) => result(EXTENDED_STATE_ID),
        Ok(
            FunctionId::PsciVersion
            | FunctionId::PsciFeatures
            | FunctionId::CpuOn32
            | FunctionId::CpuOn64
            | FunctionId::CpuOff
            | FunctionId::AffinityInfo32
            | FunctionId::AffinityInfo64
            | FunctionId::MigrateInfoType
            | FunctionId::SystemSuspend32
            | FunctionId::SystemSuspend64
            | FunctionId::SystemOff
            | FunctionId::SystemReset,
        ) => result(SUCCESS),
        _ => error(ErrorCode::NotSupported),
    }
}

#[cfg(test)]
mod tests;
