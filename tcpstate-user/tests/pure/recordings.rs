//! Recordings as files: what is written is read again, and whatever else is in a file is told, never believed.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proptest::prelude::*;
use tcpstate_common::{
    record::{SocketRecord, TimeWaitRecord, TransitionRecord},
    state::TcpState::{CloseWait, Established},
};
use tcpstate_user::{
    kernel::{Counters, Hook, TimeWaitHook},
    lifecycle::Callers,
    recording::{Block, FORMAT, Header, LAYOUT, Mark, ReadError, Reader, Step, Writer},
};
use zerocopy::IntoBytes as _;

use crate::{exports::refused, records::record};

/// Where the times of the recordings in `tests/fixtures/records` begin.
pub const START: u64 = 1_000_000_000;

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
        counters: Counters::default(),
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

pub fn changed(name: &str, change: impl FnOnce(Header) -> Header) -> Vec<u8> {
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
pub fn read(file: &[u8]) -> (Vec<Vec<u8>>, Option<ReadError>) {
    let mut blocks = Vec::new();
    let mut reader = match Reader::new(Cursor::new(file)) {
        Ok(reader) => reader,
        Err(error) => return (blocks, Some(error)),
    };
    loop {
        match reader.next_block() {
            Ok(None) => return (blocks, None),
            Err(error) => return (blocks, Some(error)),
            Ok(Some(Block { offset, .. })) => {
                let mut block = Vec::new();
                let mut steps = reader.steps();
                while let Some(step) = steps.step() {
                    let Ok(step) = step else {
                        let what = "no step";
                        return (blocks, Some(ReadError::Damaged { offset, what }));
                    };
                    step.write(&mut block);
                }
                blocks.push(block);
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
        (block(2, 2, 4, b"more"), "no step"),
        (block(2, 4, 4, b"more"), "no step"),
        (block(2, 2, 4000, &again), "no step"),
        (block(2, 4, 4000, &again), "no step"),
        (block(2, 5, 4000, &packed), "another length"),
        (block(2, 6, 4, b"more"), "no such way of packing"),
        (block(2, 8, 4, b"more"), "no such way of packing"),
        (block(3, 4, 4, b"more"), "no such way of packing"),
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
        "it has format 9, and this tcpstate reads up to 3: use tcpstate 3.1.0 or later"
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
        let mut steps = reader.steps();
        let mut count = 0;
        while steps.step().is_some() {
            count += 1;
        }
        prop_assert!(count <= body.len());
    }
}

/// A file that is gone when the test is.
pub struct Temporary(PathBuf);

impl Temporary {
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        let name = format!("tcpstate-pure-{}-{name}.tcps", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).expect("a file");
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("text")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub fn tcpstate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args(arguments)
        .output()
        .expect("tcpstate starts")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it shows of a recording that is whole.
pub fn shown(arguments: &[&str]) -> String {
    let output = tcpstate(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The file in which a format is kept: it must be read for ever, and shown as it always was.
pub fn kept(number: u32) -> PathBuf {
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
