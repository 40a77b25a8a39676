//! Test guest at one end of a channel, as a normal VM or as a realm.
//!
//! Without `serve=N` on its command line it asks: it fills half of the channel's memory with numbers,
//! rings, and checks what the peer makes of them in the other half. With `serve=N` it answers on all
//! its channels until each has been asked by `N` lives of its peer. With `last` it then stays until its
//! peers are gone. It sleeps in WFI between doorbells.
#![no_std]
#![no_main]

use guest_rt::boot::{BootInfo, MAX_CHANNELS};
use guest_rt::channel::{Channel, PRESENT, READY};
use guest_rt::failure::Failure;
use guest_rt::rng::Rng;
use guest_rt::{gic, println, timer};

/// Questions that each life of an asking guest has.
const ROUNDS: u64 = 32;
/// Doorbell of a question and of an answer.
const RING: u32 = 1;
/// How long to wait for the peer, in milliseconds.
const PATIENCE_MS: u64 = 60_000;
/// How often to look whether patience is at its end, in milliseconds.
const TICK_MS: u64 = 500;

// Words of the memory. It is zero when the channel is new, and nobody clears it after.
/// Lives of the asking guest so far.
const LIVES: usize = 0;
/// Number of the question, from 1.
const QUESTION: usize = 1;
/// Number of the question that was answered.
const ANSWER: usize = 2;
/// Sum over the words of the question, then over those of the answer.
const SUMS: [usize; 2] = [3, 4];
/// The two halves begin here.
const DATA: usize = 8;

guest_rt::guest!("channel", run, secondary);

fn secondary(_: u64) -> Result<(), Failure> {
    Err("nobody starts a second vCPU".into())
}

fn run(info: &BootInfo) -> Result<(), Failure> {
    gic::init_distributor();
    gic::init_cpu()?;
    timer::start(TICK_MS);
    if info.channels.is_empty() {
        return Err("there is no channel".into());
    }
    let last = info.flag("last");
    let mut channels = [const { None }; MAX_CHANNELS];
    for (index, (channel, place)) in channels.iter_mut().zip(&info.channels).enumerate() {
        let opened = channel.insert(Channel::open(index, place)?);
        opened.set_ready(true);
    }
    let channels = channels.each_mut().map(Option::as_mut);
    Ok(match info.number("serve") {
        Some(lives) => serve(channels.into_iter().flatten(), lives, last),
        None => channels.into_iter().flatten().try_for_each(|channel| ask(channel, last)),
    }?)
}

/// Asks [`ROUNDS`] questions.
fn ask(channel: &mut Channel, last: bool) -> Result<(), &'static str> {
    let lives = channel.read(LIVES) + 1;
    channel.write(LIVES, lives);
    channel.write(ANSWER, 0);
    println!("channel: asking, life {lives}, {} words", channel.words());
    wait_for(|| channel.peer() & READY != 0)?;
    for round in 1..=ROUNDS {
        let seed = lives << 32 | round;
        let sum = fill(channel, 0, |index| mix(seed + index));
        channel.write(SUMS[0], sum);
        channel.write(QUESTION, round);
        let _ = channel.take_events();
        channel.ring(RING);
        wait_for(|| channel.take_events() & RING != 0)?;
        if channel.read(ANSWER) != round {
            return Err("the answer is to another question");
        }
        let sum = check(channel, 1, |index| !mix(seed + index))?;
        if sum != channel.read(SUMS[1]) {
            return Err("the answer has another sum than its sender found");
        }
    }
    channel.set_ready(false);
    if last {
        wait_for(|| channel.peer() & PRESENT == 0)?;
        println!("channel: the peer is gone");
    }
    Ok(())
}

/// Answers on all channels until each has been asked by `lives` lives of its peer.
fn serve<'a>(
    channels: impl Iterator<Item = &'a mut Channel>,
    lives: u64,
    last: bool,
) -> Result<(), &'static str> {
    for channel in channels {
        for life in 1..=lives {
            for round in 1..=ROUNDS {
                wait_for(|| channel.take_events() & RING != 0)?;
                answer(channel, life, round)?;
            }
        }
        if last {
            wait_for(|| channel.peer() & PRESENT == 0)?;
            println!("channel: the peer is gone");
        }
        channel.set_ready(false);
    }
    Ok(())
}

/// Checks a question, and answers with the complement of each word.
fn answer(channel: &mut Channel, life: u64, round: u64) -> Result<(), &'static str> {
    if channel.read(LIVES) != life {
        return Err("the channel's memory did not outlive the peer");
    }
    if channel.read(QUESTION) != round {
        return Err("a doorbell was lost or came twice");
    }
    let seed = life << 32 | round;
    let sum = check(channel, 0, |index| mix(seed + index))?;
    if sum != channel.read(SUMS[0]) {
        return Err("the question has another sum than its sender found");
    }
    let sum = fill(channel, 1, |index| !mix(seed + index));
    channel.write(SUMS[1], sum);
    channel.write(ANSWER, round);
    channel.ring(RING);
    if round == ROUNDS {
        println!("channel: answered {ROUNDS} questions of life {life}");
    }
    Ok(())
}

/// Index of the first word of a half, and the number of its words.
fn half(channel: &Channel, half: usize) -> (usize, usize) {
    let words = channel.words().saturating_sub(DATA) / 2;
    (DATA + half * words, words)
}

/// Fills a half; returns the sum of its words.
fn fill(channel: &mut Channel, half: usize, word: impl Fn(u64) -> u64) -> u64 {
    let (first, words) = self::half(channel, half);
    let mut sum = 0_u64;
    for index in 0..words {
        let value = word(index as u64);
        sum = sum.rotate_left(1).wrapping_add(value);
        channel.write(first + index, value);
    }
    sum
}

/// Checks a half word by word; returns the sum of its words.
fn check(channel: &Channel, half: usize, word: impl Fn(u64) -> u64) -> Result<u64, &'static str> {
    let (first, words) = self::half(channel, half);
    let mut sum = 0_u64;
    for index in 0..words {
        let value = channel.read(first + index);
        if value != word(index as u64) {
            return Err("a word of the peer is wrong");
        }
        sum = sum.rotate_left(1).wrapping_add(value);
    }
    Ok(sum)
}

/// A word of a question.
const fn mix(number: u64) -> u64 {
    Rng::new(number).next_u64()
}

/// Sleeps until `done`, or until the peer has had its time. The timer's ticks wake it.
fn wait_for(mut done: impl FnMut() -> bool) -> Result<(), &'static str> {
    let deadline = timer::now() + timer::steps(PATIENCE_MS);
    let mut in_time = false;
    gic::sleep_until(|| {
        in_time = done();
        in_time || timer::now() > deadline
    });
    if in_time { Ok(()) } else { Err("the peer did nothing for a minute") }
}
