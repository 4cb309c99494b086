//! Connections that are opened in uncommon ways, or not at all. The witnesses are the peer and the application.

use std::{
    fs,
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    peer::{Peer, connecting},
    recording::record,
    segments::{connection, connections},
    support::{Tool, nobody_starts, own_netns, port, skipped, steps},
    wire::{ACK, RST, SYN, Wire},
};
use etherparse::icmpv4::DestUnreachableHeader;
use nix::sys::socket::{setsockopt, sockopt};

/// The states of the full sockets with this local port, as the namespace's list has them.
pub fn states_of(port: u16) -> Vec<String> {
    let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list of sockets");
    let local = format!(":{port:04X}");
    list.lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(1).is_some_and(|end| end.ends_with(&local)))
        .filter_map(|words| words.get(3).map(|state| (*state).to_owned()))
        .collect()
}

/// Waits for the end of a connect(), which fails.
fn failure(mut socket: &TcpStream) -> std::io::Error {
    socket.set_nonblocking(false).expect("an option");
    let limit = Some(Duration::from_secs(20));
    socket.set_read_timeout(limit).expect("an option");
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(error) = socket.take_error().expect("an option") {
            return error;
        }
        match socket.read(&mut [0]) {
            Err(error) if error.kind() != ErrorKind::NotConnected => return error,
            other => assert!(Instant::now() < until, "{other:?}"),
        }
    }
}

#[test]
fn a_simultaneous_open_of_two_sockets() {
    const TEST: &str = "a_simultaneous_open_of_two_sockets";
    if skipped(TEST) || Wire::is_missing(TEST) {
        return;
    }
    own_netns();
    let wire = Wire::new();
    let _recording = record("timer", "simultaneous_open");
    let (trace, conns) = (Tool::trace(&[]), connections("auto"));
    let both = (connecting(5001, 5002), connecting(5002, 5001));
    let established = ["01".to_owned()];
    wire.mirror(|| states_of(5001) == established && states_of(5002) == established);
    let (trace, conns) = (trace.stop(), conns.stop());
    drop(both);
    for port in [5001, 5002] {
        assert_eq!(
            steps(&trace.of_port(port)),
            [
                "close->syn_sent",
                "syn_sent->syn_recv",
                "syn_recv->established"
            ]
        );
        let connection = connection(&conns, port);
        assert_eq!(connection["opened"], "simultaneous");
        assert_eq!(connection["owner"]["via"], "connect");
        assert_eq!(connection["damaged"], false);
    }
}

#[test]
fn connects_that_fail_say_why() {
    const TEST: &str = "connects_that_fail_say_why";
    if skipped(TEST) || Wire::is_missing(TEST) {
        return;
    }
    own_netns();
    let wire = Wire::new();
    let _recording = record("timer", "failed_connects");
    let conns = connections("auto");
    let mut expected = Vec::new();
    let local = |socket: &TcpStream| port(socket.local_addr());

    let socket = connecting(0, 80);
    let mut peer = Peer::listen(&wire, 80);
    peer.expect(SYN);
    peer.send_as_it_is(&peer.next(RST | ACK));
    assert_eq!(failure(&socket).raw_os_error(), Some(libc::ECONNREFUSED));
    expected.push((80, "refused"));

    for (to, why, error, how) in [
        (
            81,
            DestUnreachableHeader::Port,
            libc::ECONNREFUSED,
            "refused",
        ),
        (
            82,
            DestUnreachableHeader::Host,
            libc::EHOSTUNREACH,
            "unreachable",
        ),
        (
            83,
            DestUnreachableHeader::Network,
            libc::ENETUNREACH,
            "unreachable",
        ),
    ] {
        let socket = connecting(0, to);
        let syn = Peer::listen(&wire, to).expect(SYN);
        assert_eq!(syn.from, local(&socket));
        wire.unreachable(&syn, why);
        assert_eq!(failure(&socket).raw_os_error(), Some(error));
        expected.push((to, how));
    }

    // The kernel sends the SYN again after a second, and gives up then.
    let socket = connecting(0, 84);
    setsockopt(&socket, sockopt::TcpUserTimeout, &100).expect("an option");
    let mut peer = Peer::listen(&wire, 84);
    peer.expect(SYN);
    assert_eq!(failure(&socket).raw_os_error(), Some(libc::ETIMEDOUT));
    expected.push((84, "timeout"));

    let socket = connecting(0, 85);
    let mut peer = Peer::listen(&wire, 85);
    peer.expect(SYN);
    let alone = nobody_starts();
    drop(socket);
    drop(alone);
    expected.push((85, "aborted"));

    // Without a route there is not even a SYN_SENT.
    let error = TcpStream::connect((Ipv4Addr::new(192, 0, 2, 1), 86)).expect_err("no route");
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));

    let conns = conns.stop();
    let told = conns.events("connection");
    assert_eq!(told.len(), expected.len(), "{}", conns.out);
    // The application hears of an error before the socket is closed, so the next one may be closed first.
    for (to, how) in expected {
        let line = told.iter().find(|line| line["rport"] == to);
        let line = line.unwrap_or_else(|| panic!("nothing of {to}: {}", conns.out));
        assert_eq!(line["how"], how, "{line}");
        assert_eq!(line["opened"], "active");
        assert_eq!(line["closed_first"], "none");
        assert!(line["lport"].is_u64(), "{line}");
        let syn_sent = line["states"]["syn_sent"].as_f64().expect("a time");
        if how == "timeout" {
            assert!(syn_sent >= 0.1, "{line}");
        }
    }
}
