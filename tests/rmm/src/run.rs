//! REC_ENTER: checking and completing what the host brings, running, reporting.

use crate::abi::{Refusal, Reply, enter_flags, exit_reason};
use crate::addr::Pa;
use crate::context::{MAX_LRS, RecContext, TimerState};
use crate::esr;
use crate::gic::{self, HostGic};
use crate::granule::GranuleState;
use crate::inject;
use crate::monitor::Monitor;
use crate::platform::{Platform, Stage2Regime, Traps};
use crate::realm::RealmState;
use crate::rec::Rec;
use crate::v2::Draft;

/// Bytes of each half of the run page.
const HALF: usize = 2048;

/// The host's half of RmiRecRun.
pub(crate) struct EnterRecord {
    flags: u64,
    pub(crate) gprs: [u64; 31],
    gic: HostGic,
}

impl EnterRecord {
    /// Decodes the first half of a run page; none if a reserved byte is set.
    fn parse(bytes: &[u8; HALF], has_gic: bool) -> Option<Self> {
        // RMI 2.0 has nothing of the GIC in the run page.
        let last = if has_gic { 0x388 } else { 0x2f8 };
        let reserved = [0x8..0x200, 0x2f8..0x300, last..HALF];
        if reserved.into_iter().any(|gap| bytes[gap].iter().any(|byte| *byte != 0)) {
            return None;
        }
        let field = |offset: usize| {
            let mut field = [0; 8];
            field.copy_from_slice(&bytes[offset..offset + 8]);
            u64::from_le_bytes(field)
        };
        Some(Self {
            flags: field(0),
            gprs: core::array::from_fn(|i| field(0x200 + 8 * i)),
            gic: HostGic { hcr: field(0x300), lrs: core::array::from_fn(|i| field(0x308 + 8 * i)) },
        })
    }

    fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    fn traps(&self) -> Traps {
        Traps {
            wfi: self.has(enter_flags::TRAP_WFI),
            wfe: self.has(enter_flags::TRAP_WFE),
            ..Traps::default()
        }
    }
}

/// What the host learns of an exit, apart from timers and virtual CPU interface.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExitRecord {
    pub(crate) reason: u64,
    pub(crate) esr: u64,
    pub(crate) far: u64,
    pub(crate) hpfar: u64,
    pub(crate) gprs: [u64; 31],
    pub(crate) ripas_base: u64,
    pub(crate) ripas_top: u64,
    pub(crate) ripas_value: u8,
    pub(crate) imm: u16,
}

impl ExitRecord {
    /// An exit for this reason with all else zero.
    pub(crate) fn new(reason: u64) -> Self {
        Self { reason, ..Self::default() }
    }

    /// The monitor's half of the run page.
    /// With `list_registers`, their number, it includes the virtual CPU interface.
    fn encode(&self, context: &RecContext, list_registers: Option<usize>) -> [u8; HALF] {
        let mut bytes = [0; HALF];
        let mut put = |offset: usize, value: u64| {
            bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0x000, self.reason);
        put(0x100, self.esr);
        put(0x108, self.far);
        put(0x110, self.hpfar);
        for (register, value) in self.gprs.iter().enumerate() {
            put(0x200 + 8 * register, *value);
        }
        if let Some(count) = list_registers {
            put(0x300, gic::visible_hcr(&context.gic));
            for (register, value) in context.gic.ich_lr.iter().take(count).enumerate() {
                put(0x308 + 8 * register, *value);
            }
            put(0x388, context.gic.ich_misr);
            put(0x390, context.gic.ich_vmcr);
        }
        put(0x400, context.timers.cntp_ctl);
        put(0x408, context.timers.cntp_cval);
        put(0x410, context.timers.cntv_ctl);
        put(0x418, context.timers.cntv_cval);
        put(0x500, self.ripas_base);
        put(0x508, self.ripas_top);
        put(0x510, self.ripas_value.into());
        put(0x600, self.imm.into());
        bytes
    }
}

const TIMER_ENABLE: u64 = 1 << 0;
const TIMER_IMASK: u64 = 1 << 1;
const TIMER_ISTATUS: u64 = 1 << 2;
/// Output bits of the two timers as a set.
const VIRTUAL_TIMER: u64 = 1 << 0;
const PHYSICAL_TIMER: u64 = 1 << 1;

/// The control register with ISTATUS as it is at counter value `now`.
fn timer_control(ctl: u64, cval: u64, now: u64) -> u64 {
    let fires = ctl & TIMER_ENABLE != 0 && now >= cval;
    ctl & (TIMER_ENABLE | TIMER_IMASK) | if fires { TIMER_ISTATUS } else { 0 }
}

/// Brings the ISTATUS bits up to date; the set of timers whose output is asserted.
fn update_timers(timers: &mut TimerState, now: u64) -> u64 {
    timers.cntv_ctl = timer_control(timers.cntv_ctl, timers.cntv_cval, now);
    timers.cntp_ctl = timer_control(timers.cntp_ctl, timers.cntp_cval, now);
    let output = |ctl: u64| ctl == TIMER_ENABLE | TIMER_ISTATUS;
    (if output(timers.cntv_ctl) { VIRTUAL_TIMER } else { 0 })
        | if output(timers.cntp_ctl) { PHYSICAL_TIMER } else { 0 }
}

impl<P: Platform> Monitor<P> {
    /// REC_ENTER. A refusal leaves the REC as it was.
    pub(crate) fn rec_enter(&self, rec_pa: Pa, run_pa: Pa) -> Result<Reply, Refusal> {
        self.check_host(run_pa)?;
        let granule = self.lock(rec_pa, GranuleState::Rec)?;
        let claim = granule.claim().ok_or(Refusal::REC)?;
        let mut bytes = [0; HALF];
        self.platform.read_ns(run_pa, &mut bytes).map_err(|_| Refusal::INPUT)?;
        let mut rec = self.load_rec(claim.pa());
        let regime = self.start_running(&rec)?;
        let outcome = self.run_claimed(claim.pa(), &mut rec, regime, &bytes);
        self.stop_running(&rec);
        let report = outcome?;
        self.store_rec(claim.pa(), &rec);
        // The host may have delegated its page in the meantime.
        self.platform.write_ns(run_pa.offset(HALF as u64), &report).map_err(|_| Refusal::INPUT)?;
        Ok(Reply::SUCCESS)
    }

    /// Checks the host's half of the run page, runs the REC, and makes the monitor's half.
    fn run_claimed(
        &self,
        rec_pa: Pa,
        rec: &mut Rec,
        regime: Stage2Regime,
        bytes: &[u8; HALF],
    ) -> Result<[u8; HALF], Refusal> {
        let has_gic = self.rmi2().is_none();
        let enter = EnterRecord::parse(bytes, has_gic).ok_or(Refusal::INPUT)?;
        self.prepare(rec, &enter)?;
        let exit = match self.complete_host_call(rec, &enter.gprs) {
            Some(exit) => exit,
            None => {
                rec.last_exit = Default::default();
                self.run_until_exit(rec_pa, rec, regime, enter.traps())
            }
        };
        rec.timers_reported = update_timers(&mut rec.context.timers, self.platform.counter());
        let list_registers = gic::list_registers(&self.features).min(MAX_LRS);
        if !has_gic {
            rec.context.gic.ich_hcr &= !gic::HCR_ENABLE;
            self.platform.set_host_cpu_interface(&rec.context.gic);
        }
        Ok(exit.encode(&rec.context, has_gic.then_some(list_registers)))
    }

    /// Checks that the realm runs, and counts the REC as running; the translation regime.
    fn start_running(&self, rec: &Rec) -> Result<Stage2Regime, Refusal> {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let mut rd = self.load_rd(&granule);
        // Later drafts do not say which state it is.
        let told = self.rmi2().is_none_or(|rmi2| rmi2.draft == Draft::V0_9);
        match rd.state() {
            RealmState::Active => {
                rd.running += 1;
                self.store_rd(&granule, &rd);
                Ok(rd.stage2().regime(&self.features))
            }
            RealmState::SystemOff if told => Err(Refusal { index: 1, ..Refusal::REALM }),
            _ => Err(Refusal::REALM),
        }
    }

    fn stop_running(&self, rec: &Rec) {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let mut rd = self.load_rd(&granule);
        rd.running -= 1;
        self.store_rd(&granule, &rd);
    }

    /// Checks the state of the REC and the host's half of the run page, then completes the last
    /// exit with it.
    fn prepare(&self, rec: &mut Rec, enter: &EnterRecord) -> Result<(), Refusal> {
        let inject_sea = enter.has(enter_flags::INJECT_SEA);
        let emulated = enter.has(enter_flags::EMUL_MMIO);
        let interface = self.rmi2().map(|_| self.platform.host_cpu_interface());
        let (flags, valid_gic) = match &interface {
            None => (enter_flags::ALL, enter.gic.is_valid(&self.features)),
            Some(state) => {
                (enter_flags::ALL_V2, HostGic::is_valid_in_hardware(state, &self.features))
            }
        };
        if rec.runnable == 0
            || rec.psci_pending != 0
            || enter.flags & !flags != 0
            || !valid_gic
            || (inject_sea && rec.last_exit.unprotected_abort == 0)
        {
            return Err(Refusal::REC);
        }
        // The conditions for INJECT_SEA include those for EMUL_MMIO, and it wins.
        if emulated && !inject_sea && rec.last_exit.emulatable == 0 {
            return Err(Refusal::REC);
        }
        match interface {
            None => enter.gic.apply(&mut rec.context.gic, &self.features),
            Some(state) => rec.context.gic = state,
        }
        if inject_sea {
            inject::external_abort(&mut rec.context, rec.last_exit.esr, rec.last_exit.far);
        } else if emulated {
            complete_access(&mut rec.context, rec.last_exit.esr, enter.gprs[0]);
        }
        if rec.last_exit.sysreg_read != 0 {
            let register = sysreg_transfer_register(rec.last_exit.esr);
            set_gpr(&mut rec.context, register, enter.gprs[0]);
        }
        self.complete_ripas_change(rec, enter.has(enter_flags::RIPAS_RESPONSE));
        Ok(())
    }

    /// Runs the REC until the host must know.
    fn run_until_exit(
        &self,
        rec_pa: Pa,
        rec: &mut Rec,
        regime: Stage2Regime,
        mut traps: Traps,
    ) -> ExitRecord {
        loop {
            // The host learns of each change of a timer's output, also of one that the realm
            // caused itself; an output that it knows of must not interrupt again.
            let asserted = update_timers(&mut rec.context.timers, self.platform.counter());
            if asserted != rec.timers_reported {
                return ExitRecord::new(exit_reason::IRQ);
            }
            traps.mask_cntv = asserted & VIRTUAL_TIMER != 0;
            traps.mask_cntp = asserted & PHYSICAL_TIMER != 0;
            let raw = self.platform.run(rec_pa, &mut rec.context, regime, traps);
            if let Some(exit) = self.handle_exit(rec, raw) {
                return exit;
            }
        }
    }
}

/// Register number of a trapped system register access.
pub(crate) fn sysreg_transfer_register(esr: u64) -> usize {
    (esr >> 5 & 0x1f) as usize
}

/// Writes a general-purpose register; number 31 is the zero register.
pub(crate) fn set_gpr(context: &mut RecContext, register: usize, value: u64) {
    if let Some(gpr) = context.gprs.get_mut(register) {
        *gpr = value;
    }
}

/// Reads a general-purpose register; number 31 is the zero register.
pub(crate) fn gpr(context: &RecContext, register: usize) -> u64 {
    context.gprs.get(register).copied().unwrap_or(0)
}

/// Completes an access that the host emulated: the loaded value, cut and extended as the
/// instruction says, and the next instruction.
fn complete_access(context: &mut RecContext, syndrome: u64, value: u64) {
    if syndrome & esr::ABORT_WNR == 0 {
        let mask = esr::access_mask(syndrome);
        let mut loaded = value & mask;
        let sign = mask ^ mask >> 1;
        if syndrome & esr::ABORT_SSE != 0 && loaded & sign != 0 {
            loaded |= !mask;
            if syndrome & esr::ABORT_SF == 0 {
                loaded &= 0xffff_ffff;
            }
        }
        set_gpr(context, esr::transfer_register(syndrome), loaded);
    }
    context.pc = context.pc.wrapping_add(4);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(sas: u64, sse: bool, sf: bool, value: u64) -> u64 {
        let mut context = RecContext::default();
        let mut syndrome = sas << esr::ABORT_SAS_SHIFT | 3 << esr::ABORT_SRT_SHIFT;
        syndrome |= if sse { esr::ABORT_SSE } else { 0 };
        syndrome |= if sf { esr::ABORT_SF } else { 0 };
        complete_access(&mut context, syndrome, value);
        assert_eq!(context.pc, 4);
        context.gprs[3]
    }

    #[test]
    fn loads_are_cut_and_extended() {
        assert_eq!(load(0, false, false, 0xffff_ff80), 0x80);
        assert_eq!(load(0, true, false, 0x80), 0xffff_ff80);
        assert_eq!(load(0, true, true, 0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(load(1, true, true, 0x7fff), 0x7fff);
        assert_eq!(load(2, true, true, 0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(load(3, false, true, u64::MAX), u64::MAX);
    }

    #[test]
    fn timer_outputs_follow_the_counter() {
        let mut timers = TimerState { cntv_ctl: 1, cntv_cval: 100, cntp_ctl: 3, cntp_cval: 0 };
        assert_eq!(update_timers(&mut timers, 99), 0);
        assert_eq!(timers.cntv_ctl, 1);
        assert_eq!(timers.cntp_ctl, 0b111, "masked, but the condition is met");
        assert_eq!(update_timers(&mut timers, 100), VIRTUAL_TIMER);
        assert_eq!(timers.cntv_ctl, 0b101);
        timers.cntv_ctl = 0;
        assert_eq!(update_timers(&mut timers, 100), 0);
    }
}
