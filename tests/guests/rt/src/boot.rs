//! What the device tree says.

use core::ops::Range;

use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

use crate::MAX_CPUS;
use crate::rsi::RealmConfig;

/// How a guest ends when it has done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It powers off.
    Off,
    /// It resets itself: the command line says `reset`.
    Reset,
    /// It sleeps for ever: the command line says `hang`.
    Hang,
}

/// The facts that a guest needs from its device tree, and of a realm's configuration.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// RAM, in bytes of IPA.
    pub ram: Range<u64>,
    /// Number of `/cpus/cpu` nodes.
    pub cpus: usize,
    /// The realm's configuration, if this is one.
    pub realm: Option<RealmConfig>,
    /// Channels to other guests.
    pub channels: ArrayVec<Place, MAX_CHANNELS>,
    /// Whether PSCI is called by SMC.
    pub(crate) psci_by_smc: bool,
    args: &'static str,
}

impl BootInfo {
    /// Whether the command line has the word `key`.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.args.split_whitespace().any(|word| word == key)
    }

    /// Value of `key=N` in the command line.
    ///
    /// # Panics
    ///
    /// When `N` is not a number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        let mut words = self.args.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
        let number = value.parse().ok();
        assert!(number.is_some(), "{key}={value} on the command line is no number");
        number
    }

    /// vCPUs other than the first that there is a stack for, by their MPIDR.
    #[must_use]
    pub fn secondaries(&self) -> Range<u64> {
        1..self.cpus.clamp(1, MAX_CPUS) as u64
    }

    /// The bit of a realm's shared addresses; 0 in a normal VM.
    #[must_use]
    pub fn alias(&self) -> u64 {
        self.realm.as_ref().map_or(0, RealmConfig::alias)
    }

    /// What the guest does when it has done its work.
    pub(crate) fn ending(&self) -> Ending {
        match (self.flag("reset"), self.flag("hang")) {
            (true, _) => Ending::Reset,
            (false, true) => Ending::Hang,
            (false, false) => Ending::Off,
        }
    }
}

/// Where a channel is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// IPA of its registers.
    pub registers: u64,
    /// IPA of its memory.
    pub memory: u64,
    /// Bytes of its memory.
    pub size: u64,
    /// Its interrupt, from 32.
    pub intid: u32,
}

/// Most channels of a guest.
pub const MAX_CHANNELS: usize = 4;

/// Reads the device tree at `address`.
///
/// # Errors
///
/// Says what is missing or malformed.
///
/// # Safety
///
/// `address` must be that of a device tree blob which stays unchanged while the guest runs; the
/// hypervisor's boot protocol promises this for the address it passes in x0.
pub(crate) unsafe fn parse(address: u64) -> Result<BootInfo, &'static str> {
    let blob = core::ptr::with_exposed_provenance::<u8>(address as usize);
    if blob.is_null() || !address.is_multiple_of(8) {
        return Err("x0 holds no device tree address");
    }
    // SAFETY: the caller promises that a device tree lies there; its header is checked first.
    let tree = unsafe { Fdt::from_raw(blob) }.map_err(|_| "the device tree is malformed")?;

    let memory = tree
        .root()
        .children()
        .find(|node| node.name_without_address() == "memory")
        .ok_or("no /memory node")?;
    let mut reg = memory.reg().map_err(|_| "bad /memory reg")?.ok_or("no /memory reg")?;
    let bank = reg.next().ok_or("empty /memory reg")?;
    let base: u64 = bank.address().map_err(|_| "bad /memory base")?;
    let size: u64 = bank.size().map_err(|_| "bad /memory size")?;
    let top = base.checked_add(size).ok_or("/memory wraps around")?;

    let cpus = tree.find_node("/cpus").map_or(1, |cpus| {
        cpus.children().filter(|node| node.name_without_address() == "cpu").count()
    });
    let method = tree.find_node("/psci").and_then(|psci| psci.property("method"));
    let psci_by_smc = match method.as_ref().map(|method| method.value()) {
        Some(b"hvc\0") => false,
        Some(b"smc\0") => true,
        _ => return Err("no usable /psci method"),
    };
    let bootargs = tree.find_node("/chosen").and_then(|chosen| chosen.property("bootargs"));
    let args = bootargs.as_ref().and_then(|args| args.value_as::<&'static str>().ok());
    Ok(BootInfo {
        ram: base..top,
        cpus,
        realm: None,
        channels: channels(&tree)?,
        psci_by_smc,
        args: args.unwrap_or(""),
    })
}

fn channels(tree: &Fdt<'_>) -> Result<ArrayVec<Place, MAX_CHANNELS>, &'static str> {
    const BAD: &str = "bad channel node";
    let root = tree.root();
    let nodes = root.children().filter(|node| node.name_without_address() == "channel");
    let mut found = ArrayVec::new();
    for node in nodes {
        let mut reg = node.reg().map_err(|_| BAD)?.ok_or(BAD)?;
        let mut region = || -> Option<(u64, u64)> {
            let region = reg.next()?;
            Some((region.address().ok()?, region.size().ok()?))
        };
        let ((registers, _), (memory, size)) = (region().ok_or(BAD)?, region().ok_or(BAD)?);
        let interrupts = node.property("interrupts").ok_or(BAD)?;
        // Of the three cells the second is the number of a shared interrupt.
        let spi = interrupts.value().get(4..8).and_then(|cell| cell.try_into().ok()).ok_or(BAD)?;
        let intid = 32 + u32::from_be_bytes(spi);
        found
            .try_push(Place { registers, memory, size, intid })
            .map_err(|_| "too many channels")?;
    }
    Ok(found)
}
