//! Running, kicking, stopping and taking apart VMs on two cores, in all interleavings that the bound allows.
//!
//! A kick that is lost leaves a core in the guest, or asleep, for ever: the model checker reports that as
//! a deadlock. Everything else is asserted in [`models::machine`].
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread;
use models::check;
use models::machine::{Act, Machine};

/// Runs `other` on core 1 before that core enters its run loop, and `boot` on core 0.
fn on_two_cores(
    machine: &Arc<Machine>,
    boot: impl FnOnce(&Machine),
    other: impl FnOnce(&Machine) + 'static,
) {
    let second = {
        let machine = Arc::clone(machine);
        thread::spawn(move || {
            other(&machine);
            machine.run_core(1);
        })
    };
    boot(machine);
    machine.run_core(0);
    second.join().unwrap();
    machine.settle();
}

/// One vCPU turns the VM off while the other computes on another core.
#[test]
fn the_last_to_leave_takes_the_vm_apart() {
    check(2, || {
        let machine = Arc::new(Machine::new(&[&[&[&[Act::CpuOn(1), Act::SystemOff], &[]]]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |_| {});
    });
}

/// Another core stops a VM that is about to run, runs, or sleeps.
#[test]
fn any_core_can_stop_a_vm() {
    for script in [&[][..], &[Act::Wait], &[Act::Sleep]] {
        check(3, move || {
            let machine = Arc::new(Machine::new(&[&[&[script]]]));
            machine.build(0);
            on_two_cores(&machine, |_| {}, |machine| machine.stop(0));
        });
    }
}

/// Two cores stop the VM at once, and the guest too.
#[test]
fn only_the_first_stop_counts() {
    check(3, || {
        let machine = Arc::new(Machine::new(&[&[&[&[Act::SystemOff]]]]));
        machine.build(0);
        on_two_cores(&machine, |machine| machine.stop(0), |machine| machine.stop(0));
    });
}

/// A stop that is late hits the VM that was built anew, or nothing, but not half of each.
#[test]
fn a_late_stop_spares_the_vm_that_is_built_anew() {
    check(3, || {
        let guests: &[&[Act]] = &[&[Act::SystemOff]];
        let machine = Arc::new(Machine::new(&[&[guests, guests]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |machine| machine.stop(0));
    });
}

/// An interrupt for a vCPU that sleeps, while its VM is stopped.
#[test]
fn an_interrupt_may_meet_a_stop() {
    check(3, || {
        let machine = Arc::new(Machine::new(&[&[&[&[Act::Wait]]]]));
        machine.build(0);
        on_two_cores(&machine, |machine| machine.stop(0), |machine| machine.interrupt(0, 0));
    });
}

/// An interrupt for a vCPU that goes to sleep is not lost.
#[test]
fn an_interrupt_wakes_a_vcpu() {
    check(3, || {
        let machine = Arc::new(Machine::new(&[&[&[&[Act::Wait, Act::SystemOff]]]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |machine| machine.interrupt(0, 0));
    });
}

/// A timer that is due wakes its vCPU, whichever core ran it last, also while it is stopped.
#[test]
fn a_timer_wakes_a_vcpu() {
    check(3, || {
        let guest = &[Act::Sleep, Act::Sleep, Act::SystemOff];
        let machine = Arc::new(Machine::new(&[&[&[guest]]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |machine| machine.interrupt(0, 0));
    });
}

/// One VM is built while another is taken apart: neither gets the other's vCPUs, though there are
/// too few numbers for both to have their own.
#[test]
fn numbers_are_reused_only_when_their_slot_is_empty() {
    check(3, || {
        let first: &[&[Act]] = &[&[Act::SystemOff], &[]];
        let second: &[&[Act]] = &[&[Act::SystemOff]];
        let machine = Arc::new(Machine::new(&[&[first], &[second]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |machine| machine.build(1));
    });
}

/// A vCPU that turned itself off does not run for an interrupt, and does for CPU_ON.
#[test]
fn a_vcpu_that_is_off_runs_only_when_it_is_turned_on() {
    check(2, || {
        let boot = &[Act::CpuOn(1), Act::Interrupt(1), Act::CpuOn(1), Act::Wait, Act::SystemOff];
        let other = &[Act::CpuOff, Act::Interrupt(0)];
        let machine = Arc::new(Machine::new(&[&[&[boot, other]]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |_| {});
    });
}

/// An operator suspends the VM for a moment while its guest waits for an interrupt, which is not lost.
#[test]
fn a_pause_loses_no_interrupt() {
    check(3, || {
        let machine = Arc::new(Machine::new(&[&[&[&[Act::Wait, Act::SystemOff]]]]));
        machine.build(0);
        on_two_cores(
            &machine,
            |machine| machine.pause_and_resume(0),
            |machine| machine.interrupt(0, 0),
        );
    });
}

/// An operator suspends the VM for a moment while it stops and is built anew.
#[test]
fn a_pause_may_meet_a_stop() {
    check(3, || {
        let guests: &[&[Act]] = &[&[Act::SystemOff]];
        let machine = Arc::new(Machine::new(&[&[guests, guests]]));
        machine.build(0);
        on_two_cores(&machine, |_| {}, |machine| machine.pause_and_resume(0));
    });
}
