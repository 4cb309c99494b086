//! `tcpstate doctor` on the real kernel: each situation is made for real, and its harmless look-alike beside it. The witness
//! is what the test itself did, and what the kernel said to it. Each watch is recorded, and the recording has to say the same.

mod closes;
mod failures;
mod ports;
mod proxies;
mod waits;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use serde_json::Value;

use crate::{
    folder::Folder,
    pty,
    support::{Printed, Tool, own_netns, skipped, start, sysctl, text},
};

/// Rules that look at what is not in a recording, or at other namespaces than ours.
const NOT_RECORDED: [&str; 4] = ["listen", "nat", "orphans", "settings"];
/// Numbers that only the kernel's counters tell.
const COUNTED: [&str; 3] = ["counter", "retransmitted", "unread"];

/// The file of it in its folder.
const RECORDING: &str = "watched.tcps";

/// The doctor, who watches this thread's network namespace until it is stopped.
struct Doctor {
    tool: Tool,
    folder: Folder,
    flags: Vec<String>,
}

fn doctor(flags: &[&str]) -> Doctor {
    let folder = Folder::new("doctor");
    let file = folder.file(RECORDING);
    let all = [
        "doctor", "-j", "--netns", "self", "--for", "600", "--record", &file,
    ];
    Doctor {
        tool: Tool::start(&[&all, flags].concat()),
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        folder,
    }
}

impl Doctor {
    /// What it says, after a look at whether the recording says the same.
    fn stop(self) -> Printed {
        let printed = self.tool.stop();
        let (recorded, _) = from_recording(&self.folder.join(RECORDING), &self.flags);
        let live = comparable(printed.events("finding"));
        assert_eq!(comparable(recorded), live, "as recorded, and live");
        printed
    }
}

/// Findings without what only counters tell, by rule.
fn comparable(mut findings: Vec<Value>) -> Vec<Value> {
    findings.retain(|finding| !NOT_RECORDED.contains(&text(&finding["rule"])));
    for finding in &mut findings {
        let evidence = finding["evidence"].as_array_mut().expect("a list");
        evidence.retain(|one| !COUNTED.contains(&text(&one["name"])));
        // Each looks at what it has looked at.
        finding["see"] = Value::Null;
        if finding["rule"] == "reset" {
            // How bad it is, a counter tells.
            for field in ["severity", "matters"] {
                finding[field] = Value::Null;
            }
        }
    }
    findings.sort_by_key(Value::to_string);
    findings
}

/// The findings of one rule, and the exit code.
fn findings(printed: &Printed, rule: &str) -> (Vec<Value>, Option<i32>) {
    let last = printed.events("diagnosis").pop().expect("a last line");
    // In an emulated machine with Linux 7 our programs are interrupted now and then, and that is told.
    let exact = !printed.err.contains("they interrupted our programs");
    let counts = if exact { "exact" } else { "about" };
    assert_eq!(last["counts"], counts, "{}", printed.err);
    let all = printed.events("finding");
    let of_rule = all.into_iter().filter(|finding| finding["rule"] == rule);
    (of_rule.collect(), printed.status.code())
}

/// A number in the evidence.
fn seen(finding: &Value, name: &str) -> Value {
    let all = finding["evidence"].as_array().expect("a list");
    let one = all.iter().find(|one| one["name"] == name);
    one.unwrap_or_else(|| panic!("{name}: {finding}"))["value"].clone()
}

/// Connects, and one of both closes first.
fn connect(listener: &TcpListener, address: SocketAddr, client_first: bool) -> std::io::Result<()> {
    let client = TcpStream::connect(address)?;
    let (server, _) = listener.accept()?;
    if client_first {
        drop(client);
        drop(server);
    } else {
        drop(server);
        drop(client);
    }
    Ok(())
}

/// TIME_WAITs in this thread's network namespace, as the kernel lists them.
fn time_waits() -> u64 {
    let list = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("a list");
    let states = list
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(3));
    states.filter(|state| *state == "06").count() as u64
}

fn listener(port: u16) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a listener");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// What the doctor says of a recording, by a user without privileges.
fn from_recording(file: &Path, flags: &[String]) -> (Vec<Value>, Option<i32>) {
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    doctor
        .args(["doctor", "-j", "--from"])
        .arg(file)
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = start(&mut doctor).wait_with_output().expect("it ends");
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    let findings = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|line| line["event"] == "finding")
        .collect();
    (findings, output.status.code())
}

/// A server's socket, as one makes it that has never heard of SO_REUSEADDR, or has.
fn serve(port: u16, reuse: bool) -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::ReuseAddr, &reuse)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket)
}

/// How long it goes on is shown where a line can be taken away again.
#[test]
fn the_countdown_is_for_terminals_that_can_erase() {
    const TEST: &str = "the_countdown_is_for_terminals_that_can_erase";
    if skipped(TEST) {
        return;
    }
    if !Path::new("/dev/pts/ptmx").exists() {
        eprintln!("SKIPPED {TEST}: no terminals can be made here");
        return;
    }
    own_netns();
    for (term, able) in [("xterm", true), ("dumb", false)] {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
        doctor.args(["doctor", "--netns", "self", "--for", "0.5"]);
        doctor.env("TERM", term).env("NO_COLOR", "1");
        let shown = pty::shown(doctor);
        assert!(shown.contains(" high, "), "{shown}");
        assert_eq!(shown.contains("\x1b[K"), able, "{shown:?}");
        assert_eq!(shown.contains("watching: "), able, "{shown:?}");
    }
}

#[test]
fn a_quiet_machine_with_odd_settings_gets_no_alarm() {
    if skipped("a_quiet_machine_with_odd_settings_gets_no_alarm") {
        return;
    }
    own_netns();
    for (name, value) in [
        ("tcp_tw_reuse", "1"),
        ("tcp_timestamps", "0"),
        ("tcp_fin_timeout", "5"),
        ("tcp_max_tw_buckets", "5"),
        ("tcp_syncookies", "0"),
        ("tcp_abort_on_overflow", "1"),
        ("tcp_rfc1337", "1"),
    ] {
        sysctl(&format!("net/ipv4/{name}"), value);
    }
    let tool = Tool::start_early(&["doctor", "-j", "--netns", "self", "--for", "0.5"]);
    let printed = tool.wait();
    assert_eq!(printed.status.code(), Some(0), "{}", printed.out);
    let all = printed.events("finding");
    assert!(
        all.iter().all(|finding| finding["severity"] == "fine"),
        "{}",
        printed.out
    );
    let netns = std::fs::metadata("/proc/thread-self/ns/net").expect("a namespace");
    let inode = std::os::unix::fs::MetadataExt::ino(&netns);
    let (settings, _) = findings(&printed, "settings");
    let ours = settings.iter().find(|finding| finding["netns"] == inode);
    let ours = ours.unwrap_or_else(|| panic!("{}", printed.out));
    assert_eq!(seen(ours, "tcp_timestamps"), "0");
    assert!(text(&ours["avoid"]).contains("tcp_tw_recycle"));
}
