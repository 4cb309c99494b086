//! A trace for Perfetto: each connection a track with its states as slices, below the process that it belongs to. The tracks
//! and slices are described in docs/export.md.

mod names;
mod packet;

use std::io::{self, Write};

use hashbrown::HashMap;
use prost::Message as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tcpstate_common::state::TcpState;

use super::{
    Sink, Summary, error_name, escape,
    json::{ConnectionLine, ProcessLine, seconds},
    text,
};
use crate::{
    analysis::{Connection, Report, Stay},
    clock::Clock,
    event::{Comm, Process},
    lifecycle::{Bound, KnownBy, Reason, Transition},
    loss::Loss,
    recording::Header,
};
use names::Names;
use packet::{
    BuiltinClock, CHRONOLOGICAL, ClockSnapshot, ClockTime, EventType, INCREMENTAL_STATE_CLEARED,
    NEEDS_INCREMENTAL_STATE, ProcessDescriptor, TracePacket, TracePacketDefaults, TrackDescriptor,
    TrackEvent,
};

/// All packets are of one writer.
const SEQUENCE: u32 = 1;
/// The field `packet` of `Trace`, as it stands before each.
const PACKET: u8 = 1 << 3 | 2;
/// The track of the run itself.
const RUN: u64 = 1;
/// So many processes are known by their tracks at a time: the tracks of more are written again.
const PROCESSES: usize = 65_536;

/// Writes a trace. Connections are taken as they end, and nothing is kept of them.
#[derive(Debug)]
pub struct Perfetto<W> {
    out: W,
    clock: Clock,
    names: Names,
    /// The number of the last track.
    tracks: u64,
    /// What the tracks of a process's connections are below.
    processes: HashMap<Option<(u32, Comm)>, u64>,
    /// The first name that a process id was seen with.
    comms: HashMap<u32, Comm>,
    /// The latest time that was written.
    latest: u64,
    bytes: Vec<u8>,
}

/// What is said of a state.
#[derive(Serialize)]
struct StayLine<'a> {
    seconds: Option<f64>,
    bound: &'static str,
    to: Option<&'static str>,
    minisocket: bool,
    reason: Option<&'static str>,
    known_by: Option<&'static str>,
    process: Option<ProcessLine<'a>>,
    error: Option<String>,
    damaged: bool,
}

impl<'a> StayLine<'a> {
    fn new(stay: &'a Stay) -> Self {
        Self {
            seconds: stay.phase.nanoseconds().map(seconds),
            bound: stay.phase.bound().label(),
            to: stay.to.map(TcpState::label),
            minisocket: stay.minisocket,
            reason: stay.reason.map(Reason::label),
            known_by: stay.known_by.map(KnownBy::label),
            process: stay.process.as_ref().map(ProcessLine::new),
            error: stay.error.map(error_name),
            damaged: stay.damaged,
        }
    }
}

impl<W: Write> Perfetto<W> {
    /// Writes to `out`, which should be buffered, beginning with the clocks.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(out: W, clock: Clock, header: &Header) -> io::Result<Self> {
        let mut perfetto = Self {
            out,
            clock,
            names: Names::default(),
            tracks: RUN,
            processes: HashMap::default(),
            comms: HashMap::default(),
            latest: header.begins,
            bytes: Vec::new(),
        };
        perfetto.clocks(header)?;
        perfetto.track(TrackDescriptor {
            uuid: Some(RUN),
            name: Some("tcpstate".to_owned()),
            ..TrackDescriptor::default()
        })?;
        perfetto.instant(RUN, header.begins, "recording begins", &header.about())?;
        Ok(perfetto)
    }

    /// Says what the clocks of that machine said when it began.
    fn clocks(&mut self, header: &Header) -> io::Result<()> {
        let clock = |id: BuiltinClock, time: i128| ClockTime {
            clock_id: Some(id as u32),
            timestamp: u64::try_from(time).ok(),
        };
        let monotonic = i128::from(header.begins);
        let realtime = monotonic + i128::from(header.zero);
        // A recording that says it was booted later would leave no time for it.
        let boottime = (realtime - i128::from(header.boot)).max(monotonic);
        self.write(&TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            sequence_flags: Some(INCREMENTAL_STATE_CLEARED),
            defaults: Some(TracePacketDefaults {
                timestamp_clock_id: Some(BuiltinClock::Monotonic as u32),
            }),
            clock_snapshot: Some(ClockSnapshot {
                clocks: [
                    clock(BuiltinClock::Monotonic, monotonic),
                    clock(BuiltinClock::Boottime, boottime),
                    clock(BuiltinClock::Realtime, realtime),
                ]
                .into_iter()
                .filter(|clock| clock.timestamp.is_some())
                .collect(),
            }),
            ..TracePacket::default()
        })
    }

    fn write(&mut self, packet: &TracePacket) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.push(PACKET);
        // A vector has room for everything.
        packet
            .encode_length_delimited(&mut self.bytes)
            .map_err(io::Error::other)?;
        self.out.write_all(&self.bytes)
    }

    fn track(&mut self, descriptor: TrackDescriptor) -> io::Result<()> {
        self.write(&TracePacket {
            trusted_packet_sequence_id: Some(SEQUENCE),
            track_descriptor: Some(descriptor),
            ..TracePacket::default()
        })
    }

    fn event(
        &mut self,
        track: u64,
        time: u64,
        kind: EventType,
        name: Option<&str>,
        state: Option<TcpState>,
        values: &Map<String, Value>,
    ) -> io::Result<()> {
        self.latest = self.latest.max(time);
        let event = TrackEvent {
            r#type: Some(kind as i32),
            track_uuid: Some(track),
            name_iid: name.map(|name| self.names.event(name)),
            debug_annotations: self.names.annotations(values),
            correlation_id_str_iid: state.map(|state| self.names.colour(state.name())),
        };
        let interned_data = self.names.take_new();
        self.write(&TracePacket {
            timestamp: Some(time),
            trusted_packet_sequence_id: Some(SEQUENCE),
            sequence_flags: Some(NEEDS_INCREMENTAL_STATE),
            track_event: Some(event),
            interned_data,
            ..TracePacket::default()
        })
    }

    /// The colour of a slice is that of its name, unless it is a state's: names say more than the state.
    fn begin(
        &mut self,
        track: u64,
        time: u64,
        name: &str,
        state: Option<TcpState>,
        about: &Value,
    ) -> io::Result<()> {
        let kind = EventType::SliceBegin;
        self.event(track, time, kind, Some(name), state, fields(about))
    }

    fn end(&mut self, track: u64, time: u64) -> io::Result<()> {
        self.event(track, time, EventType::SliceEnd, None, None, &Map::new())
    }

    fn instant(&mut self, track: u64, time: u64, name: &str, about: &Value) -> io::Result<()> {
        let kind = EventType::Instant;
        self.event(track, time, kind, Some(name), None, fields(about))
    }

    fn new_track(&mut self) -> u64 {
        self.tracks += 1;
        self.tracks
    }

    /// What the tracks of a process's connections are below: its own track, or one that only says which it is. A process id may
    /// be used again, and a process may take another name, but the trace format knows one name for an id.
    fn process(&mut self, process: Option<Process>) -> io::Result<u64> {
        let key = process.map(|process| (process.pid, process.comm));
        if let Some(track) = self.processes.get(&key) {
            return Ok(*track);
        }
        if self.processes.len() >= PROCESSES {
            self.processes.clear();
        }
        if self.comms.len() >= PROCESSES {
            self.comms.clear();
        }
        let (name, parent) = match key {
            None => ("unknown process".to_owned(), None),
            Some((pid, comm)) => {
                let name = escape::text(&comm.to_str()).into_owned();
                let first = *self.comms.entry(pid).or_insert(comm);
                match i32::try_from(pid) {
                    Ok(pid) if first == comm => {
                        let parent = self.new_track();
                        self.track(TrackDescriptor {
                            uuid: Some(parent),
                            process: Some(ProcessDescriptor {
                                pid: Some(pid),
                                process_name: Some(name),
                            }),
                            ..TrackDescriptor::default()
                        })?;
                        ("TCP connections".to_owned(), Some(parent))
                    }
                    _ => (format!("{name} {pid}"), None),
                }
            }
        };
        // The trace processor sorts what is directly below a process by name, whatever the process's track says.
        let track = self.new_track();
        self.track(TrackDescriptor {
            uuid: Some(track),
            name: Some(name),
            parent_uuid: parent,
            child_ordering: Some(CHRONOLOGICAL),
            ..TrackDescriptor::default()
        })?;
        self.processes.insert(key, track);
        Ok(track)
    }

    fn stays(&mut self, track: u64, connection: &Connection, begin: u64) -> io::Result<u64> {
        let mut cursor = begin;
        for stay in connection.stays.list() {
            let about = json!(StayLine::new(stay));
            if stay.to == Some(stay.state) {
                let at = stay.until.max(cursor);
                let what = match stay.reason {
                    Some(reason) => reason.label(),
                    None => "minisocket takes over",
                };
                let name = format!("{} {what}", stay.state.name());
                self.instant(track, at, &name, &about)?;
                continue;
            }
            // What was there before has ended by then, whatever a bound allows.
            let end = stay.until.max(cursor);
            let begin = match stay.phase.began(stay.until) {
                Some((entered, _)) => entered.clamp(cursor, end),
                None => cursor,
            };
            self.begin(
                track,
                begin,
                &name(stay, connection.start.is_some()),
                Some(stay.state),
                &about,
            )?;
            self.end(track, end)?;
            cursor = end;
        }
        Ok(cursor)
    }
}

/// The name of a state's slice, which says if its length is not what it was.
fn name(stay: &Stay, began: bool) -> String {
    let bound = match (stay.to, stay.phase.bound()) {
        (None, Bound::AtLeast) if began => " (still)",
        (None, _) => " (still, at least)",
        (_, Bound::Exact) => "",
        (_, Bound::AtLeast) => " (at least)",
        (_, Bound::AtMost) => " (at most)",
        (_, Bound::Unknown) => " (unknown)",
    };
    let damaged = if stay.damaged { " !" } else { "" };
    format!("{}{bound}{damaged}", stay.state.name())
}

/// The name of a connection's slice.
fn life(connection: &Connection) -> String {
    let began = if connection.start.is_some() {
        ""
    } else {
        " (began earlier)"
    };
    let opened = connection.opened.label();
    match connection.state {
        Some(state) => format!("opened {opened}, still {}{began}", state.name()),
        None => format!(
            "opened {opened}, closed first {}, {}{began}",
            connection.closed_first.label(),
            connection.how.label()
        ),
    }
}

/// The name of a connection's track: its ends, and the direction in which it was opened.
fn ends(connection: &Connection) -> String {
    use crate::analysis::Opened::{Active, Passive, Simultaneous, Unknown};
    let mut name = String::new();
    text::endpoint(&mut name, connection.local, false);
    name.push_str(match connection.opened {
        Active => " -> ",
        Passive => " <- ",
        Simultaneous => " <-> ",
        Unknown => " -- ",
    });
    text::endpoint(&mut name, connection.remote, false);
    name
}

/// When it began, as far as the trace tells.
fn began(connection: &Connection) -> u64 {
    let first = connection.stays.list().first();
    let first = first.map(|stay| {
        let began = stay.phase.began(stay.until);
        began.map_or(stay.until, |(began, _)| began)
    });
    connection
        .start
        .or(first)
        .or(connection.end)
        .unwrap_or_default()
}

/// The fields of an object.
fn fields(value: &Value) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    value.as_object().unwrap_or(&NONE)
}

impl<W: Write> Sink for Perfetto<W> {
    fn transition(&mut self, _: &Transition) -> io::Result<()> {
        Ok(())
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        let parent = self.process(connection.owner.or(connection.closer))?;
        let track = self.new_track();
        self.track(TrackDescriptor {
            uuid: Some(track),
            name: Some(ends(connection)),
            parent_uuid: Some(parent),
            ..TrackDescriptor::default()
        })?;
        let mut about = serde_json::to_value(ConnectionLine::new(connection, &self.clock))?;
        if let (more @ 1.., Value::Object(about)) = (connection.stays.more(), &mut about) {
            about.insert("left_out".to_owned(), more.into());
        }
        let begin = began(connection);
        self.begin(track, begin, &life(connection), None, &about)?;
        let last = self.stays(track, connection, begin)?;
        self.end(track, connection.end.map_or(last, |end| end.max(last)))
    }

    fn report(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn loss(&mut self, loss: &Loss) -> io::Result<()> {
        let about = json!({
            "kind": loss.kind.label(),
            "count": loss.count,
            "from": self.clock.rfc3339(loss.from),
            "to": self.clock.rfc3339(loss.to),
        });
        self.instant(RUN, loss.to, "LOST", &about)
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let about = serde_json::to_value(summary)?;
        self.instant(RUN, self.latest, "summary", &about)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
