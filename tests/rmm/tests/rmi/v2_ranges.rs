//! RMI 2.0: mapping and unmapping ranges.

use rmm::abi::fid;
use rmm::v2::{Rmi2, fid as fid2};
use rmm::{GranuleState, Pa};

use crate::harness::{
    ASSIGNED, DESTROYED, EMPTY, Host, INCOMPLETE, INPUT, NORMAL_RW, OK, Params, RAM, REALM, Realm,
    SHARED, UNASSIGNED, page_descriptor, rtt,
};

const MIB_2: u64 = 1 << 21;
const NONE: u64 = 0;
const SINGLE: u64 = 1;
const LIST: u64 = 2;

/// A descriptor of `count` delegated pages.
fn pages(base: Pa, count: u64) -> u64 {
    base.0 | count << 2
}

/// Delegates `count` granules side by side.
fn delegated(host: &Host, count: u64) -> Pa {
    let base = host.alloc(count);
    (0..count).for_each(|number| host.delegate(base.offset(4096 * number)));
    base
}

fn map(host: &Host, realm: Realm, base: u64, top: u64, flags: u64, address: u64) -> [u64; 8] {
    host.call(fid2::RTT_DATA_MAP, [realm.rd.0, base, top, flags, address])
}

fn unmap(host: &Host, realm: Realm, base: u64, top: u64, flags: u64, address: u64) -> [u64; 8] {
    host.call(fid2::RTT_DATA_UNMAP, [realm.rd.0, base, top, flags, address])
}

#[test]
fn data_map_checks_its_operands() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let data = delegated(&host, 4);
    let single = pages(data, 4);
    let status = |base, top, flags, address| map(&host, realm, base, top, flags, address)[0];
    let none = host.status(fid2::RTT_DATA_MAP, [realm.root.0, 0, 0x1000, SINGLE, single]);
    assert_eq!(none, INPUT, "no RD");
    assert_eq!(status(0x1000, 0x1000, SINGLE, single), INPUT, "empty");
    assert_eq!(status(0, 0x1000, NONE, single), INPUT, "no address");
    assert_eq!(status(0, 0x1000, 3, single), INPUT, "type");
    assert_eq!(status(8, 0x1000, SINGLE, single), INPUT, "misaligned base");
    assert_eq!(status(0, 0x1008, SINGLE, single), INPUT, "misaligned top");
    assert_eq!(status(SHARED, SHARED + 0x1000, SINGLE, single), INPUT, "unprotected");
    assert_eq!(status(SHARED - 0x1000, SHARED + 0x1000, SINGLE, single), INPUT, "across");
    assert_eq!(status(0, 0x1000, SINGLE, single | 1 << 63), INPUT, "undelegated");
    assert_eq!(status(0, MIB_2, SINGLE, single | 3), INPUT, "512 GiB");
    assert_eq!(status(0, 0x1000, SINGLE, data.0 | 1 << 2 | 1), rtt(2), "range below a block");
    assert_eq!(status(0, 0x1000, SINGLE, data.0), INPUT, "no block");
    assert_eq!(status(MIB_2, MIB_2 + 0x1000, SINGLE, single), rtt(2), "no table");
    assert_eq!(status(0, 0x1000, SINGLE, pages(host.alloc(1), 1)), INPUT, "not delegated");
    assert_eq!(status(0, 0x1000, LIST | 1 << 2, data.0), INPUT, "the list is delegated");
    assert_eq!(status(0, 0x1000, LIST, host.alloc(1).0), INPUT, "empty list");
    assert_eq!(status(0, 0x1000, LIST | 1 << 2, host.alloc(1).0 + 4), INPUT, "misaligned list");
    assert_eq!(host.machine.census().data, 0);
    assert_eq!(host.status(fid2::REALM_TERMINATE, [realm.rd.0]), OK);
    assert_eq!(status(0, 0x1000, SINGLE, single), REALM, "terminated");
}

#[test]
fn data_map_tells_how_far_it_came() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let data = delegated(&host, 8);
    let single = |first: u64, count| pages(data.offset(4096 * first), count);
    assert_eq!(map(&host, realm, 0, 0x4000, SINGLE, single(0, 2))[..2], [OK, 0x2000], "short");
    assert_eq!(map(&host, realm, 0, 0x1000, SINGLE, single(0, 8))[..2], [OK, 0x1000], "again");
    assert_eq!(map(&host, realm, 0, 0x1000, SINGLE, single(1, 1))[0], rtt(3), "another page");
    assert_eq!(host.entry(realm, 0x1000, 3), [3, ASSIGNED, data.0 + 0x1000, EMPTY]);
    // Another page in the middle of the range stops it.
    assert_eq!(map(&host, realm, 0x5000, 0x8000, SINGLE, single(7, 1))[..2], [OK, 0x6000]);
    assert_eq!(map(&host, realm, 0x2000, 0x8000, SINGLE, single(2, 6))[..2], [OK, 0x5000]);
    // The end of the table ends the call.
    let edge = MIB_2 - 0x1000;
    assert_eq!(map(&host, realm, edge, MIB_2 + 0x1000, SINGLE, single(5, 2))[..2], [OK, MIB_2]);
}

#[test]
fn lists_map_in_order() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let data = delegated(&host, 4);
    let at = |number: u64| data.offset(4096 * number);
    let list = Params::new()
        .set(0, pages(at(2), 2))
        .set(8, page_descriptor(at(0)))
        .set(16, page_descriptor(at(1)) | 1);
    let list = host.page(&list);
    let mapped = map(&host, realm, 0, 0x4000, LIST | 3 << 2, list.0);
    assert_eq!(mapped[..2], [OK, 0x3000], "a block of another size ends it");
    assert_eq!(host.entry(realm, 0, 3)[2], at(2).0);
    assert_eq!(host.entry(realm, 0x1000, 3)[2], at(3).0);
    assert_eq!(host.entry(realm, 0x2000, 3)[2], at(0).0);
    // A list ends at its page.
    let end = host.alloc(1).offset(4096 - 8);
    host.machine.write(end, &page_descriptor(at(1)).to_le_bytes()).unwrap();
    let mapped = map(&host, realm, 0x3000, 0x8000, LIST | 4 << 2, end.0);
    assert_eq!(mapped[..2], [OK, 0x4000]);
}

#[test]
fn blocks_are_mapped_and_unmapped_whole() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 2);
    let block = delegated(&host, 512);
    assert_eq!(host.call(fid::RTT_INIT_RIPAS, [realm.rd.0, 0, MIB_2])[0], OK);
    let descriptor = block.0 | 1 << 2 | 1;
    assert_eq!(map(&host, realm, 0, MIB_2, SINGLE, descriptor)[..2], [OK, MIB_2]);
    assert_eq!(host.entry(realm, 0, 2), [2, ASSIGNED, block.0, RAM]);
    assert_eq!(host.machine.census().data, 512);
    assert_eq!(unmap(&host, realm, 0x1000, MIB_2, SINGLE, 0)[..4], [rtt(2), 0, 0, 0]);
    assert_eq!(unmap(&host, realm, 0, 0x1000, SINGLE, 0)[0], rtt(2), "less than the block");
    assert_eq!(unmap(&host, realm, 0, MIB_2, SINGLE, 0)[..4], [OK, MIB_2, descriptor, 0]);
    assert_eq!(host.entry(realm, 0, 2), [2, UNASSIGNED, 0, DESTROYED]);
    assert_eq!(host.machine.census().data, 0);
    // One granule that is not delegated fails the block and takes nothing.
    host.undelegate(block.offset(511 * 4096));
    assert_eq!(map(&host, realm, 0, MIB_2, SINGLE, descriptor)[0], INPUT);
    assert_eq!(host.machine.granule_state(block), Some(GranuleState::Delegated));
}

#[test]
fn blocks_split_for_a_part() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 2);
    let block = delegated(&host, 512);
    assert_eq!(map(&host, realm, 0, MIB_2, SINGLE, block.0 | 1 << 2 | 1)[0], OK);
    let table = host.delegated();
    assert_eq!(host.status(fid::RTT_CREATE, [realm.rd.0, table.0, 0, 3]), OK);
    let freed = unmap(&host, realm, 0x1000, 0x3000, SINGLE, 0);
    assert_eq!(freed[..3], [OK, 0x3000, pages(block.offset(0x1000), 2)]);
    assert_eq!(host.machine.census().data, 510);
}

#[test]
fn unmap_checks_its_operands() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let page = host.alloc(1).0;
    let status = |base, top, flags, address| unmap(&host, realm, base, top, flags, address)[0];
    let none = host.status(fid2::RTT_DATA_UNMAP, [realm.root.0, 0, 0x1000, SINGLE, 0]);
    assert_eq!(none, INPUT, "no RD");
    assert_eq!(status(0, 0, NONE, 0), INPUT, "empty");
    assert_eq!(status(8, 0x1000, NONE, 0), INPUT, "misaligned");
    assert_eq!(status(0, 0x1008, NONE, 0), INPUT, "misaligned");
    assert_eq!(status(SHARED, SHARED + 0x1000, NONE, 0), INPUT, "unprotected");
    assert_eq!(status(0, 0x1000, SINGLE, page), INPUT, "address without a list");
    assert_eq!(status(0, 0x1000, NONE | 1 << 2, 0), INPUT, "count without a list");
    assert_eq!(status(0, 0x1000, LIST, page), INPUT, "empty list");
    assert_eq!(status(0, 0x1000, LIST | 1 << 2, page + 4), INPUT, "misaligned list");
    assert_eq!(status(0, 0x1000, LIST | 1 << 2, realm.rd.0), INPUT, "the list is delegated");
    assert_eq!(status(0, 0x1000, 3, 0), INPUT, "type");
    assert_eq!(unmap(&host, realm, 0, MIB_2, NONE, 0)[..4], [OK, MIB_2, 0, 0], "only holes");
    let unprotected = host.status(fid2::RTT_UNPROT_UNMAP, [realm.rd.0, 0, 0x1000, NONE, 0]);
    assert_eq!(unprotected, INPUT, "protected");
}

#[test]
fn unmap_joins_what_it_frees() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let data = delegated(&host, 6);
    let at = |number: u64| data.offset(4096 * number);
    // Pages 0 1, a hole, 3, and out of order 5 4.
    for (slot, page) in [(0, 0), (1, 1), (3, 3), (4, 5), (5, 4)] {
        let (base, top) = (slot * 4096, (slot + 1) * 4096);
        assert_eq!(map(&host, realm, base, top, SINGLE, pages(at(page), 1))[0], OK);
    }
    let single = unmap(&host, realm, 0, 0x6000, SINGLE, 0);
    assert_eq!(single[..3], [OK, 0x3000, pages(at(0), 2)], "up to the next separate page");
    let list = host.alloc(1);
    let listed = unmap(&host, realm, 0, 0x6000, LIST | 1 << 2, list.0);
    assert_eq!([listed[0], listed[1], listed[3]], [OK, 0x4000, 1], "no room for page 5");
    let listed = unmap(&host, realm, 0x4000, 0x6000, LIST | 8 << 2, list.0);
    assert_eq!([listed[0], listed[1], listed[3]], [OK, 0x6000, 1]);
    let mut bytes = [0; 8];
    host.machine.read(list, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), pages(at(4), 2), "joined backwards");
    assert_eq!(host.machine.census().data, 0);
}

#[test]
fn unmapping_yields_if_asked() {
    let host = Host::v2(Rmi2 { yields: true, ..Rmi2::HEAD });
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let data = delegated(&host, 2);
    let [status, handle, ..] = map(&host, realm, 0, 0x2000, SINGLE, pages(data, 2));
    assert_eq!(status, INCOMPLETE);
    assert_eq!(host.call(fid2::OP_CONTINUE, [handle, 0])[..2], [OK, 0x2000]);
    let [status, handle, ..] = unmap(&host, realm, 0, 0x2000, SINGLE, 0);
    assert_eq!(status, INCOMPLETE);
    let done = host.call(fid2::OP_CONTINUE, [handle, 0]);
    assert_eq!(done[..4], [OK, 0x2000, pages(data, 2), 0]);
}

#[test]
fn unprotected_ranges() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let rd = realm.rd.0;
    host.tables(realm, SHARED, 3);
    let memory = host.alloc(4);
    let normal_rw = SINGLE | 6 << 16 | 3 << 19;
    let map = |flags, address, count: u64| {
        let top = SHARED + 4096 * count;
        host.call(fid2::RTT_UNPROT_MAP, [rd, SHARED, top, flags, address])
    };
    assert_eq!(map(SINGLE | 4 << 16 | 3 << 19, pages(memory, 4), 4)[0], INPUT, "attribute");
    assert_eq!(map(SINGLE | 6 << 16 | 4 << 19, pages(memory, 4), 4)[0], INPUT, "permission");
    assert_eq!(map(normal_rw, pages(memory, 4) | 1 << 63, 4)[..2], [OK, SHARED + 0x4000]);
    assert_eq!(host.entry(realm, SHARED, 3)[2], memory.0 | NORMAL_RW);
    assert_eq!(map(normal_rw, pages(memory, 4), 4)[..2], [OK, SHARED + 0x4000], "again");
    assert_eq!(map(SINGLE | 6 << 16 | 2 << 19, pages(memory, 4), 4)[0], rtt(3), "read-only");
    let list = host.alloc(1);
    let args = [rd, SHARED, SHARED + 0x4000, LIST | 4 << 2, list.0];
    let freed = host.call(fid2::RTT_UNPROT_UNMAP, args);
    assert_eq!([freed[0], freed[1], freed[3]], [OK, SHARED + 0x4000, 1]);
    let mut bytes = [0; 8];
    host.machine.read(list, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), pages(memory, 4) | 1 << 63);
    assert_eq!(host.status(fid::RTT_MAP_UNPROTECTED, [rd, SHARED, 3, memory.0]), u64::MAX);
}

#[test]
fn v0_9_maps_page_by_page() {
    let host = Host::v2(Rmi2::V0_9);
    let realm = host.realm();
    host.tables(realm, 0, 3);
    let data = delegated(&host, 2);
    assert_eq!(map(&host, realm, 0, 0x2000, LIST | 1 << 2, data.0)[0], INPUT, "no lists");
    assert_eq!(map(&host, realm, 0, 0x2000, SINGLE, pages(data, 2))[..2], [OK, 0x1000]);
    assert_eq!(map(&host, realm, 0, 0x2000, SINGLE, pages(data, 2))[0], INPUT, "in use");
    let freed = unmap(&host, realm, 0, 0x2000, SINGLE, 0);
    assert_eq!(freed[..3], [OK, 0x2000, pages(data, 1)]);
    assert_eq!(unmap(&host, realm, 0, 0x2000, SINGLE, 0)[..3], [OK, 0x2000, 0], "a hole");
    assert_eq!(host.status(fid2::RTT_UNPROT_MAP, [realm.rd.0, SHARED, 0, 0, 0]), u64::MAX);
    host.share(realm, SHARED);
    assert_eq!(host.call(fid::RTT_UNMAP_UNPROTECTED, [realm.rd.0, SHARED, 3])[0], OK);
}

#[test]
fn ripas_is_not_measured_and_passes_over_pages() {
    let host = Host::v2(Rmi2::HEAD);
    let realm = host.realm();
    let ram = host.map_ram(realm, 0);
    let empty = delegated(&host, 1);
    assert_eq!(map(&host, realm, 0x1000, 0x2000, SINGLE, pages(empty, 1))[0], OK);
    let init = host.call(fid::RTT_INIT_RIPAS, [realm.rd.0, 0, MIB_2]);
    assert_eq!(init[..2], [OK, MIB_2]);
    assert_eq!(host.entry(realm, 0, 3), [3, ASSIGNED, ram.0, RAM]);
    assert_eq!(host.entry(realm, 0x1000, 3), [3, ASSIGNED, empty.0, RAM]);
    assert_eq!(host.entry(realm, 0x2000, 3), [3, UNASSIGNED, 0, RAM]);
}
