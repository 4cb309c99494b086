//! JSON lines: one object a line. The fields are a contract, described in docs/formats.md.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{self, Write},
    net::IpAddr,
};

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter};
use tcpstate_common::state::TcpState;

use super::{Sink, Summary, error_name, escape, report::ReportLine};
use crate::{
    analysis::{Connection, Report},
    clock::Clock,
    event::Process,
    lifecycle::{Bound, KnownBy, Reason, Transition},
    loss::Loss,
};

/// Writes JSON lines.
#[derive(Debug)]
pub struct Json<W> {
    out: W,
    clock: Clock,
    /// The line that is being written.
    line: Vec<u8>,
}

/// One transition as it is written; also the columns of CSV, in this order.
#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    pub(super) time: String,
    pub(super) cookie: u64,
    pub(super) netns: Option<u32>,
    pub(super) netns_cookie: Option<u64>,
    pub(super) family: &'static str,
    pub(super) protocol: Cow<'static, str>,
    pub(super) laddr: Option<IpAddr>,
    pub(super) lport: Option<u16>,
    pub(super) raddr: Option<IpAddr>,
    pub(super) rport: Option<u16>,
    pub(super) old: &'static str,
    pub(super) new: &'static str,
    pub(super) seconds: Option<f64>,
    pub(super) bound: &'static str,
    pub(super) minisocket: bool,
    pub(super) reason: Option<&'static str>,
    pub(super) pid: Option<u32>,
    pub(super) comm: Option<Cow<'a, str>>,
    pub(super) via: Option<&'static str>,
    pub(super) uid: Option<u32>,
    pub(super) cgroup: Option<&'a str>,
    pub(super) error: Option<String>,
    pub(super) tid: Option<u32>,
    pub(super) cgroup_id: Option<u64>,
    pub(super) damaged: bool,
    pub(super) known_by: Option<&'static str>,
}

impl<'a> Row<'a> {
    pub(super) fn new(transition: &'a Transition, clock: &Clock) -> Self {
        let event = &transition.event;
        let process = transition.process.as_ref();
        // A local address may be any; a remote one that is unspecified is one that is not known.
        let any_local = event.is_listener();
        Self {
            time: clock.rfc3339(event.time),
            cookie: transition.connection,
            netns: event.netns,
            netns_cookie: event.netns_cookie,
            family: if event.local.addr.is_ipv4() {
                "ipv4"
            } else {
                "ipv6"
            },
            protocol: event.protocol.label(),
            laddr: Some(event.local.addr).filter(|addr| any_local || !addr.is_unspecified()),
            lport: Some(event.local.port).filter(|port| *port != 0),
            raddr: Some(event.remote.addr).filter(|addr| !addr.is_unspecified()),
            rport: Some(event.remote.port).filter(|port| *port != 0),
            old: event.old.label(),
            new: event.new.label(),
            seconds: transition.phase.nanoseconds().map(seconds),
            bound: transition.phase.bound().label(),
            minisocket: transition.minisocket,
            reason: transition.reason.map(Reason::label),
            pid: process.map(|process| process.pid),
            comm: process.map(|process| process.comm.to_str()),
            via: process.map(|process| process.via.label()),
            uid: event.uid,
            cgroup: transition.cgroup.as_deref(),
            error: event.error.map(error_name),
            tid: transition.tid(),
            cgroup_id: event.cgroup,
            damaged: transition.damaged,
            known_by: transition.known_by.map(KnownBy::label),
        }
    }
}

/// Durations are seconds in machine formats; a double holds nanoseconds exactly for 104 days.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 nanoseconds")]
pub(crate) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Transition(&'a Row<'a>),
    Connection(&'a ConnectionLine<'a>),
    Loss {
        kind: &'static str,
        count: u64,
        from: String,
        to: String,
    },
    Summary(&'a Summary),
}

/// A process in a connection.
#[derive(Debug, Serialize)]
pub(super) struct ProcessLine<'a> {
    pub(super) pid: u32,
    pub(super) comm: Cow<'a, str>,
    pub(super) via: &'static str,
}

impl<'a> ProcessLine<'a> {
    pub(super) fn new(process: &'a Process) -> Self {
        Self {
            pid: process.pid,
            comm: process.comm.to_str(),
            via: process.via.label(),
        }
    }
}

/// A TIME_WAIT in a connection.
#[derive(Debug, Serialize)]
pub(super) struct TimeWaitLine {
    pub(super) seconds: Option<f64>,
    pub(super) bound: &'static str,
    pub(super) restarts: u32,
    pub(super) end: &'static str,
    pub(super) known_by: &'static str,
}

/// One connection as it is written.
#[derive(Debug, Serialize)]
pub(super) struct ConnectionLine<'a> {
    pub(super) cookie: u64,
    pub(super) netns: Option<u32>,
    pub(super) netns_cookie: Option<u64>,
    pub(super) family: &'static str,
    pub(super) protocol: Cow<'static, str>,
    pub(super) laddr: Option<IpAddr>,
    pub(super) lport: Option<u16>,
    pub(super) raddr: Option<IpAddr>,
    pub(super) rport: Option<u16>,
    pub(super) start: Option<String>,
    pub(super) end: Option<String>,
    pub(super) opened: &'static str,
    pub(super) closed_first: &'static str,
    pub(super) how: &'static str,
    pub(super) states: BTreeMap<&'static str, Option<f64>>,
    pub(super) bounds: BTreeMap<&'static str, &'static str>,
    pub(super) time_wait: Option<TimeWaitLine>,
    pub(super) owner: Option<ProcessLine<'a>>,
    pub(super) closer: Option<ProcessLine<'a>>,
    pub(super) uid: Option<u32>,
    pub(super) cgroup: Option<&'a str>,
    pub(super) bytes_acked: Option<u64>,
    pub(super) bytes_received: Option<u64>,
    pub(super) retransmits: Option<u32>,
    pub(super) rtt_us: Option<u32>,
    pub(super) damaged: bool,
    pub(super) state: Option<&'static str>,
}

impl<'a> ConnectionLine<'a> {
    pub(super) fn new(connection: &'a Connection, clock: &Clock) -> Self {
        let Connection {
            local,
            remote,
            totals,
            ..
        } = connection;
        let phases = || {
            TcpState::ALL
                .into_iter()
                .zip(&connection.states)
                .filter_map(|(state, phase)| phase.map(|phase| (state.label(), phase)))
        };
        Self {
            cookie: connection.connection,
            netns: connection.netns,
            netns_cookie: connection.netns_cookie,
            family: if local.addr.is_ipv4() { "ipv4" } else { "ipv6" },
            protocol: connection.protocol.label(),
            laddr: Some(local.addr).filter(|addr| !addr.is_unspecified()),
            lport: Some(local.port).filter(|port| *port != 0),
            raddr: Some(remote.addr).filter(|addr| !addr.is_unspecified()),
            rport: Some(remote.port).filter(|port| *port != 0),
            start: connection.start.map(|time| clock.rfc3339(time)),
            end: connection.end.map(|time| clock.rfc3339(time)),
            opened: connection.opened.label(),
            closed_first: connection.closed_first.label(),
            how: connection.how.label(),
            states: phases()
                .map(|(state, phase)| (state, phase.nanoseconds().map(seconds)))
                .collect(),
            bounds: phases()
                .filter(|(_, phase)| phase.bound() != Bound::Exact)
                .map(|(state, phase)| (state, phase.bound().label()))
                .collect(),
            time_wait: connection.time_wait.map(|time_wait| TimeWaitLine {
                seconds: time_wait.phase.nanoseconds().map(seconds),
                bound: time_wait.phase.bound().label(),
                restarts: time_wait.restarts,
                end: time_wait.end.label(),
                known_by: time_wait.known_by.label(),
            }),
            owner: connection.owner.as_ref().map(ProcessLine::new),
            closer: connection.closer.as_ref().map(ProcessLine::new),
            uid: connection.uid,
            cgroup: connection.cgroup.as_deref(),
            bytes_acked: totals.map(|totals| totals.bytes_acked),
            bytes_received: totals.map(|totals| totals.bytes_received),
            retransmits: totals.map(|totals| totals.retransmits),
            rtt_us: totals.and_then(|totals| totals.rtt_us),
            damaged: connection.damaged,
            state: connection.state.map(TcpState::label),
        }
    }
}

impl<W: Write> Json<W> {
    /// Writes to `out`, which should be buffered.
    pub const fn new(out: W, clock: Clock) -> Self {
        Self {
            out,
            clock,
            line: Vec::new(),
        }
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        // A line is written in a hundred pieces.
        self.line.clear();
        write_line(&mut self.line, line)?;
        self.out.write_all(&self.line)
    }
}

impl<W: Write> Sink for Json<W> {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        let row = Row::new(transition, &self.clock);
        self.line(&Line::Transition(&row))
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        let line = ConnectionLine::new(connection, &self.clock);
        self.line(&Line::Connection(&line))
    }

    fn report(&mut self, report: &Report) -> io::Result<()> {
        let line = ReportLine::new(report, &self.clock);
        self.line(&line)
    }

    fn loss(&mut self, loss: &Loss) -> io::Result<()> {
        self.line(&Line::Loss {
            kind: loss.kind.label(),
            count: loss.count,
            from: self.clock.rfc3339(loss.from),
            to: self.clock.rfc3339(loss.to),
        })
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.line(&Line::Summary(summary))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One object and the end of its line, harmless to a terminal.
///
/// # Errors
/// If it cannot be told in JSON.
pub fn json_line(object: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    write_line(&mut line, object)?;
    Ok(line)
}

fn write_line(line: &mut Vec<u8>, object: &impl Serialize) -> io::Result<()> {
    const DELETE: u8 = 0x7f;
    let start = line.len();
    serde_json::to_writer(&mut *line, object)?;
    // Nearly no line has anything but printable ASCII: to look at the whole is faster than to look at each of its strings.
    let written = &line[start..];
    if !written.is_ascii() || written.contains(&DELETE) {
        line.truncate(start);
        object.serialize(&mut serde_json::Serializer::with_formatter(
            &mut *line, Harmless,
        ))?;
    }
    line.push(b'\n');
    Ok(())
}

/// Compact JSON in which no character is left that a terminal would act upon: serde escapes ASCII control characters,
/// this the others.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((index, character)) = rest
            .char_indices()
            .find(|(_, character)| escape::is_hostile(*character))
        {
            let (before, after) = rest.split_at(index);
            writer.write_all(before.as_bytes())?;
            if character.is_ascii() {
                self.write_char_escape(writer, CharEscape::AsciiControl(character as u8))?;
            } else {
                write!(writer, "\\u{:04x}", u32::from(character))?;
            }
            rest = &after[character.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
