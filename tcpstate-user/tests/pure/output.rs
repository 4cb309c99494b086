//! Every output format as a golden file (`snapshots/`), and what must hold of each.

use std::{cell::RefCell, io, rc::Rc};

use jiff::tz::TimeZone;
use tcpstate_common::{
    record::{RecordKind, TransitionRecord},
    state::TcpState::{
        Close, CloseWait, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv, SynSent,
        TimeWait,
    },
};
use tcpstate_user::{
    analysis::Connections,
    clock::Clock,
    event::Event,
    lifecycle::{Lifecycle, Transition},
    loss::{Loss, LossKind, LossTotals},
    sink::{Csv, Json, Layout, OtherProtocols, Rows, Sink, Summary, Text},
};
use zerocopy::IntoBytes as _;

use crate::records::{MS, event, owned, record, timer};

const START: u64 = 1_000_000 * MS;
/// The time of day at monotonic zero: 2026-11-22T00:00:00Z.
const OFFSET: i128 = 1_795_305_600_000_000_000;

fn clock() -> Clock {
    Clock::new(START, OFFSET, TimeZone::UTC)
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

fn ipv6(record: TransitionRecord) -> TransitionRecord {
    let address = |text: &str| {
        text.parse::<std::net::Ipv6Addr>()
            .expect("an address")
            .octets()
    };
    TransitionRecord {
        family: 10,
        laddr: address("2001:db8:1234:5678:9abc:def0:1234:5678"),
        raddr: address("2001:db8::1"),
        ..record
    }
}

/// One of everything.
fn scene() -> Vec<Transition> {
    let any = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
    let at = |ms: u64| START + ms * MS;
    let server = TransitionRecord {
        lport: 8080,
        rport: 51_000,
        ..record(3, at(40), Listen, SynRecv)
    };
    let records = [
        owned(
            TransitionRecord {
                laddr: any,
                raddr: any,
                lport: 8080,
                rport: 0,
                ..record(2, at(1), Close, Listen)
            },
            22_312,
            b"nginx",
        ),
        owned(
            TransitionRecord {
                lport: 0,
                ..record(1, at(2), Close, SynSent)
            },
            4_194_304,
            b"a-longish-name",
        ),
        record(1, at(3) + 21_000, SynSent, Established),
        TransitionRecord {
            listener_cookie: 2,
            raddr: any,
            rport: 0,
            ..server
        },
        TransitionRecord {
            time: at(41),
            old: SynRecv as u8,
            new: Established as u8,
            ..server
        },
        owned(
            record(1, at(63_310), Established, FinWait1),
            4_194_304,
            b"\x1b[2J\n\",=x",
        ),
        TransitionRecord {
            uid: u32::MAX,
            ..record(1, at(63_311), FinWait1, FinWait2)
        },
        TransitionRecord {
            error: libc::ECONNRESET,
            ..record(1, at(63_400), FinWait2, Close)
        },
        ipv6(record(9, at(3_600_000), Established, CloseWait)),
        ipv6(record(9, at(3_600_500), LastAck, Close)),
    ];
    let mut lifecycle = Lifecycle::new(100, START);
    lifecycle.name_cgroup(42, "/system.slice/a b.service");
    let mut lines: Vec<_> = records
        .iter()
        .map(|record| lifecycle.transition(&event(record)))
        .collect();
    let life = [
        (RecordKind::TimeWaitArmed, at(70_000), FinWait2, 2_000 * MS),
        (RecordKind::TimeWaitArmed, at(73_000), TimeWait, 60_000 * MS),
        (RecordKind::TimeWaitArmed, at(80_000), TimeWait, 60_000 * MS),
        (RecordKind::TimeWaitExpired, at(141_500), TimeWait, 0),
    ];
    for (kind, time, substate, left) in life {
        let step = timer(kind, 7, time, substate, left);
        let decoded = Event::decode(step.as_bytes()).expect("a good record");
        lifecycle.event(decoded, |line| lines.push(line));
        if substate == FinWait2 {
            let close = owned(record(7, time, FinWait2, Close), 4242, b"curl");
            lines.push(lifecycle.transition(&event(&close)));
        }
    }
    lines
}

fn summary() -> Summary {
    let mut loss = LossTotals::default();
    loss.advance(LossKind::RingFull, 1234);
    Summary {
        interrupted: false,
        seconds: 63.5,
        hooks: vec!["BTF tracepoint"],
        events: 12,
        shown: 10,
        connections: 4,
        found: 3,
        damaged: 1,
        undecided: 2,
        unattributed: 1,
        other_protocols: OtherProtocols {
            mptcp: 3,
            sctp: 0,
            other: 0,
        },
        loss,
    }
}

/// What a sink writes of the connections in the scene.
fn connections<S: Sink>(make: impl FnOnce(Page) -> S) -> String {
    let page = Page::default();
    let mut sink = make(page.clone());
    let mut open = Connections::new(100);
    for transition in scene() {
        if let Some(ended) = open.take(&transition) {
            sink.connection(&ended).expect("memory can be written");
        }
    }
    let mut running: Vec<_> = open.finish(START + 200_000 * MS).collect();
    running.sort_by_key(|connection| connection.connection);
    for connection in running {
        sink.connection(&connection).expect("memory can be written");
    }
    sink.flush().expect("memory can be written");
    drop(sink);
    String::from_utf8(page.0.take()).expect("UTF-8")
}

#[test]
fn connections_text_narrow() {
    let layout = Layout {
        rows: Rows::Connections,
        ..Layout::default()
    };
    let text = connections(|page| Text::new(page, clock(), layout).expect("memory can be written"));
    for line in text.lines().filter(|line| !line.contains("2001:")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn connections_text_wide() {
    let layout = Layout {
        rows: Rows::Connections,
        wide: true,
        ..Layout::default()
    };
    insta::assert_snapshot!(connections(
        |page| Text::new(page, clock(), layout).expect("memory can be written")
    ));
}

#[test]
fn connections_text_with_times() {
    let layout = Layout {
        rows: Rows::Connections,
        time_of_day: true,
        since_start: true,
        columns: 120,
        ..Layout::default()
    };
    insta::assert_snapshot!(connections(
        |page| Text::new(page, clock(), layout).expect("memory can be written")
    ));
}

#[test]
fn connections_json_lines() {
    insta::assert_snapshot!(connections(|page| Json::new(page, clock())));
}

#[test]
fn connections_csv_rows() {
    let text = connections(|page| {
        Csv::new(page, clock(), Rows::Connections).expect("memory can be written")
    });
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().expect("a header").clone();
    for (row, json) in reader
        .records()
        .zip(connections(|page| Json::new(page, clock())).lines())
    {
        let row = row.expect("rows are of one length");
        let object: serde_json::Value = serde_json::from_str(json).expect("an object");
        for (name, cell) in header.iter().zip(&row) {
            // The same names, nested ones joined by a point, and nothing where JSON has null or nothing.
            let value = name.split('.').fold(&object, |value, part| &value[part]);
            assert_eq!(value.is_null(), cell.is_empty(), "{name} in {json}");
        }
    }
    insta::assert_snapshot!(text);
}

/// What a sink writes of the scene.
fn written<S: Sink>(make: impl FnOnce(Page) -> S) -> String {
    let page = Page::default();
    let mut sink = make(page.clone());
    for transition in scene() {
        sink.transition(&transition).expect("memory can be written");
    }
    let loss = Loss {
        kind: LossKind::RingFull,
        count: 1234,
        from: START,
        to: START + 50 * MS,
    };
    sink.loss(&loss).expect("memory can be written");
    sink.summary(&summary()).expect("memory can be written");
    sink.flush().expect("memory can be written");
    drop(sink);
    String::from_utf8(page.0.take()).expect("UTF-8")
}

fn text(layout: Layout) -> String {
    written(|page| Text::new(page, clock(), layout).expect("memory can be written"))
}

#[test]
fn text_narrow() {
    let text = text(Layout::default());
    for line in text
        .lines()
        .filter(|line| !line.contains("2001:") && !line.starts_with('#'))
    {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn text_wide() {
    insta::assert_snapshot!(text(Layout {
        wide: true,
        ..Layout::default()
    }));
}

#[test]
fn text_with_times() {
    insta::assert_snapshot!(text(Layout {
        time_of_day: true,
        since_start: true,
        columns: 120,
        ..Layout::default()
    }));
}

/// What is left out of a row that is broken anyway saves nothing.
#[test]
fn names_are_left_out_only_if_the_row_fits_without() {
    for columns in [40, 60, 80, 90, 100] {
        let narrow = |columns| {
            let text = text(Layout {
                time_of_day: true,
                columns,
                ..Layout::default()
            });
            let rows = text.lines().filter(|line| line.contains(" -> "));
            rows.map(str::to_owned).collect::<Vec<_>>()
        };
        let all = narrow(1000);
        for (row, whole) in narrow(columns).iter().zip(&all) {
            let width = row.chars().count();
            assert!(width <= columns || row == whole, "{columns}: {row:?}");
        }
        let broken = |row: &&String| row.chars().count() > columns && row.ends_with("curl");
        assert!(
            columns > 90 || all.iter().any(|row| broken(&row)),
            "{columns}"
        );
    }
}

#[test]
fn json_lines() {
    let text = written(|page| Json::new(page, clock()));
    for line in text.lines() {
        let object: serde_json::Value = serde_json::from_str(line).expect("each line is an object");
        assert!(object["event"].is_string());
    }
    insta::assert_snapshot!(text);
}

#[test]
fn csv_rows() {
    let text =
        written(|page| Csv::new(page, clock(), Rows::Transitions).expect("memory can be written"));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().expect("a header").clone();
    for (row, json) in reader
        .records()
        .zip(written(|page| Json::new(page, clock())).lines())
    {
        let row = row.expect("rows are of one length");
        let object: serde_json::Value = serde_json::from_str(json).expect("an object");
        for (name, cell) in header.iter().zip(&row) {
            // The same names, and nothing where JSON has null.
            assert_eq!(object[name].is_null(), cell.is_empty(), "{name} in {json}");
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn nothing_hostile_is_left_anywhere() {
    let layouts = [
        Layout::default(),
        Layout {
            wide: true,
            ..Layout::default()
        },
    ]
    .map(text);
    let machine = [
        written(|page| Json::new(page, clock())),
        written(|page| Csv::new(page, clock(), Rows::Transitions).expect("memory can be written")),
    ];
    for text in layouts.iter().chain(&machine) {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text}");
    }
}
