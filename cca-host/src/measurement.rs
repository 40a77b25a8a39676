//! Hash algorithms and digests of realm measurements.

use core::fmt;

use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Hash algorithm of a realm (RmiHashAlgorithm).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384; RMI 2.0 only.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// The RMI encoding.
    #[must_use]
    pub const fn code(self) -> u64 {
        match self {
            Self::Sha256 => 0,
            Self::Sha512 => 1,
            Self::Sha384 => 2,
        }
    }

    /// Bytes of a digest.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The name that attestation tokens use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha-256",
            Self::Sha384 => "sha-384",
            Self::Sha512 => "sha-512",
        }
    }

    /// The algorithm with this name, as in attestation tokens or without the hyphen.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha-256" | "sha256" => Some(Self::Sha256),
            "sha-384" | "sha384" => Some(Self::Sha384),
            "sha-512" | "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

/// A digest, zero padded to 64 bytes as the RMM's measurement descriptors have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: HashAlgorithm,
    bytes: [u8; 64],
}

impl Digest {
    /// The digest of nothing: all zero.
    pub(crate) const fn zero(algorithm: HashAlgorithm) -> Self {
        Self { algorithm, bytes: [0; 64] }
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The bytes of the digest, as many as the algorithm has.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.split_at(self.algorithm.digest_len()).0
    }

    /// The bytes padded with zeros, as RSI_MEASUREMENT_READ returns them.
    #[must_use]
    pub const fn padded(&self) -> &[u8; 64] {
        &self.bytes
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.algorithm.name())
    }
}

/// A running hash.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: HashAlgorithm) -> Self {
        match algorithm {
            HashAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            HashAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            HashAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Hashes `count` zero bytes.
    pub(crate) fn zeros(&mut self, count: usize) {
        const CHUNK: [u8; 128] = [0; 128];
        for _ in 0..count / CHUNK.len() {
            self.update(&CHUNK);
        }
        self.update(CHUNK.split_at(count % CHUNK.len()).0);
    }

    pub(crate) fn finish(self) -> Digest {
        fn pad(algorithm: HashAlgorithm, digest: &[u8]) -> Digest {
            let mut padded = Digest::zero(algorithm);
            padded.bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
            padded
        }
        match self {
            Self::Sha256(hasher) => pad(HashAlgorithm::Sha256, &hasher.finalize()),
            Self::Sha384(hasher) => pad(HashAlgorithm::Sha384, &hasher.finalize()),
            Self::Sha512(hasher) => pad(HashAlgorithm::Sha512, &hasher.finalize()),
        }
    }
}
