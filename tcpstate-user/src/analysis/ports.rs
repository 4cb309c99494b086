//! Local ports that connections opened by this host hold, for each source, destination and its port; and when there will be none
//! left.
//!
//! connect() needs a port that is free towards this destination (`__inet_hash_connect`), so they run out for each by itself.

use std::{collections::VecDeque, net::IpAddr};

use hashbrown::HashMap;

use super::{
    By, Opened, Row, RowKind,
    failures::Failures,
    group::{Groups, Interval, Place},
    key::{Dimension, Subject},
    listeners::Listeners,
    local_ports::{LocalPorts, Reuse},
    table::{Cell, Column, Order, Section, Shown, Sum, Table},
};
use crate::{
    event::{Endpoint, Process},
    lifecycle::{Bound, Phase},
};

/// `TCP_TIMEWAIT_LEN` in `include/net/tcp.h`, in seconds.
const TIME_WAIT: u64 = 60;

/// How far back growth is looked at, if intervals are not longer (nanoseconds).
const WINDOW: u64 = 10_000_000_000;

/// Ports in use towards each destination.
#[derive(Debug)]
pub(super) struct Ports {
    settings: HashMap<u32, LocalPorts>,
    by: By,
    columns: Vec<Column>,
    uses: Groups<Use>,
    failed: Failures,
    top: usize,
}

/// What a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    place: Place,
    minisocket: bool,
}

/// Ports in use towards one destination.
#[derive(Clone, Debug, Default)]
struct Use {
    used: u64,
    /// Of them minisockets.
    minisockets: u64,
    /// Minisockets since the beginning.
    born: u64,
    /// In the interval: connect() found no port.
    failed: u64,
    samples: VecDeque<Sample>,
    /// When a port was taken last.
    taken: u64,
    netns: Option<u32>,
    namespace: u64,
    loopback: bool,
    outlook: Outlook,
}

/// How it was at some time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    time: u64,
    used: u64,
    minisockets: u64,
    born: u64,
    /// A port was taken right then, the first.
    first: bool,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, Default)]
struct Outlook {
    limit: Option<u64>,
    /// Change of the ports in use in so many nanoseconds.
    growth: Option<(i64, u64)>,
    until_none: Option<Phase>,
    /// Ports of minisockets may be taken over.
    reuse: bool,
    /// Or may not: that depends on what is not known.
    perhaps: bool,
    /// Of many destinations: limits do not add up.
    many: bool,
}

const COLUMNS: [Column; 8] = [
    Column::number("used", "USED"),
    Column::number("minisockets", "MINI"),
    Column::number("limit", "PORTS"),
    Column::number("free", "FREE"),
    Column::number("used_share", "USED%").shown(Shown::Wide),
    Column::number("growth", "+/S"),
    Column::number("seconds_until_none", "NONE IN(s)"),
    Column::number("failed", "FAILED"),
];
const REUSE: Column = Column::number("reuse", "REUSE").shown(Shown::Machine);
const FAILED: Column = Column::number("failed", "CONNECT() WITHOUT A PORT");

impl Ports {
    /// With the settings of the network namespaces that are known, by inode number.
    pub(super) fn new(settings: HashMap<u32, LocalPorts>, top: usize) -> Self {
        /// More destinations than anybody reads.
        const GROUPS: usize = 65_536;
        let by = By::new(&[Dimension::Ports], (24, 64));
        let columns = by.columns().into_iter().chain(COLUMNS).chain([REUSE]);
        Self {
            settings,
            columns: columns.collect(),
            by,
            uses: Groups::new(GROUPS),
            failed: Failures::new("failed_connects", Dimension::Ports, FAILED),
            top,
        }
    }

    /// What a connection that this host opened holds after a transition; `before` is what it held so far. It is in this
    /// state, or is a minisocket, or (`None`) has ended.
    pub(super) fn follow(
        &mut self,
        before: Option<Held>,
        now: Option<(&Subject, bool)>,
        time: u64,
        found: bool,
    ) -> Option<Held> {
        let settings = &self.settings;
        // Until its port is told it is one that the kernel picked.
        let now = now.filter(|(subject, _)| {
            subject.local.port == 0
                || subject
                    .netns
                    .and_then(|netns| settings.get(&netns))
                    .is_none_or(|ports| ports.has(subject.local.port))
        });
        let Some((subject, minisocket)) = now else {
            if let Some(held) = before {
                let sum = self.uses.sum(held.place);
                sum.used = sum.used.saturating_sub(1);
                sum.minisockets = sum.minisockets.saturating_sub(u64::from(held.minisocket));
                self.uses.release(held.place);
            }
            return None;
        };
        let place = if let Some(held) = before {
            held.place
        } else {
            let place = self.place(subject);
            self.uses.hold(place);
            self.uses.sum(place).used += 1;
            place
        };
        let sum = self.uses.sum(place);
        let was = before.is_some_and(|held| held.minisocket);
        if minisocket && !was {
            sum.minisockets += 1;
            sum.born += u64::from(!found);
        } else if was && !minisocket {
            sum.minisockets = sum.minisockets.saturating_sub(1);
        }
        if before.is_none() {
            sum.taken = time;
            if sum.samples.is_empty() {
                sum.samples.push_back(Sample {
                    first: true,
                    ..sum.sample(time)
                });
            } else if found {
                // It was there before: that is no growth.
                for sample in &mut sum.samples {
                    sample.used += 1;
                    sample.minisockets += u64::from(minisocket);
                }
            }
        }
        Some(Held { place, minisocket })
    }

    /// connect() found no port.
    pub(super) fn fails(&mut self, subject: &Subject, process: Option<&Process>) {
        let place = self.place(subject);
        self.uses.sum(place).failed += 1;
        self.failed.add(self.failed.key(subject, process));
    }

    fn place(&mut self, subject: &Subject) -> Place {
        let key = self.by.key_of(subject, Opened::Active, None);
        let place = self.uses.place(key, None);
        let sum = self.uses.sum(place);
        sum.netns = subject.netns;
        sum.namespace = subject.namespace();
        sum.loopback = is_loopback(subject.local.addr, subject.remote);
        place
    }

    /// What the interval has brought: ports in use, and failed connects if there were any.
    pub(super) fn sections(
        &mut self,
        from: u64,
        to: u64,
        listeners: &Listeners,
        binds: Option<&mut Failures>,
    ) -> Vec<Section> {
        let interval = to.saturating_sub(from);
        // What ended in between is gone from the range at once.
        let mut limits: HashMap<u64, Option<u64>> = HashMap::default();
        let settings = &self.settings;
        self.uses.each(|sum| {
            let ports = sum.netns.and_then(|netns| settings.get(&netns));
            let limit = *limits.entry(sum.namespace).or_insert_with(|| {
                let ports = ports?;
                let listening = listeners.of(sum.namespace);
                let blocked = listening.filter(|port| ports.has(*port)).count() as u64;
                Some(ports.count().saturating_sub(blocked))
            });
            sum.look(
                to,
                interval,
                limit,
                ports.map_or(Reuse::Never, |ports| ports.reuse),
            );
        });
        let groups = self.uses.end(&self.by);
        let unknown = groups
            .groups
            .iter()
            .filter(|(_, sum)| sum.outlook.limit.is_none())
            .count();
        let any = |wanted: fn(&Outlook) -> bool| {
            let mut groups = groups.groups.iter();
            groups.any(|(_, sum)| wanted(&sum.outlook))
        };
        let reuse = any(|outlook| outlook.reuse && !outlook.perhaps);
        let perhaps = any(|outlook| outlook.perhaps);
        let order = Order {
            column: "used_share",
            top: self.top,
        };
        let mut notes = Vec::new();
        if unknown > 0 {
            notes.push(
                "PORTS is not known of network namespaces that began later, or could not be entered"
                    .to_owned(),
            );
        }
        if reuse {
            notes.push(
                "`>=`: connect() may take over TIME_WAITs older than a second (tcp_tw_reuse)"
                    .to_owned(),
            );
        }
        if perhaps {
            notes.push(
                "`>=`: connect() may take over TIME_WAITs older than a second if they are of this host alone (tcp_tw_reuse), which \
                 other addresses do not tell"
                    .to_owned(),
            );
        }
        let many = groups.groups.iter().any(|(key, _)| {
            let first = groups.groups.first();
            first.is_some_and(|(first, _)| first[..2] != key[..2])
        });
        let shown = if many { Shown::Always } else { Shown::Wide };
        let columns = self.columns.iter().map(|column| match column.name {
            "netns" => column.shown(shown),
            _ => *column,
        });
        let rows: Vec<Row> = order.rows(&self.columns, &[], groups, Use::cells);
        let ports = Section {
            name: "ports",
            table: Table {
                columns: columns.collect(),
                // Ports of different destinations do not add up to anything.
                rows: rows
                    .into_iter()
                    .filter(|row| row.kind != RowKind::Total)
                    .collect(),
                notes,
                more: Vec::new(),
            },
        };
        let failed = std::iter::once(&mut self.failed).chain(binds);
        let failed = failed.map(|failed| failed.section(self.top, shown));
        std::iter::once(ports).chain(failed).collect()
    }
}

/// Whether what goes from one to the other stays on this machine: the kernel looks at the interface, or the addresses
/// (`tcp_twsk_unique`).
fn is_loopback(local: IpAddr, remote: Endpoint) -> bool {
    local.is_loopback() || remote.addr.is_loopback()
}

impl Use {
    const fn sample(&self, time: u64) -> Sample {
        Sample {
            time,
            used: self.used,
            minisockets: self.minisockets,
            born: self.born,
            first: false,
        }
    }

    /// Looks ahead, from how it was to how it is.
    fn look(&mut self, now: u64, interval: u64, limit: Option<u64>, reuse: Reuse) {
        let window = interval.max(WINDOW);
        let begins = now.saturating_sub(window);
        while self
            .samples
            .get(1)
            .is_some_and(|second| second.time <= begins)
        {
            self.samples.pop_front();
        }
        let before = self.samples.front().copied();
        let before = before.filter(|before| before.time < now);
        self.outlook = Outlook {
            limit,
            growth: before
                .map(|before| (change(before.used, self.used), self.elapsed(before, now))),
            until_none: limit.zip(before).and_then(|(limit, before)| {
                self.until_none(before, self.elapsed(before, now), limit)
            }),
            reuse: match reuse {
                Reuse::Never => false,
                Reuse::Loopback => self.loopback && self.minisockets > 0,
                Reuse::Somewhere | Reuse::Always => self.minisockets > 0,
            },
            perhaps: reuse == Reuse::Somewhere && self.minisockets > 0,
            many: false,
        };
        let often = self
            .samples
            .back()
            .is_none_or(|last| last.time + window / 8 <= now);
        if often {
            self.samples.push_back(self.sample(now));
        }
    }

    /// In which time it came to be as it is. From the first port taken to the last, it took the time between these; what has
    /// passed since then counts as far as it is longer than usual.
    fn elapsed(&self, before: Sample, now: u64) -> u64 {
        let all = now.saturating_sub(before.time);
        let taken = self.used.saturating_sub(before.used);
        if !before.first || taken == 0 {
            return all;
        }
        let between = self.taken.saturating_sub(before.time);
        let since = all.saturating_sub(between);
        between + since.saturating_sub(between / taken)
    }

    /// When no port will be left, if it goes on like this. TIME_WAITs end after a minute: those that begin fill no more ports
    /// than begin in a minute.
    fn until_none(&self, before: Sample, elapsed: u64, limit: u64) -> Option<Phase> {
        let elapsed = u128::from(elapsed);
        let free = limit.saturating_sub(self.used);
        if free == 0 {
            return Some(Phase::new(0, Bound::Exact));
        }
        let open = self.used.saturating_sub(self.minisockets);
        let open_before = before.used.saturating_sub(before.minisockets);
        let born = u128::from(self.born.saturating_sub(before.born));
        let minute = u128::from(TIME_WAIT) * 1_000_000_000;
        let waiting = born * minute / elapsed.max(1);
        let full = u128::from(open) + waiting;
        let (room, growth) = if full >= u128::from(limit) {
            (u128::from(free), change(before.used, self.used))
        } else {
            (u128::from(limit) - full, change(open_before, open))
        };
        let growth = u128::try_from(growth).ok().filter(|growth| *growth > 0)?;
        let nanoseconds = room * elapsed / growth;
        u64::try_from(nanoseconds)
            .ok()
            .map(|nanoseconds| Phase::new(nanoseconds, Bound::Exact))
    }

    fn cells(&self) -> Vec<Cell> {
        let outlook = &self.outlook;
        let limit = outlook.limit.filter(|_| !outlook.many);
        let free = limit.map(|limit| limit.saturating_sub(self.used));
        let at_least = |phase: Phase| match phase.nanoseconds() {
            Some(nanoseconds) if outlook.reuse => Phase::new(nanoseconds, Bound::AtLeast),
            _ => phase,
        };
        vec![
            Cell::Count(self.used),
            Cell::Count(self.minisockets),
            Cell::known(limit, Cell::Count),
            Cell::known(free, |free| {
                if outlook.reuse {
                    Cell::AtLeast(free)
                } else {
                    Cell::Count(free)
                }
            }),
            Cell::known(limit, |limit| Cell::Share(self.used, limit)),
            Cell::known(
                outlook.growth.filter(|_| !outlook.many),
                |(change, time)| Cell::Growth(change, time),
            ),
            Cell::known(outlook.until_none.filter(|_| !outlook.many), |time| {
                Cell::Age(at_least(time))
            }),
            // The hook that tells no namespace tells no task either.
            Cell::known(self.netns.or(outlook.many.then_some(0)), |_| {
                Cell::Count(self.failed)
            }),
            match (outlook.perhaps, outlook.reuse) {
                (true, _) => Cell::Unknown,
                (_, true) => Cell::Word("yes"),
                (_, false) => Cell::Word("no"),
            },
        ]
    }
}

/// How much it has changed.
fn change(before: u64, after: u64) -> i64 {
    i64::try_from(after).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX)
}

impl Sum for Use {
    fn add(&mut self, other: &Self) {
        self.used += other.used;
        self.minisockets += other.minisockets;
        self.failed += other.failed;
        self.outlook.many = true;
    }
}

impl Interval for Use {
    /// What is held goes on to be.
    fn end(&mut self) -> Option<Self> {
        let ended = self.clone();
        self.failed = 0;
        (ended.used + ended.failed > 0).then_some(ended)
    }
}
