//! The simulated machine.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::vec::Vec;

use crate::addr::{GRANULE_BYTES, GRANULE_SIZE, Ipa, Pa};
use crate::context::{GicState, RecContext};
use crate::granule::{GranuleSlot, GranuleState};
use crate::host::cpu::Cpu;
use crate::host::guest::{GuestProgram, GuestThread, Run};
use crate::host::memory::{AccessFault, Memory, Space};
use crate::host::translation::TranslationCache;
use crate::monitor::{Monitor, RamRange};
use crate::platform::{
    GptRefused, GranuleFault, MachineFeatures, Platform, RawExit, Stage2Regime, SysRegIss, Traps,
};
use crate::v2::Abi;

/// What machine to simulate.
#[derive(Clone, Debug)]
pub struct Config {
    /// RAM; all of it can be delegated.
    pub ram: RamRange,
    /// What the machine offers to realms.
    pub features: MachineFeatures,
    /// Which interface the monitor speaks.
    pub abi: Abi,
}

impl Default for Config {
    /// 64 MiB of RAM at 2 GiB, 48-bit addresses, 6 breakpoints, 4 watchpoints, 4 list registers
    /// with 5 bits of priority, 16-bit VMIDs.
    fn default() -> Self {
        Self {
            ram: RamRange { base: Pa(0x8000_0000), size: 64 << 20 },
            features: MachineFeatures {
                pa_bits: 48,
                num_bps: 5,
                num_wps: 3,
                ich_vtr: 4 << 29 | 4 << 26 | 3,
                gic_ext_range: false,
                vmid_bits: 16,
            },
            abi: Abi::V1_0,
        }
    }
}

/// Granules of RAM by what the monitor uses them for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field counts the granules in the state of that name")]
pub struct Census {
    pub undelegated: u64,
    pub delegated: u64,
    pub rd: u64,
    pub rec: u64,
    pub rec_aux: u64,
    pub rtt: u64,
    pub data: u64,
    pub partial: u64,
}

/// What the CPUs of the machine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) memory: Memory,
    pub(crate) cache: TranslationCache,
    counter: AtomicU64,
    interrupt: AtomicBool,
}

impl Shared {
    pub(crate) fn counter(&self) -> u64 {
        self.counter.load(Ordering::Acquire)
    }

    /// Takes a pending physical interrupt.
    pub(crate) fn take_interrupt(&self) -> bool {
        self.interrupt.swap(false, Ordering::AcqRel)
    }
}

/// The machine under the monitor.
#[derive(Debug)]
pub(crate) struct Simulator {
    config: Config,
    slots: Vec<GranuleSlot>,
    shared: Arc<Shared>,
    program: Mutex<GuestProgram>,
    guests: Mutex<HashMap<Pa, GuestThread>>,
    /// Virtual CPU interface registers (2.0) of each thread of the host, its CPU.
    interfaces: Mutex<HashMap<ThreadId, GicState>>,
}

/// A simulated machine with the monitor inside.
#[derive(Debug)]
pub struct Machine {
    monitor: Monitor<Simulator>,
    calls: AtomicU64,
}

impl Machine {
    /// A machine after reset: all RAM is Non-secure and zero, the counter is zero. Its realm
    /// guests do nothing until [`Machine::set_guest`].
    ///
    /// # Panics
    /// If the RAM range is empty, misaligned, or too large for this process.
    pub fn new(config: Config) -> Self {
        let granules = config.ram.size / GRANULE_SIZE;
        let (ram, abi) = ([config.ram], config.abi);
        let simulator = Simulator {
            slots: (0..granules).map(|_| GranuleSlot::new()).collect(),
            shared: Arc::new(Shared {
                memory: Memory::new(config.ram),
                cache: TranslationCache::default(),
                counter: AtomicU64::new(0),
                interrupt: AtomicBool::new(false),
            }),
            program: Mutex::new(GuestProgram::new(|_| Ok(()))),
            guests: Mutex::new(HashMap::new()),
            interfaces: Mutex::new(HashMap::new()),
            config,
        };
        match Monitor::with_abi(simulator, &ram, abi) {
            Ok(monitor) => Self { monitor, calls: AtomicU64::new(0) },
            Err(error) => panic!("no machine with RAM {ram:x?}: {error:?}"),
        }
    }

    fn shared(&self) -> &Shared {
        &self.monitor.platform().shared
    }

    /// The RAM of the machine.
    pub fn ram(&self) -> RamRange {
        self.monitor.platform().config.ram
    }

    /// One RMI call from the host, on any thread: function identifier and x1 to x7 in, x0 to x7
    /// out.
    pub fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.monitor.handle(fid, args)
    }

    /// Number of RMI calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Copies from memory as the host.
    ///
    /// # Errors
    /// A granule of the range is not Non-secure, or not RAM; what came before it is copied.
    pub fn read(&self, pa: Pa, buf: &mut [u8]) -> Result<(), AccessFault> {
        self.shared().memory.read(pa, Space::NonSecure, buf)
    }

    /// Copies to memory as the host.
    ///
    /// # Errors
    /// A granule of the range is not Non-secure, or not RAM; what came before it is written.
    pub fn write(&self, pa: Pa, bytes: &[u8]) -> Result<(), AccessFault> {
        self.shared().memory.write(pa, Space::NonSecure, bytes)
    }

    /// The physical address space of the granule at `pa`.
    ///
    /// # Errors
    /// There is no RAM at `pa`.
    pub fn space(&self, pa: Pa) -> Result<Space, AccessFault> {
        self.shared().memory.space(pa)
    }

    /// The contents of the granule at `pa` whatever space it is in, as a debugger of the machine
    /// sees them.
    ///
    /// # Errors
    /// There is no RAM at `pa`.
    pub fn contents(&self, pa: Pa) -> Result<[u8; GRANULE_BYTES], AccessFault> {
        self.shared().memory.contents(pa)
    }

    /// Gives a Non-secure granule to the secure world, so that its delegation fails; false if it is
    /// not Non-secure.
    pub fn make_secure(&self, pa: Pa) -> bool {
        self.shared().memory.transition(pa, Space::NonSecure, Space::Secure)
    }

    /// What the monitor uses the granule at `pa` for; none if it is not a granule of RAM.
    pub fn granule_state(&self, pa: Pa) -> Option<GranuleState> {
        self.monitor.granule_state(pa)
    }

    /// Counts all granules of RAM by state.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let ram = self.ram();
        for number in 0..ram.size / GRANULE_SIZE {
            let count = match self.granule_state(ram.base.offset(number * GRANULE_SIZE)) {
                None => continue,
                Some(GranuleState::Undelegated) => &mut census.undelegated,
                Some(GranuleState::Delegated) => &mut census.delegated,
                Some(GranuleState::Rd) => &mut census.rd,
                Some(GranuleState::Rec) => &mut census.rec,
                Some(GranuleState::RecAux) => &mut census.rec_aux,
                Some(GranuleState::Rtt) => &mut census.rtt,
                Some(GranuleState::Data) => &mut census.data,
                Some(GranuleState::Partial) => &mut census.partial,
            };
            *count += 1;
        }
        census
    }

    /// The system counter.
    pub fn counter(&self) -> u64 {
        self.shared().counter()
    }

    /// Lets `ticks` of the system counter pass.
    pub fn advance(&self, ticks: u64) {
        self.shared().counter.fetch_add(ticks, Ordering::AcqRel);
    }

    /// The virtual CPU interface registers (`ICH_*_EL2`) of the calling thread's CPU, which RMI 2.0
    /// shares between host and monitor.
    pub fn cpu_interface(&self) -> GicState {
        self.monitor.platform().host_cpu_interface()
    }

    /// Writes the virtual CPU interface registers of the calling thread's CPU.
    pub fn set_cpu_interface(&self, state: &GicState) {
        self.monitor.platform().set_host_cpu_interface(state);
    }

    /// Raises a physical interrupt of the host: the next REC that runs, or the one that does, exits
    /// once.
    pub fn raise_interrupt(&self) {
        self.shared().interrupt.store(true, Ordering::Release);
    }

    /// Sets what RECs do that run for the first time from now on: `program` is called on a thread
    /// of its own per REC and acts through its [`Cpu`]. Tell RECs apart by [`Cpu::index`].
    pub fn set_guest(
        &self,
        program: impl Fn(&mut Cpu) -> Result<(), crate::host::Stop> + Send + Sync + 'static,
    ) {
        let mut current =
            self.monitor.platform().program.lock().unwrap_or_else(PoisonError::into_inner);
        *current = GuestProgram::new(program);
    }
}

/// What the monitor is promised: it touches realm memory only.
const OWN: &str = "the monitor touches only granules that it holds";

impl Platform for Simulator {
    fn features(&self) -> MachineFeatures {
        self.config.features
    }

    fn granule_slots(&self) -> &[GranuleSlot] {
        &self.slots
    }

    fn gpt_delegate(&self, pa: Pa) -> Result<(), GptRefused> {
        let moved = self.shared.memory.transition(pa, Space::NonSecure, Space::Realm);
        if moved { Ok(()) } else { Err(GptRefused) }
    }

    fn gpt_undelegate(&self, pa: Pa) -> Result<(), GptRefused> {
        let moved = self.shared.memory.transition(pa, Space::Realm, Space::NonSecure);
        if moved { Ok(()) } else { Err(GptRefused) }
    }

    fn read_ns(&self, pa: Pa, buf: &mut [u8]) -> Result<(), GranuleFault> {
        self.shared.memory.read(pa, Space::NonSecure, buf).map_err(|_| GranuleFault)
    }

    fn write_ns(&self, pa: Pa, bytes: &[u8]) -> Result<(), GranuleFault> {
        self.shared.memory.write(pa, Space::NonSecure, bytes).map_err(|_| GranuleFault)
    }

    fn read_realm(&self, pa: Pa, buf: &mut [u8]) {
        self.shared.memory.read(pa, Space::Realm, buf).expect(OWN);
    }

    fn write_realm(&self, pa: Pa, bytes: &[u8]) {
        self.shared.memory.write(pa, Space::Realm, bytes).expect(OWN);
    }

    fn zero_granule(&self, pa: Pa) {
        self.shared.memory.zero(pa, Space::Realm).expect(OWN);
    }

    fn read_descriptor(&self, pa: Pa) -> u64 {
        let mut bytes = [0; 8];
        self.read_realm(pa, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write_descriptor(&self, pa: Pa, value: u64) {
        self.write_realm(pa, &value.to_le_bytes());
    }

    fn tlb_invalidate(&self, regime: Stage2Regime, ipa: Ipa, size: u64) {
        self.shared.cache.invalidate(regime, ipa, size);
    }

    fn tlb_invalidate_all(&self, regime: Stage2Regime) {
        self.shared.cache.invalidate_all(regime);
    }

    fn init_rec(&self, rec: Pa, _aux: &[Pa]) {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let guest = GuestThread::new(program, Arc::clone(&self.shared));
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).insert(rec, guest);
    }

    fn destroy_rec(&self, rec: Pa) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).remove(&rec);
    }

    fn run(
        &self,
        rec: Pa,
        context: &mut RecContext,
        regime: Stage2Regime,
        traps: Traps,
    ) -> RawExit {
        if self.shared.take_interrupt() {
            return RawExit::Irq;
        }
        let guests = || self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guest = guests().remove(&rec).expect("a REC runs between init and destroy");
        let exit = guest.run(Run { context: *context, regime, traps });
        guests().insert(rec, guest);
        *context = exit.context;
        exit.raw
    }

    fn host_cpu_interface(&self) -> GicState {
        let interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        interfaces.get(&thread::current().id()).copied().unwrap_or_default()
    }

    fn set_host_cpu_interface(&self, state: &GicState) {
        let mut interfaces = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        interfaces.insert(thread::current().id(), *state);
    }

    fn id_register(&self, _register: SysRegIss) -> u64 {
        // Every feature field at its first value: what is hidden must not show.
        0x1111_1111_1111_1111
    }

    fn counter(&self) -> u64 {
        self.shared.counter()
    }
}
