//! Sockets that stay where they should only pass: CLOSE_WAIT (the application does not close), FIN_WAIT2 (the peer does not),
//! SYN_SENT (nobody answers), FIN_WAIT1, CLOSING and LAST_ACK (our FIN is not acknowledged).

use std::sync::Arc;

use indexmap::IndexMap;
use tcpstate_common::state::TcpState;

use super::{
    By, Opened,
    key::{Dimension, Subject},
    listeners::Listeners,
    memory::Memory,
    report::Tally,
    table::{Cell, Column, Grouped, Order, Shown, Sum, Table},
};
use crate::{
    event::Process,
    lifecycle::{Bound, Found, Phase, Transition},
};

/// The states that are looked at.
const LOOKED_AT: [TcpState; 6] = [
    TcpState::CloseWait,
    TcpState::FinWait2,
    TcpState::SynSent,
    TcpState::LastAck,
    TcpState::FinWait1,
    TcpState::Closing,
];

/// What to show.
#[derive(Clone, Debug)]
pub struct LeaksOptions {
    /// What to tell apart; every socket if `None`.
    pub by: Option<By>,
    /// Order of the rows.
    pub order: Order,
    /// Which states to look at; nothing for all.
    pub states: Vec<TcpState>,
    /// Only sockets that are in their state at least so long (nanoseconds).
    pub older: u64,
    /// How many sockets to remember.
    pub limit: usize,
}

/// Lists sockets that stay.
#[derive(Debug)]
pub struct Leaks {
    options: LeaksOptions,
    columns: Vec<Column>,
    open: Memory<Stay>,
    /// Who opened connections, if that is to be told.
    opened: Memory<Opened>,
    listeners: Listeners,
    seeded: bool,
    /// When something was lost last.
    lost: Option<u64>,
}

/// A socket in such a state.
#[derive(Clone, Debug)]
struct Stay {
    since: u64,
    bound: Bound,
    heard: u64,
    subject: Subject,
    process: Option<Process>,
    cgroup: Option<Arc<str>>,
}

/// Sockets of one row.
#[derive(Clone, Debug, Default)]
struct Old {
    sockets: u64,
    oldest: Option<Phase>,
}

const KEY: [Column; 5] = [
    Column::key("pid", "PID"),
    Column::key("comm", "COMM"),
    Column::key("state", "STATE"),
    Column::key("local", "LOCAL"),
    Column::key("remote", "REMOTE"),
];
const COLUMNS: [Column; 3] = [
    Column::number("sockets", "SOCKETS"),
    Column::number("age", "AGE(s)"),
    Column::number("bound", "BOUND").shown(Shown::Machine),
];

impl Leaks {
    /// What it can tell apart.
    pub const DIMENSIONS: [Dimension; 11] = Dimension::ALL;

    /// What to sort by if nothing else is asked for.
    pub const SORT: &'static str = "age";

    /// The columns; those of the key are of no group, but of a socket, if nothing is to be told apart.
    #[must_use]
    pub fn columns(by: Option<&By>) -> Vec<Column> {
        let mut columns = by.map_or_else(|| KEY.to_vec(), By::columns);
        columns.extend(COLUMNS);
        columns
    }

    /// Whether sockets in this state are looked at.
    #[must_use]
    pub fn looks_at(state: TcpState) -> bool {
        LOOKED_AT.contains(&state)
    }

    /// Looks for these.
    #[must_use]
    pub fn new(options: LeaksOptions) -> Self {
        Self {
            columns: Self::columns(options.by.as_ref()),
            open: Memory::new(options.limit),
            opened: Memory::new(options.limit),
            listeners: Listeners::default(),
            seeded: false,
            lost: None,
            options,
        }
    }

    /// Looks for sockets that are in their state at least so long (nanoseconds) from now on.
    pub const fn look_for(&mut self, older: u64) {
        self.options.older = older;
    }

    fn is_looked_at(&self, state: TcpState) -> bool {
        let states = &self.options.states;
        Self::looks_at(state) && (states.is_empty() || states.contains(&state))
    }

    fn needs_opened(&self) -> bool {
        self.options.by.as_ref().is_some_and(By::needs_opened)
    }

    /// The age of a socket, as far as it is known.
    fn age(&self, stay: &Stay, now: u64) -> Phase {
        let unseen = self.lost.is_some_and(|lost| stay.heard <= lost);
        let bound = match (unseen, stay.bound) {
            // It may have left the state and come back.
            (true, Bound::Exact) => Bound::AtMost,
            (true, Bound::AtLeast) => Bound::Unknown,
            (_, bound) => bound,
        };
        Phase::between(stay.since, now, bound)
    }

    fn key(&mut self, id: u64, stay: &Stay) -> Vec<Cell> {
        let subject = &stay.subject;
        if let Some(by) = &self.options.by {
            let opened = self.opened.get(id).copied().unwrap_or(Opened::Unknown);
            let key = by.key_of(subject, opened, stay.process.as_ref());
            return by.label(&key, stay.cgroup.as_ref());
        }
        let process = stay.process;
        vec![
            Cell::known(process, |process| Cell::Id(process.pid.into())),
            Cell::known(process, |process| Cell::Comm(process.comm)),
            Cell::Term {
                label: subject.state.label(),
                name: subject.state.name(),
            },
            Cell::Endpoint(subject.local),
            Cell::Endpoint(subject.remote),
        ]
    }
}

impl Tally for Leaks {
    fn name(&self) -> &'static str {
        "leaks"
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        let event = &transition.event;
        self.listeners.take(transition);
        // A minisocket is the kernel's, which ends it in time: nothing of it is kept.
        let id = self.open.key(transition);
        let before = self.open.remove(id);
        let opened = self.opened.key(transition);
        if event.new == TcpState::Close || transition.minisocket {
            self.opened.remove(opened);
            return;
        }
        if self.needs_opened() && !event.is_listener() {
            if event.is_birth() {
                self.opened.insert(id, Opened::of_birth(event));
            } else if (event.old, event.new) == (TcpState::SynSent, TcpState::SynRecv) {
                self.opened.insert(id, Opened::Simultaneous);
            }
        }
        if !self.is_looked_at(event.new) {
            return;
        }
        let goes_on = before.as_ref().filter(|_| event.old == event.new);
        if !wanted && goes_on.is_none() {
            return;
        }
        let (since, bound) = match goes_on {
            Some(before) => (before.since, before.bound),
            None if event.old == event.new => transition
                .phase
                .began(event.time)
                .unwrap_or((event.time, Bound::AtLeast)),
            None => (event.time, Bound::Exact),
        };
        self.open.insert(
            id,
            Stay {
                since,
                bound,
                heard: event.time,
                subject: Subject::of(transition),
                process: transition.process,
                cgroup: transition.cgroup.clone(),
            },
        );
    }

    fn found(&mut self, found: &Found, wanted: bool) {
        let opened = self.listeners.opened(found);
        if self.needs_opened() && found.state != TcpState::Listen && !found.minisocket {
            self.opened.insert(found.connection, opened);
        }
        if !wanted || found.minisocket || !self.is_looked_at(found.state) {
            return;
        }
        self.open.insert(
            found.connection,
            Stay {
                since: found.since,
                bound: Bound::AtLeast,
                heard: found.time,
                subject: Subject::of_found(found),
                process: found.process,
                cgroup: found.cgroup.clone(),
            },
        );
    }

    fn accepted(&mut self, connection: u64, process: Process) {
        if let Some(stay) = self.open.get(connection) {
            stay.process = Some(process);
        }
    }

    fn all_found(&mut self) {
        self.seeded = true;
    }

    fn lost(&mut self, at: u64) {
        self.lost = Some(at);
    }

    fn table(&mut self, _: u64, to: u64) -> Table {
        let stays: Vec<_> = self
            .open
            .iter()
            .map(|(id, stay)| (id, stay.clone(), self.age(stay, to)))
            .collect();
        let (mut young, mut of_loss) = (0, 0);
        let mut groups: IndexMap<Vec<Cell>, Old> = IndexMap::default();
        for (id, stay, age) in stays {
            let old = age
                .nanoseconds()
                .is_none_or(|nanoseconds| nanoseconds >= self.options.older);
            if !old {
                young += u64::from(age.bound() == Bound::AtLeast);
                continue;
            }
            of_loss += u64::from(matches!(age.bound(), Bound::AtMost | Bound::Unknown));
            let one = Old {
                sockets: 1,
                oldest: Some(age),
            };
            groups.entry(self.key(id, &stay)).or_default().add(&one);
        }
        let keys = self.columns.len() - COLUMNS.len();
        let grouped = Grouped {
            keys,
            groups: groups.into_iter().collect(),
            beyond: None,
        };
        let rows = self
            .options
            .order
            .rows(&self.columns, &[], grouped, Old::cells);
        let mut notes = Vec::new();
        if !self.seeded {
            notes.push("without the sockets that were there at the start".to_owned());
        }
        if young > 0 {
            let were = if young == 1 { "was" } else { "were" };
            notes.push(format!(
                "{young} more {were} there at the start and may be as old: --older 0 lists them"
            ));
        }
        if of_loss > 0 {
            notes.push(format!(
                "{of_loss} not heard of since something was lost: perhaps gone"
            ));
        }
        Table {
            columns: self.columns.clone(),
            rows,
            notes,
            more: Vec::new(),
        }
    }

    fn forgotten(&self) -> u64 {
        self.open.forgotten() + self.opened.forgotten()
    }
}

impl Old {
    fn cells(&self) -> Vec<Cell> {
        let bound = self.oldest.map(Phase::bound);
        vec![
            Cell::Count(self.sockets),
            self.oldest.map_or(Cell::Blank, Cell::Age),
            bound.map_or(Cell::Blank, |bound| Cell::Word(bound.label())),
        ]
    }
}

impl Sum for Old {
    fn add(&mut self, other: &Self) {
        self.sockets += other.sockets;
        let age = |old: &Self| old.oldest.and_then(Phase::nanoseconds);
        if self.oldest.is_none() || age(other) > age(self) {
            self.oldest = other.oldest;
        }
    }
}
