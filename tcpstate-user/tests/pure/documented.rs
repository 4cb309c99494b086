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

/// Rows of a table of `docs/formats.md`: the names in its first column, and its meaning.
fn rows(heading: &str) -> Vec<(Vec<String>, &'static str)> {
    let text = include_str!("../../../docs/formats.md");
    let (_, section) = text.split_once(heading).expect("its heading");
    let (section, _) = section.split_once("\n## ").expect("another one below");
    let cells = |line: &'static str| Some((line.split_once(" | ")?.0, line.rsplit_once(" | ")?.1));
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    let rows = lines.filter_map(cells);
    rows.map(|(names, meaning)| (words(names).collect(), meaning))
        .collect()
}

fn columns(command: &str) -> Vec<String> {
    let folder = Folder::new(&format!("columns-{command}"));
    let recording = folder.recording("whole.tcps", &made_up(0));
    let output = tcpstate(&[command, "-s", "--from", &recording]).stdout;
    let rows = String::from_utf8(output).expect("UTF-8");
    let header = rows.lines().next().expect("a header");
    header.split(',').map(str::to_owned).collect()
}

#[test]
fn columns_of_transitions_are_documented_in_their_order() {
    let rows = rows("## `\"event\": \"transition\"`");
    let documented: Vec<_> = rows.into_iter().flat_map(|(names, _)| names).collect();
    assert_eq!(documented, columns("trace"));
}

#[test]
fn columns_of_connections_are_documented_in_their_order() {
    let columns = columns("conns");
    let mut names: Vec<_> = columns
        .iter()
        .map(|column| column.split('.').next().expect("a name"))
        .collect();
    names.dedup();
    let rows = rows("## `\"event\": \"connection\"`");
    let documented: Vec<_> = rows.iter().flat_map(|(names, _)| names).collect();
    assert_eq!(documented, names);

    let members = |object: &str| -> Vec<&str> {
        let start = format!("{object}.");
        let members = columns.iter().filter_map(|name| name.strip_prefix(&start));
        members.collect()
    };
    // Where both have the same columns, they are told with the first.
    assert_eq!(members("bounds"), members("states"));
    assert_eq!(members("closer"), members("owner"));
    for object in ["states", "time_wait", "owner"] {
        let row = rows.iter().find(|(names, _)| names == &[object]);
        let mut told = words(row.expect("a row").1);
        for member in members(object) {
            assert!(told.any(|word| word == member), "{object}.{member}");
        }
    }
}
