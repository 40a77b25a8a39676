//! Loads, stores and fetches of every form at devices, at holes, and at the edges of RAM.

use crate::guest::Guest;
use crate::probe::{self, STUBS};
use crate::space;
use guest_rt::rng::Rng;

/// How often a stub runs, each time with other addresses.
const RUNS: u64 = 4;

/// Load and store instructions with address register 0 and data register 0; data registers at
/// bit 0, and for the forms that have them a second one at bit 10 and a status register at bit 16.
const SIMPLE: &[u32] = &[
    // STR, LDR, LDRS* with unsigned offset 0, all widths.
    0x3900_0000,
    0x7900_0000,
    0xb900_0000,
    0xf900_0000,
    0x3940_0000,
    0x7940_0000,
    0xb940_0000,
    0xf940_0000,
    0x3980_0000,
    0x7980_0000,
    0xb980_0000,
    0x39c0_0000,
    0x79c0_0000,
    // The same with an offset behind the register: 8 bytes, scaled.
    0x3900_2000,
    0x7900_1000,
    0xb900_0800,
    0xf940_0400,
    // STTR, LDTR.
    0x3800_0800,
    0xf800_0800,
    0xb840_0800,
    0x7840_0800,
    // STLR, LDAR, STLLR, LDLAR.
    0x089f_fc00,
    0xc89f_fc00,
    0x08df_fc00,
    0x88df_fc00,
    0xc8df_fc00,
    0x889f_7c00,
    0x88df_7c00,
];

/// Forms for which the architecture gives no valid syndrome.
const COMPLEX: &[u32] = &[
    // Post-indexed and pre-indexed by 8 and -8.
    0x3800_8400,
    0x7800_8c00,
    0xb81f_8400,
    0xf800_8400,
    0x3840_8400,
    0x7840_8c00,
    0xb85f_8c00,
    0xf840_8400,
    0x3880_8400,
    0xb880_8c00,
    // STP, LDP, LDPSW, STNP, LDNP; with write-back.
    0x2900_0400,
    0xa900_0400,
    0x2940_0400,
    0xa940_0400,
    0x6940_0400,
    0xa800_0400,
    0xa840_0400,
    0xa980_0400,
    0xa8c0_0400,
    // LDXR, STXR, LDAXP, STLXP.
    0x085f_7c00,
    0xc85f_7c00,
    0x0802_7c00,
    0xc802_7c00,
    0xc87f_8400,
    0xc822_8400,
    // CAS, CASP, LDADD, LDCLR, LDEOR, LDSET, LDSMAX, SWP; LDAPR; LDAPUR, STLUR.
    0x08a2_7c00,
    0xc8e2_fc00,
    0x0822_7c00,
    0x4822_7c00,
    0x3822_0000,
    0xf8e2_1000,
    0xb8a2_2000,
    0xf822_3000,
    0x7822_4000,
    0xf822_8000,
    0xb8bf_c000,
    0xd940_0000,
    0xd900_0000,
    // LD64B, ST64B, ST64BV.
    0xf83f_d000,
    0xf83f_9000,
    0xf822_b000,
    // SIMD: STR and LDR of B, S, D, Q; STP, LDP of Q; LD1, ST1, LD4.
    0x3d00_0000,
    0xbd40_0000,
    0xfd00_0000,
    0x3d80_0000,
    0x3dc0_0000,
    0xad00_0400,
    0xad40_0400,
    0x4c40_7000,
    0x4c00_7000,
    0x4c40_0000,
    // PRFM; DC ZVA, GVA, GZVA, CVAC, CVAU, CIVAC, CVAP, IVAC; IC IVAU; AT S1E1R, S1E1W, S1E0R.
    0xf980_0000,
    0xd50b_7420,
    0xd50b_7460,
    0xd50b_7480,
    0xd50b_7a20,
    0xd50b_7b20,
    0xd50b_7e20,
    0xd50b_7c20,
    0xd508_7620,
    0xd50b_7520,
    0xd508_7800,
    0xd508_7820,
    0xd508_7840,
    // STG, LDG, ST2G (memory tagging).
    0xd920_0800,
    0xd960_0000,
    0xd9a0_0800,
];

/// BR x0, which comes back by x30 if anything lies there.
const BRANCH: u32 = 0xd61f_0000;

/// System instructions have their address in the data register's place.
fn is_system(word: u32) -> bool {
    word >> 22 == 0xd508_0000 >> 22
}

/// An instruction that accesses the address in `x0`.
fn instruction(rng: &mut Rng) -> u32 {
    let word = if rng.one_in(2) { rng.pick(SIMPLE) } else { rng.pick(COMPLEX) };
    if is_system(word) {
        return word;
    }
    // Data in x1 to x7 or the zero register; write-back to x0 is no loss.
    let register = if rng.one_in(8) { 31 } else { 1 + rng.below(7) as u32 };
    word | register
}

/// Accesses of random form. Returns the number of cases.
pub(crate) fn accesses(guest: &mut Guest) -> u64 {
    let mut stores = [false; STUBS];
    for (index, store) in stores.iter_mut().enumerate() {
        let word = instruction(&mut guest.rng);
        // Where bit 22 does not tell, an atomic among them: taken for a store.
        *store = word >> 22 & 1 == 0 || word & 0x3b20_0c00 == 0x3820_0000;
        probe::write(index, &[word]);
    }
    probe::synchronize();
    let mut cases = 0;
    for (index, &store) in stores.iter().enumerate() {
        for _ in 0..RUNS {
            let address = space::address(guest);
            // Every byte that goes out of the UART is a character on the console.
            if store && space::is_uart_data(address) && !guest.rng.one_in(512) {
                continue;
            }
            let mut registers = [0; 8].map(|_| guest.rng.number());
            registers[0] = address;
            guest.faults += u64::from(probe::run(index, registers).faulted);
            cases += 1;
        }
    }
    cases
}

/// Instruction fetches from devices, holes, and behind the end of RAM.
pub(crate) fn fetches(guest: &mut Guest) -> u64 {
    probe::write(0, &[BRANCH]);
    probe::synchronize();
    for _ in 0..STUBS {
        let mut registers = [0; 8];
        registers[0] = space::fetch_address(guest);
        guest.faults += u64::from(probe::run(0, registers).faulted);
    }
    STUBS as u64
}
