//! Connections that are closed in uncommon ways, and what is told about them. The witness is the peer, its clock, and the
//! counters of the namespace.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use etherparse::icmpv4::DestUnreachableHeader;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::{
    counters::counter,
    opens::states_of,
    peer::{Peer, close, connecting, established, listener, reconnect},
    recording::record,
    segments::{connection, connections},
    support::{Tool, for_each_observer, nobody_starts, port, steps, sysctl, text},
    timewait::wait_until_gone,
    wire::{ACK, FIN, PSH, RST, SYN, Segment, Wire},
};

/// Seconds in a state, which must be exact.
fn in_state(connection: &Value, state: &str) -> f64 {
    // What it is still in, it is in for longer.
    let bounds = connection["bounds"].as_object().expect("an object");
    let now = connection["state"].as_str();
    assert!(
        bounds.keys().all(|bounded| now == Some(bounded)),
        "{connection}"
    );
    connection["states"][state]
        .as_f64()
        .unwrap_or_else(|| panic!("no time in {state}: {connection}"))
}

/// Waits until the application has got an error, and tells it.
fn failure(mut socket: TcpStream) -> Option<i32> {
    let limit = Some(Duration::from_secs(20));
    socket.set_read_timeout(limit).expect("an option");
    let error = socket.read(&mut [0]).expect_err("it breaks");
    error.raw_os_error()
}

#[test]
fn a_simultaneous_close_passes_closing_on_both_ends() {
    for_each_observer(
        "a_simultaneous_close_passes_closing_on_both_ends",
        |observer| {
            if Wire::is_missing("a_simultaneous_close_passes_closing_on_both_ends") {
                return;
            }
            let wire = Wire::new();
            let _recording = record(observer, "simultaneous_close");
            let (trace, conns) = (Tool::timewait(observer), connections(observer));
            let listener = listener(80);
            let client = connecting(5001, 80);
            let established = "01".to_owned();
            wire.mirror(|| {
                states_of(5001).contains(&established) && states_of(80).contains(&established)
            });
            let (server, _) = listener.accept().expect("the other end");
            let alone = nobody_starts();
            drop((client, server, listener));
            drop(alone);
            // Both FINs are in the wire now.
            let time_wait = ["06".to_owned()];
            wire.mirror(|| states_of(5001) == time_wait && states_of(80) == time_wait);
            let (trace, conns) = (trace.stop(), conns.stop());
            for port in [5001, 80] {
                let mut lines = trace.of_port(port);
                lines.retain(|line| line["rport"].is_u64());
                let steps = steps(&lines);
                let last: Vec<_> = steps.iter().rev().take(3).rev().collect();
                assert_eq!(
                    last,
                    [
                        "established->fin_wait1",
                        "fin_wait1->closing",
                        "closing->time_wait"
                    ],
                    "{steps:?}"
                );
                let connection = connection(&conns, port);
                assert_eq!(connection["closed_first"], "both");
                assert_eq!(connection["how"], "fin");
                assert_eq!(connection["time_wait"]["end"], "running");
            }
        },
    );
}

#[test]
fn closing_lasts_until_the_fin_is_acknowledged() {
    for_each_observer("closing_lasts_until_the_fin_is_acknowledged", |observer| {
        if Wire::is_missing("closing_lasts_until_the_fin_is_acknowledged") {
            return;
        }
        let wire = Wire::new();
        let _recording = record(observer, "closing");
        let conns = connections(observer);
        let (socket, mut peer) = established(&wire, 80);
        let local = port(socket.local_addr());
        let before = Instant::now();
        let fin = close(socket, &mut peer);
        let crossing = Segment {
            ack: fin.seq,
            ..peer.next(FIN | ACK)
        };
        peer.send_as_it_is(&crossing);
        peer.seq = crossing.end();
        peer.expect_acknowledgement();
        assert_eq!(states_of(local), ["0B"], "CLOSING");
        thread::sleep(Duration::from_millis(100));
        peer.send(ACK, b"");
        while states_of(local) != ["06"] {
            assert!(before.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(1));
        }
        let whole = before.elapsed().as_secs_f64();
        let connection = connection(&conns.stop(), local);
        assert!(
            (0.1..whole).contains(&in_state(&connection, "closing")),
            "{connection}"
        );
        assert_eq!(connection["closed_first"], "both");
        assert_eq!(connection["time_wait"]["end"], "running");
    });
}

#[test]
fn a_half_close_lasts_as_long_as_it_does() {
    for_each_observer("a_half_close_lasts_as_long_as_it_does", |observer| {
        if Wire::is_missing("a_half_close_lasts_as_long_as_it_does") {
            return;
        }
        let wire = Wire::new();
        let _recording = record(observer, "half_close");
        let conns = connections(observer);
        // The kernel closes its half, and gets nothing but an acknowledgement for a while, then data, then the FIN.
        let (mut socket, mut peer) = established(&wire, 80);
        let active = port(socket.local_addr());
        let began = Instant::now();
        socket.shutdown(Shutdown::Write).expect("a half-close");
        peer.expect(FIN | ACK);
        peer.send(ACK, b"");
        thread::sleep(Duration::from_millis(120));
        peer.send(PSH | ACK, b"more");
        socket.read_exact(&mut [0; 4]).expect("its half is open");
        peer.send(FIN | ACK, b"");
        peer.expect_acknowledgement();
        let half_closed = began.elapsed().as_secs_f64();
        drop(socket);

        // The peer closes its half.
        let (mut socket, mut peer) = established(&wire, 81);
        let passive = port(socket.local_addr());
        let began = Instant::now();
        peer.send(FIN | ACK, b"");
        assert_eq!(socket.read(&mut [0]).expect("the end"), 0);
        thread::sleep(Duration::from_millis(120));
        socket.write_all(b"more").expect("our half is open");
        assert_eq!(peer.expect_data().data, b"more");
        peer.send(ACK, b"");
        close(socket, &mut peer);
        let waited = began.elapsed().as_secs_f64();
        peer.send(ACK, b"");
        while !states_of(passive).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(1));
        }

        let conns = conns.stop();
        let active = connection(&conns, active);
        assert!(
            (0.120..half_closed).contains(&in_state(&active, "fin_wait2")),
            "{half_closed} {active}"
        );
        assert_eq!(
            (&active["closed_first"], &active["closer"]["via"]),
            (&"local".into(), &"shutdown".into())
        );
        let passive = connection(&conns, passive);
        assert!(
            (0.120..waited).contains(&in_state(&passive, "close_wait")),
            "{waited} {passive}"
        );
        assert_eq!(
            (&passive["closed_first"], &passive["how"]),
            (&"remote".into(), &"fin".into())
        );
        assert_eq!(passive["bytes_acked"], 4 + 2, "SYN and FIN count");
    });
}

/// After shutdown() the application still has the socket, and connects it again while its TIME_WAIT runs.
#[test]
fn time_wait_goes_on_without_its_socket() {
    for_each_observer("time_wait_goes_on_without_its_socket", |observer| {
        if Wire::is_missing("time_wait_goes_on_without_its_socket") {
            return;
        }
        let wire = Wire::new();
        let _recording = record(observer, "socket_used_again");
        let conns = connections(observer);
        let (socket, mut first) = established(&wire, 80);
        let before = port(socket.local_addr());
        socket.shutdown(Shutdown::Write).expect("a half-close");
        first.expect(FIN | ACK);
        first.send(FIN | ACK, b"");
        first.expect_acknowledgement();
        reconnect(&socket, 81);
        let second = Peer::accept(&wire, 81);
        let after = port(socket.local_addr());
        first.send_as_it_is(&first.next(RST));
        wait_until_gone(before);
        second.send_as_it_is(&second.next(RST));
        thread::sleep(Duration::from_millis(100));
        let conns = conns.stop();
        drop(socket);
        assert_ne!(before, after);
        let (before, after) = (connection(&conns, before), connection(&conns, after));
        // Without cookies each life has a number of its own, from 2^52 upwards.
        if before["cookie"].as_u64() < Some(1 << 52) {
            assert_eq!(before["cookie"], after["cookie"], "one socket");
        }
        for life in [&before, &after] {
            assert_eq!(life["opened"], "active", "{life}");
            assert_eq!(life["bounds"], json!({}));
        }
        assert!(text(&before["start"]) < text(&after["start"]));
        assert!(text(&before["end"]) < text(&after["end"]));
        assert_eq!(
            (&before["how"], &before["time_wait"]["end"]),
            (&"fin".into(), &"rst".into())
        );
        assert_eq!(
            (&after["how"], &after["time_wait"]),
            (&"rst_received".into(), &Value::Null)
        );
        assert!(
            after["states"]["established"].as_f64() > Some(0.3),
            "{after}"
        );
    });
}

#[test]
fn a_peer_that_falls_silent_is_a_timeout() {
    for_each_observer("a_peer_that_falls_silent_is_a_timeout", |observer| {
        if Wire::is_missing("a_peer_that_falls_silent_is_a_timeout") {
            return;
        }
        sysctl("net/ipv4/tcp_orphan_retries", "1");
        let wire = Wire::new();
        let _recording = record(observer, "silent_peers");
        let conns = connections(observer);
        let mut expected = Vec::new();
        // In the middle of the connection; the second time someone on the way says why.
        for (to, unreachable, error, how) in [
            (80, false, libc::ETIMEDOUT, "timeout"),
            (81, true, libc::EHOSTUNREACH, "unreachable"),
        ] {
            let (mut socket, mut peer) = established(&wire, to);
            setsockopt(&socket, sockopt::TcpUserTimeout, &300).expect("an option");
            socket.write_all(b"is anybody there?").expect("sent");
            let data = peer.expect_data();
            if unreachable {
                wire.unreachable(&data, DestUnreachableHeader::Host);
            }
            let local = port(socket.local_addr());
            assert_eq!(failure(socket), Some(error));
            expected.push((local, how, "none", "established"));
        }
        // After our FIN.
        let (socket, mut peer) = established(&wire, 82);
        let local = port(socket.local_addr());
        let began = Instant::now();
        close(socket, &mut peer);
        while !states_of(local).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(10));
        }
        expected.push((local, "timeout", "local", "fin_wait1"));

        let conns = conns.stop();
        for (local, how, closed_first, last) in expected {
            let connection = connection(&conns, local);
            assert_eq!(
                (&connection["how"], &connection["closed_first"]),
                (&how.into(), &closed_first.into()),
                "{connection}"
            );
            assert!(in_state(&connection, last) > 0.2, "{connection}");
            assert!(connection["retransmits"].as_u64() > Some(0), "{connection}");
        }
    });
}

#[test]
fn retransmissions_and_round_trip_times_are_those_the_peer_made() {
    for_each_observer(
        "retransmissions_and_round_trip_times_are_those_the_peer_made",
        |observer| {
            if Wire::is_missing("retransmissions_and_round_trip_times_are_those_the_peer_made") {
                return;
            }
            let wire = Wire::new();
            let _recording = record(observer, "slow_peer");
            let conns = connections(observer);
            let resent = counter("RetransSegs");
            let delay = Duration::from_millis(60);
            let mut longest = Duration::ZERO;
            // Every answer is late, so no sample of the round-trip time is shorter.
            let mut began = Instant::now();
            let mut socket = connecting(0, 80);
            let local = port(socket.local_addr());
            let mut peer = Peer::listen(&wire, 80);
            peer.expect(SYN);
            thread::sleep(delay);
            peer.send(SYN | ACK, b"");
            peer.expect(ACK);
            longest = longest.max(began.elapsed());
            socket.set_nonblocking(false).expect("an option");
            for _ in 0..3 {
                began = Instant::now();
                socket.write_all(b"ping").expect("sent");
                peer.expect_data();
                thread::sleep(delay);
                peer.send(ACK, b"");
                // The kernel has it when it answers what it cannot take.
                probe(&mut peer);
                longest = longest.max(began.elapsed());
            }
            // Now one is lost.
            socket.write_all(b"lost").expect("sent");
            peer.expect_data();
            peer.expect_again();
            peer.send(ACK, b"");
            began = Instant::now();
            close(socket, &mut peer);
            thread::sleep(delay);
            peer.send(FIN | ACK, b"");
            peer.expect_acknowledgement();
            longest = longest.max(began.elapsed());
            let resent = counter("RetransSegs") - resent;

            let connection = connection(&conns.stop(), local);
            let rtt = connection["rtt_us"].as_u64().expect("a time");
            let longest = u64::try_from(longest.as_micros()).expect("a short time");
            assert!((60_000..=longest).contains(&rtt), "{longest} {connection}");
            assert!(peer.again > 0);
            assert_eq!(connection["retransmits"], peer.again);
            assert_eq!(connection["retransmits"], resent);
        },
    );
}

/// An old byte once more, which the kernel acknowledges at once.
fn probe(peer: &mut Peer<'_>) {
    let old = Segment {
        seq: peer.seq.wrapping_sub(1),
        data: b"x".to_vec(),
        ..peer.next(ACK)
    };
    peer.send_as_it_is(&old);
    peer.expect(ACK);
}
