//! What stopped a REC, and whether the monitor handles it or the host must.

use crate::abi::exit_reason;
use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::esr;
use crate::granule::GranuleState;
use crate::inject;
use crate::monitor::Monitor;
use crate::platform::{Platform, RawExit, SysRegIss};
use crate::rec::{LastExit, Rec};
use crate::rtt::ripas::PageLookup;
use crate::run::{ExitRecord, gpr, set_gpr, sysreg_transfer_register};
use crate::sysreg::{self, SysRegTrap};

/// Faulting IPA of HPFAR_EL2: bits \[43:4\] hold IPA bits \[51:12\].
const HPFAR_FIPA: u64 = ((1 << 40) - 1) << 4;

/// HPFAR_EL2 for a fault at `ipa`.
pub(crate) fn hpfar_of(ipa: Ipa) -> u64 {
    (ipa.0 / GRANULE_SIZE) << 4
}

/// What became of a fault at an address.
enum Fault {
    /// There is no memory for the realm: it takes an abort.
    NoMemory,
    /// Protected memory that the host should have mapped.
    Protected,
    /// Unprotected address.
    Unprotected,
}

impl<P: Platform> Monitor<P> {
    /// Handles what stopped a REC; none if it runs on.
    pub(crate) fn handle_exit(&self, rec: &mut Rec, raw: RawExit) -> Option<ExitRecord> {
        match raw {
            RawExit::Irq => Some(ExitRecord::new(exit_reason::IRQ)),
            RawExit::Fiq => Some(ExitRecord::new(exit_reason::FIQ)),
            RawExit::SError { esr } => Some(serror(rec, esr)),
            RawExit::Sync { esr, far, hpfar } => {
                let exit = self.handle_sync(rec, esr, far, hpfar)?;
                rec.last_exit.esr = esr;
                rec.last_exit.far = far;
                Some(exit)
            }
        }
    }

    fn handle_sync(&self, rec: &mut Rec, esr: u64, far: u64, hpfar: u64) -> Option<ExitRecord> {
        match esr::class(esr) {
            esr::EC_WFX => {
                advance_pc(rec);
                let esr = esr & (esr::EC_MASK | esr::WFX_TI);
                Some(ExitRecord { esr, ..ExitRecord::new(exit_reason::SYNC) })
            }
            esr::EC_HVC => {
                // The exception link already points behind the HVC.
                rec.context.pc = rec.context.pc.wrapping_sub(4);
                inject::undefined(&mut rec.context);
                None
            }
            esr::EC_FP | esr::EC_SVE | esr::EC_SME => {
                inject::undefined(&mut rec.context);
                None
            }
            esr::EC_SMC => self.handle_smc(rec),
            esr::EC_SYSREG => self.handle_sysreg(rec, esr),
            esr::EC_DATA_ABORT => self.handle_data_abort(rec, esr, far, hpfar),
            esr::EC_INSTRUCTION_ABORT => self.handle_instruction_abort(rec, esr, far, hpfar),
            // Unknown: the host learns that, and nothing more.
            _ => Some(ExitRecord::new(exit_reason::SYNC)),
        }
    }

    /// Classifies a fault of the REC at an IPA.
    fn classify_fault(&self, rec: &Rec, ipa: Ipa) -> Fault {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let stage2 = self.load_rd(&granule).stage2();
        if ipa.0 >= stage2.ipa_size() {
            Fault::NoMemory
        } else if !stage2.is_protected(ipa) {
            Fault::Unprotected
        } else if self.look_up_page(&stage2, ipa) == PageLookup::Empty {
            Fault::NoMemory
        } else {
            Fault::Protected
        }
    }

    fn handle_data_abort(
        &self,
        rec: &mut Rec,
        esr: u64,
        far: u64,
        hpfar: u64,
    ) -> Option<ExitRecord> {
        const PSTATE_AARCH32: u64 = 1 << 4;
        if esr::is_external_abort(esr) {
            return Some(external_abort(rec, esr, far));
        }
        let mut exit = ExitRecord { hpfar: hpfar & HPFAR_FIPA, ..Default::default() };
        match self.classify_fault(rec, Ipa((hpfar & HPFAR_FIPA) << 8)) {
            Fault::NoMemory => {
                inject::external_abort(&mut rec.context, esr, far);
                return None;
            }
            Fault::Protected => exit.esr = esr & esr::NON_EMULATABLE,
            Fault::Unprotected => {
                rec.last_exit.unprotected_abort = 1;
                let aarch32 = rec.context.pstate & PSTATE_AARCH32 != 0;
                if esr & esr::ABORT_ISV == 0 || aarch32 {
                    exit.esr = esr & esr::NON_EMULATABLE;
                } else {
                    rec.last_exit.emulatable = 1;
                    exit.esr = esr & esr::EMULATABLE;
                    exit.far = far & (GRANULE_SIZE - 1);
                    if esr & esr::ABORT_WNR != 0 {
                        let stored = gpr(&rec.context, esr::transfer_register(esr));
                        exit.gprs[0] = stored & esr::access_mask(esr);
                    }
                }
            }
        }
        Some(exit)
    }

    fn handle_instruction_abort(
        &self,
        rec: &mut Rec,
        esr: u64,
        far: u64,
        hpfar: u64,
    ) -> Option<ExitRecord> {
        if esr::is_external_abort(esr) {
            return Some(external_abort(rec, esr, far));
        }
        match self.classify_fault(rec, Ipa((hpfar & HPFAR_FIPA) << 8)) {
            Fault::Protected => Some(ExitRecord {
                esr: esr & esr::NON_EMULATABLE,
                hpfar: hpfar & HPFAR_FIPA,
                ..Default::default()
            }),
            Fault::NoMemory | Fault::Unprotected => {
                inject::external_abort(&mut rec.context, esr, far);
                None
            }
        }
    }

    fn handle_sysreg(&self, rec: &mut Rec, esr: u64) -> Option<ExitRecord> {
        let register = SysRegIss(esr & sysreg::REGISTER_MASK);
        let is_read = esr & sysreg::READ != 0;
        let transfer = sysreg_transfer_register(esr);
        match sysreg::classify(register) {
            SysRegTrap::Undefined => {
                inject::undefined(&mut rec.context);
                return None;
            }
            SysRegTrap::Id if is_read => {
                let value = sysreg::hide_features(register, self.platform.id_register(register));
                set_gpr(&mut rec.context, transfer, value);
            }
            SysRegTrap::CpuInterface => {
                advance_pc(rec);
                let mut exit = ExitRecord::new(exit_reason::SYNC);
                exit.esr = esr & !sysreg::TRANSFER_REGISTER;
                if is_read {
                    rec.last_exit.sysreg_read = 1;
                } else {
                    exit.gprs[0] = gpr(&rec.context, transfer);
                }
                return Some(exit);
            }
            SysRegTrap::Id | SysRegTrap::Other => {
                // Reads as zero, writes are ignored.
                if is_read {
                    set_gpr(&mut rec.context, transfer, 0);
                }
            }
        }
        advance_pc(rec);
        None
    }
}

/// The next A64 instruction.
pub(crate) fn advance_pc(rec: &mut Rec) {
    rec.context.pc = rec.context.pc.wrapping_add(4);
}

/// The exit for an RSI call whose page the host has to map, as if the realm had touched it.
pub(crate) fn emulated_data_abort(ipa: Ipa, level: i64) -> ExitRecord {
    let class = esr::EC_DATA_ABORT << esr::EC_SHIFT;
    ExitRecord {
        esr: class | (esr::FSC_TRANSLATION + (level.cast_unsigned() & 0b11)),
        hpfar: hpfar_of(ipa),
        ..ExitRecord::new(exit_reason::SYNC)
    }
}

/// An error that memory reported for an access of the realm.
fn external_abort(rec: &mut Rec, esr: u64, far: u64) -> ExitRecord {
    let severity = esr & esr::ABORT_SET;
    assert!(severity != esr::SET_UNCONTAINABLE, "uncontainable memory error, ESR {esr:#x}");
    if severity != esr::SET_RESTARTABLE {
        inject::external_abort(&mut rec.context, esr, far);
    }
    // HPFAR is not valid for it, and FAR alone is of no use to the host.
    ExitRecord { esr: esr & esr::NON_EMULATABLE, ..ExitRecord::new(exit_reason::SYNC) }
}

fn serror(rec: &mut Rec, esr: u64) -> ExitRecord {
    let severity = esr & esr::SERROR_AET;
    let known = esr & esr::SERROR_IDS == 0 && severity != esr::AET_UNCONTAINABLE;
    assert!(known, "SError that may have reached the monitor, ESR {esr:#x}");
    if matches!(severity, esr::AET_UNRECOVERABLE | esr::AET_RECOVERABLE) {
        rec.context.el1.vse_pending = 1;
    }
    rec.last_exit = LastExit::default();
    ExitRecord { esr: esr & esr::SERROR_VISIBLE, ..ExitRecord::new(exit_reason::SERROR) }
}
