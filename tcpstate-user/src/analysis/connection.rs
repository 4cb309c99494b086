//! Whole connections: from their first transition to the end of their TIME_WAIT.

use std::sync::Arc;

use hashbrown::DefaultHashBuilder;
use indexmap::IndexMap;
use tcpstate_common::state::TcpState;

use super::Stays;
use crate::{
    event::{About, Endpoint, Process, Protocol, Totals, TransitionEvent, Via},
    lifecycle::{Bound, Found, KnownBy, Phase, Reason, Transition},
    prefetch::Prefetch,
    register::Register,
};

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opened {
    /// This host: connect().
    Active,
    /// The peer: accepted from a listener.
    Passive,
    /// Both: SYNs crossed.
    Simultaneous,
    /// It was open before we looked.
    Unknown,
}

/// Who closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedFirst {
    /// This host: active close.
    Local,
    /// The peer: passive close.
    Remote,
    /// Both: simultaneous close.
    Both,
    /// Nobody: it was never open, timed out or was destroyed.
    None,
    /// It was closing before we looked, or something was lost.
    Unknown,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By a FIN from each side.
    Fin,
    /// We sent a RST: SO_LINGER 0, unread data, data after close.
    RstSent,
    /// A RST came.
    RstReceived,
    /// Retransmissions, keepalives or the user timeout gave up; or nobody answered connect().
    Timeout,
    /// connect() was refused.
    Refused,
    /// The peer could not be reached.
    Unreachable,
    /// An administrator destroyed it, or its namespace went away.
    Destroyed,
    /// The application gave connect() up.
    Aborted,
    /// Not known.
    Unknown,
}

/// How a TIME_WAIT ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeWaitEnd {
    /// For this reason.
    Reason(Reason),
    /// It had not ended when the run did.
    Running,
}

/// The TIME_WAIT of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeWait {
    /// When it was started first.
    pub began: u64,
    /// From its first start to its end; unknown while it runs.
    pub phase: Phase,
    /// How often it was restarted, as far as we know.
    pub restarts: u32,
    /// How it ended.
    pub end: TimeWaitEnd,
    /// How that is known.
    pub known_by: KnownBy,
}

impl Opened {
    /// What the first event of a connection says.
    pub(crate) const fn of_birth(event: &TransitionEvent) -> Self {
        match (event.old, event.new) {
            (TcpState::Close, TcpState::SynSent) => Self::Active,
            (TcpState::Listen, TcpState::SynRecv) => Self::Passive,
            _ => Self::Unknown,
        }
    }
}

macro_rules! labels {
    ($($type:ident { $($variant:ident => $label:literal,)+ })+) => {
        $(impl $type {
            /// The word for it in every output.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        })+
    };
}

labels! {
    Opened {
        Active => "active",
        Passive => "passive",
        Simultaneous => "simultaneous",
        Unknown => "unknown",
    }
    ClosedFirst {
        Local => "local",
        Remote => "remote",
        Both => "both",
        None => "none",
        Unknown => "unknown",
    }
    How {
        Fin => "fin",
        RstSent => "rst_sent",
        RstReceived => "rst_received",
        Timeout => "timeout",
        Refused => "refused",
        Unreachable => "unreachable",
        Destroyed => "destroyed",
        Aborted => "aborted",
        Unknown => "unknown",
    }
}

impl TimeWaitEnd {
    /// The word for it in every output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Reason(reason) => reason.label(),
            Self::Running => "running",
        }
    }
}

/// One TCP endpoint from first event to the end of its TIME_WAIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its identity (see [`Transition::connection`]).
    pub connection: u64,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// Network namespace: cookie.
    pub netns_cookie: Option<u64>,
    /// Protocol.
    pub protocol: Protocol,
    /// This host's end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// When it began; `None` if that was before we looked (nanoseconds of `CLOCK_MONOTONIC`, as all times).
    pub start: Option<u64>,
    /// When it ended, its TIME_WAIT included; `None` if it has not.
    pub end: Option<u64>,
    /// Who opened it.
    pub opened: Opened,
    /// Who closed first.
    pub closed_first: ClosedFirst,
    /// How it ended.
    pub how: How,
    /// The state it is in; `None` if it has ended.
    pub state: Option<TcpState>,
    /// When it came into that state, or an earlier time if that was not seen.
    since: u64,
    /// Time spent in each state, in the kernel's numbering; `None` where it never was. At the end of a run that of the
    /// present state is the time so far.
    pub states: [Option<Phase>; TcpState::ALL.len()],
    /// Its TIME_WAIT, if it had one.
    pub time_wait: Option<TimeWait>,
    /// The process it belonged to, and how we know.
    pub owner: Option<Process>,
    /// The process that closed it first on this side, and how we know.
    pub closer: Option<Process>,
    /// User id of the socket.
    pub uid: Option<u32>,
    /// Path of its cgroup.
    pub cgroup: Option<Arc<str>>,
    /// What it had done when it closed.
    pub totals: Option<Totals>,
    /// Loss may have touched it.
    pub damaged: bool,
    /// Its states in order, for who wants them ([`Connections::with_stays`]).
    pub stays: Stays,
}

/// Connections that have not ended.
#[derive(Debug)]
pub struct Connections {
    open: Register<Connection>,
    /// TIME_WAITs whose socket was connected again meanwhile: after shutdown() the application still has it, and the next
    /// connection has the same cookie, but other ends.
    left: IndexMap<(u64, Endpoint, Endpoint), Connection, DefaultHashBuilder>,
    limit: usize,
    forgotten: u64,
    stays: bool,
}

impl Connections {
    /// For at most `limit` connections at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            open: Register::default(),
            left: IndexMap::default(),
            limit: limit.max(1),
            forgotten: 0,
            stays: false,
        }
    }

    /// Keeps the states of each connection in order, too.
    #[must_use]
    pub const fn with_stays(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Connections dropped because there were too many.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Has what is kept of the connection of this socket fetched from memory: a transition of it comes soon.
    pub fn prefetch(&self, about: About, what: Prefetch) {
        if let Some(cookie) = about.cookie {
            self.open.prefetch(cookie, what);
        }
    }

    /// Takes a transition, and gives back the connection that has ended with it. Listeners are no connections.
    pub fn take(&mut self, transition: &Transition) -> Option<Connection> {
        let event = &transition.event;
        if event.is_listener() || (event.old == TcpState::Close && event.new == TcpState::Close) {
            return None;
        }
        let id = transition.connection;
        if event.is_birth()
            && let Some(before) = self.open.remove(id)
            && before.time_wait.is_some()
        {
            // The socket is used again, but the minisocket goes on. Any other life before has ended unseen.
            self.leave(before);
        }
        if event.old == TcpState::TimeWait && !self.left.is_empty() {
            let minisocket = (id, event.local, event.remote);
            if let Some(left) = self.left.get_mut(&minisocket) {
                left.take(transition);
                if self.stays {
                    left.stays.take(transition);
                }
                if event.new != TcpState::Close {
                    return None;
                }
                let mut ended = self.left.swap_remove(&minisocket)?;
                ended.end = Some(event.time);
                return Some(ended);
            }
        }
        let connection = if let Some(connection) = self.open.get_mut(id) {
            connection
        } else {
            self.make_room(id);
            self.open.insert(id, Connection::new(transition));
            self.open.get_mut(id)?
        };
        connection.take(transition);
        if self.stays {
            connection.stays.take(transition);
        }
        if event.new == TcpState::Close {
            let mut ended = self.open.remove(id)?;
            ended.end = Some(event.time);
            return Some(ended);
        }
        None
    }

    fn leave(&mut self, connection: Connection) {
        if self.left.len() >= self.limit {
            self.left.swap_remove_index(0);
            self.forgotten += 1;
        }
        let minisocket = (connection.connection, connection.local, connection.remote);
        self.left.insert(minisocket, connection);
    }

    /// Takes a connection that was there before.
    pub fn found(&mut self, found: &Found) {
        if found.state == TcpState::Listen {
            return;
        }
        self.make_room(found.connection);
        self.open.insert(found.connection, Connection::found(found));
    }

    /// A connection was accepted: it belongs to this process now.
    pub fn accepted(&mut self, connection: u64, process: Process) {
        if let Some(connection) = self.open.get_mut(connection) {
            connection.owner = Some(process);
        }
    }

    fn make_room(&mut self, id: u64) {
        let gone = self.open.make_room(id, self.limit);
        self.forgotten += u64::from(gone.is_some());
    }

    /// What is still open, in no order, when it is this late.
    pub fn finish(&mut self, now: u64) -> impl Iterator<Item = Connection> {
        let stays = self.stays;
        std::mem::take(&mut self.open)
            .into_values()
            .chain(std::mem::take(&mut self.left).into_values())
            .map(move |mut connection| {
                connection.so_far(now);
                if stays && let Some(state) = connection.state {
                    connection.stays.still(state, connection.since, now);
                }
                if let Some(time_wait) = &mut connection.time_wait
                    && time_wait.end == TimeWaitEnd::Running
                {
                    time_wait.phase = Phase::between(time_wait.began, now, Bound::AtLeast);
                }
                connection
            })
    }
}

impl Connection {
    /// Whether it is known to have been in this state. What has ended is in CLOSE; a listener's child was never in LISTEN.
    #[must_use]
    pub fn was_in(&self, state: TcpState) -> bool {
        match state {
            TcpState::Close => self.end.is_some(),
            _ => self.state == Some(state) || self.states[state as usize - 1].is_some(),
        }
    }

    fn new(first: &Transition) -> Self {
        let event = &first.event;
        Self {
            connection: first.connection,
            netns: event.netns,
            netns_cookie: event.netns_cookie,
            protocol: event.protocol,
            local: event.local,
            remote: event.remote,
            start: event.is_birth().then_some(event.time),
            end: None,
            opened: Opened::of_birth(event),
            closed_first: ClosedFirst::Unknown,
            how: How::Unknown,
            state: Some(event.old),
            since: event.time,
            states: [None; TcpState::ALL.len()],
            time_wait: None,
            owner: None,
            closer: None,
            uid: event.uid,
            cgroup: None,
            totals: None,
            damaged: false,
            stays: Stays::default(),
        }
    }

    fn found(found: &Found) -> Self {
        use TcpState::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
        let mut connection = Self {
            connection: found.connection,
            netns: found.netns,
            netns_cookie: found.netns_cookie,
            protocol: found.protocol,
            local: found.local,
            remote: found.remote,
            start: None,
            end: None,
            opened: Opened::Unknown,
            closed_first: match found.state {
                // Our FIN was sent before the peer's came; in TIME_WAIT nothing tells any more.
                FinWait1 | FinWait2 => ClosedFirst::Local,
                Closing => ClosedFirst::Both,
                CloseWait | LastAck => ClosedFirst::Remote,
                _ => ClosedFirst::Unknown,
            },
            how: How::Unknown,
            state: Some(found.state),
            since: found.since,
            states: [None; TcpState::ALL.len()],
            time_wait: None,
            owner: found.process,
            closer: None,
            uid: found.uid,
            cgroup: found.cgroup.clone(),
            totals: found.totals,
            damaged: false,
            stays: Stays::default(),
        };
        if found.state == TimeWait {
            connection.begin_time_wait(found.since);
        }
        connection
    }

    fn take(&mut self, transition: &Transition) {
        use TcpState::{
            Close, CloseWait, Closing, Established, FinWait1, SynRecv, SynSent, TimeWait,
        };
        let event = &transition.event;
        self.damaged |= transition.damaged;
        self.remember(transition);
        if event.new != event.old {
            self.since = event.time;
        } else if let Some((since, _)) = transition.phase.began(event.time) {
            self.since = since;
        }
        self.state = Some(event.new).filter(|state| *state != Close);
        let index = event.old as usize - 1;
        if !event.is_birth() && event.old != event.new {
            self.states[index] = Some(transition.phase);
        }
        match (event.old, event.new) {
            (SynSent, SynRecv) => self.opened = Opened::Simultaneous,
            (Established | SynRecv, FinWait1) => self.closed_first = ClosedFirst::Local,
            (Established | SynRecv, CloseWait) => self.closed_first = ClosedFirst::Remote,
            (FinWait1, Closing) => self.closed_first = ClosedFirst::Both,
            _ => {}
        }
        if event.new == TimeWait && event.old != TimeWait {
            self.begin_time_wait(event.time);
        }
        match (event.old, event.new, transition.reason) {
            (TimeWait, TimeWait, Some(Reason::Restarted)) => {
                if let Some(time_wait) = &mut self.time_wait {
                    time_wait.restarts += 1;
                }
            }
            (_, Close, Some(Reason::Overflow)) => self.overflow(transition),
            (_, Close, Some(reason)) => self.end_minisocket(transition, reason),
            (_, Close, None) => self.end(event),
            _ => {}
        }
    }

    /// What each transition says that the ones before may not have known.
    fn remember(&mut self, transition: &Transition) {
        let event = &transition.event;
        if event.local.port != 0 {
            (self.local, self.remote) = (event.local, event.remote);
        }
        if event.totals.is_some() {
            self.totals = event.totals;
        }
        if transition.cgroup.is_some() {
            self.cgroup.clone_from(&transition.cgroup);
        }
        if let Some(process) = transition.process {
            let closing = matches!(process.via, Via::Close | Via::Shutdown);
            if closing && self.closer.is_none() {
                self.closer = Some(process);
            }
            if !closing {
                self.owner = Some(process);
            }
        }
    }

    /// It is still in its state now.
    fn so_far(&mut self, now: u64) {
        if let Some(state) = self.state {
            let phase = Phase::between(self.since, now, Bound::AtLeast);
            self.states[state as usize - 1] = Some(phase);
        }
    }

    fn begin_time_wait(&mut self, time: u64) {
        self.how = How::Fin;
        self.time_wait = Some(TimeWait {
            began: time,
            phase: Phase::UNKNOWN,
            restarts: 0,
            end: TimeWaitEnd::Running,
            known_by: KnownBy::Inferred,
        });
    }

    fn end_minisocket(&mut self, transition: &Transition, reason: Reason) {
        let (old, time, phase) = (
            transition.event.old,
            transition.event.time,
            transition.phase,
        );
        if old == TcpState::TimeWait {
            let before = self.time_wait;
            self.time_wait = Some(TimeWait {
                began: before.map_or(time, |time_wait| time_wait.began),
                restarts: before.map_or(0, |time_wait| time_wait.restarts),
                phase,
                end: TimeWaitEnd::Reason(reason),
                known_by: transition.known_by.unwrap_or(KnownBy::Inferred),
            });
            self.how = How::Fin;
            return;
        }
        self.how = match reason {
            Reason::Expired => How::Timeout,
            Reason::Rst => How::RstReceived,
            Reason::ResetHalfClose => How::RstSent,
            Reason::Destroyed | Reason::NamespaceGone => How::Destroyed,
            Reason::ReusedConnect
            | Reason::ReusedSyn
            | Reason::Restarted
            | Reason::Overflow
            | Reason::Unknown => How::Unknown,
        };
    }

    /// It should have become a minisocket, and there was none for it. If that was before the peer's FIN came, how it
    /// would have ended is not known: the peer's FIN will be answered with a RST.
    fn overflow(&mut self, transition: &Transition) {
        self.time_wait = Some(TimeWait {
            began: transition.event.time,
            phase: Phase::new(0, Bound::Exact),
            restarts: 0,
            end: TimeWaitEnd::Reason(Reason::Overflow),
            known_by: transition.known_by.unwrap_or(KnownBy::Inferred),
        });
        self.how = match transition.event.refused {
            Some(TcpState::TimeWait) => How::Fin,
            _ => How::Unknown,
        };
    }

    /// The full socket closed, and no minisocket took over.
    fn end(&mut self, event: &TransitionEvent) {
        self.how = How::of_end(event);
        if let Some(closed_first) = ClosedFirst::of_end(event) {
            self.closed_first = closed_first;
        }
    }
}

impl How {
    /// How a full socket ended that no minisocket takes over from.
    pub(crate) fn of_end(event: &TransitionEvent) -> Self {
        use TcpState::{CloseWait, Established, LastAck, SynRecv, SynSent};
        let Some(error) = event.error else {
            return match event.old {
                _ if !event.error_known => Self::Unknown,
                SynSent => Self::Aborted,
                LastAck => Self::Fin,
                Established | SynRecv | CloseWait => Self::RstSent,
                _ => Self::Unknown,
            };
        };
        match (error, event.old) {
            (libc::ECONNABORTED, _) => Self::Destroyed,
            (libc::ECONNREFUSED | libc::ECONNRESET | libc::EPIPE, SynSent)
            | (libc::ECONNREFUSED, SynRecv) => Self::Refused,
            (libc::ECONNRESET | libc::EPIPE, _) => Self::RstReceived,
            (libc::ETIMEDOUT, _) => Self::Timeout,
            _ if is_of_icmp(error) => Self::Unreachable,
            _ => Self::Unknown,
        }
    }
}

/// Whether this is what an ICMP message makes of a connection (`icmp_err_convert` in `net/ipv4/icmp.c`, `icmpv6_err_convert`), or
/// the routes of this host.
const fn is_of_icmp(error: i32) -> bool {
    matches!(
        error,
        libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::ECONNREFUSED
            | libc::EACCES
            | libc::EHOSTDOWN
            | libc::EMSGSIZE
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EPROTO
    )
}

impl ClosedFirst {
    /// Who closed first, if a full socket ends that nobody had closed before.
    pub(super) fn of_end(event: &TransitionEvent) -> Option<Self> {
        use TcpState::{Established, SynRecv, SynSent};
        let open = matches!(event.old, Established | SynRecv);
        match (How::of_end(event), open) {
            (How::RstSent, true) => Some(Self::Local),
            (How::RstReceived, true) => Some(Self::Remote),
            (How::Timeout | How::Destroyed | How::Unreachable, true) => Some(Self::None),
            _ if event.old == SynSent => Some(Self::None),
            _ => None,
        }
    }
}
