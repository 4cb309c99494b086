//! Sockets that were there before `tcpstate`: found in every namespace, with their processes, and joined without a gap to
//! what happens then.

use std::{
    io::Read as _,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::support::{
    Killed, Printed, Tool, for_each_observer, nobody_starts, own_netns, port, skipped, start, steps,
};

/// The two ends of a connection to this listener.
fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let (server, _) = listener.accept().expect("the other end");
    (client, server)
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener")
}

/// The one connection of this port.
fn connection(printed: &Printed, port: u16) -> Value {
    let mut all: Vec<Value> = printed
        .events("connection")
        .into_iter()
        .filter(|line| line["lport"] == port)
        .collect();
    assert_eq!(all.len(), 1, "connections of port {port}: {all:?}");
    all.remove(0)
}

fn seconds(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn what_was_there_is_known_with_its_process() {
    if skipped("what_was_there_is_known_with_its_process") {
        return;
    }
    own_netns();
    let nobody = nobody_starts();
    let listener = listener();
    let (client, server) = connect(&listener);
    let (waiting, mut half_closed) = connect(&listener);
    waiting
        .shutdown(std::net::Shutdown::Write)
        .expect("a half-close");
    assert_eq!(half_closed.read(&mut [0]).expect("the end"), 0);
    let (client_port, waiting_port) = (port(client.local_addr()), port(waiting.local_addr()));
    drop(nobody);
    let tool = Tool::start(&["trace", "-j", "--netns", "self"]);
    let looked = Instant::now();
    let nobody = nobody_starts();
    drop(client);
    thread::sleep(Duration::from_millis(50));
    drop(server);
    // A connection that begins now, from a listener that was there before.
    let (late, late_server) = connect(&listener);
    let late_port = port(late.local_addr());
    drop(half_closed);
    drop(nobody);
    thread::sleep(Duration::from_millis(100));
    let printed = tool.stop();
    let pid = json!(std::process::id());

    let client = printed.of_port(client_port);
    assert_eq!(
        steps(&client[..1]),
        ["established->fin_wait1"],
        "{client:?}"
    );
    assert_eq!(client[0]["bound"], "at_least");
    assert!(seconds(&client[0]["seconds"]) <= looked.elapsed().as_secs_f64() + 5.0);
    // The task that closes is named by the kernel; what a packet causes, by the search. The peer's acknowledgement may be
    // so quick that close() itself still finds it in the backlog.
    assert_eq!(client[0]["via"], "close");
    assert_eq!(steps(&client[1..2]), ["fin_wait1->fin_wait2"]);
    assert!(
        ["scan", "close"].contains(&client[1]["via"].as_str().unwrap_or_default()),
        "{}",
        client[1]
    );
    for line in &client[..2] {
        assert_eq!(line["pid"], pid, "{line}");
        assert_eq!(line["damaged"], false);
    }
    let waiting = printed.of_port(waiting_port);
    assert_eq!(waiting[0]["old"], "fin_wait2", "{waiting:?}");
    assert_eq!(waiting[0]["bound"], "at_least");
    assert_eq!(waiting[0]["via"], "scan");

    let child: Vec<Value> = printed
        .transitions()
        .into_iter()
        .filter(|line| line["rport"] == late_port)
        .collect();
    assert_eq!(steps(&child)[0], "listen->syn_recv", "{child:?}");
    assert_eq!(child[0]["via"], "listener", "{child:?}");
    assert_eq!(child[0]["pid"], pid);
    // Four ends and the listener.
    assert_eq!(printed.summary()["found"], 5, "{}", printed.err);
    drop((late, late_server, waiting));
}

#[test]
fn a_time_wait_from_before_has_begun_sixty_seconds_before_it_is_due() {
    for_each_observer(
        "a_time_wait_from_before_has_begun_sixty_seconds_before_it_is_due",
        |observer| {
            let nobody = nobody_starts();
            let listener = listener();
            let (client, mut server) = connect(&listener);
            let client_port = port(client.local_addr());
            drop(client);
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
            drop(server);
            let closed = Instant::now();
            drop(nobody);
            thread::sleep(Duration::from_secs(2));

            let seen = Instant::now();
            let tool = Tool::start(&[
                "conns",
                "-j",
                "--running",
                "--netns",
                "self",
                "--timewait",
                observer,
            ]);
            let age = closed.elapsed().as_secs_f64();
            let printed = tool.stop();
            let line = connection(&printed, client_port);
            let time_wait = &line["time_wait"];
            assert_eq!(time_wait["end"], "running", "{line}");
            assert_eq!(time_wait["bound"], "at_least");
            let told = seconds(&time_wait["seconds"]);
            let whole = closed.elapsed().as_secs_f64();
            // A tick may be as long as 10 ms.
            assert!(
                (seen.duration_since(closed).as_secs_f64() - 0.02..=whole + 0.02).contains(&told),
                "told {told}, was {age} to {whole}"
            );
            assert_eq!(line["start"], Value::Null);
            assert_eq!(line["opened"], "unknown");
            assert_eq!(line["closed_first"], "unknown");
        },
    );
}

#[test]
fn sockets_of_all_namespaces_are_found_and_joined() {
    for_each_observer(
        "sockets_of_all_namespaces_are_found_and_joined",
        |observer| {
            let nobody = nobody_starts();
            let listener = listener();
            let (client, mut server) = connect(&listener);
            let (client_port, server_port) =
                (port(client.local_addr()), port(listener.local_addr()));
            let inode = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
            drop(nobody);
            let tool = Tool::start(&[
                "conns",
                "-j",
                "--running",
                "--timewait",
                observer,
                "-L",
                &format!("{client_port},{server_port}"),
            ]);
            let nobody = nobody_starts();
            drop(client);
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
            drop(server);
            drop(nobody);
            thread::sleep(Duration::from_millis(100));
            let printed = tool.stop();
            let ours = |line: &&Value| inode.to_string_lossy().contains(&line["netns"].to_string());
            let lines = printed.events("connection");
            let lines: Vec<&Value> = lines.iter().filter(ours).collect();
            assert_eq!(lines.len(), 2, "{lines:?}");
            for line in lines {
                assert_eq!(line["owner"]["via"], "scan", "{line}");
                assert_eq!(line["owner"]["pid"], json!(std::process::id()));
                assert_eq!(line["start"], Value::Null);
                assert_eq!(line["bounds"]["established"], "at_least");
                assert_eq!(line["how"], "fin");
                let active = line["lport"] == client_port;
                assert_eq!(
                    line["closed_first"],
                    if active { "local" } else { "remote" }
                );
                assert_eq!(line["time_wait"].is_object(), active);
            }
        },
    );
}

/// More sockets than the ring buffer holds records.
#[test]
fn many_sockets_fit_through_a_small_buffer() {
    const CONNECTIONS: usize = 1_500;
    if skipped("many_sockets_fit_through_a_small_buffer") {
        return;
    }
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("a higher limit");
    own_netns();
    let nobody = nobody_starts();
    let listener = listener();
    let pairs: Vec<_> = (0..CONNECTIONS).map(|_| connect(&listener)).collect();
    drop(nobody);
    let tool = Tool::start(&[
        "conns",
        "-j",
        "--running",
        "--netns",
        "self",
        "--buffer",
        "64K",
    ]);
    let printed = tool.stop();
    assert_eq!(
        printed.summary()["found"],
        CONNECTIONS * 2 + 1,
        "{}",
        printed.err
    );
    assert_eq!(printed.events("connection").len(), CONNECTIONS * 2);
    assert_eq!(printed.events("loss"), Vec::<Value>::new());
    drop(pairs);
}

/// What begins, lives and ends while the list is read is neither missed nor found when it is gone.
#[test]
fn the_list_and_the_events_meet_without_a_gap() {
    // So few that a slow machine keeps up.
    const PAUSE: Duration = Duration::from_millis(1);
    if skipped("the_list_and_the_events_meet_without_a_gap") {
        return;
    }
    own_netns();
    let listener = listener();
    let stop = AtomicBool::new(false);
    let printed = thread::scope(|scope| {
        let churn = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(PAUSE);
                let nobody = nobody_starts();
                let (client, mut server) = connect(&listener);
                // A RST leaves no TIME_WAIT that would use up the ports.
                socket_linger(&server);
                drop(nobody);
                drop(client);
                assert_eq!(server.read(&mut [0]).expect("the end"), 0);
            }
        });
        let tool = Tool::start(&["trace", "-j", "--netns", "self", "--timewait", "off"]);
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        churn.join().expect("the churn ends");
        thread::sleep(Duration::from_millis(100));
        tool.stop()
    });
    let summary = printed.summary();
    assert_eq!(summary["damaged"], 0, "{summary}");
    assert!(printed.transitions().len() > 100, "{summary}");
}

fn socket_linger(socket: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt::Linger};
    let now = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(socket, Linger, &now).expect("SO_LINGER");
}

#[test]
fn they_can_be_left_out() {
    if skipped("they_can_be_left_out") {
        return;
    }
    own_netns();
    let listener = listener();
    let nobody = nobody_starts();
    let (client, server) = connect(&listener);
    let client_port = port(client.local_addr());
    drop(nobody);
    let tool = Tool::start(&["trace", "-j", "--netns", "self", "--skip-existing"]);
    let nobody = nobody_starts();
    drop(client);
    drop(server);
    drop(nobody);
    thread::sleep(Duration::from_millis(100));
    let printed = tool.stop();
    assert!(!printed.err.contains("there already"), "{}", printed.err);
    assert_eq!(printed.summary()["found"], 0);
    let steps = printed.of_port(client_port);
    assert_eq!(steps[0]["via"], "close");
    assert!(steps.iter().all(|line| line["via"] != "scan"), "{steps:?}");
}

/// A process that shares a socket with its parent is not taken for the one that made it.
#[test]
fn of_two_processes_that_hold_a_socket_the_first_is_named() {
    if skipped("of_two_processes_that_hold_a_socket_the_first_is_named") {
        return;
    }
    own_netns();
    let listener = listener();
    let nobody = nobody_starts();
    let (client, server) = connect(&listener);
    let client_port = port(client.local_addr());
    drop(nobody);
    // As its standard input it holds the client's end too.
    let copy = client.try_clone().expect("a copy");
    let child = Killed(start(
        Command::new(env!("CARGO_BIN_EXE_tcpstate"))
            .args(["trace", "--netns", "self", "--duration", "60"])
            .stdin(OwnedFd::from(copy))
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    ));
    let tool = Tool::start(&["conns", "-j", "--running", "--netns", "self"]);
    let printed = tool.stop();
    drop(child);
    let line = connection(&printed, client_port);
    assert_eq!(line["owner"]["pid"], json!(std::process::id()), "{line}");
    drop(server);
}

/// The timer tracepoints do not tell when FIN_WAIT2 goes on to TIME_WAIT soon after; a second look does.
#[test]
fn a_silent_time_wait_is_known_at_the_end_of_the_run() {
    for_each_observer(
        "a_silent_time_wait_is_known_at_the_end_of_the_run",
        |observer| {
            let tool = Tool::start(&[
                "conns",
                "-j",
                "--running",
                "--netns",
                "self",
                "--timewait",
                observer,
            ]);
            let listener = listener();
            let nobody = nobody_starts();
            let (client, mut server) = connect(&listener);
            let client_port = port(client.local_addr());
            drop(client);
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
            let half_closed = Instant::now();
            thread::sleep(Duration::from_millis(200));
            drop(server);
            let closed = half_closed.elapsed().as_secs_f64();
            drop(nobody);
            thread::sleep(Duration::from_millis(100));
            let line = connection(&tool.stop(), client_port);
            assert_eq!(line["time_wait"]["end"], "running", "{line}");
            assert_eq!(line["how"], "fin");
            assert_eq!(line["state"], "time_wait");
            let fin_wait2 = seconds(&line["states"]["fin_wait2"]);
            assert!(
                (0.1..closed + 0.1).contains(&fin_wait2),
                "{fin_wait2} of {closed}: {line}"
            );
        },
    );
}
