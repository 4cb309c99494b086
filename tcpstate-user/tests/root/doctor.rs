//! `tcpstate doctor` on the real kernel: each situation is made for real, and its harmless look-alike beside it. The witness
//! is what the test itself did, and what the kernel said to it.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};
use serde_json::Value;

use crate::support::{
    Printed, Tool, lacks_timewait, nobody_starts, own_netns, probe, skipped, start, sysctl, text,
};

/// Watches this thread's network namespace until it is stopped.
fn doctor(flags: &[&str]) -> Tool {
    let all = ["doctor", "-j", "--netns", "self", "--for", "600"];
    Tool::start_with_existing(&[&all, flags].concat())
}

/// The findings of one rule, and the exit code.
fn findings(printed: &Printed, rule: &str) -> (Vec<Value>, Option<i32>) {
    let last = printed.events("diagnosis").pop().expect("a last line");
    assert_eq!(last["counts"], "exact", "{}", printed.err);
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

/// A directory of its own, which goes with it.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("tcpstate-doctor-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the doctor says of a recording, by a user without privileges.
fn from_recording(file: &Path) -> (Vec<Value>, Option<i32>) {
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_tcpstate"));
    doctor
        .args(["doctor", "-j", "--from"])
        .arg(file)
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

#[test]
fn ports_that_ran_out_are_told_from_as_many_that_did_not() {
    const TEST: &str = "ports_that_ran_out_are_told_from_as_many_that_did_not";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5019");
    sysctl("net/ipv4/tcp_tw_reuse", "0");
    let folder = Folder::new("ports");
    let file = folder.0.join("exhausted.tcps");
    let path = file.to_str().expect("UTF-8");
    let (server, address) = listener(7951);
    let tool = doctor(&["--record", path]);
    let alone = nobody_starts();
    for _ in 0..20 {
        connect(&server, address, true).expect("a port is left");
    }
    for _ in 0..3 {
        let error = connect(&server, address, true).expect_err("none is left");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }
    drop(alone);
    let printed = tool.stop();
    let (found, code) = findings(&printed, "ports");
    assert_eq!(code, Some(1), "{}", printed.out);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["severity"], "high");
    assert_eq!(seen(&found[0], "failed"), 3);
    assert_eq!(seen(&found[0], "used"), 20);
    assert_eq!(seen(&found[0], "limit"), 20);
    assert_eq!(seen(&found[0], "minisockets"), 20);
    let cause = &found[0]["causes"][0];
    assert_eq!(cause["pid"], std::process::id());
    assert_eq!(cause["service"], "127.0.0.1:7951");
    assert_eq!(cause["count"], 3);
    // The recording says the same, but for what only counters tell.
    let (recorded, code) = from_recording(&file);
    assert_eq!(code, Some(1));
    let of_rule: Vec<_> = recorded
        .into_iter()
        .filter(|finding| finding["rule"] == "ports")
        .collect();
    assert_eq!(of_rule, found);
}

/// As many TIME_WAITs, in a range where they leave room, and spread over two destinations.
#[test]
fn as_many_time_waits_with_ports_left_are_no_alarm() {
    const TEST: &str = "as_many_time_waits_with_ports_left_are_no_alarm";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    own_netns();
    sysctl("net/ipv4/ip_local_port_range", "5000 5039");
    sysctl("net/ipv4/tcp_tw_reuse", "0");
    let (one, to_one) = listener(7952);
    let (two, to_two) = listener(7953);
    let tool = doctor(&["--many-time-waits", "20", "--ports-soon", "0.001"]);
    let alone = nobody_starts();
    for _ in 0..10 {
        connect(&one, to_one, true).expect("a port is left");
        connect(&two, to_two, true).expect("a port is left");
    }
    drop(alone);
    let printed = tool.stop();
    let (found, code) = findings(&printed, "ports");
    assert_eq!((found, code), (Vec::new(), Some(0)), "{}", printed.out);
    let (found, _) = findings(&printed, "time-wait");
    assert_eq!(found.len(), 1, "{}", printed.out);
    assert_eq!(found[0]["severity"], "fine");
    assert_eq!(seen(&found[0], "now"), 20);
}

#[test]
fn time_waits_of_a_server_are_fine_and_those_of_a_client_that_fill_its_ports_are_not() {
    const TEST: &str =
        "time_waits_of_a_server_are_fine_and_those_of_a_client_that_fill_its_ports_are_not";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    for client_first in [false, true] {
        own_netns();
        sysctl("net/ipv4/ip_local_port_range", "5000 5099");
        sysctl("net/ipv4/tcp_tw_reuse", "0");
        let (server, address) = listener(7954);
        let tool = doctor(&["--many-time-waits", "20"]);
        let alone = nobody_starts();
        for _ in 0..60 {
            connect(&server, address, client_first).expect("a connection");
        }
        drop(alone);
        let now = time_waits();
        assert!(now >= 20, "{now}");
        let printed = tool.stop();
        let (found, _) = findings(&printed, "time-wait");
        assert_eq!(found.len(), 1, "{}", printed.out);
        let severity = if client_first { "notice" } else { "fine" };
        assert_eq!(found[0]["severity"], severity, "{}", printed.out);
        // The server's may be taken over: the client is free to pick its port again.
        assert_eq!(seen(&found[0], "now"), now);
        assert_eq!(
            seen(&found[0], "served"),
            if client_first { 0 } else { now }
        );
        let cause = &found[0]["causes"][0];
        let opened = if client_first { "active" } else { "passive" };
        assert_eq!(cause["opened"], opened);
        assert_eq!(cause["pid"], std::process::id());
        assert_eq!(cause["count"], 60);
    }
}

fn lacks_calls(test: &str) -> bool {
    let lacks = probe()["system_calls"]["works"] != true;
    if lacks {
        eprintln!("SKIPPED {test}: system calls cannot be watched here");
    }
    lacks
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

#[test]
fn a_restart_that_time_wait_prevents_is_told_from_one_that_succeeds() {
    const TEST: &str = "a_restart_that_time_wait_prevents_is_told_from_one_that_succeeds";
    if skipped(TEST) || lacks_timewait(TEST) || lacks_calls(TEST) {
        return;
    }
    for comes_up in [false, true] {
        own_netns();
        let (server, address) = listener(7955);
        let tool = doctor(&[]);
        let alone = nobody_starts();
        connect(&server, address, false).expect("a connection");
        drop(server);
        for _ in 0..3 {
            assert_eq!(serve(7955, false).err(), Some(nix::Error::EADDRINUSE));
        }
        let up = comes_up.then(|| serve(7955, true).expect("it does not mind TIME_WAIT"));
        drop(alone);
        let printed = tool.stop();
        drop(up);
        let (found, code) = findings(&printed, "bind");
        assert_eq!(found.len(), 1, "{}", printed.out);
        let (severity, exit) = if comes_up { ("fine", 0) } else { ("high", 1) };
        assert_eq!(found[0]["severity"], severity, "{}", printed.out);
        assert_eq!(code, Some(exit));
        assert_eq!(seen(&found[0], "failed"), 3);
        assert_eq!(seen(&found[0], "minisockets"), 1);
        assert_eq!(seen(&found[0], "listeners"), 0);
        assert_eq!(found[0]["causes"][0]["pid"], std::process::id());
    }
}

#[test]
fn a_port_that_somebody_listens_at_is_told_with_its_owner() {
    const TEST: &str = "a_port_that_somebody_listens_at_is_told_with_its_owner";
    if skipped(TEST) || lacks_calls(TEST) {
        return;
    }
    own_netns();
    let tool = doctor(&[]);
    let mut other = start(
        Command::new("python3")
            .args([
                "-c",
                "import socket,sys; s=socket.create_server(('127.0.0.1',7956)); print('up',flush=True); sys.stdin.read()",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    );
    let mut up = [0; 2];
    let mut out = other.stdout.take().expect("its output");
    std::io::Read::read_exact(&mut out, &mut up).expect("it is up");
    for _ in 0..3 {
        assert_eq!(serve(7956, true).err(), Some(nix::Error::EADDRINUSE));
    }
    let printed = tool.stop();
    drop(other.stdin.take());
    other.wait().expect("it ends");
    let (found, code) = findings(&printed, "bind");
    assert_eq!((found.len(), code), (1, Some(1)), "{}", printed.out);
    assert_eq!(seen(&found[0], "listeners"), 1);
    assert!(
        printed.out.contains(&format!("[{}]", other.id())),
        "{}",
        printed.out
    );
}

#[test]
fn a_leak_is_told_from_an_application_that_closes() {
    if skipped("a_leak_is_told_from_an_application_that_closes") {
        return;
    }
    own_netns();
    let (server, address) = listener(7957);
    let tool = doctor(&["--stay", "0.5"]);
    let mut forgotten = Vec::new();
    for closes in [true, false] {
        for _ in 0..12 {
            let client = TcpStream::connect(address).expect("a connection");
            let (accepted, _) = server.accept().expect("it comes");
            drop(client);
            if !closes {
                forgotten.push(accepted);
            }
        }
    }
    // Half-closed just now: that is no leak yet.
    let young = TcpStream::connect(address).expect("a connection");
    let (peer, _) = server.accept().expect("it comes");
    sleep(Duration::from_secs(1));
    young.shutdown(Shutdown::Write).expect("shut");
    let printed = tool.stop();
    let (found, code) = findings(&printed, "close-wait");
    assert_eq!((found.len(), code), (1, Some(1)), "{}", printed.out);
    assert_eq!(seen(&found[0], "sockets"), 12);
    assert_eq!(found[0]["causes"][0]["pid"], std::process::id());
    assert_eq!(found[0]["causes"][0]["service"], "127.0.0.1:7957");
    assert!(text(&found[0]["see"][0]).contains("--leaks"));
    drop((forgotten, peer));
    // Now that they are closed, nothing is left to find.
    let tool = doctor(&["--stay", "0.001"]);
    let printed = tool.stop();
    let (found, code) = findings(&printed, "close-wait");
    assert_eq!((found, code), (Vec::new(), Some(0)));
}
