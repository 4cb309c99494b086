//! TIME_WAITs and the ports they hold: what begins, ends, is left, and when there will be none.

use hashbrown::HashMap;
use proptest::prelude::*;
use tcpstate_common::{
    record::{Call, CallRecord, RecordKind, TimeWaitRecord, TransitionRecord},
    state::TcpState::{
        self, Close, Established, FinWait1, FinWait2, Listen, SynRecv, SynSent, TimeWait,
    },
};
use tcpstate_user::analysis::{
    By, Cell, Dimension, LocalPorts, Order, Report, Row, RowKind, Table, Waits, WaitsOptions,
};

use crate::{
    records::{MS, owned, record, timer},
    reports::{Run, by, count, value},
    scene::{START, Sent, call, life, scene},
    states::finds,
};

const NETNS: u32 = 4_026_531_840;

pub fn options(by: By, range: &str, reuse: &str) -> WaitsOptions {
    let ports = LocalPorts::parse(range, "", reuse).expect("a range");
    WaitsOptions {
        calls: true,
        by,
        order: Order {
            column: Waits::SORT,
            top: 10,
        },
        timewait: true,
        ports: HashMap::from_iter([(NETNS, ports)]),
        limit: 10_000,
    }
}

pub fn waits_report() -> Report {
    let waits = Waits::new(options(by(&[Dimension::Process]), "40000 40019", "0"));
    let mut all = scene();
    let at = START + 9_000 * MS;
    // One of the scene's expires.
    let expired = timer(RecordKind::TimeWaitExpired, 10, at, TimeWait, 0);
    all.push(Sent::Timer(TimeWaitRecord {
        due: 4_294_892_296 + (START + 122 * MS + 60_000 * MS) / crate::records::TICK,
        ..expired
    }));
    all.extend(failing(70, 9_500));
    all.extend(failing_binds(START + 9_600 * MS));
    let mut report = Run::new(waits, None).report(&all);
    report.lost = 2;
    report
}

/// connect() that finds no port.
fn failing(cookie: u64, at: u64) -> Vec<Sent> {
    life(
        cookie,
        at,
        &[(Close, 0), (SynSent, 0), (Close, 1)],
        |record| {
            let record = TransitionRecord { lport: 0, ..record };
            if record.new == Close as u8 {
                // It is in connect(), not in close().
                TransitionRecord {
                    flags: tcpstate_common::record::flags::OWNED
                        | tcpstate_common::record::flags::FILE_KNOWN,
                    ..owned(record, 500, b"cu\x1brl")
                }
            } else {
                owned(record, 500, b"cu\x1brl")
            }
        },
    )
}

/// bind() that finds a port taken, twice that finds none, one of IPv6 whose address could not be read.
fn failing_binds(at: u64) -> Vec<Sent> {
    let bind = |port| call(Call::Bind, 80, at, 501, b"ser\x1b[2Jver", port);
    let unread = CallRecord {
        family: 0,
        ..bind(0)
    };
    [bind(443), bind(0), bind(0), unread].map(Sent::Call).into()
}

/// An active close, from connect() to a minisocket in TIME_WAIT.
fn waits(cookie: u64, at: u64, port: u16) -> Vec<Sent> {
    let states = [
        (Close, 0),
        (SynSent, 0),
        (Established, 100),
        (FinWait1, 100),
        (FinWait2, 100),
    ];
    let mut all = life(cookie, at, &states, |record| {
        let lport = if record.new == SynSent as u8 { 0 } else { port };
        owned(TransitionRecord { lport, ..record }, 7, b"client")
    });
    let time = START + at * MS + 400_000;
    let born = timer(
        RecordKind::TimeWaitBorn,
        cookie,
        time,
        TimeWait,
        60_000 * MS,
    );
    all.push(Sent::Timer(TimeWaitRecord {
        lport: port,
        ..born
    }));
    all.push(Sent::Transition(TransitionRecord {
        lport: port,
        ..record(cookie, time + 1000, FinWait2, Close)
    }));
    all
}

fn ends(cookie: u64, at: u64, port: u16) -> Sent {
    let end = timer(
        RecordKind::TimeWaitTimedOut,
        cookie,
        START + at * MS,
        TimeWait,
        0,
    );
    Sent::Timer(TimeWaitRecord { lport: port, ..end })
}

fn total(report: &Report) -> &Row {
    let last = report.table.rows.last().expect("a total");
    assert_eq!(last.kind, RowKind::Total);
    last
}

/// A table that belongs to a report.
fn section<'a>(report: &'a Report, name: &str) -> &'a Table {
    let mut sections = report.table.more.iter();
    let section = sections.find(|section| section.name == name);
    &section.expect("a section").table
}

/// A cell of a row of such a table.
fn cell<'a>(table: &'a Table, row: usize, column: &str) -> &'a Cell {
    let place = table.columns.iter().position(|one| one.name == column);
    &table.rows[row].cells[place.expect("a column")]
}

fn seconds(cell: &Cell) -> Option<f64> {
    cell.number().map(|nanoseconds| nanoseconds / 1e9)
}

#[test]
fn a_time_wait_is_born_is_there_and_ends_with_its_duration() {
    let waits_view = Waits::new(options(by(&[Dimension::Process]), "40000 40019", "0"));
    let mut run = Run::new(waits_view, Some(30_000 * MS));
    for sent in waits(5, 10, 40_001) {
        run.takes(&sent);
    }
    run.takes(&ends(5, 60_510, 40_001));
    let reports = run.ends(START + 70_000 * MS);
    let told: Vec<_> = reports
        .iter()
        .map(|report| {
            let of = |column| count(report, total(report), column);
            let used = section(report, "ports").rows.len();
            (of("now"), of("born"), of("ended"), of("expired"), used)
        })
        .collect();
    assert_eq!(told, [(1, 1, 0, 0, 1), (1, 0, 0, 0, 1), (0, 0, 1, 1, 0)]);
    let last = &reports[2];
    for column in ["p50", "max"] {
        let time = seconds(value(last, total(last), column)).expect("a time");
        assert!((60.499..60.5001).contains(&time), "{time}");
    }
    assert_eq!(value(last, &last.table.rows[0], "comm"), &{
        Cell::Comm(tcpstate_user::event::Comm::truncated("client"))
    });
}

#[test]
fn without_an_observer_nothing_is_known() {
    let mut options = options(by(&[Dimension::Process]), "40000 40019", "0");
    options.timewait = false;
    let report = Run::new(Waits::new(options), None).report(&waits(5, 10, 40_001)[..3]);
    for column in ["now", "born", "expired", "overflow", "p50"] {
        assert_eq!(value(&report, total(&report), column), &Cell::Unknown);
    }
}

#[test]
fn the_forecast_is_when_the_last_port_is_taken() {
    // Twenty ports, one taken every 250 ms and kept for a minute: none is left after 5 s.
    let mut run = Run::new(
        Waits::new(options(by(&[Dimension::Process]), "40000 40019", "0")),
        Some(1_000 * MS),
    );
    for (cookie, port) in (1..=20_u64).zip(40_000..) {
        for sent in waits(cookie, 250 * cookie - 125, port) {
            run.takes(&sent);
        }
    }
    for sent in failing(99, 5_100) {
        run.takes(&sent);
    }
    let reports = run.ends(START + 5_500 * MS);
    for (at, report) in (1_u32..).zip(&reports[..4]) {
        let ports = section(report, "ports");
        assert_eq!(ports.rows.len(), 1);
        assert_eq!(cell(ports, 0, "used"), &Cell::Count(u64::from(4 * at)));
        assert_eq!(cell(ports, 0, "free"), &Cell::Count(u64::from(20 - 4 * at)));
        let left = seconds(cell(ports, 0, "seconds_until_none")).expect("a forecast");
        let right = f64::from(5 - at);
        assert!((left / right - 1.0).abs() < 0.1, "{left}");
    }
    let full = section(&reports[4], "ports");
    assert_eq!(seconds(cell(full, 0, "seconds_until_none")), Some(0.0));
    let last = reports.last().expect("a report");
    assert_eq!(cell(section(last, "ports"), 0, "failed"), &Cell::Count(1));
    assert_eq!(
        cell(section(last, "failed_connects"), 0, "failed"),
        &Cell::Count(1)
    );
}

#[test]
fn time_waits_that_end_as_fast_as_they_begin_take_no_more_ports() {
    // One a second: sixty are held at a time, and a hundred are there to be.
    let mut run = Run::new(
        Waits::new(options(by(&[Dimension::Process]), "40000 40099", "0")),
        Some(5_000 * MS),
    );
    let mut all = Vec::new();
    for (cookie, port) in (1..=100_u64).zip((40_000..=40_099).cycle()) {
        all.extend(waits(cookie, 1_000 * cookie, port));
        all.push(ends(cookie, 1_000 * cookie + 60_100, port));
    }
    all.sort_by_key(|sent| sent.event().time());
    for sent in &all {
        run.takes(sent);
    }
    for report in &run.ends(START + 170_000 * MS)[1..19] {
        assert_eq!(
            cell(section(report, "ports"), 0, "seconds_until_none"),
            &Cell::Unknown
        );
    }
}

#[test]
fn reuse_makes_a_lower_bound() {
    let report = |reuse, local: [u8; 4]| {
        let view = Waits::new(options(by(&[Dimension::Process]), "40000 40019", reuse));
        let all: Vec<_> = waits(5, 10, 40_001)
            .into_iter()
            .map(|sent| match sent {
                Sent::Transition(record) => Sent::Transition(TransitionRecord {
                    laddr: std::net::Ipv4Addr::from(local).to_ipv6_mapped().octets(),
                    ..record
                }),
                other => other,
            })
            .collect();
        let report = Run::new(view, None).report(&all);
        cell(section(&report, "ports"), 0, "free").clone()
    };
    assert_eq!(report("0", [127, 0, 0, 1]), Cell::Count(19));
    assert_eq!(report("2", [127, 0, 0, 1]), Cell::AtLeast(19));
    assert_eq!(report("2", [10, 0, 0, 1]), Cell::Count(19));
    assert_eq!(report("1", [10, 0, 0, 1]), Cell::AtLeast(19));
}

/// How many ports one connection is told to hold, and how many there are.
fn used(all: &[Sent], found: &[TransitionRecord]) -> Option<(Cell, Cell)> {
    let mut run = Run::new(
        Waits::new(options(by(&[Dimension::Process]), "40000 40019", "0")),
        None,
    );
    run.lifecycle.begin_finding();
    for like in found {
        finds(&mut run, like, None);
    }
    run.lifecycle.end_finding();
    run.reports.all_found();
    for sent in all {
        run.takes(sent);
    }
    let reports = run.ends(START + 1_000 * MS);
    let ports = section(&reports[0], "ports");
    (!ports.rows.is_empty()).then(|| {
        (
            cell(ports, 0, "used").clone(),
            cell(ports, 0, "limit").clone(),
        )
    })
}

fn steps(states: &[TcpState]) -> Vec<(TcpState, u64)> {
    states.iter().map(|state| (*state, 1000)).collect()
}

#[test]
fn who_opened_it_is_not_known_before_listeners_are() {
    let middle = [Sent::Transition(record(5, START, Established, FinWait1))];
    let report = |found: bool| {
        let mut run = Run::new(
            Waits::new(options(by(&[Dimension::Process]), "40000 40019", "0")),
            None,
        );
        if found {
            run.reports.all_found();
        }
        section(&run.report(&middle), "ports").rows.len()
    };
    assert_eq!((report(false), report(true)), (0, 1));
}

#[test]
fn only_ports_that_connect_picks_are_used() {
    let with = |lport: u16, states: &[TcpState]| {
        used(
            &life(5, 10, &steps(states), |record| TransitionRecord {
                lport,
                ..record
            }),
            &[],
        )
    };
    let one = Some((Cell::Count(1), Cell::Count(20)));
    // Its port is one that the kernel picks; it was bound to one in the range; to another one.
    assert_eq!(with(0, &[Close, SynSent]), one);
    assert_eq!(with(40_005, &[Close, SynSent, Established]), one);
    assert_eq!(with(30_000, &[Close, SynSent, Established]), None);
    assert_eq!(with(40_005, &[Listen, SynRecv, Established]), None);
    assert_eq!(with(40_005, &[Close, SynSent, Established, Close]), None);
    // Found: no listener has its port, or one has; that one takes a port from all.
    let established = record(5, START, Established, Established);
    assert_eq!(used(&[], &[established]), one);
    let listener = TransitionRecord {
        rport: 0,
        ..record(4, START, Listen, Listen)
    };
    assert_eq!(used(&[], &[listener, established]), None);
    let other = TransitionRecord {
        lport: 40_007,
        ..established
    };
    assert_eq!(
        used(&[], &[listener, other]),
        Some((Cell::Count(1), Cell::Count(19)))
    );
}

#[test]
fn other_failures_of_connect_are_not_those_without_a_port() {
    let failed = |change: &dyn Fn(TransitionRecord) -> TransitionRecord| {
        let all = life(5, 10, &steps(&[Close, SynSent, Close]), change);
        let view = Waits::new(options(by(&[Dimension::Process]), "40000 40019", "0"));
        let report = Run::new(view, None).report(&all);
        section(&report, "failed_connects").rows.len()
    };
    let without = |record| TransitionRecord {
        lport: 0,
        ..owned(record, 7, b"client")
    };
    assert_eq!(failed(&without), 1);
    // Given up, or refused: it had one.
    assert_eq!(failed(&|record| owned(record, 7, b"client")), 0);
    // Not by its own system call.
    assert_eq!(failed(&|record| TransitionRecord { lport: 0, ..record }), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sums_over_any_grouping_are_the_total(
        made in prop::collection::vec((any::<bool>(), 1_u8..4, 0_u64..500), 0..40),
        dimensions in prop::sample::subsequence(Waits::DIMENSIONS.to_vec(), 1..=4),
        top in 1_usize..5,
    ) {
        let mut all = Vec::new();
        let mut ended = 0;
        for ((cookie, port), (ends_too, peer, at)) in (1..).zip(40_000..).zip(&made) {
            let raddr = std::net::Ipv4Addr::new(10, 0, 0, *peer).to_ipv6_mapped().octets();
            let mut life = waits(cookie, *at, port);
            if *ends_too {
                ended += 1;
                life.push(ends(cookie, at + 5_000, port));
            }
            all.extend(life.into_iter().map(|sent| match sent {
                Sent::Transition(record) => Sent::Transition(TransitionRecord { raddr, ..record }),
                Sent::Timer(record) => Sent::Timer(TimeWaitRecord { raddr, ..record }),
                call @ Sent::Call(_) => call,
            }));
        }
        all.sort_by_key(|sent| sent.event().time());
        let mut options = options(by(&dimensions), "40000 40099", "0");
        options.order.top = top;
        let report = Run::new(Waits::new(options), None).report(&all);
        let (sum, rows) = report.table.rows.split_last().expect("a total");
        for (column, expected) in [
            ("born", made.len() as u64),
            ("ended", ended),
            ("expired", ended),
            ("now", made.len() as u64 - ended),
        ] {
            let of_rows: u64 = rows.iter().map(|row| count(&report, row, column)).sum();
            prop_assert_eq!(of_rows, count(&report, sum, column), "{}", column);
            prop_assert_eq!(of_rows, expected, "{}", column);
        }
        // The ports in use are the minisockets that are left, however many destinations are shown.
        let ports = section(&report, "ports");
        let used: u64 = (0..ports.rows.len())
            .map(|row| match cell(ports, row, "used") {
                Cell::Count(used) => *used,
                other => unreachable!("no count: {other:?}"),
            })
            .sum();
        prop_assert_eq!(used, made.len() as u64 - ended);
    }
}
