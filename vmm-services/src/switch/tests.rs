//! The switch against a model: sets of addresses and queues of whole frames, and no ring, no
//! bounded tables, no notification logic.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::vec;
use std::vec::Vec;

/// Bytes in front of each frame in a queue.
const OVERHEAD: usize = 2;
const SECOND: u64 = 1_000_000_000;
const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// The address number `n` of the tests.
fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn config(n: u8, source: SourcePolicy) -> PortConfig {
    PortConfig { mac: mac(n), source, queue_frames: 4, rate_kbps: None }
}

/// A frame of `length` bytes with `tag` in its payload.
fn frame(to: MacAddr, from: MacAddr, length: usize, tag: u8) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    frame.resize(length.max(MIN_FRAME), tag);
    frame.truncate(length);
    frame
}

fn attach(switch: &mut Switch<Vec<u8>>, config: PortConfig) -> Port {
    switch.attach(config, vec![0; MIN_QUEUE_BYTES], 0).unwrap()
}

fn next(switch: &mut Switch<Vec<u8>>, port: &Port) -> Option<Vec<u8>> {
    let mut buffer = vec![0; MAX_FRAME];
    let length = switch.receive(port, &mut buffer)?;
    buffer.truncate(length);
    Some(buffer)
}

/// A switch with three ports that send as themselves, numbered 1 to 3.
fn three() -> (Switch<Vec<u8>>, [Port; 3]) {
    let mut switch = Switch::new();
    let ports = [1, 2, 3].map(|n| attach(&mut switch, config(n, SourcePolicy::Own)));
    (switch, ports)
}

#[test]
fn unicast_goes_to_its_port_and_broadcast_to_all_others() {
    let (mut switch, [a, b, c]) = three();
    let to_b = frame(mac(2), mac(1), 60, 7);
    let woken = switch.send(&a, &to_b, 0).unwrap();
    assert_eq!(woken.iter().collect::<Vec<_>>(), [b.index()]);
    let to_all = frame(BROADCAST, mac(1), 64, 8);
    let woken = switch.send(&a, &to_all, 0).unwrap();
    assert_eq!(woken.iter().collect::<Vec<_>>(), [c.index()], "b has been told already");
    assert_eq!([next(&mut switch, &b), next(&mut switch, &b)], [Some(to_b), Some(to_all.clone())]);
    assert_eq!([next(&mut switch, &c), next(&mut switch, &c)], [Some(to_all), None]);
    assert!(!switch.has_frame(&a), "nothing comes back");
}

#[test]
fn nothing_goes_to_itself_or_to_strangers() {
    let (mut switch, [a, b, c]) = three();
    for to in [mac(1), mac(99)] {
        assert_eq!(switch.send(&a, &frame(to, mac(1), 60, 0), 0), Ok(PortSet::EMPTY));
    }
    assert!(![a, b, c].iter().any(|port| switch.has_frame(port)));
}

#[test]
fn bad_frames_are_dropped_and_counted() {
    let (mut switch, [a, b, _]) = three();
    let bridges = [0, 0xe, 0xf].map(|last| MacAddr([0x01, 0x80, 0xc2, 0, 0, last]));
    let cases = [
        (vec![], DropReason::Size),
        (frame(mac(2), mac(1), MIN_FRAME - 1, 0), DropReason::Size),
        (frame(mac(2), mac(1), MAX_FRAME + 1, 0), DropReason::Size),
        (frame(mac(2), mac(2), 60, 0), DropReason::Source),
        (frame(mac(2), mac(99), 60, 0), DropReason::Source),
        (frame(mac(2), BROADCAST, 60, 0), DropReason::Source),
        (frame(mac(2), MacAddr([0; 6]), 60, 0), DropReason::Source),
        (frame(bridges[0], mac(1), 60, 0), DropReason::LinkLocal),
        (frame(bridges[1], mac(1), 60, 0), DropReason::LinkLocal),
        (frame(bridges[2], mac(1), 60, 0), DropReason::LinkLocal),
    ];
    for (frame, reason) in &cases {
        assert_eq!(switch.send(&a, frame, 0), Err(*reason));
    }
    for length in [MIN_FRAME, MAX_FRAME] {
        assert!(switch.send(&a, &frame(mac(2), mac(1), length, 1), 0).is_ok());
    }
    let stats = switch.stats(&a);
    assert_eq!((stats.dropped_size, stats.dropped_source, stats.dropped_link_local), (3, 4, 3));
    assert_eq!((stats.dropped(), stats.sent), (10, 2));
    assert_eq!(switch.stats(&b).received, 2);
}

#[test]
fn a_port_with_a_network_behind_it_gets_what_is_for_that_network() {
    let mut switch = Switch::new();
    let bridge = attach(&mut switch, config(1, SourcePolicy::Any));
    let plain = attach(&mut switch, config(2, SourcePolicy::Own));
    let other = attach(&mut switch, config(3, SourcePolicy::Own));
    // Unknown: only behind the bridge it can be.
    let _ = switch.send(&plain, &frame(mac(50), mac(2), 60, 0), 0).unwrap();
    assert!(next(&mut switch, &bridge).is_some() && !switch.has_frame(&other));
    // Known to be behind the bridge: nobody else sees it even if somebody else has a network too.
    let _ = switch.send(&bridge, &frame(mac(2), mac(50), 60, 0), 0).unwrap();
    let second = attach(&mut switch, config(4, SourcePolicy::Any));
    let _ = switch.send(&plain, &frame(mac(50), mac(2), 60, 0), 0).unwrap();
    assert!(next(&mut switch, &bridge).is_some() && !switch.has_frame(&second));
    // Aged: flooded again.
    let _ = switch.send(&plain, &frame(mac(50), mac(2), 60, 0), AGEING_NS).unwrap();
    assert!(next(&mut switch, &bridge).is_some() && next(&mut switch, &second).is_some());
    // A station moves; an address of a port cannot.
    let _ = switch.send(&second, &frame(mac(2), mac(50), 60, 0), AGEING_NS).unwrap();
    let _ = switch.send(&plain, &frame(mac(50), mac(2), 60, 0), AGEING_NS).unwrap();
    assert!(next(&mut switch, &second).is_some() && !switch.has_frame(&bridge));
    let stolen = frame(mac(3), mac(2), 60, 0);
    assert_eq!(switch.send(&second, &stolen, AGEING_NS), Err(DropReason::Source));
}

#[test]
fn a_flood_of_addresses_makes_nobody_else_forgotten() {
    let mut switch = Switch::new();
    let victim = attach(&mut switch, config(1, SourcePolicy::Any));
    let hostile = attach(&mut switch, config(2, SourcePolicy::Any));
    let third = attach(&mut switch, config(3, SourcePolicy::Own));
    let _ = switch.send(&victim, &frame(mac(3), mac(10), 60, 0), 0).unwrap();
    for n in 0..=u8::MAX {
        let source = MacAddr([6, 0, 0, 0, 0, n]);
        let _ = switch.send(&hostile, &frame(mac(3), source, 60, 0), 0).unwrap();
    }
    let _ = switch.send(&third, &frame(mac(10), mac(3), 60, 0), 0).unwrap();
    assert!(switch.has_frame(&victim) && !switch.has_frame(&hostile));
}

#[test]
fn the_rate_holds_in_the_long_run_and_bursts_are_bounded() {
    let mut switch = Switch::new();
    let rate = NonZeroU32::new(8_000); // A megabyte per second.
    let a = attach(&mut switch, PortConfig { rate_kbps: rate, ..config(1, SourcePolicy::Own) });
    let b = attach(&mut switch, config(2, SourcePolicy::Own));
    let mut passed = 0;
    // Tried every 10 microseconds for three seconds: 100 megabytes per second.
    for step in 0..300_000 {
        if switch.send(&a, &frame(mac(2), mac(1), 1000, 0), step * 10_000).is_ok() {
            passed += 1000;
        }
        switch.discard(&b);
    }
    let burst = 20_000;
    assert!((3_000_000 - 1000..=3_000_000 + burst).contains(&passed), "{passed} bytes passed");
    assert_eq!(switch.stats(&a).dropped_rate, 300_000 - passed / 1000);
    // A pause earns one burst and no more.
    let later = 1000 * SECOND;
    let mut send = || switch.send(&a, &frame(mac(2), mac(1), 1000, 0), later).is_ok();
    assert_eq!((0..1000).filter(|_| send()).count() as u64, burst / 1000);
}

#[test]
fn ports_are_given_out_and_taken_back() {
    let mut switch = Switch::new();
    let mut ports: Vec<Port> =
        (1..=MAX_PORTS as u8).map(|n| attach(&mut switch, config(n, SourcePolicy::Own))).collect();
    let mut refused = |config, bytes: usize| {
        let (error, memory) = switch.attach(config, vec![0; bytes], 0).unwrap_err();
        assert_eq!(memory.len(), bytes);
        error
    };
    let own = SourcePolicy::Own;
    assert_eq!(refused(config(99, own), MIN_QUEUE_BYTES), AttachError::NoPort);
    assert_eq!(refused(config(1, own), MIN_QUEUE_BYTES), AttachError::AddressTaken);
    assert_eq!(refused(config(99, own), MIN_QUEUE_BYTES - 1), AttachError::QueueTooSmall);
    let group = PortConfig { mac: BROADCAST, ..config(0, own) };
    assert_eq!(refused(group, MIN_QUEUE_BYTES), AttachError::BadAddress);
    let _ = switch.send(&ports[0], &frame(mac(2), mac(1), 60, 0), 0).unwrap();
    assert_eq!(switch.detach(ports.remove(1)).map(|memory| memory.len()), Some(MIN_QUEUE_BYTES));
    let again = attach(&mut switch, config(2, own));
    assert!(!switch.has_frame(&again), "a new port starts empty");
    assert_eq!(switch.stats(&again), PortStats::default());
}

/// One port of the model.
#[derive(Debug)]
struct ModelPort {
    config: PortConfig,
    capacity: usize,
    queue: VecDeque<Vec<u8>>,
    /// When each address behind the port was seen last: time and order.
    learned: BTreeMap<MacAddr, (u64, u64)>,
    lost: u64,
}

impl ModelPort {
    fn bytes(&self) -> usize {
        self.queue.iter().map(|frame| frame.len() + OVERHEAD).sum()
    }
}

#[derive(Debug, Default)]
struct Model {
    ports: BTreeMap<usize, ModelPort>,
    sent: u64,
}

impl Model {
    fn forget(&mut self, mac: MacAddr) {
        for port in self.ports.values_mut() {
            port.learned.remove(&mac);
        }
    }

    /// Sends a frame as the documentation of the switch says.
    fn send(&mut self, from: usize, frame: &[u8], now: u64) -> Result<Vec<usize>, DropReason> {
        self.sent += 1;
        if frame.len() < MIN_FRAME || frame.len() > MAX_FRAME {
            return Err(DropReason::Size);
        }
        let address = |at: usize| MacAddr(frame[at..at + 6].try_into().unwrap());
        let (to, source) = (address(0), address(6));
        let own = self.ports[&from].config.mac == source;
        let taken = self.ports.values().any(|port| port.config.mac == source);
        let bridge = self.ports[&from].config.source == SourcePolicy::Any;
        if !own && (!bridge || taken || source.0[0] & 1 == 1 || source.0 == [0; 6]) {
            return Err(DropReason::Source);
        }
        if to.0[..5] == [0x01, 0x80, 0xc2, 0, 0] && to.0[5] < 16 {
            return Err(DropReason::LinkLocal);
        }
        if !own {
            self.forget(source);
            let learned = &mut self.ports.get_mut(&from).unwrap().learned;
            learned.insert(source, (now, self.sent));
            if learned.len() > MAX_LEARNED {
                let oldest = *learned.iter().min_by_key(|(_, (_, order))| *order).unwrap().0;
                learned.remove(&oldest);
            }
        }
        let group = to.0[0] & 1 == 1;
        let behind = |port: &ModelPort| {
            let seen = port.learned.get(&to).is_some_and(|(at, _)| now - at < AGEING_NS);
            port.config.mac == to || seen
        };
        let known = self.ports.iter().find(|(_, port)| behind(port)).map(|(index, _)| *index);
        let mut woken = Vec::new();
        for (&index, port) in self.ports.iter_mut().filter(|(index, _)| **index != from) {
            let wanted = match known {
                Some(known) if !group => known == index,
                _ => group || port.config.source == SourcePolicy::Any,
            };
            if !wanted {
                continue;
            }
            let fits = port.bytes() + frame.len() + OVERHEAD <= port.capacity;
            if port.queue.len() == usize::from(port.config.queue_frames) || !fits {
                port.lost += 1;
                continue;
            }
            if port.queue.is_empty() {
                woken.push(index);
            }
            port.queue.push_back(frame.to_vec());
        }
        Ok(woken)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Attach { mac: u8, any: bool, frames: u16, bytes: usize },
    Detach { port: usize },
    Send { port: usize, to: u8, from: u8, length: usize },
    Receive { port: usize },
    Discard { port: usize },
    Wait { ns: u64 },
}

/// Addresses by small numbers: ports, stations behind them, groups, and what none may have.
fn address(n: u8) -> MacAddr {
    match n {
        0..=21 => mac(n + 1),
        22 => BROADCAST,
        23 => MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0f]),
        24 => MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x10]),
        _ => MacAddr([0; 6]),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![8 => MIN_FRAME..200, 4 => 1000..=MAX_FRAME, 1 => 0..1600_usize];
    let step = prop_oneof![
        2 => (0..6_u8, any::<bool>(), 0..8_u16, MIN_QUEUE_BYTES - 2..6000)
            .prop_map(|(mac, any, frames, bytes)| Step::Attach { mac, any, frames, bytes }),
        1 => (0..6_usize).prop_map(|port| Step::Detach { port }),
        16 => (0..6_usize, 0..26_u8, 0..26_u8, length)
            .prop_map(|(port, to, from, length)| Step::Send { port, to, from, length }),
        6 => (0..6_usize).prop_map(|port| Step::Receive { port }),
        1 => (0..6_usize).prop_map(|port| Step::Discard { port }),
        1 => (0..AGEING_NS).prop_map(|ns| Step::Wait { ns }),
    ];
    prop::collection::vec(step, 1..120)
}

/// Runs the same steps on the switch and on the model and compares all that can be seen.
fn compare(steps: &[Step]) -> Result<(), TestCaseError> {
    let (mut switch, mut model) = (Switch::new(), Model::default());
    let mut ports: Vec<Port> = Vec::new();
    let mut now = 0;
    for (tag, step) in steps.iter().enumerate() {
        match *step {
            Step::Attach { mac, any, frames, bytes } => {
                let source = if any { SourcePolicy::Any } else { SourcePolicy::Own };
                let config = PortConfig { queue_frames: frames, ..self::config(mac + 1, source) };
                let taken = model.ports.values().any(|port| port.config.mac == config.mac);
                let attached = switch.attach(config, vec![0; bytes], now);
                prop_assert_eq!(attached.is_ok(), !taken && bytes >= MIN_QUEUE_BYTES);
                let Ok(port) = attached else { continue };
                model.forget(config.mac);
                let (queue, learned) = (VecDeque::new(), BTreeMap::new());
                let fresh = ModelPort { config, capacity: bytes, queue, learned, lost: 0 };
                prop_assert!(model.ports.insert(port.index(), fresh).is_none());
                ports.push(port);
            }
            Step::Detach { port } if port < ports.len() => {
                let port = ports.swap_remove(port);
                let gone = model.ports.remove(&port.index()).unwrap();
                prop_assert_eq!(switch.detach(port).map(|m| m.len()), Some(gone.capacity));
            }
            Step::Send { port, to, from, length } if port < ports.len() => {
                let port = &ports[port];
                let frame = frame(address(to), address(from), length, tag as u8);
                let woken = switch.send(port, &frame, now).map(|set| set.iter().collect());
                prop_assert_eq!(woken, model.send(port.index(), &frame, now));
            }
            Step::Receive { port } if port < ports.len() => {
                let expected = model.ports.get_mut(&ports[port].index()).unwrap().queue.pop_front();
                prop_assert_eq!(switch.has_frame(&ports[port]), expected.is_some());
                prop_assert_eq!(next(&mut switch, &ports[port]), expected);
            }
            Step::Discard { port } if port < ports.len() => {
                model.ports.get_mut(&ports[port].index()).unwrap().queue.clear();
                switch.discard(&ports[port]);
            }
            Step::Wait { ns } => now += ns,
            _ => {}
        }
    }
    for port in &ports {
        let expected = model.ports.remove(&port.index()).unwrap();
        prop_assert_eq!(switch.stats(port).dropped_queue, expected.lost);
        for frame in expected.queue {
            prop_assert_eq!(next(&mut switch, port), Some(frame));
        }
        prop_assert_eq!(next(&mut switch, port), None);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_switch_does_what_the_model_does(steps in steps()) {
        compare(&steps)?;
    }

    /// What a port receives does not depend on whether another one receives at all.
    #[test]
    fn a_slow_receiver_loses_only_its_own_frames(
        traffic in prop::collection::vec((0..3_u8, any::<bool>(), MIN_FRAME..MAX_FRAME, any::<bool>()), 1..200),
    ) {
        let run = |slow: bool| {
            let (mut switch, [a, b, c]) = three();
            let mut seen = Vec::new();
            for (tag, &(to, broadcast, length, reads)) in traffic.iter().enumerate() {
                let to = if broadcast { BROADCAST } else { mac(to + 1) };
                let _ = switch.send(&a, &frame(to, mac(1), length, tag as u8), 0);
                if reads {
                    seen.extend(next(&mut switch, &b));
                    if !slow {
                        switch.discard(&c);
                    }
                }
            }
            seen.extend(core::iter::from_fn(|| next(&mut switch, &b)));
            seen
        };
        prop_assert_eq!(run(true), run(false));
    }
}
