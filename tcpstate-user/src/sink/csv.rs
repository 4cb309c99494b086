//! CSV: one row a transition or connection, the columns those of JSON, nested ones joined by `.`. Losses and the summary are no rows: they go to standard error.

use std::io::{self, Write};

use tcpstate_common::state::TcpState;

use super::{
    Rows, Sink, Summary, escape,
    json::{ConnectionLine, Row},
    report,
};
use crate::{
    analysis::{Connection, Report},
    clock::Clock,
    lifecycle::Transition,
    loss::Loss,
};

/// Writes CSV.
#[derive(Debug)]
pub struct Csv<W: Write> {
    out: csv::Writer<W>,
    clock: Clock,
    /// The header of reports comes with the first of them.
    reported: bool,
}

pub(super) const HEADER: [&str; 26] = [
    "time",
    "cookie",
    "netns",
    "netns_cookie",
    "family",
    "protocol",
    "laddr",
    "lport",
    "raddr",
    "rport",
    "old",
    "new",
    "seconds",
    "bound",
    "minisocket",
    "reason",
    "pid",
    "comm",
    "via",
    "uid",
    "cgroup",
    "error",
    "tid",
    "cgroup_id",
    "damaged",
    "known_by",
];

/// Columns of connections, without those of the states and their bounds, which stand between the two halves.
const CONNECTION: ([&str; 13], [&str; 17]) = (
    [
        "cookie",
        "netns",
        "netns_cookie",
        "family",
        "protocol",
        "laddr",
        "lport",
        "raddr",
        "rport",
        "start",
        "end",
        "opened",
        "closed_first",
    ],
    [
        "time_wait.seconds",
        "time_wait.bound",
        "time_wait.restarts",
        "time_wait.end",
        "time_wait.known_by",
        "owner.pid",
        "owner.comm",
        "owner.via",
        "closer.pid",
        "closer.comm",
        "closer.via",
        "uid",
        "cgroup",
        "bytes_acked",
        "bytes_received",
        "retransmits",
        "rtt_us",
    ],
);

impl<W: Write> Csv<W> {
    /// Writes to `out`, beginning with the header.
    ///
    /// # Errors
    /// If the header cannot be written.
    pub fn new(out: W, clock: Clock, rows: Rows) -> io::Result<Self> {
        let mut out = csv::WriterBuilder::new()
            .has_headers(false)
            .from_writer(out);
        match rows {
            Rows::Transitions => out.write_record(HEADER).map_err(plain)?,
            Rows::Connections => out.write_record(connection_header()).map_err(plain)?,
            Rows::Reports => {}
        }
        Ok(Self {
            out,
            clock,
            reported: false,
        })
    }
}

/// The error of what is written to, by which a closed pipe is told from others.
fn plain(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

pub(super) fn connection_header() -> Vec<String> {
    let states = TcpState::ALL.map(|state| format!("states.{}", state.label()));
    let bounds = TcpState::ALL.map(|state| format!("bounds.{}", state.label()));
    let (first, last) = CONNECTION;
    let first = first.into_iter().chain(["how"]).map(str::to_owned);
    let last = last
        .into_iter()
        .chain(["damaged", "state"])
        .map(str::to_owned);
    first.chain(states).chain(bounds).chain(last).collect()
}

/// Any value as a cell; nothing for `None`.
fn cell(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn connection_row(line: &ConnectionLine<'_>) -> Vec<String> {
    let mut row = vec![
        line.cookie.to_string(),
        cell(line.netns),
        cell(line.netns_cookie),
        line.family.to_owned(),
        line.protocol.to_string(),
        cell(line.laddr),
        cell(line.lport),
        cell(line.raddr),
        cell(line.rport),
        cell(line.start.as_ref()),
        cell(line.end.as_ref()),
        line.opened.to_owned(),
        line.closed_first.to_owned(),
        line.how.to_owned(),
    ];
    let labels = || TcpState::ALL.iter().map(|state| state.label());
    row.extend(labels().map(|state| cell(line.states.get(state).copied().flatten())));
    row.extend(labels().map(|state| cell(line.bounds.get(state))));
    let time_wait = line.time_wait.as_ref();
    row.extend([
        cell(time_wait.and_then(|time_wait| time_wait.seconds)),
        cell(time_wait.map(|time_wait| time_wait.bound)),
        cell(time_wait.map(|time_wait| time_wait.restarts)),
        cell(time_wait.map(|time_wait| time_wait.end)),
        cell(time_wait.map(|time_wait| time_wait.known_by)),
    ]);
    for process in [&line.owner, &line.closer] {
        let process = process.as_ref();
        row.extend([
            cell(process.map(|process| process.pid)),
            cell(process.map(|process| escape::text(&process.comm).into_owned())),
            cell(process.map(|process| process.via)),
        ]);
    }
    row.extend([
        cell(line.uid),
        cell(line.cgroup.map(escape::text)),
        cell(line.bytes_acked),
        cell(line.bytes_received),
        cell(line.retransmits),
        cell(line.rtt_us),
        line.damaged.to_string(),
        cell(line.state),
    ]);
    row
}

impl<W: Write> Sink for Csv<W> {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        let mut row = Row::new(transition, &self.clock);
        // A reader that goes line by line must not be led astray by a quoted newline.
        row.comm = row.comm.map(|comm| escape::text(&comm).into_owned().into());
        let cgroup = row.cgroup.map(|cgroup| escape::text(cgroup).into_owned());
        row.cgroup = cgroup.as_deref();
        self.out.serialize(row).map_err(plain)
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        let line = ConnectionLine::new(connection, &self.clock);
        self.out.write_record(connection_row(&line)).map_err(plain)
    }

    fn report(&mut self, report: &Report) -> io::Result<()> {
        if !std::mem::replace(&mut self.reported, true) {
            let header = report::csv_header(report);
            self.out.write_record(header).map_err(plain)?;
        }
        let mut rows = report::csv_rows(report, &self.clock);
        rows.try_for_each(|row| self.out.write_record(row).map_err(plain))
    }

    fn loss(&mut self, _: &Loss) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, _: &Summary) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
