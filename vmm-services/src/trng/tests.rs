use super::call;
use crate::exit::Resume;
use crate::testing::Counting;
use proptest::prelude::*;
use std::vec::Vec;

const FEATURES: u32 = 0x8400_0051;
const RND32: u32 = 0x8400_0053;
const RND64: u32 = 0xc400_0053;

fn ask(function: u32, argument: u64, entropy: &Counting) -> [u64; 4] {
    match call(function, argument, entropy) {
        Resume::Results(results) => results,
        other => panic!("{other:?}"),
    }
}

fn failed(status: i64) -> [u64; 4] {
    [status.cast_unsigned(), 0, 0, 0]
}

#[test]
fn the_interface_describes_itself() {
    let entropy = Counting::default();
    assert_eq!(ask(0x8400_0050, 0, &entropy), [0x1_0000, 0, 0, 0], "version 1.0");
    for function in [0x8400_0050, FEATURES, 0x8400_0052, RND32, RND64] {
        assert_eq!(ask(FEATURES, u64::from(function), &entropy), [0; 4], "{function:#x}");
    }
    assert_eq!(ask(FEATURES, 0xc400_0050, &entropy), failed(-1));
    let uuid: Vec<u8> = ask(0x8400_0052, 0, &entropy)
        .iter()
        .flat_map(|&word| u32::try_from(word).unwrap().to_le_bytes())
        .collect();
    assert_eq!(uuid[..6], [0x89, 0xb7, 0xcb, 0x35, 0x65, 0x63]);
    assert_eq!(uuid[6] >> 4, 4, "a random UUID");
}

#[test]
fn without_a_source_there_is_no_interface() {
    let entropy = Counting { has_source: false, ..Counting::default() };
    for function in [0x8400_0050, FEATURES, 0x8400_0052, RND32, RND64] {
        assert_eq!(ask(function, 0x8400_0050, &entropy), failed(-1), "{function:#x}");
    }
}

#[test]
fn a_dry_source_and_bad_lengths() {
    let entropy = Counting::default();
    for bits in [0, 97, 1 << 31] {
        assert_eq!(ask(RND32, bits, &entropy), failed(-2));
    }
    assert_ne!(ask(RND32, 0xffff_ffff_0000_0060, &entropy), failed(-2), "only W1 counts");
    for bits in [0, 193, u64::MAX] {
        assert_eq!(ask(RND64, bits, &entropy), failed(-2));
    }
    entropy.left.set(0);
    assert_eq!(ask(RND64, 1, &entropy), failed(-3));
}

proptest! {
    #[test]
    fn as_many_bits_as_wanted_and_zero_above(bits in 1_u64..=192) {
        for (function, width) in [(RND32, 32), (RND64, 64)] {
            if bits > 3 * width {
                continue;
            }
            // All bits that may be set are set in some answer, none of the others in any.
            let mut seen = [0; 4];
            let entropy = Counting::default();
            for _ in 0..64 {
                let results = ask(function, bits, &entropy);
                prop_assert_eq!(results[0], 0);
                seen.iter_mut().zip(results).for_each(|(seen, result)| *seen |= result);
            }
            for bit in 0..3 * width {
                let register = (3 - bit / width) as usize;
                let got = seen[register] >> (bit % width) & 1 != 0;
                prop_assert_eq!(got, bit < bits, "bit {}", bit);
            }
        }
    }
}
