//! The lifecycle: what it says of legal lives, and that it never lies about damaged ones.

use proptest::prelude::*;
use tcpstate_common::{
    record::{Call, TransitionRecord},
    state::TcpState::{
        self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
        SynSent,
    },
};
use tcpstate_user::{
    event::{Event, Via},
    lifecycle::{Bound, Lifecycle, OWN_IDS, Phase, Transition},
};

use zerocopy::IntoBytes as _;

use crate::{
    records::{MS, event, owned, record},
    scene::call,
};

const START: u64 = 100 * MS;

fn lifecycle() -> Lifecycle {
    Lifecycle::new(1000, START)
}

/// A chain of transitions of one socket, a millisecond apart.
fn life(lifecycle: &mut Lifecycle, cookie: u64, from: u64, states: &[TcpState]) -> Vec<Transition> {
    states
        .windows(2)
        .zip(1..)
        .map(|(pair, step)| {
            lifecycle.transition(&event(&record(cookie, from + step * MS, pair[0], pair[1])))
        })
        .collect()
}

#[test]
fn a_whole_life_has_exact_phases() {
    let mut lifecycle = lifecycle();
    let states = [Close, SynSent, Established, FinWait1, FinWait2, Close];
    let lines = life(&mut lifecycle, 1, START, &states);
    assert_eq!(
        lines[0].phase,
        Phase::UNKNOWN,
        "how long the socket existed before is not told"
    );
    assert!(
        lines[1..]
            .iter()
            .all(|line| line.phase == Phase::new(MS, Bound::Exact))
    );
    assert!(
        lines
            .iter()
            .all(|line| !line.damaged && line.connection == 1)
    );
    assert_eq!(lifecycle.open(), 0);
    assert_eq!(lifecycle.counts().connections, 1);
}

#[test]
fn a_connection_older_than_the_run_has_lower_bounds() {
    let mut lifecycle = lifecycle();
    let lines = life(
        &mut lifecycle,
        1,
        START + 9 * MS,
        &[Established, CloseWait, LastAck],
    );
    assert_eq!(lines[0].phase, Phase::new(10 * MS, Bound::AtLeast));
    assert_eq!(lines[1].phase, Phase::new(MS, Bound::Exact));
    assert!(
        !lines[0].damaged,
        "it was there before us: nothing was lost"
    );
}

#[test]
fn after_a_loss_an_unknown_connection_is_damaged() {
    let mut lifecycle = lifecycle();
    lifecycle.events_lost(START);
    let lines = life(&mut lifecycle, 1, START, &[Established, CloseWait]);
    assert_eq!((lines[0].phase, lines[0].damaged), (Phase::UNKNOWN, true));
    let lines = life(&mut lifecycle, 2, START, &[Close, SynSent]);
    assert!(!lines[0].damaged, "a beginning is a beginning");
}

#[test]
fn a_phase_that_spans_a_loss_is_an_upper_bound() {
    let mut lifecycle = lifecycle();
    life(&mut lifecycle, 1, START, &[Close, SynSent, Established]);
    life(&mut lifecycle, 2, START, &[Established, CloseWait]);
    lifecycle.events_lost(START + 5 * MS);
    // The socket may have been closed and connected again meanwhile.
    let line = lifecycle.transition(&event(&record(1, START + 9 * MS, Established, FinWait1)));
    assert_eq!(
        (line.phase, line.damaged),
        (Phase::new(7 * MS, Bound::AtMost), false)
    );
    let line = lifecycle.transition(&event(&record(1, START + 10 * MS, FinWait1, FinWait2)));
    assert_eq!(
        line.phase,
        Phase::new(MS, Bound::Exact),
        "all of it after the loss"
    );
}

#[test]
fn a_gap_gives_an_upper_bound_and_a_mark() {
    let mut lifecycle = lifecycle();
    life(&mut lifecycle, 1, START, &[Close, SynSent]);
    let line = lifecycle.transition(&event(&record(1, START + 8 * MS, Established, FinWait1)));
    assert_eq!(
        (line.phase, line.damaged),
        (Phase::new(7 * MS, Bound::AtMost), true)
    );
    assert_eq!(lifecycle.counts().damaged, 1);
}

#[test]
fn a_state_that_transits_to_itself_goes_on() {
    let mut lifecycle = lifecycle();
    let lines = life(
        &mut lifecycle,
        1,
        START,
        &[
            Close,
            SynSent,
            Established,
            FinWait1,
            FinWait2,
            FinWait2,
            Close,
        ],
    );
    assert_eq!(lines[4].phase, Phase::new(MS, Bound::Exact));
    assert_eq!(
        lines[5].phase,
        Phase::new(2 * MS, Bound::Exact),
        "the whole FIN_WAIT2"
    );
    let lines = life(&mut lifecycle, 2, START, &[FinWait2, FinWait2, Close]);
    assert_eq!(lines[1].phase, Phase::new(2 * MS, Bound::AtLeast));
    assert!(lines.iter().all(|line| !line.damaged));
}

#[test]
fn the_same_socket_connected_again_is_a_new_life() {
    let mut lifecycle = lifecycle();
    life(
        &mut lifecycle,
        1,
        START,
        &[Close, SynSent, Established, Close],
    );
    let lines = life(
        &mut lifecycle,
        1,
        START + 9 * MS,
        &[Close, SynSent, Established],
    );
    assert_eq!(lines[0].phase, Phase::UNKNOWN);
    assert_eq!(lines[1].phase, Phase::new(MS, Bound::Exact));
    assert_eq!(lifecycle.counts().connections, 2);
}

#[test]
fn without_cookies_a_reused_address_is_another_connection() {
    let mut lifecycle = lifecycle();
    let mut ids = Vec::new();
    for _ in 0..2 {
        for (old, new) in [
            (Close, SynSent),
            (SynSent, Established),
            (Established, Close),
        ] {
            let anonymous = TransitionRecord {
                cookie: 0,
                ..record(1, START, old, new)
            };
            ids.push(lifecycle.transition(&event(&anonymous)).connection);
        }
    }
    assert_eq!(ids, [0, 0, 0, 1, 1, 1].map(|number: u64| OWN_IDS + number));
}

#[test]
fn owners_come_from_the_processes_own_calls_only() {
    let mut lifecycle = lifecycle();
    let connect = owned(record(1, START, Close, SynSent), 7, b"curl");
    let via = |line: &Transition| line.process.map(|process| (process.pid, process.via));
    let line = lifecycle.transition(&event(&connect));
    assert_eq!((via(&line), line.tid()), (Some((7, Via::Connect)), Some(8)));
    let line = lifecycle.transition(&event(&record(1, START, SynSent, Established)));
    assert_eq!(
        (via(&line), line.tid()),
        (Some((7, Via::Connect)), None),
        "a packet: learnt earlier"
    );
    // A child that inherited the socket closes it: it is the one to name, not the owner.
    let close = owned(record(1, START, Established, FinWait1), 9, b"worker");
    assert_eq!(
        via(&lifecycle.transition(&event(&close))),
        Some((9, Via::Close))
    );
    let line = lifecycle.transition(&event(&record(1, START, FinWait1, FinWait2)));
    assert_eq!(via(&line), Some((7, Via::Connect)));
    let line = lifecycle.transition(&event(&record(2, START, Established, CloseWait)));
    assert_eq!(via(&line), None, "nobody told us");
}

#[test]
fn a_child_belongs_to_its_listener_until_a_call_of_its_process_tells() {
    let mut lifecycle = lifecycle();
    lifecycle.transition(&event(&owned(record(1, START, Close, Listen), 7, b"nginx")));
    let child = TransitionRecord {
        listener_cookie: 1,
        ..record(2, START, Listen, SynRecv)
    };
    let line = lifecycle.transition(&event(&child));
    assert_eq!(
        line.process.map(|process| (process.pid, process.via)),
        Some((7, Via::Listener))
    );
    let other = TransitionRecord {
        listener_cookie: 99,
        ..record(3, START, Listen, SynRecv)
    };
    assert_eq!(
        lifecycle.transition(&event(&other)).process,
        None,
        "a listener we have not seen"
    );
    let mut read = owned(record(2, START, Established, CloseWait), 8, b"nginx");
    read.flags &= !tcpstate_common::record::flags::FILE_RELEASED;
    life(&mut lifecycle, 2, START, &[SynRecv, Established]);
    let line = lifecycle.transition(&event(&read));
    assert_eq!(
        line.process.map(|process| (process.pid, process.via)),
        Some((7, Via::Listener)),
        "the FIN came while somebody held the socket"
    );
    let last = owned(record(2, START, CloseWait, LastAck), 8, b"nginx");
    let line = lifecycle.transition(&event(&last));
    assert_eq!(line.process.map(|process| process.pid), Some(8));
}

#[test]
fn who_destroys_a_socket_is_not_its_owner() {
    let mut lifecycle = lifecycle();
    lifecycle.transition(&event(&owned(record(1, START, Close, SynSent), 7, b"curl")));
    lifecycle.transition(&event(&record(1, START, SynSent, Established)));
    let mut kill = owned(record(1, START, Established, Close), 99, b"ss");
    kill.flags &= !tcpstate_common::record::flags::FILE_RELEASED;
    kill.error = libc::ECONNABORTED;
    let line = lifecycle.transition(&event(&kill));
    assert_eq!(line.process.map(|process| process.pid), Some(7));
}

/// What a call says, and whether it changed the owner.
fn accepts(lifecycle: &mut Lifecycle, cookie: u64, pid: u32) -> Option<u64> {
    match Event::decode(call(Call::Accept, cookie, START, pid, b"worker", 0).as_bytes()) {
        Ok(Event::Call(event)) => lifecycle.accepted(&event),
        other => unreachable!("a call was written: {other:?}"),
    }
}

#[test]
fn who_accepts_is_the_owner_but_for_who_connected() {
    let mut lifecycle = lifecycle();
    let listen = owned(record(1, START, Close, Listen), 7, b"master");
    lifecycle.transition(&event(&listen));
    let child = TransitionRecord {
        listener_cookie: 1,
        ..record(2, START + MS, Listen, SynRecv)
    };
    lifecycle.transition(&event(&child));
    assert_eq!(accepts(&mut lifecycle, 2, 8), Some(2));
    let line = lifecycle.transition(&event(&record(2, START + 2 * MS, SynRecv, Established)));
    let owner = line.process.map(|process| (process.pid, process.via));
    assert_eq!(owner, Some((8, Via::Accept)));
    // The first who accepted it stays its owner, and nobody accepts what was connected.
    assert_eq!(accepts(&mut lifecycle, 2, 9), None);
    let connect = owned(record(3, START, Close, SynSent), 10, b"client");
    lifecycle.transition(&event(&connect));
    assert_eq!(accepts(&mut lifecycle, 3, 9), None);
    assert_eq!(accepts(&mut lifecycle, 99, 9), None, "not heard of");
}

#[test]
fn who_destroys_a_listener_is_not_its_owner() {
    let mut lifecycle = lifecycle();
    lifecycle.transition(&event(&owned(record(1, START, Close, Listen), 7, b"nginx")));
    let mut kill = owned(record(1, START, Listen, Close), 99, b"ss");
    kill.flags &= !tcpstate_common::record::flags::FILE_RELEASED;
    let line = lifecycle.transition(&event(&kill));
    assert_eq!(
        line.process.map(|process| (process.pid, process.via)),
        Some((7, Via::Listen))
    );
}

#[test]
fn mptcp_children_are_no_transitions_of_their_listener() {
    let mut lifecycle = lifecycle();
    let mptcp = |old, new, socket| {
        event(&TransitionRecord {
            protocol: 262,
            socket,
            ..record(1, START, old, new)
        })
    };
    let listener = lifecycle.transition(&mptcp(Close, Listen, 0x100));
    let child = lifecycle.transition(&mptcp(Listen, Established, 0x200));
    assert_ne!(
        child.connection, listener.connection,
        "though the kernel gives both one cookie"
    );
    assert_eq!((child.phase, child.damaged), (Phase::UNKNOWN, false));
    let again = mptcp(Listen, Listen, 0x100);
    assert!(!again.is_birth(), "listen() once more");
    assert_eq!(lifecycle.transition(&again).connection, listener.connection);
    let end = lifecycle.transition(&mptcp(Listen, Close, 0x100));
    assert_eq!(end.connection, listener.connection);
}

/// Sockets without cookies whose closing was lost must not fill the memory.
#[test]
fn identities_of_our_own_are_few_and_counted_once() {
    let mut lifecycle = Lifecycle::new(100, START);
    let connect = |number| TransitionRecord {
        cookie: 0,
        ..record(number, START + number * MS, Close, SynSent)
    };
    for number in 1..=1000 {
        lifecycle.transition(&event(&connect(number)));
        let known = lifecycle.open() as u64;
        assert_eq!(known + lifecycle.counts().evicted, number);
        assert!(known <= 100);
    }
    let connected = (1..=1000)
        .rev()
        .map(|number| {
            let record = record(number, START + 9999 * MS, SynSent, Established);
            lifecycle.transition(&event(&TransitionRecord {
                cookie: 0,
                ..record
            }))
        })
        .filter(|line| !line.damaged);
    let known = connected.count();
    assert!((1..=100).contains(&known), "{known}");
}

#[test]
fn a_full_table_forgets_the_silent_and_counts_them() {
    let mut lifecycle = Lifecycle::new(100, START);
    for cookie in 1..=1000 {
        life(
            &mut lifecycle,
            cookie,
            START + cookie * MS,
            &[Close, SynSent],
        );
    }
    assert_eq!(lifecycle.open(), 100);
    assert_eq!(lifecycle.counts().evicted, 900);
    let line = lifecycle.transition(&event(&record(1, 9999 * MS, SynSent, Established)));
    assert!(
        line.damaged,
        "its beginning was forgotten, so nothing is claimed about it"
    );
    assert_eq!(line.phase, Phase::UNKNOWN);
}

#[test]
fn a_clock_that_goes_backwards_gives_no_time() {
    let mut lifecycle = lifecycle();
    life(&mut lifecycle, 1, START + 9 * MS, &[Close, SynSent]);
    let line = lifecycle.transition(&event(&record(1, START, SynSent, Established)));
    assert_eq!(line.phase, Phase::UNKNOWN);
}

/// Lives that the kernel can produce.
const LIVES: [&[TcpState]; 8] = [
    &[Close, SynSent, Established, FinWait1, FinWait2, Close],
    &[Listen, SynRecv, Established, CloseWait, LastAck, Close],
    &[Close, SynSent, Close],
    &[Close, SynSent, Established, Close],
    &[Listen, SynRecv, Established, FinWait1, Closing, Close],
    &[Close, Listen, Close],
    &[
        Close,
        SynSent,
        Established,
        FinWait1,
        FinWait2,
        FinWait2,
        Close,
    ],
    &[Established, CloseWait, LastAck, LastAck, Close],
];

/// Many lives, mixed; then events dropped, duplicated, and moved by up to a millisecond.
fn disturbed() -> impl Strategy<Value = (Vec<TransitionRecord>, bool)> {
    let life = (0..LIVES.len(), 0..50_u64);
    let disturbance = proptest::collection::vec((0..100_u8, 0..MS), 400);
    (
        proptest::collection::vec(life, 1..40),
        disturbance,
        any::<bool>(),
    )
        .prop_map(|(lives, disturbances, intact)| {
            let mut records = Vec::new();
            for (cookie, (life, begin)) in (1..).zip(&lives) {
                for (step, pair) in LIVES[*life].windows(2).enumerate() {
                    let time = START + (begin + 3 * step as u64) * MS;
                    records.push(record(cookie, time, pair[0], pair[1]));
                }
            }
            let mut out = Vec::new();
            for (record, (fate, shift)) in records.iter().zip(disturbances.iter().cycle()) {
                let moved = TransitionRecord {
                    time: record.time + shift,
                    ..*record
                };
                match fate {
                    _ if intact => out.push(*record),
                    0..10 => {}
                    10..15 => out.extend([moved, moved]),
                    _ => out.push(moved),
                }
            }
            out.sort_by_key(|record| record.time);
            (out, intact)
        })
}

/// A life and an event whose loss shows. The last one may be missing unseen; the first one too, if the connection may be older
/// than the run.
fn one_dropped() -> impl Strategy<Value = (usize, usize)> {
    let all = LIVES.iter().enumerate().flat_map(|(life, states)| {
        let inner = 1..states.len() - 2;
        let shows = inner.filter(|dropped| states[*dropped] != states[*dropped + 1]);
        shows.map(move |dropped| (life, dropped))
    });
    proptest::sample::select(all.collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn disturbed_lives_are_never_lied_about((records, intact) in disturbed(), limit in 1..60_usize) {
        let limit = if intact { 1000 } else { limit };
        let mut lifecycle = Lifecycle::new(limit, START);
        let last = records.iter().map(|record| record.time).max().unwrap_or(START);
        for record in &records {
            let line = lifecycle.transition(&event(record));
            prop_assert_eq!(line.event.old as u8, record.old, "no state is invented");
            if let Some(time) = line.phase.nanoseconds() {
                prop_assert!(time <= last - START, "longer than the whole span");
            }
            prop_assert!(lifecycle.open() <= limit);
            if intact {
                prop_assert!(!line.damaged);
            }
            if line.damaged {
                prop_assert!(line.phase.bound() != Bound::Exact);
            }
        }
    }

    #[test]
    fn an_event_that_was_dropped_leaves_a_mark((life, dropped) in one_dropped()) {
        let states = LIVES[life];
        let mut lifecycle = lifecycle();
        let mut marks = 0;
        for (step, pair) in states.windows(2).enumerate().filter(|(step, _)| *step != dropped) {
            let line = lifecycle.transition(&event(&record(1, START + step as u64 * MS, pair[0], pair[1])));
            marks += usize::from(line.damaged);
        }
        prop_assert_eq!(marks, 1);
    }
}
