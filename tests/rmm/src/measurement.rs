//! Realm measurements: the initial measurement (RIM) and the extensible ones (REM).
//!
//! Every step of building a realm that the specification measures is folded into the RIM as the
//! hash of a fixed-layout descriptor that contains the RIM before it, so the order of calls
//! matters.

use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::addr::{GRANULE_BYTES, Ipa};

/// Bytes of the longest digest; shorter ones are zero padded.
pub const MAX_DIGEST_BYTES: usize = 64;

/// RmiHashAlgorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256 = 0,
    /// SHA-512.
    Sha512 = 1,
    /// SHA-384 (RMI 2.0).
    Sha384 = 2,
}

impl HashAlgorithm {
    /// Decodes the field of the realm parameters.
    pub fn from_field(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Sha256),
            1 => Some(Self::Sha512),
            2 => Some(Self::Sha384),
            _ => None,
        }
    }

    /// Length of a digest in bytes.
    pub fn digest_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// A measurement, zero padded to the longest digest.
pub type Measurement = [u8; MAX_DIGEST_BYTES];

/// Hashes the concatenation of two byte strings.
fn hash_two<D: Digest>(first: &[u8], second: &[u8]) -> Measurement {
    let mut digest = D::new();
    digest.update(first);
    digest.update(second);
    let mut measurement = [0; MAX_DIGEST_BYTES];
    for (to, from) in measurement.iter_mut().zip(digest.finalize()) {
        *to = from;
    }
    measurement
}

fn hash_pair(algorithm: HashAlgorithm, first: &[u8], second: &[u8]) -> Measurement {
    match algorithm {
        HashAlgorithm::Sha256 => hash_two::<Sha256>(first, second),
        HashAlgorithm::Sha384 => hash_two::<Sha384>(first, second),
        HashAlgorithm::Sha512 => hash_two::<Sha512>(first, second),
    }
}

fn hash(algorithm: HashAlgorithm, bytes: &[u8]) -> Measurement {
    hash_pair(algorithm, bytes, &[])
}

/// The measured part of the realm parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the field of RmiRealmParams of that name")]
pub struct MeasuredParams {
    pub flags: u64,
    pub s2sz: u64,
    pub sve_vl: u64,
    pub num_bps: u64,
    pub num_wps: u64,
    pub pmu_num_ctrs: u64,
    pub algorithm: HashAlgorithm,
}

/// RIM after REALM_CREATE.
pub fn measure_realm(params: &MeasuredParams) -> Measurement {
    let mut image = [0; GRANULE_BYTES];
    let fields = [
        params.flags,
        params.s2sz,
        params.sve_vl,
        params.num_bps,
        params.num_wps,
        params.pmu_num_ctrs,
        params.algorithm as u64,
    ];
    for (chunk, field) in image.chunks_exact_mut(8).zip(fields) {
        chunk.copy_from_slice(&field.to_le_bytes());
    }
    hash(params.algorithm, &image)
}

/// A measurement descriptor: 0x100 bytes, the RIM so far at 0x10, fields from 0x50 on.
struct Descriptor([u8; 0x100]);

impl Descriptor {
    fn new(kind: u8, algorithm: HashAlgorithm, rim: &Measurement) -> Self {
        let mut descriptor = Self([0; 0x100]);
        descriptor.0[0] = kind;
        descriptor.put(0x8, &0x100_u64.to_le_bytes());
        descriptor.put(0x10, &rim[..algorithm.digest_bytes()]);
        descriptor
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// RIM after a page at `ipa` with DATA_CREATE flags `flags`; `content` is the page if it is
/// measured.
pub fn measure_data(
    algorithm: HashAlgorithm,
    rim: &Measurement,
    ipa: Ipa,
    flags: u64,
    content: Option<&[u8; GRANULE_BYTES]>,
) -> Measurement {
    let mut descriptor = Descriptor::new(0, algorithm, rim);
    descriptor.put(0x50, &ipa.0.to_le_bytes());
    descriptor.put(0x58, &flags.to_le_bytes());
    if let Some(page) = content {
        descriptor.put(0x60, &hash(algorithm, page));
    }
    hash(algorithm, &descriptor.0)
}

/// RIM after a runnable REC was created.
pub fn measure_rec(
    algorithm: HashAlgorithm,
    rim: &Measurement,
    flags: u64,
    pc: u64,
    gprs: &[u64; 8],
) -> Measurement {
    let mut image = [0; GRANULE_BYTES];
    image[..8].copy_from_slice(&flags.to_le_bytes());
    image[0x200..0x208].copy_from_slice(&pc.to_le_bytes());
    for (chunk, gpr) in image[0x300..].chunks_exact_mut(8).zip(gprs) {
        chunk.copy_from_slice(&gpr.to_le_bytes());
    }
    let mut descriptor = Descriptor::new(1, algorithm, rim);
    descriptor.put(0x50, &hash(algorithm, &image));
    hash(algorithm, &descriptor.0)
}

/// RIM after INIT_RIPAS of one RTT entry that covers `base` to `top`.
pub fn measure_ripas(
    algorithm: HashAlgorithm,
    rim: &Measurement,
    base: Ipa,
    top: Ipa,
) -> Measurement {
    let mut descriptor = Descriptor::new(2, algorithm, rim);
    descriptor.put(0x50, &base.0.to_le_bytes());
    descriptor.put(0x58, &top.0.to_le_bytes());
    hash(algorithm, &descriptor.0)
}

/// An extensible measurement after RSI_MEASUREMENT_EXTEND with `value`.
pub fn extend(algorithm: HashAlgorithm, current: &Measurement, value: &[u8]) -> Measurement {
    hash_pair(algorithm, &current[..algorithm.digest_bytes()], value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    fn hex(measurement: &Measurement, bytes: usize) -> String {
        measurement[..bytes].iter().map(|byte| std::format!("{byte:02x}")).collect()
    }

    /// Published vectors for SHA-256: parameters, measured page, unmeasured page, REC, RIPAS.
    #[test]
    fn rim_matches_known_vectors() {
        let algorithm = HashAlgorithm::Sha256;
        let params = MeasuredParams {
            flags: 0,
            s2sz: 40,
            sve_vl: 0,
            num_bps: 1,
            num_wps: 1,
            pmu_num_ctrs: 0,
            algorithm,
        };
        let mut rim = measure_realm(&params);
        assert_eq!(
            hex(&rim, 32),
            "045cb3602843a6845cb710fbbfbb92f0c7d611afe0106ac2953e46950a70c42b"
        );
        let page = core::array::from_fn(|i| (i & 0xff) as u8);
        rim = measure_data(algorithm, &rim, Ipa(0x8000_0000), 1, Some(&page));
        assert_eq!(
            hex(&rim, 32),
            "085d9a9ef5d8f4e55a693d29a3ecd43c8d4df141ee550ff4d11ea38e02bbde40"
        );
        rim = measure_data(algorithm, &rim, Ipa(0x8000_1000), 0, None);
        assert_eq!(
            hex(&rim, 32),
            "695494c2634ef961211c8c27a1d0f02fcd1529df2c624b2741e3a1b3ed02a6d9"
        );
        let gprs = [0x8400_0000, 0, 0, 0, 0, 0, 0, 0];
        rim = measure_rec(algorithm, &rim, 1, 0x8000_0000, &gprs);
        assert_eq!(
            hex(&rim, 32),
            "19bb6fd432a6af24b4b7428c3406d4903a5aabacac6036f87fa3e47fb1648426"
        );
        rim = measure_ripas(algorithm, &rim, Ipa(0x8020_0000), Ipa(0x8040_0000));
        assert_eq!(
            hex(&rim, 32),
            "2c0a362dea87a56483eb2ec41eb4b2c831e9a367163464cc07950b70b4dd1685"
        );
    }

    #[test]
    fn digests_are_zero_padded() {
        let value = [0x5a; 64];
        for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512] {
            let digest = extend(algorithm, &[0; MAX_DIGEST_BYTES], &value);
            assert!(digest[algorithm.digest_bytes()..].iter().all(|byte| *byte == 0));
            assert!(digest[..algorithm.digest_bytes()].iter().any(|byte| *byte != 0));
        }
    }
}
