//! `tcpstate trace` on the real kernel: real sockets in a network namespace of each test's own. The witness is what
//! the test itself did.

mod fin;
mod lives;
mod losses;
mod namespaces;
mod owners;
mod rst;

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use serde_json::Value;

use crate::support::{Printed, port};

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
