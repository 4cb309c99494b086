//! How many sockets are in each state now: counters kept by events, seeded with the sockets that were there before.

use tcpstate_common::state::TcpState;

use super::{
    By, Opened,
    group::{Groups, Interval, Place},
    key::{Dimension, Subject},
    listeners::Listeners,
    memory::{Memory, key_of_found},
    report::Tally,
    table::{Cell, Column, Order, Shown, Sum, Table},
};
use crate::{
    event::{About, Process, Via},
    lifecycle::{Found, Transition},
    prefetch::Prefetch,
};

/// The states that are counted, in the order of a life.
const COUNTED: [TcpState; 10] = [
    TcpState::Listen,
    TcpState::SynSent,
    TcpState::SynRecv,
    TcpState::Established,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::Closing,
    TcpState::TimeWait,
    TcpState::CloseWait,
    TcpState::LastAck,
];

/// What to show.
#[derive(Clone, Debug)]
pub struct StatesOptions {
    /// What to tell apart.
    pub by: By,
    /// Order of the groups.
    pub order: Order,
    /// Which states to count; nothing for all.
    pub states: Vec<TcpState>,
    /// Whether minisockets are observed: else how many are in TIME_WAIT is not known.
    pub timewait: bool,
    /// How many sockets to remember.
    pub limit: usize,
}

/// Counts sockets by state.
#[derive(Debug)]
pub struct States {
    options: StatesOptions,
    columns: Vec<Column>,
    groups: Groups<Sockets>,
    open: Memory<Life>,
    listeners: Listeners,
    /// The sockets that were there before are among them.
    seeded: bool,
    /// Something was lost, so that the counts are no longer exact.
    lost: bool,
}

/// What is remembered of one socket.
#[derive(Clone, Copy, Debug)]
struct Life {
    /// Where it is counted, if it is.
    place: Option<Place>,
    state: TcpState,
    minisocket: bool,
    opened: Opened,
    wanted: bool,
    process: Option<Process>,
}

/// Sockets of one group, now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sockets {
    states: [u64; COUNTED.len()],
    /// Minisockets in FIN_WAIT2, as far as we heard: also counted in `states`.
    waiting: u64,
}

const ALL: Column = Column::number("sockets", "ALL");
/// In the order of [`COUNTED`].
const STATES: [Column; COUNTED.len()] = [
    Column::number("listen", "LISTEN"),
    Column::number("syn_sent", "SYN_S"),
    Column::number("syn_recv", "SYN_R").shown(Shown::Wide),
    Column::number("established", "ESTAB"),
    Column::number("fin_wait1", "FIN_W1"),
    Column::number("fin_wait2", "FIN_W2"),
    Column::number("closing", "CLOSNG").shown(Shown::Wide),
    Column::number("time_wait", "TIME_W"),
    Column::number("close_wait", "CLOSEW"),
    Column::number("last_ack", "LAST_A"),
];
const LAST: [Column; 2] = [
    Column::number("fin_wait2_minisockets", "MINI").shown(Shown::Wide),
    Column::number("counts", "COUNTS").shown(Shown::Machine),
];

impl States {
    /// What it can tell apart.
    pub const DIMENSIONS: [Dimension; 11] = Dimension::ALL;

    /// What to sort by if nothing else is asked for.
    pub const SORT: &'static str = "sockets";

    /// Columns besides those of the key: one for each state, unless states are told apart by rows.
    #[must_use]
    pub fn columns(by: &By, states: &[TcpState]) -> Vec<Column> {
        let mut columns = vec![ALL];
        if !by.has(Dimension::State) {
            let shown = COUNTED.iter().zip(STATES);
            let wanted = shown.filter(|(state, _)| states.is_empty() || states.contains(state));
            columns.extend(wanted.map(|(_, column)| column));
        }
        columns.extend(LAST);
        columns
    }

    /// Whether there may be sockets in this state.
    #[must_use]
    pub fn counts(state: TcpState) -> bool {
        COUNTED.contains(&state)
    }

    /// Counts these.
    #[must_use]
    pub fn new(options: StatesOptions) -> Self {
        /// More groups than anybody reads; a flood from many addresses does not fill the memory.
        const GROUPS: usize = 65_536;
        let mut columns = options.by.columns();
        columns.extend(Self::columns(&options.by, &options.states));
        Self {
            columns,
            groups: Groups::new(GROUPS),
            open: Memory::new(options.limit),
            listeners: Listeners::default(),
            seeded: false,
            lost: false,
            options,
        }
    }

    /// A socket is in this state now.
    fn enter(
        &mut self,
        id: u64,
        mut life: Life,
        subject: &Subject,
        cgroup: Option<&std::sync::Arc<str>>,
    ) {
        let states = &self.options.states;
        let counted = COUNTED.contains(&subject.state)
            && (states.is_empty() || states.contains(&subject.state));
        life.state = subject.state;
        life.place = None;
        if life.wanted && counted {
            let key = self
                .options
                .by
                .key_of(subject, life.opened, life.process.as_ref());
            life.place = Some(self.groups.place(key, cgroup));
            self.count(&life);
        }
        let gone = self.open.replace(id, life);
        self.leave(gone);
    }

    fn count(&mut self, life: &Life) {
        if let Some(place) = life.place {
            self.groups.hold(place);
            self.groups.sum(place).add_one(life);
        }
    }

    /// A socket is no longer where it was counted.
    fn leave(&mut self, life: Option<Life>) {
        if let Some(life) = life
            && let Some(place) = life.place
        {
            self.groups.sum(place).remove_one(&life);
            self.groups.release(place);
        }
    }

    fn cells(&self, sockets: &Sockets) -> Vec<Cell> {
        let options = &self.options;
        let mut cells = vec![Cell::Count(sockets.states.iter().sum())];
        if !options.by.has(Dimension::State) {
            for (state, count) in COUNTED.iter().zip(sockets.states) {
                if !options.states.is_empty() && !options.states.contains(state) {
                    continue;
                }
                cells.push(match state {
                    TcpState::TimeWait if !options.timewait => Cell::Unknown,
                    TcpState::TimeWait if sockets.waiting > 0 => Cell::AtLeast(count),
                    _ => Cell::Count(count),
                });
            }
        }
        cells.push(if options.timewait {
            Cell::Count(sockets.waiting)
        } else {
            Cell::Unknown
        });
        let exact = self.seeded && !self.lost;
        cells.push(Cell::Word(if exact { "exact" } else { "about" }));
        cells
    }
}

impl Tally for States {
    fn name(&self) -> &'static str {
        "states"
    }

    fn prefetch(&self, about: About, what: Prefetch) {
        self.open.prefetch(about, what);
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        let event = &transition.event;
        self.listeners.take(transition);
        let id = self.open.key(transition);
        let before = self.open.get(id).copied();
        self.leave(before);
        if event.new == TcpState::Close {
            self.open.remove(id);
            return;
        }
        let mut life = before.filter(|_| !event.is_birth()).unwrap_or(Life {
            place: None,
            state: event.new,
            minisocket: false,
            opened: Opened::Unknown,
            wanted: false,
            process: None,
        });
        if event.is_listener() {
            life.opened = Opened::Passive;
        } else if event.is_birth() {
            life.opened = Opened::of_birth(event);
        } else if (event.old, event.new) == (TcpState::SynSent, TcpState::SynRecv) {
            life.opened = Opened::Simultaneous;
        }
        life.wanted |= wanted;
        life.minisocket = transition.minisocket;
        life.process = owner(life.process, transition.process);
        let subject = Subject::of(transition);
        self.enter(id, life, &subject, transition.cgroup.as_ref());
    }

    fn found(&mut self, found: &Found, wanted: bool) {
        let opened = self.listeners.opened(found);
        // What nobody would tell the end of is not counted.
        if found.minisocket && !self.options.timewait {
            return;
        }
        let life = Life {
            place: None,
            state: found.state,
            minisocket: found.minisocket,
            opened,
            wanted,
            process: found.process,
        };
        let id = key_of_found(found);
        let before = self.open.remove(id);
        self.leave(before);
        let subject = Subject::of_found(found);
        self.enter(id, life, &subject, found.cgroup.as_ref());
    }

    fn accepted(&mut self, connection: u64, process: Process) {
        let Some(mut life) = self.open.remove(connection) else {
            return;
        };
        life.process = Some(process);
        if let Some(place) = life.place {
            self.leave(Some(life));
            // Those that were too many to tell apart stay together.
            if let Some(key) = self.groups.key(place) {
                let key = self.options.by.held_by(key, &process);
                life.place = Some(self.groups.place(key, None));
            }
            self.count(&life);
        }
        self.open.insert(connection, life);
    }

    fn all_found(&mut self) {
        self.seeded = true;
    }

    fn lost(&mut self, _: u64) {
        self.lost = true;
    }

    fn table(&mut self, _: u64, _: u64) -> Table {
        let groups = self.groups.end(&self.options.by);
        let beyond = groups.beyond.as_ref().map_or(0, Sockets::all);
        let all = groups.groups.iter().map(|(_, sum)| sum);
        let waiting: u64 = all.chain(&groups.beyond).map(|sum| sum.waiting).sum();
        let rows = self
            .options
            .order
            .rows(&self.columns, &[], groups, |sum| self.cells(sum));
        let mut notes = Vec::new();
        if !self.seeded {
            notes.push("about: without the sockets that were there at the start".to_owned());
        }
        if self.lost {
            notes.push(
                "about: something was lost; sockets of which it told are counted wrongly or not"
                    .to_owned(),
            );
        }
        if waiting > 0 {
            let s = if waiting == 1 { "" } else { "s" };
            notes.push(format!(
                "{waiting} minisocket{s} in FIN_WAIT2, or in TIME_WAIT unheard"
            ));
        }
        if beyond > 0 {
            notes.push(format!(
                "{beyond} in groups that were too many to tell apart"
            ));
        }
        if !self.options.timewait {
            notes.push("TIME_WAIT is not known: its life is not observed".to_owned());
        }
        Table {
            columns: self.columns.clone(),
            rows,
            notes,
            more: Vec::new(),
        }
    }

    fn forgotten(&self) -> u64 {
        self.open.forgotten()
    }
}

/// Whose a socket is: who closes it may be another one, if somebody is known to own it.
fn owner(before: Option<Process>, now: Option<Process>) -> Option<Process> {
    match (before, now) {
        (Some(before), Some(now)) if matches!(now.via, Via::Close | Via::Shutdown) => Some(before),
        (before, now) => now.or(before),
    }
}

impl Sockets {
    fn add_one(&mut self, life: &Life) {
        if let Some(count) = self.of(life.state) {
            *count += 1;
        }
        self.waiting += u64::from(life.waits());
    }

    fn remove_one(&mut self, life: &Life) {
        if let Some(count) = self.of(life.state) {
            *count = count.saturating_sub(1);
        }
        self.waiting = self.waiting.saturating_sub(u64::from(life.waits()));
    }

    fn of(&mut self, state: TcpState) -> Option<&mut u64> {
        let place = COUNTED.iter().position(|counted| *counted == state)?;
        self.states.get_mut(place)
    }

    fn all(&self) -> u64 {
        self.states.iter().sum()
    }
}

impl Life {
    fn waits(&self) -> bool {
        self.minisocket && self.state == TcpState::FinWait2
    }
}

impl Sum for Sockets {
    fn add(&mut self, other: &Self) {
        for (one, other) in self.states.iter_mut().zip(&other.states) {
            *one += other;
        }
        self.waiting += other.waiting;
    }
}

impl Interval for Sockets {
    /// They go on to be there.
    fn end(&mut self) -> Option<Self> {
        (self.all() > 0).then(|| self.clone())
    }
}
