//! Sockets by state, and those that stay: what was there before counts like what began.

use proptest::prelude::*;
use tcpstate_common::{
    record::{RecordKind, SocketRecord, TransitionRecord},
    state::TcpState::{
        self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
        SynSent, TimeWait,
    },
};
use tcpstate_user::{
    analysis::{
        By, Cell, Dimension, Leaks, LeaksOptions, Order, Report, Row, RowKind, States,
        StatesOptions, Tally,
    },
    event::{Comm, Event, Process, Via},
    lifecycle::Phase,
};
use zerocopy::IntoBytes as _;

use crate::{
    records::{MS, owned, record, timer},
    reports::{Run, by, count, value},
    scene::{START, Sent, life, scene},
};

pub fn states(by: By) -> States {
    States::new(options(by))
}

fn options(by: By) -> StatesOptions {
    StatesOptions {
        by,
        order: Order {
            column: States::SORT,
            top: 10,
        },
        states: Vec::new(),
        timewait: true,
        limit: 10_000,
    }
}

pub fn leaks(by: Option<By>, older: u64) -> Leaks {
    Leaks::new(LeaksOptions {
        by,
        order: Order {
            column: Leaks::SORT,
            top: 10,
        },
        states: Vec::new(),
        older,
        limit: 10_000,
    })
}

/// A full socket that the kernel's list has.
pub fn listed(like: &TransitionRecord) -> SocketRecord {
    SocketRecord {
        kind: RecordKind::Socket as u8,
        state: like.new,
        protocol: like.protocol,
        family: like.family,
        flags: 0,
        padding: 0,
        time: like.time,
        cookie: like.cookie,
        socket: like.socket,
        netns_cookie: like.netns_cookie,
        cgroup: like.cgroup,
        inode: 77,
        laddr: like.laddr,
        raddr: like.raddr,
        lport: like.lport,
        rport: like.rport,
        netns: like.netns,
        uid: like.uid,
        retransmits: 0,
        bytes_acked: 0,
        bytes_received: 0,
        srtt_us: 0,
        padding2: 0,
    }
}

fn scanned() -> Process {
    Process {
        pid: 9,
        comm: Comm::truncated("held"),
        via: Via::Scan,
    }
}

/// The socket of a connection is in the kernel's list.
pub fn finds(run: &mut Run, like: &TransitionRecord, process: Option<Process>) {
    let bytes = listed(like);
    let Ok(Event::Socket(event)) = Event::decode(bytes.as_bytes()) else {
        unreachable!("a socket was written");
    };
    if let Some(found) = run.lifecycle.found(&event, process) {
        run.reports.found(&found, true);
    }
}

/// A server with connections in every state, some of which were there before, and minisockets.
fn run(tally: impl Tally + 'static) -> Run {
    let mut run = Run::new(tally, None);
    run.lifecycle.begin_finding();
    let web = |cookie: u64, state| TransitionRecord {
        lport: 80,
        rport: 50_000 + u16::try_from(cookie).expect("a small number"),
        ..record(cookie, START + MS, state, state)
    };
    let listener = TransitionRecord {
        rport: 0,
        raddr: std::net::Ipv6Addr::UNSPECIFIED.octets(),
        laddr: std::net::Ipv6Addr::UNSPECIFIED.octets(),
        ..web(100, Listen)
    };
    finds(&mut run, &listener, Some(scanned()));
    for cookie in 101..104 {
        finds(&mut run, &web(cookie, CloseWait), Some(scanned()));
    }
    finds(&mut run, &web(104, Established), None);
    finds(
        &mut run,
        &record(105, START + MS, SynSent, SynSent),
        Some(scanned()),
    );
    let minisocket = timer(
        RecordKind::TimeWaitFound,
        106,
        START + MS,
        TimeWait,
        30_000 * MS,
    );
    let Event::TimeWait(event) = Sent::Timer(minisocket).event() else {
        unreachable!("a minisocket was written");
    };
    if let Some(found) = run.lifecycle.found_minisocket(&event, |_| ()) {
        run.reports.found(&found, true);
    }
    run.lifecycle.end_finding();
    run.reports.all_found();
    for sent in scene() {
        run.takes(&sent);
    }
    run
}

fn at_the_end(tally: impl Tally + 'static) -> Report {
    let reports = run(tally).ends(START + 10_000 * MS);
    reports.into_iter().next_back().expect("the last one")
}

pub fn states_report() -> Report {
    at_the_end(states(by(&[Dimension::Process])))
}

pub fn states_by_state() -> Report {
    at_the_end(states(by(&[Dimension::State, Dimension::Service])))
}

pub fn leaks_report() -> Report {
    at_the_end(leaks(None, 9_700 * MS))
}

pub fn leaks_by_process() -> Report {
    at_the_end(leaks(
        Some(by(&[Dimension::Process, Dimension::Service])),
        0,
    ))
}

fn total(report: &Report) -> &Row {
    let last = report.table.rows.last().expect("a total");
    assert_eq!(last.kind, RowKind::Total);
    last
}

/// The states that sockets are in, with how many, of the whole report.
fn told(report: &Report) -> Vec<(&'static str, u64)> {
    let columns = States::columns(&By::nothing(), &[]);
    columns
        .iter()
        .filter(|column| !["counts", "fin_wait2_minisockets"].contains(&column.name))
        .map(|column| (column.name, count(report, total(report), column.name)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn steps(states: &[TcpState]) -> Vec<(TcpState, u64)> {
    states.iter().map(|state| (*state, 1000)).collect()
}

#[test]
fn a_socket_counts_in_the_state_it_is_in_and_nowhere_else() {
    let path = [
        Close,
        SynSent,
        Established,
        FinWait1,
        Closing,
        FinWait2,
        CloseWait,
        LastAck,
        Close,
    ];
    for end in 2..=path.len() {
        let all = life(5, 10, &steps(&path[..end]), |record| record);
        let report = Run::new(states(by(&[Dimension::Process])), None).report(&all);
        let expected = match path[end - 1] {
            Close => vec![],
            state => vec![("sockets", 1), (state.label(), 1)],
        };
        assert_eq!(told(&report), expected);
    }
}

#[test]
fn what_was_there_before_counts_until_it_ends() {
    let mut run = Run::new(states(by(&[Dimension::Process])), Some(MS));
    run.lifecycle.begin_finding();
    finds(&mut run, &record(5, START, CloseWait, CloseWait), None);
    run.lifecycle.end_finding();
    for sent in life(
        5,
        1,
        &[(CloseWait, 0), (LastAck, 500), (Close, 1_000)],
        |record| record,
    ) {
        run.takes(&sent);
    }
    let reports = run.ends(START + 4 * MS);
    let all: Vec<_> = reports.iter().map(told).collect();
    assert_eq!(
        all[..3],
        [
            vec![("sockets", 1), ("close_wait", 1)],
            vec![("sockets", 1), ("last_ack", 1)],
            vec![],
        ]
    );
}

#[test]
fn counts_say_when_they_are_not_exact() {
    let word = |report: &Report| value(report, total(report), "counts").clone();
    assert_eq!(word(&states_report()), Cell::Word("exact"));
    // The list has not been read.
    let report = Run::new(states(by(&[Dimension::Process])), None).report(&scene());
    assert_eq!(word(&report), Cell::Word("about"));
    assert!(report.table.notes[0].starts_with("about: without"));
    // Something was lost: for good.
    let mut lossy = run(states(by(&[Dimension::Process])));
    lossy.reports.lost(1, START + 5_000 * MS);
    lossy.reports.end(START + 6_000 * MS);
    let later = lossy.reports.end(START + 7_000 * MS);
    assert_eq!(later.lost, 0);
    assert_eq!(word(&later), Cell::Word("about"));
}

#[test]
fn a_socket_stays_its_owners_when_another_process_closes_it() {
    let all = life(
        5,
        10,
        &steps(&[Close, SynSent, Established, FinWait1]),
        |record| match record.new {
            new if new == SynSent as u8 => owned(record, 7, b"owner"),
            new if new == FinWait1 as u8 => owned(record, 8, b"child"),
            _ => record,
        },
    );
    let report = Run::new(states(by(&[Dimension::Pid])), None).report(&all);
    assert_eq!(value(&report, &report.table.rows[0], "pid"), &Cell::Id(7));
    assert_eq!(report.table.rows.len(), 2);
}

#[test]
fn those_forgotten_are_not_counted_and_are_told() {
    let tally = States::new(StatesOptions {
        limit: 3,
        ..options(by(&[Dimension::Process]))
    });
    let mut run = Run::new(tally, None);
    for cookie in 1..=5 {
        for sent in life(cookie, cookie, &steps(&[Close, SynSent]), |record| record) {
            run.takes(&sent);
        }
    }
    assert_eq!(run.reports.forgotten(), 2);
    let reports = run.ends(START + 20 * MS);
    assert_eq!(told(&reports[0]), [("sockets", 3), ("syn_sent", 3)]);
}

#[test]
fn only_the_states_that_are_asked_for() {
    let report = at_the_end(States::new(StatesOptions {
        states: vec![CloseWait, SynSent],
        ..options(by(&[Dimension::Process]))
    }));
    let names: Vec<_> = report
        .table
        .columns
        .iter()
        .map(|column| column.name)
        .collect();
    assert!(!names.contains(&"established"), "{names:?}");
    assert_eq!(count(&report, total(&report), "sockets"), 4);
    for row in &report.table.rows {
        assert_eq!(row.cells.len(), report.table.columns.len());
    }
}

#[test]
fn a_leak_has_the_age_of_its_state() {
    let mut run = Run::new(leaks(None, 5 * MS), None);
    for sent in life(
        5,
        10,
        &[
            (Listen, 0),
            (SynRecv, 0),
            (Established, 9),
            (CloseWait, 991),
        ],
        |record| record,
    ) {
        run.takes(&sent);
    }
    // shutdown() and then close(): FIN_WAIT2 goes on.
    for sent in life(
        6,
        2,
        &[(FinWait1, 0), (FinWait2, 0), (FinWait2, 7_000)],
        |record| record,
    ) {
        run.takes(&sent);
    }
    // Too young.
    for sent in life(7, 18, &steps(&[Close, SynSent]), |record| record) {
        run.takes(&sent);
    }
    let reports = run.ends(START + 20 * MS);
    let rows = &reports[0].table.rows;
    let told: Vec<_> = rows
        .iter()
        .map(|row| value(&reports[0], row, "age").clone())
        .collect();
    let age = |ms| Cell::Age(Phase::new(ms * MS, tcpstate_user::lifecycle::Bound::Exact));
    assert_eq!(told, [age(18), age(9), age(18)]);
}

#[test]
fn a_leak_that_was_there_before_is_older_than_we_know() {
    // 9.999 s is what we know of those found.
    let report = at_the_end(leaks(None, 20_000 * MS));
    assert_eq!(count(&report, total(&report), "sockets"), 0);
    assert_eq!(
        report.table.notes,
        ["4 more were there at the start and may be as old: --older 0 lists them"]
    );
    let report = at_the_end(leaks(Some(by(&[Dimension::Pid])), 9_999 * MS));
    let row = &report.table.rows[0];
    assert_eq!(value(&report, row, "pid"), &Cell::Id(9));
    assert_eq!(count(&report, row, "sockets"), 4);
    assert_eq!(value(&report, row, "bound"), &Cell::Word("at_least"));
}

#[test]
fn a_leak_not_heard_of_since_a_loss_is_not_told_as_exact() {
    let mut run = Run::new(leaks(None, 0), None);
    for sent in life(5, 10, &steps(&[Established, CloseWait]), |record| record) {
        run.takes(&sent);
    }
    run.reports.lost(1, START + 15 * MS);
    let reports = run.ends(START + 20 * MS);
    assert_eq!(
        value(&reports[0], &reports[0].table.rows[0], "bound"),
        &Cell::Word("at_most")
    );
}

/// Paths of states as a socket may take them.
const PATHS: [&[TcpState]; 6] = [
    &[Close, SynSent, Established, FinWait1, FinWait2, Close],
    &[Listen, SynRecv, Established, CloseWait, LastAck, Close],
    &[Close, SynSent, Close],
    &[Close, Listen, Close],
    &[Listen, SynRecv, Established, Close],
    &[Established, CloseWait, Close],
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sums_over_any_grouping_are_the_sockets_that_are_there(
        made in prop::collection::vec((0..PATHS.len(), 2_usize..7, 1_u32..4, 0_u64..50), 0..60),
        dimensions in prop::sample::subsequence(States::DIMENSIONS.to_vec(), 1..=4),
        top in 1_usize..5,
    ) {
        let mut all = Vec::new();
        let mut expected = std::collections::HashMap::<TcpState, u64>::new();
        for (cookie, (path, length, process, at)) in (1..).zip(&made) {
            let path = &PATHS[*path][..(*length).min(PATHS[*path].len())];
            all.extend(life(cookie, *at, &steps(path), |record| {
                owned(TransitionRecord { uid: *process, cgroup: 40 + u64::from(*process), ..record }, *process, b"made")
            }));
            *expected.entry(path[path.len() - 1]).or_default() += 1;
        }
        expected.remove(&Close);
        all.sort_by_key(|sent| sent.event().time());
        let tally = States::new(StatesOptions {
            order: Order { column: States::SORT, top },
            ..options(by(&dimensions))
        });
        let report = Run::new(tally, None).report(&all);
        let (sum, rows) = report.table.rows.split_last().expect("a total");
        let of_rows: u64 = rows.iter().map(|row| count(&report, row, "sockets")).sum();
        prop_assert_eq!(of_rows, count(&report, sum, "sockets"));
        prop_assert_eq!(of_rows, expected.values().sum::<u64>());
        if !dimensions.contains(&Dimension::State) {
            for state in TcpState::ALL.into_iter().filter(|state| States::counts(*state)) {
                let of_rows: u64 = rows.iter().map(|row| count(&report, row, state.label())).sum();
                prop_assert_eq!(of_rows, expected.get(&state).copied().unwrap_or(0), "{:?}", state);
            }
        }
    }
}
