//! TIME_WAITs: many, without room, cut short, and taken over by SYNs.

use std::net::TcpListener;

use serde_json::Value;

use super::{connect, doctor, findings, listener, seen, time_waits};
use crate::{
    counters::counter,
    peer::{self, Peer, close},
    support::{lacks_timewait, nobody_starts, own_netns, skipped, sysctl, text},
    views::wait_until,
    wire::{ACK, FIN, RST, SYN, Segment, Wire},
};

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

/// A connection that the kernel has accepted and closed first, as its peer sees it.
fn served<'wire>(
    wire: &'wire Wire,
    server: &TcpListener,
    from: u16,
    clock: Option<u32>,
) -> Peer<'wire> {
    let port = server.local_addr().expect("bound").port();
    let mut peer = Peer::connect(wire, from, port, clock);
    let (socket, _) = server.accept().expect("the other end");
    close(socket, &mut peer);
    peer.send(FIN | ACK, b"");
    peer.expect_acknowledgement();
    peer
}

#[test]
fn time_waits_that_a_rst_ends_are_told_from_those_that_do_not_mind() {
    const TEST: &str = "time_waits_that_a_rst_ends_are_told_from_those_that_do_not_mind";
    if skipped(TEST) || lacks_timewait(TEST) || Wire::is_missing(TEST) {
        return;
    }
    for (ignores, left) in [("0", 0), ("1", 12)] {
        own_netns();
        sysctl("net/ipv4/tcp_rfc1337", ignores);
        let wire = Wire::new();
        let server = peer::listener(7971);
        let tool = doctor(&["--many-time-waits", "1"]);
        for from in 9000..9012 {
            let peer = served(&wire, &server, from, None);
            peer.send_as_it_is(&peer.next(RST));
        }
        wait_until("RSTs have come", || time_waits() == left);
        let printed = tool.stop();
        let (found, code) = findings(&printed, "cut-short");
        assert_eq!(code, Some(0), "{}", printed.out);
        assert_eq!(found.len(), usize::from(left == 0), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "notice");
            assert_eq!(seen(found, "rst"), 12);
            assert_eq!(seen(found, "ended"), 12);
            assert_eq!(seen(found, "tcp_rfc1337"), "0");
            let cause = &found["causes"][0];
            assert_eq!(cause["peer"], "10.9.0.2");
            assert_eq!(cause["service"], "10.9.0.1:7971");
            assert_eq!(cause["pid"], std::process::id());
            assert_eq!(cause["count"], 12);
        }
        assert_eq!(time_waits(), left, "as before");
    }
}

#[test]
fn syns_that_are_too_old_for_time_wait_are_told_from_new_ones() {
    const TEST: &str = "syns_that_are_too_old_for_time_wait_are_told_from_new_ones";
    if skipped(TEST) || lacks_timewait(TEST) || Wire::is_missing(TEST) {
        return;
    }
    let names = std::fs::read_to_string("/proc/net/netstat").expect("counters");
    // Of TIME_WAIT alone, or on older kernels of open connections too.
    let name = ["PAWSTimewait", "PAWSEstab"]
        .into_iter()
        .find(|name| names.contains(name))
        .expect("a counter");
    for old in [true, false] {
        own_netns();
        let wire = Wire::new();
        let server = peer::listener(7972);
        let tool = doctor(&["--taken-over", "4"]);
        let mut again = Vec::new();
        for from in 9000..9004 {
            let mut peer = served(&wire, &server, from, Some(1_000_000));
            if old {
                let syn = Segment {
                    seq: peer.seq.wrapping_add(1_000_000),
                    timestamps: Some((500_000, 0)),
                    ..peer.next(SYN)
                };
                peer.send_as_it_is(&syn);
                peer.expect(ACK);
                peer.send_as_it_is(&peer.next(RST));
            } else {
                peer.seq = peer.seq.wrapping_add(1_000_000);
                peer.clock = Some(1_000_001);
                peer.send(SYN, b"");
                peer.expect(SYN | ACK);
                peer.send(ACK, b"");
                again.push(server.accept().expect("the next connection"));
            }
        }
        wait_until("they have ended", || time_waits() == 0);
        let counted = counter(name);
        assert_eq!(counted, if old { 4 } else { 0 }, "what the kernel counts");
        let printed = tool.stop();
        let (found, code) = findings(&printed, "nat");
        assert_eq!(code, Some(0), "{}", printed.out);
        if name == "PAWSEstab" && old {
            // That TIME_WAIT began anew may have been too soon after to be heard.
            assert!(found.len() <= 1, "{}", printed.out);
        } else {
            assert_eq!(found.len(), 1, "{}", printed.out);
            let severity = if old { "notice" } else { "fine" };
            assert_eq!(found[0]["severity"], severity, "{}", printed.out);
            assert_eq!(seen(&found[0], "refused"), counted);
            assert_eq!(seen(&found[0], "reused_syn"), 4 - counted);
            assert_eq!(found[0]["causes"][0]["peer"], "10.9.0.2");
            assert_eq!(found[0]["causes"][0]["count"], 4);
        }
        drop(again);
    }
}

/// Most connections of a client that comes from one address, and as many that are too slow to come round.
#[test]
fn many_connections_from_one_address_are_told_from_a_few() {
    const TEST: &str = "many_connections_from_one_address_are_told_from_a_few";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    for (rate, told) in [("0.001", true), ("80000", false)] {
        own_netns();
        let (server, address) = listener(7973);
        let tool = doctor(&["--peer-rate", rate]);
        let alone = nobody_starts();
        for _ in 0..12 {
            connect(&server, address, false).expect("a connection");
        }
        drop(alone);
        let printed = tool.stop();
        let (found, code) = findings(&printed, "nat");
        assert_eq!(code, Some(0), "{}", printed.out);
        assert_eq!(found.len(), usize::from(told), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "fine");
            assert_eq!(seen(found, "most_from_one"), 12);
            let evidence = Value::to_string(&found["evidence"]);
            assert!(
                evidence.contains("12 connections from 127.0.0.1 to"),
                "{evidence}"
            );
            assert!(text(&found["avoid"]).contains("tcp_tw_recycle"));
        }
    }
}
