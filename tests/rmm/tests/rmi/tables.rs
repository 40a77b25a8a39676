//! RTT_CREATE, RTT_DESTROY, RTT_FOLD, RTT_READ_ENTRY, unprotected mappings.

use rmm::abi::fid;
use rmm::{GRANULE_SIZE, Pa};

use crate::harness::{
    ASSIGNED, DESTROYED, EMPTY, Host, INPUT, NORMAL_RW, OK, RAM, Realm, SHARED, TABLE, UNASSIGNED,
    rtt,
};

const MIB_2: u64 = 1 << 21;
const GIB: u64 = 1 << 30;

#[test]
fn create_checks_its_operands() {
    let host = Host::new();
    let realm = host.realm();
    let (rd, table) = (realm.rd.0, host.delegated().0);
    let create = |args: [u64; 4]| host.status(fid::RTT_CREATE, args);
    assert_eq!(create([realm.root.0, table, 0, 1]), INPUT, "no RD");
    assert_eq!(create([rd, host.alloc(1).0, 0, 1]), INPUT, "not delegated");
    assert_eq!(create([rd, rd, 0, 1]), INPUT, "the RD itself");
    assert_eq!(create([rd, table, 0, 0]), INPUT, "start level");
    assert_eq!(create([rd, table, 0, 4]), INPUT, "below pages");
    assert_eq!(create([rd, table, 0, u64::MAX]), INPUT, "negative level");
    assert_eq!(create([rd, table, GIB, 1]), INPUT, "misaligned for the parent's level");
    assert_eq!(create([rd, table, 1 << 40, 1]), INPUT, "beyond the IPA space");
    assert_eq!(create([rd, table, 0, 2]), rtt(0), "level 1 is missing");
    assert_eq!(create([rd, table, 0, 1]), OK);
    assert_eq!(create([rd, host.delegated().0, 0, 1]), rtt(0), "exists");
    assert_eq!(create([rd, table, 0, 2]), INPUT, "in use now");
}

#[test]
fn children_inherit_the_ripas() {
    let host = Host::new();
    let realm = host.realm();
    host.tables(realm, 0, 2);
    let end = 2 * MIB_2;
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [realm.rd.0, MIB_2, end])[..2], [OK, end]);
    host.tables(realm, MIB_2, 3);
    assert_eq!(host.entry(realm, MIB_2 + 0x1000, 3), [3, UNASSIGNED, 0, RAM]);
    host.tables(realm, 0, 3);
    assert_eq!(host.entry(realm, 0x1000, 3), [3, UNASSIGNED, 0, EMPTY]);
    host.tables(realm, SHARED, 3);
    assert_eq!(host.entry(realm, SHARED, 3), [3, UNASSIGNED, 0, EMPTY]);
}

#[test]
fn destroy_checks_and_skips() {
    let host = Host::new();
    let realm = host.realm();
    let destroy = |ipa: u64, level: u64| host.call(fid::RTT_DESTROY, [realm.rd.0, ipa, level]);
    assert_eq!(host.call(fid::RTT_DESTROY, [realm.root.0, 0, 1])[..3], [INPUT, 0, 0]);
    assert_eq!(destroy(0, 0)[..3], [INPUT, 0, 0], "start table");
    assert_eq!(destroy(0, 4)[..3], [INPUT, 0, 0]);
    assert_eq!(destroy(GIB, 1)[..3], [INPUT, 0, 0], "misaligned");
    let tables = host.tables(realm, 2 * MIB_2, 3);
    let data = host.map(realm, 2 * MIB_2);
    assert_eq!(destroy(0, 3)[..3], [rtt(2), 0, 2 * MIB_2], "no table here, the next live entry");
    assert_eq!(destroy(2 * MIB_2, 3)[..3], [rtt(3), 0, 2 * MIB_2], "not empty");
    assert_eq!(destroy(0, 2)[..3], [rtt(2), 0, 0], "not empty");
    let destroyed = host.call(fid::DATA_DESTROY, [realm.rd.0, 2 * MIB_2]);
    assert_eq!(destroyed[..3], [OK, data.0, 3 * MIB_2]);
    assert_eq!(destroy(2 * MIB_2, 3)[..3], [OK, tables[2].0, GIB]);
    assert_eq!(host.entry(realm, 2 * MIB_2, 2), [2, UNASSIGNED, 0, DESTROYED]);
    assert_eq!(destroy(0, 2)[..3], [OK, tables[1].0, 1 << 39]);
    assert_eq!(destroy(0, 1)[..3], [OK, tables[0].0, 1 << 48], "start table of 512 entries");
    tables.into_iter().for_each(|pa| host.undelegate(pa));
}

#[test]
fn destroying_an_unprotected_table_drops_its_mappings() {
    let host = Host::new();
    let realm = host.realm();
    let tables = host.tables(realm, SHARED, 3);
    host.share(realm, SHARED + 0x3000);
    let destroyed = host.call(fid::RTT_DESTROY, [realm.rd.0, SHARED, 3]);
    assert_eq!(destroyed[..3], [OK, tables[2].0, SHARED + GIB]);
    assert_eq!(host.entry(realm, SHARED, 2), [2, UNASSIGNED, 0, EMPTY]);
}

/// Maps all 512 pages of the first 2 MiB to granules side by side; returns the first.
fn map_2_mib(host: &Host, realm: Realm) -> Pa {
    host.tables(realm, 0, 3);
    let block = host.alloc(512);
    for offset in (0..MIB_2).step_by(GRANULE_SIZE as usize) {
        host.delegate(block.offset(offset));
        let args = [realm.rd.0, block.0 + offset, offset];
        assert_eq!(host.status(fid::DATA_CREATE_UNKNOWN, args), OK);
    }
    block
}

#[test]
fn fold_and_unfold_assigned_pages() {
    for ripas in [EMPTY, RAM] {
        let host = Host::new();
        let realm = host.realm();
        host.tables(realm, 0, 3);
        if ripas == RAM {
            let done = host.call(fid::RTT_INIT_RIPAS, [realm.rd.0, 0, MIB_2]);
            assert_eq!(done[..2], [OK, MIB_2]);
        }
        let block = map_2_mib(&host, realm);
        let folded = host.call(fid::RTT_FOLD, [realm.rd.0, 0, 3]);
        assert_eq!(folded[0], OK);
        assert_eq!(host.entry(realm, 0, 3), [2, ASSIGNED, block.0, ripas]);
        assert_eq!(host.status(fid::DATA_DESTROY, [realm.rd.0, 0]), rtt(2), "blocks stay");
        let blocked = host.call(fid::RTT_DESTROY, [realm.rd.0, 0, 2]);
        assert_eq!(blocked[..3], [rtt(2), 0, 0], "the block counts");
        let table = Pa(folded[1]);
        assert_eq!(host.status(fid::RTT_CREATE, [realm.rd.0, table.0, 0, 3]), OK);
        assert_eq!(host.entry(realm, 0x3000, 3), [3, ASSIGNED, block.0 + 0x3000, ripas]);
        assert_eq!(host.call(fid::DATA_DESTROY, [realm.rd.0, 0x3000])[1], block.0 + 0x3000);
        assert_eq!(host.status(fid::RTT_FOLD, [realm.rd.0, 0, 3]), rtt(3), "a hole");
    }
}

#[test]
fn fold_needs_one_kind_and_order() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    let fold = |ipa: u64, level: u64| host.call(fid::RTT_FOLD, [rd, ipa, level]);
    assert_eq!(host.status(fid::RTT_FOLD, [realm.root.0, 0, 1]), INPUT);
    assert_eq!(fold(0, 0)[0], INPUT, "start table");
    assert_eq!(fold(GIB, 1)[0], INPUT, "misaligned");
    assert_eq!(fold(0, 3)[0], rtt(0), "missing");
    let tables = host.tables(realm, 0, 3);
    assert_eq!(fold(MIB_2, 3)[0], rtt(2), "no table");
    assert_eq!(fold(0, 2)[0], rtt(2), "mixed: a table among holes");
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [rd, 0, 0x1000])[0], OK);
    assert_eq!(fold(0, 3)[0], rtt(3), "mixed RIPAS");
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [rd, 0x1000, MIB_2])[..2], [OK, MIB_2]);
    assert_eq!(fold(0, 3)[..2], [OK, tables[2].0]);
    assert_eq!(host.entry(realm, 0, 2), [2, UNASSIGNED, 0, RAM]);
    assert_eq!(fold(0, 2)[0], rtt(2), "mixed RIPAS again");
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [rd, 0, GIB])[..2], [OK, GIB]);
    assert_eq!(fold(0, 2)[..2], [OK, tables[1].0]);
    // Pages out of order do not make a block.
    host.tables(realm, 0, 3);
    let block = host.alloc(512);
    for number in 0..512_u64 {
        let pa = block.offset((number ^ 1) * GRANULE_SIZE);
        host.delegate(pa);
        assert_eq!(host.status(fid::DATA_CREATE_UNKNOWN, [rd, pa.0, number * 4096]), OK);
    }
    assert_eq!(fold(0, 3)[0], rtt(3));
}

#[test]
fn unprotected_mappings_check_their_operands() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    host.tables(realm, SHARED, 3);
    let map = |args: [u64; 4]| host.status(fid::RTT_MAP_UNPROTECTED, args);
    let page = host.alloc(1).0;
    let desc = page | NORMAL_RW;
    assert_eq!(map([realm.root.0, SHARED, 3, desc]), INPUT, "no RD");
    assert_eq!(map([rd, SHARED, 0, NORMAL_RW]), INPUT, "level");
    assert_eq!(map([rd, SHARED, 4, desc]), INPUT, "level");
    assert_eq!(map([rd, SHARED + 8, 3, desc]), INPUT, "misaligned");
    assert_eq!(map([rd, 0, 3, desc]), INPUT, "protected");
    assert_eq!(map([rd, 1 << 40, 3, desc]), INPUT, "beyond the IPA space");
    assert_eq!(map([rd, SHARED, 3, desc | 1]), INPUT, "bits of the monitor");
    assert_eq!(map([rd, SHARED, 3, page | 0b100 << 2]), INPUT, "reserved attribute");
    assert_eq!(map([rd, SHARED, 2, 0x8000_1000 | NORMAL_RW]), INPUT, "misaligned block");
    assert_eq!(map([rd, SHARED + MIB_2, 3, desc]), rtt(2), "no table");
    assert_eq!(map([rd, SHARED, 2, 0x8000_0000 | NORMAL_RW]), rtt(2), "a table is there");
    assert_eq!(map([rd, SHARED, 3, desc]), OK);
    assert_eq!(map([rd, SHARED, 3, desc]), rtt(3), "mapped");
    assert_eq!(host.entry(realm, SHARED, 3), [3, ASSIGNED, desc, EMPTY]);
    let block = 0x8000_0000 | NORMAL_RW;
    assert_eq!(map([rd, SHARED + MIB_2, 2, block]), OK);
    assert_eq!(host.entry(realm, SHARED + MIB_2, 3), [2, ASSIGNED, block, EMPTY]);
}

#[test]
fn unprotected_unmap_skips() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    host.share(realm, SHARED);
    host.share(realm, SHARED + 0x4000);
    let unmap = |args: [u64; 3]| host.call(fid::RTT_UNMAP_UNPROTECTED, args);
    assert_eq!(unmap([realm.root.0, SHARED, 3])[..2], [INPUT, 0]);
    assert_eq!(unmap([rd, SHARED, 0])[..2], [INPUT, 0]);
    assert_eq!(unmap([rd, 0, 3])[..2], [INPUT, 0], "protected");
    assert_eq!(unmap([rd, SHARED + 8, 3])[..2], [INPUT, 0]);
    assert_eq!(unmap([rd, SHARED, 2])[..2], [rtt(2), SHARED], "a table is live");
    assert_eq!(unmap([rd, SHARED, 3])[..2], [OK, SHARED + 0x4000]);
    assert_eq!(unmap([rd, SHARED, 3])[..2], [rtt(3), SHARED + 0x4000]);
    assert_eq!(unmap([rd, SHARED + 0x4000, 3])[..2], [OK, SHARED + MIB_2]);
    assert_eq!(unmap([rd, SHARED + GIB, 3])[..2], [rtt(1), 1 << 40]);
}

#[test]
fn unprotected_blocks_split_and_fold() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    host.tables(realm, SHARED, 2);
    let block = 0x8020_0000 | NORMAL_RW;
    assert_eq!(host.status(fid::RTT_MAP_UNPROTECTED, [rd, SHARED, 2, block]), OK);
    let table = host.delegated().0;
    assert_eq!(host.status(fid::RTT_CREATE, [rd, table, SHARED, 3]), OK);
    assert_eq!(host.entry(realm, SHARED + 0x5000, 3), [3, ASSIGNED, block + 0x5000, EMPTY]);
    assert_eq!(host.call(fid::RTT_FOLD, [rd, SHARED, 3])[..2], [OK, table]);
    assert_eq!(host.entry(realm, SHARED, 3), [2, ASSIGNED, block, EMPTY]);
    // Another attribute in one page keeps the table.
    assert_eq!(host.status(fid::RTT_CREATE, [rd, table, SHARED, 3]), OK);
    assert_eq!(host.call(fid::RTT_UNMAP_UNPROTECTED, [rd, SHARED, 3])[0], OK);
    let read_only = 0x8020_0000 | 0b110 << 2 | 0b01 << 6;
    assert_eq!(host.status(fid::RTT_MAP_UNPROTECTED, [rd, SHARED, 3, read_only]), OK);
    assert_eq!(host.status(fid::RTT_FOLD, [rd, SHARED, 3]), rtt(3));
}

#[test]
fn no_block_above_level_1() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    host.tables(realm, SHARED, 1);
    for number in 0..512_u64 {
        let args = [rd, SHARED + number * GIB, 1, (number * GIB) | NORMAL_RW];
        assert_eq!(host.status(fid::RTT_MAP_UNPROTECTED, args), OK);
    }
    assert_eq!(host.status(fid::RTT_FOLD, [rd, SHARED, 1]), rtt(0));
}

#[test]
fn read_entry_reports_where_it_ended() {
    let host = Host::new();
    let realm = host.realm();
    let rd = realm.rd.0;
    let read = |args: [u64; 3]| host.call(fid::RTT_READ_ENTRY, args);
    assert_eq!(read([realm.root.0, 0, 0])[0], INPUT);
    assert_eq!(read([rd, 0, 4])[0], INPUT);
    assert_eq!(read([rd, 0, u64::MAX])[0], INPUT);
    assert_eq!(read([rd, 0x1000, 2])[0], INPUT, "misaligned");
    assert_eq!(read([rd, 1 << 40, 3])[0], INPUT);
    assert_eq!(read([rd, 0, 3])[..5], [OK, 0, UNASSIGNED, 0, EMPTY]);
    let tables = host.tables(realm, 0, 2);
    assert_eq!(read([rd, 0, 0])[..5], [OK, 0, TABLE, tables[0].0, EMPTY]);
    assert_eq!(read([rd, 0, 1])[..5], [OK, 1, TABLE, tables[1].0, EMPTY]);
    assert_eq!(read([rd, 0, 3])[..5], [OK, 2, UNASSIGNED, 0, EMPTY]);
}
