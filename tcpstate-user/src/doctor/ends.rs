//! How connections begin and end, by process, service and peer.

use tcpstate_common::state::TcpState;

use super::binds::{At, Binds, FailedBind};
use crate::{
    analysis::{
        By, Cell, Column, Dimension, Groups, How, Interval, Listeners, Memory, Opened, Order,
        Place, Subject, Sum, Table, Tally, key_of_found,
    },
    event::{self, CallEvent},
    lifecycle::{Found, Reason, Transition},
};

/// Counts how connections begin and end.
#[derive(Debug)]
pub(super) struct Ends {
    by: By,
    columns: Vec<Column>,
    groups: Groups<Counts>,
    open: Memory<Life>,
    /// Ports of listeners: they tell who opened what was there before.
    listeners: Listeners,
    binds: Binds,
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
    at: At,
    minisocket: bool,
}

/// Connections of one group.
#[derive(Clone, Debug, Default)]
struct Counts([u64; COUNTED.len()]);

const COUNTED: [&str; 17] = [
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
    "wait_rst",
    "wait_restarted",
    "wait_syn",
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
const WAIT_RST: usize = 14;
const WAIT_RESTARTED: usize = 15;
const WAIT_SYN: usize = 16;

/// More than anybody tells apart.
const GROUPS: usize = 65_536;
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
            listeners: Listeners::default(),
            binds: Binds::default(),
            short,
        }
    }

    /// What could not be counted.
    pub(super) const fn beyond(&self) -> u64 {
        self.binds.beyond()
    }

    /// bind() that failed, most often first.
    pub(super) fn binds(&self) -> Vec<FailedBind> {
        self.binds.failed()
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

    fn keep(&mut self, id: u64, life: Life) {
        self.binds.hold(life.at, life.minisocket);
        if let Some(gone) = self.open.insert(id, life) {
            self.binds.release(gone.at, gone.minisocket);
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

    /// What a transition of a minisocket in TIME_WAIT means.
    fn wait(&mut self, transition: &Transition, life: &Life) {
        if transition.event.old != TcpState::TimeWait {
            return;
        }
        match transition.reason {
            Some(Reason::Rst) => self.count(transition, life, WAIT_RST),
            Some(Reason::Restarted) => self.count(transition, life, WAIT_RESTARTED),
            Some(Reason::ReusedSyn) => self.count(transition, life, WAIT_SYN),
            _ => {}
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
        self.listeners.take(transition);
        self.binds.name(event.cgroup, transition.cgroup.as_ref());
        if event.is_listener() {
            let id = transition.connection;
            match event.new {
                _ if !wanted => {}
                Listen => self
                    .binds
                    .listens(id, &subject, transition.process, Some(event.time)),
                _ => self.binds.leaves(id, &subject),
            }
            return;
        }
        if (event.old, event.new) == (Close, Close) {
            return;
        }
        let id = self.open.key(transition);
        let known = self.open.remove(id);
        if let Some(known) = &known {
            self.binds.release(known.at, known.minisocket);
        }
        let known = known.filter(|_| !event.is_birth());
        let mut life = known.unwrap_or(Life {
            opened: if event.is_birth() {
                Opened::of_birth(event)
            } else {
                self.listeners.opened_of(&subject)
            },
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
        if transition.minisocket {
            self.wait(transition, &life);
        } else {
            self.follow(transition, &mut life);
        }
        if event.new != Close {
            self.keep(id, life);
        }
    }

    fn found(&mut self, found: &Found, wanted: bool) {
        let subject = Subject::of_found(found);
        let opened = self.listeners.opened(found);
        self.binds.name(found.cgroup_id, found.cgroup.as_ref());
        if found.state == TcpState::Listen {
            let id = found.connection;
            self.binds.listens(id, &subject, found.process, None);
            return;
        }
        let life = Life {
            opened,
            wanted,
            process: found.process,
            established: None,
            at: (subject.namespace(), subject.local.port),
            minisocket: found.minisocket,
        };
        self.keep(key_of_found(found), life);
    }

    fn all_found(&mut self) {
        self.listeners.all_found();
    }

    fn accepted(&mut self, connection: u64, process: event::Process) {
        if let Some(life) = self.open.get(connection) {
            life.process = Some(process);
        }
    }

    fn bind_failed(&mut self, event: &CallEvent) {
        self.binds.fail(event);
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
