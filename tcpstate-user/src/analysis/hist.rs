//! How long connections stay in each state, and how long closing takes as a whole.

use tcpstate_common::state::TcpState;

use super::{
    By, Opened,
    group::{Groups, Interval},
    histogram::{Histogram, Scale},
    key::Dimension,
    measure::Measure,
    memory::Memory,
    report::Tally,
    table::{Cell, Column, Grouped, Order, Shown, Sum, Table},
};
use crate::{
    event::About,
    lifecycle::{Bound, Phase, Transition},
    prefetch::Prefetch,
};

/// What to show.
#[derive(Clone, Debug)]
pub struct HistOptions {
    /// What to tell apart.
    pub by: By,
    /// Order of the groups of one state.
    pub order: Order,
    /// What to measure; nothing for all but SYN_RECV.
    pub states: Vec<TcpState>,
    /// Buckets.
    pub scale: Scale,
    /// Whether to show buckets at all.
    pub buckets: bool,
    /// Whether minisockets are observed: else the end of FIN_WAIT2 may be the birth of one, which goes on in FIN_WAIT2.
    pub timewait: bool,
    /// How many connections to remember.
    pub limit: usize,
}

/// Measures phases that end.
#[derive(Debug)]
pub struct Hist {
    options: HistOptions,
    columns: Vec<Column>,
    measured: [bool; Measure::ALL.len()],
    /// Whether anything has to be remembered of connections.
    remembers: bool,
    groups: Groups<Distributions>,
    open: Memory<Life>,
    /// Minisockets that are in FIN_WAIT2 as far as we heard.
    waiting: u64,
}

/// What is remembered of one connection.
#[derive(Clone, Copy, Debug)]
struct Life {
    opened: Opened,
    closing: Option<Closing>,
    /// Its minisocket was last heard of in FIN_WAIT2.
    waits: bool,
}

/// A close that has begun.
#[derive(Clone, Copy, Debug)]
struct Closing {
    measure: Measure,
    began: u64,
    bound: Bound,
}

/// What was measured in one group.
#[derive(Clone, Debug, Default)]
struct Distributions([Distribution; Measure::ALL.len()]);

/// What was measured of one state.
#[derive(Clone, Debug, Default)]
struct Distribution {
    exact: Option<Box<Histogram>>,
    not_exact: u64,
}

const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

const FIRST: Column = Column::key("state", "MS");
const COLUMNS: [Column; 7] = [
    Column::number("count", "COUNT"),
    Column::number("p50", "P50"),
    Column::number("p90", "P90"),
    Column::number("p99", "P99"),
    Column::number("p999", "P99.9"),
    Column::number("max", "MAX"),
    Column::number("not_exact", "NOT EXACT"),
];
const BUCKETS: Column = Column::number("buckets", "").shown(Shown::Bars);

impl Hist {
    /// What it can tell apart, besides the states.
    pub const DIMENSIONS: [Dimension; 10] = super::Closers::DIMENSIONS;

    /// Columns besides those of the key and the buckets.
    pub const COLUMNS: &[Column] = &COLUMNS;

    /// What to sort the groups of a state by if nothing else is asked for.
    pub const SORT: &'static str = "count";

    /// Measures these.
    #[must_use]
    pub fn new(options: HistOptions) -> Self {
        /// A histogram of every state may take half a megabyte for each.
        const GROUPS: usize = 256;
        let states = &options.states;
        let measured = Measure::ALL.map(|measure| {
            let asked = |state: &TcpState| Measure::of_state(*state).contains(&measure);
            states.iter().any(asked) || (states.is_empty() && measure != Measure::SynRecv)
        });
        let wants = |measure: Measure| measured[measure as usize];
        let remembers = options.by.needs_opened()
            || wants(Measure::FinWait2)
            || wants(Measure::ActiveClose)
            || wants(Measure::PassiveClose);
        let mut columns = vec![FIRST];
        columns.extend(options.by.columns());
        columns.extend(COLUMNS);
        if options.buckets {
            columns.push(BUCKETS);
        }
        Self {
            columns,
            measured,
            remembers,
            groups: Groups::new(GROUPS),
            open: Memory::new(options.limit),
            waiting: 0,
            options,
        }
    }

    fn sample(&mut self, transition: &Transition, opened: Opened, measure: Measure, phase: Phase) {
        if !self.measured[measure as usize] {
            return;
        }
        let by = &self.options.by;
        let key = by.key(transition, opened, transition.process.as_ref());
        let place = self.groups.place(key, transition.cgroup.as_ref());
        let distribution = &mut self.groups.sum(place).0[measure as usize];
        match (phase.bound(), phase.nanoseconds()) {
            (Bound::Exact, Some(nanoseconds)) => distribution
                .exact
                .get_or_insert_default()
                .record(nanoseconds),
            _ => distribution.not_exact += 1,
        }
    }

    /// Nothing more will be heard of this connection.
    fn forget(&mut self, life: Option<Life>) {
        let waits = life.is_some_and(|life| life.waits);
        self.waiting = self.waiting.saturating_sub(u64::from(waits));
    }

    /// The time in the old state. Where minisockets are not observed, the full socket's FIN_WAIT2 may go on in one.
    fn phase(&self, transition: &Transition) -> Phase {
        let event = &transition.event;
        let goes_on = !self.options.timewait
            && event.error.is_none()
            && (event.old, event.new) == (TcpState::FinWait2, TcpState::Close);
        match (goes_on, transition.phase) {
            (true, phase) => Phase::new(phase.nanoseconds().unwrap_or_default(), Bound::AtLeast),
            (false, phase) => phase,
        }
    }

    fn cells(&self, distribution: &Distribution) -> Vec<Cell> {
        let histogram = distribution.exact.as_deref();
        let mut cells = vec![Cell::Count(histogram.map_or(0, Histogram::count))];
        cells.extend(QUANTILES.map(|share| {
            Cell::known(histogram, |histogram| {
                Cell::Duration(histogram.quantile(share))
            })
        }));
        cells.push(Cell::known(histogram, |histogram| {
            Cell::Duration(histogram.max())
        }));
        cells.push(Cell::Count(distribution.not_exact));
        if self.options.buckets {
            let scale = self.options.scale;
            let buckets = histogram.map_or_else(Vec::new, |histogram| histogram.buckets(scale));
            cells.push(Cell::Buckets(buckets.into()));
        }
        cells
    }
}

impl Tally for Hist {
    fn name(&self) -> &'static str {
        "hist"
    }

    fn prefetch(&self, about: About, what: Prefetch) {
        self.open.prefetch(about, what);
    }

    fn take(&mut self, transition: &Transition, wanted: bool) {
        use TcpState::{Close as Closed, FinWait2, SynRecv, SynSent, TimeWait};
        let event = &transition.event;
        let (old, new) = (event.old, event.new);
        if event.is_listener() || (old, new) == (Closed, Closed) {
            return;
        }
        let id = self.open.key(transition);
        if event.is_birth() {
            if self.remembers {
                // If the socket is used again, the end of the life before was not seen.
                let before = self.open.remove(id);
                self.forget(before);
                let gone = self.open.insert(id, Life::new(Opened::of_birth(event)));
                self.forget(gone);
            }
            return;
        }
        let phase = self.phase(transition);
        let mut life = Life::new(Opened::Unknown);
        let mut closed = None;
        if self.remembers {
            let known = self.open.get(id).copied();
            life = known.unwrap_or(life);
            if (old, new) == (SynSent, SynRecv) {
                life.opened = Opened::Simultaneous;
            }
            closed = life.close(transition, phase);
            let waits = wanted && transition.minisocket && new == FinWait2;
            self.waiting += u64::from(waits);
            self.waiting = self.waiting.saturating_sub(u64::from(life.waits));
            life.waits = waits;
            let over = new == Closed || (new == TimeWait && !self.options.by.needs_opened());
            if over {
                self.open.remove(id);
            } else if let Some(known) = self.open.get(id) {
                *known = life;
            } else if life.closing.is_some() || life.waits {
                let gone = self.open.insert(id, life);
                self.forget(gone);
            }
        }
        if !wanted {
            return;
        }
        if old != new
            && let Some(measure) = Measure::ending(old, new)
        {
            self.sample(transition, life.opened, measure, phase);
        }
        if let Some((measure, phase)) = closed {
            self.sample(transition, life.opened, measure, phase);
        }
    }

    fn table(&mut self, _: u64, _: u64) -> Table {
        let Grouped {
            keys,
            groups,
            beyond,
        } = self.groups.end(&self.options.by);
        let mut rows = Vec::new();
        let mut not_exact = 0;
        let mut too_many = 0;
        for measure in Measure::ALL {
            let of = |sums: &Distributions| {
                let one = sums.0[measure as usize].clone();
                (!one.is_empty()).then_some(one)
            };
            let groups: Vec<_> = groups
                .iter()
                .filter_map(|(key, sums)| Some((key.clone(), of(sums)?)))
                .collect();
            let beyond = beyond.as_ref().and_then(of);
            if groups.is_empty() && beyond.is_none() {
                continue;
            }
            let all = groups.iter().map(|(_, one)| one).chain(&beyond);
            not_exact += all.map(|one| one.not_exact).sum::<u64>();
            too_many += beyond.as_ref().map_or(0, Distribution::samples);
            rows.extend(self.options.order.rows(
                &self.columns,
                &[Cell::Term {
                    label: measure.label(),
                    name: measure.name(),
                }],
                Grouped {
                    keys,
                    groups,
                    beyond,
                },
                |one| self.cells(one),
            ));
        }
        let mut notes = Vec::new();
        if not_exact > 0 {
            notes.push(format!(
                "{not_exact} not exact, left out: begun before we looked, or events lost"
            ));
        }
        if !self.options.timewait {
            notes.push("FIN_WAIT2 is a bound: the life of TIME_WAIT is not observed".to_owned());
        }
        if self.waiting > 0 {
            let s = if self.waiting == 1 { "" } else { "s" };
            notes.push(format!(
                "{} minisocket{s} in FIN_WAIT2, or in TIME_WAIT unheard: measured at the end",
                self.waiting
            ));
        }
        if too_many > 0 {
            notes.push(format!(
                "{too_many} in groups that were too many to tell apart"
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
        self.open.forgotten()
    }
}

impl Life {
    const fn new(opened: Opened) -> Self {
        Self {
            opened,
            closing: None,
            waits: false,
        }
    }

    /// Follows the close of a connection, and gives the one that has ended.
    fn close(&mut self, transition: &Transition, phase: Phase) -> Option<(Measure, Phase)> {
        use TcpState::{
            Close, CloseWait, Closing as Crossed, FinWait1, FinWait2, LastAck, TimeWait,
        };
        let event = &transition.event;
        let (old, new) = (event.old, event.new);
        let begins = match new {
            FinWait1 if old != FinWait1 => Some(Measure::ActiveClose),
            CloseWait if old != CloseWait => Some(Measure::PassiveClose),
            _ => None,
        };
        if let Some(measure) = begins {
            self.closing = Some(Closing {
                measure,
                began: event.time,
                bound: Bound::Exact,
            });
            return None;
        }
        if let Some(closing) = &mut self.closing
            && (transition.damaged || phase.bound() != Bound::Exact)
        {
            closing.bound = Bound::Unknown;
        }
        let measure = match (old, new) {
            (FinWait1 | FinWait2 | Crossed, TimeWait | Close) => Measure::ActiveClose,
            (CloseWait | LastAck, Close) => Measure::PassiveClose,
            _ => return None,
        };
        let known = self
            .closing
            .take()
            .filter(|closing| closing.measure == measure);
        let phase = known.map_or(Phase::UNKNOWN, |closing| {
            Phase::between(closing.began, event.time, closing.bound)
        });
        Some((measure, phase))
    }
}

impl Distribution {
    fn samples(&self) -> u64 {
        self.not_exact + self.exact.as_ref().map_or(0, |exact| exact.count())
    }

    fn is_empty(&self) -> bool {
        self.samples() == 0
    }
}

impl Sum for Distribution {
    fn add(&mut self, other: &Self) {
        self.not_exact += other.not_exact;
        if let Some(other) = &other.exact {
            self.exact.get_or_insert_default().add(other);
        }
    }
}

impl Sum for Distributions {
    fn add(&mut self, other: &Self) {
        for (one, other) in self.0.iter_mut().zip(&other.0) {
            one.add(other);
        }
    }
}

impl Interval for Distributions {
    fn end(&mut self) -> Option<Self> {
        let ended = std::mem::take(self);
        let empty = ended.0.iter().all(Distribution::is_empty);
        (!empty).then_some(ended)
    }
}
