//! Names of vCPUs inside one VM.

use core::fmt;

/// Most vCPUs a VM can have.
///
/// Sixteen is what one `Aff0` group holds, so every vCPU of a VM can be named in a single SGI
/// target list (Arm IHI 0069, ICC_SGI1R_EL1) and the REC index of RMI 1.0 equals `Aff0`.
pub const MAX_VCPUS: usize = 16;

/// Index of a vCPU inside its VM, always below [`MAX_VCPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(u8);

impl VcpuId {
    /// The vCPU that a VM starts with.
    pub const BOOT: Self = Self(0);

    /// Names the vCPU `index`; `None` when it is not below [`MAX_VCPUS`].
    #[must_use]
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_VCPUS { Some(Self(index as u8)) } else { None }
    }

    /// Returns the index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the affinity fields of this vCPU's MPIDR_EL1: `Aff0` is the index, the rest zero.
    #[must_use]
    pub const fn mpidr(self) -> u64 {
        self.0 as u64
    }

    /// Finds the vCPU with the affinity fields `mpidr`; other bits of the register must be zero.
    #[must_use]
    pub const fn from_mpidr(mpidr: u64) -> Option<Self> {
        if mpidr < MAX_VCPUS as u64 { Some(Self(mpidr as u8)) } else { None }
    }
}

impl fmt::Debug for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu{}", self.0)
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A set of vCPUs of one VM.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "the vCPUs in the set are to be woken or kicked"]
pub struct VcpuSet(u16);

const _: () = assert!(MAX_VCPUS <= u16::BITS as usize);

impl VcpuSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// The set of `vcpu` alone.
    pub const fn only(vcpu: VcpuId) -> Self {
        Self(1 << vcpu.0)
    }

    /// The set of vCPUs `0..count`.
    pub const fn first(count: usize) -> Self {
        if count >= MAX_VCPUS { Self(u16::MAX) } else { Self((1 << count) - 1) }
    }

    /// The set with bit `n` for vCPU `n`.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Whether no vCPU is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of vCPUs in the set.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether `vcpu` is in the set.
    #[must_use]
    pub const fn contains(self, vcpu: VcpuId) -> bool {
        self.0 & (1 << vcpu.0) != 0
    }

    /// Adds `vcpu`.
    pub const fn insert(&mut self, vcpu: VcpuId) {
        self.0 |= 1 << vcpu.0;
    }

    /// Takes `vcpu` out.
    pub const fn remove(&mut self, vcpu: VcpuId) {
        self.0 &= !(1 << vcpu.0);
    }

    /// Adds all of `other`.
    pub const fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Returns the vCPUs that are in both sets.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The vCPUs in the set, lowest index first.
    pub fn iter(self) -> impl Iterator<Item = VcpuId> {
        let Self(mut left) = self;
        core::iter::from_fn(move || {
            let index = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (index < u16::BITS).then_some(VcpuId(index as u8))
        })
    }
}

impl fmt::Debug for VcpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
