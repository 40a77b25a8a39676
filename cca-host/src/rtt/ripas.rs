//! RIPAS: initial, and changed on the realm's request.

use mm::{Ipa, PhysAddr};

use super::Tables;
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::exit::{Ripas, RipasChange};
use crate::status::Status;

/// How far a RIPAS change got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Changed {
    /// First address not changed.
    pub(crate) upto: u64,
    /// The entry there cannot be changed.
    pub(crate) stopped: bool,
    /// Nothing of what was changed is still to be taken away.
    pub(crate) settled: bool,
}

impl<H: Host> Tables<'_, '_, H> {
    /// Makes `base..top` RAM before activation (RTT_INIT_RIPAS), at the largest level that fits: that is
    /// also what the RIM of 1.0 reflects.
    ///
    /// Returns how far it got until the budget was spent.
    pub(crate) fn init_ripas(&mut self, base: u64, top: u64) -> Result<u64, Error> {
        let command = Command::RttInitRipas;
        let mut at = base;
        while at < top && !self.budget.is_spent() {
            let wanted = self.entry_level(at, top);
            let args = [self.rd.get(), at, top];
            let reply = self.with_tables(command, args, Ipa::new(at), wanted)?;
            match reply.status {
                Status::Success => at = self.progress(command, at, top, reply.x[1])?,
                status => return Err(Error::Refused { command, status }),
            }
        }
        Ok(at)
    }

    /// Changes the RIPAS from `at` on as the realm asks (RTT_SET_RIPAS), until the budget is spent.
    ///
    /// A change to EMPTY takes the pages away, in turns with the change itself. An entry that cannot change, such as
    /// a destroyed one, ends the change there.
    pub(crate) fn set_ripas(
        &mut self,
        rec: PhysAddr,
        change: &RipasChange,
        at: u64,
    ) -> Result<Changed, Error> {
        let command = Command::RttSetRipas;
        let top = change.top.get();
        let mut changed = Changed { upto: at, stopped: false, settled: false };
        if change.ripas == Ripas::Empty && !self.withdraw(change.base.get(), top) {
            return Ok(changed);
        }
        while self.finish_emptying()? {
            changed.settled = true;
            if changed.upto >= top || changed.stopped || self.budget.is_spent() {
                return Ok(changed);
            }
            let from = changed.upto;
            let wanted = self.entry_level(from, top);
            let args = [self.rd.get(), rec.get(), from, top];
            let reply = self.with_tables(command, args, Ipa::new(from), wanted)?;
            match reply.status {
                Status::Success => changed.upto = self.progress(command, from, top, reply.x[1])?,
                Status::Rtt { .. } => changed.stopped = true,
                status => return Err(Error::Refused { command, status }),
            }
            if change.ripas == Ripas::Empty && changed.upto > from {
                // Emptied pages stay mapped until the host takes them.
                self.begin_emptying(from, changed.upto);
            }
            changed.settled = false;
        }
        Ok(changed)
    }

    /// Level of the largest entry that begins at `at` and ends by `top`.
    fn entry_level(&self, at: u64, top: u64) -> i8 {
        self.geometry.largest_level(at, top, self.geometry.start_level())
    }
}
