#![expect(missing_docs, reason = "stub")]
//! stub
use super::rec::Rec;
use super::{Reason, Vm};
use arrayvec::ArrayVec;
use mm::Ipa;
use vmm_services::{MAX_VCPUS, MemoryFault};
pub struct RealmSpace;
impl RealmSpace {
    pub fn build(
        _: (),
        _: &'static Vm,
        _: &vmm_services::manifest::VmSpec<'static>,
        _: &vmm_services::manifest::Bundle<'static>,
        _: &vmm_services::loader::LoadPlan,
        _: &super::build::FdtBuffer,
    ) -> Result<(Self, ArrayVec<Rec, MAX_VCPUS>), Reason> {
        Err(Reason::default())
    }
    pub fn destroy(self, _: &Vm, _: ArrayVec<Rec, MAX_VCPUS>) {}
    pub fn read(&self, ipa: Ipa, _: &mut [u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault { ipa })
    }
    pub fn write(&self, ipa: Ipa, _: &[u8]) -> Result<(), MemoryFault> {
        Err(MemoryFault { ipa })
    }
}
pub fn rmm() -> Result<(), Reason> {
    Err(Reason::new(format_args!("stub")))
}
pub fn list_registers(_: ()) -> usize {
    4
}
pub fn init(_: bool) {}
pub struct Availability;
impl core::fmt::Display for Availability {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("stub")
    }
}
