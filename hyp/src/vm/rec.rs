#![expect(missing_docs, reason = "stub")]
//! stub
use super::{Reason, Vm};
use vmm_services::VcpuId;
use vmm_services::exit::{Exit, PsciVerdict, Resume};
use vmm_services::vgic::{LrImage, Vgic};
pub struct Rec;
pub struct RecVcpu {
    pub image: LrImage,
}
impl RecVcpu {
    pub fn new(_: Rec) -> Self {
        Self { image: LrImage::EMPTY }
    }
    pub fn into_rec(self) -> Rec {
        Rec
    }
    pub fn enter(&mut self) {}
    pub fn exit(&mut self, _raw: (), _vm: &'static Vm) -> Option<Exit> {
        None
    }
    pub fn report_timers(&self, _id: VcpuId, _vgic: &mut Vgic) {}
    pub fn timer_deadline(&self) -> Option<u64> {
        None
    }
    pub fn resume(&mut self, _resume: &Resume) {}
    pub fn complete_psci(&mut self, _: &Vm, _: VcpuId, _: PsciVerdict) -> Result<(), Reason> {
        Ok(())
    }
    pub fn change_ripas(&mut self, _vm: &Vm) -> Result<(), Reason> {
        Ok(())
    }
}
