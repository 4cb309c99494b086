//! The parts of a rotated recording.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tcpstate_user::{
    kernel::Counters,
    lifecycle::Callers,
    recording::{Header, Mark, Step, Writer},
};

use crate::exports::{Folder, refused};
use crate::recordings::{START, Temporary, bytes, header, losses, tcpstate, text};

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
