//! Connections that both ends close by a FIN, one after the other, by halves, or at the same time.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{ACTIVE, PASSIVE, assert_all, close_client_first, connect, passive, seconds};
use crate::support::{Tool, loopback, nobody_starts, own_netns, port, skipped, steps};

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
    loopback(false);
    drop(pair.client);
    drop(pair.server);
    loopback(true);
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
