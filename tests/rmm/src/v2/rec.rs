//! RECs of RMI 2.0: created by donation, destroyed by reclaim.

use crate::abi::{Refusal, Reply};
use crate::addr::Pa;
use crate::granule::GranuleState;
use crate::monitor::{Monitor, Page};
use crate::platform::Platform;
use crate::rec::{MAX_REC_AUX, RecParams};
use crate::v2::Rmi2;
use crate::v2::operation::{Granules, Need, Operation, incomplete, reclaim, wants_memory};

impl<P: Platform> Monitor<P> {
    /// REC_CREATE: takes the REC's granule and asks for auxiliary ones. Everything else is checked
    /// when the operation continues.
    pub(crate) fn rec_create_stateful(
        &self,
        rmi2: &Rmi2,
        rd: Pa,
        rec: Pa,
        params: Pa,
    ) -> Result<Reply, Refusal> {
        let granule = self.lock(rec, GranuleState::Delegated)?;
        let context = self.operations.reserve()?;
        let donation = rmi2.donations[self.operations.turn() % rmi2.donations.len()];
        granule.set_state(GranuleState::Partial);
        let aux = Granules::NONE;
        let handle = context.park(Operation::CreateRec { rd, rec, params, donation, aux });
        Ok(wants_memory(donation, handle, MAX_REC_AUX as u64))
    }

    /// The end of REC_CREATE, when all auxiliary granules are there.
    pub(crate) fn finish_rec(
        &self,
        rd: Pa,
        rec: Pa,
        params: Pa,
        undelegated: bool,
        aux: &[Pa],
    ) -> Result<Reply, Refusal> {
        let mut page = Page::zeroed();
        self.read_host(params, &mut page.0)?;
        let params = RecParams::parse_stateful(&page, undelegated)?;
        self.build_rec(rd, (rec, GranuleState::Partial), &params, aux)
    }

    /// REC_DESTROY: the REC is gone at once, its granules come back by reclaim.
    pub(crate) fn rec_destroy_stateful(&self, rec: Pa) -> Result<Reply, Refusal> {
        let context = self.operations.reserve()?;
        let (aux, undelegated) = self.take_rec_apart(rec, GranuleState::Partial)?;
        let operation = reclaim(Some(rec), Granules::all(aux), undelegated, Reply::SUCCESS);
        let handle = context.park(operation);
        Ok(incomplete(Need::Reclaim, [handle, 0]))
    }
}
