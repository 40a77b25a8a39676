//! What the device tree says.

use core::ops::Range;

use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};

/// Conduit of PSCI calls: the `method` of `/psci`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC #0.
    Hvc,
    /// SMC #0, the only one that a realm has.
    Smc,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It powers off.
    Off,
    /// It resets itself: the command line says `reset`.
    Reset,
    /// It sleeps for ever: the command line says `hang`.
    Hang,
}

/// The facts that a guest needs from its device tree.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// RAM, in bytes of IPA.
    pub ram: Range<u64>,
    /// Number of `/cpus/cpu` nodes.
    pub cpus: usize,
    /// PSCI conduit.
    pub conduit: Conduit,
    /// What the guest does when it has done its work.
    pub ending: Ending,
    /// Value of `ticks=N` in the command line: how many timer ticks the guest works for.
    pub ticks: Option<u64>,
    /// Value of `rounds=N` in the command line: how often the guest does what is to be counted.
    pub rounds: Option<u64>,
    /// Whether the command line says `one-core`: all vCPUs share a core, so that none should spin
    /// while it waits for another.
    pub one_core: bool,
    /// Whether the command line says `touch`: RAM is populated when it is touched, and that is what is to
    /// be counted.
    pub touch: bool,
    /// Whether the command line says `stray`: the guest is to touch memory that is not its own.
    pub stray: bool,
    /// Whether the command line says `closed`: the owner of the realm lets it share no memory.
    pub closed: bool,
    /// Value of `fp=N` in the command line: how often each vCPU checks its FP registers.
    pub fp: Option<u64>,
    /// Whether the command line says `rtc`: the guest has the machine's real-time clock.
    pub rtc: bool,
    /// Value of `storm=N` in the command line: how many seconds a storm of interrupts lasts.
    pub storm: Option<u64>,
    /// Value of `cases=N` in the command line: how many cases of each kind a hostile guest tries.
    pub cases: Option<u64>,
    /// Value of `seed=N` in the command line: where its random numbers start.
    pub seed: Option<u64>,
    /// Value of `serve=N` in the command line: how many lives of its peers the guest at the serving end
    /// of channels waits for.
    pub serve: Option<u64>,
    /// Whether the command line says `last`: the guest is to outlive those at the other ends.
    pub last: bool,
    /// Channels to other guests.
    pub channels: ArrayVec<Place, MAX_CHANNELS>,
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
pub unsafe fn parse(address: u64) -> Result<BootInfo, &'static str> {
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
    let conduit = match method.as_ref().map(|method| method.value()) {
        Some(b"hvc\0") => Conduit::Hvc,
        Some(b"smc\0") => Conduit::Smc,
        _ => return Err("no usable /psci method"),
    };
    let bootargs = tree.find_node("/chosen").and_then(|chosen| chosen.property("bootargs"));
    let args = bootargs.as_ref().and_then(|args| args.value_as::<&str>().ok()).unwrap_or("");
    let number = |key: &str| {
        args.split_whitespace()
            .find_map(|arg| arg.strip_prefix(key)?.strip_prefix('='))
            .and_then(|value| value.parse().ok())
    };
    let flag = |key: &str| args.split_whitespace().any(|arg| arg == key);
    Ok(BootInfo {
        ram: base..top,
        cpus,
        conduit,
        ending: match (flag("reset"), flag("hang")) {
            (true, _) => Ending::Reset,
            (false, true) => Ending::Hang,
            (false, false) => Ending::Off,
        },
        ticks: number("ticks"),
        rounds: number("rounds"),
        one_core: flag("one-core"),
        touch: flag("touch"),
        stray: flag("stray"),
        closed: flag("closed"),
        fp: number("fp"),
        rtc: flag("rtc"),
        storm: number("storm"),
        cases: number("cases"),
        seed: number("seed"),
        serve: number("serve"),
        last: flag("last"),
        channels: channels(&tree)?,
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
        found.try_push(Place { registers, memory, size, intid }).map_err(|_| "many channels")?;
    }
    Ok(found)
}
