//! Physical and intermediate physical addresses.

/// Size of a granule in bytes: the unit of delegation and the page size of realm translation.
pub const GRANULE_SIZE: u64 = 4096;

/// Bytes of a granule as an array length.
pub const GRANULE_BYTES: usize = 4096;

/// A physical address in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pa(pub u64);

/// An intermediate physical address of a realm in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ipa(pub u64);

impl Pa {
    /// True if the address is a multiple of `align`, which is a power of two.
    pub fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }

    /// The address `bytes` further on, wrapping at 2^64 (a wrapped address is in no RAM range).
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl Ipa {
    /// True if the address is a multiple of `align`, which is a power of two.
    pub fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }

    /// The address `bytes` further on, wrapping at 2^64.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}
