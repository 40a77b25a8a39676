//! REC_ENTER: refusals, exits, completions.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use rmm::abi::{enter_flags, exit_reason, fid, psci_fid};
use rmm::host::Stop;
use rmm::platform::SysRegIss;
use rmm::{Ipa, Pa, RawExit};

use crate::harness::{Host, INPUT, NORMAL_RW, OK, Params, REALM, REC, SHARED, rec_params};

const EC_DATA_ABORT: u64 = 0x24 << 26;
const ISV: u64 = 1 << 24;
const WNR: u64 = 1 << 6;

#[test]
fn entry_is_refused_without_a_trace() {
    let host = Host::with_guest(|cpu| cpu.system_off());
    let realm = host.realm();
    let (rec, _) = host.rec(realm, 0, true);
    let (off, _) = host.rec(realm, 1, false);
    let run = host.alloc(1).0;
    let enter = |rec: Pa, run: u64| host.status(fid::REC_ENTER, [rec.0, run]);
    assert_eq!(enter(rec, run), REALM, "new realm: index 0");
    host.activate(realm);
    assert_eq!(enter(rec, host.delegated().0), INPUT, "run page is delegated");
    assert_eq!(enter(rec, run + 8), INPUT, "run page is misaligned");
    assert_eq!(enter(realm.rd, run), INPUT, "no REC");
    assert_eq!(enter(off, run), REC, "not runnable");
    let try_with = |enter: Params| host.try_enter(rec, enter).0;
    assert_eq!(try_with(Params::new().set(0, 1 << 5)), REC, "reserved flag");
    assert_eq!(try_with(Params::new().set(8, 1)), INPUT, "reserved byte");
    assert_eq!(try_with(Params::new().set(0x300, 1)), REC, "ICH_HCR_EL2.En");
    assert_eq!(try_with(Params::new().set(0x308, 0b111 << 61 | 27)), REC, "HW interrupt");
    assert_eq!(try_with(Params::new().set(0, enter_flags::INJECT_SEA)), REC, "nothing to inject");
    assert_eq!(try_with(Params::new().set(0, enter_flags::EMUL_MMIO)), REC, "nothing emulated");
    assert_eq!(host.enter(rec, 0).gpr(0), psci_fid::SYSTEM_OFF);
    assert_eq!(enter(rec, run), REALM | 1 << 8, "system off: index 1");
}

#[test]
fn a_rec_runs_on_one_cpu_at_a_time() {
    let (entered, wait_entered) = channel();
    let (resume, wait_resume) = channel();
    let wait_resume = std::sync::Mutex::new(wait_resume);
    let host = Host::with_guest(move |cpu| {
        entered.send(()).unwrap();
        wait_resume.lock().unwrap().recv().unwrap();
        cpu.system_off()
    });
    let (realm, rec) = host.active();
    let run = host.alloc(1);
    let machine = Arc::new(host.machine);
    let running = Arc::clone(&machine);
    let enter = [rec.0, run.0, 0, 0, 0, 0, 0];
    let cpu = thread::spawn(move || running.call(fid::REC_ENTER, enter)[0]);
    wait_entered.recv().unwrap();
    assert_eq!(machine.call(fid::REC_ENTER, enter)[0], REC);
    assert_eq!(machine.call(fid::REC_DESTROY, [rec.0, 0, 0, 0, 0, 0, 0])[0], REC);
    let set = [realm.rd.0, rec.0, 0, 0x1000, 0, 0, 0];
    assert_eq!(machine.call(fid::RTT_SET_RIPAS, set)[0], REC);
    resume.send(()).unwrap();
    assert_eq!(cpu.join().unwrap(), OK);
}

#[test]
fn a_run_page_that_is_delegated_meanwhile_is_refused() {
    let (entered, wait_entered) = channel();
    let (resume, wait_resume) = channel();
    let wait_resume = std::sync::Mutex::new(wait_resume);
    let host = Host::with_guest(move |cpu| {
        entered.send(()).unwrap();
        wait_resume.lock().unwrap().recv().unwrap();
        cpu.wfi()
    });
    let (_, rec) = host.active();
    let run = host.alloc(1);
    let machine = Arc::new(host.machine);
    let running = Arc::clone(&machine);
    let enter = [rec.0, run.0, 0, 0, 0, 0, 0];
    let cpu = thread::spawn(move || running.call(fid::REC_ENTER, enter)[0]);
    wait_entered.recv().unwrap();
    assert_eq!(machine.call(fid::GRANULE_DELEGATE, [run.0, 0, 0, 0, 0, 0, 0])[0], OK);
    resume.send(()).unwrap();
    assert_eq!(cpu.join().unwrap(), INPUT);
}

#[test]
fn protected_faults_tell_the_page_and_nothing_more() {
    let host = Host::with_guest(|cpu| {
        cpu.store(Ipa(0x1238), 8, 42)?;
        assert_eq!(cpu.load(Ipa(0x1238), 8)?, 42);
        cpu.fetch(Ipa(0x2000))?;
        assert!(matches!(cpu.load(Ipa(0x5000), 8), Err(Stop::Abort { .. })), "EMPTY");
        assert!(matches!(cpu.fetch(Ipa(0x5000)), Err(Stop::Abort { .. })), "EMPTY");
        assert!(matches!(cpu.load(Ipa(1 << 40), 8), Err(Stop::Abort { .. })), "no such IPA");
        cpu.system_off()
    });
    let realm = host.realm();
    host.tables(realm, 0, 3);
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [realm.rd.0, 0x1000, 0x3000])[0], OK);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.fault_ipa(), exit.far()], [exit_reason::SYNC, 0x1000, 0]);
    assert_eq!(exit.esr(), EC_DATA_ABORT | 0x07);
    assert_eq!(exit.gpr(0), 0);
    assert_eq!(host.try_enter(rec, Params::new().set(0, enter_flags::EMUL_MMIO)).0, REC);
    assert_eq!(host.try_enter(rec, Params::new().set(0, enter_flags::INJECT_SEA)).0, REC);
    host.map(realm, 0x1000);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.esr(), exit.fault_ipa()], [0x20 << 26 | 0x07, 0x2000]);
    host.map(realm, 0x2000);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn destroyed_memory_faults_for_ever() {
    let host = Host::with_guest(|cpu| cpu.touch(Ipa(0x1000)));
    let realm = host.realm();
    host.map_ram(realm, 0x1000);
    assert_eq!(host.status(fid::DATA_DESTROY, [realm.rd.0, 0x1000]), OK);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).fault_ipa(), 0x1000);
    host.map(realm, 0x1000);
    assert_eq!(host.enter(rec, 0).fault_ipa(), 0x1000, "mapped, and still not accessible");
}

#[test]
fn mmio_is_emulated() {
    let host = Host::with_guest(|cpu| {
        cpu.store(Ipa(SHARED + 0x1234), 4, 0xffff_ffff_8765_4321)?;
        assert_eq!(cpu.load(Ipa(SHARED + 0x1001), 1)?, 0x99);
        assert!(matches!(cpu.load(Ipa(SHARED), 8), Err(Stop::Abort { esr }) if esr & 0x3f == 0x10));
        assert!(matches!(cpu.fetch(Ipa(SHARED)), Err(Stop::Abort { .. })));
        cpu.touch(Ipa(SHARED + 0x2000))?;
        cpu.system_off()
    });
    let (realm, rec) = host.active();
    let exit = host.enter(rec, 0);
    assert_eq!(exit.reason(), exit_reason::SYNC);
    assert_eq!(exit.esr(), EC_DATA_ABORT | ISV | 0b10 << 22 | WNR | 0x04, "no register number");
    assert_eq!([exit.fault_ipa(), exit.far()], [SHARED + 0x1000, 0x234]);
    assert_eq!(exit.gpr(0), 0x8765_4321, "cut to the access");
    let exit = host.enter(rec, enter_flags::EMUL_MMIO);
    assert_eq!(exit.esr() & (ISV | WNR | 0b11 << 22), ISV);
    assert_eq!(exit.gpr(0), 0, "no store data of a load");
    let emulated = Params::new().set(0, enter_flags::EMUL_MMIO).set(0x200, 0xaa99);
    let exit = host.enter_with(rec, emulated);
    assert_eq!([exit.fault_ipa(), exit.far()], [SHARED, 0]);
    // INJECT_SEA wins over EMUL_MMIO.
    let exit = host.enter(rec, enter_flags::EMUL_MMIO | enter_flags::INJECT_SEA);
    assert_eq!([exit.fault_ipa(), exit.far()], [SHARED + 0x2000, 0], "no syndrome, no FAR");
    assert_eq!(exit.esr(), EC_DATA_ABORT | 0x04);
    assert_eq!(host.try_enter(rec, Params::new().set(0, enter_flags::EMUL_MMIO)).0, REC);
    host.share(realm, SHARED + 0x2000);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn shared_memory_is_shared_and_guarded() {
    let host = Host::with_guest(|cpu| {
        assert_eq!(cpu.load(Ipa(SHARED), 8)?, 0x1122);
        cpu.store(Ipa(SHARED + 8), 8, 0x3344)?;
        cpu.interrupted()?;
        cpu.load(Ipa(SHARED), 8)?;
        Ok(())
    });
    let realm = host.realm();
    let (rec, _) = host.rec(realm, 0, true);
    let page = host.share(realm, SHARED);
    host.machine.write(page, &0x1122_u64.to_le_bytes()).unwrap();
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::IRQ);
    let mut bytes = [0; 8];
    host.machine.read(page.offset(8), &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 0x3344);
    // A page that the host delegates while it is shared is out of the realm's reach.
    host.delegate(page);
    let exit = host.enter(rec, 0);
    assert_eq!(exit.esr() & 0x3f, 0x28, "granule protection fault");
    assert_eq!(exit.fault_ipa(), SHARED);
}

#[test]
fn unmapping_is_seen_at_once() {
    let host = Host::with_guest(|cpu| {
        cpu.load(Ipa(SHARED), 8)?;
        cpu.load(Ipa(0x1000), 8)?;
        cpu.interrupted()?;
        assert!(matches!(cpu.load(Ipa(SHARED), 8), Err(Stop::Abort { .. })));
        cpu.load(Ipa(0x1000), 8)?;
        Ok(())
    });
    let realm = host.realm();
    let (rec, _) = host.rec(realm, 0, true);
    host.share(realm, SHARED);
    host.map_ram(realm, 0x1000);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::IRQ);
    assert_eq!(host.call(fid::RTT_UNMAP_UNPROTECTED, [realm.rd.0, SHARED, 3])[0], OK);
    assert_eq!(host.call(fid::DATA_DESTROY, [realm.rd.0, 0x1000])[0], OK);
    assert_eq!(host.enter(rec, 0).fault_ipa(), SHARED);
    assert_eq!(host.enter(rec, enter_flags::INJECT_SEA).fault_ipa(), 0x1000);
}

#[test]
fn blocks_are_used_by_the_realm() {
    let host = Host::with_guest(|cpu| {
        assert_eq!(cpu.load(Ipa(SHARED + 0x12_3458), 8)?, 0x77);
        cpu.system_off()
    });
    let realm = host.realm();
    let (rec, _) = host.rec(realm, 0, true);
    host.tables(realm, SHARED, 2);
    let block = host.alloc(512);
    host.machine.write(block.offset(0x12_3458), &[0x77]).unwrap();
    let args = [realm.rd.0, SHARED, 2, block.0 | NORMAL_RW];
    assert_eq!(host.status(fid::RTT_MAP_UNPROTECTED, args), OK);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn waiting_exits_only_if_asked() {
    let host = Host::with_guest(|cpu| {
        cpu.wfi()?;
        cpu.wfe()?;
        cpu.wfi()
    });
    let (_, rec) = host.active();
    let exit = host.enter(rec, enter_flags::TRAP_WFI);
    assert_eq!([exit.reason(), exit.esr()], [exit_reason::SYNC, 0x01 << 26]);
    let exit = host.enter(rec, enter_flags::TRAP_WFE);
    assert_eq!([exit.reason(), exit.esr()], [exit_reason::SYNC, 0x01 << 26 | 1]);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::IRQ, "the flags are of one entry");
}

#[test]
fn instructions_that_realms_do_not_have_are_undefined() {
    let host = Host::with_guest(|cpu| {
        assert_eq!(cpu.hvc(), Err(Stop::Undefined));
        let mpam0 = SysRegIss(3 << 20 | 1 << 17 | 10 << 10 | 5 << 1);
        assert_eq!(cpu.read_sysreg(mpam0), Err(Stop::Undefined));
        let sve = RawExit::Sync { esr: 0x19 << 26, far: 0, hpfar: 0 };
        assert_eq!(cpu.event(sve), Err(Stop::Undefined));
        let pmcr = SysRegIss(3 << 20 | 3 << 14 | 9 << 10 | 12 << 1);
        assert_eq!(cpu.read_sysreg(pmcr), Ok(0), "reads as zero");
        cpu.write_sysreg(pmcr, 1)?;
        let pfr0 = SysRegIss(3 << 20 | 4 << 1);
        assert_eq!(cpu.read_sysreg(pfr0)?, 0x1101_0000_1111_0011 & 0x1101_0000_1111_0011);
        cpu.system_off()
    });
    let (_, rec) = host.active();
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn cpu_interface_accesses_exit() {
    let host = Host::with_guest(|cpu| {
        let sgi1r = SysRegIss(3 << 20 | 5 << 17 | 12 << 10 | 11 << 1);
        cpu.write_sysreg(sgi1r, 0x1_0001)?;
        assert_eq!(cpu.read_sysreg(sgi1r)?, 0x55);
        cpu.system_off()
    });
    let (_, rec) = host.active();
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.esr() >> 26], [exit_reason::SYNC, 0x18]);
    assert_eq!(exit.esr() >> 5 & 0x1f, 0, "the register number is hidden");
    assert_eq!(exit.gpr(0), 0x1_0001);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.esr() & 1, exit.gpr(0)], [1, 0]);
    assert_eq!(host.enter_with(rec, Params::new().set(0x200, 0x55)).reason(), exit_reason::PSCI);
}

#[test]
fn other_events_are_passed_on() {
    let host = Host::with_guest(|cpu| {
        cpu.event(RawExit::Fiq)?;
        cpu.event(RawExit::SError { esr: 0x2f << 26 | 0b011 << 10 | 0x11 })?;
        assert_eq!(cpu.context().el1.vse_pending, 1, "the realm gets it too");
        cpu.event(RawExit::Sync { esr: 0x3c << 26, far: 0x123, hpfar: 0x450 })?;
        // A restartable external abort: the realm goes on.
        cpu.event(RawExit::Sync { esr: EC_DATA_ABORT | 0b11 << 11 | 0x10, far: 8, hpfar: 0 })?;
        let recoverable = RawExit::Sync { esr: EC_DATA_ABORT | 0x10, far: 8, hpfar: 0 };
        assert!(matches!(cpu.event(recoverable), Err(Stop::Abort { .. })));
        cpu.system_off()
    });
    let (_, rec) = host.active();
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::FIQ);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.esr()], [exit_reason::SERROR, 0b011 << 10 | 0x11]);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.esr(), exit.far()], [exit_reason::SYNC, 0, 0], "unknown");
    let exit = host.enter(rec, 0);
    assert_eq!(exit.esr(), EC_DATA_ABORT | 0b11 << 11 | 0x10);
    assert_eq!(host.try_enter(rec, Params::new().set(0, enter_flags::INJECT_SEA)).0, REC);
    assert_eq!(host.enter(rec, 0).esr(), EC_DATA_ABORT | 0x10);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn timers_are_reported_and_changes_exit() {
    let host = Host::with_guest(|cpu| {
        cpu.context().timers.cntv_cval = 100;
        cpu.context().timers.cntv_ctl = 1;
        cpu.wfi()?;
        // The output is known to the host and does not interrupt again.
        cpu.touch(Ipa(0))?;
        cpu.context().timers.cntv_ctl = 0;
        cpu.hvc().unwrap_err();
        cpu.system_off()
    });
    let realm = host.realm();
    host.map_ram(realm, 0);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, enter_flags::TRAP_WFI);
    assert_eq!([exit.reason(), exit.field(0x410), exit.field(0x418)], [0, 1, 100]);
    assert_eq!([exit.field(0x400), exit.field(0x408)], [0, 0]);
    host.machine.advance(100);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.field(0x410)], [exit_reason::IRQ, 0b101], "it fired");
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.field(0x410)], [exit_reason::IRQ, 0], "it was switched off");
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn virtual_interrupts_go_through_the_list_registers() {
    const PENDING: u64 = 1 << 62;
    let host = Host::with_guest(|cpu| {
        assert_eq!(cpu.acknowledge(), Some(27));
        cpu.interrupted()?;
        assert!(cpu.end_of_interrupt(27));
        assert_eq!(cpu.acknowledge(), None);
        cpu.interrupted()
    });
    let (_, rec) = host.active();
    let lr = PENDING | 1 << 60 | 27;
    let exit = host.enter_with(rec, Params::new().set(0x300, 1 << 3).set(0x308, lr));
    assert_eq!(exit.field(0x308), lr ^ 3 << 62, "active");
    assert_eq!(exit.field(0x300), 1 << 3, "the host's bits only");
    let exit = host.enter_with(rec, Params::new().set(0x308, lr ^ 3 << 62));
    assert_eq!(exit.field(0x308), lr & !(3 << 62), "inactive");
}

#[test]
fn a_pending_interrupt_stops_the_rec() {
    let host = Host::with_guest(|cpu| cpu.system_off());
    let (_, rec) = host.active();
    host.machine.raise_interrupt();
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::IRQ);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}

#[test]
fn a_rec_starts_as_its_parameters_say() {
    let host = Host::with_guest(|cpu| {
        assert_eq!(cpu.entry(), (0x8000_1234, 0xabc));
        assert_eq!(cpu.context().gprs[1..9], [1, 2, 3, 4, 5, 6, 7, 0]);
        assert_eq!(cpu.context().pstate, 0x3c5);
        cpu.system_off()
    });
    let realm = host.realm();
    let aux: Vec<Pa> = (0..16).map(|_| host.delegated()).collect();
    let rec = host.delegated();
    let mut params = rec_params(1, 0, 0x8000_1234, &aux).set(0x300, 0xabc);
    for number in 1..8 {
        params = params.set(0x300 + 8 * number, number as u64);
    }
    let params = host.page(&params);
    assert_eq!(host.status(fid::REC_CREATE, [realm.rd.0, rec.0, params.0]), OK);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}
