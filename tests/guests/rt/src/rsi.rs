//! What a realm has to ask before it can use any device: where its shared addresses begin.

use smccc::smc64;

const FID_REALM_CONFIG: u32 = 0xc400_0196;

/// The realm's configuration, as far as RSI 1.0 knows it.
#[derive(Clone, Copy, Debug)]
pub struct RealmConfig {
    /// Width of the IPA space in bits; its upper half is shared.
    pub ipa_width: u64,
    /// 0 for SHA-256, 1 for SHA-512.
    pub algorithm: u8,
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
/// The status word that the RMM answers.
pub fn realm_config() -> Result<RealmConfig, u64> {
    let mut page = RealmConfigPage { ipa_width: 0, algorithm: 0, rest: [0; 4096 - 9] };
    let mut args = [0; 17];
    args[0] = (&raw mut page).expose_provenance() as u64;
    match smc64(FID_REALM_CONFIG, args)[0] {
        0 => Ok(RealmConfig { ipa_width: page.ipa_width, algorithm: page.algorithm }),
        status => Err(status),
    }
}
