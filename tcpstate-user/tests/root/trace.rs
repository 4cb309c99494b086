//! `tcpstate trace` on the real kernel: real sockets in a network namespace of each test's own. The witness is what
//! the test itself did.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use crate::{
    server::{CLOSES_FIRST, Server},
    support::{Printed, Tool, nobody_starts, own_netns, port, skipped, steps},
};
use serde_json::{Value, json};

pub const ACTIVE: [&str; 5] = [
    "close->syn_sent",
    "syn_sent->established",
    "established->fin_wait1",
    "fin_wait1->fin_wait2",
    "fin_wait2->close",
];
pub const PASSIVE: [&str; 5] = [
    "listen->syn_recv",
    "syn_recv->established",
    "established->close_wait",
    "close_wait->last_ack",
    "last_ack->close",
];

/// Both ends of a connection, and the listener.
struct Pair {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
    client_port: u16,
    server_port: u16,
}

fn connect(address: impl Into<SocketAddr>) -> Pair {
    let listener = TcpListener::bind(address.into()).expect("a listener");
    let to = listener.local_addr().expect("a bound listener");
    let to = match to {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v6.port()).into(),
        other => other,
    };
    let client = TcpStream::connect(to).expect("a connection");
    let (server, _) = listener.accept().expect("the other end");
    Pair {
        client_port: port(client.local_addr()),
        server_port: to.port(),
        listener,
        client,
        server,
    }
}

/// The client closes first; the connection is over on both ends when this returns.
fn close_client_first(pair: Pair) {
    let Pair {
        client, mut server, ..
    } = pair;
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end of the stream"), 0);
    drop(server);
}

/// Transitions of the passive end: of the server's port, without those of the listener.
fn passive(printed: &Printed, server_port: u16) -> Vec<Value> {
    let mut lines = printed.of_port(server_port);
    lines.retain(|line| {
        line["old"] != "close" && !(line["old"] == "listen" && line["new"] == "close")
    });
    lines
}

fn seconds(line: &Value) -> f64 {
    line["seconds"]
        .as_f64()
        .unwrap_or_else(|| panic!("no time in {line}"))
}

fn assert_all(lines: &[Value], field: &str, expected: &Value) {
    for line in lines {
        assert_eq!(&line[field], expected, "{field} of {line}");
    }
}

/// What every line must say about a connection of this process over loopback, whatever it tests.
fn assert_identity(lines: &[Value], family: &str, address: &str) {
    let netns = std::fs::read_link("/proc/thread-self/ns/net").expect("our namespace");
    for line in lines {
        assert_eq!(line["family"], family, "{line}");
        assert_eq!(line["laddr"], address, "{line}");
        assert_eq!(line["protocol"], "tcp");
        assert_eq!(line["uid"], 0);
        assert_eq!(line["damaged"], false);
        assert_eq!(netns.to_string_lossy(), format!("net:[{}]", line["netns"]));
        assert!(line["cgroup"].is_string(), "{line}");
        assert_eq!(line["cookie"], lines[0]["cookie"]);
    }
}

#[test]
fn active_and_passive_close_over_ipv4() {
    if skipped("active_and_passive_close_over_ipv4") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let alone = nobody_starts();
    let began = Instant::now();
    let pair = connect((Ipv4Addr::LOCALHOST, 0));
    let (client_port, server_port) = (pair.client_port, pair.server_port);
    thread::sleep(Duration::from_millis(30));
    close_client_first(pair);
    let whole = began.elapsed();
    drop(alone);
    let printed = tool.stop();

    let client = printed.of_port(client_port);
    assert_eq!(steps(&client), ACTIVE);
    assert_identity(&client, "ipv4", "127.0.0.1");
    assert_all(&client, "raddr", &json!("127.0.0.1"));
    assert_all(&client, "rport", &json!(server_port));
    assert_all(&client, "pid", &json!(std::process::id()));
    assert_eq!(
        client[0]["lport"],
        Value::Null,
        "an active open has no port at its first event"
    );
    assert_eq!(client[0]["via"], "connect");
    assert_eq!(client[2]["via"], "close");

    let server = passive(&printed, server_port);
    assert_eq!(steps(&server), PASSIVE);
    assert_identity(&server[1..], "ipv4", "127.0.0.1");
    assert_all(&server[1..], "rport", &json!(client_port));
    assert_all(&server, "pid", &json!(std::process::id()));
    assert_eq!(server[1]["via"], "listener");
    assert_eq!(server[3]["via"], "close");

    // The time in ESTABLISHED lies between what we slept and what the whole test took.
    for established in [&client[2], &server[2]] {
        assert_eq!(established["bound"], "exact");
        assert!(
            (0.030..whole.as_secs_f64()).contains(&seconds(established)),
            "{established}"
        );
    }
    assert_eq!(client[0]["seconds"], Value::Null);
    assert_eq!(client[0]["bound"], "unknown");
    assert_eq!(printed.status.code(), Some(0));
    assert_eq!(printed.summary()["loss"]["ring_full"], 0);
}

#[test]
fn active_and_passive_close_over_ipv6() {
    if skipped("active_and_passive_close_over_ipv6") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let pair = connect((Ipv6Addr::LOCALHOST, 0));
    let (client_port, server_port) = (pair.client_port, pair.server_port);
    close_client_first(pair);
    let printed = tool.stop();
    let client = printed.of_port(client_port);
    assert_eq!(steps(&client), ACTIVE);
    assert_identity(&client, "ipv6", "::1");
    assert_all(&client, "raddr", &json!("::1"));
    let server = passive(&printed, server_port);
    assert_eq!(steps(&server), PASSIVE);
    assert_identity(&server[1..], "ipv6", "::1");
}

#[test]
fn v4_mapped_ipv6_is_ipv4() {
    if skipped("v4_mapped_ipv6_is_ipv4") {
        return;
    }
    own_netns();
    let (everything, only_v4, only_v6) =
        (Tool::trace(&[]), Tool::trace(&["-4"]), Tool::trace(&["-6"]));
    // A dual-stack listener, reached over IPv4, and a client that writes IPv4 as IPv6.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a listener");
    let server_port = port(listener.local_addr());
    let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), server_port));
    let client = TcpStream::connect(mapped).expect("a connection");
    let (mut server, _) = listener.accept().expect("the other end");
    let client_port = port(client.local_addr());
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    drop(server);
    drop(listener);

    for printed in [everything.stop(), only_v4.stop()] {
        let client = printed.of_port(client_port);
        assert_eq!(steps(&client), ACTIVE);
        assert_identity(&client, "ipv4", "127.0.0.1");
        assert_all(&client, "raddr", &json!("127.0.0.1"));
        let server = passive(&printed, server_port);
        assert_eq!(steps(&server), PASSIVE);
        assert_identity(&server[1..], "ipv4", "127.0.0.1");
    }
    let printed = only_v6.stop();
    assert_eq!(
        steps(&printed.transitions()),
        ["close->listen", "listen->close"],
        "the listener is IPv6"
    );
    assert_eq!(printed.transitions()[0]["laddr"], "::");
}

#[test]
fn half_close_is_seen_on_both_ends() {
    if skipped("half_close_is_seen_on_both_ends") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let mut pair = connect((Ipv4Addr::LOCALHOST, 0));
    let (client_port, server_port) = (pair.client_port, pair.server_port);
    pair.client.shutdown(Shutdown::Write).expect("a half close");
    assert_eq!(pair.server.read(&mut [0]).expect("the end"), 0);
    thread::sleep(Duration::from_millis(50));
    pair.server
        .write_all(b"still here")
        .expect("the other direction is open");
    pair.client
        .read_exact(&mut [0; 10])
        .expect("the other direction is open");
    drop(pair.server);
    assert_eq!(pair.client.read(&mut [0]).expect("the end"), 0);
    drop(pair.client);
    let printed = tool.stop();
    let client = printed.of_port(client_port);
    assert_eq!(steps(&client), ACTIVE);
    assert_eq!(client[2]["via"], "shutdown");
    let half_closed = seconds(&client[3]) + seconds(&client[4]);
    assert!(
        half_closed >= 0.050,
        "FIN_WAIT1 and FIN_WAIT2 of the full socket: {half_closed}"
    );
    let server = passive(&printed, server_port);
    assert_eq!(steps(&server), PASSIVE);
    assert!(seconds(&server[3]) >= 0.050, "CLOSE_WAIT");
}

#[test]
fn shutdown_of_both_directions_is_no_close() {
    if skipped("shutdown_of_both_directions_is_no_close") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let mut pair = connect((Ipv4Addr::LOCALHOST, 0));
    let client_port = pair.client_port;
    pair.client.shutdown(Shutdown::Both).expect("a shutdown");
    assert_eq!(pair.server.read(&mut [0]).expect("the end"), 0);
    drop(pair.client);
    drop(pair.server);
    let printed = tool.stop();
    let client = printed.of_port(client_port);
    assert_eq!(client[2]["new"], "fin_wait1");
    assert_eq!(client[2]["via"], "shutdown");
}

#[test]
fn simultaneous_close_passes_closing() {
    if skipped("simultaneous_close_passes_closing") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let pair = connect((Ipv4Addr::LOCALHOST, 0));
    let (client_port, server_port) = (pair.client_port, pair.server_port);
    // Both FINs are lost, so both ends are in FIN_WAIT1 when the first is sent again.
    crate::support::loopback(false);
    drop(pair.client);
    drop(pair.server);
    crate::support::loopback(true);
    thread::sleep(Duration::from_secs(2));
    let printed = tool.stop();
    let both = [printed.of_port(client_port), passive(&printed, server_port)];
    let both = both.map(|lines| steps(&lines[2..]));
    assert!(
        both.iter()
            .all(|steps| steps[0] == "established->fin_wait1"),
        "{both:?}"
    );
    assert!(
        both.iter().any(|steps| steps[1] == "fin_wait1->closing"),
        "{both:?}"
    );
    assert!(
        both.iter()
            .all(|steps| steps.last().is_some_and(|last| last.ends_with("->close"))),
        "{both:?}"
    );
}

#[test]
fn refused_connect_says_why() {
    if skipped("refused_connect_says_why") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).is_err());
    let printed = tool.stop();
    let lines = printed.transitions();
    assert_eq!(steps(&lines), ["close->syn_sent", "syn_sent->close"]);
    assert_eq!(lines[1]["error"], "ECONNREFUSED");
    assert_eq!(lines[1]["rport"], 9);
    assert!(
        lines[1]["lport"].is_u64(),
        "the port is known by now: {}",
        lines[1]
    );
}

#[test]
fn aborts_are_told_apart_from_resets() {
    if skipped("aborts_are_told_apart_from_resets") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let lingering = connect((Ipv4Addr::LOCALHOST, 0));
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set_option(&lingering.client, libc::SO_LINGER, &linger);
    let unread = connect((Ipv4Addr::LOCALHOST, 0));
    (&unread.server).write_all(b"never read").expect("sent");
    unread.client.peek(&mut [0]).expect("it has arrived");
    let ports = [
        (lingering.client_port, lingering.server_port),
        (unread.client_port, unread.server_port),
    ];
    drop(lingering.client);
    drop(unread.client);
    assert!((&lingering.server).read(&mut [0]).is_err(), "reset");
    assert!((&unread.server).read(&mut [0]).is_err(), "reset");
    let printed = tool.stop();
    for (client_port, server_port) in ports {
        let client = printed.of_port(client_port);
        assert_eq!(steps(&client[2..]), ["established->close"]);
        assert_eq!(client[2]["error"], Value::Null, "our own abort is no error");
        assert_eq!(client[2]["via"], "close");
        let server = passive(&printed, server_port);
        assert_eq!(steps(&server[2..]), ["established->close"]);
        assert_eq!(server[2]["error"], "ECONNRESET");
    }
}

#[test]
fn a_socket_reconnected_after_a_disconnect_has_two_lives() {
    if skipped("a_socket_reconnected_after_a_disconnect_has_two_lives") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let pair = connect((Ipv4Addr::LOCALHOST, 0));
    raw_connect(&pair.client, libc::AF_UNSPEC, 0);
    raw_connect(&pair.client, libc::AF_INET, pair.server_port);
    drop(pair.client);
    let printed = tool.stop();
    let mut lines = printed.transitions();
    lines.retain(|line| line["rport"] == pair.server_port);
    let steps = steps(&lines);
    assert_eq!(
        steps[..5],
        [
            "close->syn_sent",
            "syn_sent->established",
            "established->close",
            "close->syn_sent",
            "syn_sent->established"
        ]
    );
    assert_all(&lines, "damaged", &json!(false));
    let again = lines
        .iter()
        .rposition(|line| line["new"] == "syn_sent")
        .expect("the second connect");
    assert_eq!(
        lines[again]["lport"],
        Value::Null,
        "the port of the life before is not that of this one"
    );
    assert_eq!(lines[again]["rport"], pair.server_port);
}

#[test]
fn an_error_and_a_peer_of_the_life_before_are_not_shown_again() {
    if skipped("an_error_and_a_peer_of_the_life_before_are_not_shown_again") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    // SAFETY: a call without pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    assert!(socket >= 0);
    // SAFETY: the descriptor is ours and is used nowhere else.
    let socket = unsafe { <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(socket) };
    assert!(connect_loopback(&socket, 9).is_err(), "refused");
    // SAFETY: a call without pointers.
    assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 1) }, 0);
    drop(socket);
    let lines = tool.stop().transitions();
    assert_eq!(
        steps(&lines),
        [
            "close->syn_sent",
            "syn_sent->close",
            "close->listen",
            "listen->close"
        ]
    );
    assert_eq!(lines[1]["error"], "ECONNREFUSED");
    assert_all(&lines[2..], "error", &Value::Null);
    assert_all(&lines[2..], "raddr", &Value::Null);
    assert_all(&lines[2..], "rport", &Value::Null);
    assert_ne!(lines[2]["lport"], lines[1]["lport"]);
}

/// Nobody's close(): the garbage collector of unix sockets drops the last reference, in a kernel thread.
#[test]
fn a_kernel_thread_is_nobodys_process() {
    if skipped("a_kernel_thread_is_nobodys_process") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let alone = nobody_starts();
    let pair = connect((Ipv4Addr::LOCALHOST, 0));
    let client_port = pair.client_port;
    forget_in_a_cycle(pair.client);
    drop(alone);
    thread::sleep(Duration::from_millis(500));
    let lines = tool.stop().of_port(client_port);
    let closing = lines
        .iter()
        .find(|line| line["new"] == "fin_wait1")
        .expect("it was closed");
    assert_eq!(
        closing["pid"],
        std::process::id(),
        "the owner is known: {closing}"
    );
    // Old kernels collect in the process that closes the next unix socket: that is in its own call then.
    let own_call = (closing["via"] == "close", closing["tid"].is_u64());
    let learnt_earlier = (closing["via"] != "connect", closing["tid"].is_u64());
    assert!(
        own_call == (true, true) || learnt_earlier == (false, false),
        "{closing}"
    );
}

/// Sends a socket and both ends of a unix socket pair through that pair, and closes them all: only the kernel can find
/// that nobody has them any more.
fn forget_in_a_cycle(socket: TcpStream) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let (one, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let descriptors = [socket.as_raw_fd(), one.as_raw_fd(), other.as_raw_fd()];
    for end in [&one, &other] {
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let data = [std::io::IoSlice::new(b"x")];
        sendmsg::<()>(end.as_raw_fd(), &data, &rights, MsgFlags::empty(), None).expect("sent");
    }
    drop((socket, one, other));
    // The collector runs when the next unix socket is closed.
    drop(std::os::unix::net::UnixStream::pair().expect("a pair"));
}

#[test]
fn a_listener_and_its_children_have_an_owner() {
    if skipped("a_listener_and_its_children_have_an_owner") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a listener");
    let server_port = port(listener.local_addr());
    drop(listener);
    let printed = tool.stop();
    let lines = printed.of_port(server_port);
    assert_eq!(steps(&lines), ["close->listen", "listen->close"]);
    assert_eq!(lines[0]["laddr"], "0.0.0.0");
    assert_eq!(lines[0]["raddr"], Value::Null);
    assert_eq!(lines[0]["rport"], Value::Null);
    assert_eq!(
        (&lines[0]["via"], &lines[1]["via"]),
        (&json!("listen"), &json!("close"))
    );
    assert_eq!(lines[1]["bound"], "exact");
}

/// Two processes listen on one port; each child belongs to the one that accepts it.
#[test]
fn children_of_reuseport_listeners_belong_to_their_own() {
    if skipped("children_of_reuseport_listeners_belong_to_their_own") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let servers = [(); 2].map(|()| Server::start(CLOSES_FIRST, 7001));
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7001)).expect("a connection");
        clients.push((port(client.local_addr()), client));
    }
    // Each server says which clients it has accepted: the witness.
    let mut accepted = std::collections::HashMap::new();
    for (client_port, mut client) in clients {
        let mut pid = [0; 4];
        client
            .read_exact(&mut pid)
            .expect("the process that accepted us");
        accepted.insert(client_port, u32::from_be_bytes(pid));
    }
    drop(servers);
    let printed = tool.stop();
    let mut seen = std::collections::HashMap::new();
    for line in printed.transitions().iter().filter(|line| {
        line["old"] == "syn_recv" && line["new"] == "established" && line["lport"] == 7001
    }) {
        assert_eq!(line["via"], "listener", "{line}");
        let client = u16::try_from(line["rport"].as_u64().expect("a port")).expect("a port");
        seen.insert(
            client,
            u32::try_from(line["pid"].as_u64().expect("a process")).expect("a pid"),
        );
    }
    assert_eq!(seen, accepted);
    let owners: std::collections::HashSet<_> = accepted.values().collect();
    assert_eq!(owners.len(), 2, "both servers took part");
}

#[test]
fn two_namespaces_are_kept_apart() {
    if skipped("two_namespaces_are_kept_apart") {
        return;
    }
    own_netns();
    let here = Tool::trace(&[]);
    let everywhere = Tool::start(&["trace", "-j", "-L", "7100", "-D", "7100"]);
    let lives = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7100)).expect("a listener");
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, 7100)).expect("a connection");
        drop((client, listener));
    };
    lives();
    thread::spawn(move || {
        own_netns();
        lives();
    })
    .join()
    .expect("the other namespace");
    // Linux before 5.12 tells no cookies of namespaces; their numbers differ as long as both live.
    let namespaces = |printed: &Printed| {
        let mut numbers: Vec<_> = printed
            .transitions()
            .iter()
            .filter_map(|line| line["netns_cookie"].as_u64().or(line["netns"].as_u64()))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.len()
    };
    assert_eq!(namespaces(&here.stop()), 1);
    // -L and -D must both agree: nothing has port 7100 on both ends.
    assert_eq!(namespaces(&everywhere.stop()), 0);
    let everywhere = Tool::start(&["trace", "-j", "-D", "7100"]);
    lives();
    thread::spawn(move || {
        own_netns();
        lives();
    })
    .join()
    .expect("the other namespace");
    assert_eq!(namespaces(&everywhere.stop()), 2);
}

#[test]
fn every_transition_of_ten_thousand_connections_is_accounted_for() {
    const CONNECTIONS: u64 = 10_000;
    if skipped("every_transition_of_ten_thousand_connections_is_accounted_for") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&[]);
    let alone = nobody_starts();
    churn(CONNECTIONS);
    drop(alone);
    let printed = tool.stop();
    let mut counts = std::collections::BTreeMap::new();
    for step in steps(&printed.transitions()) {
        *counts.entry(step).or_insert(0_u64) += 1;
    }
    for step in ACTIVE.iter().chain(&PASSIVE) {
        assert_eq!(
            counts.get(*step),
            Some(&CONNECTIONS),
            "{step} in {counts:?}"
        );
    }
    let summary = printed.summary();
    assert_eq!(
        summary["events"],
        CONNECTIONS * 10 + 2,
        "and the listener: {counts:?}"
    );
    assert_eq!(summary["connections"], CONNECTIONS * 2 + 1);
    assert_eq!(summary["damaged"], 0);
    assert_eq!(
        summary["loss"],
        json!({"ring_full": 0, "undecodable": 0, "table_full": 0, "unread": 0, "not_found": 0, "missed": 0, "unrecorded": 0})
    );
    assert_all(&printed.transitions(), "pid", &json!(std::process::id()));
}

/// Times behind a hole that is not known yet must not be told as bounds.
#[test]
fn under_overload_no_false_bound_is_told_and_the_end_comes() {
    const CONNECTIONS: u64 = 5_000;
    if skipped("under_overload_no_false_bound_is_told_and_the_end_comes") {
        return;
    }
    own_netns();
    let began = Instant::now();
    let tool = Tool::trace(&["--buffer", "64K", "--skip-existing"]);
    churn(CONNECTIONS);
    let whole = began.elapsed().as_secs_f64();
    let printed = tool.stop();
    let summary = printed.summary();
    // A first event whose connection was never heard of again belongs to nobody we could tell.
    let missing = [&summary["loss"]["ring_full"], &summary["undecided"]];
    let missing: u64 = missing.iter().filter_map(|count| count.as_u64()).sum();
    assert_eq!(
        printed.transitions().len() as u64 + missing,
        CONNECTIONS * 10 + 2,
        "{summary}"
    );
    for line in printed.transitions() {
        // Every connection began while we looked.
        assert_ne!(line["bound"], "at_least", "{line}");
        if line["seconds"].is_f64() {
            assert!(seconds(&line) <= whole, "{line}");
        }
    }
}

#[test]
fn what_is_lost_is_counted_and_marked() {
    const CONNECTIONS: u64 = 2_000;
    if skipped("what_is_lost_is_counted_and_marked") {
        return;
    }
    own_netns();
    let tool = Tool::trace(&["--buffer", "64K"]);
    let kept = connect((Ipv4Addr::LOCALHOST, 0));
    let client_port = kept.client_port;
    thread::sleep(Duration::from_millis(200));
    tool.signal(nix::sys::signal::Signal::SIGSTOP);
    churn(CONNECTIONS);
    drop(kept.client);
    drop(kept.server);
    tool.signal(nix::sys::signal::Signal::SIGCONT);
    thread::sleep(Duration::from_millis(300));
    drop(kept.listener);
    let printed = tool.stop();
    let lost: u64 = printed
        .events("loss")
        .iter()
        .filter_map(|loss| loss["count"].as_u64())
        .sum();
    assert!(lost > 0);
    assert_eq!(printed.summary()["loss"]["ring_full"], lost);
    assert!(
        printed.err.contains(&format!("LOST {lost}")),
        "{}",
        printed.err
    );
    // What came and what was lost is all there was: the churn, its listener, the kept connection and its listener.
    let came = printed.transitions().len() as u64;
    let lost = lost + printed.summary()["undecided"].as_u64().expect("a count");
    assert_eq!(came + lost, CONNECTIONS * 10 + 2 + 10 + 2);
    assert_eq!(
        steps(&printed.of_port(client_port)),
        ["close->syn_sent", "syn_sent->established"]
    );
}

/// Opens and closes this many connections, one after the other; the client closes first.
pub fn churn(connections: u64) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a listener");
    let server_port = port(listener.local_addr());
    for number in 0..connections {
        let address = Ipv4Addr::from(0x7f00_0001 + u32::try_from(number % 64).expect("small"));
        let client = TcpStream::connect((address, server_port)).expect("a connection");
        let (mut server, _) = listener.accept().expect("the other end");
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
    }
}

/// Closes with a RST.
pub fn abort(socket: TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set_option(&socket, libc::SO_LINGER, &linger);
    drop(socket);
}

fn set_option<T>(socket: &TcpStream, option: libc::c_int, value: &T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("small");
    // SAFETY: the value lives through the call and has the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// connect() as the system call has it, to loopback; `AF_UNSPEC` disconnects.
fn raw_connect(socket: &TcpStream, family: libc::c_int, port: u16) {
    system_connect(socket, family, port).expect("a connection");
}

/// connect() to a port of loopback.
pub fn connect_loopback(socket: &TcpStream, port: u16) -> std::io::Result<()> {
    system_connect(socket, libc::AF_INET, port)
}

fn system_connect(socket: &TcpStream, family: libc::c_int, port: u16) -> std::io::Result<()> {
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(family).expect("small"),
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
        },
        sin_zero: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
    // SAFETY: the address lives through the call and has the size given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A listener that shares its port of loopback with others.
pub fn reuse_port_listener(port: u16) -> TcpListener {
    // SAFETY: a call without pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    assert!(socket >= 0);
    // SAFETY: the descriptor is ours and is used nowhere else.
    let socket = unsafe { <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(socket) };
    set_option(&socket, libc::SO_REUSEPORT, &1_i32);
    let address = libc::sockaddr_in {
        sin_family: 2,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
        },
        sin_zero: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
    // SAFETY: the address lives through the call and has the size given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a call without pointers.
    assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 128) }, 0);
    TcpListener::from(std::os::fd::OwnedFd::from(socket))
}
