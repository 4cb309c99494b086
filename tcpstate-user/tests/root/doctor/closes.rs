//! Who closes first at a listening port, and both at the same time.

use std::net::TcpStream;

use nix::sys::socket::{setsockopt, sockopt};

use super::{connect, doctor, findings, listener, seen, time_waits};
use crate::{
    peer::{self, Peer, close},
    support::{lacks_timewait, nobody_starts, own_netns, skipped, text},
    wire::{ACK, FIN, Segment, Wire},
};

#[test]
fn a_server_that_closes_first_is_told_from_one_whose_clients_do() {
    const TEST: &str = "a_server_that_closes_first_is_told_from_one_whose_clients_do";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    // So many a minute that they are worth a word, or not.
    for (many, worth) in [("1", true), ("100000000", false)] {
        own_netns();
        let (first, to_first) = listener(7974);
        let (then, to_then) = listener(7975);
        let tool = doctor(&["--closes", "12", "--many-time-waits", many]);
        let alone = nobody_starts();
        for _ in 0..12 {
            connect(&first, to_first, false).expect("a connection");
            connect(&then, to_then, true).expect("a connection");
        }
        drop(alone);
        let printed = tool.stop();
        let (found, code) = findings(&printed, "first-close");
        assert_eq!(code, Some(0), "{}", printed.out);
        assert_eq!(found.len(), 2, "{}", printed.out);
        for found in &found {
            let by_server = text(&found["sentence"]).starts_with("on port 7974 the server");
            let by_client = text(&found["sentence"]).starts_with("on port 7975 clients");
            assert!(by_server || by_client, "{found}");
            let (ours, theirs) = if by_server { (12, 0) } else { (0, 12) };
            assert_eq!(seen(found, "local_first"), ours);
            assert_eq!(seen(found, "remote_first"), theirs);
            assert_eq!(seen(found, "time_waits"), ours);
            assert_eq!(found["causes"][0]["pid"], std::process::id());
            assert_eq!(found["causes"][0]["count"], 12);
            let severity = if by_server && worth { "notice" } else { "fine" };
            assert_eq!(found["severity"], severity, "{}", printed.out);
        }
    }
}

/// SO_LINGER 0 in all connections of a port, or in half of them.
#[test]
fn a_server_that_resets_is_told_from_one_that_gets_time_wait() {
    const TEST: &str = "a_server_that_resets_is_told_from_one_that_gets_time_wait";
    if skipped(TEST) || lacks_timewait(TEST) {
        return;
    }
    own_netns();
    let (resets, to_resets) = listener(7977);
    let (mixed, to_mixed) = listener(7978);
    let tool = doctor(&["--closes", "12"]);
    let alone = nobody_starts();
    for of in 0..12 {
        for (server, address, by_rst) in
            [(&resets, to_resets, true), (&mixed, to_mixed, of % 2 == 0)]
        {
            let client = TcpStream::connect(address).expect("a connection");
            let (accepted, _) = server.accept().expect("it comes");
            if by_rst {
                let at_once = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&accepted, sockopt::Linger, &at_once).expect("an option");
            }
            drop(accepted);
            drop(client);
        }
    }
    assert_eq!(time_waits(), 6, "what the kernel lists");
    drop(alone);
    let printed = tool.stop();
    let (found, code) = findings(&printed, "first-close");
    assert_eq!((found.len(), code), (2, Some(0)), "{}", printed.out);
    for found in &found {
        let mixed = text(&found["sentence"]).starts_with("on port 7978 the server");
        let why = text(&found["matters"]);
        assert_eq!(seen(found, "local_first"), 12);
        assert_eq!(seen(found, "local_rst"), if mixed { 6 } else { 12 });
        assert_eq!(seen(found, "time_waits"), if mixed { 6 } else { 0 });
        assert_eq!(why.contains("is the server's"), mixed, "{why}");
        assert_eq!(why.contains("leaves no TIME_WAIT"), !mixed, "{why}");
    }
}

#[test]
fn simultaneous_closes_are_told_from_one_after_the_other() {
    const TEST: &str = "simultaneous_closes_are_told_from_one_after_the_other";
    if skipped(TEST) || Wire::is_missing(TEST) {
        return;
    }
    for crossing in [true, false] {
        own_netns();
        let wire = Wire::new();
        let server = peer::listener(7976);
        let tool = doctor(&["--closes", "10"]);
        for from in 9000..9010 {
            let mut peer = Peer::connect(&wire, from, 7976, None);
            let (socket, _) = server.accept().expect("the other end");
            let fin = close(socket, &mut peer);
            if crossing && from < 9004 {
                // The peer has sent its FIN before it had ours.
                let crossing = Segment {
                    ack: fin.seq,
                    ..peer.next(FIN | ACK)
                };
                peer.send_as_it_is(&crossing);
                peer.seq = crossing.end();
                peer.expect_acknowledgement();
                peer.send(ACK, b"");
            } else {
                peer.send(FIN | ACK, b"");
                peer.expect_acknowledgement();
            }
        }
        let printed = tool.stop();
        let (found, code) = findings(&printed, "closing");
        assert_eq!(code, Some(0), "{}", printed.out);
        assert_eq!(found.len(), usize::from(crossing), "{}", printed.out);
        if let [found] = &found[..] {
            assert_eq!(found["severity"], "fine");
            assert_eq!(seen(found, "simultaneous"), 4);
            assert_eq!(seen(found, "closes"), 10);
            assert_eq!(found["causes"][0]["count"], 4);
        }
    }
}
