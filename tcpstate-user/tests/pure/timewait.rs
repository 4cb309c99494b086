//! The life of TIME_WAIT minisockets, from records.

use std::time::Duration;

use tcpstate_common::{
    record::{RecordKind, TimeWaitRecord, TransitionRecord, flags},
    state::TcpState::{self, Close, Closing, FinWait2, TimeWait},
};
use tcpstate_user::{
    event::{Event, Via},
    lifecycle::{Bound, Callers, KnownBy, Lifecycle, OWN_IDS, Phase, Reason, Transition},
};
use zerocopy::IntoBytes as _;

use crate::records::{MS, TICK, event, owned, record, timer};

const START: u64 = 1000 * MS;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;

const SYMBOLS: &str = "\
    ffffffff82001000 t __inet_check_established\n\
    ffffffff82002000 T tcp_v4_rcv\n\
    ffffffff82003000 T tcp_timewait_state_process\n\
    ffffffff82004000 T tcp_abort\n\
    ffffffff82005000 T inet_twsk_purge\n\
    ffffffff82006000 t tw_timer_handler\n";

fn lifecycle() -> Lifecycle {
    Lifecycle::new(100, START).with_minisockets(Callers::parse(SYMBOLS), Duration::from_nanos(TICK))
}

fn understood(lifecycle: &mut Lifecycle, record: &TimeWaitRecord) -> Vec<Transition> {
    let mut lines = Vec::new();
    let event = Event::decode(record.as_bytes()).expect("a good record");
    lifecycle.event(event, |line| lines.push(line));
    lines
}

/// `old->new`, time spent, reason.
fn told(lines: &[Transition]) -> Vec<(TcpState, TcpState, Phase, Option<Reason>)> {
    assert!(lines.iter().all(|line| line.minisocket && !line.damaged));
    lines
        .iter()
        .map(|line| (line.event.old, line.event.new, line.phase, line.reason))
        .collect()
}

const fn exact(nanoseconds: u64) -> Phase {
    Phase::new(nanoseconds, Bound::Exact)
}

/// A connection closes actively, and its minisocket is born in this state.
fn born(lifecycle: &mut Lifecycle, cookie: u64, at: u64, state: TcpState) -> Transition {
    lifecycle.transition(&event(&owned(
        record(cookie, at - SECOND, Close, TcpState::SynSent),
        7,
        b"curl",
    )));
    lifecycle.transition(&event(&record(
        cookie,
        at - SECOND,
        TcpState::SynSent,
        FinWait2,
    )));
    let left = if state == TimeWait {
        MINUTE
    } else {
        2 * SECOND
    };
    let armed = timer(RecordKind::TimeWaitArmed, cookie, at, state, left);
    assert_eq!(
        understood(lifecycle, &armed),
        [],
        "the full socket's last event tells"
    );
    lifecycle.transition(&event(&owned(
        record(cookie, at + 20_000, FinWait2, Close),
        8,
        b"worker",
    )))
}

#[test]
fn the_full_socket_gives_way_to_its_minisocket() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    let line = born(&mut lifecycle, 1, at, TimeWait);
    assert_eq!(
        told(std::slice::from_ref(&line)),
        [(FinWait2, TimeWait, exact(SECOND), None)]
    );
    assert_eq!(line.event.time, at, "when the minisocket was born");
    assert_eq!(
        line.process.map(|process| (process.pid, process.via)),
        Some((8, Via::Close))
    );
    assert_eq!((lifecycle.open(), lifecycle.minisockets()), (0, 1));

    let end = at + MINUTE + 552 * MS;
    understood(
        &mut lifecycle,
        &timer(RecordKind::TimeWaitCancelled, 1, end, TimeWait, 0),
    );
    let lines = understood(
        &mut lifecycle,
        &timer(RecordKind::TimeWaitExpired, 1, end, TimeWait, 0),
    );
    let spent = end - at;
    let restart_time = told(&lines);
    assert_eq!(
        restart_time.last().copied(),
        Some((TimeWait, Close, exact(spent), Some(Reason::Expired)))
    );
    let last = lines.last().expect("the end");
    assert_eq!(
        last.process.map(|process| process.pid),
        Some(7),
        "the owner, not the one who closed"
    );
    assert_eq!(last.event.uid, Some(1000));
    assert_eq!(lifecycle.minisockets(), 0);
}

/// The timer as it is at its end: due a while ago, started last a minute before that.
fn at_end(kind: RecordKind, cookie: u64, time: u64, last_start: u64) -> TimeWaitRecord {
    let armed = timer(
        RecordKind::TimeWaitArmed,
        cookie,
        last_start,
        TimeWait,
        MINUTE,
    );
    TimeWaitRecord {
        due: armed.due,
        ..timer(kind, cookie, time, TimeWait, 0)
    }
}

#[test]
fn fin_wait2_of_the_minisocket_is_not_time_wait() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    let line = born(&mut lifecycle, 1, at, FinWait2);
    assert_eq!(told(&[line]), [(FinWait2, FinWait2, exact(SECOND), None)]);
    let fin = at + 3 * SECOND;
    // Due as it was started: `born` gives it two seconds.
    let off = TimeWaitRecord {
        due: timer(RecordKind::TimeWaitArmed, 1, at, FinWait2, 2 * SECOND).due,
        ..timer(RecordKind::TimeWaitCancelled, 1, fin, TimeWait, 0)
    };
    understood(&mut lifecycle, &off);
    let armed = timer(RecordKind::TimeWaitArmed, 1, fin, TimeWait, MINUTE);
    let lines = understood(&mut lifecycle, &armed);
    let whole = exact(4 * SECOND);
    assert_eq!(
        told(&lines),
        [(FinWait2, TimeWait, whole, None)],
        "with the full socket's share"
    );
    let end = fin + MINUTE + SECOND;
    let lines = understood(
        &mut lifecycle,
        &at_end(RecordKind::TimeWaitExpired, 1, end, fin),
    );
    assert_eq!(
        told(&lines),
        [(
            TimeWait,
            Close,
            exact(MINUTE + SECOND),
            Some(Reason::Expired)
        )]
    );
}

#[test]
fn a_prompt_fin_that_no_event_tells_is_found_at_the_end() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    born(&mut lifecycle, 1, at, FinWait2);
    let (fin, end) = (at + 48 * MS, at + MINUTE + SECOND);
    let lines = understood(
        &mut lifecycle,
        &at_end(RecordKind::TimeWaitExpired, 1, end, fin),
    );
    assert_eq!(
        told(&lines),
        [
            (
                FinWait2,
                TimeWait,
                Phase::new(SECOND + 48 * MS, Bound::AtMost),
                None
            ),
            (
                TimeWait,
                Close,
                Phase::new(end - fin, Bound::AtLeast),
                Some(Reason::Expired)
            ),
        ]
    );
    assert_eq!(lines[0].event.time, fin);
}

#[test]
fn fin_wait2_that_times_out_never_was_time_wait() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    born(&mut lifecycle, 1, at, FinWait2);
    let end = at + 2 * SECOND;
    let lines = understood(
        &mut lifecycle,
        &timer(RecordKind::TimeWaitExpired, 1, end, FinWait2, 0),
    );
    assert_eq!(
        told(&lines),
        [(FinWait2, Close, exact(3 * SECOND), Some(Reason::Expired))]
    );
}

#[test]
fn restarts_are_told_and_the_silent_ones_found() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    born(&mut lifecycle, 1, at, TimeWait);
    let again = at + 10 * SECOND;
    understood(
        &mut lifecycle,
        &timer(RecordKind::TimeWaitCancelled, 1, again, TimeWait, SECOND),
    );
    let armed = timer(RecordKind::TimeWaitArmed, 1, again, TimeWait, MINUTE);
    let lines = understood(&mut lifecycle, &armed);
    assert_eq!(
        told(&lines),
        [(
            TimeWait,
            TimeWait,
            exact(10 * SECOND),
            Some(Reason::Restarted)
        )]
    );
    let (silent, end) = (again + SECOND, again + MINUTE + 2 * SECOND);
    let lines = understood(
        &mut lifecycle,
        &at_end(RecordKind::TimeWaitExpired, 1, end, silent),
    );
    assert_eq!(
        told(&lines),
        [
            (
                TimeWait,
                TimeWait,
                exact(11 * SECOND),
                Some(Reason::Restarted)
            ),
            (TimeWait, Close, exact(end - at), Some(Reason::Expired)),
        ]
    );
}

#[test]
fn who_took_the_timer_off_says_why_it_ended() {
    for (caller, substate, reason) in [
        (0xffff_ffff_8200_1010, TimeWait, Reason::ReusedConnect),
        (0xffff_ffff_8200_2010, TimeWait, Reason::ReusedSyn),
        (0xffff_ffff_8200_2010, FinWait2, Reason::ResetHalfClose),
        (0xffff_ffff_8200_3010, TimeWait, Reason::Rst),
        (0xffff_ffff_8200_4010, FinWait2, Reason::Destroyed),
        (0xffff_ffff_8200_5010, TimeWait, Reason::NamespaceGone),
        (0xffff_ffff_8100_0000, TimeWait, Reason::Unknown),
    ] {
        let mut lifecycle = lifecycle();
        let at = START + 5 * SECOND;
        born(&mut lifecycle, 1, at, substate);
        let end = at + SECOND;
        let off = timer(
            RecordKind::TimeWaitCancelled,
            1,
            end,
            substate,
            MINUTE - SECOND,
        );
        let off = TimeWaitRecord {
            callers: [1, caller, 0, 0, 0, 0, 0, 0],
            ..off
        };
        assert_eq!(
            understood(&mut lifecycle, &off),
            [],
            "it may be started again"
        );
        let mut lines = Vec::new();
        lifecycle.settle(end + 50 * MS, |line| lines.push(line));
        assert_eq!(lines, []);
        lifecycle.settle(end + SECOND, |line| lines.push(line));
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].event.new, lines[0].reason), (Close, Some(reason)));
        assert_eq!(lines[0].event.time, end);
        assert_eq!(lifecycle.minisockets(), 0);
    }
}

#[test]
fn a_minisocket_at_the_address_of_one_just_ended_is_another() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    born(&mut lifecycle, 1, at, FinWait2);
    let address = timer(RecordKind::TimeWaitArmed, 1, at, FinWait2, SECOND).minisocket;
    let off = timer(
        RecordKind::TimeWaitCancelled,
        1,
        at + SECOND,
        FinWait2,
        SECOND,
    );
    understood(&mut lifecycle, &off);
    let next = timer(RecordKind::TimeWaitArmed, 2, at + SECOND, FinWait2, SECOND);
    let lines = understood(
        &mut lifecycle,
        &TimeWaitRecord {
            minisocket: address,
            ..next
        },
    );
    assert_eq!(lines.len(), 1, "the first has ended");
    assert_eq!((lines[0].connection, lines[0].event.new), (1, Close));
    assert_eq!(lifecycle.minisockets(), 1);
}

#[test]
fn a_minisocket_older_than_the_run_has_a_lower_bound() {
    let mut lifecycle = lifecycle();
    let (last_start, end) = (START + 2 * SECOND, START + MINUTE + 3 * SECOND);
    let lines = understood(
        &mut lifecycle,
        &at_end(RecordKind::TimeWaitExpired, 9, end, last_start),
    );
    let since = Phase::new(end - START, Bound::AtLeast);
    assert_eq!(
        told(&lines),
        [(TimeWait, Close, since, Some(Reason::Expired))]
    );
    // If it was started last before we looked, it is known to be older.
    let last_start = START - 500 * MS;
    let lines = understood(
        &mut lifecycle,
        &at_end(RecordKind::TimeWaitExpired, 9, end, last_start),
    );
    let since = Phase::new(end - last_start, Bound::AtLeast);
    assert_eq!(
        told(&lines),
        [(TimeWait, Close, since, Some(Reason::Expired))]
    );
}

#[test]
fn a_minisocket_of_a_connection_that_we_know_is_not_older_than_the_run() {
    let mut lifecycle = lifecycle();
    let at = START + SECOND;
    lifecycle.transition(&event(&record(
        9,
        at,
        TcpState::Established,
        TcpState::FinWait1,
    )));
    // Its FIN_WAIT2, its CLOSE and the birth of the minisocket were not told, nor that they were lost.
    let end = at + MINUTE;
    let lines = understood(
        &mut lifecycle,
        &at_end(RecordKind::TimeWaitExpired, 9, end, at + MS),
    );
    let [line] = &lines[..] else {
        unreachable!("one line: {lines:?}");
    };
    assert_eq!(
        (line.phase, line.reason),
        (Phase::UNKNOWN, Some(Reason::Expired))
    );
    assert!(line.damaged);
    assert_eq!((lifecycle.counts().damaged, lifecycle.open()), (1, 0));
}

#[test]
fn closing_gives_way_to_time_wait() {
    let mut lifecycle = lifecycle();
    let at = START + SECOND;
    lifecycle.transition(&event(&record(1, START, FinWait2, Closing)));
    understood(
        &mut lifecycle,
        &timer(RecordKind::TimeWaitArmed, 1, at, TimeWait, MINUTE),
    );
    let line = lifecycle.transition(&event(&record(1, at + 1000, Closing, Close)));
    assert_eq!(
        (line.event.old, line.event.new, line.minisocket),
        (Closing, TimeWait, true)
    );
}

#[test]
fn the_table_of_minisockets_is_bounded_and_counts() {
    let mut lifecycle = lifecycle();
    for cookie in 1..=150 {
        let at = START + cookie * MS;
        understood(
            &mut lifecycle,
            &timer(RecordKind::TimeWaitArmed, cookie, at, TimeWait, MINUTE),
        );
    }
    assert_eq!(lifecycle.minisockets(), 100);
    assert_eq!(lifecycle.counts().evicted, 50);
}

/// As a recording may have them that somebody made up: no kernel has so many processors.
#[test]
fn of_endless_processors_cancellations_do_not_wait() {
    let mut lifecycle = Lifecycle::new(100_000, START)
        .with_minisockets(Callers::parse(SYMBOLS), Duration::from_nanos(TICK));
    let cancelled = |cpu: u32| TimeWaitRecord {
        cpu,
        ..timer(
            RecordKind::TimeWaitCancelled,
            1 + u64::from(cpu),
            START,
            TimeWait,
            MINUTE,
        )
    };
    let told: usize = (0..20_000)
        .map(|cpu| understood(&mut lifecycle, &cancelled(cpu)).len())
        .sum();
    assert_eq!(told, 2 * 8192);
    // At the end of time no time can pass.
    let last = TimeWaitRecord {
        time: u64::MAX - 1,
        ..cancelled(20_000)
    };
    understood(&mut lifecycle, &last);
    let mut rest = 0;
    lifecycle.settle(u64::MAX, |_| rest += 1);
    assert_eq!(rest, 20_001 - told);
}

/// What the functions themselves tell of a life: everything, and nothing has to be found out at the end.
#[test]
fn the_functions_tell_every_start_and_every_end() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    let mut take =
        |kind, time, state, left| understood(&mut lifecycle, &timer(kind, 1, time, state, left));
    assert_eq!(take(RecordKind::TimeWaitBorn, at, FinWait2, SECOND), []);
    let fin = at + 40 * MS;
    let lines = take(RecordKind::TimeWaitRestarted, fin, TimeWait, MINUTE);
    assert_eq!(
        told(&lines),
        [(
            FinWait2,
            TimeWait,
            Phase::new(40 * MS, Bound::AtLeast),
            None
        )],
        "the prompt FIN that timers do not tell; how long its full socket was in FIN_WAIT2 is not known here"
    );
    assert_eq!(lines[0].known_by, None);
    let again = fin + SECOND;
    let lines = take(RecordKind::TimeWaitRestarted, again, TimeWait, MINUTE);
    assert_eq!(
        told(&lines),
        [(TimeWait, TimeWait, exact(SECOND), Some(Reason::Restarted))]
    );
    assert_eq!(lines[0].known_by, Some(KnownBy::Kernel));
    // The clock of timers may lag behind; that is no start.
    let end = again + MINUTE + SECOND;
    let lag = 50 * MS / TICK;
    let over = timer(RecordKind::TimeWaitTimedOut, 1, end, TimeWait, 0);
    let over = TimeWaitRecord {
        due: over.due - SECOND / TICK,
        ticks: over.ticks - lag,
        ..over
    };
    let lines = understood(&mut lifecycle, &over);
    assert_eq!(
        told(&lines),
        [(TimeWait, Close, exact(end - fin), Some(Reason::Expired))]
    );
    assert_eq!(lines[0].known_by, Some(KnownBy::Kernel));
}

#[test]
fn an_end_that_two_processors_tell_is_one() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    let born = timer(RecordKind::TimeWaitBorn, 1, at, TimeWait, MINUTE);
    understood(&mut lifecycle, &born);
    let end = at + MINUTE;
    let off = TimeWaitRecord {
        callers: [0xffff_ffff_8200_2010, 0, 0, 0, 0, 0, 0, 0],
        ..timer(RecordKind::TimeWaitEnded, 1, end, TimeWait, 0)
    };
    let lines = understood(&mut lifecycle, &off);
    assert_eq!(
        told(&lines),
        [(TimeWait, Close, exact(MINUTE), Some(Reason::ReusedSyn))],
        "at once: nothing can follow"
    );
    let over = timer(RecordKind::TimeWaitTimedOut, 1, end + 1000, TimeWait, 0);
    assert_eq!(understood(&mut lifecycle, &over), []);
    let again = timer(
        RecordKind::TimeWaitRestarted,
        1,
        end + 2000,
        TimeWait,
        MINUTE,
    );
    assert_eq!(understood(&mut lifecycle, &again), []);
    assert_eq!(lifecycle.minisockets(), 0);
}

#[test]
fn a_minisocket_older_than_the_run_that_is_restarted_has_a_lower_bound() {
    for (first, second) in [
        (RecordKind::TimeWaitCancelled, RecordKind::TimeWaitArmed),
        (RecordKind::TimeWaitRestarted, RecordKind::TimeWaitRestarted),
    ] {
        let mut lifecycle = lifecycle();
        let at = START + SECOND;
        understood(&mut lifecycle, &timer(first, 1, at, TimeWait, SECOND));
        understood(&mut lifecycle, &timer(second, 1, at, TimeWait, MINUTE));
        let end = at_end(RecordKind::TimeWaitExpired, 1, at + MINUTE, at);
        let lines = understood(&mut lifecycle, &end);
        let last = lines.last().map(|line| line.phase);
        assert_eq!(last, Some(Phase::new(MINUTE, Bound::AtLeast)));
    }
}

/// A connection closes actively, and nothing becomes of it.
fn closed(lifecycle: &mut Lifecycle, record: &TransitionRecord) -> Transition {
    let at = record.time;
    let established = TcpState::Established;
    for (old, new) in [(Close, established), (established, FinWait2)] {
        let before = TransitionRecord {
            old: old as u8,
            new: new as u8,
            time: at - SECOND,
            flags: 0,
            ..*record
        };
        lifecycle.transition(&event(&before));
    }
    lifecycle.transition(&event(record))
}

#[test]
fn overflow_is_what_the_kernel_refused() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    let refused = timer(RecordKind::TimeWaitRefused, 1, at, TimeWait, 0);
    let refused = TimeWaitRecord {
        minisocket: 0,
        socket: 7,
        ..refused
    };
    assert_eq!(understood(&mut lifecycle, &refused), []);
    let line = closed(&mut lifecycle, &record(1, at + 1000, FinWait2, Close));
    assert_eq!(
        (line.event.new, line.minisocket, line.reason, line.known_by),
        (Close, false, Some(Reason::Overflow), Some(KnownBy::Kernel))
    );
    assert_eq!(line.event.refused, Some(TimeWait));
    let line = closed(&mut lifecycle, &record(1, at + SECOND, FinWait2, Close));
    assert_eq!(line.reason, None, "each refusal counts once");
}

#[test]
fn overflow_is_inferred_from_the_call_chain_unless_there_was_a_minisocket_or_a_loss() {
    let at = START + 5 * SECOND;
    let flagged = |cookie, more| TransitionRecord {
        flags: flags::TIME_WAIT | more,
        ..record(cookie, at, FinWait2, Close)
    };
    let mut lifecycle = lifecycle();
    for (more, state) in [(flags::FIN_RECEIVED, TimeWait), (0, FinWait2)] {
        let line = closed(&mut lifecycle, &flagged(1, more));
        assert_eq!(
            (line.reason, line.known_by, line.event.refused),
            (Some(Reason::Overflow), Some(KnownBy::Inferred), Some(state))
        );
    }
    // Born on another processor than the one that closes it.
    understood(
        &mut lifecycle,
        &timer(RecordKind::TimeWaitArmed, 2, at, TimeWait, MINUTE),
    );
    let line = closed(&mut lifecycle, &flagged(2, flags::FIN_RECEIVED));
    assert_eq!(
        (line.event.new, line.reason, line.event.refused),
        (TimeWait, None, None)
    );
    // Before all hooks were in place its birth was not told.
    let callers = Callers::parse(SYMBOLS);
    let mut late =
        Lifecycle::new(100, at + 1).with_minisockets(callers, Duration::from_nanos(TICK));
    let line = closed(&mut late, &flagged(4, flags::FIN_RECEIVED));
    assert_eq!((line.event.new, line.reason), (Close, None));
    lifecycle.events_lost(at);
    let line = closed(&mut lifecycle, &flagged(3, flags::FIN_RECEIVED));
    assert_eq!((line.event.new, line.reason), (Close, None));
}

#[test]
fn without_cookies_a_minisocket_is_paired_with_its_full_socket() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    let no_cookie = |record: TransitionRecord| TransitionRecord {
        cookie: 0,
        ..record
    };
    let full = no_cookie(owned(
        record(1, at - SECOND, Close, TcpState::SynSent),
        7,
        b"curl",
    ));
    let connection = lifecycle.transition(&event(&full)).connection;
    assert!(connection >= OWN_IDS);
    lifecycle.transition(&event(&no_cookie(record(
        1,
        at - SECOND,
        TcpState::SynSent,
        FinWait2,
    ))));
    for kind in [RecordKind::TimeWaitBorn, RecordKind::TimeWaitPaired] {
        let step = TimeWaitRecord {
            cookie: 0,
            socket: if kind == RecordKind::TimeWaitPaired {
                full.socket
            } else {
                0
            },
            ..timer(kind, 1, at, TimeWait, MINUTE)
        };
        assert_eq!(understood(&mut lifecycle, &step), []);
    }
    let line = lifecycle.transition(&event(&no_cookie(record(1, at + 1000, FinWait2, Close))));
    assert_eq!((line.connection, line.event.new), (connection, TimeWait));
    let over = TimeWaitRecord {
        cookie: 0,
        ..timer(RecordKind::TimeWaitTimedOut, 1, at + MINUTE, TimeWait, 0)
    };
    let lines = understood(&mut lifecycle, &over);
    assert_eq!(
        told(&lines),
        [(TimeWait, Close, exact(MINUTE), Some(Reason::Expired))]
    );
    assert_eq!(lines[0].connection, connection);
    assert_eq!(lines[0].process.map(|process| process.pid), Some(7));
    // One that is older than the run gets an identity of its own.
    let lines = understood(&mut lifecycle, &over);
    assert_eq!(lines, [], "that one has ended");
    let other = TimeWaitRecord {
        cookie: 0,
        ..timer(RecordKind::TimeWaitTimedOut, 2, at + MINUTE, TimeWait, 0)
    };
    let lines = understood(&mut lifecycle, &other);
    assert!(lines[0].connection > OWN_IDS + OWN_IDS / 2);
}

/// Where `inet_twsk_deschedule_put` is inlined into `inet_twsk_purge`, that it is freed is the only sign.
#[test]
fn a_minisocket_that_is_freed_with_its_namespace_has_ended_once() {
    let mut lifecycle = lifecycle();
    let at = START + 5 * SECOND;
    for cookie in [1, 2] {
        let born = timer(RecordKind::TimeWaitBorn, cookie, at, TimeWait, MINUTE);
        understood(&mut lifecycle, &born);
    }
    let purged = |kind, cookie| TimeWaitRecord {
        callers: [1, 0xffff_ffff_8200_5010, 0, 0, 0, 0, 0, 0],
        ..timer(kind, cookie, at + SECOND, TimeWait, MINUTE - SECOND)
    };
    let gone = [(TimeWait, Close, exact(SECOND), Some(Reason::NamespaceGone))];
    let lines = understood(&mut lifecycle, &purged(RecordKind::TimeWaitFreed, 1));
    assert_eq!(told(&lines), gone);
    let lines = understood(&mut lifecycle, &purged(RecordKind::TimeWaitEnded, 2));
    assert_eq!(told(&lines), gone);
    let lines = understood(&mut lifecycle, &purged(RecordKind::TimeWaitFreed, 2));
    assert_eq!(lines, []);
    // Freed after an end that was told long ago, not by the purge.
    let freed = timer(RecordKind::TimeWaitFreed, 3, at + SECOND, TimeWait, 0);
    assert_eq!(understood(&mut lifecycle, &freed), []);
}
