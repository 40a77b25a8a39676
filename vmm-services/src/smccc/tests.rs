use super::call;
use crate::exit::{CALL_REGISTERS, Resume};
use crate::ids::VcpuId;
use crate::psci::PowerState;
use crate::testing::{Alone, Counting, Lines, Ram, RamDisks, Timer};
use crate::vm::Context;
use proptest::prelude::*;
use std::vec::Vec;

fn ask(args: [u64; CALL_REGISTERS]) -> Resume {
    let (memory, mut lines, entropy) = (Ram::new(0x1000), Lines::default(), Counting::default());
    let timer = Timer::default();
    let context = Context {
        memory: &memory,
        console: &mut lines,
        entropy: &entropy,
        disks: &RamDisks::default(),
        peers: &mut Alone,
        countdown: &timer,
    };
    call(&mut PowerState::new(2), VcpuId::BOOT, &args, &context)
}

fn results(function: u64, argument: u64) -> [u64; 4] {
    match ask([function, argument, 0, 0, 0, 0, 0, 0]) {
        Resume::Results(results) => results,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_service_answers_its_numbers() {
    assert_eq!(results(0x8000_0000, 0), [0x1_0002, 0, 0, 0], "SMCCC 1.2");
    assert_eq!(results(0x8000_0001, 0x8000_0001), [0; 4]);
    assert_eq!(results(0x8400_0000, 0), [0x1_0001, 0, 0, 0], "PSCI 1.1");
    assert_eq!(results(0x8400_0050, 0), [0x1_0000, 0, 0, 0], "TRNG 1.0");
    assert_eq!(results(0x8600_ff03, 0), [1, 0, 0, 0]);
    let uid: Vec<u8> = results(0x8600_ff01, 0)
        .iter()
        .flat_map(|&word| u32::try_from(word).unwrap().to_le_bytes())
        .collect();
    assert_eq!(uid[..6], [0xb0, 0x50, 0xfd, 0x3d, 0x80, 0x36]);
}

proptest! {
    #[test]
    fn every_other_number_is_unknown(function: u32, args: [u64; 7]) {
        let known = |base: u32, mask: u32| function & mask == base;
        // PSCI and TRNG with their 64-bit twins, the convention's own and the vendor's queries.
        let known = known(0x8400_0000, 0xbfff_ff80)
            || known(0x8000_0000, 0xffff_fffe)
            || known(0x8600_ff00, 0xffff_fffc);
        prop_assume!(!known);
        let [a, b, c, d, e, f, g] = args;
        let answer = ask([u64::from(function), a, b, c, d, e, f, g]);
        prop_assert_eq!(answer, Resume::Results([u64::MAX, 0, 0, 0]));
    }
}
