use minicbor::Decoder;
use minicbor::data::{Tag, Type};

use super::corim::{COMID, REALM_PROFILE, TAGGED_BYTES, UNSIGNED_CORIM, URI};
use super::*;

fn measurements() -> Measurements {
    let realm = |name: &str, hash_algorithm, length, seed: u8| Measurement {
        name: name.to_owned(),
        hash_algorithm,
        rim: (0..length).map(|index| index ^ seed).collect(),
        rpv: vec![seed; 64],
        images: vec![Image::new("kernel", b"abc")],
    };
    Measurements {
        scenario: "pair".to_owned(),
        rmi: "2.0",
        realms: vec![
            realm("first", "sha-256", 32, 1),
            realm("second", "sha-384", 48, 2),
            realm("third", "sha-512", 64, 3),
        ],
    }
}

/// A decoder that says what it expects.
struct Reader<'b>(Decoder<'b>);

impl<'b> Reader<'b> {
    /// The map has exactly these keys, in this order; the caller reads each value after its key.
    fn map(&mut self, entries: u64) {
        assert_eq!(self.0.map().unwrap(), Some(entries));
    }

    fn array(&mut self, items: u64) {
        assert_eq!(self.0.array().unwrap(), Some(items));
    }

    fn key(&mut self, key: u64) {
        assert_eq!(self.0.u64().unwrap(), key);
    }

    fn tag(&mut self, tag: u64) {
        assert_eq!(self.0.tag().unwrap(), Tag::new(tag));
    }

    fn text(&mut self) -> &'b str {
        self.0.str().unwrap()
    }

    fn bytes(&mut self) -> &'b [u8] {
        self.0.bytes().unwrap()
    }

    fn end(&self) {
        assert_eq!(self.0.datatype().unwrap_err().to_string(), "end of input bytes");
    }
}

/// Reads a CoMID by the profile; returns tag-id, algorithm, RIM and RPV.
fn read_comid(bytes: &[u8]) -> (&str, &str, &[u8], &[u8]) {
    let mut comid = Reader(Decoder::new(bytes));
    comid.map(2);
    comid.key(1);
    comid.map(1);
    comid.key(0);
    let id = comid.text();
    comid.key(4);
    comid.map(1);
    comid.key(0);
    comid.array(1);
    comid.array(2);
    comid.map(1);
    comid.key(0);
    comid.map(1);
    comid.key(0);
    comid.tag(TAGGED_BYTES);
    let class = comid.bytes();
    comid.array(2);
    comid.map(2);
    comid.key(0);
    assert_eq!(comid.text(), "cca.rim");
    comid.key(1);
    comid.map(1);
    comid.key(2);
    comid.array(1);
    comid.array(2);
    let algorithm = comid.text();
    let rim = comid.bytes();
    assert_eq!(class, rim, "the RIM names the environment");
    comid.map(2);
    comid.key(0);
    assert_eq!(comid.text(), "cca.rpv");
    comid.key(1);
    comid.map(1);
    comid.key(4);
    comid.tag(TAGGED_BYTES);
    let rpv = comid.bytes();
    comid.end();
    (id, algorithm, rim, rpv)
}

#[test]
fn a_corim_says_what_the_profile_wants() {
    let measurements = measurements();
    let bytes = measurements.encode(Format::Corim).unwrap();
    let mut corim = Reader(Decoder::new(&bytes));
    corim.tag(UNSIGNED_CORIM);
    corim.map(3);
    corim.key(0);
    assert!(corim.text().starts_with("suzerain/pair/"));
    corim.key(1);
    corim.array(3);
    for realm in &measurements.realms {
        corim.tag(COMID);
        let (id, algorithm, rim, rpv) = read_comid(corim.bytes());
        assert_eq!(id, format!("suzerain/pair/{}/{}", realm.name, realm.rim_hex()));
        assert_eq!((algorithm, rim, rpv), (realm.hash_algorithm, &realm.rim[..], &realm.rpv[..]));
    }
    corim.key(3);
    corim.tag(URI);
    assert_eq!(corim.text(), REALM_PROFILE);
    corim.end();
}

#[test]
fn the_identifier_of_a_corim_depends_on_what_it_says() {
    let identifier = |measurements: &Measurements| {
        let bytes = measurements.encode(Format::Corim).unwrap();
        let mut corim = Decoder::new(&bytes);
        assert_eq!(corim.tag().unwrap(), Tag::new(UNSIGNED_CORIM));
        corim.map().unwrap();
        corim.u8().unwrap();
        assert_eq!(corim.datatype().unwrap(), Type::String);
        corim.str().unwrap().to_owned()
    };
    let before = measurements();
    let mut after = measurements();
    after.realms[2].rpv[63] ^= 1;
    assert_eq!(identifier(&before), identifier(&measurements()));
    assert_ne!(identifier(&before), identifier(&after));
}

#[test]
fn json_says_all() {
    let bytes = measurements().encode(Format::Json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["scenario"], "pair");
    assert_eq!(json["rmi"], "2.0");
    let realm = &json["realms"][1];
    assert_eq!(realm["name"], "second");
    assert_eq!(realm["hash-algorithm"], "sha-384");
    assert_eq!(realm["rim"].as_str().unwrap().len(), 96);
    assert!(realm["rim"].as_str().unwrap().starts_with("0203000106"));
    assert_eq!(realm["rpv"], "02".repeat(64));
    let image = &realm["images"][0];
    assert_eq!((&image["role"], &image["bytes"]), (&"kernel".into(), &3.into()));
    // The digest of "abc" in FIPS 180-4's examples.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(image["sha256"], digest);
}

#[test]
fn text_has_a_line_for_each_realm() {
    let text = String::from_utf8(measurements().encode(Format::Text).unwrap()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("first 0100030205"));
}
