//! Every field that comes out of `-j` is in `docs/formats.md`, and what is there comes out.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::exports::{Folder, made_up, tcpstate};

/// Everything that a recording can be asked.
const COMMANDS: [&[&str]; 11] = [
    &["trace"],
    &["conns", "--running"],
    &["closers"],
    &[
        "closers",
        "--by",
        "pid,cgroup,container,uid,netns,listener,service,remote,cidr",
    ],
    &["hist"],
    &["timewait"],
    &["states"],
    &["states", "--by", "state"],
    &["states", "--leaks", "--older", "0"],
    &["states", "--leaks", "--older", "0", "--by", "process"],
    &["doctor"],
];

/// What no recording without system calls has, what only a signal or `probe` tells, and words in the first column that are no fields.
const ELSEWHERE: [&str; 20] = [
    "failed_binds",
    "interrupted",
    "address",
    "port",
    "chosen",
    "costs",
    "cannot_see",
    "hook",
    "hooks",
    "loses",
    "lockdown",
    "missing_capabilities",
    "observer",
    "reason",
    "system_calls",
    "timewait",
    "timewait_observers",
    "what",
    "works",
    "process",
];

fn fields(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                all.insert(name.clone());
                // Names of settings are not ours.
                if name != "values" {
                    fields(value, all);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, all)),
        _ => {}
    }
}

/// Words in backticks.
fn words(text: &str) -> impl Iterator<Item = String> {
    let name = |word: &&str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        !word.is_empty() && word.bytes().all(fits)
    };
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(name)
        .map(str::to_owned)
}

#[test]
fn every_field_is_documented_and_there() {
    let folder = Folder::new("documented");
    let recordings = [
        folder.recording("whole.tcps", &made_up(0)),
        folder.recording("lossy.tcps", &made_up(20)),
    ];
    let mut all = BTreeSet::new();
    for recording in &recordings {
        let views = COMMANDS.map(|command| [command, &["-j", "--from", recording]].concat());
        for command in views
            .iter()
            .map(Vec::as_slice)
            .chain([&["info", "-j", recording][..]])
        {
            let output = tcpstate(command);
            let lines = String::from_utf8(output.stdout).expect("UTF-8");
            assert!(!lines.is_empty(), "{command:?}");
            for line in lines.lines() {
                fields(&serde_json::from_str(line).expect("JSON"), &mut all);
            }
        }
    }
    // In the text it stands with its value.
    all.remove("event");
    let text = include_str!("../../../docs/formats.md");
    let anywhere: BTreeSet<_> = text.lines().flat_map(words).collect();
    let unknown: Vec<_> = all.difference(&anywhere).collect();
    assert!(unknown.is_empty(), "not in docs/formats.md: {unknown:?}");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let named: BTreeSet<_> = rows
        .filter_map(|row| row.split_once(" | "))
        .flat_map(|(first, _)| words(first))
        .collect();
    assert!(named.len() > 100, "{}", named.len());
    let gone = named.difference(&all);
    let gone: Vec<_> = gone
        .filter(|name| !ELSEWHERE.contains(&name.as_str()))
        .collect();
    assert!(gone.is_empty(), "nowhere in the output: {gone:?}");
}
