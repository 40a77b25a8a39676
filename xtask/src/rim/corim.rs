//! Reference values of realms as an unsigned CoRIM.
//!
//! The envelope is draft-ietf-rats-corim-10: CBOR tag 501 around a map that has one CoMID (tag 506)
//! for each realm. What is in a CoMID is fixed by the profile for realms in
//! draft-ydb-rats-cca-endorsements-04, section 3.2: the environment is named by the RIM, and the
//! measurements are the RIM and the realm personalization value. Extended measurements are the realm's own,
//! so that nothing can be said about them here.
//!
//! The encoding is deterministic (RFC 8949, section 4.2): shortest lengths, keys in ascending order.

use minicbor::Encoder;
use minicbor::data::Tag;
use minicbor::encode::Error;
use sha2::{Digest, Sha256};

use super::{Measurement, Measurements, hex};

/// The profile for realms, version 1.0.0.
pub(super) const REALM_PROFILE: &str = "tag:arm.com,2025:cca_realm#1.0.0";

/// Tags: URI (RFC 8949), unsigned CoRIM, CoMID, bytes that stand for themselves.
pub(super) const URI: u64 = 32;
pub(super) const UNSIGNED_CORIM: u64 = 501;
pub(super) const COMID: u64 = 506;
pub(super) const TAGGED_BYTES: u64 = 560;

type Cbor = Encoder<Vec<u8>>;
type Result<T> = core::result::Result<T, Error<core::convert::Infallible>>;

/// The CoRIM of all realms. Its identifier depends on its contents, so that two with the same identifier
/// say the same.
pub(super) fn encode(measurements: &Measurements) -> Vec<u8> {
    // Memory takes all that is written to it.
    corim(measurements).unwrap_or_else(|error| unreachable!("{error}"))
}

fn corim(measurements: &Measurements) -> Result<Vec<u8>> {
    let mut comids = Vec::new();
    let mut contents = Sha256::new();
    for realm in &measurements.realms {
        let comid = comid(&measurements.scenario, realm)?;
        contents.update(&comid);
        comids.push(comid);
    }
    let id = format!("suzerain/{}/{}", measurements.scenario, hex(&contents.finalize()[..16]));

    let mut cbor = Cbor::new(Vec::new());
    cbor.tag(Tag::new(UNSIGNED_CORIM))?.map(3)?;
    // id, tags, profile
    cbor.u8(0)?.str(&id)?;
    cbor.u8(1)?.array(comids.len() as u64)?;
    for comid in comids {
        cbor.tag(Tag::new(COMID))?.bytes(&comid)?;
    }
    cbor.u8(3)?.tag(Tag::new(URI))?.str(REALM_PROFILE)?;
    Ok(cbor.into_writer())
}

/// The CoMID of one realm.
fn comid(scenario: &str, realm: &Measurement) -> Result<Vec<u8>> {
    let mut cbor = Cbor::new(Vec::new());
    cbor.map(2)?;
    // tag-identity: tag-id
    let tag_id = format!("suzerain/{scenario}/{}/{}", realm.name, realm.rim_hex());
    cbor.u8(1)?.map(1)?.u8(0)?.str(&tag_id)?;
    // triples: reference-triples, one of them
    cbor.u8(4)?.map(1)?.u8(0)?.array(1)?.array(2)?;
    // environment: class: class-id
    cbor.map(1)?.u8(0)?.map(1)?.u8(0)?.tag(Tag::new(TAGGED_BYTES))?.bytes(&realm.rim)?;
    cbor.array(2)?;
    measurement(&mut cbor, "cca.rim")?;
    // digests, one of them
    cbor.u8(2)?.array(1)?.array(2)?.str(realm.hash_algorithm)?.bytes(&realm.rim)?;
    measurement(&mut cbor, "cca.rpv")?;
    // raw-value
    cbor.u8(4)?.tag(Tag::new(TAGGED_BYTES))?.bytes(&realm.rpv)?;
    Ok(cbor.into_writer())
}

/// Begins a measurement: its key and the map with its only value, which is to follow.
fn measurement(cbor: &mut Cbor, key: &str) -> Result<()> {
    cbor.map(2)?.u8(0)?.str(key)?.u8(1)?.map(1)?;
    Ok(())
}
