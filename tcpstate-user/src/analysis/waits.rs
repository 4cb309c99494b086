//! TIME_WAITs: how many there are, begin and end, why, how long they really took; and the local ports they hold.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use hashbrown::HashMap;
use tcpstate_common::state::TcpState;

use super::{
    By, Opened,
    failures::Failures,
    group::{Groups, Interval, Place},
    histogram::Histogram,
    key::{Dimension, Subject},
    listeners::Listeners,
    local_ports::LocalPorts,
    memory::{Memory, key_of_found},
    ports::{Held, Ports},
    report::Tally,
    table::{Cell, Column, Order, Shown, Sum, Table},
};
use crate::{
    event::{About, CallEvent, CallStep, Endpoint, Process},
    lifecycle::{Bound, Found, Phase, Reason, Transition},
    prefetch::Prefetch,
};

/// What to show.
#[derive(Clone, Debug)]
pub struct WaitsOptions {
    /// What to tell apart.
    pub by: By,
    /// Order of the groups.
    pub order: Order,
    /// Whether minisockets are observed: else nothing is known but the ports of full sockets.
    pub timewait: bool,
    /// Whether system calls are watched: else bind() that fails is not seen.
    pub calls: bool,
    /// What connect() may pick from, by inode number of the network namespace, as far as known.
    pub ports: HashMap<u32, LocalPorts>,
    /// How many connections to remember.
    pub limit: usize,
}

/// Counts TIME_WAITs, and the local ports in use.
#[derive(Debug)]
pub struct Waits {
    by: By,
    order: Order,
    timewait: bool,
    columns: Vec<Column>,
    groups: Groups<TimeWaits>,
    open: Memory<Life>,
    listeners: Listeners,
    ports: Ports,
    /// bind() that found its address in use, if that is watched.
    binds: Option<Failures>,
    /// The sockets that were there before are among them.
    seeded: bool,
    /// Something was lost, so that what there is now is no longer exact.
    lost: bool,
}

/// What is remembered of one connection.
#[derive(Clone, Copy, Debug)]
struct Life {
    opened: Opened,
    wanted: bool,
    process: Option<Process>,
    /// The minisocket, if it has become one.
    wait: Option<Wait>,
    /// The local port that it holds.
    held: Option<Held>,
}

/// A minisocket, counted.
#[derive(Clone, Copy, Debug)]
struct Wait {
    place: Place,
    /// In TIME_WAIT, else in FIN_WAIT2.
    time_wait: bool,
}

/// TIME_WAITs of one group.
#[derive(Clone, Debug, Default)]
struct TimeWaits {
    /// There are so many now, as far as we heard.
    now: u64,
    /// Minisockets in FIN_WAIT2 now, as far as we heard.
    waiting: u64,
    /// All that follows is of the interval.
    born: u64,
    ended: [u64; ENDS.len()],
    restarted: u64,
    overflow: u64,
    durations: Option<Box<Histogram>>,
    not_exact: u64,
}

/// Why they end, and the columns for it.
const ENDS: [(Reason, Column); 7] = [
    (Reason::Expired, Column::number("expired", "EXPIRED")),
    (
        Reason::ReusedConnect,
        Column::number("reused_connect", "BY CONNECT").shown(Shown::Wide),
    ),
    (
        Reason::ReusedSyn,
        Column::number("reused_syn", "BY SYN").shown(Shown::Wide),
    ),
    (Reason::Rst, Column::number("rst", "RST").shown(Shown::Wide)),
    (
        Reason::Destroyed,
        Column::number("destroyed", "DESTROYED").shown(Shown::Wide),
    ),
    (
        Reason::NamespaceGone,
        Column::number("namespace_gone", "NETNS GONE").shown(Shown::Wide),
    ),
    (
        Reason::Unknown,
        Column::number("unknown", "UNKNOWN").shown(Shown::Wide),
    ),
];

impl Waits {
    /// What it can tell apart.
    pub const DIMENSIONS: [Dimension; 10] = super::Closers::DIMENSIONS;

    /// What to sort by if nothing else is asked for.
    pub const SORT: &'static str = "now";

    /// Columns besides those of the key.
    #[must_use]
    pub fn columns() -> Vec<Column> {
        let before = [
            Column::number("now", "NOW"),
            Column::number("fin_wait2", "FIN_W2").shown(Shown::Wide),
            Column::number("born", "BORN"),
            Column::number("ended", "ENDED").shown(Shown::Wide),
        ];
        let after = [
            Column::number("reused", "REUSED").shown(Shown::Text),
            Column::number("other", "OTHER").shown(Shown::Text),
            Column::number("restarted", "RESTARTED").shown(Shown::Wide),
            Column::number("overflow", "OVERFL"),
            Column::number("p50", "P50(s)"),
            Column::number("max", "MAX(s)"),
            Column::number("not_exact", "NOT EXACT").shown(Shown::Wide),
            Column::number("rate", "BORN/S").shown(Shown::Wide),
            Column::number("counts", "COUNTS").shown(Shown::Machine),
        ];
        let ends = ENDS.map(|(_, column)| column);
        before.into_iter().chain(ends).chain(after).collect()
    }

    /// Counts these.
    #[must_use]
    pub fn new(options: WaitsOptions) -> Self {
        /// A histogram may take 30 kB for each.
        const GROUPS: usize = 4096;
        const FAILED: Column = Column::number("failed", "BIND() IN USE");
        let mut columns = options.by.columns();
        columns.extend(Self::columns());
        Self {
            columns,
            groups: Groups::new(GROUPS),
            open: Memory::new(options.limit),
            listeners: Listeners::default(),
            ports: Ports::new(options.ports, options.order.top),
            binds: options
                .calls
                .then(|| Failures::new("failed_binds", Dimension::Asked, FAILED)),
            seeded: false,
            lost: false,
            by: options.by,
            order: options.order,
            timewait: options.timewait,
        }
    }

    fn place(&mut self, life: &Life, subject: &Subject, cgroup: Option<&Arc<str>>) -> Place {
        let key = self.by.key_of(subject, life.opened, life.process.as_ref());
        self.groups.place(key, cgroup)
    }

    /// What a transition means for TIME_WAITs.
    fn follow(&mut self, life: &mut Life, transition: &Transition) {
        let event = &transition.event;
        let begins = event.new == TcpState::TimeWait && event.old != TcpState::TimeWait;
        let ends = transition.minisocket && event.new == TcpState::Close;
        let overflow = transition.reason == Some(Reason::Overflow);
        if !(transition.minisocket || overflow) {
            return;
        }
        let place = if let Some(wait) = life.wait {
            wait.place
        } else {
            let place = self.place(life, &Subject::of(transition), transition.cgroup.as_ref());
            self.groups.hold(place);
            place
        };
        let now = (transition.minisocket && !ends).then_some(Wait {
            place,
            time_wait: event.new == TcpState::TimeWait,
        });
        let sum = self.groups.sum(place);
        sum.count_out(life.wait);
        sum.count_in(now);
        sum.born += u64::from(begins);
        sum.overflow += u64::from(overflow);
        sum.restarted += u64::from(transition.reason == Some(Reason::Restarted));
        if ends && event.old == TcpState::TimeWait {
            sum.end(transition);
        }
        if now.is_none() {
            self.groups.release(place);
        }
        life.wait = now;
    }

    /// What is left of a connection that goes, or is forgotten.
    fn forget(&mut self, life: &Life, time: u64) {
        if let Some(wait) = life.wait {
            self.groups.sum(wait.place).count_out(life.wait);
            self.groups.release(wait.place);
        }
        self.ports.follow(life.held, None, time, false);
    }

    fn keep(&mut self, id: u64, life: Life, time: u64) {
        if let Some(gone) = self.open.replace(id, life) {
            self.forget(&gone, time);
        }
    }

    fn cells(&self, sum: &TimeWaits, nanoseconds: u64) -> Vec<Cell> {
        let known = |cell| if self.timewait { cell } else { Cell::Unknown };
        let lower = |count| {
            known(if sum.waiting > 0 {
                Cell::AtLeast(count)
            } else {
                Cell::Count(count)
            })
        };
        let ended: u64 = sum.ended.iter().sum();
        let of = |wanted: &[Reason]| {
            let pairs = ENDS.iter().zip(sum.ended);
            let wanted = pairs.filter(|((reason, _), _)| wanted.contains(reason));
            wanted.map(|(_, count)| count).sum::<u64>()
        };
        let reused = of(&[Reason::ReusedConnect, Reason::ReusedSyn]);
        let expired = of(&[Reason::Expired]);
        let durations = sum.durations.as_deref();
        let time = |nanoseconds| Cell::Age(Phase::new(nanoseconds, Bound::Exact));
        let mut cells = vec![
            lower(sum.now),
            known(Cell::Count(sum.waiting)),
            lower(sum.born),
            known(Cell::Count(ended)),
        ];
        cells.extend(sum.ended.map(|count| known(Cell::Count(count))));
        let exact = self.seeded && !self.lost;
        cells.extend([
            known(Cell::Count(reused)),
            known(Cell::Count(ended - reused - expired)),
            known(Cell::Count(sum.restarted)),
            known(Cell::Count(sum.overflow)),
            Cell::known(durations, |durations| time(durations.quantile(0.5))),
            Cell::known(durations, |durations| time(durations.max())),
            known(Cell::Count(sum.not_exact)),
            known(Cell::Rate(sum.born, nanoseconds)),
            Cell::Word(if exact { "exact" } else { "about" }),
        ]);
        cells
    }
}

impl Tally for Waits {
    fn name(&self) -> &'static str {
        "timewait"
    }

    fn prefetch(&self, about: About, what: Prefetch) {
        self.open.prefetch(about, what);
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        use TcpState::{Close, SynRecv, SynSent};
        self.listeners.take(transition);
        let event = &transition.event;
        if event.is_listener() || (event.old, event.new) == (Close, Close) {
            return;
        }
        let (id, time) = (self.open.key(transition), event.time);
        let subject = Subject::of(transition);
        let mut known = self.open.get(id).copied();
        if event.is_birth()
            && let Some(before) = known.take()
        {
            // The socket is used again: the end of the life before was not seen.
            self.forget(&before, time);
        }
        let mut life = known.unwrap_or_else(|| Life {
            opened: if event.is_birth() {
                Opened::of_birth(event)
            } else {
                self.listeners.opened_of(&subject)
            },
            wanted: false,
            process: None,
            wait: None,
            held: None,
        });
        if (event.old, event.new) == (SynSent, SynRecv) {
            life.opened = Opened::Simultaneous;
        }
        life.wanted |= wanted;
        life.process = transition.process.or(life.process);
        if life.wanted {
            self.follow(&mut life, transition);
            let active = matches!(life.opened, Opened::Active | Opened::Simultaneous);
            let lives = active && event.new != Close;
            // connect() that found no port has none when it gives up, in its own system call (`tcp_v4_connect`).
            if (event.old, event.new) == (SynSent, Close)
                && event.local.port == 0
                && transition.tid().is_some()
            {
                self.ports.fails(&subject, life.process.as_ref());
            }
            let now = lives.then_some((&subject, transition.minisocket));
            life.held = self.ports.follow(life.held, now, time, false);
        }
        if event.new == Close {
            self.open.remove(id);
            self.forget(&life, time);
        } else {
            self.keep(id, life, time);
        }
    }

    fn found(&mut self, found: &Found, wanted: bool) {
        let opened = self.listeners.opened(found);
        if found.state == TcpState::Listen || found.minisocket && !self.timewait {
            return;
        }
        let subject = Subject::of_found(found);
        let mut life = Life {
            opened,
            wanted,
            process: found.process,
            wait: None,
            held: None,
        };
        if wanted && found.minisocket {
            let place = self.place(&life, &subject, found.cgroup.as_ref());
            self.groups.hold(place);
            life.wait = Some(Wait {
                place,
                time_wait: found.state == TcpState::TimeWait,
            });
            self.groups.sum(place).count_in(life.wait);
        }
        if wanted && opened == Opened::Active {
            let now = Some((&subject, found.minisocket));
            life.held = self.ports.follow(None, now, found.time, true);
        }
        let id = key_of_found(found);
        if let Some(before) = self.open.remove(id) {
            self.forget(&before, found.time);
        }
        self.keep(id, life, found.time);
    }

    fn bind_failed(&mut self, event: &CallEvent) {
        const UNKNOWN: Endpoint = Endpoint {
            addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 0,
        };
        let (Some(binds), CallStep::BindFailed(asked)) = (&mut self.binds, event.step) else {
            return;
        };
        let subject = Subject::of_bind(event, asked.unwrap_or(UNKNOWN));
        let key = binds.key(&subject, Some(&event.process));
        binds.add(if asked.is_some() {
            key
        } else {
            key.without_local()
        });
    }

    fn all_found(&mut self) {
        self.seeded = true;
        self.listeners.all_found();
    }

    fn lost(&mut self, _: u64) {
        self.lost = true;
    }

    fn table(&mut self, from: u64, to: u64) -> Table {
        let groups = self.groups.end(&self.by);
        let all = groups.groups.iter().map(|(_, sum)| sum);
        let waiting: u64 = all.chain(&groups.beyond).map(|sum| sum.waiting).sum();
        let rows = self.order.rows(&self.columns, &[], groups, |sum| {
            self.cells(sum, to.saturating_sub(from))
        });
        let mut notes = Vec::new();
        if !self.timewait {
            notes.push("not known: the life of TIME_WAIT is not observed".to_owned());
        }
        if !self.seeded {
            notes.push("about: without the sockets that were there at the start".to_owned());
        }
        if self.lost {
            notes.push("about: something was lost; NOW, USED and FREE may be wrong".to_owned());
        }
        if waiting > 0 {
            let s = if waiting == 1 { "" } else { "s" };
            notes.push(format!(
                "{waiting} minisocket{s} in FIN_WAIT2, or in TIME_WAIT unheard: BORN grows when they end"
            ));
        }
        Table {
            columns: self.columns.clone(),
            rows,
            notes,
            more: self
                .ports
                .sections(from, to, &self.listeners, self.binds.as_mut()),
        }
    }

    fn forgotten(&self) -> u64 {
        self.open.forgotten()
    }
}

impl TimeWaits {
    const fn count_in(&mut self, wait: Option<Wait>) {
        match wait {
            Some(Wait {
                time_wait: true, ..
            }) => self.now += 1,
            Some(_) => self.waiting += 1,
            None => {}
        }
    }

    const fn count_out(&mut self, wait: Option<Wait>) {
        match wait {
            Some(Wait {
                time_wait: true, ..
            }) => self.now = self.now.saturating_sub(1),
            Some(_) => self.waiting = self.waiting.saturating_sub(1),
            None => {}
        }
    }

    /// One has ended.
    fn end(&mut self, transition: &Transition) {
        let reason = transition.reason.unwrap_or(Reason::Unknown);
        let known = ENDS.iter().position(|(one, _)| *one == reason);
        if let Some(count) = known.and_then(|known| self.ended.get_mut(known)) {
            *count += 1;
        } else if let Some(unknown) = self.ended.last_mut() {
            *unknown += 1;
        }
        match (transition.phase.bound(), transition.phase.nanoseconds()) {
            (Bound::Exact, Some(nanoseconds)) => {
                self.durations.get_or_insert_default().record(nanoseconds);
            }
            _ => self.not_exact += 1,
        }
    }
}

impl Sum for TimeWaits {
    fn add(&mut self, other: &Self) {
        self.now += other.now;
        self.waiting += other.waiting;
        self.born += other.born;
        for (one, other) in self.ended.iter_mut().zip(&other.ended) {
            *one += other;
        }
        self.restarted += other.restarted;
        self.overflow += other.overflow;
        self.not_exact += other.not_exact;
        if let Some(other) = &other.durations {
            self.durations.get_or_insert_default().add(other);
        }
    }
}

impl Interval for TimeWaits {
    /// Those that are there go on to be.
    fn end(&mut self) -> Option<Self> {
        let ended = std::mem::replace(
            self,
            Self {
                now: self.now,
                waiting: self.waiting,
                ..Self::default()
            },
        );
        let flows = ended.born + ended.ended.iter().sum::<u64>() + ended.restarted + ended.overflow;
        (ended.now + ended.waiting + flows > 0).then_some(ended)
    }
}
