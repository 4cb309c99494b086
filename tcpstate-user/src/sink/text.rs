//! Text for people: aligned, within 80 columns by default, everything with `--wide`.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io::{self, Write},
    net::IpAddr,
};

use tcpstate_common::state::TcpState;

use super::{OtherProtocols, Rows, Sink, Summary, cells, error_name, escape, table};
use crate::{
    analysis::{Connection, Opened, Report},
    clock::Clock,
    event::{Endpoint, Process},
    lifecycle::{Bound, KnownBy, Phase, Transition},
    loss::{Loss, LossKind},
    message::plural,
};

/// Which columns are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Everything there is.
    pub wide: bool,
    /// The time of day.
    pub time_of_day: bool,
    /// Seconds since the start.
    pub since_start: bool,
    /// What the rows are.
    pub rows: Rows,
    /// Columns after which names are cut; 0 for 80.
    pub columns: usize,
}

/// Writes text.
#[derive(Debug)]
pub struct Text<W> {
    out: W,
    clock: Clock,
    layout: Layout,
    line: String,
}

/// The states whose time is worth a column.
const SHOWN: [TcpState; 8] = [
    TcpState::SynSent,
    TcpState::Established,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::Closing,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::SynRecv,
];
const ENDPOINTS: usize = 31;
const STATES: usize = 25;
const NARROW: usize = 80;

impl<W: Write> Text<W> {
    /// Writes to `out`, which should be buffered, beginning with the header.
    ///
    /// # Errors
    /// If the header cannot be written.
    pub fn new(out: W, clock: Clock, layout: Layout) -> io::Result<Self> {
        let mut text = Self {
            out,
            clock,
            layout,
            line: String::new(),
        };
        match layout.rows {
            Rows::Transitions => text.header(),
            Rows::Connections => text.connection_header(),
            // Each begins with a header of its own.
            Rows::Reports => return Ok(text),
        }
        text.end_line()?;
        Ok(text)
    }

    fn header(&mut self) {
        let line = &mut self.line;
        if self.layout.wide || self.layout.time_of_day {
            push(line, format_args!("{:<15} ", "TIME"));
        }
        if self.layout.since_start {
            push(line, format_args!("{:>13} ", "SINCE(s)"));
        }
        push(line, format_args!("{:>8}  ", "MS"));
        if self.layout.wide {
            push(
                line,
                format_args!(
                    "{:<4} {:<5} {:<22} {:<22} {:<STATES$} {:<16} {:<8} {:>5} {:>10} {:>8} {:<8} {:>7} {:>7} {:<15} {}",
                    "FAM",
                    "PROTO",
                    "LOCAL",
                    "REMOTE",
                    "OLD -> NEW",
                    "WHY",
                    "KNOWN BY",
                    "UID",
                    "NETNS",
                    "COOKIE",
                    "VIA",
                    "PID",
                    "TID",
                    "COMM",
                    "CGROUP",
                ),
            );
        } else {
            push(
                line,
                format_args!(
                    "{:<15} {:<15} {:<STATES$} {}",
                    "LOCAL", "REMOTE", "OLD -> NEW", "PID COMM"
                ),
            );
        }
    }

    fn row(&mut self, transition: &Transition) {
        let event = &transition.event;
        let line = &mut self.line;
        if self.layout.wide || self.layout.time_of_day {
            push(
                line,
                format_args!("{} ", self.clock.time_of_day(event.time)),
            );
        }
        if self.layout.since_start {
            since(line, self.clock.since_start(event.time));
        }
        let start = line.len();
        milliseconds(line, transition.phase);
        pad_left(line, start, 8);
        line.push_str(if transition.damaged { "! " } else { "  " });
        if self.layout.wide {
            self.wide(transition);
        } else {
            self.narrow(transition);
        }
    }

    /// Two endpoints share their columns, so that a long one does not push what follows; the name of the process comes
    /// last and is cut where the line ends. Addresses and process ids are never cut.
    fn narrow(&mut self, transition: &Transition) {
        let event = &transition.event;
        let line = &mut self.line;
        let start = line.len();
        endpoint(line, event.local, event.is_listener());
        pad_right(line, start, 15);
        line.push(' ');
        endpoint(line, event.remote, event.is_listener());
        pad_right(line, start, ENDPOINTS);
        line.push(' ');
        let start = line.len();
        states(line, transition);
        if let Some(why) = why(transition) {
            line.push(' ');
            line.push_str(&why);
        }
        pad_right(line, start, STATES);
        line.push(' ');
        self.process(transition.process.as_ref());
    }

    /// The last column, cut where the line ends. A process id is never cut, and a name is not where the line is too long without it:
    /// it is broken by the terminal then, and has room.
    fn process(&mut self, process: Option<&Process>) {
        let line = &mut self.line;
        let Some(process) = process else {
            line.push('-');
            return;
        };
        number(line, process.pid);
        line.push(' ');
        let columns = if self.layout.columns == 0 {
            NARROW
        } else {
            self.layout.columns
        };
        let name = process.comm.to_str();
        let name = escape::text(&name);
        let width = cells::width(line);
        let room = columns.saturating_sub(width);
        // The space at its end is there for the name only.
        if width.saturating_sub(1) > columns {
            line.push_str(&name);
        } else if cells::width(&name) <= room || room > 1 {
            line.push_str(&cells::cut(&name, room));
        }
    }

    fn wide(&mut self, transition: &Transition) {
        let event = &transition.event;
        let line = &mut self.line;
        let family = if event.local.addr.is_ipv4() {
            "ipv4"
        } else {
            "ipv6"
        };
        push(
            line,
            format_args!("{family:<4} {:<5} ", event.protocol.label()),
        );
        let start = line.len();
        endpoint(line, event.local, event.is_listener());
        pad_right(line, start, 22);
        line.push(' ');
        endpoint(line, event.remote, event.is_listener());
        pad_right(line, start, 45);
        line.push(' ');
        let start = line.len();
        states(line, transition);
        pad_right(line, start, STATES);
        let why = why(transition);
        push(
            line,
            format_args!(
                " {:<16} {:<8} {:>5} {:>10} {:>8} ",
                why.as_deref().unwrap_or("-"),
                transition.known_by.map_or("-", KnownBy::label),
                Known(event.uid),
                Known(event.netns),
                transition.connection,
            ),
        );
        match &transition.process {
            Some(process) => push(
                line,
                format_args!(
                    "{:<8} {:>7} {:>7} {} ",
                    process.via.label(),
                    process.pid,
                    Known(transition.tid()),
                    cells::pad(&escape::word(&process.comm.to_str()), 15),
                ),
            ),
            None => push(
                line,
                format_args!("{:<8} {:>7} {:>7} {:<15} ", "-", "-", "-", "-"),
            ),
        }
        match (&transition.cgroup, event.cgroup) {
            (Some(path), _) => line.push_str(&escape::word(path)),
            (None, Some(id)) => push(line, format_args!("{id}")),
            (None, None) => line.push('-'),
        }
    }

    fn connection_header(&mut self) {
        let line = &mut self.line;
        if self.layout.wide || self.layout.time_of_day {
            push(line, format_args!("{:<15} ", "START"));
        }
        if self.layout.since_start {
            push(line, format_args!("{:>13} ", "SINCE(s)"));
        }
        push(
            line,
            format_args!(
                "{:<15} {:<15} {:<7} {:<6} ",
                "LOCAL", "REMOTE", "OPENED", "CLOSED"
            ),
        );
        push(line, format_args!("{:<12} {:>7}  ", "HOW", "TW(s)"));
        if self.layout.wide {
            push(line, format_args!("{:<16} {:>3} ", "TW END", "RES"));
            for state in SHOWN {
                push(
                    line,
                    format_args!("{:>12} ", format!("{}(ms)", state.name())),
                );
            }
            push(
                line,
                format_args!(
                    "{:>10} {:>10} {:>5} {:>8} ",
                    "ACKED(B)", "RECVD(B)", "RETR", "RTT(us)"
                ),
            );
            push(
                line,
                format_args!(
                    "{:>7} {:<15} {:>7} {:<15} COOKIE",
                    "OWNER", "COMM", "CLOSER", "COMM"
                ),
            );
        } else {
            line.push_str("PID COMM");
        }
    }

    fn connection_row(&mut self, connection: &Connection) {
        let line = &mut self.line;
        if self.layout.wide || self.layout.time_of_day {
            let start = connection.start.map(|start| self.clock.time_of_day(start));
            push(
                line,
                format_args!("{:<15} ", start.as_deref().unwrap_or("-")),
            );
        }
        if self.layout.since_start {
            match connection.start {
                Some(start) => since(line, self.clock.since_start(start)),
                None => push(line, format_args!("{:>13} ", "-")),
            }
        }
        let start = line.len();
        endpoint(line, connection.local, false);
        pad_right(line, start, 15);
        line.push(' ');
        endpoint(line, connection.remote, false);
        pad_right(line, start, ENDPOINTS);
        let known = |label: &'static str| if label == "unknown" { "-" } else { label };
        let opened = match connection.opened {
            Opened::Simultaneous => "both",
            other => known(other.label()),
        };
        let closed_first = known(connection.closed_first.label());
        // What is still there tells its state instead, in the kernel's spelling.
        let how = connection
            .state
            .map_or_else(|| known(connection.how.label()), TcpState::name);
        for (word, width) in [(opened, 7), (closed_first, 6), (how, 12)] {
            line.push(' ');
            let start = line.len();
            line.push_str(word);
            pad_right(line, start, width);
        }
        line.push(' ');
        let start = line.len();
        duration(
            line,
            connection.time_wait.map(|time_wait| time_wait.phase),
            1_000_000_000,
        );
        pad_left(line, start, 7);
        line.push_str(if connection.damaged { "! " } else { "  " });
        if self.layout.wide {
            self.wide_connection(connection);
            return;
        }
        // The one who closed, if it was this side, else the owner.
        self.process(connection.closer.or(connection.owner).as_ref());
    }

    fn wide_connection(&mut self, connection: &Connection) {
        let line = &mut self.line;
        let time_wait = connection.time_wait;
        push(
            line,
            format_args!(
                "{:<16} {:>3} ",
                time_wait.map_or("-", |time_wait| time_wait.end.label()),
                Known(time_wait.map(|time_wait| time_wait.restarts)),
            ),
        );
        for state in SHOWN {
            let start = line.len();
            duration(line, connection.states[state as usize - 1], 1_000_000);
            pad_left(line, start, 12.max(state.name().len() + 4));
            line.push(' ');
        }
        let totals = connection.totals;
        push(
            line,
            format_args!(
                "{:>10} {:>10} {:>5} {:>8} ",
                Known(totals.map(|totals| totals.bytes_acked)),
                Known(totals.map(|totals| totals.bytes_received)),
                Known(totals.map(|totals| totals.retransmits)),
                Known(totals.and_then(|totals| totals.rtt_us)),
            ),
        );
        for process in [connection.owner, connection.closer] {
            let comm = process.as_ref().map(|process| process.comm.to_str());
            let comm = comm.as_deref().map(escape::word);
            push(
                line,
                format_args!(
                    "{:>7} {} ",
                    Known(process.map(|process| process.pid)),
                    cells::pad(comm.as_deref().unwrap_or("-"), 15),
                ),
            );
        }
        push(line, format_args!("{}", connection.connection));
    }

    fn end_line(&mut self) -> io::Result<()> {
        while self.line.ends_with(' ') {
            self.line.pop();
        }
        self.line.push('\n');
        self.out.write_all(self.line.as_bytes())?;
        self.line.clear();
        Ok(())
    }
}

impl<W: Write> Sink for Text<W> {
    fn transition(&mut self, transition: &Transition) -> io::Result<()> {
        self.row(transition);
        self.end_line()
    }

    fn connection(&mut self, connection: &Connection) -> io::Result<()> {
        self.connection_row(connection);
        self.end_line()
    }

    fn report(&mut self, report: &Report) -> io::Result<()> {
        let Layout { wide, columns, .. } = self.layout;
        let columns = if columns == 0 { NARROW } else { columns };
        let text = table::draw(report, &self.clock, wide, columns);
        self.out.write_all(text.as_bytes())
    }

    fn loss(&mut self, _: &Loss) -> io::Result<()> {
        // Standard error has it while it happens, the summary in the end.
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        write!(self.out, "{summary}")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn resize(&mut self, columns: usize) {
        self.layout.columns = columns;
    }
}

/// The summary as text: lines that begin with `#`, so that they are no rows.
impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "# {} shown; {} of {} seen in {:.1} s",
            self.shown,
            plural(self.events, "event"),
            plural(self.connections, "connection"),
            self.seconds,
        )?;
        if self.interrupted {
            writeln!(out, "# ended early: the rest of the recording was not read")?;
        }
        writeln!(out, "# hooks: {}", self.hooks.join(", "))?;
        if self.found > 0 {
            writeln!(out, "# {} there already", plural(self.found, "socket"))?;
        }
        if self.loss.is_none() {
            writeln!(out, "# nothing lost")?;
        }
        for kind in LossKind::ALL {
            let count = self.loss.get(kind);
            if count > 0 {
                writeln!(out, "# LOST {count}: {}", kind.advice())?;
            }
        }
        if self.damaged > 0 {
            writeln!(
                out,
                "# {} marked `!`: the old state does not follow from what was seen",
                plural(self.damaged, "transition")
            )?;
        }
        if self.undecided > 0 {
            writeln!(
                out,
                "# {} not shown: only the first event was seen, without both ends",
                plural(self.undecided, "connection")
            )?;
        }
        if self.unattributed > 0 {
            writeln!(
                out,
                "# {} not shown: the process or cgroup to filter by is not known",
                plural(self.unattributed, "transition")
            )?;
        }
        let OtherProtocols { mptcp, sctp, other } = self.other_protocols;
        if [mptcp, sctp, other] != [0; 3] {
            writeln!(
                out,
                "# not shown: {mptcp} of MPTCP, {sctp} of SCTP, {other} of other protocols (see --protocol)"
            )?;
        }
        Ok(())
    }
}

/// A number, or `-`.
struct Known<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Known<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(out),
            None => out.pad("-"),
        }
    }
}

fn push(line: &mut String, arguments: fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = line.write_fmt(arguments);
}

/// As `{number}` would: half of what a row costs were its numbers.
fn number(line: &mut String, number: impl itoa::Integer) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// Seconds, in 14 cells.
fn since(line: &mut String, nanoseconds: u64) {
    push(
        line,
        format_args!(
            "{:>6}.{:06} ",
            nanoseconds / 1_000_000_000,
            nanoseconds / 1000 % 1_000_000
        ),
    );
}

/// No column is wider.
const SPACES: &str = "                                                                ";

fn pad_right(line: &mut String, start: usize, width: usize) {
    let missing = (start + width).saturating_sub(line.len());
    line.push_str(&SPACES[..missing.min(SPACES.len())]);
}

fn pad_left(line: &mut String, start: usize, width: usize) {
    let missing = (start + width).saturating_sub(line.len());
    line.insert_str(start, &SPACES[..missing.min(SPACES.len())]);
}

/// `OLD -> NEW`; a full socket that gives way to a minisocket in the same state is marked.
fn states(line: &mut String, transition: &Transition) {
    let event = &transition.event;
    line.push_str(event.old.name());
    line.push_str(" -> ");
    line.push_str(event.new.name());
    if transition.minisocket && event.old == event.new && transition.reason.is_none() {
        line.push_str(" mini");
    }
}

/// Why: the socket's error, or the end of the minisocket.
fn why(transition: &Transition) -> Option<Cow<'static, str>> {
    match (transition.reason, transition.event.error) {
        (Some(reason), _) => Some(reason.label().into()),
        (None, Some(error)) => Some(error_name(error).into()),
        (None, None) => None,
    }
}

fn milliseconds(line: &mut String, phase: Phase) {
    duration(line, Some(phase), 1_000_000);
}

/// In units of so many nanoseconds. `>=` and `<=` mark bounds; three significant digits are enough to read, `-j` has them
/// all.
pub(super) fn duration(line: &mut String, phase: Option<Phase>, unit: u64) {
    let Some((phase, nanoseconds)) = phase.and_then(|phase| Some((phase, phase.nanoseconds()?)))
    else {
        line.push('-');
        return;
    };
    line.push_str(match phase.bound() {
        Bound::AtLeast => ">=",
        Bound::AtMost => "<=",
        Bound::Exact | Bound::Unknown => "",
    });
    let whole = nanoseconds / unit;
    number(line, whole);
    // As thousandths with all their zeros: 7 are 1007, of which the 1 is left out.
    let thousandths = 1000 + nanoseconds % unit / (unit / 1000);
    let digits = match whole {
        0..10 => 3,
        10..100 => 2,
        100..1000 => 1,
        _ => return,
    };
    line.push('.');
    line.push_str(&itoa::Buffer::new().format(thousandths)[1..=digits]);
}

/// `-` for an end that is not known; `*` for any.
pub(super) fn endpoint(line: &mut String, end: Endpoint, listener: bool) {
    if end.addr.is_unspecified() && end.port == 0 {
        line.push(if listener { '*' } else { '-' });
        return;
    }
    if end.addr.is_unspecified() {
        line.push('*');
    } else {
        match end.addr {
            IpAddr::V4(address) => {
                for (at, octet) in address.octets().into_iter().enumerate() {
                    line.push_str(if at == 0 { "" } else { "." });
                    number(line, octet);
                }
            }
            IpAddr::V6(address) => push(line, format_args!("[{address}]")),
        }
    }
    line.push(':');
    match end.port {
        0 => line.push('-'),
        port => number(line, port),
    }
}
