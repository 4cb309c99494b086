//! What `tcpstate probe` says of this kernel, `tcpstate trace` does: with the hook that was chosen, or not at all and for the
//! same reasons. Guests with a lockdown, without BTF ... run these.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    folder::Folder,
    support::{own_netns, skipped, start, text},
};

/// Runs `tcpstate` with these arguments, in some way.
type Start<'a> = &'a dyn Fn(&[&str]) -> Command;

#[test]
fn trace_does_what_probe_says() {
    if skipped("trace_does_what_probe_says") {
        return;
    }
    own_netns();
    let root = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command
            .args(["-s", "INT", "120", env!("CARGO_BIN_EXE_tcpstate")])
            .args(arguments);
        command
    };
    agree(&root, 7301);
}

/// CAP_SYSLOG is for the addresses in /proc/kallsyms.
#[test]
fn trace_does_what_probe_says_without_root() {
    if skipped("trace_does_what_probe_says_without_root") {
        return;
    }
    own_netns();
    let folder = Folder::with_tcpstate("probe");
    let nobody = |arguments: &[&str]| {
        const HELD: &str = "+bpf,+perfmon,+syslog";
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(format!("--inh-caps={HELD}"))
            .arg(format!("--ambient-caps={HELD}"))
            .arg(format!("--bounding-set=-all,{HELD}"))
            .args(["--", "timeout", "-s", "INT", "120"])
            .arg(folder.tcpstate())
            .args(arguments);
        command
    };
    agree(&nobody, 7302);
}

fn agree(tcpstate: Start<'_>, port: u16) {
    let report = start(
        tcpstate(&["probe", "-j"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .wait_with_output()
    .expect("it ends");
    let said: Value = serde_json::from_slice(&report.stdout).expect("one JSON object");
    let chosen = said["hooks"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|hook| hook["works"] == true);
    assert_eq!(
        chosen.map_or(&Value::Null, |hook| &hook["hook"]),
        &said["chosen"]
    );
    assert_eq!(
        report.status.code(),
        Some(if chosen.is_some() { 0 } else { 2 })
    );

    let port_argument = port.to_string();
    let mut trace = start(
        tcpstate(&["trace", "-j", "-D", &port_argument, "--count", "2"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut messages = BufReader::new(trace.stderr.take().expect("its messages"));
    let mut message = String::new();
    while !message.contains("tracing TCP") {
        let before = message.len();
        messages.read_line(&mut message).expect("its messages");
        if message.len() == before {
            break;
        }
    }
    let announced = message.lines().filter(|line| line.contains("tracing TCP"));
    for line in announced {
        assert!(line.len() <= 80, "{line}");
    }
    if chosen.is_none() {
        let status = trace.wait().expect("it ends");
        assert_eq!(status.code(), Some(2), "{message}");
        for hook in said["hooks"].as_array().expect("a list") {
            let reason = without_names(text(&hook["reason"]));
            assert!(
                without_names(&message).contains(&reason),
                "{reason}: {message}"
            );
        }
        return;
    }
    // What is lost is announced before the first line.
    for missing in said["missing"].as_array().expect("a list") {
        assert!(
            message.contains(text(&missing["loses"])),
            "{missing}: {message}"
        );
    }
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    messages.read_to_string(&mut message).expect("its messages");
    let output = trace.wait_with_output().expect("it ends");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|line: &Value| line["event"] == "transition")
        .collect();
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert_eq!(
        crate::support::steps(&lines),
        ["close->syn_sent", "syn_sent->close"]
    );
    // The classic tracepoint knows no processes; then neither is one named.
    let pid = if said["chosen"] == "btf_tracepoint" {
        Value::from(std::process::id())
    } else {
        Value::Null
    };
    assert_eq!(lines[0]["pid"], pid);
}

#[test]
fn lines_are_as_wide_as_the_terminal() {
    if skipped("lines_are_as_wide_as_the_terminal") {
        return;
    }
    let probe = |columns: Option<&str>| {
        let mut probe = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        probe.arg("probe").env_remove("COLUMNS");
        if let Some(columns) = columns {
            probe.env("COLUMNS", columns);
        }
        let probe = probe.stdin(Stdio::null()).stdout(Stdio::piped());
        let output = start(probe).wait_with_output().expect("it ends");
        let printed = String::from_utf8(output.stdout).expect("UTF-8");
        let blank = printed.lines().find(|line| line.ends_with(' '));
        assert_eq!(blank, None);
        printed
    };
    let whole = probe(None);
    let narrow = probe(Some("60"));
    let mut wide = narrow.lines().filter(|line| line.len() > 60);
    assert!(
        wide.all(|line| !line.trim_start().contains(' ')),
        "{narrow}"
    );
    let words = |text: &str| text.split_whitespace().count();
    assert_eq!(words(&narrow), words(&whole));
}

/// Without what is in backquotes: which of the maps is made first, and fails, is not the same each time.
fn without_names(message: &str) -> String {
    message.split('`').step_by(2).collect()
}

/// A lockdown that leaves no hook is named as the reason: the kernel's own answer is only "operation not permitted".
#[test]
fn a_lockdown_is_named_where_it_refuses() {
    const FILE: &str = "/sys/kernel/security/lockdown";
    let test = "a_lockdown_is_named_where_it_refuses";
    if skipped(test) {
        return;
    }
    let state = fs::read_to_string(Path::new(FILE)).unwrap_or_default();
    if !state.contains("[confidentiality]") {
        eprintln!("SKIPPED {test}: this kernel is not locked down for confidentiality");
        return;
    }
    let mut trace = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    trace
        .args(["trace", "--duration", "0.2"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = start(&mut trace).wait_with_output().expect("it ends");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("this kernel is locked down (confidentiality)"),
        "{message}"
    );
}
