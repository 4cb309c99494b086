//! Whatever lives there are and whatever becomes of their records on the way: nothing is invented, nothing is told as
//! exact that is not, and what is damaged is marked. From bytes to whole connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use tcpstate_common::state::TcpState::{self, Close};
use tcpstate_user::{
    analysis::{Connection, Connections},
    event::{Event, TimeWaitStep},
    filter::{Filter, Gate},
    lifecycle::{Bound, Callers, Lifecycle, Phase, Transition},
};

use crate::{
    records::{MS, TICK},
    story::{Life, START, SYMBOLS, Sent, Story, TOLERANCE, plot},
};

/// How often the reader comes.
const TURN: u64 = 50 * MS;

/// What becomes of a record on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost,
    Twice,
}

/// Everything that is right of the ring buffer.
struct View {
    gate: Gate,
    lifecycle: Lifecycle,
    connections: Connections,
    shown: Vec<Transition>,
    ended: Vec<Connection>,
}

impl View {
    fn new(limit: usize) -> Self {
        let callers = Callers::parse(SYMBOLS);
        Self {
            gate: Gate::default(),
            lifecycle: Lifecycle::new(limit, START)
                .with_minisockets(callers, Duration::from_nanos(TICK)),
            connections: Connections::new(limit),
            shown: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let Self {
            gate,
            lifecycle,
            connections,
            shown,
            ended,
        } = self;
        let mut show = |transition: Transition| {
            ended.extend(connections.take(&transition));
            shown.push(transition);
        };
        let event = Event::decode(bytes).expect("a good record");
        if let Event::Transition(event) = event {
            let admitted = gate.admit(&Filter::default(), &event);
            for (event, _) in admitted.events(&event) {
                show(lifecycle.transition(event));
            }
        } else {
            lifecycle.event(event, &mut show);
        }
    }

    fn settle(&mut self, now: u64) {
        let (connections, shown, ended) = (&mut self.connections, &mut self.shown, &mut self.ended);
        self.lifecycle.settle(now, |transition| {
            ended.extend(connections.take(&transition));
            shown.push(transition);
        });
    }

    /// As the reader does: what was lost until now is known before what was sent until now is understood. `late` is how much
    /// later what a CPU has sent becomes visible, which keeps the order of each CPU's records.
    fn run(
        story: &Story,
        fates: &[Fate],
        late: impl Fn(usize, &Sent) -> u64,
        limit: usize,
    ) -> Self {
        let mut view = Self::new(limit);
        let mut records: Vec<_> = story
            .sent
            .iter()
            .zip(fates.iter().cycle())
            .enumerate()
            .map(|(index, (sent, fate))| (sent.time + late(index, sent), sent, *fate))
            .collect();
        records.sort_by_key(|(visible, ..)| *visible);
        let mut now = 0;
        for turn in records.chunk_by(|one, next| one.0 / TURN == next.0 / TURN) {
            view.settle((turn[0].0 / TURN * TURN).max(now));
            now = (turn[0].0 / TURN + 1) * TURN;
            if turn.iter().any(|(.., fate)| *fate == Fate::Lost) {
                view.lifecycle.events_lost(now);
            }
            for (_, sent, fate) in turn {
                let times = match fate {
                    Fate::Lost => 0,
                    Fate::Arrives => 1,
                    Fate::Twice => 2,
                };
                for _ in 0..times {
                    view.take(&sent.bytes);
                }
            }
            view.settle(now);
        }
        view.settle(u64::MAX);
        let running = view.connections.finish(now);
        view.ended.extend(running);
        view
    }
}

/// The states that records of each connection spoke of.
fn spoken_of(story: &Story) -> BTreeMap<u64, BTreeSet<TcpState>> {
    let mut states: BTreeMap<u64, BTreeSet<TcpState>> = BTreeMap::new();
    for sent in &story.sent {
        let of = states.entry(sent.connection).or_default();
        match Event::decode(&sent.bytes).expect("a good record") {
            Event::Transition(event) => of.extend([event.old, event.new]),
            Event::Socket(event) => {
                of.insert(event.state);
            }
            Event::TimeWait(event) => {
                of.insert(event.substate);
                if event.step != TimeWaitStep::Armed {
                    of.insert(Close);
                }
            }
            Event::Call(_) => {}
        }
    }
    states
}

/// Says what is wrong with a time, if something is: what is exact must be so, and bounds must hold.
fn wrong(phase: Phase, truth: u64) -> bool {
    let Some(told) = phase.nanoseconds() else {
        return false;
    };
    match phase.bound() {
        Bound::Exact => told.abs_diff(truth) > TOLERANCE,
        Bound::AtLeast => told > truth + TOLERANCE,
        Bound::AtMost => told + TOLERANCE < truth,
        Bound::Unknown => true,
    }
}

/// Whether the time that a line tells is true. How long a socket was closed before is not part of the story.
fn is_true(line: &Transition, lives: &[&Life]) -> bool {
    let (old, time) = (line.event.old, line.event.time);
    line.phase.nanoseconds().is_none()
        || old == Close
        || lives
            .iter()
            .flat_map(|life| life.in_state(old, time))
            .any(|truth| !wrong(line.phase, truth))
}

/// Whether what is told of a whole connection without any reservation is the whole truth.
fn is_whole_truth(row: &Connection, lives: &[&Life]) -> bool {
    let told = |state: TcpState| row.states[state as usize - 1];
    let phases = || row.states.iter().flatten();
    let reserved = row.damaged
        || row.start.is_none()
        || row.end.is_none()
        || phases().any(|phase| phase.bound() != Bound::Exact);
    reserved
        || lives.iter().any(|life| {
            life.start == row.start
                && life.end.is_some_and(|end| Some(end) == row.end)
                && life.states.len() == phases().count()
                && life.states.iter().all(|(state, from, to)| {
                    told(*state).is_some_and(|phase| !wrong(phase, to - from))
                })
                && row.local.port == life.local_port
        })
}

proptest! {
    /// Nothing lost: everything that is told is true, and everything that has ended is told.
    #[test]
    fn without_loss_the_whole_truth_is_told(
        plots in proptest::collection::vec(plot(), 1..30),
        late in proptest::array::uniform3(0..MS),
    ) {
        let story = Story::of(&plots);
        // All records of a connection are of one CPU here, so none overtakes another.
        let late = |_: usize, sent: &Sent| late[sent.cpu as usize];
        let view = View::run(&story, &[Fate::Arrives], late, 10_000);
        let lives = |connection| -> Vec<_> {
            story.lives.iter().filter(|life| life.connection == connection).collect()
        };
        for line in &view.shown {
            prop_assert!(!line.damaged, "{line:?}");
            prop_assert!(is_true(line, &lives(line.connection)), "{line:?} {:?}", lives(line.connection));
        }
        for row in &view.ended {
            prop_assert!(!row.damaged, "{row:?}");
            prop_assert!(is_whole_truth(row, &lives(row.connection)), "{row:?} {:?}", lives(row.connection));
        }
        for life in story.lives.iter().filter(|life| life.states[0].0 != TcpState::Listen) {
            let told = view.ended.iter().any(|row| {
                (row.connection, row.start, row.end) == (life.connection, life.start, life.end)
            });
            prop_assert!(told || life.states.len() < 2 && life.end.is_none(), "{life:?} {:?}", view.ended);
        }
    }

    /// Records are lost, and the reader knows that some were: what is told as exact or as a bound is so all the same, and
    /// what is told of a whole connection without reservation is the whole truth.
    #[test]
    fn what_is_told_after_a_loss_is_true(
        plots in proptest::collection::vec(plot(), 1..30),
        fates in proptest::collection::vec(
            prop_oneof![9 => Just(Fate::Arrives), 1 => Just(Fate::Lost)], 100),
        late in proptest::array::uniform3(0..MS),
    ) {
        let story = Story::of(&plots);
        let late = |_: usize, sent: &Sent| late[sent.cpu as usize];
        let view = View::run(&story, &fates, late, 10_000);
        let lives = |connection| -> Vec<_> {
            story.lives.iter().filter(|life| life.connection == connection).collect()
        };
        for line in &view.shown {
            prop_assert!(is_true(line, &lives(line.connection)), "{line:?} {:?}", lives(line.connection));
        }
        for row in &view.ended {
            prop_assert!(is_whole_truth(row, &lives(row.connection)), "{row:?} {:?}", lives(row.connection));
        }
    }

    /// Records are lost, come twice, and change places within a millisecond, and tables are too small: there is no panic, no
    /// state that was not spoken of, no time longer than there was, and nothing damaged is told as exact.
    #[test]
    fn nothing_is_invented(
        plots in proptest::collection::vec(plot(), 1..30),
        fates in proptest::collection::vec(
            prop_oneof![8 => Just(Fate::Arrives), 1 => Just(Fate::Lost), 1 => Just(Fate::Twice)], 100),
        late in proptest::collection::vec(0..MS, 100),
        limit in 1..40_usize,
    ) {
        let story = Story::of(&plots);
        let spoken_of = spoken_of(&story);
        let last = story.sent.iter().map(|sent| sent.time).max().unwrap_or(START);
        let view = View::run(&story, &fates, |index, _| late[index % late.len()], limit);
        for line in &view.shown {
            let states = &spoken_of[&line.connection];
            prop_assert!(states.contains(&line.event.old) && states.contains(&line.event.new), "{line:?}");
            prop_assert!(line.phase.nanoseconds().is_none_or(|time| time <= last - START), "{line:?}");
            prop_assert!(!line.damaged || line.phase.bound() != Bound::Exact, "{line:?}");
        }
        for row in &view.ended {
            for (state, phase) in TcpState::ALL.into_iter().zip(row.states) {
                let Some(phase) = phase else { continue };
                // That one goes on to the end of the last turn.
                let last = if row.state == Some(state) { last + 3 * TURN } else { last };
                prop_assert!(spoken_of[&row.connection].contains(&state), "{row:?}");
                prop_assert!(phase.nanoseconds().is_none_or(|time| time <= last - START), "{row:?}");
            }
        }
        prop_assert!(view.lifecycle.open() <= limit && view.lifecycle.minisockets() <= limit);
    }
}
