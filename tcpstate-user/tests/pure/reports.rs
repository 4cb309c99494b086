//! Periodic views in every output format (`snapshots/`), and when their intervals end.

use std::{cell::RefCell, io, rc::Rc};

use crate::{
    records::{MS, timer},
    scene::{START, Sent, scene},
    states::{leaks_by_process, leaks_report, states_by_state, states_report},
    waits::waits_report,
};
use jiff::tz::TimeZone;
use tcpstate_common::{
    record::{CALLERS, RecordKind, TimeWaitRecord},
    state::TcpState::TimeWait,
};
use tcpstate_user::{
    analysis::{
        By, Cell, Closers, Dimension, Hist, HistOptions, Order, Report, Reports, Row, Scale, Tally,
    },
    clock::Clock,
    event::Event,
    lifecycle::Lifecycle,
    sink::{Csv, Json, Layout, Rows, Sink, Text},
};

/// The time of day at monotonic zero: 2026-11-22T00:00:00Z.
const OFFSET: i128 = 1_795_305_600_000_000_000;
pub const HOOKS: [&str; 2] = ["BTF tracepoint", "timer tracepoints"];

/// A view, and what it reported.
pub struct Run {
    pub lifecycle: Lifecycle,
    pub reports: Reports,
    pub reported: Vec<Report>,
}

impl Run {
    pub fn new(tally: impl Tally + 'static, every: Option<u64>) -> Self {
        let mut lifecycle = Lifecycle::new(10_000, START);
        lifecycle.name_cgroup(
            42,
            &format!(
                "/system.slice/docker-{}.scope",
                "0123456789abcdef".repeat(4)
            ),
        );
        lifecycle.name_cgroup(43, "/system.slice/a \u{1b}[2Jb.service");
        Self {
            lifecycle,
            reports: Reports::new(Box::new(tally), HOOKS.to_vec(), START, every),
            reported: Vec::new(),
        }
    }

    pub fn passes(&mut self, now: u64) {
        while let Some(report) = self.reports.next(&mut self.lifecycle, now, |_| true) {
            self.reported.push(report);
        }
        let reports = &mut self.reports;
        self.lifecycle
            .settle(now, |transition| reports.take(&transition, true));
    }

    pub fn takes(&mut self, sent: &Sent) {
        let event = sent.event();
        while let Some(report) = self
            .reports
            .next(&mut self.lifecycle, event.time(), |_| true)
        {
            self.reported.push(report);
        }
        let reports = &mut self.reports;
        if let Event::Call(event) = &event {
            match self.lifecycle.accepted(event) {
                Some(connection) => reports.accepted(connection, event.process),
                None => reports.bind_failed(event),
            }
        } else {
            self.lifecycle
                .event(event, |transition| reports.take(&transition, true));
        }
    }

    pub fn ends(mut self, now: u64) -> Vec<Report> {
        self.passes(now);
        let last = self.reports.end(now);
        self.reported.push(last);
        self.reported
    }

    /// The one report on all of this.
    pub fn report(mut self, all: &[Sent]) -> Report {
        for sent in all {
            self.takes(sent);
        }
        self.ends(START + 10_000 * MS)
            .pop()
            .expect("there is a last one")
    }
}

/// The value of a row in a column.
pub fn value<'a>(report: &'a Report, row: &'a Row, column: &str) -> &'a Cell {
    let at = report
        .table
        .columns
        .iter()
        .position(|one| one.name == column);
    &row.cells[at.unwrap_or_else(|| unreachable!("there is a column {column}"))]
}

/// A count in a row.
pub fn count(report: &Report, row: &Row, column: &str) -> u64 {
    match value(report, row, column) {
        Cell::Count(count) | Cell::AtLeast(count) => *count,
        other => unreachable!("{column} is no count: {other:?}"),
    }
}

pub fn by(dimensions: &[Dimension]) -> By {
    By::new(dimensions, (24, 64))
}

pub fn closers(by: By) -> Closers {
    let order = Order {
        column: Closers::SORT,
        top: 10,
    };
    Closers::new(by, order, true, 10_000)
}

pub fn hist(by: By, scale: Scale) -> Hist {
    Hist::new(HistOptions {
        by,
        order: Order {
            column: Hist::SORT,
            top: 10,
        },
        states: Vec::new(),
        scale,
        buckets: true,
        timewait: true,
        limit: 10_000,
    })
}

/// A sink's output that can be read while the sink has it.
#[derive(Clone, Default)]
struct Page(Rc<RefCell<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn clock() -> Clock {
    Clock::new(START, OFFSET, TimeZone::UTC)
}

fn written<S: Sink>(report: &Report, make: impl FnOnce(Page) -> S) -> String {
    let page = Page::default();
    let mut sink = make(page.clone());
    sink.report(report).expect("memory can be written");
    sink.flush().expect("memory can be written");
    drop(sink);
    String::from_utf8(page.0.take()).expect("UTF-8")
}

fn text(report: &Report, wide: bool) -> String {
    let layout = Layout {
        wide,
        rows: Rows::Reports,
        ..Layout::default()
    };
    written(report, |page| {
        Text::new(page, clock(), layout).expect("memory can be written")
    })
}

fn json(report: &Report) -> String {
    written(report, |page| Json::new(page, clock()))
}

fn csv_rows(report: &Report) -> String {
    written(report, |page| {
        Csv::new(page, clock(), Rows::Reports).expect("memory can be written")
    })
}

fn closers_report() -> Report {
    let by = by(&[Dimension::Process, Dimension::Service]);
    let mut report = Run::new(closers(by), None).report(&scene());
    report.lost = 7;
    report
}

fn hist_report() -> Report {
    Run::new(hist(By::nothing(), Scale::Logarithmic), None).report(&scene())
}

/// Every way of grouping at once.
fn everything() -> Report {
    Run::new(closers(by(&Closers::DIMENSIONS)), None).report(&scene())
}

#[test]
fn closers_text() {
    let text = text(&closers_report(), false);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn closers_text_wide() {
    insta::assert_snapshot!(text(&closers_report(), true));
}

#[test]
fn closers_by_everything() {
    insta::assert_snapshot!(text(&everything(), false));
}

#[test]
fn closers_json() {
    insta::assert_snapshot!(json(&closers_report()));
}

#[test]
fn closers_csv() {
    insta::assert_snapshot!(csv_rows(&closers_report()));
}

#[test]
fn hist_text() {
    let text = text(&hist_report(), false);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn hist_text_linear_by_process() {
    let hist = hist(by(&[Dimension::Process]), Scale::Linear);
    insta::assert_snapshot!(text(&Run::new(hist, None).report(&scene()), false));
}

#[test]
fn hist_json() {
    insta::assert_snapshot!(json(&hist_report()));
}

#[test]
fn hist_csv() {
    insta::assert_snapshot!(csv_rows(&hist_report()));
}

#[test]
fn states_text() {
    let text = text(&states_report(), false);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn states_text_wide() {
    insta::assert_snapshot!(text(&states_report(), true));
}

#[test]
fn states_by_state_text() {
    insta::assert_snapshot!(text(&states_by_state(), false));
}

#[test]
fn states_json() {
    insta::assert_snapshot!(json(&states_report()));
}

#[test]
fn states_csv() {
    insta::assert_snapshot!(csv_rows(&states_report()));
}

#[test]
fn leaks_text() {
    insta::assert_snapshot!(text(&leaks_report(), false));
}

#[test]
fn leaks_by_process_text() {
    insta::assert_snapshot!(text(&leaks_by_process(), false));
}

#[test]
fn leaks_json() {
    insta::assert_snapshot!(json(&leaks_report()));
}

#[test]
fn leaks_csv() {
    insta::assert_snapshot!(csv_rows(&leaks_report()));
}

#[test]
fn waits_text() {
    let text = text(&waits_report(), false);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn waits_text_wide() {
    insta::assert_snapshot!(text(&waits_report(), true));
}

#[test]
fn waits_json() {
    insta::assert_snapshot!(json(&waits_report()));
}

#[test]
fn waits_csv() {
    insta::assert_snapshot!(csv_rows(&waits_report()));
}

/// One report of every kind.
fn all_reports() -> Vec<Report> {
    vec![
        closers_report(),
        hist_report(),
        everything(),
        states_report(),
        states_by_state(),
        leaks_report(),
        leaks_by_process(),
        waits_report(),
    ]
}

#[test]
fn rows_alike_in_all_numbers_do_not_change_places() {
    // Tables are hashed with another seed each time: if what is seen depends on it, 16 times do not agree.
    let texts = || {
        all_reports()
            .iter()
            .map(|report| text(report, true))
            .collect::<String>()
    };
    let first = texts();
    for _ in 0..16 {
        assert_eq!(texts(), first);
    }
}

#[test]
fn csv_and_json_say_the_same() {
    for report in all_reports() {
        let object: serde_json::Value = serde_json::from_str(&json(&report)).expect("an object");
        let text = csv_rows(&report);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().expect("a header").clone();
        let mut rows = 0;
        let more = &report.table.more;
        let tables = std::iter::once("rows").chain(more.iter().map(|section| section.name));
        let objects = tables.flat_map(|name| {
            let rows = object[name].as_array().expect("rows");
            rows.iter().map(move |row| (name, row))
        });
        for (row, (table, json)) in reader.records().zip(objects) {
            rows += 1;
            let row = row.expect("rows are of one length");
            for (name, cell) in header.iter().zip(&row) {
                if name == "table" {
                    assert_eq!(cell, table);
                    continue;
                }
                let value = match &json[name] {
                    serde_json::Value::Null => &object[name],
                    value => value,
                };
                let nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
                assert_eq!(nothing, cell.is_empty(), "{name} in {json}");
                if let Some(number) = value.as_f64() {
                    assert_eq!(cell.parse::<f64>().ok(), Some(number), "{name} in {json}");
                }
            }
        }
        let more = more.iter().map(|section| section.table.rows.len());
        assert_eq!(rows, report.table.rows.len() + more.sum::<usize>());
    }
}

#[test]
fn no_column_is_called_as_another() {
    for report in all_reports() {
        let names: Vec<_> = report
            .table
            .columns
            .iter()
            .map(|column| column.name)
            .chain(["from", "to", "seconds", "hooks", "lost", "row", "groups"])
            .collect();
        let once: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(once.len(), names.len(), "{names:?}");
    }
}

#[test]
fn nothing_hostile_is_left_anywhere() {
    for report in all_reports() {
        for text in [
            text(&report, false),
            text(&report, true),
            json(&report),
            csv_rows(&report),
        ] {
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
        }
    }
    // Somebody else's name for himself is not ours for what we do not know.
    let text = text(&closers_report(), false);
    assert!(text.contains("\\u{75}nknown"), "{text}");
    assert!(text.contains("\nunknown "), "{text}");
}

#[test]
fn intervals_end_by_the_clock_of_the_events_or_when_it_is_said_so_late() {
    let events = scene();
    let mut run = Run::new(closers(By::nothing()), Some(200 * MS));
    for sent in &events {
        run.takes(sent);
    }
    run.passes(START + 2_400 * MS);
    let reports = run.ends(START + 2_450 * MS);
    let times: Vec<_> = reports
        .iter()
        .map(|report| ((report.from - START) / MS, (report.to - START) / MS))
        .collect();
    let mut expected: Vec<_> = (0..12).map(|n| (n * 200, n * 200 + 200)).collect();
    expected.push((2_400, 2_450));
    assert_eq!(times, expected);
}

/// A recording can claim that centuries pass; nobody wants a report of each second.
#[test]
fn intervals_are_not_reported_one_by_one_where_the_time_leaps() {
    let events = scene();
    let second = 1000 * MS;
    let until = |leap: u64| {
        let mut run = Run::new(closers(By::nothing()), Some(second));
        for sent in &events {
            run.takes(sent);
        }
        let end = (START + leap).saturating_add(MS);
        run.passes(end);
        let many = run.reported.iter().map(|one| run.reports.is_of_many(one));
        let many = many.filter(|many| *many).count();
        (run.ends(end), many)
    };
    // As long as anybody may have looked away, nothing is left out.
    let (reports, many) = until(10_002 * second);
    assert_eq!((reports.len(), many), (10_003, 0));
    let closes = |report: &Report| {
        let total = report.table.rows.last();
        total.map_or(0, |total| count(report, total, "closes"))
    };
    let all: u64 = reports.iter().map(closes).sum();

    for leap in [10_010 * second, u64::MAX - START] {
        let (reports, many) = until(leap);
        assert!(reports.len() < 10 && many == 1, "{}", reports.len());
        assert_eq!(reports.iter().map(closes).sum::<u64>(), all);
        // One begins where another ends, at a second.
        assert!(reports.is_sorted_by(|one, next| one.to == next.from));
        let (_, whole) = reports.split_last().expect("a report");
        assert!(
            whole
                .iter()
                .all(|one| (one.to - START).is_multiple_of(second))
        );
        assert!(
            reports
                .last()
                .is_some_and(|last| last.to - last.from < second)
        );
    }
}

/// Nor many leaps of some minutes each.
#[test]
fn many_leaps_are_not_reported_second_by_second() {
    let second = 1000 * MS;
    let mut run = Run::new(closers(By::nothing()), Some(second));
    for leap in 1..=1000 {
        run.passes(START + leap * 100 * second);
    }
    let reports = run.ends(START + 100_000 * second);
    assert!(
        (10_000..12_000).contains(&reports.len()),
        "{}",
        reports.len()
    );
    assert!(reports.is_sorted_by(|one, next| one.to == next.from));
    // Who is told the time now and then misses no report, however long nothing happens.
    let mut run = Run::new(closers(By::nothing()), Some(10 * MS));
    for turn in 1..=10_000 {
        run.passes(START + turn * 50 * MS);
    }
    assert_eq!(run.ends(START + 500 * second + MS).len(), 50_001);
}

/// Cancelled timers tell by silence that they were cancelled for good: in which interval that counts must not depend on when
/// somebody asks.
#[test]
fn the_same_events_give_the_same_reports_however_often_it_is_asked_what_time_it_is() {
    let mut events = scene();
    for cookie in 10..13 {
        let cancelled = timer(
            RecordKind::TimeWaitCancelled,
            cookie,
            START + (200 + 31 * cookie) * MS,
            TimeWait,
            59_000 * MS,
        );
        events.push(Sent::Timer(TimeWaitRecord {
            callers: [0; CALLERS],
            cpu: u32::try_from(cookie).expect("a small number"),
            ..cancelled
        }));
    }
    events.sort_by_key(|sent| sent.event().time());
    let reports = |ask_every: Option<u64>| {
        let mut run = Run::new(hist(By::nothing(), Scale::Logarithmic), Some(50 * MS));
        let mut asked = START;
        for sent in &events {
            let time = sent.event().time();
            while let Some(every) = ask_every
                && asked + every < time
            {
                asked += every;
                run.passes(asked);
            }
            run.takes(sent);
        }
        run.ends(START + 3_000 * MS)
    };
    let live = reports(Some(7 * MS));
    assert_eq!(live, reports(None));
    assert_eq!(live, reports(Some(MS)));
    let measured = |report: &Report| {
        let is = |row: &&Row| {
            value(report, row, "state")
                == &Cell::Term {
                    label: "time_wait",
                    name: "TIME_WAIT",
                }
        };
        report
            .table
            .rows
            .iter()
            .find(is)
            .map_or(0, |row| count(report, row, "count"))
    };
    assert_eq!(live.iter().map(measured).sum::<u64>(), 3);
}
