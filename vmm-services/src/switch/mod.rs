//! A virtual Ethernet switch: what the network devices of VMs are plugged into.
//!
//! The switch is pure logic over frames and a clock; it knows neither virtio nor locks. It
//! trusts no port:
//!
//! - Each port brings the memory for the frames that wait for it. A receiver that is slow, or that
//!   does not receive at all, loses its own frames and takes nothing from the others.
//! - A port sends with its own address only, unless it is configured to have others behind it
//!   ([`SourcePolicy::Any`]). Then it may have [`MAX_LEARNED`] of them: learning more makes it
//!   forget its own oldest ones, never those of another port. The configured address of a port can
//!   never be learnt at another.
//! - A frame is never sent back to where it came from. Unknown addresses can be only behind ports
//!   of [`SourcePolicy::Any`], so only those see frames that are not for them.
//! - Broadcasts and multicasts go to all other ports, except those that IEEE 802.1Q keeps on one
//!   link.
//! - Frames that are too short or too long, that come from an impossible address, or that exceed
//!   the port's rate are dropped and counted.
//!
//! The work for one frame is bounded by [`MAX_PORTS`].

mod mac;
mod queue;
mod rate;

pub use mac::MacAddr;

use arrayvec::ArrayVec;
use core::fmt;
use core::num::NonZeroU32;
use queue::FrameQueue;
use rate::TokenBucket;

/// Most ports of a switch.
pub const MAX_PORTS: usize = 16;
/// Shortest frame in bytes: destination, source and type. Nothing is padded inside a machine.
pub const MIN_FRAME: usize = 14;
/// Longest frame in bytes: 1500 bytes of payload, the header with one VLAN tag, and no checksum.
pub const MAX_FRAME: usize = 1518;
/// Most addresses that are remembered behind one port, beside its own.
pub const MAX_LEARNED: usize = 8;
/// How long an address that was learnt stays valid without a frame from it, in nanoseconds: the
/// ageing time that IEEE 802.1Q recommends.
pub const AGEING_NS: u64 = 300_000_000_000;
/// Least memory of a port's queue in bytes: room for two of the longest frames.
pub const MIN_QUEUE_BYTES: usize = 4096;

/// Which source addresses a port may send from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePolicy {
    /// Its own only.
    #[default]
    Own,
    /// Any that is not the configured address of another port: it bridges to a network behind it.
    Any,
}

/// What a port is and may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Its address.
    pub mac: MacAddr,
    /// Source addresses that it may use.
    pub source: SourcePolicy,
    /// Most frames that wait for it; how many bytes, its memory says.
    pub queue_frames: u16,
    /// What it may send in the long run, in thousand bits per second; `None` for no limit.
    pub rate_kbps: Option<NonZeroU32>,
}

/// Why a port cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// All [`MAX_PORTS`] are in use.
    NoPort,
    /// The address is not one that a single station can have.
    BadAddress,
    /// Another port has the address.
    AddressTaken,
    /// The memory for frames is less than [`MIN_QUEUE_BYTES`].
    QueueTooSmall,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPort => write!(f, "a switch has {MAX_PORTS} ports"),
            Self::BadAddress => f.write_str("not the address of a station"),
            Self::AddressTaken => f.write_str("another port has this address"),
            Self::QueueTooSmall => write!(f, "a queue has at least {MIN_QUEUE_BYTES} bytes"),
        }
    }
}

impl core::error::Error for AttachError {}

/// A place in a switch. [`Switch::attach`] makes it and [`Switch::detach`] takes it back, so that
/// nobody holds one of a port that is another's by now.
#[derive(Debug, PartialEq, Eq)]
pub struct Port(u8);

impl Port {
    /// Its number, below [`MAX_PORTS`].
    #[must_use]
    pub const fn index(&self) -> usize {
        self.0 as usize
    }
}

/// A set of ports of one switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the owners of these ports have to be told"]
pub struct PortSet(u16);

const _: () = assert!(MAX_PORTS <= u16::BITS as usize);

impl PortSet {
    /// No port.
    pub const EMPTY: Self = Self(0);

    /// Whether no port is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the port with this number is in it.
    #[must_use]
    pub const fn contains(self, index: usize) -> bool {
        index < MAX_PORTS && self.0 & 1 << index != 0
    }

    /// Numbers of the ports in it, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_PORTS).filter(move |index| self.contains(*index))
    }

    const fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }
}

/// Why a frame went to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than [`MIN_FRAME`] or longer than [`MAX_FRAME`].
    Size,
    /// Its source is not an address of a station, or not one that the port may use.
    Source,
    /// Its destination is not to be forwarded.
    LinkLocal,
    /// The port has sent more than its rate allows.
    Rate,
}

/// What a port has done and suffered. Counts wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames that it sent and that were not dropped for a reason of its own.
    pub sent: u64,
    /// Bytes of these.
    pub sent_bytes: u64,
    /// Frames put into its queue.
    pub received: u64,
    /// Bytes of these.
    pub received_bytes: u64,
    /// Frames for it that its queue had no room for.
    pub dropped_queue: u64,
    /// Frames from it, dropped for [`DropReason::Size`].
    pub dropped_size: u64,
    /// Frames from it, dropped for [`DropReason::Source`].
    pub dropped_source: u64,
    /// Frames from it, dropped for [`DropReason::LinkLocal`].
    pub dropped_link_local: u64,
    /// Frames from it, dropped for [`DropReason::Rate`].
    pub dropped_rate: u64,
}

impl PortStats {
    /// All frames that the port lost, sent or to be received.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped_queue
            .wrapping_add(self.dropped_size)
            .wrapping_add(self.dropped_source)
            .wrapping_add(self.dropped_link_local)
            .wrapping_add(self.dropped_rate)
    }

    const fn count_drop(&mut self, reason: DropReason) {
        let counter = match reason {
            DropReason::Size => &mut self.dropped_size,
            DropReason::Source => &mut self.dropped_source,
            DropReason::LinkLocal => &mut self.dropped_link_local,
            DropReason::Rate => &mut self.dropped_rate,
        };
        *counter = counter.wrapping_add(1);
    }
}

/// An address that was seen behind a port.
#[derive(Clone, Copy, Debug)]
struct Learned {
    mac: MacAddr,
    seen_at: u64,
}

impl Learned {
    const fn is_valid(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.seen_at) < AGEING_NS
    }
}

#[derive(Debug)]
struct PortState<S> {
    config: PortConfig,
    /// Addresses behind the port beside its own, the one seen longest ago first.
    learned: ArrayVec<Learned, MAX_LEARNED>,
    bucket: Option<TokenBucket>,
    queue: FrameQueue<S>,
    stats: PortStats,
}

impl<S: AsMut<[u8]>> PortState<S> {
    /// Whether frames for `mac` go here.
    fn has(&self, mac: MacAddr, now_ns: u64) -> bool {
        self.config.mac == mac
            || self.learned.iter().any(|entry| entry.mac == mac && entry.is_valid(now_ns))
    }

    fn forget(&mut self, mac: MacAddr) {
        self.learned.retain(|entry| entry.mac != mac);
    }

    fn learn(&mut self, mac: MacAddr, now_ns: u64) {
        self.forget(mac);
        if self.learned.is_full() {
            self.learned.remove(0);
        }
        self.learned.push(Learned { mac, seen_at: now_ns });
    }

    /// Puts a frame into the queue; `true` if the port had none before.
    fn enqueue(&mut self, frame: &[u8]) -> bool {
        let was_empty = self.queue.is_empty();
        if !self.queue.push(frame) {
            self.stats.dropped_queue = self.stats.dropped_queue.wrapping_add(1);
            return false;
        }
        self.stats.received = self.stats.received.wrapping_add(1);
        self.stats.received_bytes = self.stats.received_bytes.wrapping_add(frame.len() as u64);
        was_empty
    }
}

/// A switch whose ports keep their frames in memory of type `S`.
#[derive(Debug)]
pub struct Switch<S> {
    ports: [Option<PortState<S>>; MAX_PORTS],
}

impl<S: AsMut<[u8]>> Default for Switch<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Switch<S> {
    /// A switch without ports.
    #[must_use]
    pub const fn new() -> Self {
        Self { ports: [const { None }; MAX_PORTS] }
    }
}

impl<S: AsMut<[u8]>> Switch<S> {
    /// Attaches a port whose frames are to wait in `memory`.
    ///
    /// # Errors
    /// Why not, and the memory.
    pub fn attach(
        &mut self,
        config: PortConfig,
        mut memory: S,
        now_ns: u64,
    ) -> Result<Port, (AttachError, S)> {
        if !config.mac.is_station() {
            return Err((AttachError::BadAddress, memory));
        }
        if self.states().any(|(_, other)| other.config.mac == config.mac) {
            return Err((AttachError::AddressTaken, memory));
        }
        if memory.as_mut().len() < MIN_QUEUE_BYTES {
            return Err((AttachError::QueueTooSmall, memory));
        }
        // From now on the address is here, whoever has claimed it before.
        self.forget(config.mac);
        let mut places = self.ports.iter_mut().zip(0..);
        let Some((place, index)) = places.find(|(place, _)| place.is_none()) else {
            return Err((AttachError::NoPort, memory));
        };
        *place = Some(PortState {
            learned: ArrayVec::new(),
            bucket: config.rate_kbps.map(|rate| TokenBucket::new(rate, now_ns)),
            queue: FrameQueue::new(memory, config.queue_frames.into()),
            stats: PortStats::default(),
            config,
        });
        Ok(Port(index))
    }

    /// Detaches a port: the frames that wait for it are lost, the addresses behind it forgotten.
    /// Gives its memory back.
    pub fn detach(&mut self, port: Port) -> Option<S> {
        let state = self.ports.get_mut(port.index())?.take()?;
        Some(state.queue.into_storage())
    }

    /// A port sends a frame. Returns the ports that had no frame waiting before and have now.
    ///
    /// A receiver whose queue is full loses the frame and counts it; that is no error here.
    ///
    /// # Errors
    /// Why the frame went to nobody; it has been counted.
    pub fn send(&mut self, port: &Port, frame: &[u8], now_ns: u64) -> Result<PortSet, DropReason> {
        let accepted = self.accept(port, frame, now_ns);
        let Some(sender) = self.state_mut(port) else { return Err(DropReason::Source) };
        match accepted {
            Ok(destination) => {
                sender.stats.sent = sender.stats.sent.wrapping_add(1);
                sender.stats.sent_bytes = sender.stats.sent_bytes.wrapping_add(frame.len() as u64);
                Ok(self.forward(port, destination, frame, now_ns))
            }
            Err(reason) => {
                sender.stats.count_drop(reason);
                Err(reason)
            }
        }
    }

    /// Takes the oldest frame that waits for a port and returns its length. `into` should hold
    /// [`MAX_FRAME`] bytes; a longer frame is cut.
    pub fn receive(&mut self, port: &Port, into: &mut [u8]) -> Option<usize> {
        self.state_mut(port)?.queue.pop(into)
    }

    /// Whether a frame waits for a port.
    #[must_use]
    pub fn has_frame(&self, port: &Port) -> bool {
        self.state(port).is_some_and(|state| !state.queue.is_empty())
    }

    /// Drops the frames that wait for a port: nobody is there to receive them.
    pub fn discard(&mut self, port: &Port) {
        if let Some(state) = self.state_mut(port) {
            state.queue.clear();
        }
    }

    /// What a port has done and suffered since it was attached.
    #[must_use]
    pub fn stats(&self, port: &Port) -> PortStats {
        self.state(port).map_or_else(PortStats::default, |state| state.stats)
    }

    /// Checks a frame from `port`, and learns from it; returns its destination.
    fn accept(&mut self, port: &Port, frame: &[u8], now_ns: u64) -> Result<MacAddr, DropReason> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Err(DropReason::Size);
        }
        let (destination, rest) = frame.split_first_chunk().ok_or(DropReason::Size)?;
        let (source, _) = rest.split_first_chunk().ok_or(DropReason::Size)?;
        let (destination, source) = (MacAddr(*destination), MacAddr(*source));
        if !self.may_send_from(port, source) {
            return Err(DropReason::Source);
        }
        if destination.is_link_local_group() {
            return Err(DropReason::LinkLocal);
        }
        let sender = self.state_mut(port).ok_or(DropReason::Source)?;
        if let Some(bucket) = &mut sender.bucket
            && !bucket.take(frame.len() as u64, now_ns)
        {
            return Err(DropReason::Rate);
        }
        if source != sender.config.mac {
            // A station that moved from behind another port.
            self.forget(source);
            if let Some(sender) = self.state_mut(port) {
                sender.learn(source, now_ns);
            }
        }
        Ok(destination)
    }

    fn may_send_from(&self, port: &Port, source: MacAddr) -> bool {
        let Some(sender) = self.state(port) else { return false };
        match sender.config.source {
            _ if source == sender.config.mac => true,
            SourcePolicy::Own => false,
            SourcePolicy::Any => {
                source.is_station() && !self.states().any(|(_, other)| other.config.mac == source)
            }
        }
    }

    fn forward(&mut self, port: &Port, to: MacAddr, frame: &[u8], now_ns: u64) -> PortSet {
        let known = if to.is_group() {
            None
        } else {
            self.states().find(|(_, state)| state.has(to, now_ns)).map(|(index, _)| index)
        };
        let mut woken = PortSet::EMPTY;
        for (index, place) in self.ports.iter_mut().enumerate() {
            let Some(state) = place.as_mut().filter(|_| index != port.index()) else { continue };
            let wanted = match known {
                Some(known) => known == index,
                None => to.is_group() || state.config.source == SourcePolicy::Any,
            };
            if wanted && state.enqueue(frame) {
                woken.insert(index);
            }
        }
        woken
    }

    /// Forgets an address wherever it was learnt.
    fn forget(&mut self, mac: MacAddr) {
        for state in self.ports.iter_mut().flatten() {
            state.forget(mac);
        }
    }

    fn states(&self) -> impl Iterator<Item = (usize, &PortState<S>)> {
        self.ports.iter().enumerate().filter_map(|(index, place)| Some((index, place.as_ref()?)))
    }

    fn state(&self, port: &Port) -> Option<&PortState<S>> {
        self.ports.get(port.index())?.as_ref()
    }

    fn state_mut(&mut self, port: &Port) -> Option<&mut PortState<S>> {
        self.ports.get_mut(port.index())?.as_mut()
    }
}

#[cfg(test)]
mod tests;
