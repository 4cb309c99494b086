//! How connections begin and end, by process, service and peer; and bind() that failed, with what was in its way.

use std::net::IpAddr;

use rustc_hash::FxHashMap;
use tcpstate_common::state::TcpState;

use super::finding::Process;
use crate::{
    analysis::{
        By, Cell, Column, Dimension, Groups, How, Interval, Memory, Opened, Order, Place, Subject,
        Sum, Table, Tally,
    },
    event::{self, CallEvent, CallStep},
    lifecycle::{Found, Transition},
};

/// Counts how connections begin and end.
#[derive(Debug)]
pub(super) struct Ends {
    by: By,
    columns: Vec<Column>,
    groups: Groups<Counts>,
    open: Memory<Life>,
    /// What holds each local port, by namespace.
    holders: FxHashMap<(u64, u16), Holders>,
    binds: FxHashMap<BindKey, FailedBind>,
    /// What could not be counted, since there was too much of it.
    beyond: u64,
    /// Nanoseconds: see [`super::thresholds::SHORT_LIFE`].
    short: u64,
}

/// What is remembered of a connection.
#[derive(Clone, Copy, Debug)]
struct Life {
    opened: Opened,
    wanted: bool,
    process: Option<event::Process>,
    /// Since when it is open, if that was seen and it is.
    established: Option<u64>,
    at: (u64, u16),
    minisocket: bool,
}

/// Sockets at one local port.
#[derive(Clone, Copy, Debug, Default)]
struct Holders {
    sockets: u64,
    minisockets: u64,
    listeners: u64,
    /// Of one of the listeners.
    listener: Option<event::Process>,
}

/// Whose bind() failed, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BindKey {
    pid: u32,
    namespace: u64,
    at: Option<(IpAddr, u16)>,
}

/// bind() of one process that found an address in use.
#[derive(Clone, Debug)]
pub struct FailedBind {
    /// Whose.
    pub process: Process,
    /// Network namespace: inode number.
    pub netns: Option<u32>,
    /// The address; `None` if it could not be read. Port 0: any port of it.
    pub at: Option<(IpAddr, u16)>,
    /// How often.
    pub failed: u64,
    /// When it happened last, minisockets in TIME_WAIT or FIN_WAIT2 that had this local port.
    pub minisockets: u64,
    /// Then, other sockets that had it and do not listen.
    pub sockets: u64,
    /// Then, listeners.
    pub listeners: u64,
    /// The process of a listener.
    pub listener: Option<Process>,
    /// At the end, this process listens at that port after all.
    pub listens: bool,
    /// Network namespace: cookie, or inode number.
    pub namespace: u64,
}

/// Connections of one group.
#[derive(Clone, Debug, Default)]
struct Counts([u64; COUNTED.len()]);

const COUNTED: [&str; 14] = [
    "attempts",
    "established",
    "refused",
    "unreachable",
    "connect_timeout",
    "given_up",
    "timeout",
    "rst_received",
    "rst_received_idle",
    "rst_sent",
    "rst_sent_idle",
    "lives",
    "short_lives",
    "ended",
];
const ATTEMPTS: usize = 0;
const ESTABLISHED: usize = 1;
const REFUSED: usize = 2;
const UNREACHABLE: usize = 3;
const CONNECT_TIMEOUT: usize = 4;
const GIVEN_UP: usize = 5;
const TIMEOUT: usize = 6;
const RST_RECEIVED: usize = 7;
const RST_RECEIVED_IDLE: usize = 8;
const RST_SENT: usize = 9;
const RST_SENT_IDLE: usize = 10;
const LIVES: usize = 11;
const SHORT_LIVES: usize = 12;
const ENDED: usize = 13;

/// More than anybody tells apart.
const GROUPS: usize = 65_536;
/// More ports than a few namespaces have.
const PORTS: usize = 1 << 20;
/// Whose bind() fails at more addresses than that scans.
const BINDS: usize = 4096;

impl Ends {
    /// Remembers at most so many connections; a life is short below so many nanoseconds.
    pub(super) fn new(short: u64, limit: usize) -> Self {
        let by = By::new(
            &[
                Dimension::Pid,
                Dimension::Container,
                Dimension::Netns,
                Dimension::Service,
                Dimension::Remote,
            ],
            (24, 64),
        );
        let mut columns = by.columns();
        columns.extend(COUNTED.map(|name| Column::number(name, "")));
        Self {
            by,
            columns,
            groups: Groups::new(GROUPS),
            open: Memory::new(limit),
            holders: FxHashMap::default(),
            binds: FxHashMap::default(),
            beyond: 0,
            short,
        }
    }

    /// What could not be counted.
    pub(super) const fn beyond(&self) -> u64 {
        self.beyond
    }

    /// bind() that failed, most often first.
    pub(super) fn binds(&self) -> Vec<FailedBind> {
        let mut binds: Vec<_> = self.binds.values().cloned().collect();
        for bind in &mut binds {
            let holders = bind
                .at
                .and_then(|(_, port)| self.holders.get(&(bind.namespace, port)));
            bind.listens = holders
                .and_then(|holders| holders.listener)
                .is_some_and(|listener| Some(listener.pid) == bind.process.pid);
        }
        binds.sort_by_key(|bind| (std::cmp::Reverse(bind.failed), bind.process.pid, bind.at));
        binds
    }

    fn count(&mut self, transition: &Transition, life: &Life, what: usize) {
        if !life.wanted {
            return;
        }
        let process = transition.process.or(life.process);
        let key = self.by.key(transition, life.opened, process.as_ref());
        let place: Place = self.groups.place(key, transition.cgroup.as_ref());
        if let Some(count) = self.groups.sum(place).0.get_mut(what) {
            *count += 1;
        }
    }

    /// A listener comes or goes.
    fn listener(&mut self, subject: &Subject, process: Option<event::Process>, comes: bool) {
        let key = (subject.namespace(), subject.local.port);
        if comes {
            if let Some(holders) = self.at(key) {
                holders.listeners += 1;
                holders.listener = process.or(holders.listener);
            }
        } else if let Some(holders) = self.holders.get_mut(&key) {
            holders.listeners = holders.listeners.saturating_sub(1);
            if holders.listeners == 0 {
                holders.listener = None;
            }
            self.tidy(key);
        }
    }

    fn at(&mut self, key: (u64, u16)) -> Option<&mut Holders> {
        if self.holders.len() >= PORTS && !self.holders.contains_key(&key) {
            self.beyond += 1;
            return None;
        }
        Some(self.holders.entry(key).or_default())
    }

    fn tidy(&mut self, key: (u64, u16)) {
        let empty =
            |holders: &Holders| holders.sockets + holders.minisockets + holders.listeners == 0;
        if self.holders.get(&key).is_some_and(empty) {
            self.holders.remove(&key);
        }
    }

    fn hold(&mut self, life: &Life) {
        if life.at.1 != 0
            && let Some(holders) = self.at(life.at)
        {
            let count = if life.minisocket {
                &mut holders.minisockets
            } else {
                &mut holders.sockets
            };
            *count += 1;
        }
    }

    fn release(&mut self, life: &Life) {
        if let Some(holders) = self.holders.get_mut(&life.at) {
            let count = if life.minisocket {
                &mut holders.minisockets
            } else {
                &mut holders.sockets
            };
            *count = count.saturating_sub(1);
            self.tidy(life.at);
        }
    }

    fn keep(&mut self, id: u64, life: Life) {
        self.hold(&life);
        if let Some(gone) = self.open.insert(id, life) {
            self.release(&gone);
        }
    }

    /// What a transition of a full socket means.
    fn follow(&mut self, transition: &Transition, life: &mut Life) {
        use TcpState::{Close, CloseWait, Established, FinWait1, SynSent};
        let event = &transition.event;
        match (event.old, event.new) {
            (Close, SynSent) => self.count(transition, life, ATTEMPTS),
            (_, Established) => {
                life.established = Some(event.time);
                self.count(transition, life, ESTABLISHED);
            }
            (_, FinWait1 | CloseWait | Close) => {
                if let Some(since) = life.established.take() {
                    self.count(transition, life, LIVES);
                    if event.time.saturating_sub(since) < self.short {
                        self.count(transition, life, SHORT_LIVES);
                    }
                }
            }
            _ => {}
        }
        if event.new == Close && transition.reason.is_none() {
            self.end(transition, life);
        }
    }

    fn end(&mut self, transition: &Transition, life: &Life) {
        use TcpState::{CloseWait, Established, FinWait1, SynSent};
        let event = &transition.event;
        self.count(transition, life, ENDED);
        // SYN and FIN count as a byte each.
        let idle = event
            .totals
            .is_some_and(|totals| totals.bytes_acked <= 2 && totals.bytes_received <= 2);
        let or_idle = |what: usize, of_idle: usize| if idle { of_idle } else { what };
        let open = matches!(event.old, Established | CloseWait | FinWait1);
        let what = match (How::of_end(event), event.old == SynSent) {
            (How::Refused, _) => REFUSED,
            (How::Unreachable, true) => UNREACHABLE,
            (How::Timeout, true) => CONNECT_TIMEOUT,
            // connect() that found no port is another matter.
            (How::Aborted, true) if event.local.port != 0 => GIVEN_UP,
            (How::Timeout | How::Unreachable, false) => TIMEOUT,
            (How::RstReceived, false) if open => or_idle(RST_RECEIVED, RST_RECEIVED_IDLE),
            (How::RstSent, false) if open => or_idle(RST_SENT, RST_SENT_IDLE),
            _ => return,
        };
        self.count(transition, life, what);
    }
}

impl Tally for Ends {
    fn name(&self) -> &'static str {
        "ends"
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        use TcpState::{Close, Listen};
        let event = &transition.event;
        let subject = Subject::of(transition);
        if event.is_listener() {
            if wanted {
                self.listener(&subject, transition.process, event.new == Listen);
            }
            return;
        }
        if (event.old, event.new) == (Close, Close) {
            return;
        }
        let known = self.open.remove(transition.connection);
        if let Some(known) = &known {
            self.release(known);
        }
        let known = known.filter(|_| !event.is_birth());
        let mut life = known.unwrap_or(Life {
            opened: Opened::of_birth(event),
            wanted,
            process: None,
            established: None,
            at: (subject.namespace(), 0),
            minisocket: transition.minisocket,
        });
        life.wanted |= wanted;
        life.process = transition.process.or(life.process);
        life.at.1 = subject.local.port;
        life.minisocket = transition.minisocket;
        if !transition.minisocket {
            self.follow(transition, &mut life);
        }
        if event.new != Close {
            self.keep(transition.connection, life);
        }
    }

    fn found(&mut self, found: &Found, wanted: bool) {
        let subject = Subject::of_found(found);
        if found.state == TcpState::Listen {
            self.listener(&subject, found.process, true);
            return;
        }
        let life = Life {
            opened: Opened::Unknown,
            wanted,
            process: found.process,
            established: None,
            at: (subject.namespace(), subject.local.port),
            minisocket: found.minisocket,
        };
        self.keep(found.connection, life);
    }

    fn accepted(&mut self, connection: u64, process: event::Process) {
        if let Some(life) = self.open.get(connection) {
            life.process = Some(process);
        }
    }

    fn bind_failed(&mut self, event: &CallEvent) {
        let CallStep::BindFailed(asked) = event.step else {
            return;
        };
        let namespace = event
            .netns_cookie
            .or(event.netns.map(u64::from))
            .unwrap_or_default();
        let at = asked.map(|asked| (asked.addr, asked.port));
        let key = BindKey {
            pid: event.process.pid,
            namespace,
            at,
        };
        if self.binds.len() >= BINDS && !self.binds.contains_key(&key) {
            self.beyond += 1;
            return;
        }
        let holders = at
            .filter(|(_, port)| *port != 0)
            .and_then(|(_, port)| self.holders.get(&(namespace, port)).copied())
            .unwrap_or_default();
        let process = |process: event::Process| Process {
            pid: Some(process.pid),
            comm: Some(process.comm),
        };
        let bind = self.binds.entry(key).or_insert_with(|| FailedBind {
            process: process(event.process),
            netns: event.netns,
            at,
            failed: 0,
            minisockets: 0,
            sockets: 0,
            listeners: 0,
            listener: None,
            listens: false,
            namespace,
        });
        bind.failed += 1;
        bind.minisockets = holders.minisockets;
        bind.sockets = holders.sockets;
        bind.listeners = holders.listeners;
        bind.listener = holders.listener.map(process);
    }

    fn table(&mut self, _: u64, _: u64) -> Table {
        let order = Order {
            column: "ended",
            top: usize::MAX,
        };
        let groups = self.groups.end(&self.by);
        let rows = order.rows(&self.columns, &[], groups, |counts: &Counts| {
            counts.0.map(Cell::Count).to_vec()
        });
        Table {
            columns: self.columns.clone(),
            rows,
            notes: Vec::new(),
            more: Vec::new(),
        }
    }

    fn forgotten(&self) -> u64 {
        self.open.forgotten()
    }
}

impl Sum for Counts {
    fn add(&mut self, other: &Self) {
        for (one, other) in self.0.iter_mut().zip(other.0) {
            *one += other;
        }
    }
}

impl Interval for Counts {
    fn end(&mut self) -> Option<Self> {
        let ended = std::mem::take(self);
        ended.0.iter().any(|count| *count > 0).then_some(ended)
    }
}

#[cfg(test)]
impl FailedBind {
    /// A failure at this port, to make others of.
    #[must_use]
    pub fn at(port: u16) -> Self {
        Self {
            process: Process::default(),
            netns: None,
            at: Some((std::net::Ipv4Addr::LOCALHOST.into(), port)),
            failed: 1,
            minisockets: 0,
            sockets: 0,
            listeners: 0,
            listener: None,
            listens: false,
            namespace: 0,
        }
    }
}
