//! The simulated CPU as a realm guest sees it: each method is one instruction, or a few.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::abi::{psci_fid, rsi_fid};
use crate::addr::Ipa;
use crate::context::RecContext;
use crate::esr;
use crate::exit::hpfar_of;
use crate::host::guest::{Exit, Run};
use crate::host::machine::Shared;
use crate::host::translation::{Access, FaultStatus, GRANULE_PROTECTION, Page};
use crate::platform::{RawExit, SysRegIss};
use crate::run::sysreg_transfer_register;

/// Register that the simulated loads and stores use.
const TRANSFER: usize = 3;
/// Where the guest has its vectors; no code is ever there.
const VECTORS: u64 = 0xffff_ffff_ffff_0000;
/// Offset of the synchronous vector for exceptions from EL1.
const VECTOR_SYNC: u64 = 0x200;

/// Why an instruction did not complete. Pass it on with `?` unless the test expects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The realm took an abort: its ESR_EL1.
    Abort {
        /// ESR_EL1.
        esr: u64,
    },
    /// The instruction is UNDEFINED for the realm.
    Undefined,
    /// The REC was switched off and is on again: the program starts over.
    Reset,
    /// The REC is gone.
    Gone,
}

/// A REC's CPU.
#[derive(Debug)]
pub struct Cpu {
    shared: Arc<Shared>,
    runs: Receiver<Run>,
    exits: Sender<Exit>,
    run: Run,
    entry: (u64, u64),
}

/// How an instruction ended that went through the monitor.
enum Resumed {
    /// It is to be executed again.
    Again,
    /// It is complete.
    Done,
}

impl Cpu {
    pub(crate) fn new(
        shared: Arc<Shared>,
        runs: Receiver<Run>,
        exits: Sender<Exit>,
        run: Run,
    ) -> Self {
        let entry = (run.context.pc, run.context.gprs[0]);
        let mut cpu = Self { shared, runs, exits, run, entry };
        cpu.context().el1.vbar_el1 = VECTORS;
        cpu
    }

    /// The registers.
    pub fn context(&mut self) -> &mut RecContext {
        &mut self.run.context
    }

    /// Number of the REC in its realm, from its MPIDR.
    pub fn index(&self) -> u64 {
        crate::rec::index_of_mpidr(self.run.context.el1.vmpidr_el2)
    }

    /// VMID of the realm.
    pub fn vmid(&self) -> u64 {
        self.run.regime.vttbr >> 48
    }

    /// Entry point and x0 with which the REC was started.
    pub fn entry(&self) -> (u64, u64) {
        self.entry
    }

    /// The system counter.
    pub fn counter(&self) -> u64 {
        self.shared.counter()
    }

    /// Leaves to the monitor and comes back when the REC runs again.
    ///
    /// # Errors
    /// The REC is gone.
    fn leave(&mut self, raw: RawExit) -> Result<(), Stop> {
        let exit = Exit { context: self.run.context, raw };
        self.exits.send(exit).map_err(|_| Stop::Gone)?;
        self.run = self.runs.recv().map_err(|_| Stop::Gone)?;
        Ok(())
    }

    /// Traps from the instruction at the PC, and finds out how it ended.
    fn trap(&mut self, raw: RawExit) -> Result<Resumed, Stop> {
        let pc = self.run.context.pc;
        self.leave(raw)?;
        let context = &mut self.run.context;
        if context.pc == pc {
            return Ok(Resumed::Again);
        }
        if context.pc == pc.wrapping_add(4) {
            return Ok(Resumed::Done);
        }
        if context.pc == VECTORS + VECTOR_SYNC && context.el1.elr_el1 == pc {
            // The handler skips the instruction and lets the program decide.
            context.pc = pc.wrapping_add(4);
            context.pstate = context.el1.spsr_el1;
            let esr = context.el1.esr_el1;
            let undefined = esr::class(esr) == 0;
            return Err(if undefined { Stop::Undefined } else { Stop::Abort { esr } });
        }
        self.entry = (context.pc, context.gprs[0]);
        context.el1.vbar_el1 = VECTORS;
        Err(Stop::Reset)
    }

    /// Takes physical interrupts that are pending before an instruction.
    fn check_interrupts(&mut self) -> Result<(), Stop> {
        let output = |ctl: u64, cval: u64, now: u64| ctl & 0b11 == 1 && now >= cval;
        let now = self.counter();
        let timers = self.run.context.timers;
        let fires = output(timers.cntv_ctl, timers.cntv_cval, now) && !self.run.traps.mask_cntv
            || output(timers.cntp_ctl, timers.cntp_cval, now) && !self.run.traps.mask_cntp;
        if fires || self.shared.take_interrupt() {
            self.interrupted()?;
        }
        Ok(())
    }

    /// Exits as for a physical interrupt.
    ///
    /// # Errors
    /// The REC is gone.
    pub fn interrupted(&mut self) -> Result<(), Stop> {
        match self.trap(RawExit::Irq) {
            Ok(_) => Ok(()),
            Err(stop) => Err(stop),
        }
    }

    /// Exits with an event that the simulated machine does not have itself: FIQ, SError, or an
    /// exception class without a method here. Returns when the REC runs again.
    ///
    /// # Errors
    /// The monitor injected an exception, or the REC is gone.
    pub fn event(&mut self, raw: RawExit) -> Result<(), Stop> {
        self.trap(raw).map(|_| ())
    }

    /// Runs without doing anything until the REC is reset or gone.
    pub(crate) fn spin(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.interrupted() {
                return stop;
            }
        }
    }

    fn translate(&self, ipa: Ipa, access: Access) -> Result<Page, FaultStatus> {
        let shared = &self.shared;
        let page = shared.cache.translate(&shared.memory, self.run.regime, ipa, access)?;
        // The granule protection check is made on the physical address.
        match shared.memory.space(page.pa) {
            Ok(space) if space == page.space => Ok(page),
            _ => Err(GRANULE_PROTECTION),
        }
    }

    /// Accesses `size` bytes at `ipa`; `syndrome` adds to the ESR of an abort.
    fn access(
        &mut self,
        ipa: Ipa,
        access: Access,
        syndrome: u64,
        transfer: impl Fn(&Shared, &mut RecContext, Page, u64),
    ) -> Result<(), Stop> {
        let class = match access {
            Access::Execute => esr::EC_INSTRUCTION_ABORT,
            Access::Read | Access::Write => esr::EC_DATA_ABORT,
        };
        let wnr = if access == Access::Write { esr::ABORT_WNR } else { 0 };
        loop {
            self.check_interrupts()?;
            match self.translate(ipa, access) {
                Ok(page) => {
                    transfer(&self.shared, &mut self.run.context, page, ipa.0 & 0xfff);
                    self.run.context.pc = self.run.context.pc.wrapping_add(4);
                    return Ok(());
                }
                Err(FaultStatus(status)) => {
                    let esr = class << esr::EC_SHIFT | esr::IL | syndrome | wnr | status;
                    let hpfar = hpfar_of(ipa);
                    match self.trap(RawExit::Sync { esr, far: ipa.0, hpfar })? {
                        Resumed::Again => {}
                        Resumed::Done => return Ok(()),
                    }
                }
            }
        }
    }

    /// Syndrome of a single load or store of `size` bytes that can be emulated.
    fn syndrome(size: usize) -> u64 {
        let sas = u64::from(size.trailing_zeros()) << esr::ABORT_SAS_SHIFT;
        let sf = if size == 8 { esr::ABORT_SF } else { 0 };
        esr::ABORT_ISV | sas | sf | (TRANSFER as u64) << esr::ABORT_SRT_SHIFT
    }

    /// Loads `size` bytes (1, 2, 4 or 8), naturally aligned, zero extended.
    ///
    /// # Errors
    /// As the abort or reset that ended it.
    pub fn load(&mut self, ipa: Ipa, size: usize) -> Result<u64, Stop> {
        self.access(ipa, Access::Read, Self::syndrome(size), |shared, context, page, offset| {
            let mut bytes = [0; 8];
            let read = shared.memory.read(page.pa.offset(offset), page.space, &mut bytes[..size]);
            context.gprs[TRANSFER] = if read.is_ok() { u64::from_le_bytes(bytes) } else { 0 };
        })?;
        Ok(self.run.context.gprs[TRANSFER])
    }

    /// Stores the low `size` bytes (1, 2, 4 or 8) of `value`, naturally aligned.
    ///
    /// # Errors
    /// As the abort or reset that ended it.
    pub fn store(&mut self, ipa: Ipa, size: usize, value: u64) -> Result<(), Stop> {
        self.run.context.gprs[TRANSFER] = value;
        self.access(ipa, Access::Write, Self::syndrome(size), |shared, _, page, offset| {
            // A granule that changed its space a moment ago swallows the store.
            let bytes = value.to_le_bytes();
            let _ = shared.memory.write(page.pa.offset(offset), page.space, &bytes[..size]);
        })
    }

    /// Touches `ipa` by a load whose abort cannot be emulated (no valid syndrome).
    ///
    /// # Errors
    /// As the abort or reset that ended it.
    pub fn touch(&mut self, ipa: Ipa) -> Result<(), Stop> {
        self.access(ipa, Access::Read, 0, |_, _, _, _| {})
    }

    /// Fetches an instruction from `ipa`.
    ///
    /// # Errors
    /// As the abort or reset that ended it.
    pub fn fetch(&mut self, ipa: Ipa) -> Result<(), Stop> {
        self.access(ipa, Access::Execute, 0, |_, _, _, _| {})
    }

    /// SMC with x0 to x4; the results are all registers.
    ///
    /// # Errors
    /// As the reset that ended it.
    pub fn smc(&mut self, function: u64, args: [u64; 4]) -> Result<[u64; 31], Stop> {
        self.run.context.gprs[0] = function;
        self.run.context.gprs[1..5].copy_from_slice(&args);
        loop {
            self.check_interrupts()?;
            let esr = esr::EC_SMC << esr::EC_SHIFT | esr::IL;
            match self.trap(RawExit::Sync { esr, far: 0, hpfar: 0 })? {
                Resumed::Again => {}
                Resumed::Done => return Ok(self.run.context.gprs),
            }
        }
    }

    /// HVC; always [`Stop::Undefined`] in a realm.
    ///
    /// # Errors
    /// The exception that it caused.
    pub fn hvc(&mut self) -> Result<(), Stop> {
        self.check_interrupts()?;
        let pc = self.run.context.pc;
        // The exception is taken behind the instruction; what comes back starts at it.
        self.run.context.pc = pc.wrapping_add(4);
        let esr = esr::EC_HVC << esr::EC_SHIFT | esr::IL;
        self.leave(RawExit::Sync { esr, far: 0, hpfar: 0 })?;
        let context = &mut self.run.context;
        if context.pc == VECTORS + VECTOR_SYNC && context.el1.elr_el1 == pc {
            context.pc = pc.wrapping_add(4);
            context.pstate = context.el1.spsr_el1;
            return Err(Stop::Undefined);
        }
        Ok(())
    }

    /// WFI: exits if it traps, else waits as long as it takes the next physical interrupt to
    /// come, which here is at once.
    ///
    /// # Errors
    /// The REC is gone or reset.
    pub fn wfi(&mut self) -> Result<(), Stop> {
        let trapped = self.run.traps.wfi;
        self.wait(trapped, 0)
    }

    /// WFE, like [`Cpu::wfi`].
    ///
    /// # Errors
    /// The REC is gone or reset.
    pub fn wfe(&mut self) -> Result<(), Stop> {
        let trapped = self.run.traps.wfe;
        self.wait(trapped, 1)
    }

    fn wait(&mut self, trapped: bool, instruction: u64) -> Result<(), Stop> {
        self.check_interrupts()?;
        if !trapped {
            return self.interrupted();
        }
        let esr = esr::EC_WFX << esr::EC_SHIFT | esr::IL | instruction;
        self.trap(RawExit::Sync { esr, far: 0, hpfar: 0 }).map(|_| ())
    }

    /// Writes a system register that traps.
    ///
    /// # Errors
    /// The register is UNDEFINED for realms, or the REC is gone or reset.
    pub fn write_sysreg(&mut self, register: SysRegIss, value: u64) -> Result<(), Stop> {
        self.run.context.gprs[TRANSFER] = value;
        self.sysreg(register.0)
    }

    /// Reads a system register that traps.
    ///
    /// # Errors
    /// The register is UNDEFINED for realms, or the REC is gone or reset.
    pub fn read_sysreg(&mut self, register: SysRegIss) -> Result<u64, Stop> {
        self.sysreg(register.0 | crate::sysreg::READ)?;
        Ok(self.run.context.gprs[TRANSFER])
    }

    fn sysreg(&mut self, iss: u64) -> Result<(), Stop> {
        self.check_interrupts()?;
        let esr = esr::EC_SYSREG << esr::EC_SHIFT | esr::IL | iss | (TRANSFER as u64) << 5;
        debug_assert_eq!(sysreg_transfer_register(esr), TRANSFER);
        self.trap(RawExit::Sync { esr, far: 0, hpfar: 0 }).map(|_| ())
    }

    /// Acknowledges the pending virtual interrupt of the lowest list register, which becomes
    /// active; none if none is pending. (Priorities and groups are not simulated.)
    pub fn acknowledge(&mut self) -> Option<u32> {
        const PENDING: u64 = 1 << 62;
        const ACTIVE: u64 = 1 << 63;
        let lrs = &mut self.run.context.gic.ich_lr;
        let lr = lrs.iter_mut().find(|lr| **lr & (PENDING | ACTIVE) == PENDING)?;
        *lr ^= PENDING | ACTIVE;
        Some((*lr & 0xffff_ffff) as u32)
    }

    /// Ends the active virtual interrupt `intid`; false if there is none.
    pub fn end_of_interrupt(&mut self, intid: u32) -> bool {
        const ACTIVE: u64 = 1 << 63;
        let lrs = &mut self.run.context.gic.ich_lr;
        let active = |lr: &&mut u64| **lr & ACTIVE != 0 && (**lr & 0xffff_ffff) as u32 == intid;
        lrs.iter_mut().find(active).map(|lr| *lr &= !ACTIVE).is_some()
    }

    /// RSI_HOST_CALL with the structure at `ipa`, which this fills and reads back.
    ///
    /// # Errors
    /// An abort on the structure's page, or as [`Cpu::smc`].
    pub fn host_call(
        &mut self,
        ipa: Ipa,
        imm: u16,
        gprs: [u64; 31],
    ) -> Result<(u64, [u64; 31]), Stop> {
        self.store(ipa, 2, imm.into())?;
        for (number, value) in gprs.into_iter().enumerate() {
            self.store(ipa.offset(8 + 8 * number as u64), 8, value)?;
        }
        let status = self.smc(rsi_fid::HOST_CALL, [ipa.0, 0, 0, 0])?[0];
        let mut results = [0; 31];
        for (number, result) in results.iter_mut().enumerate() {
            *result = self.load(ipa.offset(8 + 8 * number as u64), 8)?;
        }
        Ok((status, results))
    }

    /// RSI_IPA_STATE_SET until all of `base` to `top` has changed; false if the host rejected it or
    /// the monitor refused the request.
    ///
    /// # Errors
    /// As [`Cpu::smc`].
    pub fn set_ripas(&mut self, base: Ipa, top: Ipa, ripas: u64, flags: u64) -> Result<bool, Stop> {
        let mut next = base.0;
        while next < top.0 {
            let [status, done, response, ..] =
                self.smc(rsi_fid::IPA_STATE_SET, [next, top.0, ripas, flags])?;
            if status != 0 || response != 0 || done <= next {
                return Ok(false);
            }
            next = done;
        }
        Ok(true)
    }

    /// PSCI_SYSTEM_OFF; does not return unless the host enters the REC again.
    ///
    /// # Errors
    /// The REC is gone.
    pub fn system_off(&mut self) -> Result<(), Stop> {
        self.smc(psci_fid::SYSTEM_OFF, [0; 4]).map(|_| ())
    }
}
