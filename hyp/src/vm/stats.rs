//! What a VM cost: exits by cause, and time by where it was spent.

use crate::arch::smc::rmi_calls;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use vmm_services::exit::{Exit, FatalCause};
use vmm_services::{MAX_VCPUS, VcpuId};

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Causes by which exits are counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Cause {
            $($(#[$doc])* $name),*
        }

        impl Cause {
            /// All causes, in the order of their columns.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Heading of the column.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

causes! {
    /// Physical interrupt.
    Interrupt = "irq",
    /// Emulated device access.
    Mmio = "mmio",
    /// SMC calling convention, PSCI included.
    Call = "call",
    /// Host call.
    HostCall = "host",
    /// WFI or WFE.
    Wait = "wait",
    /// Trapped system register.
    SysReg = "sysreg",
    /// Memory fault: mended or not.
    Fault = "fault",
    /// RIPAS change of a realm.
    Ripas = "ripas",
    /// Anything else.
    Other = "other",
}

impl Cause {
    /// The cause of `exit`, and what is most telling of it: an address, a function identifier, an
    /// encoding.
    #[inline]
    #[must_use]
    pub fn of(exit: &Exit) -> (Self, u64) {
        match exit {
            Exit::Mmio(access) => (Self::Mmio, access.ipa.get()),
            Exit::Stage2Fault { ipa, .. } => (Self::Fault, ipa.get()),
            Exit::Smccc { function } => (Self::Call, u64::from(*function)),
            Exit::Psci(_) => (Self::Call, 0),
            Exit::HostCall { imm } => (Self::HostCall, u64::from(*imm)),
            Exit::Wait { .. } => (Self::Wait, 0),
            Exit::SysReg { reg, .. } => (Self::SysReg, u64::from(reg.encoding())),
            Exit::RipasChange { base, .. } => (Self::Ripas, base.get()),
            Exit::Interrupt => (Self::Interrupt, 0),
            Exit::Fatal(
                FatalCause::UnknownException { esr } | FatalCause::ExternalAbort { esr, .. },
            ) => (Self::Other, *esr),
            Exit::Fatal(
                FatalCause::GranuleProtection { ipa } | FatalCause::OutOfMemory { ipa },
            ) => (Self::Other, *ipa),
        }
    }
}

/// Parts of a realm's life by which RMI calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// From the first delegation to activation.
    Build,
    /// While its RECs run, REC_ENTER included.
    Run,
    /// Until its last granule is back in the normal world or in the pool for the next realm.
    Teardown,
}

/// What the exits of one vCPU cost. Only the core that runs it writes, so that counting takes no atomic
/// operation.
#[derive(Debug, Default)]
struct VcpuStats {
    exits: [AtomicU64; Cause::ALL.len()],
    guest_ticks: AtomicU64,
}

impl VcpuStats {
    const fn new() -> Self {
        Self {
            exits: [const { AtomicU64::new(0) }; Cause::ALL.len()],
            guest_ticks: AtomicU64::new(0),
        }
    }
}

/// Counters of one VM. Times are in ticks of the system counter.
#[derive(Debug, Default)]
pub struct Stats {
    vcpus: [VcpuStats; MAX_VCPUS],
    /// Time in the hypervisor on behalf of the VM.
    pub host_ticks: AtomicU64,
    /// Time in RMI calls other than REC_ENTER.
    pub rmm_ticks: AtomicU64,
    /// Largest number of granules that the VM had.
    pub granules: AtomicU64,
    rmi_calls: [AtomicU64; 3],
}

impl Stats {
    /// Counters at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            vcpus: [const { VcpuStats::new() }; MAX_VCPUS],
            host_ticks: AtomicU64::new(0),
            rmm_ticks: AtomicU64::new(0),
            granules: AtomicU64::new(0),
            rmi_calls: [const { AtomicU64::new(0) }; 3],
        }
    }

    /// Counts an exit of `vcpu` after `guest_ticks` in its guest. Only for the core that runs it.
    #[inline]
    pub fn count(&self, vcpu: VcpuId, cause: Cause, guest_ticks: u64) {
        let add = |counter: &AtomicU64, by| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        if let Some(stats) = self.vcpus.get(vcpu.index()) {
            add(&stats.guest_ticks, guest_ticks);
            stats.exits.get(cause as usize).into_iter().for_each(|counter| add(counter, 1));
        }
    }

    /// Number of exits by `cause`.
    #[must_use]
    pub fn exits(&self, cause: Cause) -> u64 {
        let of =
            |vcpu: &VcpuStats| vcpu.exits.get(cause as usize).map(|n| n.load(Ordering::Relaxed));
        self.vcpus.iter().filter_map(of).sum()
    }

    /// Time in the guest; for a realm, from REC_ENTER to its return, RMM and EL3 included.
    #[must_use]
    pub fn guest_ticks(&self) -> u64 {
        self.vcpus.iter().map(|vcpu| vcpu.guest_ticks.load(Ordering::Relaxed)).sum()
    }

    /// The part of [`Self::guest_ticks`] that is `vcpu`'s.
    #[must_use]
    pub fn guest_ticks_of(&self, vcpu: VcpuId) -> u64 {
        self.vcpus.get(vcpu.index()).map_or(0, |vcpu| vcpu.guest_ticks.load(Ordering::Relaxed))
    }

    /// Counts the RMI calls that this core has made since [`rmi_calls`] was `before`.
    pub fn count_rmi_calls(&self, life: Life, before: u64) {
        if let Some(counter) = self.rmi_calls.get(life as usize) {
            counter.fetch_add(rmi_calls() - before, Ordering::Relaxed);
        }
    }

    /// Number of RMI calls for the VM.
    #[must_use]
    pub fn rmi_calls(&self, life: Life) -> u64 {
        self.rmi_calls.get(life as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Remembers the largest number of granules seen.
    pub fn note_granules(&self, granules: u64) {
        self.granules.fetch_max(granules, Ordering::Relaxed);
    }
}

/// Ticks, displayed as milliseconds with three decimals.
#[derive(Clone, Copy, Debug)]
pub struct Milliseconds(pub u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = crate::arch::timer::ticks_to_ns(self.0) / 1000;
        // Twelve columns for 99 days is enough.
        let mut text = arrayvec::ArrayString::<24>::new();
        fmt::write(&mut text, format_args!("{}.{:03}", micros / 1000, micros % 1000))?;
        f.pad(&text)
    }
}
