//! The recordings that `cargo xtask generate` makes.

use std::io::Cursor;

use tcpstate_user::{
    event::Event,
    recording::{Reader, Step},
};

use crate::machine::lives::{Scale, generate};

const SCALE: Scale = Scale {
    connections: 300,
    events: 20_000,
    seed: 7,
};

fn bytes(scale: Scale) -> Vec<u8> {
    generate(scale, Vec::new()).expect("memory")
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let first = bytes(SCALE);
    assert_eq!(first, bytes(SCALE));
    assert_ne!(first, bytes(Scale { seed: 8, ..SCALE }));
}

#[test]
fn as_many_events_as_asked_for_and_none_that_could_not_be() {
    let file = bytes(SCALE);
    let mut reader = Reader::new(Cursor::new(&file)).expect("a recording");
    let (mut events, mut listeners, mut time) = (0, 0, 0);
    while reader.next_block().expect("a block").is_some() {
        let mut steps = reader.steps();
        while let Some(step) = steps.step() {
            let Step::Record(record) = step.expect("a step") else {
                continue;
            };
            let event = Event::decode(record).expect("a record");
            assert!(time <= event.time());
            time = event.time();
            match event {
                Event::Socket(_) => listeners += 1,
                _ => events += 1,
            }
        }
    }
    assert_eq!((events, listeners), (SCALE.events, 4));
}

#[test]
fn nothing_is_missing_in_the_lives_that_are_shown() {
    let path = std::env::temp_dir().join(format!("tcpstate-generated-{}", std::process::id()));
    std::fs::write(&path, bytes(SCALE)).expect("a file");
    let tool = std::process::Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args(["conns", "-j", "--from"])
        .arg(&path)
        .output();
    std::fs::remove_file(&path).expect("the file");
    let out = String::from_utf8(tool.expect("tcpstate starts").stdout).expect("UTF-8");
    let lines = out.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line
    });
    let (connections, others): (Vec<_>, Vec<_>) =
        lines.partition(|line| line["event"] == "connection");
    assert!(connections.len() > 1000, "{}", connections.len());
    let summary = others.last().expect("a summary");
    assert_eq!(summary["damaged"], 0);
    for way in ["fin", "rst_sent", "rst_received", "refused", "timeout"] {
        assert!(connections.iter().any(|line| line["how"] == way), "{way}");
    }
}
