//! The realm initial measurement (RIM), computed beforehand or along with the construction.
//!
//! Descriptors as in the measurement sections of the RMM specification: little endian, zero padded,
//! 0x100 bytes each, chained through the RIM.

use core::mem::{offset_of, size_of};

use zerocopy::IntoBytes;

use crate::geometry::{Geometry, LAST_LEVEL};
use crate::layout::{RealmFeatures, RealmParams, RecParams};
use crate::measurement::{Digest, Hasher};
use crate::realm::{RealmConfig, RecConfig};

/// Bytes of a measurement descriptor.
const DESCRIPTOR_BYTES: u64 = 0x100;
const TYPE_DATA: u64 = 0;
const TYPE_REC: u64 = 1;
const TYPE_RIPAS: u64 = 2;
/// Bit 0 of the flags of DATA_CREATE and RTT_DATA_MAP_INIT: the contents are measured.
const DATA_MEASURED: u64 = 1;

/// Follows the construction of a realm and computes its RIM.
///
/// Call order matters: mirror each measured RMI call in the order in which it is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RimBuilder {
    geometry: Geometry,
    ripas_measured: bool,
    rim: Digest,
}

/// A hash of the contents of one granule, fed in pieces.
pub struct PageHasher(Hasher);

impl PageHasher {
    /// Adds the next bytes of the granule.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

impl RimBuilder {
    /// REALM_CREATE: measures the parameters that are part of the RIM.
    ///
    /// `ripas_measured` is true for RMI 1.x, where RTT_INIT_RIPAS extends the RIM.
    #[must_use]
    pub fn new(config: &RealmConfig, geometry: Geometry, ripas_measured: bool) -> Self {
        let mut hasher = Hasher::new(config.hash);
        let mut features = config.features();
        features.num_aux_planes = 0;
        hasher.update(features.as_bytes());
        hasher.zeros(size_of::<RealmParams>() - size_of::<RealmFeatures>());
        Self { geometry, ripas_measured, rim: hasher.finish() }
    }

    /// Begins the hash of a granule whose contents are measured.
    #[must_use]
    pub fn page_hasher(&self) -> PageHasher {
        PageHasher(Hasher::new(self.rim.algorithm()))
    }

    /// DATA_CREATE or RTT_DATA_MAP_INIT of one granule at `ipa`; `contents` is its hash if it is
    /// measured.
    pub fn data(&mut self, ipa: u64, contents: Option<PageHasher>) {
        let flags = if contents.is_some() { DATA_MEASURED } else { 0 };
        let contents = match contents {
            Some(hasher) => hasher.0.finish(),
            None => Digest::zero(self.rim.algorithm()),
        };
        self.extend(TYPE_DATA, |descriptor| {
            descriptor.update(ipa.as_bytes());
            descriptor.update(flags.as_bytes());
            descriptor.update(contents.padded());
            descriptor.zeros(0x100 - 0xa0);
        });
    }

    /// REC_CREATE: measured only if the REC is runnable.
    pub fn rec(&mut self, rec: &RecConfig) {
        if !rec.runnable {
            return;
        }
        let mut params = Hasher::new(self.rim.algorithm());
        params.update(rec.flags().as_bytes());
        params.zeros(offset_of!(RecParams, pc) - size_of::<u64>());
        params.update(rec.pc.as_bytes());
        params.zeros(offset_of!(RecParams, gprs) - offset_of!(RecParams, pc) - size_of::<u64>());
        params.update(rec.gprs.as_bytes());
        params.zeros(size_of::<RecParams>() - offset_of!(RecParams, gprs) - size_of::<[u64; 8]>());
        let params = params.finish();
        self.extend(TYPE_REC, |descriptor| {
            descriptor.update(params.padded());
            descriptor.zeros(0x100 - 0x90);
        });
    }

    /// RTT_INIT_RIPAS over `base..top`, which has no table below the level that the driver uses: one
    /// descriptor per entry, each as large as alignment and length allow. Nothing in 2.0.
    pub fn init_ripas(&mut self, base: u64, top: u64) {
        if !self.ripas_measured {
            return;
        }
        let mut at = base;
        while at < top {
            let level = self.geometry.largest_level(at, top, self.geometry.start_level());
            let end = at.saturating_add(self.geometry.entry_bytes(level.min(LAST_LEVEL))).min(top);
            self.extend(TYPE_RIPAS, |descriptor| {
                descriptor.update(at.as_bytes());
                descriptor.update(end.as_bytes());
                descriptor.zeros(0x100 - 0x60);
            });
            at = end;
        }
    }

    /// The RIM so far.
    #[must_use]
    pub const fn rim(&self) -> Digest {
        self.rim
    }

    /// Replaces the RIM by the hash of a descriptor; `body` supplies its bytes from 0x50.
    fn extend(&mut self, kind: u64, body: impl FnOnce(&mut Hasher)) {
        let mut descriptor = Hasher::new(self.rim.algorithm());
        descriptor.update(kind.as_bytes());
        descriptor.update(DESCRIPTOR_BYTES.as_bytes());
        descriptor.update(self.rim.padded());
        body(&mut descriptor);
        self.rim = descriptor.finish();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;
    use std::string::String;

    use super::*;
    use crate::measurement::HashAlgorithm;

    /// RIMs by algorithm. Those of SHA-256 were computed by the measurement code of TF-RMM for the same
    /// calls; those of the others by another implementation that gave the same for SHA-256.
    const VECTORS: [(HashAlgorithm, [&str; 5]); 3] = [
        (
            HashAlgorithm::Sha256,
            [
                "045cb3602843a6845cb710fbbfbb92f0c7d611afe0106ac2953e46950a70c42b",
                "085d9a9ef5d8f4e55a693d29a3ecd43c8d4df141ee550ff4d11ea38e02bbde40",
                "695494c2634ef961211c8c27a1d0f02fcd1529df2c624b2741e3a1b3ed02a6d9",
                "19bb6fd432a6af24b4b7428c3406d4903a5aabacac6036f87fa3e47fb1648426",
                "2c0a362dea87a56483eb2ec41eb4b2c831e9a367163464cc07950b70b4dd1685",
            ],
        ),
        (
            HashAlgorithm::Sha384,
            [
                "a944de8245ff038a0fb8849087b7541cae4b197318d3d5ad2865a74e544bdf3e\
                 0f752281a3800bc69f05270e952ea5b0",
                "60a624837f4f28ded5c10f555da83e270715fa21d4a1a5370f30716eb760071b\
                 e8bc4592ca6a739334af50f18908c041",
                "bbec14645599e6a6e59de8dcf45bb6fed1cf4a19050ba8f4eab32a3b037fd854\
                 acace5f2d5cc34522198c3c255731c85",
                "6dfef4d8c29c2e50a99dbe6eeeab6d0537782e72f50b1004f7c073951b0ee05b\
                 cbea9a714d27ebbf8361d400377e28c2",
                "bd2d2421d3897c4040b6e6b52b06701afdf26f6996edfc2ab6b4662d316060ae\
                 2c1727acce1c3d2356a6d35cfbdadb12",
            ],
        ),
        (
            HashAlgorithm::Sha512,
            [
                "066e19aa2c3418dadc20ef31b5595907c612991952553e1e99731a677b5797c9\
                 898dffb6e3963a20b8e1af6d136cd2fe6fe25f048577dc3d7e5bf3a79a4b1e81",
                "171504df73fe9fdf96b7dd00fd707a7ece5948d947f8e416ea799b5c91b8572c\
                 abb067571f438bab01677bdf1565a2904898f28d868c91014866f9351aa0e882",
                "69a55ea1ee0386e59b199b5e19df128603f2d626549b63413777632b394100c0\
                 9d02bc85ea5432d667257e4651fd1dca29b4cc9447bf3634378f2a179d00c3f9",
                "605077d5998f8c685f9697cff5b1735b14cd7c7c56ee78b9edba400c2cab2dfb\
                 3b5032b3d67a9548288940473221fccf73bb1249b8d794792b1d60cb5174517e",
                "b677d39f655bfd2388044be44f7572c7b50951f76a1f9260888ed20dfc49e292\
                 f1f1ddf7d866092404ac17406bd4e9aecd0192f0494690868a4e29673b03089d",
            ],
        ),
    ];

    fn rims(hash: HashAlgorithm, ripas_measured: bool) -> [String; 5] {
        let config = RealmConfig { hash, ..RealmConfig::new(40) };
        let geometry = config.geometry(12).expect("valid");
        let mut rim = RimBuilder::new(&config, geometry, ripas_measured);
        let created = format!("{}", rim.rim());
        let page: [u8; 4096] = core::array::from_fn(|index| index as u8);
        let mut contents = rim.page_hasher();
        page.chunks(1000).for_each(|chunk| contents.update(chunk));
        rim.data(0x8000_0000, Some(contents));
        let measured = format!("{}", rim.rim());
        rim.data(0x8000_1000, None);
        let unmeasured = format!("{}", rim.rim());
        let mut gprs = [0; 8];
        gprs[0] = 0x8400_0000;
        rim.rec(&RecConfig { pc: 0x8000_0000, gprs, runnable: true });
        rim.rec(&RecConfig { pc: 1, gprs, runnable: false });
        let rec = format!("{}", rim.rim());
        rim.init_ripas(0x8020_0000, 0x8040_0000);
        [created, measured, unmeasured, rec, format!("{}", rim.rim())]
    }

    #[test]
    fn rims_equal_the_vectors() {
        for (hash, vectors) in VECTORS {
            assert_eq!(rims(hash, true), vectors, "{}", hash.name());
        }
    }

    #[test]
    fn ripas_is_not_measured_in_2_0() {
        for (hash, vectors) in VECTORS {
            let rims = rims(hash, false);
            assert_eq!(rims[..4], vectors[..4], "{}", hash.name());
            assert_eq!(rims[4], rims[3], "{}", hash.name());
        }
    }

    #[test]
    fn ripas_is_measured_by_the_largest_entries_that_fit() {
        let config = RealmConfig::new(40);
        let geometry = config.geometry(12).expect("valid");
        let mut whole = RimBuilder::new(&config, geometry, true);
        let mut parts = whole.clone();
        // A granule, the rest of its block in granules, one block, one granule.
        whole.init_ripas(0x801f_f000, 0x8040_1000);
        parts.init_ripas(0x801f_f000, 0x8020_0000);
        parts.init_ripas(0x8020_0000, 0x8040_0000);
        parts.init_ripas(0x8040_0000, 0x8040_1000);
        assert_eq!(whole, parts);
        let mut large = RimBuilder::new(&config, geometry, true);
        let mut one = large.clone();
        large.init_ripas(0x4000_0000, 0x8000_0000);
        one.extend(TYPE_RIPAS, |descriptor| {
            descriptor.update(0x4000_0000u64.as_bytes());
            descriptor.update(0x8000_0000u64.as_bytes());
            descriptor.zeros(0xa0);
        });
        assert_eq!(large, one);
    }
}
