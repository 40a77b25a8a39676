//! RIPAS: initial, and changed on the realm's request.

use mm::{Ipa, PhysAddr};

use super::Tables;
use crate::command::Command;
use crate::conduit::Host;
use crate::error::Error;
use crate::exit::{Ripas, RipasChange};
use crate::status::Status;

impl<H: Host> Tables<'_, '_, H> {
    /// Makes `base..top` RAM before activation (RTT_INIT_RIPAS), at the largest level that fits: that is
    /// also what the RIM of 1.0 reflects.
    pub(crate) fn init_ripas(&self, base: Ipa, top: Ipa) -> Result<(), Error> {
        let command = Command::RttInitRipas;
        let mut at = base.get();
        while at < top.get() {
            let wanted = self.entry_level(at, top.get());
            let args = [self.rd.get(), at, top.get()];
            let reply = self.with_tables(command, args, Ipa::new(at), wanted)?;
            match reply.status {
                Status::Success => at = self.progress(command, at, top.get(), reply.x[1])?,
                status => return Err(Error::Refused { command, status }),
            }
        }
        Ok(())
    }

    /// Changes the RIPAS as the realm asks (RTT_SET_RIPAS), for at most about `budget` calls.
    ///
    /// Returns the address up to which the change was made; the realm repeats its request for the rest.
    /// An entry that cannot change, such as a destroyed one, ends the change there.
    pub(crate) fn set_ripas(
        &self,
        rec: PhysAddr,
        change: &RipasChange,
        budget: u64,
    ) -> Result<u64, Error> {
        let command = Command::RttSetRipas;
        let top = change.top.get();
        let mut at = change.base.get();
        let mut calls = 0;
        while at < top && calls < budget {
            let wanted = self.entry_level(at, top);
            let args = [self.rd.get(), rec.get(), at, top];
            let reply = self.with_tables(command, args, Ipa::new(at), wanted)?;
            let from = at;
            match reply.status {
                Status::Success => at = self.progress(command, at, top, reply.x[1])?,
                Status::Rtt { .. } => break,
                status => return Err(Error::Refused { command, status }),
            }
            calls += 1;
            if change.ripas == Ripas::Empty {
                // Emptied pages stay mapped until the host takes them.
                calls += self.unmap_emptied(from, at)?;
            }
        }
        Ok(at)
    }

    /// Level of the largest entry that begins at `at` and ends by `top`.
    fn entry_level(&self, at: u64, top: u64) -> i8 {
        self.geometry.largest_level(at, top, self.geometry.start_level())
    }
}
