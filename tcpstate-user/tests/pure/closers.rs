//! Who closed first: counted once, for the right process, and the same in total however it is grouped.

use std::collections::HashMap;

use proptest::prelude::*;
use tcpstate_common::{
    record::{RecordKind, TransitionRecord},
    state::TcpState::{
        self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
        SynSent, TimeWait,
    },
};
use tcpstate_user::analysis::{By, Cell, Closers, Dimension, Order, Report, Reports, Row, RowKind};

use crate::{
    records::{MS, event, owned, record, timer},
    reports::{HOOKS, Run, by, closers, count, value},
    scene::{START, Sent, life, scene},
};

const COUNTS: [&str; 11] = [
    "closes",
    "local_first",
    "local_fin",
    "local_rst",
    "remote_first",
    "remote_fin",
    "remote_rst",
    "none",
    "unknown",
    "simultaneous",
    "time_waits",
];

fn total(report: &Report) -> &Row {
    let last = report.table.rows.last().expect("a total");
    assert_eq!(last.kind, RowKind::Total);
    last
}

/// The counts that are not zero.
fn counts(report: &Report, row: &Row) -> Vec<(&'static str, u64)> {
    COUNTS
        .into_iter()
        .map(|column| (column, count(report, row, column)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn steps(states: &[TcpState]) -> Vec<(TcpState, u64)> {
    states.iter().map(|state| (*state, 1000)).collect()
}

/// What one connection counts as.
fn one(states: &[TcpState], error: i32) -> Vec<(&'static str, u64)> {
    let all = life(5, 10, &steps(states), |record| {
        if record.new == Close as u8 {
            TransitionRecord { error, ..record }
        } else {
            record
        }
    });
    let report = Run::new(closers(by(&[Dimension::Process])), None).report(&all);
    counts(&report, total(&report))
}

#[test]
fn each_way_to_close_is_counted_once() {
    const OPEN: [TcpState; 3] = [Close, SynSent, Established];
    let cases: [(&[TcpState], i32, &[&str]); 12] = [
        (
            &[FinWait1, FinWait2, Close],
            0,
            &["local_first", "local_fin"],
        ),
        (
            &[FinWait1, FinWait2, FinWait2, Close],
            0,
            &["local_first", "local_fin"],
        ),
        (
            &[FinWait1, Closing, Close],
            0,
            &["local_first", "local_fin", "simultaneous"],
        ),
        (
            &[FinWait1, Close],
            libc::ECONNRESET,
            &["local_first", "local_fin"],
        ),
        (
            &[CloseWait, LastAck, Close],
            0,
            &["remote_first", "remote_fin"],
        ),
        (&[CloseWait], 0, &["remote_first", "remote_fin"]),
        (
            &[CloseWait, Close],
            libc::EPIPE,
            &["remote_first", "remote_fin"],
        ),
        (&[Close], 0, &["local_first", "local_rst"]),
        (&[Close], libc::ECONNRESET, &["remote_first", "remote_rst"]),
        (&[Close], libc::ETIMEDOUT, &["none"]),
        (&[Close], libc::ECONNABORTED, &["none"]),
        (&[Close], libc::EHOSTUNREACH, &["none"]),
    ];
    for (rest, error, expected) in cases {
        let told = one(&[&OPEN[..], rest].concat(), error);
        let expected: Vec<_> = [&["closes"], expected]
            .concat()
            .into_iter()
            .map(|column| (column, 1))
            .collect();
        assert_eq!(told, expected, "{rest:?} {error}");
    }
    assert_eq!(one(&[Close, SynSent, Close], libc::ECONNREFUSED), []);
    assert_eq!(one(&[Close, SynSent, Close], 0), []);
    assert_eq!(one(&[Close, SynSent, Established], 0), []);
    // The close was before we looked.
    assert_eq!(one(&[FinWait1, FinWait2, Close], 0), []);
    assert_eq!(one(&[CloseWait, LastAck, Close], 0), []);
}

#[test]
fn the_one_in_close_closes_and_the_one_interrupted_does_not() {
    let process = |all: &[Sent]| {
        let report = Run::new(closers(by(&[Dimension::Pid])), None).report(all);
        assert_eq!(report.table.rows.len(), 2);
        value(&report, &report.table.rows[0], "pid").clone()
    };
    let connected = [Close, SynSent, Established, FinWait1];
    let opener = |record: TransitionRecord| {
        if record.new == SynSent as u8 {
            owned(record, 7, b"opener")
        } else {
            record
        }
    };
    // A child that inherited the socket closes it.
    let child = life(5, 10, &steps(&connected), |record| {
        if record.new == FinWait1 as u8 {
            owned(record, 8, b"child")
        } else {
            opener(record)
        }
    });
    assert_eq!(process(&child), Cell::Id(8));
    // Nobody was in close(): the owner is known, who closed is not.
    let nobody = life(5, 10, &steps(&connected), opener);
    assert_eq!(process(&nobody), Cell::Unknown);
    // The peer closed: the owner's.
    let peer = life(
        5,
        10,
        &steps(&[Close, SynSent, Established, CloseWait]),
        opener,
    );
    assert_eq!(process(&peer), Cell::Id(7));
    // `ss -K` is not the owner.
    let destroyed = life(
        5,
        10,
        &steps(&[Close, SynSent, Established, Close]),
        |record| {
            if record.new == Close as u8 {
                TransitionRecord {
                    error: libc::ECONNABORTED,
                    ..owned(record, 9, b"ss")
                }
            } else {
                opener(record)
            }
        },
    );
    let report = Run::new(closers(by(&[Dimension::Pid])), None).report(&destroyed);
    assert_eq!(
        counts(&report, total(&report)),
        [("closes", 1), ("none", 1)]
    );
}

/// An active close whose minisocket is born in this state.
fn minisocket(cookie: u64, substate: TcpState) -> Vec<Sent> {
    let mut all = life(
        cookie,
        10,
        &steps(&[Close, SynSent, Established, FinWait1, FinWait2]),
        |record| {
            if record.new == FinWait1 as u8 {
                owned(record, 7, b"closer")
            } else {
                record
            }
        },
    );
    let time = START + 20 * MS;
    let armed = timer(
        RecordKind::TimeWaitArmed,
        cookie,
        time,
        substate,
        60_000 * MS,
    );
    all.push(Sent::Timer(armed));
    all.push(Sent::Transition(record(
        cookie,
        time + 1000,
        FinWait2,
        Close,
    )));
    all
}

#[test]
fn time_waits_belong_to_the_one_who_closed() {
    let report = |all: &[Sent]| Run::new(closers(by(&[Dimension::Pid])), None).report(all);
    let at_once = report(&minisocket(5, TimeWait));
    let row = &at_once.table.rows[0];
    assert_eq!(value(&at_once, row, "pid"), &Cell::Id(7));
    assert_eq!(value(&at_once, row, "time_waits"), &Cell::Count(1));

    // Born in FIN_WAIT2: TIME_WAIT may have begun, and nobody says so yet.
    let waiting = minisocket(5, FinWait2);
    let told = report(&waiting);
    assert_eq!(
        value(&told, &told.table.rows[0], "time_waits"),
        &Cell::AtLeast(0)
    );
    assert_eq!(count(&told, &told.table.rows[0], "fin_wait2"), 1);
    assert!(told.table.notes[0].starts_with("1 minisocket in"));

    // The timer that expires in TIME_WAIT says that it had begun; the transition is told late, and counts once.
    let mut expired = waiting;
    let mut end = timer(
        RecordKind::TimeWaitExpired,
        5,
        START + 61_000 * MS,
        TimeWait,
        0,
    );
    end.due -= 200;
    expired.push(Sent::Timer(end));
    let told = report(&expired);
    let row = &told.table.rows[0];
    assert_eq!(value(&told, row, "time_waits"), &Cell::Count(1));
    assert_eq!(count(&told, row, "local_fin"), 1);

    // Where minisockets are not observed their number is not known.
    let order = Order {
        column: "closes",
        top: 10,
    };
    let blind = Closers::new(by(&[Dimension::Pid]), order, false, 100);
    let told = Run::new(blind, None).report(&minisocket(5, TimeWait)[..4]);
    assert_eq!(
        value(&told, &told.table.rows[0], "time_waits"),
        &Cell::Unknown
    );
}

#[test]
fn a_time_wait_counts_in_the_interval_in_which_it_begins() {
    let mut run = Run::new(closers(by(&[Dimension::Pid])), Some(15 * MS));
    for sent in minisocket(5, TimeWait) {
        run.takes(&sent);
    }
    let told: Vec<_> = run
        .ends(START + 40 * MS)
        .iter()
        .map(|report| (counts(report, total(report)), report.table.rows.len()))
        .collect();
    let nothing = (vec![], 1);
    assert_eq!(
        told,
        [
            (vec![("closes", 1), ("local_first", 1), ("local_fin", 1)], 2),
            (vec![("time_waits", 1)], 2),
            nothing,
        ]
    );
}

#[test]
fn a_first_close_that_was_lost_is_unknown() {
    let mut run = Run::new(closers(by(&[Dimension::Pid])), None);
    let opened = life(5, 10, &steps(&[Close, SynSent, Established]), |record| {
        owned(record, 7, b"owner")
    });
    for sent in &opened {
        run.takes(sent);
    }
    run.lifecycle.events_lost(START + 15 * MS);
    for sent in life(5, 20, &steps(&[FinWait2, Close]), |record| record) {
        run.takes(&sent);
    }
    let reports = run.ends(START + 30 * MS);
    let report = &reports[0];
    assert_eq!(
        counts(report, total(report)),
        [("closes", 1), ("unknown", 1)]
    );
    assert_eq!(value(report, &report.table.rows[0], "pid"), &Cell::Unknown);
}

#[test]
fn what_is_not_wanted_is_not_counted_later_either() {
    let mut run = Run::new(closers(by(&[Dimension::Pid])), None);
    for sent in minisocket(5, TimeWait) {
        let reports = &mut run.reports;
        run.lifecycle.event(sent.event(), |transition| {
            let wanted = transition.event.new != FinWait1;
            reports.take(&transition, wanted);
        });
    }
    let reports = run.ends(START + 40 * MS);
    assert_eq!(counts(&reports[0], total(&reports[0])), []);
}

#[test]
fn the_top_is_shown_and_the_rest_is_summed() {
    let order = Order {
        column: "closes",
        top: 2,
    };
    let tally = Closers::new(by(&[Dimension::Pid]), order, true, 100);
    let mut all = Vec::new();
    let mut cookie = 0;
    for (pid, closes) in [(1, 3), (2, 5), (3, 1), (4, 4)] {
        for _ in 0..closes {
            cookie += 1;
            all.extend(life(
                cookie,
                cookie,
                &steps(&[Established, Close]),
                |record| owned(record, pid, b"web"),
            ));
        }
    }
    let report = Run::new(tally, None).report(&all);
    let told: Vec<_> = report
        .table
        .rows
        .iter()
        .map(|row| {
            (
                row.kind,
                value(&report, row, "pid").clone(),
                count(&report, row, "closes"),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (RowKind::Group, Cell::Id(2), 5),
            (RowKind::Group, Cell::Id(4), 4),
            (RowKind::Others(2), Cell::Blank, 4),
            (RowKind::Total, Cell::Blank, 13),
        ]
    );
}

#[test]
fn connections_that_are_too_many_are_forgotten_and_counted() {
    let order = Order {
        column: "closes",
        top: 2,
    };
    let mut tally = Closers::new(by(&[Dimension::Service]), order, true, 2);
    let mut lifecycle = tcpstate_user::lifecycle::Lifecycle::new(100, START);
    for cookie in 1..=5 {
        let opened = record(cookie, START + cookie * MS, Close, SynSent);
        let transition = lifecycle.transition(&event(&opened));
        tcpstate_user::analysis::Tally::take(&mut tally, &transition, true);
    }
    let reports = Reports::new(Box::new(tally), HOOKS.to_vec(), START, None);
    assert_eq!(reports.forgotten(), 3);
}

/// One connection as the test makes it up.
#[derive(Clone, Debug)]
struct Made {
    passive: bool,
    pid: Option<u32>,
    uid: u32,
    cgroup: u64,
    netns: u32,
    peer: u8,
    end: usize,
    at: u64,
}

const ENDS: [(&[TcpState], i32, &str); 6] = [
    (&[FinWait1, FinWait2, Close], 0, "local_fin"),
    (&[Close], 0, "local_rst"),
    (&[CloseWait, LastAck, Close], 0, "remote_fin"),
    (&[Close], libc::ECONNRESET, "remote_rst"),
    (&[Close], libc::ETIMEDOUT, "none"),
    (&[CloseWait], 0, "remote_fin"),
];

fn made() -> impl Strategy<Value = Made> {
    let pid = prop::option::weighted(0.8, 1_u32..6);
    (
        any::<bool>(),
        pid,
        0_u32..3,
        41_u64..45,
        1_u32..3,
        1_u8..9,
        0..ENDS.len(),
        0_u64..2000,
    )
        .prop_map(|(passive, pid, uid, cgroup, netns, peer, end, at)| Made {
            passive,
            pid,
            uid,
            cgroup,
            netns,
            peer,
            end,
            at,
        })
}

impl Made {
    fn records(&self, cookie: u64) -> Vec<Sent> {
        let opened: [TcpState; 3] = if self.passive {
            [Listen, SynRecv, Established]
        } else {
            [Close, SynSent, Established]
        };
        let (rest, error, _) = ENDS[self.end];
        let states = [&opened[..], rest].concat();
        life(cookie, self.at, &steps(&states), |record| {
            let record = TransitionRecord {
                uid: self.uid,
                cgroup: self.cgroup,
                netns: self.netns,
                netns_cookie: self.netns.into(),
                raddr: std::net::Ipv4Addr::new(10, self.peer % 2, self.peer % 3, self.peer)
                    .to_ipv6_mapped()
                    .octets(),
                error: if record.new == Close as u8 { error } else { 0 },
                ..record
            };
            let closes = [FinWait1 as u8, Close as u8].contains(&record.new) && error == 0;
            let connects = record.new == SynSent as u8;
            match self.pid {
                Some(pid) if closes || connects => owned(record, pid, b"made\x07up"),
                _ => record,
            }
        })
    }
}

fn dimensions() -> impl Strategy<Value = Vec<Dimension>> {
    prop::sample::subsequence(Closers::DIMENSIONS.to_vec(), 1..=4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sums_over_any_grouping_are_the_total(
        made in prop::collection::vec(made(), 0..60),
        dimensions in dimensions(),
        top in 1_usize..5,
        column in prop::sample::select(COUNTS.to_vec()),
        every in prop::option::of(1_u64..500),
    ) {
        let mut all: Vec<_> = (1..).zip(&made).flat_map(|(cookie, made)| made.records(cookie)).collect();
        all.sort_by_key(|sent| sent.event().time());
        let tally = Closers::new(by(&dimensions), Order { column, top }, true, 1000);
        let mut run = Run::new(tally, every.map(|every| every * MS));
        for sent in &all {
run.takes(sent);
}
        let reports = run.ends(START + 10_000 * MS);
        let mut totals: HashMap<&str, u64> = HashMap::new();
        for report in &reports {
            let (sum, rows) = report.table.rows.split_last().expect("a total");
            prop_assert_eq!(sum.kind, RowKind::Total);
            let groups = rows.iter().filter(|row| row.kind == RowKind::Group).count();
            prop_assert!(groups <= top);
            let keys = by(&dimensions).columns().len();
            for (place, row) in rows.iter().enumerate() {
                let same = |other: &Row| other.cells[..keys] == row.cells[..keys];
                prop_assert!(!rows[..place].iter().any(same), "a group stands there twice");
            }
            for column in COUNTS {
                let of_rows: u64 = rows.iter().map(|row| count(report, row, column)).sum();
                prop_assert_eq!(of_rows, count(report, sum, column));
                *totals.entry(column).or_default() += of_rows;
            }
        }
        for column in ["local_fin", "local_rst", "remote_fin", "remote_rst", "none"] {
            let expected = made.iter().filter(|made| ENDS[made.end].2 == column).count();
            prop_assert_eq!(totals[column], expected as u64, "{}", column);
        }
        prop_assert_eq!(totals["closes"], made.len() as u64);
    }

    #[test]
    fn each_group_has_its_own(made in prop::collection::vec(made(), 1..60)) {
        let all: Vec<_> = (1..).zip(&made).flat_map(|(cookie, made)| made.records(cookie)).collect();
        let order = Order { column: "closes", top: 1000 };
        let report = Run::new(Closers::new(by(&[Dimension::Uid]), order, true, 1000), None).report(&all);
        for row in &report.table.rows {
            let wanted = value(&report, row, "uid");
            let expected = made.iter().filter(|made| match wanted {
                Cell::Id(uid) => u64::from(made.uid) == *uid,
                _ => true,
            });
            prop_assert_eq!(count(&report, row, "closes"), expected.count() as u64);
        }
    }
}

#[test]
fn services_are_never_ports_that_the_peer_picked() {
    let report =
        Run::new(closers(by(&[Dimension::Service, Dimension::Remote])), None).report(&scene());
    for row in &report.table.rows {
        for column in ["service", "remote"] {
            if let Cell::Endpoint(end) = value(&report, row, column) {
                assert!([0, 80, 443].contains(&end.port), "{end:?}");
            }
        }
    }
}

#[test]
fn nothing_to_tell_apart_gives_one_row() {
    let report = Run::new(closers(By::nothing()), None).report(&scene());
    assert_eq!(report.table.rows.len(), 1);
}
