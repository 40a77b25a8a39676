//! What the monitor's commands do.

use super::{attach, help, trace};
use crate::arch::layout::MAX_CORES;
use crate::arch::percpu::core_index;
use crate::memory::ledger;
use crate::run::SCHEDULER;
use crate::vm::lifecycle::{self, Next};
use crate::vm::stats::{Cause, Milliseconds};
use crate::vm::{self, Vm, vcpu};
use crate::{cores, irq, print, println};
use core::fmt::{self, Write};
use core::sync::atomic::Ordering;
use log::LevelFilter;
use mm::PAGE_SIZE;
use mm::ledger::{GranuleState, Owner};
use operator::{Command, VmAction};
use sched::{CoreId, EntityId, State};
use vmm_services::VcpuId;

/// Carries a command out.
pub(super) fn run(command: &Command<'_>) {
    match *command {
        Command::Nothing => {}
        Command::Help => help(),
        Command::List => list(),
        Command::Vm(action, name) => with_vm(name, |vm| act(action, vm)),
        Command::Console(name) => with_vm(name, |vm| attach(vm.index())),
        Command::Cpu => cpu(),
        Command::Memory => memory(),
        Command::Granules => granules(),
        Command::Irq => interrupts(),
        Command::Trace(core) => show_trace(core),
        Command::Log(level) => {
            log::set_max_level(level);
            println!("log level: {}", LevelName(level));
        }
    }
}

fn with_vm(name: &str, act: impl FnOnce(&'static Vm)) {
    match vm::all().iter().find(|vm| vm.name() == name) {
        Some(vm) => act(vm),
        None => println!("there is no VM \"{name}\"; vm list names them"),
    }
}

fn act(action: VmAction, vm: &'static Vm) {
    let done = match action {
        VmAction::Show => {
            show(vm);
            return;
        }
        VmAction::Start => lifecycle::launch(vm) || lifecycle::bring_back(vm, Next::Run),
        VmAction::Create => lifecycle::bring_back(vm, Next::Build),
        VmAction::Pause => lifecycle::pause(vm),
        VmAction::Resume => lifecycle::resume(vm),
        VmAction::Stop => lifecycle::hold(vm),
        VmAction::Restart => lifecycle::restart(vm) || lifecycle::bring_back(vm, Next::Run),
        VmAction::Destroy => lifecycle::destroy(vm),
    };
    let but = if done { "" } else { "nothing to do, it is " };
    println!("vm {}: {but}{}", vm.name(), vm.state());
}

fn list() {
    println!("   {:<16} {:<5} {:<9} {:>5} {:>10}", "name", "kind", "state", "vcpus", "memory");
    for (vm, number) in vm::all().iter().zip(1..) {
        let Some(spec) = vm.spec() else { continue };
        println!(
            "{number:>2} {:<16} {:<5} {:<9} {:>5} {:>6} MiB",
            spec.name,
            vm.kind(),
            vm.state(),
            spec.vcpus,
            spec.memory >> 20
        );
    }
}

fn show(vm: &Vm) {
    let Some(spec) = vm.spec() else { return };
    println!("{} {}: {}, priority {}", vm.kind(), spec.name, vm.state(), spec.priority);
    println!(
        "  time: guest {} ms, hypervisor {} ms, RMM {} ms",
        Milliseconds(vm.stats.guest_ticks()),
        Milliseconds(vm.stats.host_ticks.load(Ordering::Relaxed)),
        Milliseconds(vm.stats.rmm_ticks.load(Ordering::Relaxed)),
    );
    print!("  exits:");
    for &cause in Cause::ALL {
        print!(" {} {}", cause.name(), vm.stats.exits(cause));
    }
    println!();
    println!("  granules: {}", ledger().census_of(vm.owner()));
    for id in vm.vcpus() {
        let Some(entity) = vm.entity(id) else { continue };
        let scheduler = SCHEDULER.lock();
        let (state, stats) = (scheduler.state(entity), scheduler.stats(entity));
        drop(scheduler);
        let on = vcpu::slot(entity).is_some_and(|slot| slot.status.is_on());
        let Some((state, stats)) = state.zip(stats) else { continue };
        print!("  vcpu {id}: ");
        match state {
            _ if !on => print!("off"),
            State::Blocked => print!("waits"),
            State::Queued(core) => print!("queued on core {}", core.index()),
            State::Running(core) => print!("runs on core {}", core.index()),
            State::Throttled { .. } => print!("has used up its budget"),
            State::Paused => print!("paused"),
            State::Exited => print!("has left"),
        }
        println!(
            ", ran {} us, {} wake-ups, {} migrations",
            stats.run_ns / 1000,
            stats.wakes,
            stats.migrations
        );
    }
}

fn cpu() {
    for index in online_cores() {
        let running = SCHEDULER.lock().running(CoreId(index as u8));
        if let Some((vm, id)) = running.and_then(owner_of) {
            println!("core {index}: {} vcpu {id}", vm.name());
            continue;
        }
        // The core that carries out commands has no vCPU loaded meanwhile.
        let now = if index == core_index() { "monitor" } else { "idle" };
        match trace::last_of_core(index) {
            Some(record) => println!("core {index}: {now}, after {}", record.whose()),
            None => println!("core {index}: {now}"),
        }
    }
}

/// Indices of the cores that are up.
fn online_cores() -> impl Iterator<Item = usize> {
    (0..MAX_CORES).filter(|index| cores::is_online(*index))
}

/// Whose vCPU an entity is.
fn owner_of(entity: EntityId) -> Option<(&'static Vm, VcpuId)> {
    vm::all().iter().find_map(|vm| {
        let id = vm.vcpus().find(|id| vm.entity(*id) == Some(entity))?;
        Some((vm, id))
    })
}

fn memory() {
    let census = ledger().census();
    let line = |name: &dyn core::fmt::Display, count: u64| {
        println!("{count:>9} granules {:>8} KiB  {name}", count * (PAGE_SIZE >> 10));
    };
    for (state, count) in census.states() {
        match state {
            GranuleState::Free => line(&"free", count),
            GranuleState::Reserved(used_for) => line(&format_args!("{used_for}, reserved"), count),
            GranuleState::Ns { used_for, .. } => line(&used_for, count),
            GranuleState::Delegated { .. } => line(&"delegated", count),
            GranuleState::Rmm { used_for, .. } => {
                line(&format_args!("{used_for} of a realm"), count)
            }
            GranuleState::Lost { .. } => line(&"lost", count),
        }
    }
    line(&"in all", census.total());
}

fn granules() {
    println!("all: {}", ledger().census());
    println!("hypervisor: {}", ledger().census_of(Owner::HYPERVISOR));
    for vm in vm::all() {
        println!("{}: {}", vm.name(), ledger().census_of(vm.owner()));
    }
}

fn interrupts() {
    print!("{:<6}", "core");
    for kind in irq::KINDS {
        print!(" {kind:>8}");
    }
    println!();
    let mut sums = [0; irq::KINDS.len()];
    for index in online_cores() {
        let counts = irq::taken(index);
        println!("{}", InterruptRow(&index, &counts));
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    println!("{}", InterruptRow(&"in all", &sums));
}

/// One line of interrupts taken, in the order of [`irq::KINDS`].
struct InterruptRow<'a>(&'a dyn fmt::Display, &'a [u64]);

impl fmt::Display for InterruptRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<6}", self.0)?;
        let mut columns = irq::KINDS.iter().zip(self.1);
        columns.try_for_each(|(kind, count)| write!(f, " {count:>0$}", kind.len().max(8)))
    }
}

/// A log level as one types it.
struct LevelName(LevelFilter);

impl fmt::Display for LevelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_str().chars().try_for_each(|letter| f.write_char(letter.to_ascii_lowercase()))
    }
}

fn show_trace(core: Option<usize>) {
    if let Some(index) = core
        && !cores::is_online(index)
    {
        println!("core {index} is not up");
        return;
    }
    for index in online_cores().filter(|index| core.is_none_or(|wanted| wanted == *index)) {
        println!("core {index}:");
        for record in trace::of_core(index) {
            println!("  {record}");
        }
    }
}
