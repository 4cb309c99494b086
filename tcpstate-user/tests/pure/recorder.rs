//! Making the files of a recording: what they never go over, and what others may do to them meanwhile.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tcpstate_user::{
    lifecycle::Callers,
    recording::{Astray, Recorded, Rotation, Step, Tape, part_name},
};

use crate::exports::{Folder, refused};
use crate::recordings::{Temporary, header, of_fixture, read, shown, tcpstate, text};

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
    assert_eq!(fs::read(there.path()).expect("the file"), b"something");
    let output = tcpstate(&["record", "--pid", "1", "x.tcps"]);
    assert!(text(&output.stderr).contains("when you look at the recording"));
}
