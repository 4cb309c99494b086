//! Views of a recording: what they show of it, and of a part or a time of it.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use tcpstate_common::{
    record::RecordKind::TimeWaitFound,
    state::TcpState::{self, TimeWait},
};
use tcpstate_user::{
    lifecycle::Callers,
    recording::{Header, Step},
    settings::Settings,
};
use zerocopy::IntoBytes as _;

use crate::recordings::{
    START, Temporary, bytes, changed, file, header, kept, losses, of_fixture, shown, tcpstate, text,
};
use crate::{
    exports::Folder,
    machine::lives::{Scale, generate},
    records::{record, timer},
};

/// The same, as if these filters had been given.
fn recorded_with(name: &str, filter: &str) -> Vec<u8> {
    changed(name, |header| Header {
        filter: filter.to_owned(),
        ..header
    })
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

/// A connection is in a state long before it ends.
#[test]
fn connections_are_wanted_for_every_state_they_were_in() {
    let file = Temporary::new("states", &of_fixture("late_fin.bin"));
    let rows = |more: &[&str]| -> Vec<serde_json::Value> {
        let arguments = [&["conns", "-j", "--running", "--from", file.path()], more].concat();
        let out = text(&tcpstate(&arguments).stdout);
        let rows = out
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        rows.filter(|row: &serde_json::Value| row["event"] == "connection")
            .collect()
    };
    let all = rows(&[]);
    let mut were_in = Vec::new();
    let none = [
        TcpState::Listen,
        TcpState::NewSynRecv,
        TcpState::BoundInactive,
    ];
    for state in TcpState::ALL
        .into_iter()
        .filter(|state| !none.contains(state))
    {
        let was_in = |row: &&serde_json::Value| match state {
            TcpState::Close => !row["end"].is_null(),
            _ => !row["states"][state.label()].is_null(),
        };
        let expected: Vec<_> = all.iter().filter(was_in).cloned().collect();
        assert_eq!(rows(&["--state", state.label()]), expected, "{state:?}");
        if !expected.is_empty() {
            were_in.push(state.label());
        }
    }
    assert_eq!(
        were_in,
        [
            "established",
            "syn_sent",
            "syn_recv",
            "fin_wait1",
            "fin_wait2",
            "time_wait",
            "close",
            "close_wait",
            "last_ack"
        ]
    );
    let either = rows(&["--state", "fin_wait2,close_wait"]);
    assert_eq!(either.len(), all.len());
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
        // A command is as long as the name of the file.
        let lines = diagnosis.lines().filter(|line| !line.contains("--from "));
        lines.map(|line| line.chars().count()).max()
    };
    assert!(longest(None).is_some_and(|longest| longest <= 80));
    assert!(longest(Some("95")).is_some_and(|longest| (81..=95).contains(&longest)));
}
