//! Whole connections: who opened and closed them, how they ended, and the time in every state.

use tcpstate_common::{
    record::{RecordKind, TransitionRecord, flags},
    state::TcpState::{
        self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
        SynSent, TimeWait,
    },
};
use tcpstate_user::{
    analysis::{ClosedFirst, Connection, Connections, How, Opened, TimeWaitEnd},
    event::{Event, Via},
    lifecycle::{Bound, KnownBy, Lifecycle, Phase, Reason},
};
use zerocopy::IntoBytes as _;

use crate::records::{MS, event, owned, record, timer};

const START: u64 = 1000 * MS;

struct Scene {
    lifecycle: Lifecycle,
    connections: Connections,
    ended: Vec<Connection>,
}

impl Scene {
    fn new() -> Self {
        Self {
            lifecycle: Lifecycle::new(100, START),
            connections: Connections::new(100),
            ended: Vec::new(),
        }
    }

    fn happens(&mut self, record: &TransitionRecord) {
        let transition = self.lifecycle.transition(&event(record));
        self.ended.extend(self.connections.take(&transition));
    }

    fn timer(&mut self, kind: RecordKind, time: u64, substate: TcpState, left: u64) {
        let record = timer(kind, 1, time, substate, left);
        let event = Event::decode(record.as_bytes()).expect("a good record");
        let Self {
            lifecycle,
            connections,
            ended,
        } = self;
        lifecycle.event(event, |transition| {
            ended.extend(connections.take(&transition));
        });
    }

    /// A chain of states, a millisecond apart; closing is done by process 7, and the end has this error.
    fn life(states: &[TcpState], error: i32) -> Connection {
        let mut scene = Self::new();
        for (step, pair) in (1..).zip(states.windows(2)) {
            let mut record = record(1, START + step * MS, pair[0], pair[1]);
            if matches!(pair[1], FinWait1 | LastAck) || (pair[1] == Close && error == 0) {
                record = owned(record, 7, b"closer");
            }
            if pair[1] == Close {
                record.error = error;
            }
            scene.happens(&record);
        }
        scene.ended.pop().expect("it has ended")
    }
}

#[test]
fn how_lives_end() {
    use ClosedFirst as First;
    let open_active = [Close, SynSent, Established];
    let cases: [(&[TcpState], i32, Opened, First, How); 12] = [
        (
            &[FinWait1, FinWait2, Close],
            0,
            Opened::Active,
            First::Local,
            How::Unknown,
        ),
        (
            &[CloseWait, LastAck, Close],
            0,
            Opened::Active,
            First::Remote,
            How::Fin,
        ),
        (
            &[FinWait1, Closing, Close],
            0,
            Opened::Active,
            First::Both,
            How::Unknown,
        ),
        (&[Close], 0, Opened::Active, First::Local, How::RstSent),
        (
            &[Close],
            libc::ECONNRESET,
            Opened::Active,
            First::Remote,
            How::RstReceived,
        ),
        (
            &[Close],
            libc::ETIMEDOUT,
            Opened::Active,
            First::None,
            How::Timeout,
        ),
        (
            &[Close],
            libc::ECONNABORTED,
            Opened::Active,
            First::None,
            How::Destroyed,
        ),
        (
            &[Close],
            libc::EHOSTUNREACH,
            Opened::Active,
            First::None,
            How::Unreachable,
        ),
        (
            &[CloseWait, Close],
            0,
            Opened::Active,
            First::Remote,
            How::RstSent,
        ),
        (
            &[CloseWait, Close],
            libc::EPIPE,
            Opened::Active,
            First::Remote,
            How::RstReceived,
        ),
        (
            &[CloseWait, LastAck, Close],
            libc::ETIMEDOUT,
            Opened::Active,
            First::Remote,
            How::Timeout,
        ),
        (
            &[FinWait1, Close],
            libc::ETIMEDOUT,
            Opened::Active,
            First::Local,
            How::Timeout,
        ),
    ];
    for (rest, error, opened, closed_first, how) in cases {
        let states = [&open_active[..], rest].concat();
        let connection = Scene::life(&states, error);
        let told = (connection.opened, connection.closed_first, connection.how);
        assert_eq!(told, (opened, closed_first, how), "{rest:?} {error}");
        assert_eq!(connection.start, Some(START + MS));
        assert_eq!(
            connection.states[Established as usize - 1],
            Some(Phase::new(MS, Bound::Exact))
        );
        assert_eq!(
            connection.states[Closing as usize - 1].is_some(),
            rest.contains(&Closing)
        );
    }
}

#[test]
fn how_it_ended_is_not_known_without_the_error() {
    let told = |rest: &[TcpState], error| {
        let connection = Scene::life(&[&[Close, SynSent, Established], rest].concat(), error);
        (connection.closed_first, connection.how)
    };
    assert_eq!(told(&[Close], -1), (ClosedFirst::Unknown, How::Unknown));
    let passive = told(&[CloseWait, LastAck, Close], -1);
    assert_eq!(passive, (ClosedFirst::Remote, How::Unknown));
}

#[test]
fn what_icmp_ends_nobody_closed() {
    for error in [libc::ECONNREFUSED, libc::EPROTO, libc::EACCES] {
        let connection = Scene::life(&[Close, SynSent, Established, Close], error);
        let told = (connection.closed_first, connection.how);
        assert_eq!(told, (ClosedFirst::None, How::Unreachable), "{error}");
    }
}

#[test]
fn connects_that_fail_were_closed_by_nobody() {
    for (error, how) in [
        (libc::ECONNREFUSED, How::Refused),
        (libc::ETIMEDOUT, How::Timeout),
        (libc::EHOSTUNREACH, How::Unreachable),
        (libc::ENETUNREACH, How::Unreachable),
        (libc::ENOPROTOOPT, How::Unreachable),
        (libc::EINVAL, How::Unknown),
        (-1, How::Unknown),
        (0, How::Aborted),
    ] {
        let connection = Scene::life(&[Close, SynSent, Close], error);
        assert_eq!(
            (connection.closed_first, connection.how),
            (ClosedFirst::None, how)
        );
    }
}

#[test]
fn passive_and_simultaneous_opens() {
    let passive = Scene::life(
        &[Listen, SynRecv, Established, CloseWait, LastAck, Close],
        0,
    );
    assert_eq!(passive.opened, Opened::Passive);
    assert_eq!(
        passive.closer.map(|process| (process.pid, process.via)),
        Some((7, Via::Close))
    );
    let both = Scene::life(
        &[Close, SynSent, SynRecv, Established, Close],
        libc::ECONNRESET,
    );
    assert_eq!(both.opened, Opened::Simultaneous);
    let old = Scene::life(&[Established, CloseWait, LastAck, Close], 0);
    assert_eq!((old.opened, old.start), (Opened::Unknown, None));
    assert_eq!(
        old.states[Established as usize - 1],
        Some(Phase::new(MS, Bound::AtLeast))
    );
}

/// Up to the birth of the minisocket.
fn half_closed() -> Scene {
    let mut scene = Scene::new();
    scene.happens(&owned(record(1, START, Close, SynSent), 5, b"owner"));
    scene.happens(&record(1, START + MS, SynSent, Established));
    scene.happens(&owned(
        record(1, START + 2 * MS, Established, FinWait1),
        7,
        b"closer",
    ));
    scene.happens(&record(1, START + 3 * MS, FinWait1, FinWait2));
    scene.timer(
        RecordKind::TimeWaitArmed,
        START + 4 * MS,
        FinWait2,
        2000 * MS,
    );
    let close = record(1, START + 4 * MS, FinWait2, Close);
    scene.happens(&TransitionRecord {
        flags: flags::TOTALS,
        bytes_acked: 1000,
        bytes_received: 2000,
        retransmits: 3,
        srtt_us: 800,
        ..close
    });
    assert!(
        scene.ended.is_empty(),
        "the socket says CLOSE, the connection goes on"
    );
    scene
}

#[test]
fn a_connection_ends_with_its_time_wait() {
    let mut scene = half_closed();
    scene.timer(
        RecordKind::TimeWaitArmed,
        START + 54 * MS,
        TimeWait,
        60_000 * MS,
    );
    scene.timer(
        RecordKind::TimeWaitArmed,
        START + 1054 * MS,
        TimeWait,
        60_000 * MS,
    );
    let end = START + 61_554 * MS;
    let record = timer(
        RecordKind::TimeWaitArmed,
        1,
        START + 1054 * MS,
        TimeWait,
        60_000 * MS,
    );
    let expired = timer(RecordKind::TimeWaitExpired, 1, end, TimeWait, 0);
    let expired = tcpstate_common::record::TimeWaitRecord {
        due: record.due,
        ..expired
    };
    let event = Event::decode(expired.as_bytes()).expect("a good record");
    let Scene {
        lifecycle,
        connections,
        ended,
    } = &mut scene;
    lifecycle.event(event, |transition| {
        ended.extend(connections.take(&transition));
    });

    let connection = scene.ended.pop().expect("it has ended");
    assert_eq!(
        (connection.closed_first, connection.how),
        (ClosedFirst::Local, How::Fin)
    );
    assert_eq!(connection.end, Some(end));
    let time_wait = connection.time_wait.expect("it had one");
    assert_eq!(
        time_wait.phase,
        Phase::new(end - START - 54 * MS, Bound::Exact)
    );
    assert_eq!(time_wait.restarts, 1);
    assert_eq!(time_wait.end, TimeWaitEnd::Reason(Reason::Expired));
    assert_eq!(time_wait.known_by, KnownBy::Kernel);
    // FIN_WAIT2 of the full socket and that of the minisocket together.
    assert_eq!(
        connection.states[FinWait2 as usize - 1],
        Some(Phase::new(51 * MS, Bound::Exact))
    );
    assert_eq!(connection.owner.map(|process| process.pid), Some(5));
    assert_eq!(connection.closer.map(|process| process.pid), Some(7));
    let totals = connection.totals.expect("the kernel told");
    assert_eq!(
        (totals.bytes_acked, totals.retransmits, totals.rtt_us),
        (1000, 3, Some(100))
    );
}

#[test]
fn fin_wait2_that_times_out_had_no_time_wait() {
    let mut scene = half_closed();
    scene.timer(RecordKind::TimeWaitExpired, START + 2004 * MS, FinWait2, 0);
    let connection = scene.ended.pop().expect("it has ended");
    assert_eq!((connection.how, connection.time_wait), (How::Timeout, None));
}

#[test]
fn what_still_runs_has_lower_bounds() {
    let mut scene = half_closed();
    scene.timer(
        RecordKind::TimeWaitArmed,
        START + 54 * MS,
        TimeWait,
        60_000 * MS,
    );
    let running: Vec<_> = scene.connections.finish(START + 1054 * MS).collect();
    assert_eq!(running.len(), 1);
    let time_wait = running[0].time_wait.expect("it has one");
    assert_eq!(time_wait.end, TimeWaitEnd::Running);
    assert_eq!(time_wait.phase, Phase::new(1000 * MS, Bound::AtLeast));
    assert_eq!(running[0].end, None);
}

#[test]
fn listeners_are_no_connections_and_the_table_is_bounded() {
    let mut lifecycle = Lifecycle::new(1000, START);
    let mut connections = Connections::new(10);
    let listen = lifecycle.transition(&event(&record(1, START, Close, Listen)));
    assert_eq!(connections.take(&listen), None);
    for cookie in 2..102 {
        let transition = lifecycle.transition(&event(&record(cookie, START, Close, SynSent)));
        assert_eq!(connections.take(&transition), None);
    }
    assert_eq!(connections.forgotten(), 90);
    assert_eq!(connections.finish(START).count(), 10);
}
