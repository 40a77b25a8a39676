//! A vCPU of a normal VM: its registers are ours, and we enter it by `eret`.

use crate::arch::cpu;
use crate::arch::el1::{self, El1State, Injection, PSTATE_RESET};
use crate::arch::esr::{self, Esr, SysRegAccess, WaitEnd, class};
use crate::arch::fp::FpState;
use crate::arch::guest::{self, GuestContext, Trap};
use crate::arch::id_regs;
use crate::arch::mitigation;
use crate::arch::sysreg::read_sysreg;
use crate::arch::vgic_hw::{self, VirtualInterface};
use crate::vm::{Space, Vm};
use mm::Ipa;
use mm::stage2::{Access as FaultAccess, FaultOutcome};
use vmm_services::exit::{
    Access, Exit, FatalCause, MmioAccess, Registers, Resume, SysReg, WaitKind, Width,
};
use vmm_services::layout;
use vmm_services::vgic::LrImage;

/// Registers and interrupt state of one normal vCPU.
pub struct NormalVcpu {
    context: GuestContext,
    el1: El1State,
    fp: FpState,
    interface: VirtualInterface,
    /// List registers as of the last flush or sync.
    pub image: LrImage,
    /// How many hardware list registers hold something of this vCPU.
    written: usize,
    /// Whether the guest has the list registers of `image`, and may have changed them.
    lent: bool,
    trapped: Trapped,
    set_way: SetWay,
}

/// How far a pass of cache operations by set and way has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetWay {
    /// None is under way.
    Idle,
    /// Its first operation has flushed the VM's RAM up to `next`.
    Flushing { next: Ipa },
    /// RAM is flushed; `first` is the operation (encoding and operand) that began the pass.
    Done { first: (u32, u64) },
}

/// The last synchronous exception. It tells how the instruction is completed when the answer is there.
#[derive(Clone, Copy, Debug, Default)]
struct Trapped {
    esr: Esr,
    /// `FAR_EL2`; of an abort only.
    far: u64,
}

impl Trapped {
    /// Bytes from the program counter to the next instruction: none for HVC, whose return address that is.
    fn advance(self) -> u64 {
        if self.esr.class() == class::HVC64 { 0 } else { self.esr.instruction_bytes() }
    }

    /// Register and its new contents after a load, or a read of a system register, of `value`, in the
    /// processor state `pstate`.
    fn loaded(self, value: u64, pstate: u64) -> Option<(u8, u64)> {
        match self.esr.class() {
            class::DATA_ABORT if !self.esr.is_write() => {
                let value = byte_order(value, self.esr.access_width(), pstate);
                Some((self.esr.access_register(), self.esr.extend(value)))
            }
            class::SYSREG => {
                let access = SysRegAccess::from_iss(self.esr.iss());
                access.read.then_some((access.register, value))
            }
            _ => None,
        }
    }

    /// What the guest takes when the access is answered by an external abort.
    fn external_abort(self) -> Injection {
        match self.esr.class() {
            class::DATA_ABORT => Injection::DataAbort { far: self.far },
            class::INSTRUCTION_ABORT => Injection::InstructionAbort { far: self.far },
            _ => Injection::Undefined,
        }
    }
}

impl NormalVcpu {
    /// A vCPU at power-on, that starts at `pc` with `x0`.
    #[must_use]
    pub fn new(mpidr: u64, counter_offset: u64, pc: u64, x0: u64) -> Self {
        // MPIDR_EL1 bit 31 is RES1.
        let el1 = El1State::at_reset(mpidr | 1 << 31, counter_offset);
        Self {
            context: context_at_reset(pc, x0),
            el1,
            fp: FpState::RESET,
            interface: VirtualInterface::default(),
            image: LrImage::EMPTY,
            written: 0,
            lent: false,
            trapped: Trapped::default(),
            set_way: SetWay::Idle,
        }
    }

    /// Puts this vCPU into the registers of this core.
    pub fn load(&mut self) {
        self.el1.restore();
        self.interface.restore();
        self.written = 0;
        self.lent = false;
    }

    /// Takes this vCPU out of the registers of this core.
    pub fn unload(&mut self) {
        self.interface.save();
        self.el1.save();
        self.fp.unload();
    }

    /// Makes this vCPU, which is loaded, start anew at `pc` with `x0`, as from a powerdown state.
    pub fn power_down(&mut self, pc: u64, x0: u64) {
        self.context = context_at_reset(pc, x0);
        self.el1.power_down();
        self.fp.unload();
        self.fp = FpState::RESET;
    }

    /// Enters the guest until its next exit. The vCPU is loaded. The guest keeps the list registers
    /// beyond the exit, until [`Self::store`].
    pub fn enter(&mut self) -> Trap {
        if !self.lent {
            self.written = vgic_hw::load(&self.image, self.written);
            self.lent = true;
        }
        loop {
            let trap = guest::enter(&mut self.context);
            if trap != Trap::Sync || Esr(read_sysreg!("esr_el2")).class() != class::FP {
                break trap;
            }
            // The first use of FP registers since the vCPU was loaded.
            self.fp.activate();
        }
    }

    /// Reads back what the guest did with its list registers.
    pub fn store(&mut self) {
        vgic_hw::store(&mut self.image);
        self.lent = false;
    }

    /// Ticks between the physical and the guest's virtual counter.
    #[must_use]
    pub fn counter_offset(&self) -> u64 {
        self.el1.counter_offset()
    }

    /// Converts a value of the guest's virtual counter to one of the physical counter.
    #[must_use]
    pub fn physical_count(&self, virtual_count: u64) -> u64 {
        virtual_count.saturating_add(self.el1.counter_offset())
    }

    /// Decodes a synchronous exception, and deals with it if it concerns only this vCPU's registers or
    /// an entry of stage-2: then it can enter its guest again, and `None` is returned.
    pub fn decode(&mut self, vm: &Vm) -> Option<Exit> {
        let esr = Esr(read_sysreg!("esr_el2"));
        self.trapped.esr = esr;
        if esr.class() != class::SYSREG {
            self.set_way = SetWay::Idle;
        }
        match esr.class() {
            class::WFX => Some(self.wait(WaitEnd::from_iss(esr.iss()))),
            class::SMC64 if esr.iss() as u16 != 0 => self.unknown_call(),
            class::HVC64 | class::SMC64 => self.call(esr.iss() as u16),
            class::SYSREG => self.system_register(esr.iss(), vm),
            class::DATA_ABORT | class::INSTRUCTION_ABORT => self.abort(esr, vm),
            _ => self.other_class(esr),
        }
    }

    #[cold]
    fn other_class(&mut self, esr: Esr) -> Option<Exit> {
        match esr.class() {
            // Extensions that are not offered.
            class::SVE
            | class::SME
            | class::PAUTH
            | class::LS64
            | class::SYSREG128
            | class::TME => self.undefined(),
            _ => Some(Exit::Fatal(FatalCause::UnknownException { esr: esr.0 })),
        }
    }

    fn wait(&self, end: WaitEnd) -> Exit {
        let (kind, deadline) = match end {
            WaitEnd::Interrupt => (WaitKind::Interrupt, None),
            WaitEnd::InterruptOrTime(register) => {
                (WaitKind::Interrupt, Some(self.context.reg(register)))
            }
            WaitEnd::Event => (WaitKind::Event, None),
        };
        Exit::Wait { kind, deadline }
    }

    fn call(&mut self, immediate: u16) -> Option<Exit> {
        if immediate != 0 {
            return Some(Exit::HostCall { imm: immediate });
        }
        // What concerns the core itself is done here and now, before the vCPU may move.
        if let Some(result) = mitigation::call(self.context.x[0] as u32, self.context.x[1] as u32) {
            self.context.set_reg(0, result.cast_unsigned());
            self.context.pc = self.context.pc.wrapping_add(self.trapped.advance());
            return None;
        }
        Some(Exit::Smccc { function: self.context.x[0] as u32 })
    }

    /// Host calls are by HVC only.
    #[cold]
    fn unknown_call(&mut self) -> Option<Exit> {
        const NOT_SUPPORTED: u64 = u64::MAX;
        self.context.set_reg(0, NOT_SUPPORTED);
        self.context.pc = self.context.pc.wrapping_add(self.trapped.advance());
        None
    }

    /// Registers of the call that the last exit was.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.context.x
    }

    fn undefined(&mut self) -> Option<Exit> {
        el1::inject(&mut self.context, Injection::Undefined);
        None
    }

    /// Answers the registers whose value is ours alone; the interrupt controller's go to services.
    fn system_register(&mut self, iss: u32, vm: &Vm) -> Option<Exit> {
        const ACTLR_EL1: u32 = esr::encoding(3, 0, 1, 0, 1);
        let access = SysRegAccess::from_iss(iss);
        if esr::is_set_way(access.encoding) {
            return self.set_way((access.encoding, self.context.reg(access.register)), vm);
        }
        let value = match access.encoding {
            ACTLR_EL1 => Some(0),
            register if esr::is_debug_register(register) => Some(0),
            register => id_regs::read(register),
        };
        if let Some(value) = value {
            if access.read {
                self.context.set_reg(access.register, value);
            }
            self.context.pc = self.context.pc.wrapping_add(self.trapped.advance());
            return None;
        }
        let direction = if access.read {
            Access::Read
        } else {
            Access::Write(self.context.reg(access.register))
        };
        Some(Exit::SysReg { reg: SysReg::from_iss(iss), access: direction })
    }

    /// Answers a cache operation by set and way. It would reach the caches of one core, while the
    /// vCPU may have left data in those of others. What guests mean by a pass over all sets and ways
    /// is that the caches hold nothing of theirs any more: the first operation of a pass does that by
    /// address, the others do nothing. A pass begins after any other trap, and where it is the first
    /// operation once more.
    fn set_way(&mut self, operation: (u32, u64), vm: &Vm) -> Option<Exit> {
        let from = match self.set_way {
            SetWay::Idle => Some(layout::RAM),
            SetWay::Done { first } if first == operation => Some(layout::RAM),
            SetWay::Flushing { next } => Some(next),
            SetWay::Done { .. } => None,
        };
        if let Some(from) = from {
            if let Space::Normal(memory) = &*vm.space.lock()
                && let Some(next) = memory.flush_caches(from)
            {
                // The instruction traps again, after pending interrupts have been taken.
                self.set_way = SetWay::Flushing { next };
                return None;
            }
            self.set_way = SetWay::Done { first: operation };
        }
        self.context.pc = self.context.pc.wrapping_add(self.trapped.advance());
        None
    }

    fn abort(&mut self, esr: Esr, vm: &Vm) -> Option<Exit> {
        let far = read_sysreg!("far_el2");
        let fetch = esr.class() == class::INSTRUCTION_ABORT;
        let maintenance = !fetch && esr.is_cache_maintenance();
        // Maintenance that needs to write is told so by a permission fault alone.
        let write = !fetch && esr.is_write() && (!maintenance || esr.is_permission_fault());
        self.trapped.far = far;
        let reported = esr::fault_ipa(read_sysreg!("hpfar_el2"), far);
        if !esr.is_stage2_fault() {
            return Some(other_abort(esr, reported, far, write));
        }
        // If stage 1 does not translate the address, the guest has changed its tables meanwhile: it takes a
        // fault of its own, or none.
        let ipa = faulting_ipa(esr, far, reported)?;
        // Below RAM live device models; what is mapped there stays as it is while the VM runs.
        let outcome = match ipa >= layout::RAM {
            true => mend(vm, ipa, fetch, write),
            false => Ok(FaultOutcome::NotMapped),
        };
        match outcome {
            Ok(FaultOutcome::Retry) => return None,
            Ok(FaultOutcome::NotMapped) if maintenance && !esr.is_stage1_walk() => {
                // What is no memory is in no cache.
                self.context.pc = self.context.pc.wrapping_add(self.trapped.advance());
                return None;
            }
            Ok(_) => {}
            Err(cause) => return Some(Exit::Fatal(cause)),
        }
        if fetch || esr.is_stage1_walk() || !esr.has_access() {
            return Some(Exit::Stage2Fault { ipa, fetch, write });
        }
        let width = esr.access_width();
        let access = if write {
            let value = self.context.reg(esr.access_register());
            Access::Write(byte_order(value, width, self.context.pstate))
        } else {
            Access::Read
        };
        Some(Exit::Mmio(MmioAccess { ipa, width, access }))
    }

    /// Applies an answer to the registers. What concerns more than them (power, waiting, stopping)
    /// is the run loop's; it is completed here only as far as the instruction itself goes.
    pub fn resume(&mut self, resume: &Resume) {
        let trapped = self.trapped;
        match *resume {
            Resume::Read(value) => {
                if let Some((register, value)) = trapped.loaded(value, self.context.pstate) {
                    self.context.set_reg(register, value);
                }
            }
            Resume::Results(values) => self.context.x[..4].copy_from_slice(&values),
            Resume::HostCallDone(value) => self.context.set_reg(0, value),
            // PSCI SUCCESS for the caller.
            Resume::CpuOn { .. } | Resume::Suspend => self.context.set_reg(0, 0),
            Resume::Done | Resume::Block { .. } | Resume::Yield => {}
            Resume::InjectUndefined => {
                el1::inject(&mut self.context, Injection::Undefined);
                return;
            }
            Resume::InjectExternalAbort => {
                el1::inject(&mut self.context, trapped.external_abort());
                return;
            }
            _ => return,
        }
        self.context.pc = self.context.pc.wrapping_add(trapped.advance());
    }

    /// Where the vCPU is, for reports: program counter and processor state.
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        (self.context.pc, self.context.pstate)
    }
}

/// The low bytes of `value`, as many as `width` has, as a device, which is little-endian, sees those of the
/// guest in the processor state `pstate`, or the guest those of a device.
fn byte_order(value: u64, width: Width, pstate: u64) -> u64 {
    if el1::is_big_endian(pstate) {
        value.swap_bytes() >> (64 - 8 * width.bytes() as u32)
    } else {
        value & width.mask()
    }
}

/// IPA of a stage-2 fault at virtual address `far`, for which `HPFAR_EL2` tells `reported`. `None` if stage 1
/// does not translate the address.
fn faulting_ipa(esr: Esr, far: u64, reported: Ipa) -> Option<Ipa> {
    // A permission fault leaves HPFAR_EL2 UNKNOWN but for one on the walk of stage 1.
    let is_reported = !esr.is_permission_fault() && !cpu::has_erratum_834220();
    if esr.is_stage1_walk() || is_reported { Some(reported) } else { el1::translate(far) }
}

/// Settles a stage-2 fault in RAM, if it is one; otherwise says why not.
#[inline(never)]
fn mend(vm: &Vm, ipa: Ipa, fetch: bool, write: bool) -> Result<FaultOutcome, FatalCause> {
    let wanted = match (fetch, write) {
        (true, _) => FaultAccess::Execute,
        (false, true) => FaultAccess::Write,
        (false, false) => FaultAccess::Read,
    };
    let Space::Normal(memory) = &mut *vm.space.lock() else { return Ok(FaultOutcome::NotMapped) };
    memory
        .resolve_fault(&vm.vmid, ipa, wanted)
        .map_err(|_| FatalCause::OutOfMemory { ipa: ipa.get() })
}

/// An abort that is no stage-2 fault.
#[cold]
fn other_abort(esr: Esr, ipa: Ipa, far: u64, write: bool) -> Exit {
    if esr.is_granule_protection_fault() {
        // HPFAR_EL2 need not be valid for this fault.
        let ipa = el1::translate(far).unwrap_or(ipa);
        return Exit::Fatal(FatalCause::GranuleProtection { ipa: ipa.get() });
    }
    if esr.is_memory_type_fault() {
        let ipa = el1::translate(far).unwrap_or(ipa);
        let fetch = esr.class() == class::INSTRUCTION_ABORT;
        return Exit::Stage2Fault { ipa, fetch, write };
    }
    Exit::Fatal(FatalCause::ExternalAbort { esr: esr.0, ipa: 0 })
}

fn context_at_reset(pc: u64, x0: u64) -> GuestContext {
    let mut context = GuestContext { pc, pstate: PSTATE_RESET, ..GuestContext::default() };
    context.set_reg(0, x0);
    context
}
