//! `tcpstate doctor` on the real kernel: each situation is made for real, and its harmless look-alike beside it. The witness
//! is what the test itself did, and what the kernel said to it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
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
    out.read_exact(&mut up).expect("it is up");
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

/// A counter of this thread's network namespace.
fn counter(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(one, _)| *one == name).expect("it is there");
    value.parse().expect("a number")
}

#[test]
fn a_dead_server_is_told_from_one_that_was_away_for_a_moment() {
    if skipped("a_dead_server_is_told_from_one_that_was_away_for_a_moment") {
        return;
    }
    for (refused, made, bad) in [(12, 3, true), (3, 12, false)] {
        own_netns();
        let (server, address) = listener(7961);
        let tool = doctor(&[]);
        for _ in 0..made {
            connect(&server, address, true).expect("a connection");
        }
        drop(server);
        for _ in 0..refused {
            let error = TcpStream::connect(address).expect_err("nobody listens");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        let printed = tool.stop();
        let (found, code) = findings(&printed, "failed");
        assert_eq!(code, Some(i32::from(bad)), "{}", printed.out);
        assert_eq!(found.len(), usize::from(bad), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "high");
            assert_eq!(seen(found, "refused"), 12);
            assert_eq!(seen(found, "established"), 3);
            assert_eq!(found["causes"][0]["pid"], std::process::id());
            assert_eq!(found["causes"][0]["service"], "127.0.0.1:7961");
        }
    }
}

#[test]
fn resets_that_lose_data_are_told_from_those_of_health_checks() {
    if skipped("resets_that_lose_data_are_told_from_those_of_health_checks") {
        return;
    }
    for loses in [true, false] {
        own_netns();
        let (server, address) = listener(7962);
        let tool = doctor(&[]);
        let alone = nobody_starts();
        for _ in 0..12 {
            let mut client = TcpStream::connect(address).expect("a connection");
            let (accepted, _) = server.accept().expect("it comes");
            if loses {
                client.write_all(b"a request").expect("room");
                wait_for_data(&accepted);
                // Unread data: the kernel sends a RST.
                drop(accepted);
            } else {
                let at_once = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&client, sockopt::Linger, &at_once).expect("an option");
                drop(client);
                drop(accepted);
            }
        }
        drop(alone);
        let printed = tool.stop();
        let (found, code) = findings(&printed, "reset");
        assert_eq!(code, Some(i32::from(loses)), "{}", printed.out);
        if loses {
            assert_eq!(found[0]["severity"], "high", "{}", printed.out);
            assert_eq!(seen(&found[0], "rst_sent"), 12);
            assert_eq!(seen(&found[0], "unread"), 12);
            assert_eq!(found[0]["causes"][0]["opened"], "passive");
            assert_eq!(found[1]["severity"], "notice");
            assert_eq!(seen(&found[1], "rst_received"), 12);
            assert_eq!(found[1]["causes"][0]["opened"], "active");
        } else {
            assert_eq!(found, Vec::<Value>::new());
        }
    }
}

fn wait_for_data(stream: &TcpStream) {
    let mut byte = [0];
    assert_eq!(stream.peek(&mut byte).expect("data comes"), 1);
}

#[test]
fn time_waits_without_room_are_told_from_those_with_room() {
    const TEST: &str = "time_waits_without_room_are_told_from_those_with_room";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    for (room, bad) in [("5", true), ("1000", false)] {
        own_netns();
        sysctl("net/ipv4/tcp_max_tw_buckets", room);
        let (server, address) = listener(7963);
        let tool = doctor(&[]);
        let alone = nobody_starts();
        let before = counter("TCPTimeWaitOverflow");
        for _ in 0..20 {
            connect(&server, address, true).expect("a connection");
        }
        let counted = counter("TCPTimeWaitOverflow") - before;
        drop(alone);
        let printed = tool.stop();
        assert_eq!(counted > 0, bad, "what the kernel counts");
        let (found, code) = findings(&printed, "overflow");
        assert_eq!(code, Some(i32::from(bad)), "{}", printed.out);
        assert_eq!(found.len(), usize::from(bad), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "high");
            assert_eq!(seen(found, "overflow"), counted);
            assert_eq!(seen(found, "counter"), counted);
            assert_eq!(seen(found, "limit"), 5);
        }
    }
}

#[test]
fn a_connection_for_each_request_is_told_from_keep_alive() {
    if skipped("a_connection_for_each_request_is_told_from_keep_alive") {
        return;
    }
    for keeps in [false, true] {
        own_netns();
        let (server, address) = listener(7964);
        // However slow the machine is, thirty come faster than that.
        let tool = doctor(&["--connection-rate", "0.1"]);
        let alone = nobody_starts();
        let mut kept = None;
        for _ in 0..30 {
            let (mut client, mut accepted) = kept.take().unwrap_or_else(|| {
                let client = TcpStream::connect(address).expect("a connection");
                (client, server.accept().expect("it comes").0)
            });
            client.write_all(b"request").expect("room");
            let mut request = [0; 7];
            accepted.read_exact(&mut request).expect("it comes");
            kept = keeps.then_some((client, accepted));
        }
        drop(alone);
        let printed = tool.stop();
        let (found, code) = findings(&printed, "churn");
        assert_eq!(code, Some(0), "it is no alarm: {}", printed.out);
        assert_eq!(found.len(), usize::from(!keeps), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "notice");
            assert_eq!(seen(found, "lives"), 30);
            assert_eq!(found["causes"][0]["pid"], std::process::id());
        }
    }
}

#[test]
fn peers_that_do_not_close_are_told_from_those_that_do() {
    if skipped("peers_that_do_not_close_are_told_from_those_that_do") {
        return;
    }
    for closes in [false, true] {
        own_netns();
        let (server, address) = listener(7965);
        let tool = doctor(&["--stay", "0.5"]);
        let mut held = Vec::new();
        for _ in 0..12 {
            let client = TcpStream::connect(address).expect("a connection");
            let (accepted, _) = server.accept().expect("it comes");
            client.shutdown(Shutdown::Write).expect("shut");
            held.push((client, (!closes).then_some(accepted)));
        }
        sleep(Duration::from_secs(1));
        let printed = tool.stop();
        let (found, _) = findings(&printed, "pile-up");
        assert_eq!(found.len(), usize::from(!closes), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "notice");
            assert_eq!(seen(found, "sockets"), 12);
            assert_eq!(found["causes"][0]["opened"], "active");
        }
        drop(held);
    }
}

#[test]
fn a_full_listen_queue_is_told_from_one_with_room() {
    if skipped("a_full_listen_queue_is_told_from_one_with_room") {
        return;
    }
    for (backlog, bad) in [(1, true), (64, false)] {
        own_netns();
        let server = serve(7966, true).expect("a listener");
        listen(&server, Backlog::new(backlog).expect("a small one")).expect("again");
        let tool = doctor(&[]);
        let before = counter("ListenOverflows");
        let mut held = Vec::new();
        for _ in 0..8 {
            let client = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )
            .expect("a socket");
            // In progress: who finds the queue full waits.
            let _ =
                nix::sys::socket::connect(client.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 7966));
            held.push(client);
        }
        let counted = counter("ListenOverflows") - before;
        let printed = tool.stop();
        assert_eq!(counted > 0, bad, "what the kernel counts");
        let (found, code) = findings(&printed, "listen");
        assert_eq!(code, Some(i32::from(bad)), "{}", printed.out);
        assert_eq!(found.len(), usize::from(bad), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "high");
            let seen = seen(found, "listen_overflows").as_u64().expect("a count");
            // SYNs come again while it ends.
            assert!(seen >= counted, "{seen} {counted}");
        }
        drop(held);
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
    let tool = Tool::start_with_existing(&["doctor", "-j", "--netns", "self", "--for", "0.2"]);
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
