//! The Realm Services Interface, RSI 1.0, as SMC calls to the RMM: what every guest that may be a realm
//! has to ask.

use core::sync::atomic::{AtomicBool, Ordering};

const FID_VERSION: u32 = 0xc400_0190;
const FID_REALM_CONFIG: u32 = 0xc400_0196;
const FID_HOST_CALL: u32 = 0xc400_0199;

/// RSI 1.0 as a version word.
pub const VERSION_1_0: u64 = 0x1_0000;

/// A call did not succeed: the status word that the RMM answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u64);

impl Status {
    /// The value of an argument was refused.
    pub const ERROR_INPUT: Self = Self(1);
    /// An operation needs another call to go on.
    pub const INCOMPLETE: Self = Self(3);
    /// The RMM cannot do it, for no fault of the realm.
    pub const ERROR_UNKNOWN: Self = Self(4);
    /// Nobody knows the call.
    pub const NOT_SUPPORTED: Self = Self(u64::MAX);
}

/// Whether an RMM has answered; set before anything else runs.
static REALM: AtomicBool = AtomicBool::new(false);

/// Whether this guest is a realm.
#[must_use]
pub fn is_realm() -> bool {
    REALM.load(Ordering::Relaxed)
}

/// Finds out whether this guest is a realm: the hypervisor answers a normal VM's SMC that it does not know
/// the call. Once, on the first vCPU.
pub(crate) fn detect() {
    let realm = version(VERSION_1_0) != Err(Status::NOT_SUPPORTED);
    REALM.store(realm, Ordering::Relaxed);
}

/// Calls the RMM with up to 17 arguments and answers all registers.
pub fn raw_call(function: u32, args: &[u64]) -> [u64; 18] {
    let mut all = [0; 17];
    all.iter_mut().zip(args).for_each(|(slot, arg)| *slot = *arg);
    smccc::smc64(function, all)
}

/// Calls the RMM with up to 17 arguments.
///
/// # Errors
///
/// The status that the RMM answers, if it is not success.
pub fn call(function: u32, args: &[u64]) -> Result<[u64; 18], Status> {
    let results = raw_call(function, args);
    if results[0] == 0 { Ok(results) } else { Err(Status(results[0])) }
}

/// Asks for a version; answers the lowest and the highest that the RMM implements.
///
/// # Errors
///
/// See [`Status`].
pub fn version(requested: u64) -> Result<(u64, u64), Status> {
    call(FID_VERSION, &[requested]).map(|results| (results[1], results[2]))
}

/// The realm's configuration, as far as RSI 1.0 knows it.
#[derive(Clone, Copy, Debug)]
pub struct RealmConfig {
    /// Width of the IPA space in bits, 1 to 64; its upper half is shared.
    pub ipa_width: u64,
    /// 0 for SHA-256, 1 for SHA-512.
    pub algorithm: u8,
}

impl RealmConfig {
    /// The bit of shared addresses.
    #[must_use]
    pub const fn alias(&self) -> u64 {
        1 << (self.ipa_width - 1)
    }
}

/// What RSI_REALM_CONFIG writes.
#[repr(C, align(4096))]
struct RealmConfigPage {
    ipa_width: u64,
    algorithm: u8,
    rest: [u8; 4096 - 9],
}

const _: () = assert!(size_of::<RealmConfigPage>() == 0x1000);

/// Reads the realm's configuration.
///
/// # Errors
///
/// See [`Status`].
pub(crate) fn realm_config() -> Result<RealmConfig, Status> {
    let mut page = RealmConfigPage { ipa_width: 0, algorithm: 0, rest: [0; 4096 - 9] };
    call(FID_REALM_CONFIG, &[(&raw mut page).expose_provenance() as u64])?;
    Ok(RealmConfig { ipa_width: page.ipa_width, algorithm: page.algorithm })
}

/// What RSI_HOST_CALL passes both ways.
#[derive(Clone, Copy)]
#[repr(C, align(256))]
pub struct HostCall {
    /// Number of the call.
    pub imm: u64,
    /// Registers.
    pub gprs: [u64; 31],
}

const _: () = assert!(size_of::<HostCall>() == 0x100);

/// Makes a host call; the registers come back as the host left them.
///
/// # Errors
///
/// See [`Status`].
pub fn host_call(arguments: &mut HostCall) -> Result<(), Status> {
    call(FID_HOST_CALL, &[core::ptr::from_mut(arguments).expose_provenance() as u64]).map(|_| ())
}
