//! What the doctor says of the scene that the periodic views have too, without root.

use std::{path::Path, process::Command, rc::Rc};

use tcpstate_common::{
    record::{Call, TransitionRecord},
    state::TcpState::{Close, CloseWait, Established, Listen, SynSent},
};
use tcpstate_user::{
    doctor::{Diagnosis, Known, Listens, Seen, Severity, Snapshot, Thresholds, Watch, json, text},
    settings::Settings,
};

use crate::{
    exports::{Folder, lines, made_up, tcpstate},
    pty,
    records::{MS, owned, record},
    reports::{HOOKS, Run},
    scene::{START, Sent, call, life, scene},
};

const NETNS: u32 = 4_026_531_840;

/// So low that everything in the scene is told.
fn thresholds() -> Thresholds {
    Thresholds {
        many_time_waits: 1,
        failed: 1,
        staying: 1,
        stay: Some(1.0),
        connection_rate: 0.1,
        ..Thresholds::default()
    }
}

fn seen(all: &[Sent], thresholds: &Thresholds) -> Snapshot {
    let mut settings = Settings {
        netns: NETNS,
        ..Settings::default()
    };
    settings.insert("ipv4/ip_local_port_range", "32768\t60999\n");
    // A recording may have anything.
    settings.insert("ipv4/tcp_tw_reuse", "\u{1b}[2J\n");
    let seen = Seen::default();
    let known = Known {
        timewait: true,
        calls: true,
        errors: true,
        limit: 10_000,
        netns: None,
        begins: START,
        settings: &[settings],
        addresses: true,
    };
    let mut run = Run::new(Watch::new(&known, thresholds, Rc::clone(&seen)), None);
    run.reports.all_found();
    run.report(all);
    seen.take().expect("the watch has ended")
}

/// All that it says of this.
pub fn said(all: &[Sent]) -> String {
    let thresholds = thresholds();
    let snapshot = seen(all, &thresholds);
    let diagnosis = Diagnosis::of(&snapshot, &thresholds);
    text(&diagnosis, &snapshot, &HOOKS, 80, false)
}

#[test]
fn the_scene_in_text_and_json() {
    let thresholds = thresholds();
    let snapshot = seen(&scene(), &thresholds);
    let diagnosis = Diagnosis::of(&snapshot, &thresholds);
    let shown = text(&diagnosis, &snapshot, &HOOKS, 80, false);
    assert!(
        shown.chars().all(|one| one == '\n' || !one.is_control()),
        "nothing moves a cursor"
    );
    let longest = shown.lines().map(|line| line.chars().count()).max();
    assert!(longest <= Some(80), "{longest:?}");
    insta::assert_snapshot!("doctor_text", shown);
    let lines = json(&diagnosis, &snapshot, &HOOKS).expect("it can be written");
    insta::assert_snapshot!("doctor_json", String::from_utf8_lossy(&lines));
}

#[test]
fn by_default_the_scene_is_no_alarm() {
    let thresholds = Thresholds::default();
    let snapshot = seen(&scene(), &thresholds);
    let diagnosis = Diagnosis::of(&snapshot, &thresholds);
    assert_eq!(diagnosis.count(Severity::High), 0, "{diagnosis:?}");
    assert_eq!(diagnosis.count(Severity::Notice), 0, "{diagnosis:?}");
    let unknown: Vec<_> = diagnosis.unknown.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(
        unknown,
        ["listen", "orphans"],
        "counters are of live machines"
    );
}

/// What stays is counted with its process, whatever that is called.
#[test]
fn a_leak_in_a_recording_is_a_leak() {
    let thresholds = Thresholds::default();
    let mut all = Vec::new();
    for cookie in 200..212 {
        let steps = [
            (Close, 0),
            (SynSent, 0),
            (Established, 50),
            (CloseWait, 900),
        ];
        all.extend(life(cookie, 10 + cookie, &steps, |record| {
            owned(record, 700, b"le\x1baky")
        }));
    }
    assert!(all.len() > 30);
    let thresholds = Thresholds {
        stay: Some(5.0),
        ..thresholds
    };
    let snapshot = seen(&all, &thresholds);
    assert!(snapshot.nanoseconds > 5000 * MS);
    let diagnosis = Diagnosis::of(&snapshot, &thresholds);
    let found: Vec<_> = diagnosis
        .findings
        .iter()
        .filter(|finding| finding.rule == "close-wait")
        .collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].severity, Severity::High);
    assert_eq!(found[0].causes[0].count, 12);
    assert_eq!(found[0].causes[0].who.process.pid, Some(700));
}

/// A listener that begins to listen at this millisecond, or ends.
fn listener(cookie: u64, at: u64, begins: bool, address: [u8; 4], pid: u32) -> Sent {
    let (old, new) = if begins {
        (Close, Listen)
    } else {
        (Listen, Close)
    };
    let any = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    let of = TransitionRecord {
        laddr: std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets(),
        raddr: any,
        lport: 9000,
        rport: 0,
        ..record(cookie, START + at * MS, old, new)
    };
    Sent::Transition(owned(of, pid, b"server"))
}

/// Who listened before its bind() failed has not succeeded by trying again.
#[test]
fn what_was_in_the_way_of_bind() {
    const ANY: [u8; 4] = [0, 0, 0, 0];
    const HERE: [u8; 4] = [10, 0, 0, 1];
    const ELSEWHERE: [u8; 4] = [10, 0, 0, 9];
    // It asks for 10.0.0.1:9000.
    let fails = |at| Sent::Call(call(Call::Bind, 50, START + at * MS, 7, b"server", 9000));
    let told = |all: &[Sent]| {
        let binds = seen(all, &Thresholds::default()).binds;
        assert_eq!(binds.len(), 1);
        let pid = binds[0].listener.and_then(|process| process.pid);
        (binds[0].listens, binds[0].own, binds[0].listeners, pid)
    };
    let comes = |cookie, at, address, pid| listener(cookie, at, true, address, pid);
    let goes = |cookie, at, address, pid| listener(cookie, at, false, address, pid);
    for address in [HERE, ANY] {
        assert_eq!(
            told(&[comes(60, 1, address, 7), fails(2), fails(3)]),
            (Listens::Before, true, 1, Some(7)),
            "it never listens by the other socket"
        );
        assert_eq!(
            told(&[fails(2), fails(3), comes(60, 4, address, 7)]),
            (Listens::After, false, 0, None)
        );
        assert_eq!(
            told(&[fails(2), comes(60, 3, address, 7), fails(4)]),
            (Listens::Before, true, 1, Some(7)),
            "the last failure counts"
        );
        assert_eq!(
            told(&[comes(60, 1, address, 7), fails(2), goes(60, 3, address, 7)]),
            (Listens::No, true, 1, Some(7))
        );
        assert_eq!(
            told(&[
                comes(60, 1, address, 8),
                fails(2),
                comes(61, 3, ELSEWHERE, 7)
            ]),
            (Listens::No, false, 1, Some(8)),
            "another address is no success"
        );
    }
    assert_eq!(
        told(&[comes(60, 1, ELSEWHERE, 7), comes(61, 1, HERE, 8), fails(2)]),
        (Listens::No, false, 1, Some(8)),
        "its own is not in the way"
    );
    assert_eq!(
        told(&[
            comes(60, 1, HERE, 8),
            comes(61, 1, HERE, 9),
            goes(61, 2, HERE, 9),
            fails(3)
        ]),
        (Listens::No, false, 1, Some(8)),
        "who has left is not in the way"
    );
}

/// As long as the recording allows; who wants more is told that it was too short.
#[test]
fn what_stays_is_bounded_by_what_was_recorded() {
    // Half-closed for all but 11 ms of 10 s.
    let half = [
        (Close, 0),
        (SynSent, 0),
        (Established, 50),
        (CloseWait, 900),
    ];
    let all = life(70, 10, &half, |record| owned(record, 700, b"leaky"));
    let told = |stay| {
        let thresholds = Thresholds {
            stay,
            ..Thresholds::default()
        };
        let snapshot = seen(&all, &thresholds);
        let diagnosis = Diagnosis::of(&snapshot, &thresholds);
        let of_rule = |rule: &str| rule == "close-wait";
        let found = diagnosis.findings.iter().filter(|one| of_rule(one.rule));
        let unknown = diagnosis.unknown.iter().filter(|(rule, _)| of_rule(rule));
        (snapshot.stay, found.count(), unknown.count())
    };
    assert_eq!(told(None), (9.0, 1, 0));
    assert_eq!(told(Some(9.5)), (9.5, 1, 0));
    assert_eq!(told(Some(60.0)), (60.0, 0, 1));
}

/// Whoever named the file: a shell that is given a command from the findings reads that file, and does nothing else.
#[test]
fn commands_that_show_more_show_more_of_this_recording() {
    let folder = Folder::new("doctor");
    let file = folder.recording("it's \u{1b}[2J $(touch x)\n.tcps", &made_up(0));
    let all = [
        "doctor",
        "--from",
        &file,
        "--until",
        "+1h",
        "--many-time-waits",
        "1",
        "--closes",
        "1",
        "--failed",
        "1",
    ];
    let printed = tcpstate(&all);
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(
        printed.chars().all(|one| one == '\n' || !one.is_control()),
        "{printed}"
    );
    let json = tcpstate(&[&all[..], &["-j"]].concat());
    let findings = lines(&String::from_utf8(json.stdout).expect("UTF-8"));
    let see = findings
        .iter()
        .filter_map(|finding| finding["see"].as_array())
        .flatten();
    let commands: Vec<_> = see.filter_map(|command| command.as_str()).collect();
    assert!(commands.len() > 3, "{findings:?}");
    for command in commands {
        assert!(printed.contains(command), "{command}");
        if command.starts_with("tcpstate doctor ") {
            continue;
        }
        assert!(command.contains(" --until +1h"), "{command}");
        // Without what reads it.
        let view = command.split(" | ").next().unwrap_or_default();
        let binary = Path::new(env!("CARGO_BIN_EXE_tcpstate"));
        let read = Command::new("bash")
            .args(["-c", view])
            .env("PATH", binary.parent().expect("a folder"))
            .output();
        let Ok(read) = read else {
            eprintln!("SKIPPED: there is no bash to read commands");
            return;
        };
        let message = String::from_utf8_lossy(&read.stderr);
        assert!(
            matches!(read.status.code(), Some(0 | 1)),
            "{view}: {message}"
        );
        assert!(!read.stdout.is_empty(), "{view}: {message}");
    }
}

#[test]
fn colours_are_for_those_who_want_them() {
    let recording = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/recordings/format-1.tcps"
    );
    for (term, no_color, coloured) in [
        (Some("xterm"), None, true),
        (Some("xterm"), Some(""), true),
        (Some("xterm"), Some("1"), false),
        (Some("dumb"), None, false),
        (None, None, false),
    ] {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        doctor.args(["doctor", "--many-time-waits", "0", "--from", recording]);
        doctor.env_remove("TERM").env_remove("NO_COLOR");
        doctor.envs(term.map(|term| ("TERM", term)));
        doctor.envs(no_color.map(|no_color| ("NO_COLOR", no_color)));
        let shown = pty::shown(doctor);
        assert!(shown.contains("# 0 high"), "{shown}");
        assert_eq!(
            shown.contains('\x1b'),
            coloured,
            "{term:?} {no_color:?}: {shown}"
        );
    }
}
