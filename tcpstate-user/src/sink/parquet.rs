//! Two tables in files of Parquet's format, for data frames: connections and transitions. The columns are those of CSV, with `_`
//! where those have a `.`.

mod table;

use std::io::{self, Write};

use super::{
    Sink, Summary, csv, escape,
    json::{ConnectionLine, ProcessLine, Row, seconds},
};
use crate::{
    analysis::{Connection, Report},
    clock::Clock,
    lifecycle::{Phase, Transition},
    loss::Loss,
    recording::Header,
};
use table::{Cell, Kind, Table};

/// Writes two tables.
#[expect(
    missing_debug_implementations,
    reason = "a writer of Parquet's format has none"
)]
pub struct Parquet<W: Write + Send> {
    connections: Table<W>,
    transitions: Table<W>,
    clock: Clock,
    about: String,
}

/// What the column of this name holds.
fn kind(name: &str) -> Kind {
    match name {
        "time" | "start" | "end" => Kind::Time,
        "lport" | "rport" => Kind::U16,
        "netns" | "uid" | "pid" | "tid" | "owner.pid" | "closer.pid" | "retransmits" | "rtt_us"
        | "time_wait.restarts" => Kind::U32,
        "cookie" | "netns_cookie" | "cgroup_id" | "bytes_acked" | "bytes_received" => Kind::U64,
        "seconds" | "time_wait.seconds" => Kind::Double,
        "minisocket" | "damaged" => Kind::Flag,
        name if name.starts_with("states.") => Kind::Double,
        _ => Kind::Text,
    }
}

fn columns<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<(String, Kind)> {
    let names = names.into_iter();
    names
        .map(|name| (name.replace('.', "_"), kind(name)))
        .collect()
}

impl<W: Write + Send> Parquet<W> {
    /// Writes connections and transitions each to a place of its own, which should be buffered.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn new(connections: W, transitions: W, clock: Clock, header: &Header) -> io::Result<Self> {
        let names = csv::connection_header();
        let names = columns(names.iter().map(String::as_str));
        Ok(Self {
            connections: Table::new(connections, "connections", &names)?,
            transitions: Table::new(transitions, "transitions", &columns(csv::HEADER))?,
            clock,
            about: header.about().to_string(),
        })
    }

    fn time(&self, monotonic: Option<u64>) -> Cell<'static> {
        let time = monotonic.map(|time| self.clock.timestamp(time).as_nanosecond());
        time.and_then(|time| i64::try_from(time).ok())
            .map_or(Cell::Null, Cell::Time)
    }
}

fn text(text: Option<&str>) -> Cell<'_> {
    text.map(escape::text).into()
}

fn process<'a>(process: Option<&'a ProcessLine<'_>>) -> [Cell<'a>; 3] {
    [
        process.map(|process| process.pid).into(),
        text(process.map(|process| &*process.comm)),
        process.map(|process| process.via).into(),
    ]
}

impl<W: Write + Send> Sink for Parquet<W> {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        let time = self.time(Some(transition.event.time));
        let row = Row::new(transition, &self.clock);
        self.transitions.row([
            time,
            row.cookie.into(),
            row.netns.into(),
            row.netns_cookie.into(),
            row.family.into(),
            row.protocol.into(),
            row.laddr.map(|addr| addr.to_string()).into(),
            row.lport.into(),
            row.raddr.map(|addr| addr.to_string()).into(),
            row.rport.into(),
            row.old.into(),
            row.new.into(),
            row.seconds.into(),
            row.bound.into(),
            row.minisocket.into(),
            row.reason.into(),
            row.pid.into(),
            text(row.comm.as_deref()),
            row.via.into(),
            row.uid.into(),
            text(row.cgroup),
            row.error.into(),
            row.tid.into(),
            row.cgroup_id.into(),
            row.damaged.into(),
            row.known_by.into(),
        ])
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        let (start, end) = (self.time(connection.start), self.time(connection.end));
        let line = ConnectionLine::new(connection, &self.clock);
        let phases = || connection.states.iter().copied();
        let in_seconds = |phase: Phase| phase.nanoseconds().map(seconds);
        let time_wait = line.time_wait.as_ref();
        let first = [
            line.cookie.into(),
            line.netns.into(),
            line.netns_cookie.into(),
            line.family.into(),
            line.protocol.clone().into(),
            line.laddr.map(|addr| addr.to_string()).into(),
            line.lport.into(),
            line.raddr.map(|addr| addr.to_string()).into(),
            line.rport.into(),
            start,
            end,
            line.opened.into(),
            line.closed_first.into(),
            line.how.into(),
        ];
        let states = phases().map(|phase| phase.and_then(in_seconds).into());
        let bounds = phases().map(|phase| phase.map(|phase| phase.bound().label()).into());
        let time_wait = [
            time_wait.and_then(|time_wait| time_wait.seconds).into(),
            time_wait.map(|time_wait| time_wait.bound).into(),
            time_wait.map(|time_wait| time_wait.restarts).into(),
            time_wait.map(|time_wait| time_wait.end).into(),
            time_wait.map(|time_wait| time_wait.known_by).into(),
        ];
        let last = [
            line.uid.into(),
            text(line.cgroup),
            line.bytes_acked.into(),
            line.bytes_received.into(),
            line.retransmits.into(),
            line.rtt_us.into(),
            line.damaged.into(),
            line.state.into(),
        ];
        self.connections.row(
            first
                .into_iter()
                .chain(states)
                .chain(bounds)
                .chain(time_wait)
                .chain(process(line.owner.as_ref()))
                .chain(process(line.closer.as_ref()))
                .chain(last),
        )
    }

    fn report(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn loss(&mut self, _: &Loss) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let summary = serde_json::to_string(summary)?;
        let about = [
            ("tcpstate.recording", self.about.clone()),
            ("tcpstate.summary", summary),
        ];
        self.connections.finish(&about)?;
        self.transitions.finish(&about)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Whole groups of rows are written, and the rest with the summary.
        Ok(())
    }
}
