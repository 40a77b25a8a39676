//! Realm Services Interface 1.0: what a realm asks of the monitor by SMC.
//!
//! There is no attestation key behind this monitor, so RSI_ATTESTATION_TOKEN_INIT answers
//! ERROR_UNKNOWN and RSI_ATTESTATION_TOKEN_CONTINUE, never begun, ERROR_STATE.

use crate::abi::{
    Ripas, SMC_UNKNOWN, SVE_HINT, VERSION_1_0, exit_reason, psci_fid, rsi_fid, rsi_status,
};
use crate::addr::{GRANULE_SIZE, Ipa, Pa};
use crate::exit::{advance_pc, emulated_data_abort};
use crate::granule::GranuleState;
use crate::measurement::{MAX_DIGEST_BYTES, extend};
use crate::monitor::{Monitor, Page};
use crate::platform::Platform;
use crate::realm::{MEASUREMENTS, RIM};
use crate::rec::{Rec, RipasRequest};
use crate::rtt::ripas::PageLookup;
use crate::run::ExitRecord;

/// Bytes and alignment of RsiHostCall.
const HOST_CALL_BYTES: u64 = 0x100;
/// SMCCC 1.2, in the SMCCC_VERSION format.
const SMCCC_VERSION_1_2: u64 = 1 << 16 | 2;

/// What happens after a call of a realm.
pub(crate) enum Next {
    /// The realm runs on behind its SMC.
    Realm,
    /// The host gets an exit; the realm will run on behind its SMC.
    Host(ExitRecord),
    /// The host has to map a page; the realm will make its call again.
    Fault(ExitRecord),
}

/// Answers a call: results from x0 on; the rest of x1 to x3 is zero, x4 and above stay.
pub(crate) fn answer<const N: usize>(rec: &mut Rec, results: [u64; N]) -> Next {
    const { assert!(N <= 4) };
    rec.context.gprs[..4].fill(0);
    rec.context.gprs[..N].copy_from_slice(&results);
    Next::Realm
}

/// Function identifier of the call that a REC makes or has pending.
pub(crate) fn function_of(rec: &Rec) -> u64 {
    rec.context.gprs[0] & 0xffff_ffff & !SVE_HINT
}

impl<P: Platform> Monitor<P> {
    /// Serves an SMC of the realm; an exit if the host must know.
    pub(crate) fn handle_smc(&self, rec: &mut Rec) -> Option<ExitRecord> {
        let next = match function_of(rec) {
            psci_fid::SMCCC_VERSION => answer(rec, [SMCCC_VERSION_1_2]),
            0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => self.handle_psci(rec),
            rsi_fid::VERSION => rsi_version(rec),
            rsi_fid::FEATURES => answer(rec, [rsi_status::SUCCESS, 0]),
            rsi_fid::MEASUREMENT_READ => self.rsi_measurement_read(rec),
            rsi_fid::MEASUREMENT_EXTEND => self.rsi_measurement_extend(rec),
            rsi_fid::ATTESTATION_TOKEN_INIT => answer(rec, [rsi_status::ERROR_UNKNOWN]),
            rsi_fid::ATTESTATION_TOKEN_CONTINUE => answer(rec, [rsi_status::ERROR_STATE]),
            rsi_fid::REALM_CONFIG => self.rsi_realm_config(rec),
            rsi_fid::IPA_STATE_SET => self.rsi_ipa_state_set(rec),
            rsi_fid::IPA_STATE_GET => self.rsi_ipa_state_get(rec),
            rsi_fid::HOST_CALL => self.rsi_host_call(rec),
            _ => answer(rec, [SMC_UNKNOWN]),
        };
        match next {
            Next::Realm => {
                advance_pc(rec);
                None
            }
            Next::Host(exit) => {
                advance_pc(rec);
                Some(exit)
            }
            Next::Fault(exit) => Some(exit),
        }
    }

    fn rsi_measurement_read(&self, rec: &mut Rec) -> Next {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let rd = self.load_rd(&granule);
        let slot = usize::try_from(rec.context.gprs[1]).unwrap_or(usize::MAX);
        let Some(measurement) = rd.measurements.get(slot) else {
            return answer(rec, [rsi_status::ERROR_INPUT]);
        };
        rec.context.gprs[0] = rsi_status::SUCCESS;
        for (register, word) in rec.context.gprs[1..].iter_mut().zip(measurement.chunks_exact(8)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            *register = u64::from_le_bytes(bytes);
        }
        Next::Realm
    }

    fn rsi_measurement_extend(&self, rec: &mut Rec) -> Next {
        let slot = usize::try_from(rec.context.gprs[1]).unwrap_or(usize::MAX);
        let size = usize::try_from(rec.context.gprs[2]).unwrap_or(usize::MAX);
        if slot == RIM || slot >= MEASUREMENTS || size > MAX_DIGEST_BYTES {
            return answer(rec, [rsi_status::ERROR_INPUT]);
        }
        let mut value = [0; MAX_DIGEST_BYTES];
        for (chunk, register) in value.chunks_exact_mut(8).zip(&rec.context.gprs[3..]) {
            chunk.copy_from_slice(&register.to_le_bytes());
        }
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let mut rd = self.load_rd(&granule);
        rd.measurements[slot] = extend(rd.algorithm(), &rd.measurements[slot], &value[..size]);
        self.store_rd(&granule, &rd);
        answer(rec, [rsi_status::SUCCESS])
    }

    fn rsi_realm_config(&self, rec: &mut Rec) -> Next {
        let ipa = Ipa(rec.context.gprs[1]);
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let rd = self.load_rd(&granule);
        let stage2 = rd.stage2();
        if !ipa.is_aligned(GRANULE_SIZE) || !stage2.is_protected(ipa) {
            return answer(rec, [rsi_status::ERROR_INPUT]);
        }
        match self.look_up_page(&stage2, ipa) {
            PageLookup::Empty => answer(rec, [rsi_status::ERROR_INPUT]),
            PageLookup::Fault(level) => Next::Fault(emulated_data_abort(ipa, level)),
            PageLookup::Ram(pa) => {
                let mut config = Page::zeroed();
                config.0[..8].copy_from_slice(&stage2.ipa_bits.to_le_bytes());
                config.0[8] = rd.algorithm() as u8;
                config.0[0x200..0x240].copy_from_slice(&rd.rpv);
                self.platform.write_realm(pa, &config.0);
                answer(rec, [rsi_status::SUCCESS])
            }
        }
    }

    fn rsi_ipa_state_set(&self, rec: &mut Rec) -> Next {
        const CHANGE_DESTROYED: u64 = 1;
        let [_, base, top, ripas, flags, ..] = rec.context.gprs;
        let ripas = match ripas {
            0 => Ripas::Empty,
            1 => Ripas::Ram,
            _ => return answer(rec, [rsi_status::ERROR_INPUT]),
        };
        if !self.is_protected_range(rec, Ipa(base), Ipa(top)) {
            return answer(rec, [rsi_status::ERROR_INPUT]);
        }
        rec.ripas = RipasRequest::new(base, top, ripas, flags & CHANGE_DESTROYED != 0);
        let exit = ExitRecord {
            ripas_base: base,
            ripas_top: top,
            ripas_value: ripas as u8,
            ..ExitRecord::new(exit_reason::RIPAS_CHANGE)
        };
        Next::Host(exit)
    }

    /// Tells the realm at the next entry how far its request was carried out.
    pub(crate) fn complete_ripas_change(&self, rec: &mut Rec, rejected: bool) {
        const ACCEPT: u64 = 0;
        const REJECT: u64 = 1;
        let request = rec.ripas;
        if !request.is_pending() {
            return;
        }
        let unfinished = request.next != request.top;
        let response =
            if rejected && unfinished && request.ripas() == Ripas::Ram { REJECT } else { ACCEPT };
        answer(rec, [rsi_status::SUCCESS, request.next, response]);
        rec.ripas = RipasRequest::default();
    }

    fn rsi_ipa_state_get(&self, rec: &mut Rec) -> Next {
        let (base, top) = (Ipa(rec.context.gprs[1]), Ipa(rec.context.gprs[2]));
        if !self.is_protected_range(rec, base, top) {
            return answer(rec, [rsi_status::ERROR_INPUT]);
        }
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let stage2 = self.load_rd(&granule).stage2();
        match self.ripas_run(&stage2, base, top) {
            Some((ripas, end)) => answer(rec, [rsi_status::SUCCESS, end.0, ripas as u64]),
            None => answer(rec, [rsi_status::ERROR_INPUT]),
        }
    }

    /// True if `base` to `top` is a non-empty range of whole protected pages.
    fn is_protected_range(&self, rec: &Rec, base: Ipa, top: Ipa) -> bool {
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let stage2 = self.load_rd(&granule).stage2();
        base < top
            && base.is_aligned(GRANULE_SIZE)
            && top.is_aligned(GRANULE_SIZE)
            && top.0 <= stage2.ipa_size() / 2
    }

    fn rsi_host_call(&self, rec: &mut Rec) -> Next {
        let ipa = Ipa(rec.context.gprs[1]);
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let stage2 = self.load_rd(&granule).stage2();
        // The alignment is the size, so the structure does not cross a page.
        if !ipa.is_aligned(HOST_CALL_BYTES) || !stage2.is_protected(ipa) {
            return answer(rec, [rsi_status::ERROR_INPUT]);
        }
        match self.look_up_page(&stage2, ipa) {
            PageLookup::Empty => answer(rec, [rsi_status::ERROR_INPUT]),
            PageLookup::Fault(level) => Next::Fault(emulated_data_abort(ipa, level)),
            PageLookup::Ram(pa) => {
                let mut call = [0; HOST_CALL_BYTES as usize];
                self.platform.read_realm(pa, &mut call);
                let mut exit = ExitRecord::new(exit_reason::HOST_CALL);
                exit.imm = u16::from_le_bytes([call[0], call[1]]);
                for (gpr, bytes) in exit.gprs.iter_mut().zip(call[8..].chunks_exact(8)) {
                    let mut word = [0; 8];
                    word.copy_from_slice(bytes);
                    *gpr = u64::from_le_bytes(word);
                }
                rec.host_call_pending = 1;
                Next::Host(exit)
            }
        }
    }

    /// Copies the results of a pending host call into the realm's structure, whose address is
    /// still in x1. An exit if its page has gone: the host maps it and enters again.
    pub(crate) fn complete_host_call(
        &self,
        rec: &mut Rec,
        results: &[u64; 31],
    ) -> Option<ExitRecord> {
        if rec.host_call_pending == 0 {
            return None;
        }
        let ipa = Ipa(rec.context.gprs[1]);
        let granule = self.lock_own(Pa(rec.rd), GranuleState::Rd);
        let stage2 = self.load_rd(&granule).stage2();
        match self.look_up_page(&stage2, ipa) {
            PageLookup::Fault(level) => return Some(emulated_data_abort(ipa, level)),
            PageLookup::Ram(pa) => {
                let mut bytes = [0; 8 * 31];
                for (chunk, result) in bytes.chunks_exact_mut(8).zip(results) {
                    chunk.copy_from_slice(&result.to_le_bytes());
                }
                self.platform.write_realm(pa.offset(8), &bytes);
            }
            // The realm gave the page up itself; it finds out when it looks.
            PageLookup::Empty => {}
        }
        rec.context.gprs[0] = rsi_status::SUCCESS;
        rec.host_call_pending = 0;
        None
    }
}

/// RSI_VERSION: only 1.0 is implemented.
fn rsi_version(rec: &mut Rec) -> Next {
    let status = if rec.context.gprs[1] == VERSION_1_0 {
        rsi_status::SUCCESS
    } else {
        rsi_status::ERROR_INPUT
    };
    answer(rec, [status, VERSION_1_0, VERSION_1_0])
}
