//! Exports: files that others read. Perfetto's own trace processor opens the traces; what it says is compared with what the views
//! show of the same recording.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proptest::{
    collection::vec,
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use serde_json::{Map, Value, json};
use tcpstate_common::{
    record::RecordKind,
    state::TcpState::{Close, FinWait1, FinWait2, TimeWait},
};
use tcpstate_user::{
    lifecycle::Callers,
    recording::{Header, Step},
};

use zerocopy::IntoBytes as _;

use crate::{
    machine::lives::{Scale, generate},
    recordings::{bytes, file, header, losses, of_fixture},
    records::{MS, TICK, record, timer},
    story::{START, SYMBOLS, Story, plot},
};

/// A folder that is gone when the test is.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let name = format!("tcpstate-exports-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }

    pub fn recording(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn tcpstate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpstate"))
        .args(arguments)
        .output()
        .expect("tcpstate starts")
}

pub fn shown(arguments: &[&str]) -> String {
    let output = tcpstate(arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {message}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Standard error of a call that fails.
pub fn refused(arguments: &[&str]) -> String {
    let output = tcpstate(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

pub fn lines(text: &str) -> Vec<Value> {
    let line = |line| serde_json::from_str(line).expect("JSON");
    text.lines().map(line).collect()
}

/// The connections that a view shows of it.
pub fn connections(recording: &str) -> Vec<Value> {
    let mut all = lines(&shown(&["conns", "-j", "--running", "--from", recording]));
    all.retain(|line| line["event"] == "connection");
    all
}

/// The Python of `cargo xtask setup`, or why there is none.
pub fn python(test: &str) -> Option<PathBuf> {
    let python = std::env::var_os("TCPSTATE_PYTHON").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python3"),
        PathBuf::from,
    );
    if python.exists() {
        return Some(python);
    }
    eprintln!("{test}: skipped for want of Python packages, which `cargo xtask setup` installs");
    None
}

/// What a script of `tests/python` prints.
pub fn script(python: &Path, name: &str, arguments: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let output = Command::new(python)
        .arg(script.join(name))
        .args(arguments)
        .output()
        .expect("Python starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {message}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Every fixture of real kernels.
fn fixtures() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/records");
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("the fixtures")
        .map(|entry| entry.expect("a file").file_name())
        .map(|name| name.into_string().expect("text"))
        .collect();
    names.sort();
    names
}

/// Many made-up lives, of whose records some are lost.
pub fn made_up(lose: u64) -> Vec<u8> {
    let mut runner = TestRunner::deterministic();
    let plots = vec(plot(), 300).new_tree(&mut runner).expect("plots");
    let story = Story::of(&plots.current());
    let end = story.sent.last().expect("records").time + MS;
    let mut blocks = Vec::new();
    for (number, some) in story.sent.chunks(500).enumerate() {
        let mut counted = losses(some.last().expect("some").time);
        if let Step::Losses { counters, .. } = &mut counted {
            counters.lost = number as u64 * lose;
        }
        let mut steps = vec![counted];
        let arrives = |number: &usize| lose == 0 || number % 7 != 3;
        let kept = some
            .iter()
            .enumerate()
            .filter(|(number, _)| arrives(number));
        steps.extend(kept.map(|(_, sent)| Step::Record(&sent.bytes)));
        blocks.push(bytes(&steps));
    }
    blocks.push(bytes(&[losses(end), Step::Settled(end), Step::End(end)]));
    let header = Header {
        start: START,
        begins: START,
        ..header(Callers::parse(SYMBOLS), TICK)
    };
    file(&header, &blocks)
}

/// Lives of many connections of some servers and clients.
fn generated() -> Vec<u8> {
    let scale = Scale {
        connections: 100,
        events: 4000,
        seed: 7,
    };
    generate(scale, Vec::new()).expect("memory")
}

/// Without what is not known, as in annotations.
fn known(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let known = fields.iter().filter(|(name, _)| *name != "event");
            let known = known.map(|(name, value)| (name.clone(), known_value(value)));
            let known: Map<_, _> = known.filter(|(_, value)| !is_nothing(value)).collect();
            Value::Object(known)
        }
        other => other.clone(),
    }
}

fn known_value(value: &Value) -> Value {
    known(value)
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

fn nanoseconds(seconds: &Value) -> u64 {
    let seconds = seconds.as_f64().expect("seconds");
    std::time::Duration::from_secs_f64(seconds)
        .as_nanos()
        .try_into()
        .expect("not so long")
}

pub fn time(text: &Value) -> i128 {
    let time: jiff::Timestamp = text.as_str().expect("text").parse().expect("a time");
    time.as_nanosecond()
}

/// Whether the trace processor says what the view says.
fn compare(trace: &Value, connections: &[Value], what: &str) {
    assert_eq!(trace["wrong"], json!([]), "{what}");
    let slices = trace["slices"].as_array().expect("slices");
    let mut lives: Vec<_> = slices
        .iter()
        .filter(|slice| slice["track"]["name"] != "tcpstate")
        .collect();
    assert_eq!(lives.len(), connections.len(), "{what}");
    for connection in connections {
        let about = known(connection);
        let place = lives.iter().position(|life| life["about"] == about);
        assert!(place.is_some(), "{what}: not in the trace: {connection}");
        let life = lives.swap_remove(place.expect("it is there"));
        compare_connection(life, connection, what);
    }
}

fn compare_connection(life: &Value, connection: &Value, what: &str) {
    for (edge, name) in [("time", "start"), ("until", "end")] {
        if !connection[name].is_null() {
            let at = i128::from(life[edge].as_u64().expect("a time"));
            assert_eq!(at, time(&connection[name]), "{what}: {connection}");
        }
    }
    let inner = life["slices"].as_array().expect("slices");
    // What happened in a state lies within its slice, or at its beginning.
    let moments = inner
        .iter()
        .filter(|slice| is_moment(slice))
        .chain(inner.iter().flat_map(below));
    for moment in moments {
        assert!(is_moment(moment), "{what}: {moment}");
        assert_eq!((&moment["dur"], below(moment)), (&json!(0), &[][..]));
    }
    let states: Vec<_> = inner.iter().filter(|slice| !is_moment(slice)).collect();
    let mut end = life["ts"].as_u64();
    for state in &states {
        // One behind the other.
        assert_eq!(state["depth"], 1, "{what}");
        assert!(state["ts"].as_u64() >= end, "{what}: {life}");
        let length = state["dur"].as_u64().expect("it ends");
        end = state["ts"].as_u64().map(|begin| begin + length);
        // As long as the state was, or it says that it is not; in the state's colour all the same.
        let (name, about) = (state["name"].as_str().expect("a name"), &state["about"]);
        let marked = name.contains('(');
        assert_eq!(marked, about["bound"] != "exact", "{what}: {state}");
        if !marked {
            assert_eq!(length, nanoseconds(&about["seconds"]), "{what}: {state}");
        }
        assert_eq!(state["colour"], first_word(name), "{what}");
    }
    let life_ends = life["ts"].as_u64().expect("a time") + life["dur"].as_u64().expect("it ends");
    assert!(end <= Some(life_ends), "{what}: {life}");
    // The last of each state is the one that the view knows.
    let spent = connection["states"].as_object().expect("states");
    for (name, seconds) in spent.iter().filter(|(_, seconds)| !seconds.is_null()) {
        let of_state = |state: &&&Value| state["colour"] == name.to_uppercase();
        let last = states.iter().rfind(of_state);
        let last = last.map(|last| &last["about"]["seconds"]);
        assert_eq!(last, Some(seconds), "{what}: {connection}");
    }
    let track = &life["track"];
    let ends = [&connection["lport"], &connection["rport"]];
    let name = track["name"].as_str().expect("a name");
    assert!(ends.iter().all(|port| name.contains(&format!(":{port}"))));
    assert_eq!(track["ordering"], "chronological", "{what}");
    let process = [&connection["owner"], &connection["closer"]]
        .into_iter()
        .find(|process| !process.is_null());
    match process {
        None => assert_eq!(track["above"], "unknown process", "{what}"),
        Some(process) if track["pid"].is_null() => {
            let (comm, pid) = (process["comm"].as_str().expect("text"), &process["pid"]);
            assert_eq!(track["above"], format!("{comm} {pid}"), "{what}");
        }
        Some(process) => {
            assert_eq!(track["above"], "TCP connections", "{what}");
            assert_eq!(track["pid"], process["pid"], "{what}");
            assert_eq!(track["process"], process["comm"], "{what}");
        }
    }
}

fn below(slice: &Value) -> &[Value] {
    slice["slices"].as_array().expect("slices")
}

fn first_word(name: &str) -> &str {
    name.split(' ').next().expect("a word")
}

/// Whether it stands for what happened in a state that went on.
fn is_moment(slice: &Value) -> bool {
    let name = slice["name"].as_str().expect("a name");
    slice["about"]["to"] == first_word(name).to_lowercase()
}

#[test]
fn a_trace_says_what_the_view_says() {
    let Some(python) = python("a_trace_says_what_the_view_says") else {
        return;
    };
    let folder = Folder::new("perfetto");
    let mut all: Vec<_> = fixtures()
        .into_iter()
        .map(|name| (of_fixture(&name), name))
        .collect();
    all.push((made_up(0), "made-up lives".to_owned()));
    all.push((made_up(70), "made-up lives with losses".to_owned()));
    all.push((generated(), "lives of servers".to_owned()));
    let (mut compared, mut moments) = (0, 0);
    for (bytes, name) in all {
        let recording = folder.recording(&format!("{name}.tcps"), &bytes);
        let connections = connections(&recording);
        let output = folder.path(&format!("{name}.pftrace"));
        shown(&["export", &recording, "--to", "perfetto", "-o", &output]);
        let trace = script(&python, "perfetto_trace.py", &[&output]);
        compare(&trace, &connections, &name);
        compared += connections.len();
        moments += trace.to_string().matches("minisocket takes over").count();
        let of_run = |what: &str| {
            below(&trace)
                .iter()
                .filter(|slice| slice["name"] == what)
                .count()
        };
        assert_eq!(of_run("recording begins"), 1, "{name}");
        assert_eq!(of_run("summary"), 1, "{name}");
        assert_eq!(of_run("LOST") > 0, name.contains("losses"), "{name}");
    }
    assert!(compared > 500, "{compared}");
    assert!(moments > 10, "{moments}");
}

/// The questions that a section of docs/export.md asks in SQL.
fn documented_questions(section: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/export.md");
    let text = fs::read_to_string(path).expect("the document");
    let (_, section) = text.split_once(section).expect("the section");
    let section = section.split("\n## ").next().expect("its end");
    let lines = section.lines().filter(|line| line.starts_with("    "));
    let code: Vec<_> = lines.skip_while(|line| !line.contains("--")).collect();
    let questions = code.join("\n");
    let questions = questions.split_terminator(';').map(str::to_owned);
    questions.collect()
}

#[test]
fn a_trace_answers_what_the_document_asks() {
    let Some(python) = python("a_trace_answers_what_the_document_asks") else {
        return;
    };
    let folder = Folder::new("questions");
    let recording = folder.recording("a.tcps", &generated());
    let connections = connections(&recording);
    let output = folder.path("a.pftrace");
    shown(&["export", &recording, "--to", "perfetto", "-o", &output]);
    let questions = documented_questions("## `perfetto`");
    let mut answers = questions.iter().map(|question| {
        let rows = script(&python, "perfetto_trace.py", &[&output, question]);
        rows.as_array().expect("rows").clone()
    });

    let time_waits = answers.next().expect("the first question");
    assert!(!time_waits.is_empty());
    for row in time_waits {
        let of_process = |connection: &&Value| {
            let process = match &connection["owner"] {
                Value::Null => &connection["closer"],
                owner => owner,
            };
            process["comm"] == row["name"] && process["pid"] == row["pid"]
        };
        let some = connections.iter().filter(of_process);
        let time_waits = some.filter(|connection| !connection["time_wait"].is_null());
        assert_eq!(row["count(*)"], time_waits.count(), "{row}");
    }

    let resets = answers.next().expect("the second question");
    let reset = |connection: &&Value| {
        let how = connection["how"].as_str();
        how.is_some_and(|how| how.starts_with("rst_"))
    };
    assert_eq!(resets.len(), connections.iter().filter(reset).count());
    assert!(!resets.is_empty());
    assert!(answers.next().is_none());
}

#[test]
fn lines_and_tables_are_those_of_the_views() {
    let folder = Folder::new("lines");
    let recording = folder.recording("a.tcps", &made_up(70));
    let exported = shown(&["export", &recording, "--to", "jsonl"]);
    let of_kind = |text: &str, kind: &str| -> Vec<String> {
        let start = format!("{{\"event\":\"{kind}\"");
        let some = text.lines().filter(|line| line.starts_with(&start));
        some.map(str::to_owned).collect()
    };
    let trace = shown(&["trace", "-j", "--from", &recording]);
    let conns = shown(&["conns", "-j", "--running", "--from", &recording]);
    assert_eq!(
        of_kind(&exported, "transition"),
        of_kind(&trace, "transition")
    );
    assert_eq!(
        of_kind(&exported, "connection"),
        of_kind(&conns, "connection")
    );
    assert_eq!(of_kind(&exported, "loss"), of_kind(&trace, "loss"));
    assert!(of_kind(&exported, "loss").len() > 1);
    assert_eq!(of_kind(&exported, "summary").len(), 1);

    let tables = folder.path("tables");
    assert!(shown(&["export", &recording, "--to", "csv", "-o", &tables]).is_empty());
    let table = |name: &str| fs::read_to_string(Path::new(&tables).join(name)).expect("a table");
    assert_eq!(
        table("transitions.csv"),
        shown(&["trace", "-s", "--from", &recording])
    );
    assert_eq!(
        table("connections.csv"),
        shown(&["conns", "-s", "--running", "--from", &recording])
    );
    // Filters and times mean what they mean to the views.
    let port = connections(&recording)[20]["lport"].to_string();
    let only = ["-L", &port, "--since", "+1s", "--until", "+400s"];
    let some = shown(&[&["export", &recording, "--to", "jsonl"], &only[..]].concat());
    let view = shown(&[&["trace", "-j", "--from", &recording], &only[..]].concat());
    assert!(!of_kind(&view, "transition").is_empty());
    assert_eq!(of_kind(&some, "transition"), of_kind(&view, "transition"));
}

/// What a last look at minisockets tells is in both tables; a trace takes none.
#[test]
fn tables_know_of_the_last_look_at_minisockets() {
    use RecordKind::{TimeWaitArmed, TimeWaitFound};
    let end = START + 30 * MS;
    let begun = record(7, START, FinWait1, FinWait2);
    let armed = timer(TimeWaitArmed, 7, START + MS, FinWait2, 60_000 * MS);
    let close = record(7, START + 2 * MS, FinWait2, Close);
    let found = timer(TimeWaitFound, 7, START + 20 * MS, TimeWait, 60_000 * MS);
    let steps = [
        losses(end),
        Step::Record(begun.as_bytes()),
        Step::Record(armed.as_bytes()),
        Step::Record(close.as_bytes()),
        Step::Refresh,
        Step::Record(found.as_bytes()),
        Step::End(end),
    ];
    let header = Header {
        start: START,
        begins: START,
        ..header(Callers::parse(SYMBOLS), TICK)
    };
    let folder = Folder::new("look");
    let recording = folder.recording("a.tcps", &file(&header, &[bytes(&steps)]));
    let exported = lines(&shown(&["export", &recording, "--to", "jsonl"]));
    let of_kind = |kind: &'static str| exported.iter().filter(move |line| line["event"] == kind);
    let trace = lines(&shown(&["trace", "-j", "--from", &recording]));
    let (last, before) = (
        of_kind("transition").next_back(),
        of_kind("transition").count() - 1,
    );
    let last = last.expect("a transition");
    assert_eq!(
        trace
            .iter()
            .filter(|line| line["event"] == "transition")
            .count(),
        before
    );
    assert_eq!(
        (&last["old"], &last["new"]),
        (&json!("fin_wait2"), &json!("time_wait"))
    );
    assert_eq!(last["bound"], "at_most");
    let connection = of_kind("connection").next().expect("a connection");
    assert_eq!(connection["state"], "time_wait");
}

#[test]
fn exports_are_new_and_private() {
    let folder = Folder::new("new");
    let recording = folder.recording("a.tcps", &of_fixture("late_fin.bin"));
    let export =
        |to: &str, output: &str| tcpstate(&["export", &recording, "--to", to, "-o", output]);
    let refused =
        |to: &str, output: &str| refused(&["export", &recording, "--to", to, "-o", output]);
    let mode = |path: &str| fs::metadata(path).expect("a file").mode() & 0o777;

    let there = folder.recording("there", b"precious");
    for to in ["perfetto", "jsonl"] {
        assert!(refused(to, &there).contains("it is there already"));
        assert!(refused(to, &folder.path("")).contains("cannot be written"));
        assert!(refused(to, &folder.path("no/such/folder")).contains("cannot be written"));
        let new = folder.path(to);
        assert_eq!(export(to, &new).status.code(), Some(0));
        assert_eq!(mode(&new), 0o600);
    }
    assert!(refused("csv", &there).contains("it is no folder"));
    assert_eq!(fs::read(&there).expect("the file"), b"precious");
    let tables = folder.path("tables");
    assert_eq!(export("csv", &tables).status.code(), Some(0));
    assert_eq!(mode(&tables), 0o700);
    assert_eq!(mode(&format!("{tables}/connections.csv")), 0o600);
    assert!(refused("csv", &tables).contains("connections.csv: it is there already"));
    // Half of them: none is written.
    fs::remove_file(format!("{tables}/connections.csv")).expect("the file");
    assert!(refused("csv", &tables).contains("transitions.csv: it is there already"));
    assert!(!Path::new(&format!("{tables}/connections.csv")).exists());
    fs::remove_file(format!("{tables}/transitions.csv")).expect("the file");
    symlink("/nowhere/at/all", format!("{tables}/transitions.csv")).expect("a link");
    assert!(refused("csv", &tables).contains("transitions.csv: it is there already"));
    assert!(!Path::new(&format!("{tables}/connections.csv")).exists());

    // What is not right is said before anything is made.
    let output = folder.path("nothing");
    let bad = folder.recording("bad.tcps", b"no recording");
    for (arguments, message) in [
        (
            &[&recording, "--to", "xml", "-o", &output][..],
            "possible values: perfetto, parquet, csv, jsonl",
        ),
        (&[&recording, "-o", &output], "--to"),
        (&[&recording, "--to", "csv"], "give a folder"),
        (&[&recording, "--to", "parquet"], "give a folder"),
        (
            &[&bad, "--to", "perfetto", "-o", &output],
            "it is no recording",
        ),
        (
            &[
                &recording, "--to", "jsonl", "--state", "close", "-o", &output,
            ],
            "whole connections",
        ),
        (
            &[
                &recording, "--to", "jsonl", "--since", "soon", "-o", &output,
            ],
            "give a time of day",
        ),
    ] {
        let refused = self::refused(&[&["export"], arguments].concat());
        assert!(refused.contains(message), "{arguments:?}: {refused}");
    }
    assert!(!Path::new(&output).exists());
}

#[test]
fn a_full_disk_is_told() {
    let folder = Folder::new("full");
    let recording = folder.recording("a.tcps", &made_up(0));
    for to in ["perfetto", "jsonl"] {
        let message = refused(&["export", &recording, "--to", to, "-o", "/dev/full"]);
        assert!(
            message.contains("the output cannot be written: /dev/full: "),
            "{to}: {message}"
        );
    }
    let view = ["trace", "-j", "--from", &recording, "-o", "/dev/full"];
    assert!(refused(&view).contains("the output cannot be written: /dev/full: "));
    for to in ["csv", "parquet"] {
        for name in ["connections", "transitions"] {
            let tables = folder.path(&format!("{to}-{name}"));
            fs::create_dir(&tables).expect("a folder");
            symlink("/dev/full", format!("{tables}/{name}.{to}")).expect("a link");
            let message = refused(&["export", &recording, "--to", to, "-o", &tables]);
            assert!(
                message.contains("the output cannot be written"),
                "{to}: {message}"
            );
            assert!(
                message.contains(&format!("{name}.{to}: ")),
                "{to}: {message}"
            );
            let left = fs::read_dir(&tables).expect("the folder").count();
            assert_eq!(left, 1, "only the link, {to}");
        }
    }
}

#[test]
fn what_is_readable_of_a_damaged_recording_is_exported() {
    let folder = Folder::new("damaged");
    let whole = made_up(0);
    let recording = folder.recording("a.tcps", &whole[..whole.len() / 2]);
    let expected = tcpstate(&["trace", "-s", "--from", &recording]).stdout;
    let expected = String::from_utf8_lossy(&expected).lines().count();
    assert!(expected > 100, "{expected}");
    let tables = folder.path("tables");
    let message = refused(&["export", &recording, "--to", "csv", "-o", &tables]);
    assert!(message.contains("cut off at byte"), "{message}");
    let table = fs::read_to_string(format!("{tables}/transitions.csv")).expect("a table");
    assert_eq!(table.lines().count(), expected);
    let output = folder.path("a.pftrace");
    refused(&["export", &recording, "--to", "perfetto", "-o", &output]);
    if let Some(python) = python("what_is_readable_of_a_damaged_recording_is_exported") {
        let trace = script(&python, "perfetto_trace.py", &[&output]);
        assert_eq!(trace["wrong"], json!([]));
        assert!(below(&trace).len() > 30);
    }
}
