use super::*;
use crate::scenario::{Conversions, DeviceKind, Fault, Hash, Populate, VirtioDevice};

/// Lines 1 to 9 of every scenario here; a test appends to the VM that it ends with.
const HEAD: &str = "\
[machine]
cpus = 2
memory = \"3G\"

[[vm]]
name = \"linux\"
kind = \"vm\"
memory = \"256M\"
kernel = \"setup:linux\"
";

fn images() -> Images {
    let named = ["setup:linux", "guest:realm"].map(|n| (n.to_owned(), PathBuf::from("image")));
    Images { beside: PathBuf::from("/nonexistent"), named: named.into() }
}

fn run(text: &str) -> Result<Scenario, Refused> {
    check(&images(), Path::new("scenarios/test.toml"), text, Overrides::default())
}

/// Asserts that the one fault of `text` is at `line` and that its reason contains `reason`.
#[track_caller]
fn refused(text: &str, line: usize, reason: &str) {
    let Refused(refusals) = run(text).expect_err("must be refused");
    let [refusal] = refusals.as_slice() else { panic!("not one fault: {refusals:?}") };
    assert_eq!(refusal.line, line, "{refusal}");
    assert!(refusal.reason.contains(reason), "{refusal}");
    assert!(refusal.to_string().starts_with(&format!("scenarios/test.toml:{line}: ")));
}

#[test]
fn defaults_are_filled_in() {
    let scenario = run(HEAD).unwrap();
    assert_eq!(scenario.name, "test");
    assert_eq!(scenario.machine.cpus, 2);
    assert_eq!(scenario.machine.memory, Size(3 << 30));
    let [vm] = scenario.vms.as_slice() else { panic!("one VM") };
    assert_eq!((vm.vcpus, vm.priority, vm.expect), (1, DEFAULT_PRIORITY, Expect::Off));
    assert_eq!(vm.memory, Size(256 << 20));
    assert_eq!(vm.kernel.line, 9);
    let [uart] = vm.devices.as_slice() else { panic!("one device") };
    assert_eq!((uart.kind, uart.address, uart.interrupt), (DeviceKind::Uart, 0x900_0000, 33));
}

#[test]
fn all_keys_are_read() {
    let text = format!(
        "name = \"whole\"\nself-test = \"granule-protection\"\n{HEAD}\
         initramfs = \"setup:linux\"\ncmdline = \"console=ttyAMA0\"\nkernel-type = \"image\"\n\
         priority = 3\nbudget-us = 2000\nperiod-us = 10000\naffinity = [1]\nrepeat = 4\n\
         expect = \"stopped\"\nexpect-reason = \"stray\"\nstray-granule-of = \"secret\"\n\
         [[vm]]\nname = \"secret\"\nkind = \"realm\"\nvcpus = 2\nmemory = 67108864\n\
         kernel = \"guest:realm\"\nhash = \"sha512\"\nipa-bits = 36\npersonalization = \"0aff\"\n\
         populate = \"lazy\"\nfault = \"block\"\nconversions = \"to-private\"\ndevice = []\n"
    );
    let scenario = run(&text).unwrap();
    assert_eq!(scenario.name, "whole");
    assert!(scenario.self_test.is_some());
    let [vm, realm] = scenario.vms.as_slice() else { panic!("two VMs") };
    assert_eq!((vm.budget, vm.affinity, vm.repeat), (Some((2000, 10000)), Some(2), Some(4)));
    assert_eq!(vm.expect_reason.as_deref(), Some("stray"));
    assert_eq!(vm.stray_granule_of.as_deref(), Some("secret"));
    assert_eq!((realm.hash, realm.ipa_bits, realm.vcpus), (Hash::Sha512, 36, 2));
    assert_eq!(realm.memory, Size(64 << 20));
    assert_eq!(realm.personalization.unwrap()[..3], [0x0a, 0xff, 0]);
    assert_eq!((realm.populate, realm.fault), (Populate::Lazy, Fault::Block));
    assert_eq!(realm.conversions, Conversions::ToPrivate);
    assert!(realm.devices.is_empty());
}

#[test]
fn the_command_line_comes_before_the_file() {
    let overrides = Overrides { cpus: Some(4), memory: Some(Size(2 << 30)) };
    let scenario = check(&images(), Path::new("test.toml"), HEAD, overrides).unwrap();
    assert_eq!((scenario.machine.cpus, scenario.machine.memory), (4, Size(2 << 30)));
}

#[test]
fn every_fault_is_reported_in_order() {
    let text = format!("{HEAD}vcpus = 99\npriority = 99\n");
    let Refused(refusals) = run(&text).unwrap_err();
    let lines: Vec<usize> = refusals.iter().map(|r| r.line).collect();
    assert_eq!(lines, [10, 11]);
}

#[test]
fn unknown_keys() {
    refused(&format!("{HEAD}speed = 3\n"), 10, "unknown field `speed`");
    refused(&format!("colour = 1\n{HEAD}"), 1, "unknown field `colour`");
    refused(&HEAD.replace("cpus = 2", "cpus = 2\nsockets = 1"), 3, "unknown field `sockets`");
    refused(&format!("{HEAD}[[vm.device]]\nkind = \"uart\"\nbaud = 1\n"), 12, "`baud`");
}

#[test]
fn missing_keys() {
    refused("[[vm]]\nname = \"a\"\n", 1, "missing field");
    refused(&HEAD.replace("kernel = \"setup:linux\"\n", ""), 5, "missing field `kernel`");
}

#[test]
fn syntax() {
    refused(&HEAD.replace("cpus = 2", "cpus = = 2"), 2, "");
}

#[test]
fn wrong_types_and_values() {
    refused(&HEAD.replace("cpus = 2", "cpus = \"two\""), 2, "invalid type");
    refused(&HEAD.replace("\"256M\"", "true"), 8, "a size");
    refused(&HEAD.replace("\"256M\"", "\"256 MB\""), 8, "is no size");
    refused(&HEAD.replace("\"vm\"", "\"container\""), 7, "unknown variant `container`");
    refused(&format!("{HEAD}expect = \"happy\"\n"), 10, "unknown variant `happy`");
    refused(&format!("self-test = \"all\"\n{HEAD}"), 1, "unknown variant `all`");
    refused(&format!("{HEAD}affinity = 1\n"), 10, "invalid type");
}

#[test]
fn names() {
    let long = "a".repeat(MAX_NAME + 1);
    for bad in ["Linux", "9p", "a_b", "", "a b", &long] {
        refused(&HEAD.replace("\"linux\"", &format!("\"{bad}\"")), 6, "bad name");
    }
    refused(&format!("name = \"BAD\"\n{HEAD}"), 1, "bad name \"BAD\"");
    let second = HEAD.split_once("[[vm]]").unwrap().1;
    refused(&format!("{HEAD}[[vm]]{second}"), 11, "the VM of line 6 is called \"linux\" too");
}

#[test]
fn images_that_are_not_there() {
    refused(&HEAD.replace("setup:linux", "Image-6.12"), 9, "image Image-6.12 is missing");
    refused(
        &HEAD.replace("setup:linux", "guest:nothing"),
        9,
        "there is no image \"guest:nothing\"",
    );
    refused(&format!("{HEAD}initramfs = \"root.cpio\"\n"), 10, "image root.cpio is missing");
}

#[test]
fn machine_limits() {
    refused(&HEAD.replace("cpus = 2", "cpus = 0"), 2, "1 to 8 cpus");
    refused(&HEAD.replace("cpus = 2", "cpus = 9"), 2, "1 to 8 cpus");
    refused(&HEAD.replace("\"3G\"", "\"512M\""), 3, "at least 1 GiB");
    refused("[machine]\ncpus = 1\nmemory = \"3G\"\n", 1, "at least one [[vm]]");
}

#[test]
fn more_memory_than_the_machine_has() {
    refused(&HEAD.replace("256M", "3G"), 8, "the VMs so far need 3 GiB, the machine has 3 GiB");
    let second = "[[vm]]\nname = \"b\"\nkind = \"vm\"\nmemory = \"2G\"\nkernel = \"setup:linux\"\n";
    refused(&format!("{}{second}", HEAD.replace("256M", "1G")), 13, "the VMs so far need 3 GiB");
    refused(&HEAD.replace("256M", "0M"), 8, "multiple of 2 MiB");
    refused(&HEAD.replace("256M", "4K"), 8, "multiple of 2 MiB");
}

#[test]
fn scheduling() {
    refused(&format!("{HEAD}vcpus = 0\n"), 10, "1 to 16 vcpus");
    refused(&format!("{HEAD}vcpus = 17\n"), 10, "1 to 16 vcpus");
    let vm = |name, vcpus| {
        format!(
            "[[vm]]\nname = \"{name}\"\nkind = \"vm\"\nmemory = \"2M\"\n\
             kernel = \"setup:linux\"\nvcpus = {vcpus}\n"
        )
    };
    let full = format!("{HEAD}vcpus = 16\n{}", vm("b", 16));
    assert!(run(&full).is_ok());
    refused(&format!("{full}{}", vm("c", 1)), 22, "so far have 33 vcpus, the hypervisor runs 32");
    refused(&format!("{HEAD}priority = 16\n"), 10, "0 to 15");
    refused(&format!("{HEAD}budget-us = 5\n"), 10, "go together");
    refused(&format!("{HEAD}period-us = 5\n"), 10, "go together");
    refused(&format!("{HEAD}budget-us = 6\nperiod-us = 5\n"), 10, "at most the period");
    refused(&format!("{HEAD}budget-us = 9\nperiod-us = 50\n"), 10, "at least 10 us");
    refused(&format!("{HEAD}affinity = [2]\n"), 10, "core 2 in a machine of 2 cpus");
    refused(&format!("{HEAD}affinity = []\n"), 10, "at least one core");
    refused(&format!("{HEAD}repeat = 0\n"), 10, "at least once");
}

#[test]
fn ends() {
    refused(&format!("{HEAD}expect-reason = \"why\"\n"), 10, "gives no reason");
    let text = format!("{HEAD}expect = \"stopped\"\nexpect-reason = 'a \"b\"'\n");
    refused(&text, 11, "no quotation mark");
    refused(&format!("{HEAD}cmdline = \"a\\nb\"\n"), 10, "on one line");
}

#[test]
fn keys_of_the_other_kind() {
    refused(&format!("{HEAD}hash = \"sha256\"\n"), 10, "for realms only");
    refused(&format!("{HEAD}ipa-bits = 40\n"), 10, "for realms only");
    refused(&format!("{HEAD}fault = \"block\"\n"), 10, "for realms only");
    refused(&format!("{HEAD}conversions = \"none\"\n"), 10, "for realms only");
    refused(&HEAD.replace("cpus = 2", "cpus = 2\npool = 129"), 3, "at most 128");
    refused(&format!("{HEAD}personalization = \"00\"\n"), 10, "for realms only");
    let realm = HEAD.replace("kind = \"vm\"", "kind = \"realm\"");
    refused(&format!("{realm}ipa-bits = 32\n"), 10, "33 to 52");
    refused(&format!("{realm}personalization = \"0\"\n"), 10, "hexadecimal");
    refused(&format!("{realm}personalization = \"xy\"\n"), 10, "hexadecimal");
    refused(&format!("{realm}hash = \"md5\"\n"), 10, "unknown variant");
    for (name, hash) in [("256", Hash::Sha256), ("384", Hash::Sha384), ("512", Hash::Sha512)] {
        let scenario = run(&format!("{realm}hash = \"sha{name}\"\n")).unwrap();
        assert_eq!(scenario.vms[0].hash, hash);
    }
    refused(&format!("{HEAD}stray-granule-of = \"linux\"\n"), 10, "no realm \"linux\"");
    let Refused(refusals) = run(&format!("{realm}stray-granule-of = \"linux\"\n")).unwrap_err();
    assert!(refusals[0].reason.contains("for normal VMs only"));
}

/// A VM with these devices; the first one begins at line 10.
fn with_devices(devices: &[&str]) -> String {
    let list = devices.iter().map(|d| format!("[[vm.device]]\nkind = \"uart\"\n{d}\n"));
    format!("{HEAD}{}", list.collect::<String>())
}

#[test]
fn overlapping_devices() {
    refused(&with_devices(&["address = 0x8000000"]), 10, "overlaps the GIC distributor");
    refused(&with_devices(&["address = 0x80b0000"]), 10, "overlaps the GIC redistributors");
    refused(&with_devices(&["address = 0x4fff_f000"]), 10, "overlaps the VM's memory");
    refused(&with_devices(&["address = 0x9000_0000_0000"]), 10, "below the end of RAM");
    refused(&with_devices(&["address = 0x9000100"]), 10, "is not at a page");
    refused(&with_devices(&["interrupt = 31"]), 12, "none of 32 to 127");
    refused(&with_devices(&["interrupt = 128"]), 12, "none of 32 to 127");
    refused(&with_devices(&["interrupt = 59"]), 12, "kept for virtio devices and channels");
    refused(&with_devices(&["", "address = 0x9001000\ninterrupt = 34"]), 13, "at most one uart");
}

#[test]
fn flash_has_one_place() {
    let flash = |more| format!("{HEAD}[[vm.device]]\nkind = \"flash\"\n{more}\n");
    let scenario = run(&flash("")).unwrap();
    let [device] = scenario.vms[0].devices[..] else { panic!("one device") };
    assert_eq!((device.kind, device.address), (DeviceKind::Flash, 0));
    refused(&flash("address = 0x10000000"), 10, "cannot be moved");
    refused(&flash("interrupt = 40"), 10, "has no interrupt");
}

#[test]
fn virtio_devices_have_no_place_of_their_own() {
    let device = |kind, more| format!("{HEAD}[[vm.device]]\nkind = \"{kind}\"\n{more}\n");
    refused(&device("console", "address = 0x0a000000"), 12, "follows from its order");
    refused(&device("entropy", "interrupt = 50"), 12, "follows from its order");
    refused(&device("uart", "address = 0x0a000000"), 10, "overlaps the virtio devices");
    refused(&device("console", "size = 512"), 12, "size is for disks only");
    refused(&device("uart", "read-only = true"), 12, "read-only is for disks only");
    refused(&device("block", ""), 10, "an image, a size, or both");
    refused(&device("block", "size = 1000"), 12, "a multiple of 512");
    refused(&device("block", "size = 0"), 12, "a multiple of 512");
    refused(&device("block", "image = \"nothing\""), 12, "image nothing is missing");
    refused(&device("block", "size = \"4G\""), 8, "the VMs so far need");
    let nine = "[[vm.device]]\nkind = \"console\"\n".repeat(9);
    refused(&format!("{HEAD}{nine}"), 26, "at most 8 virtio devices");
    let disk = run(&device("block", "size = \"1M\"")).unwrap();
    let [VirtioDevice::Block(disk)] = disk.vms[0].virtio.as_slice() else { panic!("one disk") };
    assert_eq!((disk.size, disk.read_only, &disk.image), (Some(Size(1 << 20)), false, &None));
}

#[test]
fn two_devices_in_one_place() {
    let text = with_devices(&["", "interrupt = 34"]);
    refused(&text, 13, "the uart at 0x9000000 overlaps the uart at 0x9000000");
}

#[test]
fn a_device_that_was_moved() {
    let text = with_devices(&["address = 0x9001000\ninterrupt = 34"]);
    let [device] = run(&text).unwrap().vms[0].devices[..] else { panic!("one device") };
    assert_eq!((device.address, device.interrupt), (0x900_1000, 34));
    assert!(!device.is_in_its_place());
}

/// Two VMs and a channel that begins at line 18; `more` are further lines.
fn with_channel(vms: &str, memory: &str, more: &str) -> String {
    let second = HEAD
        .lines()
        .skip(4)
        .collect::<Vec<_>>()
        .join("\n")
        .replace("linux\"\nkind", "other\"\nkind");
    format!(
        "{HEAD}{second}\n[[channel]]\nname = \"pipe\"\nvms = [{vms}]\nmemory = \"{memory}\"\n{more}"
    )
}

#[test]
fn channels_connect_two_vms() {
    let good = "\"linux\", \"other\"";
    let scenario = run(&with_channel(good, "64K", "")).unwrap();
    let [pipe] = scenario.channels.as_slice() else { panic!("one channel") };
    assert_eq!((pipe.name.as_str(), pipe.size), ("pipe", Size(64 << 10)));
    assert_eq!(pipe.vms, ["linux", "other"]);
    refused(&with_channel("\"linux\", \"linux\"", "64K", ""), 17, "two different VMs");
    refused(&with_channel("\"linux\", \"none\"", "64K", ""), 17, "no VM \"none\"");
    refused(&with_channel("\"linux\"", "64K", ""), 17, "length");
    refused(&with_channel(good, "3K", ""), 18, "from 4 KiB to 16 MiB");
    refused(&with_channel(good, "12K", ""), 18, "a power of two");
    refused(&with_channel(good, "32M", ""), 18, "from 4 KiB to 16 MiB");
    let again = format!("[[channel]]\nname = \"pipe\"\nvms = [{good}]\nmemory = \"4K\"\n");
    refused(&with_channel(good, "64K", &again), 20, "a channel \"pipe\" already");
    let more = (0..4).map(|n| again.replace("pipe", &format!("p{n}"))).collect::<String>();
    let Refused(refusals) = run(&with_channel(good, "64K", &more)).unwrap_err();
    assert!(refusals[0].reason.contains("linux has more than 4 channels"), "{refusals:?}");
}

/// A VM with a UART and a net whose lines begin at line 12.
fn with_net(lines: &str) -> String {
    format!("{HEAD}[[vm.device]]\nkind = \"uart\"\n[[vm.device]]\nkind = \"net\"\n{lines}\n")
}

#[test]
fn nets_are_plugged_into_switches() {
    let scenario = run(&with_net("switch = \"lan\"")).unwrap();
    assert_eq!(scenario.switches, ["lan"]);
    let [VirtioDevice::Net(net)] = &scenario.vms[0].virtio[..] else { panic!("one net") };
    assert_eq!((net.mac, net.queue), ([2, b'S', b'Z', 0, 0, 0], Size(128 << 10)));
    refused(&with_net(""), 12, "names its switch");
    refused(&with_net("switch = \"Lan\""), 14, "bad name");
    let more = |line: &str| with_net(&format!("switch = \"lan\"\n{line}"));
    for mac in ["02:00:00:00:00", "02:00:00:00:00:0g", "03:00:00:00:00:01", "0:0:0:0:0:1"] {
        refused(&more(&format!("mac = \"{mac}\"")), 15, "a mac is six bytes");
    }
    refused(&more("queue = \"3K\""), 15, "a power of two from 4 KiB to 1 MiB");
    refused(&more("queue-frames = 0"), 15, "queue-frames is 1 to 4096");
    refused(&more("rate-kbps = 0"), 15, "may send something");
    refused(&more("interrupt = 50"), 15, "follows from its order");
    let second = "[[vm.device]]\nkind = \"net\"\nswitch = \"lan\"\nmac = \"02:53:5A:00:00:00\"";
    refused(&more(second), 15, "another net on lan has 02:53:5a:00:00:00 too");
    refused(&with_devices(&["switch = \"lan\""]), 12, "switch is for a net only");
    let switches = |n| format!("[[vm.device]]\nkind = \"net\"\nswitch = \"s{n}\"\n");
    let five: String = (0..4).map(switches).collect();
    refused(&more(&five), 24, "more than 4 switches");
}
