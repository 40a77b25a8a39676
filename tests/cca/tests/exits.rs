//! The decoder of REC exits on its own: the run page says anything, and what comes out is checked against a
//! second reading of the page by section 4.3 of the RMM specification.

use std::cell::{Cell, RefCell};

use cca_host::{
    AccessFault, Command, Conduit, Config, EnterError, Entry, ExitCause, GicImage, HostMemory,
    Pending, PsciStatus, Realm, RealmConfig, Rec, RecConfig, RecExit, Resume, Rmm, SyncExit,
};
use cca_tests::{Rig, abis, destroy, with_world_of};
use fuzz::Input;
use mm::ledger::Owner;
use mm::{Ipa, PAGE_SIZE, PhysAddr};

const OWNER: Owner = Owner::vm(1);
/// Width of the IPA space; from half of it on it is unprotected.
const IPA_BITS: u8 = 33;
const UNPROTECTED: u64 = 1 << (IPA_BITS - 1);
const END: u64 = 1 << IPA_BITS;
/// Offset of the exit record in the run page.
const EXIT: usize = 0x800;
/// Entry flags (RmiRecEnterFlags).
const EMUL_MMIO: u64 = 1 << 0;
const INJECT_SEA: u64 = 1 << 1;
const RIPAS_RESPONSE: u64 = 1 << 4;

/// The reference RMM, except that RECs are not run: their exits are made up.
struct Forger<'r> {
    rig: &'r Rig,
    input: &'r Input,
    /// Run page of the REC as it was left by the last exit.
    page: RefCell<[u8; PAGE_SIZE as usize]>,
    /// Where it is, once the REC was entered.
    run: Cell<Option<PhysAddr>>,
    /// Flags that the last entry had.
    flags: Cell<u64>,
    entries: Cell<u64>,
}

impl Forger<'_> {
    fn word(&self, offset: usize) -> u64 {
        let page = self.page.borrow();
        u64::from_le_bytes(page[EXIT + offset..EXIT + offset + 8].try_into().unwrap())
    }

    /// An exit record in which the fields that matter are plausible more often than not.
    fn forge(&self) {
        let input = self.input;
        let mut page = self.page.borrow_mut();
        let mut put = |offset: usize, value: u64| {
            page[EXIT + offset..EXIT + offset + 8].copy_from_slice(&value.to_le_bytes());
        };
        for offset in (0..0x800).step_by(8) {
            if input.one_in(4) {
                put(offset, input.number());
            }
        }
        put(0, if input.one_in(16) { input.number() } else { input.below(8) });
        let class = input.pick(&[0x01, 0x18, 0x20, 0x24, 0x24, 0x24, input.below(64)]);
        put(0x100, class << 26 | input.word() & 0x03ff_ffff);
        put(0x108, input.number());
        // HPFAR_EL2 has the page number of the IPA from bit 4 on.
        let ipa = if input.one_in(4) { input.number() } else { input.below(END + PAGE_SIZE) };
        put(0x110, ipa >> 12 << 4);
        if input.one_in(2) {
            put(0x200, 0x8400_0000 | input.below(2) << 30 | input.below(12));
            put(0x208, input.below(2));
        }
    }
}

impl Conduit for &Forger<'_> {
    fn call(&self, fid: u64, args: [u64; 7]) -> [u64; 8] {
        if fid == Command::PsciComplete.fid() {
            return [0; 8];
        }
        if fid != Command::RecEnter.fid() {
            return self.rig.call(fid, args);
        }
        self.entries.set(self.entries.get() + 1);
        self.run.set(Some(PhysAddr::new(args[1])));
        if self.input.one_in(8) {
            // ERROR_INPUT, ERROR_REALM, ERROR_REC or anything.
            return [self.input.pick(&[1, 2, 3, self.input.number() | 1]), 0, 0, 0, 0, 0, 0, 0];
        }
        let mut flags = [0; 8];
        self.rig.read(PhysAddr::new(args[1]), &mut flags).expect("the run page is memory");
        self.flags.set(u64::from_le_bytes(flags));
        self.forge();
        let exit = self.page.borrow()[EXIT..].to_vec();
        self.rig
            .write(PhysAddr::new(args[1] + EXIT as u64), &exit)
            .expect("the run page is memory");
        [0; 8]
    }
}

impl HostMemory for &Forger<'_> {
    fn read(&self, addr: PhysAddr, bytes: &mut [u8]) -> Result<(), AccessFault> {
        self.rig.read(addr, bytes)
    }

    fn write(&self, addr: PhysAddr, bytes: &[u8]) -> Result<(), AccessFault> {
        if let Some(run) = self.run.get() {
            let inside = addr >= run && addr.get() + bytes.len() as u64 <= run.get() + EXIT as u64;
            assert!(inside, "{addr} is outside of the entry record at {run}");
        }
        self.rig.write(addr, bytes)
    }
}

/// Checks a decoded exit against the record.
fn check(forger: &Forger<'_>, exit: &RecExit) {
    let esr = forger.word(0x100);
    let x0 = forger.word(0x200);
    assert_eq!(exit.timers.virt.ctl, forger.word(0x410));
    assert_eq!(exit.timers.physical.cval, forger.word(0x408));
    match (forger.word(0), &exit.cause) {
        (0, ExitCause::Sync(sync)) => check_sync(forger, esr, x0, sync),
        (1, ExitCause::Irq) | (2, ExitCause::Fiq) => {}
        (3, ExitCause::Psci(request)) => {
            let on = [0x8400_0003, 0xc400_0003, 0x8400_0004, 0xc400_0004].contains(&x0);
            assert_eq!(request.target(), on.then_some(forger.word(0x208)));
        }
        (4, ExitCause::RipasChange(change)) => {
            assert_eq!(
                (change.base.get(), change.top.get()),
                (forger.word(0x500), forger.word(0x508))
            );
        }
        (5, ExitCause::HostCall(call)) => {
            assert_eq!(u64::from(call.imm), forger.word(0x600) & 0xffff);
            assert!((0..31).all(|n| call.gprs[n] == forger.word(0x200 + 8 * n)));
        }
        (6, ExitCause::SError { esr: decoded }) => assert_eq!(*decoded, esr),
        (reason, ExitCause::Unknown { reason: decoded }) => {
            assert!(reason > 6 && reason == *decoded);
        }
        (reason, cause) => panic!("exit reason {reason} became {cause:?}"),
    }
}

fn check_sync(forger: &Forger<'_>, esr: u64, x0: u64, sync: &SyncExit) {
    let page = forger.word(0x110) << 8 & 0x00ff_ffff_ffff_f000;
    let class = esr >> 26 & 0x3f;
    let external = esr & 0x38 == 0x10;
    match *sync {
        SyncExit::ProtectedFault { ipa, .. } => {
            assert!(matches!(class, 0x20 | 0x24) && !external);
            assert!(ipa.get() == page && page < UNPROTECTED);
        }
        SyncExit::UnprotectedFault { ipa, .. } => {
            assert!(class == 0x20 || class == 0x24 && esr & 1 << 24 == 0);
            assert!(ipa.get() == page && (UNPROTECTED..END).contains(&page));
        }
        SyncExit::Mmio(mmio) => {
            assert!(class == 0x24 && esr & 1 << 24 != 0 && !external);
            assert_eq!(mmio.ipa.get(), page | forger.word(0x108) & 0xfff);
            assert!((UNPROTECTED..END).contains(&mmio.ipa.get()));
            assert_eq!(u64::from(mmio.width), 1 << (esr >> 22 & 3));
            let mask = u64::MAX >> (64 - 8 * u32::from(mmio.width));
            assert_eq!(mmio.write, (esr & 1 << 6 != 0).then_some(x0 & mask));
        }
        SyncExit::ExternalAbort { recoverable, .. } => {
            assert!(matches!(class, 0x20 | 0x24) && external);
            assert_eq!(recoverable, matches!(esr >> 11 & 3, 0 | 3));
        }
        SyncExit::Wfi | SyncExit::Wfe => assert!(class == 0x01 && esr & 2 == 0),
        SyncExit::WfiTimeout(until) | SyncExit::WfeTimeout(until) => {
            assert!(class == 0x01 && esr & 2 != 0);
            assert_eq!(until, (esr & 1 << 9 != 0).then_some(x0));
        }
        SyncExit::SysReg(access) => {
            assert_eq!(class, 0x18);
            assert_eq!(access.write, (esr & 1 == 0).then_some(x0));
            assert!(access.rt < 32 && access.register.op1 < 8 && access.register.crn < 16);
        }
        SyncExit::Other { esr: raw, .. } => {
            assert_eq!(raw, esr);
            assert!(
                !matches!(class, 0x01 | 0x18) && (!matches!(class, 0x20 | 0x24) || page >= END)
            );
        }
    }
}

/// Flags of an entry that gives this answer to a REC that waits for this; `None` if they do not fit.
fn expected_flags(pending: Pending, resume: &Resume<'_>) -> Option<u64> {
    match (pending, resume) {
        (Pending::MmioRead, Resume::MmioRead(_)) | (Pending::MmioWrite, Resume::MmioWritten) => {
            Some(EMUL_MMIO)
        }
        (Pending::MmioRead | Pending::MmioWrite | Pending::Unprotected, Resume::InjectSea) => {
            Some(INJECT_SEA)
        }
        (Pending::Ripas(_), Resume::RipasReject) => Some(RIPAS_RESPONSE),
        (Pending::Ripas(_), Resume::RipasAccept)
        | (Pending::HostCall, Resume::HostCall(_))
        | (Pending::SysRegRead { .. }, Resume::SysRegRead(_))
        | (
            Pending::None | Pending::MmioRead | Pending::MmioWrite | Pending::Unprotected,
            Resume::Plain,
        ) => Some(0),
        _ => None,
    }
}

/// Enters the REC with any answer, fitting or not.
fn enter(forger: &Forger<'_>, rec: &mut Rec<'_, &Forger<'_>>) {
    let input = forger.input;
    let gprs = [input.word(); 31];
    let resume = input.pick(&[
        Resume::Plain,
        Resume::MmioRead(gprs[0]),
        Resume::MmioWritten,
        Resume::InjectSea,
        Resume::HostCall(&gprs),
        Resume::SysRegRead(gprs[0]),
        Resume::RipasAccept,
        Resume::RipasReject,
    ]);
    let pending = rec.pending();
    let before = forger.entries.get();
    let mut gic = GicImage { hcr: input.word(), ..GicImage::default() };
    let outcome = rec.enter(Entry::new(resume), &mut gic);
    let entered = forger.entries.get() > before;
    match (expected_flags(pending, &resume), outcome) {
        (Some(flags), Ok(exit)) => {
            assert_eq!(forger.flags.get(), flags, "{pending:?} answered by {resume:?}");
            check(forger, &exit);
        }
        (None, Err(EnterError::WrongResume(_) | EnterError::NotReady(_))) => {
            assert!(!entered);
            assert_eq!(rec.pending(), pending);
        }
        (Some(_), Err(EnterError::RealmOff | EnterError::NotRunnable | EnterError::Failed(_))) => {
            assert!(entered);
            assert_eq!(rec.pending(), pending);
        }
        (_, outcome) => panic!("{pending:?} answered by {resume:?} gave {outcome:?}"),
    }
}

fn exits(input: &Input) {
    with_world_of(1 << 20, input.pick(&abis()), |world| {
        let forger = Forger {
            rig: world.rig,
            input,
            page: RefCell::new([0; PAGE_SIZE as usize]),
            run: Cell::new(None),
            flags: Cell::new(0),
            entries: Cell::new(0),
        };
        let rmm = Rmm::negotiate(&forger, world.ledger, Config::default()).expect("an RMM");
        let mut realm = Realm::create(&rmm, OWNER, &RealmConfig::new(IPA_BITS)).expect("created");
        realm.init_ripas(Ipa::new(0), Ipa::new(PAGE_SIZE)).expect("RAM");
        let rec = RecConfig { runnable: true, ..RecConfig::default() };
        let mut rec = realm.create_rec(&rec).expect("a REC");
        let realm = realm.activate().expect("active");
        for _ in 0..200 {
            if let Pending::Psci(_) = rec.pending() {
                let status = input.pick(&[PsciStatus::Success, PsciStatus::Denied]);
                let own = rec.id();
                if rec.complete_psci(own, status).is_err() {
                    // The request names another REC, which there is not: it cannot be answered.
                    break;
                }
            }
            enter(&forger, &mut rec);
        }
        forger.run.set(None);
        destroy(realm, [rec]).expect("destroyed");
    });
}

#[test]
fn fuzz_exit_decoder() {
    fuzz::run("decoder of REC exits", exits);
}
