//! What hand-made segments do to a minisocket. The witnesses are what the peer sent and got, when, and the namespace's own
//! list with its timers.

use std::{fs, ops::RangeInclusive, thread, time::Duration};

use serde_json::Value;

use crate::{
    peer::{Peer, close, established, listener},
    recording::record,
    support::{Printed, Tool, for_each_observer, sysctl},
    timewait::{CLOSING, assert_ended, in_the_list, life, now, time_of, wait_until_gone},
    wire::{ACK, FIN, RST, SYN, Segment, Wire},
};

/// `tcpstate conns` for this namespace, with what still runs at the end.
pub fn connections(observer: &str) -> Tool {
    Tool::start(&[
        "conns",
        "-j",
        "--netns",
        "self",
        "--timewait",
        observer,
        "--running",
    ])
}

/// The connection with this port on the kernel's side.
pub fn connection(printed: &Printed, port: u16) -> Value {
    let mut found = printed.events("connection");
    found.retain(|line| line["lport"] == port);
    assert_eq!(found.len(), 1, "{}", printed.out);
    found.remove(0)
}

/// A connection whose minisocket waits for the FIN of the peer, and its port on the kernel's side.
fn half_closed(wire: &Wire, port: u16) -> (Peer<'_>, u16) {
    let (socket, mut peer) = established(wire, port);
    let local = crate::support::port(socket.local_addr());
    close(socket, &mut peer);
    peer.send(ACK, b"");
    (peer, local)
}

/// A connection in TIME_WAIT, the last segment that the peer sent, and the port on the kernel's side.
fn time_wait(wire: &Wire, port: u16) -> (Peer<'_>, Segment, u16) {
    let (socket, mut peer) = established(wire, port);
    let local = crate::support::port(socket.local_addr());
    close(socket, &mut peer);
    let fin = peer.send(FIN | ACK, b"");
    peer.expect_acknowledgement();
    (peer, fin, local)
}

/// The rest of the time of the minisocket with this local port, as the namespace's list tells, in seconds.
fn timer_left(port: u16) -> f64 {
    let list = fs::read_to_string("/proc/thread-self/net/tcp").expect("the list of sockets");
    let local = format!(":{port:04X}");
    let left = list.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let timer = words.get(5)?.strip_prefix("03:")?;
        let ours = words.get(1)?.ends_with(&local) && words.get(3) == Some(&"06");
        ours.then(|| u32::from_str_radix(timer, 16).ok())?
    });
    // In hundredths of a second (USER_HZ).
    f64::from(left.expect("it is in TIME_WAIT")) / 100.0
}

/// When the minisocket with this local port is due: not before, and not after, in seconds of some clock. To read the list
/// takes a while.
fn due(port: u16) -> (f64, f64) {
    let before = now();
    let left = timer_left(port);
    (before + left, now() + left)
}

/// How far a time told by the timer alone may be off: two ticks, and some milliseconds between us and the kernel.
fn slack() -> f64 {
    2.0 * tcpstate_user::clock::tick().as_secs_f64() + 0.005
}

/// The line with this new state and reason.
fn line(printed: &Printed, port: u16, new: &str, reason: Option<&str>) -> Value {
    let mut lines = printed.of_port(port);
    lines.retain(|line| {
        line["minisocket"] == true && line["new"] == new && line["reason"].as_str() == reason
    });
    assert_eq!(lines.len(), 1, "{new} {reason:?}: {}", printed.out);
    lines.remove(0)
}

/// Whether something happened between two looks at the clock.
fn is_within(time: f64, looks: &RangeInclusive<f64>, tolerance: f64) -> bool {
    (looks.start() - tolerance..=looks.end() + tolerance).contains(&time)
}

fn assert_within(time: f64, looks: &RangeInclusive<f64>, tolerance: f64) {
    let within = is_within(time, looks, tolerance);
    assert!(within, "{time} {looks:?} {tolerance}");
}

/// How much time may lie between two things that happened then.
fn between(first: &RangeInclusive<f64>, then: &RangeInclusive<f64>) -> RangeInclusive<f64> {
    then.start() - first.end()..=then.end() - first.start()
}

fn seconds(line: &Value) -> f64 {
    assert_eq!(line["bound"], "exact", "{line}");
    line["seconds"].as_f64().expect("a time")
}

#[test]
fn a_rst_ends_time_wait_unless_rfc1337_forbids() {
    for_each_observer("a_rst_ends_time_wait_unless_rfc1337_forbids", |observer| {
        if Wire::is_missing("a_rst_ends_time_wait_unless_rfc1337_forbids") {
            return;
        }
        let wire = Wire::new();
        let _recording = record(observer, "rst_in_time_wait");
        let (trace, conns) = (Tool::timewait(observer), connections(observer));
        let (mut peer, _, ended) = time_wait(&wire, 80);
        peer.send_as_it_is(&peer.next(RST));
        wait_until_gone(ended);
        peer.expect_silence(Duration::ZERO);

        sysctl("net/ipv4/tcp_rfc1337", "1");
        let (mut peer, _, kept) = time_wait(&wire, 81);
        let before = timer_left(kept);
        peer.send_as_it_is(&peer.next(RST));
        peer.expect_silence(Duration::from_millis(300));
        assert!(
            timer_left(kept) < before,
            "it goes on, and is not restarted"
        );

        let (trace, conns) = (trace.stop(), conns.stop());
        assert_ended(&trace, ended, "time_wait", "rst");
        let life = life(&trace, kept);
        assert_eq!(life.len(), 1, "born, and nothing else: {life:?}");
        assert_eq!(life[0].1, None);
        let ended = connection(&conns, ended);
        assert_eq!(
            (&ended["time_wait"]["end"], &ended["how"]),
            (&"rst".into(), &"fin".into())
        );
        let kept = connection(&conns, kept);
        assert_eq!(kept["time_wait"]["end"], "running");
        assert_eq!(kept["time_wait"]["bound"], "at_least");
        assert_eq!(kept["end"], Value::Null);
    });
}

#[test]
fn a_fin_that_comes_again_restarts_time_wait() {
    for_each_observer("a_fin_that_comes_again_restarts_time_wait", |observer| {
        if Wire::is_missing("a_fin_that_comes_again_restarts_time_wait") {
            return;
        }
        let wire = Wire::new();
        let _recording = record(observer, "fin_again_in_time_wait");
        let trace = Tool::timewait(observer);
        let mut lives = Vec::new();
        for (port, pause) in [
            // Nothing in the kernel tells of the second start: the timer stays in its bucket.
            (80, Duration::from_millis(300)),
            // The bucket of a minute is five seconds wide at most (HZ=100).
            (81, Duration::from_millis(5300)),
        ] {
            let before = now();
            let (mut peer, fin, local) = time_wait(&wire, port);
            let started = before..=now();
            thread::sleep(pause);
            let left = timer_left(local);
            let before = now();
            peer.send_as_it_is(&fin);
            peer.expect(ACK);
            let again = before..=now();
            assert!(timer_left(local) > left, "the witness: a minute again");
            thread::sleep(Duration::from_millis(100));
            let before = now();
            peer.send_as_it_is(&peer.next(RST));
            wait_until_gone(local);
            lives.push((local, started, again, before..=now()));
        }
        let trace = trace.stop();
        for (tolerance, (local, started, again, reset)) in [slack(), 0.005].into_iter().zip(lives) {
            let restart = line(&trace, local, "time_wait", Some("restarted"));
            assert_within(time_of(&restart), &again, tolerance);
            assert_within(seconds(&restart), &between(&started, &again), tolerance);
            let end = line(&trace, local, "close", Some("rst"));
            assert_eq!(end["old"], "time_wait");
            assert_within(time_of(&end), &reset, 0.005);
            assert_within(seconds(&end), &between(&started, &reset), 0.005);
        }
    });
}

#[test]
fn time_wait_begins_when_the_fin_comes_even_if_nothing_tells() {
    for_each_observer(
        "time_wait_begins_when_the_fin_comes_even_if_nothing_tells",
        |observer| {
            if Wire::is_missing("time_wait_begins_when_the_fin_comes_even_if_nothing_tells") {
                return;
            }
            let wire = Wire::new();
            let _recording = record(observer, "prompt_fin");
            let trace = Tool::timewait(observer);
            let mut lives = Vec::new();
            for (port, times) in [(80, 1), (81, 1), (82, 2), (83, 2)] {
                let (mut peer, local) = half_closed(&wire, port);
                thread::sleep(Duration::from_millis(50));
                let fin = peer.next(FIN | ACK);
                peer.seq = fin.end();
                let mut sent = Vec::new();
                for _ in 0..times {
                    let before = now();
                    peer.send_as_it_is(&fin);
                    peer.expect_acknowledgement();
                    sent.push(before..=now());
                    thread::sleep(Duration::from_millis(100));
                }
                peer.send_as_it_is(&peer.next(RST));
                lives.push((local, sent));
            }
            for (local, _) in &lives {
                wait_until_gone(*local);
            }
            let trace = trace.stop();
            for (local, sent) in lives {
                let fin = line(&trace, local, "time_wait", None);
                assert_eq!(fin["old"], "fin_wait2", "{fin}");
                assert!(fin["seconds"].as_f64() >= Some(0.050 - slack()), "{fin}");
                assert_ended(&trace, local, "time_wait", "rst");
                let end = line(&trace, local, "close", Some("rst"));
                let spent = end["seconds"].as_f64().expect("a time");
                if fin["bound"] == "exact" {
                    // The bucket ended just before the FIN came, so the kernel told.
                    assert_within(time_of(&fin), &sent[0], 0.005);
                    assert!(spent >= 0.100, "{end}");
                } else {
                    // One FIN is known, and nobody knows how many there were before.
                    assert_eq!(
                        (&fin["bound"], &end["bound"]),
                        (&"at_most".into(), &"at_least".into())
                    );
                    let mut looks = sent.iter();
                    let known = looks.any(|looks| is_within(time_of(&fin), looks, slack()));
                    assert!(known, "{fin}");
                    assert!(spent >= 0.100 - slack(), "{end}");
                }
            }
        },
    );
}

/// The first start of TIME_WAIT is silent, and the second one is not.
#[test]
fn a_restart_is_not_taken_for_the_fin_before_it() {
    for_each_observer("a_restart_is_not_taken_for_the_fin_before_it", |observer| {
        if Wire::is_missing("a_restart_is_not_taken_for_the_fin_before_it") {
            return;
        }
        let wire = Wire::new();
        let _recording = record(observer, "prompt_fin_again");
        let trace = Tool::timewait(observer);
        let (mut peer, local) = half_closed(&wire, 80);
        thread::sleep(Duration::from_millis(50));
        let before = now();
        let fin = peer.send(FIN | ACK, b"");
        peer.expect_acknowledgement();
        let first = before..=now();
        thread::sleep(Duration::from_millis(5300));
        let before = now();
        peer.send_as_it_is(&fin);
        peer.expect(ACK);
        let again = before..=now();
        peer.send_as_it_is(&peer.next(RST));
        wait_until_gone(local);
        let ended = *again.end()..=now();
        let trace = trace.stop();
        let started = line(&trace, local, "time_wait", None);
        assert_eq!(started["old"], "fin_wait2", "{started}");
        assert_within(time_of(&started), &first, slack());
        let restart = line(&trace, local, "time_wait", Some("restarted"));
        assert_within(time_of(&restart), &again, 0.005);
        let end = line(&trace, local, "close", Some("rst"));
        let whole = end["seconds"].as_f64().expect("a time");
        assert_within(whole, &between(&first, &ended), slack());
    });
}

#[test]
fn what_ends_fin_wait2_is_told_apart() {
    for_each_observer("what_ends_fin_wait2_is_told_apart", |observer| {
        if Wire::is_missing("what_ends_fin_wait2_is_told_apart") {
            return;
        }
        sysctl("net/ipv4/tcp_fin_timeout", "1");
        let wire = Wire::new();
        let _recording = record(observer, "ends_of_fin_wait2");
        let (trace, conns) = (Tool::timewait(observer), connections(observer));
        let (mut peer, reset) = half_closed(&wire, 80);
        peer.send_as_it_is(&peer.next(RST | ACK));
        peer.expect_silence(Duration::from_millis(50));

        let (mut peer, data) = half_closed(&wire, 81);
        peer.send(ACK, b"nobody reads this");
        peer.expect(RST);

        let (mut peer, finished) = half_closed(&wire, 82);
        peer.send(FIN | ACK, b"");
        peer.expect_acknowledgement();

        let (mut peer, late) = half_closed(&wire, 83);
        wait_until_gone(late);
        peer.send(FIN | ACK, b"");
        peer.expect(RST);
        assert!(in_the_list(finished, &CLOSING));
        assert!(!in_the_list(reset, &CLOSING) && !in_the_list(data, &CLOSING));

        let (trace, conns) = (trace.stop(), conns.stop());
        for (port, reason, how) in [
            (reset, "rst", "rst_received"),
            (data, "reset_half_close", "rst_sent"),
            (late, "expired", "timeout"),
        ] {
            assert_ended(&trace, port, "fin_wait2", reason);
            let connection = connection(&conns, port);
            assert_eq!(
                (&connection["how"], &connection["time_wait"]),
                (&how.into(), &Value::Null),
                "{connection}"
            );
            assert_eq!(connection["closed_first"], "local");
        }
        let finished = connection(&conns, finished);
        assert_eq!(
            (&finished["how"], &finished["time_wait"]["end"]),
            (&"fin".into(), &"running".into())
        );
    });
}

/// A connection that the kernel has accepted and closed first, its listener, and what the peer would send next.
fn accepted(wire: &Wire, port: u16, clock: Option<u32>) -> (std::net::TcpListener, Peer<'_>) {
    let listener = listener(port);
    let mut peer = Peer::connect(wire, 9000, port, clock);
    let (socket, _) = listener.accept().expect("the other end");
    close(socket, &mut peer);
    peer.send(FIN | ACK, b"");
    peer.expect_acknowledgement();
    (listener, peer)
}

#[test]
fn a_new_syn_takes_time_wait_over_and_an_old_one_does_not() {
    for_each_observer(
        "a_new_syn_takes_time_wait_over_and_an_old_one_does_not",
        |observer| {
            if Wire::is_missing("a_new_syn_takes_time_wait_over_and_an_old_one_does_not") {
                return;
            }
            let wire = Wire::new();
            let _recording = record(observer, "syn_in_time_wait");
            let trace = Tool::timewait(observer);
            // By sequence number.
            let (listening, mut peer) = accepted(&wire, 80, None);
            let left = timer_left(80);
            let old = Segment {
                seq: peer.seq.wrapping_sub(500_000),
                ..peer.next(SYN)
            };
            peer.send_as_it_is(&old);
            peer.expect(ACK);
            assert!(timer_left(80) <= left, "nor does it restart TIME_WAIT");
            peer.seq = peer.seq.wrapping_add(1_000_000);
            peer.send(SYN, b"");
            peer.expect(SYN | ACK);
            peer.send(ACK, b"");
            let again = listening.accept().expect("the next connection");

            // By timestamp, though the sequence number is lower.
            let (listening, mut peer) = accepted(&wire, 81, Some(1_000_000));
            let (due_before, before) = (due(81), now());
            thread::sleep(Duration::from_millis(100));
            let old = Segment {
                seq: peer.seq.wrapping_add(1_000_000),
                timestamps: Some((500_000, 0)),
                ..peer.next(SYN)
            };
            peer.send_as_it_is(&old);
            peer.expect(ACK);
            assert!(
                due(81).1 > due_before.0 + 0.05,
                "too old: it restarts TIME_WAIT"
            );
            thread::sleep(Duration::from_millis(50));
            peer.seq = peer.seq.wrapping_sub(500_000);
            peer.clock = Some(1_000_001);
            peer.send(SYN, b"");
            peer.expect(SYN | ACK);
            peer.send(ACK, b"");
            let both = (again, listening.accept().expect("the next connection"));
            thread::sleep(Duration::from_millis(300));
            let trace = trace.stop();
            drop(both);

            assert_ended(&trace, 80, "time_wait", "reused_syn");
            assert_eq!(life(&trace, 80).len(), 2, "born and ended, not restarted");
            assert_ended(&trace, 81, "time_wait", "reused_syn");
            let restarted = line(&trace, 81, "time_wait", Some("restarted"));
            assert!(time_of(&restarted) >= before - slack(), "{restarted}");
            let passive = |local: u16| {
                let lines = trace.transitions().into_iter();
                lines
                    .filter(|line| line["lport"] == local && line["new"] == "syn_recv")
                    .count()
            };
            assert_eq!((passive(80), passive(81)), (2, 2), "{}", trace.out);
        },
    );
}
