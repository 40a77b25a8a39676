//! RSI: what the realm gets.

use std::sync::{Arc, Mutex};

use rmm::Ipa;
use rmm::abi::{exit_reason, fid, psci_fid, rsi_fid};
use rmm::host::{Cpu, Stop};
use rmm::measurement::{HashAlgorithm, extend};

use crate::harness::{EMPTY, Host, OK, Params, RAM, SHARED, rec_params};

/// Runs a guest that must reach its end without the host's help, in a realm with RAM at 0.
fn run(guest: impl Fn(&mut Cpu) -> Result<(), Stop> + Send + Sync + 'static) {
    let host = Host::with_guest(move |cpu| {
        guest(cpu)?;
        cpu.system_off()
    });
    let realm = host.realm();
    host.map_ram(realm, 0);
    host.map_ram(realm, 0x1000);
    host.map(realm, 0x2000);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.gpr(0)], [exit_reason::PSCI, psci_fid::SYSTEM_OFF]);
}

#[test]
fn version_and_features() {
    run(|cpu| {
        let version = cpu.smc(rsi_fid::VERSION, [0x1_0000, 0, 0, 9])?;
        assert_eq!(version[..5], [0, 0x1_0000, 0x1_0000, 0, 9], "x4 is preserved");
        assert_eq!(cpu.smc(rsi_fid::VERSION, [0x2_0000, 0, 0, 0])?[..2], [1, 0x1_0000]);
        assert_eq!(cpu.smc(rsi_fid::FEATURES, [0; 4])?[..2], [0, 0]);
        assert_eq!(cpu.smc(0xc400_01ff, [0; 4])?[0], u64::MAX);
        assert_eq!(cpu.smc(psci_fid::SMCCC_VERSION, [0; 4])?[0], 0x1_0002);
        assert_eq!(cpu.smc(rsi_fid::ATTESTATION_TOKEN_CONTINUE, [0; 4])?[0], 2);
        Ok(())
    });
}

#[test]
fn realm_config() {
    run(|cpu| {
        cpu.store(Ipa(0x1008), 1, 0xff)?;
        assert_eq!(cpu.smc(rsi_fid::REALM_CONFIG, [0x1000, 0, 0, 0])?[0], 0);
        assert_eq!(cpu.load(Ipa(0x1000), 8)?, 40);
        assert_eq!(cpu.load(Ipa(0x1008), 1)?, 0, "SHA-256");
        for bad in [0x1008, SHARED, 0x2000] {
            assert_eq!(cpu.smc(rsi_fid::REALM_CONFIG, [bad, 0, 0, 0])?[0], 1);
        }
        Ok(())
    });
}

#[test]
fn measurements_are_read_and_extended() {
    run(|cpu| {
        assert_eq!(cpu.smc(rsi_fid::MEASUREMENT_READ, [5, 0, 0, 0])?[0], 1);
        let rim = cpu.smc(rsi_fid::MEASUREMENT_READ, [0; 4])?;
        assert_eq!(rim[0], 0);
        assert_ne!(rim[1..5], [0; 4]);
        assert_eq!(rim[5..9], [0; 4], "SHA-256 is zero padded");
        for bad in [[0, 8], [5, 8], [1, 65]] {
            let [slot, size] = bad;
            assert_eq!(cpu.smc(rsi_fid::MEASUREMENT_EXTEND, [slot, size, 0, 0])?[0], 1);
        }
        cpu.context().gprs[5..11].fill(0);
        assert_eq!(cpu.smc(rsi_fid::MEASUREMENT_EXTEND, [4, 8, 0x1122, 0])?[0], 0);
        let rem = cpu.smc(rsi_fid::MEASUREMENT_READ, [4, 0, 0, 0])?;
        let expected = extend(HashAlgorithm::Sha256, &[0; 64], &0x1122_u64.to_le_bytes());
        let words: Vec<u64> = expected
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(rem[1..9], words);
        Ok(())
    });
}

#[test]
fn ipa_state_get_finds_runs() {
    run(|cpu| {
        let mut get = |base, top| cpu.smc(rsi_fid::IPA_STATE_GET, [base, top, 0, 0]);
        assert_eq!(get(0, 0x4000)?[..3], [0, 0x2000, RAM]);
        assert_eq!(get(0, 0x1000)?[..3], [0, 0x1000, RAM], "not beyond what was asked");
        assert_eq!(get(0x2000, 0x20_0000)?[..3], [0, 0x20_0000, EMPTY]);
        for [base, top] in [[8, 0x1000], [0, 8], [0x1000, 0x1000], [0, SHARED + 0x1000]] {
            assert_eq!(get(base, top)?[0], 1);
        }
        Ok(())
    });
}

#[test]
fn ipa_state_set_checks_its_operands() {
    run(|cpu| {
        let mut set = |base, top, ripas| cpu.smc(rsi_fid::IPA_STATE_SET, [base, top, ripas, 0]);
        assert_eq!(set(8, 0x1000, RAM)?[0], 1);
        assert_eq!(set(0, 0x1008, RAM)?[0], 1);
        assert_eq!(set(0x1000, 0x1000, RAM)?[0], 1);
        assert_eq!(set(0, SHARED + 0x1000, RAM)?[0], 1);
        assert_eq!(set(0, 0x1000, 2)?[0], 1, "DESTROYED is no choice of the realm");
        Ok(())
    });
}

#[test]
fn host_call_carries_all_registers() {
    let host = Host::with_guest(|cpu| {
        let (status, results) =
            cpu.host_call(Ipa(0x1100), 0xbeef, std::array::from_fn(|i| i as u64))?;
        assert_eq!(status, 0);
        assert_eq!(results, std::array::from_fn(|i| 100 + i as u64));
        for bad in [0x1108, SHARED, 0x2000] {
            assert_eq!(cpu.smc(rsi_fid::HOST_CALL, [bad, 0, 0, 0])?[0], 1);
        }
        cpu.system_off()
    });
    let realm = host.realm();
    host.map_ram(realm, 0x1000);
    host.map(realm, 0x2000);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.field(0x600)], [exit_reason::HOST_CALL, 0xbeef]);
    assert_eq!((0..31).map(|i| exit.gpr(i)).collect::<Vec<_>>(), (0..31).collect::<Vec<_>>());
    let mut enter = Params::new();
    for number in 0..31 {
        enter = enter.set(0x200 + 8 * number, 100 + number as u64);
    }
    assert_eq!(host.enter_with(rec, enter).reason(), exit_reason::PSCI);
}

#[test]
fn calls_on_pages_that_are_not_mapped_exit_as_data_aborts() {
    let config = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&config);
    let host = Host::with_guest(move |cpu| {
        assert_eq!(cpu.smc(rsi_fid::REALM_CONFIG, [0x3000, 0, 0, 0])?[0], 0);
        *seen.lock().unwrap() = cpu.load(Ipa(0x3000), 8)?;
        cpu.system_off()
    });
    let realm = host.realm();
    host.tables(realm, 0, 3);
    assert_eq!(host.status(fid::RTT_INIT_RIPAS, [realm.rd.0, 0x3000, 0x4000]), OK);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    let exit = host.enter(rec, 0);
    assert_eq!([exit.reason(), exit.fault_ipa(), exit.far()], [exit_reason::SYNC, 0x3000, 0]);
    assert_eq!(exit.esr(), 0x24 << 26 | 0x07, "translation fault at level 3, nothing else");
    host.map(realm, 0x3000);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
    assert_eq!(*config.lock().unwrap(), 40);
}

#[test]
fn a_host_call_waits_for_its_page() {
    let host = Host::with_guest(|cpu| {
        cpu.host_call(Ipa(0x1000), 1, [0; 31])?;
        Ok(())
    });
    let realm = host.realm();
    let data = host.map_ram(realm, 0x1000);
    let (rec, _) = host.rec(realm, 0, true);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::HOST_CALL);
    assert_eq!(host.call(fid::DATA_DESTROY, [realm.rd.0, 0x1000])[1], data.0);
    for _ in 0..2 {
        let exit = host.enter(rec, 0);
        assert_eq!([exit.reason(), exit.fault_ipa()], [exit_reason::SYNC, 0x1000]);
    }
}

/// The published example, built by commands and read by the realm.
#[test]
fn the_realm_reads_the_rim_that_the_host_can_compute() {
    const RIM: &str = "2c0a362dea87a56483eb2ec41eb4b2c831e9a367163464cc07950b70b4dd1685";
    let host = Host::with_guest(|cpu| {
        let rim = cpu.smc(rsi_fid::MEASUREMENT_READ, [0; 4])?;
        let hex: String =
            rim[1..5].iter().map(|word| format!("{:016x}", word.swap_bytes())).collect();
        assert_eq!(hex, RIM);
        cpu.system_off()
    });
    let realm = host.realm();
    let rd = realm.rd.0;
    host.tables(realm, 0x8000_0000, 3);
    let source = host.alloc(1);
    let pattern: Vec<u8> = (0..4096).map(|i| i as u8).collect();
    host.machine.write(source, &pattern).unwrap();
    for (ipa, flags) in [(0x8000_0000, 1), (0x8000_1000, 0)] {
        let args = [rd, host.delegated().0, ipa, source.0, flags];
        assert_eq!(host.status(fid::DATA_CREATE, args), OK);
    }
    let aux: Vec<_> = (0..16).map(|_| host.delegated()).collect();
    let params = rec_params(1, 0, 0x8000_0000, &aux).set(0x300, 0x8400_0000);
    let rec = host.delegated();
    assert_eq!(host.status(fid::REC_CREATE, [rd, rec.0, host.page(&params).0]), OK);
    let args = [rd, 0x8020_0000, 0x8040_0000];
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, args)[..2], [OK, 0x8040_0000]);
    host.activate(realm);
    assert_eq!(host.enter(rec, 0).reason(), exit_reason::PSCI);
}
