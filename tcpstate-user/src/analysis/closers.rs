//! Which process closes first, towards whom, with FIN or RST, and how many TIME_WAITs it causes.

use tcpstate_common::state::TcpState;

use super::{
    By, ClosedFirst, How, Opened,
    group::{Groups, Interval, Place},
    key::Dimension,
    memory::Memory,
    report::Tally,
    table::{Cell, Column, Order, Shown, Sum, Table},
};
use crate::{
    event::{About, Process},
    lifecycle::Transition,
    prefetch::Prefetch,
};

/// Counts a connection when its first close happens.
#[derive(Debug)]
pub struct Closers {
    by: By,
    order: Order,
    /// Whether minisockets are observed.
    timewait: bool,
    columns: Vec<Column>,
    groups: Groups<Closes>,
    open: Memory<Life>,
}

/// What is remembered of one connection.
#[derive(Clone, Copy, Debug)]
struct Life {
    opened: Opened,
    close: Close,
    /// Its minisocket was last heard of in FIN_WAIT2.
    fin_wait2: bool,
}

/// The first close of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// It has not come yet.
    None,
    /// It came, and was not wanted.
    Hidden,
    /// It was counted here.
    Counted(Place),
}

/// Who closed first, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    LocalFin,
    LocalRst,
    RemoteFin,
    RemoteRst,
    Nobody,
    Unseen,
}

/// Closes of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Closes {
    local_fin: u64,
    local_rst: u64,
    remote_fin: u64,
    remote_rst: u64,
    none: u64,
    unknown: u64,
    simultaneous: u64,
    time_waits: u64,
    /// Minisockets that are in FIN_WAIT2 as far as we heard: not of an interval, but now.
    fin_wait2: u64,
}

const COLUMNS: [Column; 14] = [
    Column::number("closes", "CLOSES").shown(Shown::Wide),
    Column::number("local_first", "FIRST").shown(Shown::Wide),
    Column::number("local_fin", "FIN"),
    Column::number("local_rst", "RST"),
    Column::number("remote_first", "PEER"),
    Column::number("remote_fin", "PEER FIN").shown(Shown::Wide),
    Column::number("remote_rst", "PEER RST").shown(Shown::Wide),
    Column::number("none", "NONE").shown(Shown::Wide),
    Column::number("unknown", "UNKNOWN").shown(Shown::Wide),
    Column::number("simultaneous", "SIMULT").shown(Shown::Wide),
    Column::number("active_share", "ACTIVE%"),
    Column::number("time_waits", "TW"),
    Column::number("fin_wait2", "FIN_WAIT2").shown(Shown::Wide),
    Column::number("rate", "/S"),
];

impl Closers {
    /// What it can tell apart.
    pub const DIMENSIONS: [Dimension; 10] = [
        Dimension::Process,
        Dimension::Pid,
        Dimension::Cgroup,
        Dimension::Container,
        Dimension::Uid,
        Dimension::Netns,
        Dimension::Listener,
        Dimension::Service,
        Dimension::Remote,
        Dimension::Cidr,
    ];

    /// Columns besides those of the key.
    pub const COLUMNS: &[Column] = &COLUMNS;

    /// What to sort by if nothing else is asked for.
    pub const SORT: &'static str = "local_first";

    /// Remembers at most `limit` connections. `timewait` says whether minisockets are observed: else how many there are is
    /// not known.
    #[must_use]
    pub fn new(by: By, order: Order, timewait: bool, limit: usize) -> Self {
        /// More groups than anybody reads; a flood from many addresses does not fill the memory.
        const GROUPS: usize = 65_536;
        let mut columns = by.columns();
        columns.extend(COLUMNS);
        Self {
            by,
            order,
            timewait,
            columns,
            groups: Groups::new(GROUPS),
            open: Memory::new(limit),
        }
    }

    /// Counts the first close of a connection.
    fn count(&mut self, transition: &Transition, life: &mut Life, first: First) {
        let process = closer(transition, first);
        let key = self.by.key(transition, life.opened, process);
        let place = self.groups.place(key, transition.cgroup.as_ref());
        let sum = self.groups.sum(place);
        *match first {
            First::LocalFin => &mut sum.local_fin,
            First::LocalRst => &mut sum.local_rst,
            First::RemoteFin => &mut sum.remote_fin,
            First::RemoteRst => &mut sum.remote_rst,
            First::Nobody => &mut sum.none,
            First::Unseen => &mut sum.unknown,
        } += 1;
        self.groups.hold(place);
        life.close = Close::Counted(place);
    }

    /// What follows the first close.
    fn follow(&mut self, transition: &Transition, life: &mut Life, wanted: bool) {
        let (old, new) = (transition.event.old, transition.event.new);
        let begins = new == TcpState::TimeWait && old != TcpState::TimeWait;
        let place = match life.close {
            Close::Counted(place) => place,
            Close::None if wanted && begins => {
                // Its first close was before we looked: it is nobody's, as far as we know.
                let key = self.by.key(transition, life.opened, None);
                self.groups.place(key, transition.cgroup.as_ref())
            }
            Close::None | Close::Hidden => return,
        };
        let sum = self.groups.sum(place);
        sum.time_waits += u64::from(begins);
        sum.simultaneous += u64::from((old, new) == (TcpState::FinWait1, TcpState::Closing));
        let waits = transition.minisocket && new == TcpState::FinWait2;
        if waits && !life.fin_wait2 {
            sum.fin_wait2 += 1;
        } else if !waits && life.fin_wait2 {
            sum.fin_wait2 = sum.fin_wait2.saturating_sub(1);
        }
        life.fin_wait2 = waits && matches!(life.close, Close::Counted(_));
    }

    /// Nothing more will come of this connection.
    fn forget(&mut self, life: &Life) {
        if let Close::Counted(place) = life.close {
            if life.fin_wait2 {
                let sum = self.groups.sum(place);
                sum.fin_wait2 = sum.fin_wait2.saturating_sub(1);
            }
            self.groups.release(place);
        }
    }

    fn cells(&self, sum: &Closes, nanoseconds: u64) -> Vec<Cell> {
        let time_waits = match (self.timewait, sum.fin_wait2) {
            (false, _) => Cell::Unknown,
            (true, 0) => Cell::Count(sum.time_waits),
            (true, _) => Cell::AtLeast(sum.time_waits),
        };
        let fin_wait2 = if self.timewait {
            Cell::Count(sum.fin_wait2)
        } else {
            Cell::Unknown
        };
        let (local, remote) = (sum.local(), sum.remote());
        vec![
            Cell::Count(sum.closes()),
            Cell::Count(local),
            Cell::Count(sum.local_fin),
            Cell::Count(sum.local_rst),
            Cell::Count(remote),
            Cell::Count(sum.remote_fin),
            Cell::Count(sum.remote_rst),
            Cell::Count(sum.none),
            Cell::Count(sum.unknown),
            Cell::Count(sum.simultaneous),
            Cell::Share(local, local + remote),
            time_waits,
            fin_wait2,
            Cell::Rate(sum.closes(), nanoseconds),
        ]
    }
}

impl Tally for Closers {
    fn name(&self) -> &'static str {
        "closers"
    }

    fn prefetch(&self, about: About, what: Prefetch) {
        self.open.prefetch(about, what);
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        use TcpState::{Close as Closed, SynRecv, SynSent, TimeWait};
        let event = &transition.event;
        let (old, new) = (event.old, event.new);
        if event.is_listener()
            || (old, new) == (Closed, Closed)
            || old == TimeWait && new == TimeWait
        {
            return;
        }
        let id = self.open.key(transition);
        if event.is_birth() {
            if self.by.needs_opened() {
                let opened = Opened::of_birth(event);
                self.remember(id, Life::new(opened));
            } else if let Some(before) = self.open.remove(id) {
                // The socket is used again: the end of the life before was not seen.
                self.forget(&before);
            }
            return;
        }
        let first = first_close(transition);
        let known = self.open.get(id).copied();
        if known.is_none() && first.is_none() && new != TimeWait {
            // Nothing has happened yet that counts, or it happened before we looked.
            return;
        }
        let mut life = known.unwrap_or(Life::new(Opened::Unknown));
        if (old, new) == (SynSent, SynRecv) {
            life.opened = Opened::Simultaneous;
        }
        match (life.close, first) {
            (Close::None, Some(first)) if wanted => self.count(transition, &mut life, first),
            (Close::None, Some(_)) => life.close = Close::Hidden,
            _ => {}
        }
        self.follow(transition, &mut life, wanted);
        if matches!(new, Closed | TimeWait) {
            self.open.remove(id);
            self.forget(&life);
        } else {
            self.keep(id, life);
        }
    }

    fn table(&mut self, from: u64, to: u64) -> Table {
        let nanoseconds = to.saturating_sub(from);
        let groups = self.groups.end(&self.by);
        let beyond = groups.beyond.as_ref().map_or(0, Closes::closes);
        let (mut none, mut unknown, mut waiting) = (0, 0, 0);
        for sum in groups
            .groups
            .iter()
            .map(|(_, sum)| sum)
            .chain(&groups.beyond)
        {
            none += sum.none;
            unknown += sum.unknown;
            waiting += sum.fin_wait2;
        }
        let rows = self.order.rows(&self.columns, &[], groups, |sum| {
            self.cells(sum, nanoseconds)
        });
        let mut notes = Vec::new();
        let mut say = |count: u64, one: &str, many: &str, text: &str| match count {
            0 => {}
            1 => notes.push(format!("1 {one} {text}")),
            _ => notes.push(format!("{count} {many} {text}")),
        };
        let mut close = |count, text| say(count, "close", "closes", text);
        close(none, "by nobody: timed out, unreachable or destroyed");
        close(unknown, "of which the first step was lost");
        close(beyond, "in groups that were too many to tell apart");
        say(
            waiting,
            "minisocket",
            "minisockets",
            "in FIN_WAIT2, or in TIME_WAIT unheard: TW grows when they end",
        );
        if !self.timewait {
            notes.push("TW is not known: the life of TIME_WAIT is not observed".to_owned());
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

impl Closers {
    fn remember(&mut self, id: u64, life: Life) {
        if let Some(gone) = self.open.insert(id, life) {
            self.forget(&gone);
        }
    }

    /// What has changed of a connection that may have been remembered before.
    fn keep(&mut self, id: u64, life: Life) {
        match self.open.get(id) {
            Some(known) => *known = life,
            None => self.remember(id, life),
        }
    }
}

impl Life {
    const fn new(opened: Opened) -> Self {
        Self {
            opened,
            close: Close::None,
            fin_wait2: false,
        }
    }
}

/// Whether a connection is closed for the first time with this transition, if it was not before.
fn first_close(transition: &Transition) -> Option<First> {
    use TcpState::{Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, SynRecv};
    let event = &transition.event;
    match (event.old, event.new) {
        (Established | SynRecv, FinWait1) => Some(First::LocalFin),
        (Established | SynRecv, CloseWait) => Some(First::RemoteFin),
        (Established | SynRecv, Close) if !transition.minisocket => {
            Some(match (ClosedFirst::of_end(event), How::of_end(event)) {
                (Some(ClosedFirst::Local), _) => First::LocalRst,
                (Some(ClosedFirst::Remote), _) => First::RemoteRst,
                (_, How::Unknown) => First::Unseen,
                _ => First::Nobody,
            })
        }
        // It had been closed, and that was lost.
        (FinWait1 | FinWait2 | Closing | CloseWait | LastAck, _) if transition.damaged => {
            Some(First::Unseen)
        }
        _ => None,
    }
}

/// Whose the first close is: of a local one the process that was in its own system call then, of a remote one the owner.
fn closer(transition: &Transition, first: First) -> Option<&Process> {
    let process = transition.process.as_ref();
    match first {
        First::LocalFin | First::LocalRst => process.filter(|_| transition.tid().is_some()),
        First::RemoteFin | First::RemoteRst | First::Nobody => process,
        First::Unseen => None,
    }
}

impl Closes {
    const fn local(&self) -> u64 {
        self.local_fin + self.local_rst
    }

    const fn remote(&self) -> u64 {
        self.remote_fin + self.remote_rst
    }

    const fn closes(&self) -> u64 {
        self.local() + self.remote() + self.none + self.unknown
    }
}

impl Sum for Closes {
    fn add(&mut self, other: &Self) {
        self.local_fin += other.local_fin;
        self.local_rst += other.local_rst;
        self.remote_fin += other.remote_fin;
        self.remote_rst += other.remote_rst;
        self.none += other.none;
        self.unknown += other.unknown;
        self.simultaneous += other.simultaneous;
        self.time_waits += other.time_waits;
        self.fin_wait2 += other.fin_wait2;
    }
}

impl Interval for Closes {
    fn end(&mut self) -> Option<Self> {
        let ended = self.clone();
        *self = Self {
            fin_wait2: self.fin_wait2,
            ..Self::default()
        };
        (ended.closes() + ended.simultaneous + ended.time_waits > 0).then_some(ended)
    }
}
