//! What is replaced in a recording that may be given away: consistently, with networks kept, and everywhere.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proptest::prelude::*;
use serde_json::Value;
use tcpstate_user::{
    disguise::{Disguise, Key, Secret},
    event::{Comm, Process, Via},
    lifecycle::Callers,
    recording::{Header, Holder, Reader, Step, Tape},
};

use crate::{
    exports::{Folder, lines, shown},
    recordings::{header, losses, of_fixture},
};

const BOTH: [Secret; 2] = [Secret::Addresses, Secret::Names];

fn disguise(key: u8) -> Disguise {
    Disguise::with_key(&BOTH, &[key; size_of::<Key>()])
}

fn bits(addr: IpAddr) -> (u128, u32) {
    match addr {
        IpAddr::V4(addr) => (u128::from(addr.to_bits()) << 96, 32),
        IpAddr::V6(addr) => (addr.to_bits(), 128),
    }
}

/// How many leading bits two have in common.
fn common(one: IpAddr, other: IpAddr) -> u32 {
    let ((one, length), (other, _)) = (bits(one), bits(other));
    (one ^ other).leading_zeros().min(length)
}

fn pair(length: u32) -> impl Strategy<Value = (u128, u128)> {
    // Two that differ from some bit on, and may be the same.
    (any::<u128>(), any::<u128>(), 0..=length).prop_map(|(one, other, same)| {
        let behind = u128::MAX.checked_shr(same).unwrap_or(0);
        (one, one & !behind | other & behind)
    })
}

fn v4(bits: u128) -> IpAddr {
    Ipv4Addr::from_bits(u32::try_from(bits >> 96).expect("32 bits")).into()
}

fn v6(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).into()
}

proptest! {
    #[test]
    fn networks_stay_networks(four in pair(32), six in pair(128), key in any::<u8>()) {
        let mut disguise = disguise(key);
        for (one, other) in [(v4(four.0), v4(four.1)), (v6(six.0), v6(six.1))] {
            let (one_now, other_now) = (disguise.addr(one), disguise.addr(other));
            // From which follows that different ones stay different.
            prop_assert_eq!(common(one, other), common(one_now, other_now));
            prop_assert_eq!(one.is_ipv4(), one_now.is_ipv4());
            // Always the same, also if it is not remembered.
            prop_assert_eq!(self::disguise(key).addr(one), one_now);
            if let IpAddr::V4(addr) = one {
                let mapped = disguise.addr(addr.to_ipv6_mapped().into());
                prop_assert_eq!(mapped.to_canonical(), one_now);
                prop_assert!(mapped.is_ipv6());
            }
        }
    }

    #[test]
    fn names_stay_apart(one in ".{0,20}", other in ".{0,20}", key in any::<u8>()) {
        let disguise = disguise(key);
        let name = |name: &str| disguise.comm(Comm::truncated(name));
        let (first, second) = (Comm::truncated(&one), Comm::truncated(&other));
        prop_assert_eq!(name(&one) == name(&other), first == second);
        prop_assert_eq!(name(&one).as_bytes().is_empty(), first.as_bytes().is_empty());
        let path = |path: &str| disguise.path(path);
        prop_assert_eq!(path(&one) == path(&other), one == other);
        // What is below a cgroup stays below it.
        let below = format!("{one}/{other}");
        let start = format!("{}/", path(&one));
        prop_assert!(path(&below).starts_with(&start));
    }
}

/// Seldom are two names like that, so the test above told only sometimes.
#[test]
fn a_name_ends_at_its_first_zero_byte() {
    let disguise = disguise(0);
    let (whole, cut) = (Comm::truncated("a\0b"), Comm::truncated("a"));
    assert_eq!(whole, cut);
    assert_eq!(disguise.comm(whole), disguise.comm(cut));
}

#[test]
fn another_key_makes_others() {
    let addr = "192.0.2.7".parse().expect("an address");
    let mut seen: Vec<_> = (0..100).map(|key| disguise(key).addr(addr)).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 100);
    let names: std::collections::HashSet<_> = (0..100)
        .map(|key| disguise(key).comm(Comm::truncated("nginx")))
        .collect();
    assert_eq!(names.len(), 100);
}

#[test]
fn what_is_no_address_stays() {
    for key in 0..50 {
        let mut disguise = disguise(key);
        for any in [
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            Ipv6Addr::UNSPECIFIED.into(),
        ] {
            assert_eq!(disguise.addr(any), any);
        }
    }
    // All of a small network are different, also where one would have become unspecified.
    let mut disguise = disguise(1);
    let all: std::collections::HashSet<_> = (0..=u16::MAX)
        .map(|low| disguise.addr(Ipv4Addr::from_bits(u32::from(low)).into()))
        .collect();
    assert_eq!(all.len(), 1 << 16);
}

#[test]
fn only_what_was_asked_for_is_replaced() {
    let addr: IpAddr = "192.0.2.7".parse().expect("an address");
    let comm = Comm::truncated("nginx");
    let key = [3; size_of::<Key>()];
    let mut addresses = Disguise::with_key(&[Secret::Addresses], &key);
    assert!(addresses.addr(addr) != addr && addresses.comm(comm) == comm);
    let mut names = Disguise::with_key(&[Secret::Names], &key);
    assert!(names.addr(addr) == addr && names.comm(comm) != comm);
}

#[test]
fn a_header_keeps_nothing() {
    let filter = "--local-port 80,8000-8999 --cidr 192.0.2.0/24,2001:db8::/32 --netns 4026531840 --protocol tcp --new secret";
    let secret = Header {
        host: "secret-host".into(),
        filter: filter.into(),
        ..header(Callers::default(), 4_000_000)
    };
    let header = disguise(1).header(&secret);
    assert_eq!(header.anonymized, ["addresses", "names"]);
    assert_eq!(header.host, "anonymized");
    let words: Vec<_> = header.filter.split(' ').collect();
    let (kept, cidr) = (words[..3].join(" "), words[3]);
    assert_eq!(kept, "--local-port 80,8000-8999 --cidr");
    assert!(cidr.contains("/24,") && cidr.ends_with("/32"), "{cidr}");
    assert_eq!(
        words[4..].join(" "),
        "--netns 4026531840 --protocol tcp --new ?"
    );
    let text = serde_json::to_string(&header).expect("JSON");
    for secret in ["secret", "192.0.2", "2001:db8"] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// Everything that is in a recording, unpacked.
fn unpacked(path: &str) -> Vec<u8> {
    let mut reader = Reader::new(File::open(path).expect("a file")).expect("a recording");
    let mut all = serde_json::to_vec(reader.header()).expect("JSON");
    while reader.next_block().expect("a whole recording").is_some() {
        let mut steps = reader.steps();
        while let Some(step) = steps.step() {
            step.expect("a step").write(&mut all);
        }
    }
    all
}

fn has(all: &[u8], secret: &[u8]) -> bool {
    all.windows(secret.len()).any(|some| some == secret)
}

/// What a recording has that is secret: names, and the addresses of the fixtures as they stand in records.
const SECRETS: [&[u8]; 7] = [
    b"secret",
    b"test\0",
    b"system.slice",
    b"192.0.2",
    &[0xff, 0xff, 127, 0, 0, 1],
    &[0xff, 0xff, 10, 9, 0, 1],
    &[0xff, 0xff, 10, 9, 0, 2],
];

/// The steps of a fixture, and more that has secrets.
fn record(path: &str, fixture: &str, disguise: Option<Disguise>) {
    let original = format!("{path}.original");
    fs::write(&original, of_fixture(fixture)).expect("a file");
    let mut reader = Reader::new(File::open(&original).expect("a file")).expect("a recording");
    let header = Header {
        host: "secret-host".into(),
        filter: "--cidr 127.0.0.0/8,10.9.0.0/16,192.0.2.0/24".into(),
        ..reader.header().clone()
    };
    let mut disguise = disguise;
    let shown = disguise
        .as_mut()
        .map_or_else(|| header.clone(), |disguise| disguise.header(&header));
    let file = std::path::Path::new(path);
    let mut tape = Tape::begin(file, None, shown)
        .expect("a new file")
        .with_disguise(disguise);
    let comm = Comm::truncated("secret-holder");
    let process = Process {
        pid: 1,
        comm,
        via: Via::Scan,
    };
    tape.take(&losses(header.begins));
    tape.take(&Step::Holders(vec![Holder { inode: 1, process }]));
    tape.take(&Step::Cgroup(77, "/system.slice/secret.scope"));
    tape.take(&Step::Record(b"\xffsecret, of a kind that we do not know"));
    tape.take(&Step::Record(b"\x01secret, and too short"));
    while reader.next_block().expect("a whole recording").is_some() {
        let mut steps = reader.steps();
        while let Some(step) = steps.step() {
            tape.take(&step.expect("a step"));
        }
    }
    tape.close().expect("written");
}

/// Lines of a trace, addresses and names replaced by numbers in the order in which they come.
fn shape(path: &str) -> Vec<Value> {
    let mut numbers = HashMap::new();
    let mut lines = lines(&shown(&["trace", "-j", "--from", path]));
    for line in &mut lines {
        for field in ["laddr", "raddr", "comm", "cgroup"] {
            if let Some(value) = line.get_mut(field).filter(|value| value.is_string()) {
                let next = numbers.len();
                *value = (*numbers.entry(value.to_string()).or_insert(next)).into();
            }
        }
    }
    lines
}

#[test]
fn a_recording_keeps_nothing_and_shows_the_same() {
    let folder = Folder::new("disguise");
    for fixture in [
        "closing.bin",
        "late_fin.bin",
        "silent_peers.bin",
        "simultaneous_close.bin",
    ] {
        let plain = folder.path(&format!("plain-{fixture}"));
        let other = folder.path(&format!("other-{fixture}"));
        record(&plain, fixture, None);
        let random = Disguise::new(&BOTH).expect("random numbers");
        record(&other, fixture, Some(random));
        let (before, after) = (unpacked(&plain), unpacked(&other));
        let mut there = 0;
        for secret in SECRETS {
            there += usize::from(has(&before, secret));
            assert!(
                !has(&after, secret),
                "{fixture}: {}",
                String::from_utf8_lossy(secret)
            );
        }
        assert!(there >= 5, "{fixture}: {there}");
        assert_eq!(shape(&plain), shape(&other), "{fixture}");
        let info = shown(&["info", &other]);
        assert!(info.contains("addresses, names"), "{info}");
        // Two recordings have nothing in common.
        let again = folder.path(&format!("again-{fixture}"));
        record(
            &again,
            fixture,
            Some(Disguise::new(&BOTH).expect("random numbers")),
        );
        let trace = |path: &str| shown(&["trace", "-s", "--from", path]);
        assert_ne!(trace(&other), trace(&again), "{fixture}");
    }
}

#[test]
fn an_export_keeps_nothing() {
    let folder = Folder::new("disguised-exports");
    let recording = folder.path("a.tcps");
    record(&recording, "closing.bin", None);
    let secrets = [
        "secret",
        "test",
        "system.slice",
        "192.0.2",
        "127.0.0.1",
        "10.9.0",
    ];
    let clean = |text: &[u8], what: &str| {
        for secret in secrets {
            assert!(!has(text, secret.as_bytes()), "{what}: {secret}");
        }
    };
    let plain = shown(&["export", &recording, "--to", "jsonl"]);
    assert!(
        secrets
            .iter()
            .filter(|secret| plain.contains(**secret))
            .count()
            >= 3,
        "{plain}"
    );
    // Filters are by what is real.
    let cidr = ["127.0.0.1", "10.9.0.1"]
        .into_iter()
        .find(|addr| plain.contains(addr));
    let export = [
        "export",
        &recording,
        "--anonymize=addresses,names",
        "--cidr",
        cidr.expect("one of them"),
    ];
    let jsonl = shown(&[&export[..], &["--to", "jsonl"]].concat());
    assert_eq!(jsonl.lines().count(), plain.lines().count());
    clean(jsonl.as_bytes(), "jsonl");
    let trace = folder.path("a.pftrace");
    shown(&[&export[..], &["--to", "perfetto", "-o", &trace]].concat());
    clean(&fs::read(&trace).expect("a trace"), "perfetto");
    let tables = folder.path("tables");
    for to in ["csv", "parquet"] {
        shown(&[&export[..], &["--to", to, "-o", &tables]].concat());
    }
    for name in fs::read_dir(&tables).expect("the folder") {
        let path = name.expect("a file").path();
        clean(
            &fs::read(&path).expect("a table"),
            &path.display().to_string(),
        );
    }
}
