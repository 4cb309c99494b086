//! Minisockets that are known from lists alone.

use std::time::Duration;

use tcpstate_common::{
    record::{RecordKind, TransitionRecord},
    state::TcpState::{self, Close, Closing, FinWait1, FinWait2, LastAck, SynSent, TimeWait},
};
use tcpstate_user::{
    event::Event,
    lifecycle::{Bound, Callers, KnownBy, Lifecycle, Phase, Reason, Round, Transition},
};
use zerocopy::IntoBytes as _;

use crate::records::{MS, TICK, event, owned, record, timer};

const START: u64 = 1_000_000 * MS;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;

/// A lifecycle that has read the first list, and all that it says.
struct Scene {
    lifecycle: Lifecycle,
    lines: Vec<Transition>,
}

impl Scene {
    fn new() -> Self {
        let mut lifecycle = Lifecycle::new(100, START)
            .with_minisockets(Callers::default(), Duration::from_nanos(TICK))
            .with_poll();
        lifecycle.begin_finding();
        lifecycle.end_finding();
        Self {
            lifecycle,
            lines: Vec::new(),
        }
    }

    /// The local end of connection 1 closes: FIN_WAIT2 from START on, CLOSE a millisecond later.
    fn closed() -> Self {
        let mut scene = Self::new();
        let mut connect = owned(record(1, START - MS, Close, SynSent), 7, b"curl");
        connect.lport = 0;
        scene.full(connect);
        scene.full(record(1, START, SynSent, FinWait2));
        scene.lines.remove(0);
        scene.full(record(1, START + MS, FinWait2, Close));
        scene
    }

    fn full(&mut self, record: TransitionRecord) {
        let lines = &mut self.lines;
        let event = Event::Transition(event(&record));
        self.lifecycle.event(event, |line| lines.push(line));
    }

    /// The minisocket of connection 1 is in the list, due then.
    fn seen(&mut self, at: u64, substate: TcpState, due: u64) {
        let record = timer(RecordKind::TimeWaitFound, 1, at, substate, due - at);
        let Ok(Event::TimeWait(event)) = Event::decode(record.as_bytes()) else {
            unreachable!("a minisocket was written");
        };
        let lines = &mut self.lines;
        let found = self
            .lifecycle
            .found_minisocket(&event, |line| lines.push(line));
        assert_eq!(found, None, "it was not there before");
    }

    fn round(&mut self, began: u64, complete: bool) {
        let lines = &mut self.lines;
        let round = Round {
            began,
            ended: began + 2 * MS,
            complete,
        };
        self.lifecycle.end_round(round, |line| lines.push(line));
    }

    fn last(&self) -> &Transition {
        self.lines.last().expect("something was said")
    }
}

#[test]
fn a_close_is_held_until_the_list_tells_what_became_of_it() {
    let mut scene = Scene::closed();
    assert_eq!(scene.lines.len(), 1, "{:?}", scene.lines);
    scene.seen(START + SECOND, TimeWait, START + MS + MINUTE);
    assert_eq!(scene.lines.len(), 2, "{:?}", scene.lines);
    let line = scene.last();
    assert_eq!((line.event.old, line.event.new), (FinWait2, TimeWait));
    assert_eq!(line.event.time, START + MS);
    assert!(line.minisocket);
    assert_eq!(line.phase, Phase::new(MS, Bound::Exact));
}

#[test]
fn one_that_is_in_no_list_has_closed() {
    let mut scene = Scene::closed();
    // This one began before it closed: it may have looked too early.
    scene.round(START, true);
    assert_eq!(scene.lines.len(), 1);
    scene.round(START + SECOND, true);
    let line = scene.last();
    assert_eq!((line.event.old, line.event.new), (FinWait2, Close));
    assert!(!line.minisocket);
    assert_eq!(line.reason, None);
}

#[test]
fn only_an_active_close_waits() {
    let mut scene = Scene::new();
    scene.full(record(1, START, LastAck, Close));
    assert_eq!(scene.lines.len(), 1);
    let reset = TransitionRecord {
        error: libc::ECONNRESET,
        ..record(2, START, FinWait2, Close)
    };
    scene.full(reset);
    assert_eq!(scene.lines.len(), 2);
    scene.full(record(3, START, Closing, Close));
    assert_eq!(scene.lines.len(), 2);
    // At the end of the run nothing is kept back.
    let lines = &mut scene.lines;
    scene.lifecycle.settle(u64::MAX, |line| lines.push(line));
    assert_eq!(scene.lines.len(), 3);
}

#[test]
fn the_due_time_tells_when_time_wait_began() {
    let mut scene = Scene::closed();
    let fin = START + 500 * MS;
    scene.seen(START + SECOND, TimeWait, fin + MINUTE);
    assert_eq!(scene.lines.len(), 3, "{:?}", scene.lines);
    assert_eq!(scene.lines[1].event.new, FinWait2);
    assert!(scene.lines[1].minisocket);
    let line = scene.last();
    assert_eq!((line.event.old, line.event.new), (FinWait2, TimeWait));
    assert_eq!(line.event.time, fin);
    // It may have come several times.
    assert_eq!(line.phase, Phase::new(500 * MS, Bound::AtMost));
    // The next list says the same: nothing new.
    scene.seen(START + 2 * SECOND, TimeWait, fin + MINUTE);
    assert_eq!(scene.lines.len(), 3);
    // Then it begins anew.
    scene.seen(START + 9 * SECOND, TimeWait, START + 8 * SECOND + MINUTE);
    assert_eq!(scene.last().reason, Some(Reason::Restarted));
    assert_eq!(scene.last().known_by, Some(KnownBy::Inferred));
}

#[test]
fn what_is_in_the_list_no_more_has_ended() {
    let due = START + MS + MINUTE;
    for (missed, reason) in [
        (START + 5 * SECOND, Reason::Unknown),
        // Not due when the list ended, and due while it was read.
        (due - 3 * MS - TICK, Reason::Unknown),
        (due - MS, Reason::Expired),
        (due + SECOND, Reason::Expired),
    ] {
        let mut scene = Scene::closed();
        scene.seen(missed - SECOND, TimeWait, due);
        scene.round(missed - SECOND - MS, true);
        let before = scene.lines.len();
        scene.round(missed, false);
        assert_eq!(scene.lines.len(), before, "that list had gaps");
        scene.round(missed, true);
        let line = scene.last();
        assert_eq!((line.event.old, line.event.new), (TimeWait, Close));
        assert_eq!(line.reason, Some(reason));
        assert_eq!(line.known_by, Some(KnownBy::Inferred));
        let most = missed + 2 * MS - (START + MS);
        assert_eq!(line.phase, Phase::new(most, Bound::AtMost));
        assert_eq!(line.process.map(|process| process.pid), Some(7));
        assert_eq!(scene.lifecycle.minisockets(), 0);
    }
}

#[test]
fn a_minisocket_may_be_seen_before_its_full_socket_closes() {
    let mut scene = Scene::new();
    scene.full(record(1, START, FinWait1, FinWait2));
    scene.seen(START + MS, TimeWait, START + MS + MINUTE);
    scene.full(record(1, START + 2 * MS, FinWait2, Close));
    scene.round(START, true);
    assert_eq!(scene.lines.len(), 1, "{:?}", scene.lines);
    scene.seen(START + SECOND, TimeWait, START + MS + MINUTE);
    assert_eq!(scene.last().event.new, TimeWait);
}

#[test]
fn a_socket_used_again_before_the_list_is_read_has_closed_first() {
    let mut scene = Scene::closed();
    assert_eq!(scene.lines.len(), 1, "its CLOSE is held");
    let mut again = owned(record(1, START + 2 * MS, Close, SynSent), 7, b"curl");
    (again.lport, again.rport) = (0, 81);
    scene.full(again);
    let states: Vec<_> = scene
        .lines
        .iter()
        .map(|line| (line.event.old, line.event.new))
        .collect();
    let expected = [(SynSent, FinWait2), (FinWait2, Close), (Close, SynSent)];
    assert_eq!(states, expected);
    // It closes too. What the list has is the minisocket of the life before.
    for (old, new) in [(SynSent, FinWait2), (FinWait2, Close)] {
        let mut full = record(1, START + 3 * MS, old, new);
        (full.lport, full.rport) = (40_001, 81);
        scene.full(full);
    }
    let before = timer(
        RecordKind::TimeWaitFound,
        1,
        START + 4 * MS,
        TimeWait,
        MINUTE,
    );
    let Ok(Event::TimeWait(event)) = Event::decode(before.as_bytes()) else {
        unreachable!("a minisocket was written");
    };
    let lines = &mut scene.lines;
    scene.lifecycle.begin_finding();
    let found = scene
        .lifecycle
        .found_minisocket(&event, |line| lines.push(line));
    assert!(found.is_some(), "it is a minisocket of its own");
    scene.round(START + 4 * MS, true);
    let last = scene.lines.last().expect("the second CLOSE");
    assert_eq!((last.event.old, last.event.new), (FinWait2, Close));
    assert_eq!(last.event.remote.port, 81);
}

#[test]
fn more_minisockets_than_fit_are_forgotten_and_counted() {
    let mut lifecycle = Scene::new().lifecycle;
    lifecycle.begin_finding();
    for number in 1..=150 {
        let record = timer(RecordKind::TimeWaitFound, number, START, TimeWait, MINUTE);
        let Ok(Event::TimeWait(event)) = Event::decode(record.as_bytes()) else {
            unreachable!("a minisocket was written");
        };
        lifecycle.found_minisocket(&event, |_| {});
    }
    let mut ended = 0;
    lifecycle.end_round(
        Round {
            began: START + MINUTE,
            ended: START + MINUTE + MS,
            complete: true,
        },
        |_| ended += 1,
    );
    assert_eq!((ended, lifecycle.counts().evicted), (100, 50));
}
