//! Recordings as files: what is written is read again, and whatever else is in a file is told, never believed.

use std::{
    ffi::OsStr,
    fs,
    io::{Cursor, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use proptest::prelude::*;
use tcpstate_common::{
    record::{RecordKind::TimeWaitFound, SocketRecord, TimeWaitRecord, TransitionRecord},
    state::TcpState::{self, CloseWait, Established, TimeWait},
};
use tcpstate_user::{
    kernel::{Counters, Hook, TimeWaitHook},
    lifecycle::Callers,
    recording::{
        Astray, FORMAT, Header, LAYOUT, Mark, ReadError, Reader, Recorded, Rotation, Step, Tape,
        Writer, part_name,
    },
    settings::Settings,
    sink::OtherProtocols,
};
use zerocopy::IntoBytes as _;

use crate::{
    exports::{Folder, refused},
    machine::lives::{Scale, generate},
    records::{record, timer},
};

/// Where the times of the recordings in `tests/fixtures/records` begin.
const START: u64 = 1_000_000_000;
const PREAMBLE: usize = 24;
const HEAD: usize = 80;

pub fn header(callers: Callers, tick: u64) -> Header {
    Header {
        tcpstate: "0.1.0".into(),
        layout: LAYOUT,
        kernel: "6.18.0".into(),
        host: "example".into(),
        hook: Hook::BtfTracepoint,
        timewait: Some(TimeWaitHook::Timer),
        calls: false,
        missing: Vec::new(),
        filter: String::new(),
        settings: Vec::new(),
        start: START,
        zero: 1_800_000_000_000_000_000,
        boot: 1_800_000_000_000_000_000,
        tick,
        callers,
        id: 1,
        part: 1,
        begins: START,
        anonymized: Vec::new(),
    }
}

pub fn losses(now: u64) -> Step<'static> {
    Step::Losses {
        now,
        counters: Counters {
            lost: 0,
            not_found: 0,
            passed_over: 0,
            second_looks: 0,
            unobserved: 0,
            other_protocols: OtherProtocols::default(),
        },
        unread: 0,
    }
}

pub fn bytes(steps: &[Step<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in steps {
        step.write(&mut bytes);
    }
    bytes
}

/// A recording of these blocks.
pub fn file(header: &Header, blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), header).expect("memory");
    let mark = |number: usize| Mark {
        number: number as u64,
        now: header.begins,
        ..Mark::default()
    };
    for (number, block) in blocks.iter().enumerate() {
        writer.steps(&mark(number), block).expect("memory");
    }
    writer.finish(&mark(blocks.len())).expect("memory").0
}

/// The records of a fixture (see `replay.rs`) as a recording.
pub fn of_fixture(name: &str) -> Vec<u8> {
    changed(name, |header| header)
}

/// The same, as if these filters had been given.
fn recorded_with(name: &str, filter: &str) -> Vec<u8> {
    changed(name, |header| Header {
        filter: filter.to_owned(),
        ..header
    })
}

fn changed(name: &str, change: impl FnOnce(Header) -> Header) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records");
    let fixture = fs::read(path.join(name)).expect("a fixture");
    let empty = fixture.windows(2).position(|pair| pair == b"\n\n");
    let (text, mut rest) = fixture.split_at(empty.expect("an empty line") + 2);
    let text = std::str::from_utf8(text).expect("text");
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a line").trim().parse().expect("a number")
    };
    let end = number("end");
    let mut records = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (record, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        records.push(record);
        rest = after;
    }
    let mut first = vec![losses(end), Step::Cgroup(1, "/system.slice/test.service")];
    first.extend(records.iter().map(|record| Step::Record(record)));
    let last = [Step::Settled(end), losses(end), Step::End(end), losses(end)];
    let header = change(header(Callers::parse(text), number("tick")));
    file(&header, &[bytes(&first), bytes(&last)])
}

/// What can be read, and why no more.
fn read(file: &[u8]) -> (Vec<Vec<u8>>, Option<ReadError>) {
    let mut blocks = Vec::new();
    let mut reader = match Reader::new(Cursor::new(file)) {
        Ok(reader) => reader,
        Err(error) => return (blocks, Some(error)),
    };
    loop {
        match reader.next_block() {
            Ok(None) => return (blocks, None),
            Err(error) => return (blocks, Some(error)),
            Ok(Some(_)) => {
                let steps = reader.steps().map(|step| step.expect("a step"));
                blocks.push(bytes(&steps.collect::<Vec<_>>()));
            }
        }
    }
}

fn small() -> (Vec<Vec<u8>>, Vec<u8>) {
    let blocks = vec![
        bytes(&[losses(START + 1), Step::Record(&[7; 160])]),
        bytes(&[Step::Cgroup(5, "/a"), Step::Settled(START + 2)]),
        bytes(&[losses(START + 3), Step::End(START + 3)]),
    ];
    let file = file(&header(Callers::default(), 4_000_000), &blocks);
    (blocks, file)
}

#[test]
fn what_is_written_is_read() {
    let (blocks, file) = small();
    let (read, error) = read(&file);
    assert_eq!(read, blocks);
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn cut_off_anywhere_all_whole_blocks_are_read_and_the_end_is_told() {
    let (blocks, file) = small();
    let mut seen = 0;
    for length in 0..file.len() {
        let (read, error) = read(&file[..length]);
        assert!(blocks.starts_with(&read), "{length}");
        let told = match &error {
            Some(ReadError::CutOff { offset, .. }) => *offset <= length as u64,
            Some(ReadError::NoRecording(_)) => length == 0,
            _ => false,
        };
        assert!(told, "{length}: {error:?}");
        assert!(read.len() >= seen, "{length}: fewer blocks than before");
        seen = read.len();
    }
    assert_eq!(seen, blocks.len());
}

#[test]
fn no_bit_turns_unnoticed() {
    let (blocks, file) = small();
    for place in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[place / 8] ^= 1 << (place % 8);
        let (read, error) = read(&damaged);
        assert!(blocks.starts_with(&read), "bit {place}");
        let told = match &error {
            Some(ReadError::Damaged { offset, .. } | ReadError::CutOff { offset, .. }) => {
                *offset <= place as u64 / 8 + 1
            }
            Some(ReadError::NoRecording(_)) => place < 64,
            _ => false,
        };
        assert!(told, "bit {place}: {error:?}");
    }
}

/// A block as `docs/recordings.md` has it.
fn block(kind: u8, packing: u8, length: u32, body: &[u8]) -> Vec<u8> {
    let mut head = b"tcpB".to_vec();
    head.extend([kind, packing, 0, 0]);
    head.extend(u32::try_from(body.len()).expect("small").to_le_bytes());
    head.extend(length.to_le_bytes());
    head.extend([0; 56]);
    head.extend(crc32fast::hash(body).to_le_bytes());
    head.extend(crc32fast::hash(&head).to_le_bytes());
    assert_eq!(head.len(), HEAD);
    [head, body.to_vec()].concat()
}

/// The beginning of a recording, up to the first block of steps.
fn beginning() -> Vec<u8> {
    let (_, file) = small();
    let length = u32::from_le_bytes(*file[PREAMBLE + 8..].first_chunk().expect("a head"));
    file[..PREAMBLE + HEAD + length as usize].to_vec()
}

#[test]
fn lengths_that_lie_get_no_memory() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("zeros");
    let small = zstd::bulk::compress(&[0; 100], 1).expect("zeros");
    // A record, and ten thousand times the same.
    let mut again = [1, 192, 0].to_vec();
    again.extend([7; 192]);
    again.extend([255, 24, 0, 0, 0].repeat(10_000));
    let packed = zstd::bulk::compress(&again, 1).expect("bytes");
    for (block, what) in [
        (block(2, 1, 1000, &bomb), "another length"),
        (block(2, 1, 64 << 20, &bomb), "larger than any"),
        (block(2, 1, u32::MAX, &small), "larger than any"),
        (block(2, 1, 99, &small), "another length"),
        (block(2, 1, 101, &small), "another length"),
        (block(2, 1, 5, b"no zstd"), "another length"),
        (block(2, 0, 5, b"more"), "another length"),
        (block(2, 2, 4, b"more"), "cannot be unfolded"),
        (block(2, 2, 4000, &again), "cannot be unfolded"),
        (block(2, 3, 4000, &packed), "another length"),
        (block(2, 4, 4, b"more"), "no such way of packing"),
        (block(1, 0, 2, b"{}"), "a second header"),
        (block(9, 0, 2, b"{}"), "no such kind"),
        (b"tcpA".repeat(HEAD), "no block begins here"),
    ] {
        let (read, error) = read(&[beginning(), block].concat());
        let error = error.expect("an error").to_string();
        assert!(read.is_empty() && error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_newer_file_says_what_is_needed() {
    let (_, mut file) = small();
    file[8] = 9;
    file[12] = 3;
    let sum = crc32fast::hash(&file[..20]);
    file[20..24].copy_from_slice(&sum.to_le_bytes());
    let (_, error) = read(&file);
    let error = error.expect("an error").to_string();
    assert_eq!(
        error,
        "it has format 9, and this tcpstate reads up to 2: use tcpstate 3.1.0 or later"
    );
    let newer = Header {
        layout: LAYOUT + 1,
        tcpstate: "4.5.6".into(),
        ..header(Callers::default(), 1)
    };
    let (_, error) = read(&self::file(&newer, &[]));
    let error = error.expect("an error").to_string();
    assert!(error.contains("use tcpstate 4.5.6 or later"), "{error}");
}

/// Raise `recording::LAYOUT` when this fails, keep the old structure there, and make new records of old ones.
#[test]
fn the_layout_of_records_is_the_one_that_recordings_name() {
    let sizes = [
        size_of::<TransitionRecord>(),
        size_of::<TimeWaitRecord>(),
        size_of::<SocketRecord>(),
    ];
    assert_eq!((LAYOUT, sizes), (1, [160, 168, 128]));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read(&bytes);
        let (blocks, _) = read(&[beginning(), bytes].concat());
        prop_assert!(blocks.is_empty());
    }

    #[test]
    fn any_steps_are_shown_or_refused(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let whole = file(&header(Callers::default(), 4_000_000), std::slice::from_ref(&body));
        let mut reader = Reader::new(Cursor::new(whole)).expect("a header");
        prop_assert!(reader.next_block().expect("a block").is_some());
        let steps = reader.steps().count();
        prop_assert!(steps <= body.len());
    }
}

/// A file that is gone when the test is.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let name = format!("tcpstate-pure-{}-{name}.tcps", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).expect("a file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn tcpstate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args(arguments)
        .output()
        .expect("tcpstate starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it shows of a recording that is whole.
fn shown(arguments: &[&str]) -> String {
    let output = tcpstate(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The file in which a format is kept: it must be read for ever, and shown as it always was.
fn kept(number: u32) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/fixtures/recordings/format-{number}.tcps"));
    if number == FORMAT
        && std::env::var_os("TCPSTATE_RECORD_FIXTURES").is_some_and(|value| value == "1")
    {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, of_fixture("late_fin.bin")).expect("a file");
    }
    path
}

#[test]
fn every_format_is_shown_as_ever() {
    for number in 1..=FORMAT {
        let path = kept(number);
        let path = path.to_str().expect("text");
        insta::assert_snapshot!("format_trace", shown(&["trace", "-j", "--from", path]));
        insta::assert_snapshot!("format_conns", shown(&["conns", "-s", "--from", path]));
        insta::assert_snapshot!("format_closers", shown(&["closers", "-j", "--from", path]));
        let info = shown(&["info", path]);
        let written = format!("(format {number}, records 1)");
        assert!(info.contains(&written), "{info}");
        insta::assert_snapshot!(
            "format_info",
            info.replace(&written, "(format N, records 1)")
        );
    }
}

#[test]
fn a_window_shows_the_same_rows_and_no_others() {
    let file = Temporary::new("window", &of_fixture("expiry.bin"));
    let rows = |more: &[&str]| -> Vec<String> {
        let arguments = [&["trace", "-j", "--from", file.path()], more].concat();
        let output = tcpstate(&arguments);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{more:?}");
        let out = text(&output.stdout);
        let transitions = out.lines().filter(|line| line.contains("\"transition\""));
        transitions.map(str::to_owned).collect()
    };
    let time = |row: &String| row.split('"').nth(7).expect("a time").to_owned();
    let all = rows(&[]);
    assert!(all.len() > 10);
    let middle = time(&all[all.len() / 2]);
    assert!(middle.starts_with("20"), "{middle}");
    let since = rows(&["--since", &middle]);
    let until = rows(&["--until", &middle]);
    let later = |row: &&String| time(row) >= middle;
    assert_eq!(since, all.iter().filter(later).cloned().collect::<Vec<_>>());
    // What ended a wait that went on at the end is not known then.
    let before = |row: &&String| time(row) <= middle;
    let expected: Vec<_> = all.iter().filter(before).collect();
    assert!(until.len() <= expected.len() && until.len() + 8 > expected.len());
    assert_eq!(rows(&["--since", "+1h"]), Vec::<String>::new());
    assert_eq!(rows(&["--netns", "1"]), all);
    assert_eq!(rows(&["--netns", "2"]), Vec::<String>::new());
    for bad in [
        &["--since", "soon"][..],
        &["--since", "+2s", "--until", "+1s"],
        &["--netns", "blue"],
        &["--duration", "1"],
        &["--buffer", "1M"],
        &["--record", "other.tcps"],
    ] {
        let output = tcpstate(&[&["trace", "--from", file.path()], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(output.stdout.is_empty(), "{bad:?}");
    }
}

/// The kernel side sends first events of connections that are not wanted, since they have no port yet.
#[test]
fn what_it_was_recorded_with_hides_what_it_hid_then() {
    let all = Temporary::new("all", &of_fixture("late_fin.bin"));
    let views: [&[&str]; 7] = [
        &["trace", "-j"],
        &["conns", "-s", "--running"],
        &["states", "-j"],
        &["states", "-j", "--leaks"],
        &["closers", "-j"],
        &["hist", "-j"],
        &["timewait", "-j"],
    ];
    let show = |view: &[&str], file: &Temporary, flags: &str| {
        let flags = flags.split_whitespace().collect::<Vec<_>>();
        let output = tcpstate(&[view, &["--from", file.path()], &flags].concat());
        assert!(matches!(output.status.code(), Some(0 | 1)), "{view:?}");
        (text(&output.stdout), text(&output.stderr))
    };
    for given in [
        "--local-port 18818",
        "--local-port 14843 --netns 1",
        "--remote-port 18000-18999,1",
        "--local-port 443",
        "--cidr 10.0.0.0/8",
        "--ipv6 --protocol all",
    ] {
        let file = Temporary::new("given", &recorded_with("late_fin.bin", given));
        for view in views {
            let (out, said) = show(view, &file, "");
            assert_eq!(out, show(view, &all, given).0, "{given}: {view:?}");
            let expected = format!("tcpstate: recorded with {given}\n");
            assert!(said.starts_with(&expected), "{said}");
        }
        // The one who looks may want less, not more.
        if !given.contains("remote") {
            let both = format!("{given} --remote-port 14843");
            let (out, _) = show(&["trace", "-s"], &file, "--remote-port 14843");
            assert_eq!(out, show(&["trace", "-s"], &all, &both).0, "{both}");
        }
    }
    for given in ["--help", "--cidr ?", "443", "-L 0 \u{1b}[31m"] {
        let file = Temporary::new("odd", &recorded_with("late_fin.bin", given));
        let (out, said) = show(&["trace", "-j"], &file, "");
        assert_eq!(out, show(&["trace", "-j"], &all, "").0, "{given}");
        assert!(said.contains("warning: these filters are not"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}

#[test]
fn what_is_before_the_damage_is_shown_and_the_damage_told() {
    let whole = of_fixture("late_fin.bin");
    let good = Temporary::new("good", &whole);
    let expected = shown(&["trace", "-s", "--from", good.path()]);
    let cut = Temporary::new("cut", &whole[..whole.len() - 20]);
    let output = tcpstate(&["trace", "-s", "--from", cut.path()]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), expected);
    let message = text(&output.stderr);
    assert!(message.contains("cut off at byte"), "{message}");
    let output = tcpstate(&["info", cut.path()]);
    assert_eq!(output.status.code(), Some(2));
    let out = text(&output.stdout);
    assert!(out.contains("DAMAGED           cut off at byte"), "{out}");
}

#[test]
fn what_is_no_recording_is_refused() {
    let folder = std::env::temp_dir();
    let folder = folder.to_str().expect("text");
    let empty = Temporary::new("empty", b"");
    let other = Temporary::new("other", b"#!/bin/sh\necho this is something else\n");
    let packed = Temporary::new("packed", b"\x28\xb5\x2f\xfd\x04\x00");
    let pipe = std::env::temp_dir().join(format!("tcpstate-pure-{}.fifo", std::process::id()));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for (path, why) in [
        (empty.path(), "it is empty"),
        (other.path(), "it is no recording"),
        (packed.path(), "unpack it first"),
        (folder, "it is a directory"),
        (pipe.to_str().expect("text"), "it is no regular file"),
        ("/nowhere/at/all.tcps", "No such file"),
    ] {
        for command in [&["trace", "-j", "--from"][..], &["info"]] {
            let output = tcpstate(&[command, &[path]].concat());
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{path}: {message}");
            assert!(output.stdout.is_empty(), "{path}");
            assert!(message.contains(path) && message.contains(why), "{message}");
        }
    }
    fs::remove_file(pipe).expect("the pipe");
}

#[test]
fn whoever_stops_reading_is_no_failure() {
    // More than a pipe holds, and than is buffered.
    let scale = Scale {
        connections: 2000,
        events: 20_000,
        seed: 1,
    };
    let bytes = generate(scale, Vec::new()).expect("memory");
    let file = Temporary::new("pipe", &bytes);
    for view in [
        &["trace"][..],
        &["trace", "-s"],
        &["trace", "-j"],
        &["conns", "-s"],
        &["conns", "-w"],
        &[
            "closers",
            "-s",
            "--by",
            "pid,remote",
            "--top",
            "5000",
            "0.1",
        ],
        &["timewait", "-s", "0.01"],
    ] {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
            .args([view, &["--from", file.path()]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpstate starts");
        drop(tool.stdout.take());
        let output = tool.wait_with_output().expect("it ends");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{view:?}: {message}");
        assert!(!message.contains("pipe"), "{view:?}: {message}");
    }
}

/// A gap without any turn in it, as a disk leaves it that stands still for long.
#[test]
fn what_is_missing_is_missing_for_all_of_the_time() {
    const SECOND: u64 = 1_000_000_000;
    let at = |seconds| START + seconds * SECOND;
    let record = record(1, at(1), TcpState::Close, TcpState::Listen);
    let steps = [
        losses(at(1)),
        Step::Record(record.as_bytes()),
        Step::Settled(at(1)),
        losses(at(31)),
        Step::Unrecorded(700),
        Step::Settled(at(31)),
        losses(at(32)),
        Step::Unrecorded(1000),
        Step::End(at(32)),
        losses(at(32)),
    ];
    let file = file(&header(Callers::default(), 4_000_000), &[bytes(&steps)]);
    let file = Temporary::new("gap", &file);
    let trace = shown(&["trace", "-j", "--from", file.path()]);
    let told: Vec<_> = trace
        .lines()
        .filter(|line| line.contains("\"unrecorded\",\"count\""))
        .map(|line| line.split_once("\"count\":").expect("a number").1)
        .collect();
    let time = |seconds: u64| format!("2027-01-15T08:00:{:02}.000000000Z", seconds + 1);
    let row = |count, from, to| {
        let (from, to) = (time(from), time(to));
        format!("{count},\"from\":\"{from}\",\"to\":\"{to}\"}}")
    };
    assert_eq!(told, [row(700, 1, 31), row(300, 31, 32)]);
    let states = shown(&["states", "-j", "--from", file.path(), "10"]);
    let lost: Vec<_> = states
        .lines()
        .filter_map(|line| line.split_once("\"lost\":")?.1.split(',').next())
        .collect();
    assert_eq!(lost, ["700", "0", "0", "300"], "{states}");
    assert_eq!(
        states.matches("\"counts\":\"exact\"").count(),
        0,
        "{states}"
    );
}

/// `-o` and a recording are written while it runs; `record` looks beyond before it begins.
#[test]
fn files_that_get_into_each_others_way_are_refused() {
    let folder = Folder::new("way");
    let there = folder.recording("r.000008.tcps", &of_fixture("late_fin.bin"));
    let one = folder.path("one.tcps");
    let spelled = Path::new(&one);
    let parent = spelled.parent().expect("a folder");
    let name = parent.file_name().expect("a name").to_str().expect("text");
    let other = folder.path(&format!("../{name}/one.tcps"));
    for output in [&one, &other] {
        let message = refused(&["trace", "--record", &one, "-o", output]);
        assert!(message.contains("are the same file"), "{message}");
    }
    assert!(!spelled.exists());
    for name in ["r.000001.tcps", "r.000009.tcps"] {
        let message = refused(&["record", &folder.path(name)]);
        assert!(message.contains("taken for a part of"), "{message}");
    }
    assert_eq!(fs::read_dir(parent).expect("the folder").count(), 1);
    fs::remove_file(there).expect("the part");
}

/// What becomes of a recording of three turns, after each of which somebody touches its files.
fn touched(
    folder: &Folder,
    name: &str,
    rotation: Option<Rotation>,
    touch: impl Fn(&Path, u32),
) -> Recorded {
    let path = PathBuf::from(folder.path(name));
    let header = header(Callers::default(), 4_000_000);
    let mut tape = Tape::begin(&path, rotation, header).expect("a new file");
    for turn in 0..3 {
        // Blocks, which cannot be packed.
        let mut random = u64::from(turn) + 1;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()[0]
        })
        .take(3 << 20)
        .collect();
        for some in noise.chunks(60_000) {
            tape.take(&Step::Record(some));
        }
        std::thread::sleep(Duration::from_millis(200));
        touch(&path, turn);
    }
    tape.close().expect("written")
}

#[test]
fn old_parts_may_be_cleared_away_by_others() {
    let folder = Folder::new("cleared");
    let rotation = Rotation {
        bytes: 1 << 16,
        keep: 2,
    };
    let recorded = touched(&folder, "many.tcps", Some(rotation), |path, turn| {
        if turn == 0 {
            while !part_name(path, 2).exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
            fs::remove_file(part_name(path, 1)).expect("the first part");
        }
    });
    assert!(recorded.parts > 2, "{recorded:?}");
}

#[test]
fn a_file_that_is_taken_away_is_told() {
    let folder = Folder::new("away");
    let recorded = touched(&folder, "left.tcps", None, |_, _| {});
    assert_eq!(recorded.astray, None);
    let recorded = touched(&folder, "gone.tcps", None, |path, turn| {
        if turn == 1 {
            fs::remove_file(path).expect("the file");
        }
    });
    let path = folder.path("gone.tcps").into();
    assert_eq!(recorded.astray, Some((path, Astray::Removed)));
    let other = PathBuf::from(folder.path("other.tcps"));
    let recorded = touched(&folder, "moved.tcps", None, |path, turn| {
        if turn == 1 {
            fs::rename(path, &other).expect("the file");
            fs::write(path, "something else").expect("a file");
        }
    });
    let path = folder.path("moved.tcps").into();
    assert_eq!(recorded.astray, Some((path, Astray::Moved)));
    let (blocks, error) = read(&fs::read(&other).expect("the recording"));
    assert!(blocks.len() >= 3 && error.is_none(), "{error:?}");
}

/// `ulimit -f`: the kernel would end the process by SIGXFSZ.
#[test]
fn a_file_that_may_not_grow_is_an_error() {
    let folder = Folder::new("limit");
    let from = folder.recording("from.tcps", &of_fixture("late_fin.bin"));
    let out = folder.path("out");
    let tool = env!("CARGO_BIN_EXE_tcpstate");
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -f 1; exec \"$0\" trace -j --from \"$1\" -o \"$2\"",
        ])
        .args([tool, &from, &out])
        .output()
        .expect("sh starts");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("File too large"), "{message}");
}

/// Whether both ends of a connection are on this host is not known if the addresses are others.
#[test]
fn what_other_addresses_do_not_tell_is_unknown() {
    let mut settings = Settings {
        netns: 1,
        ..Settings::default()
    };
    settings.insert("ipv4/ip_local_port_range", "1024\t65535\n");
    settings.insert("ipv4/tcp_tw_reuse", "2\n");
    let rows = |anonymized: &[&str]| {
        let change = |header: Header| Header {
            settings: vec![settings.clone()],
            anonymized: anonymized.iter().map(ToString::to_string).collect(),
            ..header
        };
        let file = Temporary::new("reuse", &changed("late_fin.bin", change));
        let view = ["timewait", "-j", "--from", file.path()];
        (shown(&view), shown(&["timewait", "--from", file.path()]))
    };
    for (anonymized, reuse) in [
        (&[][..], "\"yes\""),
        (&["names"], "\"yes\""),
        (&["addresses"], "null"),
        (&["addresses", "names"], "null"),
    ] {
        let (json, text) = rows(anonymized);
        let told = format!("\"reuse\":{reuse}");
        assert!(json.contains(&told), "{anonymized:?}: {json}");
        assert!(text.contains(" >="), "{text}");
        let note = text.contains("other addresses do not tell");
        assert_eq!(note, reuse == "null", "{text}");
    }
}

#[test]
fn the_summary_is_of_what_reports_cover() {
    const SECOND: u64 = 1_000_000_000;
    let later = START + 50 * SECOND;
    let end = START + 62 * SECOND;
    let steps = [
        losses(later),
        Step::Settled(later),
        losses(end),
        Step::Settled(end),
        Step::End(end),
    ];
    let file = file(&header(Callers::default(), 4_000_000), &[bytes(&steps)]);
    let file = Temporary::new("covered", &file);
    for (more, seconds) in [(&["10", "4"][..], "40.0"), (&["10"], "62.0"), (&[], "62.0")] {
        let output = tcpstate(&[&["closers", "-j", "--from", file.path()], more].concat());
        let out = text(&output.stdout);
        let summary = out.lines().last().expect("a summary");
        let expected = format!("\"seconds\":{seconds},");
        assert!(summary.contains(&expected), "{more:?}: {summary}");
    }
}

/// A list that is read at the end has those that were there before once more.
#[test]
fn info_counts_sockets_as_the_recorder_did() {
    let found = timer(TimeWaitFound, 1, START, TimeWait, 1000);
    let found = || Step::Record(found.as_bytes());
    let end = START + 1_459_426_628;
    let steps = [
        losses(end),
        found(),
        found(),
        Step::Listed,
        Step::Refresh,
        found(),
        Step::End(end),
    ];
    let file = file(&header(Callers::default(), 4_000_000), &[bytes(&steps)]);
    let file = Temporary::new("counted", &file);
    let info = shown(&["info", "-j", file.path()]);
    assert!(info.contains("\"found\":2,"), "{info}");
    // Nanoseconds, and no digits that only a computer sees.
    assert!(info.contains("\"seconds\":1.459426628,"), "{info}");
    let output = tcpstate(&["trace", "-j", "--from", file.path(), "-o", "/dev/stdout"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(out.contains("\"seconds\":1.459426628,"), "{out}");
    assert!(
        err.starts_with("tcpstate: ended\n# ") && !err.contains("\n\n"),
        "{err}"
    );
}

#[test]
fn times_of_day_are_those_of_the_reader() {
    let path = kept(1);
    let show = |zone: &str, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
            .args(["trace", "--from"])
            .arg(&path)
            .args(more)
            .env("TZ", zone)
            .output()
            .expect("tcpstate starts");
        (text(&output.stdout), text(&output.stderr))
    };
    let first = |zone: &str| {
        let (out, err) = show(zone, &["-T"]);
        assert_eq!(err, "", "{zone}");
        let time = out.lines().nth(1).expect("a row").get(..8);
        time.expect("a time").to_owned()
    };
    assert_eq!(first("UTC"), "08:00:01");
    assert_eq!(first("XYZ-5:30"), "13:30:01");
    if Path::new("/usr/share/zoneinfo/Asia/Kolkata").exists() {
        assert_eq!(first("Asia/Kolkata"), "13:30:01");
        assert_eq!(first(":Asia/Kolkata"), "13:30:01");
    }
    for name in ["Nowhere/Land", "a\u{1b}[31m"] {
        let (out, err) = show(name, &["-T", "--since", "08:00", "--until", "09:00"]);
        assert!(out.contains("\n08:00:01"), "{out}");
        assert_eq!(
            err.matches("there is no such time zone").count(),
            1,
            "{err}"
        );
        assert!(!err.contains('\u{1b}'), "{err}");
        assert_eq!(show(name, &["-j"]).1, "");
    }
}

#[test]
fn who_looks_at_another_time_is_told_which_it_is() {
    let path = kept(1);
    let told = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
            .args(["trace", "-j", "--from"])
            .arg(&path)
            .args(more)
            .env("TZ", "XYZ-5:30")
            .output()
            .expect("tcpstate starts");
        text(&output.stderr)
    };
    let late = "--since is after the recording, which is from 2027-01-15T13:30:01.000+05:30 to 2027-01-15T13:30:0";
    for more in [
        &["--since", "+1h"][..],
        &["--since", "14:00", "--until", "15:00"],
        &["--since", "14:00", "--skip-earlier"],
    ] {
        let said = told(more);
        assert!(said.contains(late), "{said}");
    }
    let said = told(&["--until", "13:00"]);
    let early = "--until is before the recording, which begins at 2027-01-15T13:30:01.000+05:30";
    assert!(said.contains(early), "{said}");
    assert_eq!(told(&["--since", "13:00", "--until", "+1h"]), "");
}

/// A list of sockets of which the beginning was passed over is not the whole list.
#[test]
fn who_skips_the_list_of_sockets_knows_only_about_how_many_there_are() {
    const SECOND: u64 = 1_000_000_000;
    let (later, end) = (START + 2 * SECOND, START + 3 * SECOND);
    let steps = [
        bytes(&[losses(START), Step::Settled(START)]),
        bytes(&[Step::Listed, losses(later), Step::Settled(later)]),
        bytes(&[losses(end), Step::Settled(end), Step::End(end)]),
    ];
    let header = header(Callers::default(), 4_000_000);
    let whole = Temporary::new("list", &file(&header, &steps));
    let later = Header { part: 2, ..header };
    let part = Temporary::new("list-part", &file(&later, &steps[1..]));
    let skip = ["--since", "+1s", "--skip-earlier"];
    for view in [
        &["states", "-j"][..],
        &["timewait", "-j"],
        &["doctor", "-j"],
    ] {
        let counts = |file: &Temporary, more: &[&str]| {
            let out = text(&tcpstate(&[view, &["--from", file.path()], more].concat()).stdout);
            (out.contains("\"exact\""), out.contains("\"about\""))
        };
        assert_eq!(counts(&whole, &["--since", "+1s"]), (true, false));
        assert_eq!(counts(&whole, &skip), (false, true), "{view:?}");
        assert_eq!(counts(&part, &[]), (false, true), "{view:?}");
    }
}

/// The parts before a part are not what it shows.
#[test]
fn what_was_lost_before_a_part_is_not_lost_in_it() {
    let header = Header {
        part: 2,
        ..header(Callers::default(), 4_000_000)
    };
    let turn = |now: u64, lost: u64| {
        let Step::Losses {
            counters, unread, ..
        } = losses(now)
        else {
            unreachable!("it is what it says");
        };
        let counters = Counters { lost, ..counters };
        Step::Losses {
            now,
            counters,
            unread,
        }
    };
    let end = START + 1_000_000_000;
    let steps = [turn(START, 5), turn(end, 7), Step::End(end), turn(end, 8)];
    let mark = Mark {
        number: 3,
        now: START,
        lost: 5,
        ..Mark::default()
    };
    let mut writer = Writer::new(Vec::new(), &header).expect("memory");
    writer.steps(&mark, &bytes(&steps)).expect("memory");
    let mark = Mark { number: 4, ..mark };
    let part = Temporary::new("part", &writer.finish(&mark).expect("memory").0);
    let out = text(&tcpstate(&["trace", "-j", "--from", part.path()]).stdout);
    let summary = out.lines().last().expect("a summary");
    assert!(summary.contains("\"ring_full\":3,"), "{summary}");
}

/// Waits until it has taken the signal, which it is sent while it waits for who reads its output.
fn interrupt(tool: &Child) {
    let pid = i32::try_from(tool.id()).expect("a process id");
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGINT).expect("it is there");
    let waits = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        pending
            .expect("a line")
            .trim()
            .bytes()
            .any(|digit| digit != b'0')
    };
    while waits() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_signal_ends_the_reading_in_order() {
    let scale = Scale {
        connections: 2000,
        events: 60_000,
        seed: 1,
    };
    let folder = Folder::new("signal");
    let recording = folder.recording("a.tcps", &generate(scale, Vec::new()).expect("memory"));
    for (arguments, code) in [
        (&["trace", "-j", "--from", &recording][..], 0),
        (&["export", &recording, "--to", "jsonl"], 130),
    ] {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("tcpstate starts");
        let mut out = tool.stdout.take().expect("a pipe");
        let mut shown = vec![0];
        out.read_exact(&mut shown).expect("output");
        interrupt(&tool);
        out.read_to_end(&mut shown).expect("output");
        let shown = text(&shown);
        let last = shown.lines().last().expect("a summary");
        assert!(last.contains("\"summary\""), "{last}");
        assert!(last.ends_with("\"interrupted\":true}"), "{last}");
        assert_eq!(tool.wait().expect("it ends").code(), Some(code));
    }
    // What is half of an export goes; what was there stays.
    let tables = folder.path("tables");
    let pipe = format!("{tables}/transitions.csv");
    fs::create_dir(&tables).expect("a folder");
    nix::unistd::mkfifo(Path::new(&pipe), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut tool = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args(["export", &recording, "--to", "csv", "-o", &tables])
        .stderr(Stdio::piped())
        .spawn()
        .expect("tcpstate starts");
    let mut out = fs::File::open(&pipe).expect("the pipe");
    out.read_exact(&mut [0]).expect("output");
    assert!(Path::new(&tables).join("connections.csv").exists());
    interrupt(&tool);
    std::io::copy(&mut out, &mut std::io::sink()).expect("output");
    let mut said = String::new();
    let mut messages = tool.stderr.take().expect("a pipe");
    messages.read_to_string(&mut said).expect("text");
    assert_eq!(tool.wait().expect("it ends").code(), Some(130), "{said}");
    assert!(said.contains("nothing is exported"), "{said}");
    let left = fs::read_dir(&tables).expect("the folder").count();
    assert_eq!(left, 1, "only the pipe");
}

/// What a terminal has no room for, a file has.
#[test]
fn nothing_is_cut_where_there_is_room() {
    let scale = Scale {
        connections: 300,
        events: 3000,
        seed: 3,
    };
    let file = Temporary::new("room", &generate(scale, Vec::new()).expect("memory"));
    let show = |columns: Option<&str>, more: &[&str]| {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        tool.args([&more[..1], &["--from", file.path()], &more[1..]].concat());
        tool.env_remove("COLUMNS");
        if let Some(columns) = columns {
            tool.env("COLUMNS", columns);
        }
        text(&tool.output().expect("tcpstate starts").stdout)
    };
    let cut = |text: &str| {
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        rows.filter(|line| line.contains('+')).count()
    };
    let views = [
        ("76", &["conns"][..]),
        ("76", &["trace"]),
        (
            "60",
            &[
                "closers",
                "--by",
                "process,service,cgroup,remote",
                "--top",
                "3",
            ],
        ),
    ];
    for (columns, view) in views {
        for columns in [None, Some("300"), Some("0"), Some("wide")] {
            assert_eq!(cut(&show(columns, view)), 0, "{columns:?}: {view:?}");
        }
        let narrow = show(Some(columns), view);
        assert!(cut(&narrow) > 0, "{narrow}");
        // What we call a sum is no name.
        let sums = narrow.lines().filter(|line| line.starts_with("others"));
        assert!(sums.clone().all(|line| line.contains(") ")), "{narrow}");
        assert_eq!(sums.count(), usize::from(view[0] == "closers"));
    }
    let longest = |columns| {
        let diagnosis = show(columns, &["doctor"]);
        diagnosis.lines().map(|line| line.chars().count()).max()
    };
    assert!(longest(None).is_some_and(|longest| longest <= 80));
    assert!(longest(Some("95")).is_some_and(|longest| (81..=95).contains(&longest)));
}

/// A slip of the hand, `--from X -o X`, must not cost the recording.
#[test]
fn no_output_goes_over_a_recording() {
    let whole = of_fixture("late_fin.bin");
    let folder = Folder::new("over");
    let read = folder.recording("read.tcps", &whole);
    let other = folder.recording("other.tcps", &whole[..100]);
    let part = folder.recording("rotated.000003.tcps", &whole);
    let (soft, hard) = (folder.path("soft"), folder.path("hard"));
    std::os::unix::fs::symlink(&read, &soft).expect("a link");
    fs::hard_link(&read, &hard).expect("a link");
    let rotated = folder.path("rotated.tcps");
    for (from, output) in [
        (&read, &read),
        (&read, &soft),
        (&soft, &read),
        (&read, &hard),
        (&read, &other),
        (&part, &part),
        (&rotated, &part),
        (&rotated, &rotated),
    ] {
        for view in [&["trace", "-j"][..], &["closers", "-s", "1"]] {
            let message = refused(&[view, &["--from", from, "-o", output]].concat());
            assert!(message.contains("it is a recording"), "{message}");
        }
        let message = refused(&["export", from, "--to", "jsonl", "-o", output]);
        assert!(message.contains("it is there already"), "{message}");
        let message = refused(&["trace", "--record", output]);
        assert!(message.contains("it is there already"), "{message}");
    }
    for path in [&read, &part] {
        assert_eq!(fs::read(path).expect("the file"), whole);
    }
    let text = folder.recording("text", b"what it was before");
    assert!(shown(&["trace", "-j", "--from", &read, "-o", &text]).is_empty());
    assert!(fs::read(&text).expect("the file").starts_with(b"{"));
}

#[test]
fn nothing_is_recorded_over() {
    let there = Temporary::new("there", b"something");
    for arguments in [
        &["record", there.path()][..],
        &["trace", "--record", there.path()],
        &["record", "--rotate", "1M,2", there.path()],
    ] {
        let output = tcpstate(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("it is there already"), "{message}");
    }
    assert_eq!(fs::read(&there.0).expect("the file"), b"something");
    let output = tcpstate(&["record", "--pid", "1", "x.tcps"]);
    assert!(text(&output.stderr).contains("when you look at the recording"));
}

/// Parts of a recording: a second of each, in a block.
fn parts(folder: &Folder, name: &str, id: u64) -> Vec<PathBuf> {
    const SECOND: u64 = 1_000_000_000;
    let part = |number: u32| {
        let begins = START + u64::from(number - 1) * SECOND;
        let steps = [losses(begins + SECOND - 1)];
        let header = Header {
            id,
            part: number,
            begins,
            ..header(Callers::default(), 4_000_000)
        };
        let mark = |number: u32, now| Mark {
            number: number.into(),
            now,
            ..Mark::default()
        };
        let mut writer = Writer::new(Vec::new(), &header).expect("memory");
        let block = mark(number - 1, begins);
        writer.steps(&block, &bytes(&steps)).expect("memory");
        let end = mark(number, begins + SECOND);
        let (bytes, _) = writer.finish(&end).expect("memory");
        folder.recording(&format!("{name}.{number:06}.tcps"), &bytes)
    };
    (1..=5).map(|number| part(number).into()).collect()
}

#[test]
fn what_is_wrong_with_a_part_is_told_of_that_part() {
    let folder = Folder::new("parts");
    let whole = folder.path("a.tcps");
    let files = parts(&folder, "a", 1);
    let foreign = parts(&folder, "b", 2);
    let views: [&[&str]; 3] = [
        &["info"],
        &["trace", "-j", "--from"],
        &[
            "trace",
            "-j",
            "--since",
            "+3500ms",
            "--skip-earlier",
            "--from",
        ],
    ];
    let told = |views: &[&[&str]], path: &Path, why: &str| {
        for view in views {
            let message = refused(&[*view, &[whole.as_str()]].concat());
            let path = path.to_str().expect("text");
            assert!(
                message.contains(&format!("{path}: ")),
                "{view:?}: {message}"
            );
            assert!(message.contains(why), "{view:?}: {message}");
        }
    };
    let info = text(&tcpstate(&["info", &whole]).stdout);
    assert!(info.contains("\nparts             5\n"), "{info}");
    for view in &views[..2] {
        assert_ne!(
            tcpstate(&[*view, &[whole.as_str()]].concat()).status.code(),
            Some(2)
        );
    }
    let second = fs::read(&files[1]).expect("a part");
    fs::write(&files[1], b"").expect("a file");
    told(&views, &files[1], "it is empty");
    fs::write(&files[1], &second[..100]).expect("a file");
    told(&views, &files[1], "cut off at byte");
    fs::remove_file(&files[1]).expect("a file");
    fs::create_dir(&files[1]).expect("a folder");
    told(&views, &files[1], "it is a directory");
    fs::remove_dir(&files[1]).expect("a folder");
    fs::copy(&foreign[1], &files[1]).expect("a file");
    told(&views, &files[1], "it belongs to another recording");

    fs::remove_file(&files[1]).expect("a file");
    let hint = format!("part 2 is missing; `--from {}` shows", files[2].display());
    told(&views[..2], &files[2], &hint);
    fs::remove_file(&files[2]).expect("a file");
    told(&views[..2], &files[3], "parts 2 to 3 are missing");
    // Who does not want what is missing does not miss it.
    let output = tcpstate(&[views[2], &[whole.as_str()]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}

#[test]
fn parts_are_found_by_any_name() {
    let folder = Folder::new("names");
    let files = parts(&folder, "a", 1);
    let name = |end: &[u8]| Path::new(&folder.path("")).join(OsStr::from_bytes(end));
    fs::rename(&files[0], name(b"\xff.000001.tcps")).expect("a part");
    fs::rename(&files[1], name(b"\xff.000002.tcps")).expect("a part");
    let output = Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args([OsStr::new("info"), name(b"\xff.tcps").as_os_str()])
        .output()
        .expect("tcpstate starts");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
}

/// Checksums do not tell what no recorder writes; `info` and the views tell the same of it.
#[test]
fn what_no_recorder_writes_is_damage_to_all() {
    let header = || header(Callers::default(), 4_000_000);
    let record = |time| {
        bytes(&[Step::Record(
            record(1, time, Established, CloseWait).as_bytes(),
        )])
    };
    let late = START + 1000;
    let of = |steps: &[Step<'_>]| file(&header(), &[bytes(steps)]);
    let mut begins = Writer::new(Vec::new(), &header()).expect("memory");
    begins
        .steps(&Mark::default(), &bytes(&[losses(late)]))
        .expect("memory");
    let (begins, _) = begins.finish(&Mark::default()).expect("memory");
    let mut far = of(&[losses(late), Step::End(late)]);
    let trailer = far.len() - 16;
    let index = u64::from_le_bytes(*far[trailer..].first_chunk().expect("a trailer"));
    let index = usize::try_from(index).expect("small");
    let mut entry = far[index + HEAD..trailer].to_vec();
    entry[7] = 0x80;
    far.truncate(index);
    far.extend(block(3, 0, 16, &entry));
    far.extend((index as u64).to_le_bytes());
    far.extend(crc32fast::hash(&(index as u64).to_le_bytes()).to_le_bytes());
    far.extend(b"tcpE");
    for (file, why) in [
        (of(&[losses(late), Step::End(u64::MAX)]), "another time"),
        (of(&[losses(late), Step::End(START - 1)]), "another time"),
        (
            of(&[losses(late), Step::End(late), Step::End(late)]),
            "ends twice",
        ),
        (
            of(&[losses(late), losses(late - 1)]),
            "earlier than the one before",
        ),
        (
            file(
                &header(),
                &[[bytes(&[losses(late)]), record(late + 1)].concat()],
            ),
            "younger",
        ),
        (
            file(
                &header(),
                &[[bytes(&[losses(late), Step::End(late)]), record(late)].concat()],
            ),
            "after the end",
        ),
        (begins, "before the recording begins"),
        (far, "the index is not that"),
    ] {
        let file = Temporary::new("never", &file);
        for view in [
            &["info"][..],
            &["trace", "-j", "--from"],
            &["trace", "-j", "--since", "+10s", "--skip-earlier", "--from"],
        ] {
            let message = refused(&[view, &[file.path()]].concat());
            assert!(message.contains("damaged at byte "), "{view:?}: {message}");
            assert!(message.contains(why), "{view:?}: {message}");
        }
    }
}
