//! Sockets that were there before take their place among the others, whatever comes first.

use std::time::Duration;

use tcpstate_common::{
    record::{RecordKind, SocketRecord, TimeWaitRecord, TransitionRecord},
    state::TcpState::{
        self, Close, CloseWait, Established, FinWait1, FinWait2, Listen, SynRecv, TimeWait,
    },
};
use tcpstate_user::{
    analysis::{ClosedFirst, Connections, How, TimeWaitEnd},
    event::{Comm, Event, Process, SocketEvent, TimeWaitEvent, Via},
    lifecycle::{Bound, Callers, Lifecycle, Phase, Reason, Transition},
};
use zerocopy::IntoBytes as _;

use crate::records::{MS, TICK, event, owned, record, timer};

const START: u64 = 100_000 * MS;
const SECOND: u64 = 1000 * MS;

fn lifecycle() -> Lifecycle {
    let mut lifecycle =
        Lifecycle::new(100, START).with_minisockets(Callers::default(), Duration::from_nanos(TICK));
    lifecycle.begin_finding();
    lifecycle
}

/// The socket of connection `cookie`, found in this state.
fn socket(cookie: u64, time: u64, state: TcpState) -> SocketEvent {
    let same = record(cookie, time, state, state);
    let record = SocketRecord {
        kind: RecordKind::Socket as u8,
        state: state as u8,
        protocol: same.protocol,
        family: same.family,
        flags: 0,
        padding: 0,
        time,
        cookie,
        socket: same.socket,
        netns_cookie: same.netns_cookie,
        cgroup: same.cgroup,
        inode: 77,
        laddr: same.laddr,
        raddr: same.raddr,
        lport: same.lport,
        rport: same.rport,
        netns: same.netns,
        uid: same.uid,
        retransmits: 0,
        bytes_acked: 0,
        bytes_received: 0,
        srtt_us: 0,
        padding2: 0,
    };
    match Event::decode(record.as_bytes()) {
        Ok(Event::Socket(event)) => event,
        other => unreachable!("a socket was written: {other:?}"),
    }
}

fn minisocket(record: &TimeWaitRecord) -> TimeWaitEvent {
    match Event::decode(record.as_bytes()) {
        Ok(Event::TimeWait(event)) => event,
        other => unreachable!("a minisocket was written: {other:?}"),
    }
}

fn ends(lifecycle: &mut Lifecycle, record: &TimeWaitRecord) -> Vec<Transition> {
    let mut lines = Vec::new();
    lifecycle.event(Event::TimeWait(minisocket(record)), |line| lines.push(line));
    lines
}

fn scanned() -> Process {
    Process {
        pid: 9,
        comm: Comm::truncated("nginx"),
        via: Via::Scan,
    }
}

#[test]
fn it_is_in_its_state_at_least_since_the_hooks_were_in_place() {
    let mut lifecycle = lifecycle();
    let found = lifecycle
        .found(&socket(1, START + 5 * MS, Established), Some(scanned()))
        .expect("it is new");
    assert_eq!((found.since, found.state), (START, Established));
    let line = lifecycle.transition(&event(&record(1, START + 9 * MS, Established, CloseWait)));
    assert_eq!(line.phase, Phase::new(9 * MS, Bound::AtLeast));
    assert_eq!(line.process, Some(scanned()));
    assert!(!line.damaged);
    assert_eq!(lifecycle.counts().found, 1);
}

#[test]
fn after_a_loss_only_since_it_was_found() {
    let mut lifecycle = lifecycle();
    lifecycle.events_lost(START + MS);
    let found = lifecycle.found(&socket(1, START + 5 * MS, Established), None);
    assert_eq!(found.expect("it is new").since, START + 5 * MS);
}

#[test]
fn what_was_heard_of_already_is_known_better() {
    let mut lifecycle = lifecycle();
    lifecycle.transition(&event(&record(1, START + MS, Established, FinWait1)));
    let stale = lifecycle.found(&socket(1, START + 2 * MS, FinWait1), Some(scanned()));
    assert_eq!(stale, None);
    let line = lifecycle.transition(&event(&record(1, START + 3 * MS, FinWait1, FinWait2)));
    assert_eq!(line.phase, Phase::new(2 * MS, Bound::Exact));
}

#[test]
fn what_has_ended_is_not_found_any_more() {
    let mut lifecycle = lifecycle();
    for cookie in [1, 0] {
        let end = TransitionRecord {
            cookie,
            ..record(1, START + MS, TcpState::LastAck, Close)
        };
        lifecycle.transition(&event(&end));
        let late = SocketEvent {
            cookie: (cookie != 0).then_some(cookie),
            ..socket(1, START + 2 * MS, TcpState::LastAck)
        };
        assert_eq!(lifecycle.found(&late, None), None);
    }
    assert_eq!(lifecycle.open(), 0);
    // Nothing is found when nobody looks any more.
    lifecycle.end_finding();
    let late = lifecycle.found(&socket(2, START + 2 * MS, Established), None);
    assert_eq!(late, None);
}

#[test]
fn the_listener_that_was_there_owns_its_children() {
    let mut lifecycle = lifecycle();
    lifecycle.found(&socket(1, START, Listen), Some(scanned()));
    let child = TransitionRecord {
        listener_cookie: 1,
        ..record(2, START + MS, Listen, SynRecv)
    };
    let line = lifecycle.transition(&event(&child));
    let listener = Process {
        via: Via::Listener,
        ..scanned()
    };
    assert_eq!(line.process, Some(listener));
}

#[test]
fn one_that_uses_the_socket_is_known_better_than_one_that_holds_it() {
    let mut lifecycle = lifecycle();
    lifecycle.found(&socket(1, START, Established), Some(scanned()));
    // Kernels that do not tell close() from shutdown() call it a system call.
    let used = TransitionRecord {
        flags: tcpstate_common::record::flags::OWNED,
        ..owned(record(1, START + MS, Established, FinWait1), 10, b"worker")
    };
    let line = lifecycle.transition(&event(&used));
    let process = line.process.expect("a process");
    assert_eq!((process.pid, process.via), (10, Via::Syscall));
    let line = lifecycle.transition(&event(&record(1, START + MS, FinWait1, FinWait2)));
    assert_eq!(line.process, Some(process));
}

#[test]
fn a_minisocket_was_started_sixty_seconds_before_it_is_due() {
    let mut lifecycle = lifecycle();
    let mut connections = Connections::new(10);
    let record = timer(RecordKind::TimeWaitFound, 1, START, TimeWait, 20 * SECOND);
    let found = lifecycle
        .found_minisocket(&minisocket(&record), |_| ())
        .expect("it is new");
    assert_eq!(found.since, START - 40 * SECOND);
    connections.found(&found);
    let end = timer(
        RecordKind::TimeWaitExpired,
        1,
        START + 21 * SECOND,
        TimeWait,
        0,
    );
    // It is due when it was.
    let end = TimeWaitRecord {
        due: record.due,
        ..end
    };
    let lines = ends(&mut lifecycle, &end);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].phase, Phase::new(61 * SECOND, Bound::AtLeast));
    assert_eq!(lines[0].reason, Some(Reason::Expired));
    let connection = connections.take(&lines[0]).expect("it has ended");
    let time_wait = connection.time_wait.expect("it was in TIME_WAIT");
    assert_eq!(time_wait.end, TimeWaitEnd::Reason(Reason::Expired));
    assert_eq!(connection.how, How::Fin);
    assert_eq!(connection.start, None);
}

#[test]
fn a_minisocket_that_has_ended_is_not_found() {
    let mut lifecycle = lifecycle();
    let end = timer(RecordKind::TimeWaitExpired, 1, START + MS, TimeWait, 0);
    assert_eq!(ends(&mut lifecycle, &end).len(), 1);
    let late = timer(RecordKind::TimeWaitFound, 1, START + 2 * MS, TimeWait, 0);
    assert_eq!(lifecycle.found_minisocket(&minisocket(&late), |_| ()), None);
    assert_eq!(lifecycle.minisockets(), 0);
}

#[test]
fn the_state_tells_who_closed_first() {
    let expected = [
        (Established, ClosedFirst::Unknown),
        (FinWait1, ClosedFirst::Local),
        (FinWait2, ClosedFirst::Local),
        (TcpState::Closing, ClosedFirst::Both),
        (CloseWait, ClosedFirst::Remote),
        (TcpState::LastAck, ClosedFirst::Remote),
    ];
    for ((state, closed_first), cookie) in expected.into_iter().zip(1..) {
        let mut lifecycle = lifecycle();
        let mut connections = Connections::new(10);
        let found = lifecycle.found(&socket(cookie, START, state), None);
        connections.found(&found.expect("it is new"));
        let running: Vec<_> = connections.finish(START).collect();
        assert_eq!(running[0].closed_first, closed_first, "{state:?}");
    }
    let mut lifecycle = lifecycle();
    let mut connections = Connections::new(10);
    let found = lifecycle.found(&socket(1, START, Listen), None);
    connections.found(&found.expect("it is new"));
    assert_eq!(connections.finish(START).count(), 0, "listeners are none");
}

#[test]
fn a_silent_start_is_told_when_the_minisocket_is_looked_at_again() {
    let mut lifecycle = lifecycle();
    lifecycle.transition(&event(&record(1, START, FinWait1, FinWait2)));
    let armed = timer(
        RecordKind::TimeWaitArmed,
        1,
        START + MS,
        FinWait2,
        60 * SECOND,
    );
    ends(&mut lifecycle, &armed);
    lifecycle.transition(&event(&record(1, START + MS, FinWait2, Close)));
    let mut lines = Vec::new();
    // The FIN came 40 ms later: the timer is due a minute after that.
    let look = timer(
        RecordKind::TimeWaitFound,
        1,
        START + SECOND,
        TimeWait,
        59 * SECOND + 40 * MS,
    );
    for _ in 0..2 {
        let found = lifecycle.found_minisocket(&minisocket(&look), |line| lines.push(line));
        assert_eq!(found, None);
    }
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert_eq!((line.event.old, line.event.new), (FinWait2, TimeWait));
    assert_eq!(line.event.time, START + 40 * MS);
    // It may have come several times.
    assert_eq!(line.phase, Phase::new(40 * MS, Bound::AtMost));
}
