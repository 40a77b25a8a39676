//! Threads that play realm guests.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use crate::context::RecContext;
use crate::host::cpu::{Cpu, Stop};
use crate::host::machine::Shared;
use crate::platform::{RawExit, Stage2Regime, Traps};

type Body = dyn Fn(&mut Cpu) -> Result<(), Stop> + Send + Sync;

/// What a realm guest does, for each of its RECs.
#[derive(Clone)]
pub struct GuestProgram(Arc<Body>);

impl core::fmt::Debug for GuestProgram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("GuestProgram")
    }
}

impl GuestProgram {
    pub(crate) fn new(body: impl Fn(&mut Cpu) -> Result<(), Stop> + Send + Sync + 'static) -> Self {
        Self(Arc::new(body))
    }
}

/// What the monitor hands to a REC that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) context: RecContext,
    pub(crate) regime: Stage2Regime,
    pub(crate) traps: Traps,
}

/// What the monitor gets back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) context: RecContext,
    pub(crate) raw: RawExit,
}

#[derive(Debug)]
struct Link {
    runs: Sender<Run>,
    exits: Receiver<Exit>,
    thread: JoinHandle<()>,
}

/// A REC's guest; its thread starts with the first run and ends when this is dropped.
#[derive(Debug)]
pub(crate) struct GuestThread {
    program: GuestProgram,
    shared: Arc<Shared>,
    link: Option<Link>,
}

impl GuestThread {
    pub(crate) fn new(program: GuestProgram, shared: Arc<Shared>) -> Self {
        Self { program, shared, link: None }
    }

    /// Lets the guest run until its next exit.
    ///
    /// # Panics
    /// If the guest panicked: its failed assertions are the test's.
    pub(crate) fn run(&mut self, run: Run) -> Exit {
        let link = self.link.get_or_insert_with(|| {
            let (runs, from_monitor) = channel();
            let (to_monitor, exits) = channel();
            let program = Arc::clone(&self.program.0);
            let shared = Arc::clone(&self.shared);
            let thread = thread::spawn(move || {
                if let Ok(first) = from_monitor.recv() {
                    let mut cpu = Cpu::new(shared, from_monitor, to_monitor, first);
                    execute(&*program, &mut cpu);
                }
            });
            Link { runs, exits, thread }
        });
        let sent = link.runs.send(run);
        match sent.ok().and_then(|()| link.exits.recv().ok()) {
            Some(exit) => exit,
            None => panic!("the realm guest panicked"),
        }
    }
}

/// Runs the program, again from its start whenever the REC is switched on anew; a REC whose
/// program has ended spins until it is gone.
fn execute(program: &Body, cpu: &mut Cpu) {
    loop {
        match program(cpu) {
            Err(Stop::Reset) => continue,
            Err(Stop::Gone) => return,
            Ok(()) | Err(Stop::Abort { .. } | Stop::Undefined) => {}
        }
        match cpu.spin() {
            Stop::Reset => continue,
            _ => return,
        }
    }
}

impl Drop for GuestThread {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            drop((link.runs, link.exits));
            // A panic of the guest has been reported by `run`.
            let _ = link.thread.join();
        }
    }
}
